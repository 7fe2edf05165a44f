/* An allocator that is called through pointers, as Python's is. With a profile gcc compares them with the functions that they lead to, and puts
 * copies of these behind. 1,000 blocks, of which 300 are given back. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

struct block {
    struct block *next;
};
static struct block *unused[32];

static void *inner_alloc(void *context, size_t bytes) {
    size_t kind = (bytes + 15) / 16;
    if (kind >= 32) return malloc(bytes);
    struct block *first = unused[kind];
    if (!first) {
        char *chunk = malloc(8192);
        for (size_t at = 16; at + kind * 16 <= 8192; at += kind * 16) {
            struct block *block = (struct block *)(chunk + at);
            block->next = unused[kind];
            unused[kind] = block;
        }
        first = unused[kind];
    }
    unused[kind] = first->next;
    return first;
}

static void inner_free(void *context, void *block) {
    struct block *first = block;
    first->next = unused[2];
    unused[2] = first;
}

static struct {
    void *context;
    void *(*alloc)(void *, size_t);
    void (*free)(void *, void *);
} pool = {NULL, inner_alloc, inner_free};

void pool_set(void *context, void *(*alloc)(void *, size_t), void (*free)(void *, void *)) {
    pool.context = context;
    pool.alloc = alloc;
    pool.free = free;
}

void *pool_malloc(size_t bytes) {
    return pool.alloc(pool.context, bytes);
}

void pool_free(void *block) {
    pool.free(pool.context, block);
}

struct item {
    long value;
    struct item *next;
    long rest;
};

int main(int count, char **arguments) {
    if (count > 5) pool_set(arguments, NULL, NULL);
    struct item *all[1000];
    long sum = 0;
    for (int i = 0; i < 1000; i++) {
        all[i] = pool_malloc(sizeof(struct item));
        all[i]->value = i;
    }
    for (int i = 0; i < 1000; i++) sum += all[i]->value;
    for (int i = 0; i < 300; i++) pool_free(all[i]);
    printf("%ld\n", sum);
    return 0;
}
