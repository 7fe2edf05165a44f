/* Pools by the names and meanings of the Apache Portable Runtime: chunks stay with a pool that is cleared. And of talloc: a header before
 * every block. */
#include <stdlib.h>

struct chunk {
    struct chunk *next;
    size_t used;
    char bytes[8000];
};
typedef struct apr_pool_t {
    struct chunk *first, *spare;
} apr_pool_t;

void *apr_palloc(apr_pool_t *pool, size_t bytes) {
    bytes = (bytes + 7) & ~(size_t)7;
    if (!pool->first || pool->first->used + bytes > sizeof pool->first->bytes) {
        struct chunk *chunk = pool->spare;
        if (chunk) pool->spare = chunk->next;
        else chunk = malloc(sizeof *chunk);
        chunk->used = 0;
        chunk->next = pool->first;
        pool->first = chunk;
    }
    void *block = pool->first->bytes + pool->first->used;
    pool->first->used += bytes;
    return block;
}

void apr_pool_clear(apr_pool_t *pool) {
    while (pool->first) {
        struct chunk *next = pool->first->next;
        pool->first->next = pool->spare;
        pool->spare = pool->first;
        pool->first = next;
    }
}

void apr_pool_destroy(apr_pool_t *pool) {
    apr_pool_clear(pool);
    while (pool->spare) {
        struct chunk *next = pool->spare->next;
        free(pool->spare);
        pool->spare = next;
    }
}

enum { HEADER = 96 };

void *_talloc(void *parent, size_t bytes) {
    (void)parent;
    return (char *)malloc(HEADER + bytes) + HEADER;
}

void *_talloc_realloc(void *parent, void *block, size_t bytes) {
    (void)parent;
    return (char *)realloc((char *)block - HEADER, HEADER + bytes) + HEADER;
}

/* By a function that is not declared: known by the chunk. */
void release(void *block) { free((char *)block - HEADER); }
