/* Preloaded: a malloc in front of libc's that passes all on, and takes back what it did not hand out. */
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void __libc_free(void *);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_calloc(size_t, size_t);

static long calls;
void *malloc(size_t n) {
    calls++;
    return __libc_malloc(n);
}
void free(void *p) {
    calls++;
    __libc_free(p);
}
void *realloc(void *p, size_t n) {
    calls++;
    return __libc_realloc(p, n);
}
