/* The same log for an allocator that is linked in: `ld --wrap` sends the program's calls here. */
#include "call_log.h"
#include <stddef.h>

void *__real_malloc(size_t), *__real_calloc(size_t, size_t), *__real_realloc(void *, size_t);
void __real_free(void *);

void *__wrap_malloc(size_t size)
{
    struct call *call = begin_call(LOG_MALLOC, NULL, size, __wrap_malloc);
    void *block = __real_malloc(size);
    end_call(call, block);
    return block;
}

void *__wrap_calloc(size_t count, size_t size)
{
    struct call *call = begin_call(LOG_MALLOC, NULL, count * size, __wrap_calloc);
    void *block = __real_calloc(count, size);
    end_call(call, block);
    return block;
}

void *__wrap_realloc(void *old, size_t size)
{
    struct call *call = begin_call(LOG_REALLOC, old, size, __wrap_realloc);
    void *block = __real_realloc(old, size);
    end_call(call, block);
    return block;
}

void __wrap_free(void *block)
{
    struct call *call = block ? begin_call(LOG_FREE, block, 0, __wrap_free) : NULL;
    __real_free(block);
    end_call(call, NULL);
}

__attribute__((constructor)) static void open_log(void)
{
    open_call_log();
}
