#include <stdlib.h>

void *inner_get(size_t size);
void *inner_alias(size_t size);
void *inner_grow(void *old, size_t size);
char *inner_copy(const char *text);
int inner_through(void **block, size_t size);
struct cache *cache_new(size_t size);
void *cache_get(struct cache *cache);
struct handle *inner_handle(void);
void *inner_versions(size_t more, size_t size);
void *outer_get(size_t count, size_t size);
int outer_through(size_t size, void **block);

struct item {
    struct item *next;
    long key;
    int more[4];
};

struct item *items, *others;
char *text;

// What plug-ins call; the name is that of a function of a library, which it hides.
__attribute__((noinline)) void *host_get(size_t size) {
    void *block = malloc(size);
    if (!block)
        abort();
    return block;
}

void *hidden(size_t count) { return (void *)count; }

int main(int count, char **arguments) {
    items = inner_get(sizeof *items); //= inner_get: struct item
    items->next = inner_alias(sizeof(struct item)); //= inner_alias: struct item
    others = inner_grow(others, count * sizeof *others); //= inner_grow: struct item[]
    text = inner_copy(arguments[0]); //= inner_copy: char[]
    others[0].next = outer_get(count, sizeof(struct item)); //= outer_get: struct item[]
    void *block;
    if (inner_through(&block, sizeof(struct item)) == 0) //= inner_through: struct item
        ((struct item *)block)->key = 1;
    if (outer_through(sizeof(struct item), &block) == 0) //= outer_through: struct item
        ((struct item *)block)->key = 2;
    struct cache *cache = cache_new(sizeof(struct item)); //= -
    struct item *cached = cache_get(cache); //= cache_get: struct item
    cached->key = 4;
    inner_handle(); //= -
    items->key = (long)inner_versions(1, sizeof(struct item)); //= -
    return 0;
}
