/* For ever: allocates, reallocates and frees blocks of all sizes, small ones above all, and logs each call itself: for allocators that are linked in. */
#include "call_log.h"

enum { HELD = 2000 };

#define SITE __attribute__((noinline)) static

SITE void *by_malloc(size_t size)
{
    struct call *call = begin_call(LOG_MALLOC, NULL, size, by_malloc);
    void *block = malloc(size);
    end_call(call, block);
    return block;
}

SITE void *by_calloc(size_t size)
{
    struct call *call = begin_call(LOG_MALLOC, NULL, size, by_calloc);
    void *block = calloc(1, size);
    end_call(call, block);
    return block;
}

SITE void *by_realloc(void *old, size_t size)
{
    struct call *call = begin_call(LOG_REALLOC, old, size, by_realloc);
    void *block = realloc(old, size);
    end_call(call, block);
    return block;
}

SITE void by_free(void *block)
{
    struct call *call = begin_call(LOG_FREE, block, 0, by_free);
    free(block);
    end_call(call, NULL);
}

int main(void)
{
    static void *held[HELD];
    open_call_log();
    unsigned long random = 1;
    for (long i = 0; ; i++) {
        /* Slow enough for many stops, fast enough to be stopped in the middle of a call. */
        if (i % 500 == 0)
            usleep(50);
        random = random * 6364136223846793005u + 1442695040888963407u;
        unsigned at = (random >> 33) % HELD, kind = (random >> 20) % 100;
        size_t size = kind < 60 ? kind % 24 + 1 : kind < 99 ? (random >> 40) % 1000 : (random >> 40) % 100000;
        if (held[at] && kind % 4 == 0) {
            held[at] = by_realloc(held[at], size + 1);
        } else {
            if (held[at])
                by_free(held[at]);
            held[at] = kind % 3 ? by_malloc(size) : by_calloc(size);
        }
    }
}
