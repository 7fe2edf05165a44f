/* A malloc of its own, in an executable or a shared object, and a caller of it beside it. */
#include <stddef.h>
#include <string.h>

static char arena[1 << 22] __attribute__((aligned(16)));
static size_t used;
static long calls;

VISIBILITY void *malloc(size_t n) {
    calls++;
    size_t at = used;
    used += (n + 15) & ~(size_t)15;
    return used <= sizeof arena ? arena + at : 0;
}
VISIBILITY void free(void *p) { (void)p; }
VISIBILITY void *calloc(size_t n, size_t size) { return malloc(n * size); }
VISIBILITY void *realloc(void *old, size_t n) {
    char *p = malloc(n);
    if (p && old) memmove(p, old, n);
    return p;
}

/* How often the code above ran. */
long own_calls(void) { return calls; }

__attribute__((noinline)) void inside(void) {
    void *volatile p = malloc(1000);
    free(p);
}
