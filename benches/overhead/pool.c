/* A bump pool, by names that ship inside: blocks cut out of chunks, all of a pool taken back at once. Prints nanoseconds of CPU a block. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct chunk {
    struct chunk *next;
    char *free, *end;
};
struct pool {
    struct chunk *first;
};
struct item {
    struct item *next;
    long value[3];
};

static struct chunk *grow(struct pool *pool, size_t bytes) {
    size_t size = sizeof(struct chunk) + (bytes > 8000 ? bytes : 8000);
    struct chunk *chunk = malloc(size);
    chunk->next = pool->first;
    chunk->free = (char *)(chunk + 1);
    chunk->end = (char *)chunk + size;
    pool->first = chunk;
    return chunk;
}

__attribute__((noinline)) void *apr_palloc(struct pool *pool, size_t bytes) {
    struct chunk *chunk = pool->first;
    bytes = (bytes + 15) & ~(size_t)15;
    if (!chunk || (size_t)(chunk->end - chunk->free) < bytes) chunk = grow(pool, bytes);
    void *block = chunk->free;
    chunk->free += bytes;
    return block;
}

__attribute__((noinline)) void apr_pool_destroy(struct pool *pool) {
    while (pool->first) {
        struct chunk *next = pool->first->next;
        free(pool->first);
        pool->first = next;
    }
}

struct item *list;

int main(int count, char **arguments) {
    long rounds = count > 1 ? atol(arguments[1]) : 20000;
    enum { BLOCKS = 1000 };
    struct timespec from, to;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    for (long round = 0; round < rounds; round++) {
        struct pool pool = {0};
        list = NULL;
        for (int i = 0; i < BLOCKS; i++) {
            struct item *item = apr_palloc(&pool, sizeof *item);
            item->next = list;
            item->value[0] = i;
            list = item;
        }
        apr_pool_destroy(&pool);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
    printf("%.2f\n", ns / ((double)rounds * BLOCKS));
    return 0;
}
