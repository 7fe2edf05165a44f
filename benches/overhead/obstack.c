/* Objects of an obstack, finished by its macros and taken back in thousands. Prints nanoseconds of CPU an object. */
#include <obstack.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#define obstack_chunk_alloc malloc
#define obstack_chunk_free free

struct item {
    struct item *next;
    long value[3];
};

static struct obstack stack;
struct item *list;

__attribute__((noinline)) static void push(long value) {
    struct item *item = obstack_alloc(&stack, sizeof *item);
    item->next = list;
    item->value[0] = value;
    list = item;
}

int main(int count, char **arguments) {
    long rounds = count > 1 ? atol(arguments[1]) : 20000;
    enum { OBJECTS = 1000 };
    struct timespec from, to;
    obstack_begin(&stack, 64000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    for (long round = 0; round < rounds; round++) {
        void *mark = obstack_alloc(&stack, 16);
        for (int i = 0; i < OBJECTS; i++) push(i);
        obstack_free(&stack, mark);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
    printf("%.2f\n", ns / ((double)rounds * OBJECTS));
    return 0;
}
