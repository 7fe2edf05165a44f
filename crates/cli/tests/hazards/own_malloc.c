/* An executable with an allocator of its own, which libc uses too. Counts its own calls. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Alignas(16) char arena[8 << 20];
static size_t used;
static unsigned long allocations, frees;

__attribute__((noinline)) void *malloc(size_t size)
{
    size_t total = (size + 16 + 15) & ~(size_t)15;
    if (used + total > sizeof arena)
        return NULL;
    char *block = arena + used + 16;
    used += total;
    memcpy(block - 16, &size, sizeof size);
    allocations++;
    return block;
}

__attribute__((noinline)) void free(void *block)
{
    frees += block != NULL;
}

void *calloc(size_t count, size_t size)
{
    return malloc(count * size);
}

__attribute__((noinline)) void *realloc(void *old, size_t size)
{
    void *new = malloc(size);
    if (old && new) {
        size_t before;
        memcpy(&before, (char *)old - 16, sizeof before);
        memcpy(new, old, before < size ? before : size);
        free(old);
    }
    return new;
}

int main(void)
{
    char *line = NULL;
    for (int i = 0; i < 1000; i++) {
        free(line);
        line = strdup("a line");
        line = realloc(line, 100);
    }
    free(line);
    /* To a stream that has its buffer by now. */
    fprintf(stderr, "%s", "");
    char text[100];
    snprintf(text, sizeof text, "%lu %lu", allocations, frees);
    fprintf(stderr, "%s\n", text);
    return 0;
}
