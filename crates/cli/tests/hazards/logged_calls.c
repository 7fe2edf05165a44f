/* Allocates, reallocates and frees blocks of all sizes, small ones above all, and logs each call itself: for allocators that are linked in. */
#include "call_log.h"
#include <stdio.h>
#include <string.h>

enum { HELD = 5000 };

int main(int argc, char **argv)
{
    static void *held[HELD];
    setvbuf(stdout, NULL, _IONBF, 0);
    open_call_log();
    unsigned long random = 1;
    long calls = argc > 1 ? atol(argv[1]) : 1000000;
    for (long i = 0; i < calls; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        unsigned at = (random >> 33) % HELD, kind = (random >> 20) % 100;
        size_t size = kind < 60 ? kind % 24 + 1 : kind < 95 ? (random >> 40) % 1000 : (random >> 40) % 200000;
        struct call *call;
        if (held[at] && kind % 4 == 0) {
            call = begin_call(LOG_REALLOC, held[at], size + 1, NULL);
            held[at] = realloc(held[at], size + 1);
        } else {
            if (held[at]) {
                call = begin_call(LOG_FREE, held[at], 0, NULL);
                free(held[at]);
                end_call(call, NULL);
            }
            call = begin_call(LOG_MALLOC, NULL, size, NULL);
            held[at] = kind % 3 ? malloc(size) : calloc(1, size);
        }
        end_call(call, held[at]);
    }
    printf("%ld calls\n", calls);
    return 0;
}
