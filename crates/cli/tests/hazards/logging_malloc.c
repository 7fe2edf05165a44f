/* A preloaded allocator that logs each call and leaves the work to the next one. Who calls it cannot be told here: the hook at its entry calls it. */
#define _GNU_SOURCE
#include "call_log.h"
#include <dlfcn.h>
#include <stddef.h>

static void *(*next_malloc)(size_t), *(*next_calloc)(size_t, size_t), *(*next_realloc)(void *, size_t);
static void *(*next_memalign)(size_t, size_t);
static void (*next_free)(void *);

static void find_next(void)
{
    if (next_free)
        return;
    next_malloc = dlsym(RTLD_NEXT, "malloc");
    next_calloc = dlsym(RTLD_NEXT, "calloc");
    next_realloc = dlsym(RTLD_NEXT, "realloc");
    next_memalign = dlsym(RTLD_NEXT, "aligned_alloc");
    open_call_log();
    next_free = dlsym(RTLD_NEXT, "free");
}

void *malloc(size_t size)
{
    find_next();
    struct call *call = begin_call(LOG_MALLOC, NULL, size, NULL);
    void *block = next_malloc(size);
    end_call(call, block);
    return block;
}

void *calloc(size_t count, size_t size)
{
    find_next();
    struct call *call = begin_call(LOG_MALLOC, NULL, count * size, NULL);
    void *block = next_calloc(count, size);
    end_call(call, block);
    return block;
}

void *realloc(void *old, size_t size)
{
    find_next();
    struct call *call = begin_call(LOG_REALLOC, old, size, NULL);
    void *block = next_realloc(old, size);
    end_call(call, block);
    return block;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    find_next();
    struct call *call = begin_call(LOG_MALLOC, NULL, size, NULL);
    void *block = next_memalign(alignment, size);
    end_call(call, block);
    return block;
}

void free(void *block)
{
    find_next();
    struct call *call = block ? begin_call(LOG_FREE, block, 0, NULL) : NULL;
    next_free(block);
    end_call(call, NULL);
}
