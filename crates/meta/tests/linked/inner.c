// Functions that hand out memory, for other files.
#include <stdlib.h>
#include <string.h>

void *inner_get(size_t size) {
    void *block = malloc(size);
    if (!block)
        abort();
    return block;
}

void *inner_alias(size_t size) __attribute__((alias("inner_get")));

void *inner_grow(void *old, size_t size) {
    void *block = realloc(old, size);
    if (!block)
        abort();
    return block;
}

char *inner_copy(const char *text) {
    size_t length = strlen(text) + 1;
    return memcpy(inner_get(length), text, length);
}

int inner_through(void **block, size_t size) {
    *block = malloc(size);
    return *block == 0;
}

struct cache {
    size_t size;
    long count;
};

struct cache *cache_new(size_t size) {
    struct cache *cache = malloc(sizeof *cache);
    cache->size = size;
    cache->count = 0;
    return cache;
}

void *cache_get(struct cache *cache) {
    cache->count++;
    return malloc(cache->size);
}

// One that is none: what it returns has a type.
struct handle {
    long key;
    void *next;
};

struct handle *inner_handle(void) {
    struct handle *handle = malloc(sizeof *handle);
    handle->key = 3;
    return handle;
}

// Two versions of one name that differ.
void *inner_versions_1(size_t size) { return malloc(size); }
void *inner_versions_2(size_t more, size_t size) { return more ? malloc(size) : 0; }
__asm__(".symver inner_versions_1, inner_versions@ONE");
__asm__(".symver inner_versions_2, inner_versions@@TWO");
