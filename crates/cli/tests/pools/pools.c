/* Two pools on malloc: one whose blocks are given back, one whose blocks die with their chunk. */
#include <stdio.h>
#include <stdlib.h>

struct chunk {
    struct chunk *next;
    size_t used;
    char bytes[4000];
};
struct pool {
    struct chunk *first;
};

struct leaf {
    long key;
    char name[24];
};
struct slot {
    struct slot *next;
    double weight;
};

/* Bumps a pointer; no header, so the first block of a chunk lies close to the chunk's own start. */
__attribute__((noinline)) void *pool_alloc(struct pool *pool, size_t n) {
    n = (n + 7) & ~(size_t)7;
    if (!pool->first || pool->first->used + n > sizeof pool->first->bytes) {
        struct chunk *chunk = malloc(sizeof *chunk);
        chunk->next = pool->first;
        chunk->used = 0;
        pool->first = chunk;
    }
    void *p = pool->first->bytes + pool->first->used;
    pool->first->used += n;
    return p;
}
__attribute__((noinline)) void *pool_calloc(struct pool *pool, size_t count, size_t n) {
    char *p = pool_alloc(pool, count * n);
    for (size_t i = 0; i < count * n; i++) p[i] = 0;
    return p;
}
__attribute__((noinline)) void pool_end(struct pool *pool) {
    while (pool->first) {
        struct chunk *next = pool->first->next;
        free(pool->first);
        pool->first = next;
    }
}

static struct slot *unused;
__attribute__((noinline)) void *slot_alloc(size_t n) {
    if (!unused) {
        char *chunk = malloc(64 * n);
        for (int i = 0; i < 64; i++) {
            struct slot *slot = (struct slot *)(chunk + i * n);
            slot->next = unused;
            unused = slot;
        }
    }
    struct slot *slot = unused;
    unused = slot->next;
    return slot;
}
__attribute__((noinline)) void slot_free(size_t n, void *p) {
    (void)n;
    ((struct slot *)p)->next = unused;
    unused = p;
}

struct leaf *leaf;
struct leaf *leaves;
struct slot *slot, *kept;

int main(void) {
    struct pool passing = {0}, staying = {0};
    for (int i = 0; i < 500; i++) {
        leaf = pool_alloc(&passing, sizeof(struct leaf));
        leaf->key = i;
    }
    pool_end(&passing);
    for (int i = 0; i < 200; i++) {
        leaf = pool_alloc(&staying, sizeof(struct leaf));
        leaf->key = i;
    }
    leaves = pool_calloc(&staying, 3, sizeof(struct leaf));
    for (int i = 0; i < 100; i++) {
        slot = slot_alloc(sizeof(struct slot));
        slot->weight = i;
        if (i % 4 == 0) kept = slot;
        else slot_free(sizeof(struct slot), slot);
    }
    printf("%p %p %p\n", (void *)((char *)leaf + 8), (void *)((char *)(leaves + 1) + 8), (void *)kept);
    fflush(stdout);
    getchar();
    if (getenv("WRONG")) {
        slot = slot_alloc(sizeof(struct slot));
        free(slot); /* glibc may end the process */
    }
    return 0;
}
