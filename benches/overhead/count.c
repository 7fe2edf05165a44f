/* Blocks of a pool whose cursor is a number, in its user's code, taken back in thousands. Prints nanoseconds of CPU a block. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct arena {
    char *base;
    size_t used, size;
};
struct item {
    struct item *next;
    long value[3];
};

struct item *list;

static inline void *take(struct arena *arena, size_t bytes) {
    if (arena->used + bytes > arena->size) abort();
    void *block = arena->base + arena->used;
    arena->used += bytes;
    return block;
}

__attribute__((noinline)) static void push(struct arena *arena, long value) {
    struct item *item = take(arena, sizeof *item);
    item->next = list;
    item->value[0] = value;
    list = item;
}

__attribute__((noinline)) static void release(struct arena *arena, size_t mark) {
    arena->used = mark;
}

int main(int count, char **arguments) {
    long rounds = count > 1 ? atol(arguments[1]) : 20000;
    enum { BLOCKS = 1000 };
    struct arena arena = {malloc(64000), 0, 64000};
    struct timespec from, to;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < BLOCKS; i++) push(&arena, i);
        release(&arena, 0);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
    printf("%.2f\n", ns / ((double)rounds * BLOCKS));
    return 0;
}
