/* Four threads map, unmap, protect, move and cut pages of their own, by libc's functions and through `syscall`; all stand still, and the program prints its process id
 * and waits for a line. Then it maps a number of pages by an instruction of its own, prints that number, and waits again. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS = 4, PAGE = 4096, KEPT = 64, UNSEEN = 37 };

static long rounds;

static void *map(int raw, size_t pages, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (raw) return (void *)syscall(SYS_mmap, 0, pages * PAGE, protection, flags, -1, 0);
    return mmap(0, pages * PAGE, protection, flags, -1, 0);
}

static void unmap(int raw, char *at, size_t pages) {
    if (raw) syscall(SYS_munmap, at, pages * PAGE);
    else munmap(at, pages * PAGE);
}

static void *storm(void *number) {
    unsigned seed = (unsigned)(size_t)number * 7919 + 1;
    char *kept[KEPT] = {0};
    size_t pages[KEPT] = {0};
    for (long round = 0; round < rounds; round++) {
        seed = seed * 1103515245 + 12345;
        int place = seed >> 8 & (KEPT - 1), raw = seed >> 16 & 1, what = seed >> 20 & 7;
        if (!kept[place]) {
            pages[place] = 1 + (seed >> 24) % 20;
            kept[place] = map(raw, pages[place], PROT_READ | (what & PROT_WRITE));
        } else if (what < 3) {
            size_t half = pages[place] / 2;
            if (raw) syscall(SYS_mprotect, kept[place], (half + 1) * PAGE, PROT_READ | PROT_WRITE);
            else mprotect(kept[place] + half * PAGE, (pages[place] - half) * PAGE, PROT_NONE);
        } else if (what == 3) {
            /* A piece out of the middle, then what is left on both sides. */
            size_t half = pages[place] / 2;
            unmap(raw, kept[place] + half * PAGE, 1);
            if (half) unmap(!raw, kept[place], half);
            if (half + 1 < pages[place]) unmap(raw, kept[place] + (half + 1) * PAGE, pages[place] - half - 1);
            kept[place] = 0;
        } else if (what == 4 && pages[place] < 40) {
            /* Of one mapping only: all of it anew, then moved. */
            unmap(raw, kept[place], pages[place]);
            kept[place] = map(!raw, pages[place], PROT_READ);
            char *moved = raw ? (char *)syscall(SYS_mremap, kept[place], pages[place] * PAGE,
                                               (pages[place] + 3) * PAGE, MREMAP_MAYMOVE)
                              : mremap(kept[place], pages[place] * PAGE, (pages[place] + 3) * PAGE, MREMAP_MAYMOVE);
            if (moved != MAP_FAILED) kept[place] = moved, pages[place] += 3;
        } else {
            unmap(raw, kept[place], pages[place]);
            kept[place] = 0;
        }
    }
    return 0;
}

int main(int count, char **arguments) {
    rounds = count > 1 ? atol(arguments[1]) : 5000;
    /* Fails at the hole; what lies before it is changed. */
    char *torn = map(0, 3, PROT_READ);
    unmap(0, torn + PAGE, 1);
    int failed = mprotect(torn, 3 * PAGE, PROT_READ | PROT_WRITE);
    /* More than a chunk of the table, all of it alike but for a piece. */
    char *wide = map(0, 50000, PROT_NONE);
    mprotect(wide + 30000l * PAGE, 7 * PAGE, PROT_READ);
    void *shared = mmap(0, PAGE, PROT_READ, MAP_SHARED, open("/proc/self/exe", O_RDONLY), 0);
    pthread_t threads[THREADS];
    for (size_t at = 0; at < THREADS; at++) pthread_create(&threads[at], 0, storm, (void *)at);
    for (size_t at = 0; at < THREADS; at++) pthread_join(threads[at], 0);
    printf("%d\n", getpid());
    fflush(stdout);
    getchar();
    register long flags __asm__("r10") = MAP_PRIVATE | MAP_ANONYMOUS;
    register long file __asm__("r8") = -1;
    register long offset __asm__("r9") = 0;
    long at;
    __asm__ volatile("syscall"
                     : "=a"(at)
                     : "a"(SYS_mmap), "D"(0), "S"((long)UNSEEN * PAGE), "d"(PROT_READ), "r"(flags), "r"(file), "r"(offset)
                     : "rcx", "r11", "memory");
    printf("%d\n", UNSEEN);
    fflush(stdout);
    getchar();
    return at < 0 || !failed || shared == MAP_FAILED;
}
