/* A program with a second malloc, `je_malloc` and `je_free`, whose blocks lie in a static array. argv[1] says who frees what. */
#include <stdlib.h>
#include <string.h>

static char arena[1 << 16] __attribute__((aligned(16)));
static size_t used = 16; /* What lies before a block is zero: no chunk of glibc. */

__attribute__((noinline)) void *je_malloc(size_t n) {
    void *p = arena + used;
    used += (n + 31) & ~(size_t)15;
    return used <= sizeof arena ? p : 0;
}
static int freed;
__attribute__((noinline)) void je_free(void *p) { freed += p != 0; }

__attribute__((noinline)) static void *make(void *(*from)(size_t)) {
    char *p = from(24);
    p[0] = 1;
    return p;
}
__attribute__((noinline)) static void drop(void (*how)(void *), void *p) {
    how(p);
    __asm__ volatile("");
}

int main(int argc, char **argv) {
    (void)argc;
    for (int i = 0; i < 3; i++) {
        if (!strcmp(argv[1], "right")) {
            drop(je_free, make(je_malloc));
            drop(free, make(malloc));
        } else if (!strcmp(argv[1], "malloc-je_free")) {
            drop(je_free, make(malloc));
        } else if (!strcmp(argv[1], "je_malloc-free")) {
            drop(free, make(je_malloc)); /* glibc ends the process */
        }
    }
    return 0;
}
