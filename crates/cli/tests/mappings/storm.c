/* Four threads map, unmap, protect, move and cut pages of their own, by libc's functions, through `syscall`, and by system call instructions of the
 * program's own; a library comes and goes. All stand still, and the program prints its process id and waits for a line. Then it maps a number of
 * pages by code made at run time, prints that number, and waits again. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS = 4, PAGE = 4096, KEPT = 64, UNSEEN = 37 };

static long rounds;

enum { LIBC, THROUGH_SYSCALL, CONSTANT, VARIABLE, WAYS };

/* The number is not in the code. */
__attribute__((noinline)) static long own(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void *map(int way, size_t pages, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    size_t len = pages * PAGE;
    if (way == LIBC) return mmap(0, len, protection, flags, -1, 0);
    if (way == THROUGH_SYSCALL) return (void *)syscall(SYS_mmap, 0, len, protection, flags, -1, 0);
    if (way == VARIABLE) return (void *)own(SYS_mmap, 0, (long)len, protection, flags, -1, 0);
    register long r10 __asm__("r10") = flags, r8 __asm__("r8") = -1, r9 __asm__("r9") = 0;
    void *result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(SYS_mmap), "D"(0), "S"(len), "d"(protection), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void unmap(int way, char *at, size_t pages) {
    size_t len = pages * PAGE;
    long result;
    if (way == LIBC) munmap(at, len);
    else if (way == THROUGH_SYSCALL) syscall(SYS_munmap, at, len);
    else if (way == VARIABLE) own(SYS_munmap, (long)at, (long)len, 0, 0, 0, 0);
    else
        __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_munmap), "D"(at), "S"(len) : "rcx", "r11", "memory");
}

static void protect(int way, char *at, size_t pages, int protection) {
    size_t len = pages * PAGE;
    if (way == LIBC) mprotect(at, len, protection);
    else if (way == THROUGH_SYSCALL) syscall(SYS_mprotect, at, len, protection);
    else own(SYS_mprotect, (long)at, (long)len, protection, 0, 0, 0);
}

static char *move(int way, char *at, size_t pages, size_t more) {
    if (way == LIBC) return mremap(at, pages * PAGE, more * PAGE, MREMAP_MAYMOVE);
    if (way == THROUGH_SYSCALL) return (char *)syscall(SYS_mremap, at, pages * PAGE, more * PAGE, MREMAP_MAYMOVE);
    return (char *)own(SYS_mremap, (long)at, (long)(pages * PAGE), (long)(more * PAGE), MREMAP_MAYMOVE, 0, 0);
}

static void *storm(void *number) {
    unsigned seed = (unsigned)(size_t)number * 7919 + 1;
    char *kept[KEPT] = {0};
    size_t pages[KEPT] = {0};
    for (long round = 0; round < rounds; round++) {
        seed = seed * 1103515245 + 12345;
        int place = seed >> 8 & (KEPT - 1), way = seed >> 16 & (WAYS - 1), what = seed >> 20 & 7;
        if (!kept[place]) {
            pages[place] = 1 + (seed >> 24) % 20;
            kept[place] = map(way, pages[place], PROT_READ | (what & PROT_WRITE));
        } else if (what < 3) {
            size_t half = pages[place] / 2;
            if (way & 1) protect(way, kept[place], half + 1, PROT_READ | PROT_WRITE);
            else protect(way, kept[place] + half * PAGE, pages[place] - half, PROT_NONE);
        } else if (what == 3) {
            /* A piece out of the middle, then what is left on both sides. */
            size_t half = pages[place] / 2;
            unmap(way, kept[place] + half * PAGE, 1);
            if (half) unmap((way + 1) % WAYS, kept[place], half);
            if (half + 1 < pages[place]) unmap(way, kept[place] + (half + 1) * PAGE, pages[place] - half - 1);
            kept[place] = 0;
        } else if (what == 4 && pages[place] < 40) {
            /* Of one mapping only: all of it anew, then moved. */
            unmap(way, kept[place], pages[place]);
            kept[place] = map((way + 1) % WAYS, pages[place], PROT_READ);
            char *moved = move(way, kept[place], pages[place], pages[place] + 3);
            if (moved != MAP_FAILED) kept[place] = moved, pages[place] += 3;
        } else {
            unmap(way, kept[place], pages[place]);
            kept[place] = 0;
        }
    }
    return 0;
}

/* Takes chunks of the table away (64 MiB each): whole ones, and parts of those beside; changes and moves as many. */
static int huge(int way) {
    enum { CHUNK = (64 << 20) / PAGE, WHOLE = 6 * CHUNK };
    char *at = map(way, WHOLE, PROT_NONE);
    if (at == MAP_FAILED) return 0;
    protect(way, at + 10l * PAGE, CHUNK + 100, PROT_READ);
    unmap(way, at + (CHUNK / 2l) * PAGE, 2 * CHUNK + 7);
    unmap(way, at + (4l * CHUNK) * PAGE, CHUNK);
    /* Of what is left the last part moves, and grows. */
    char *moved = move(way, at + (5l * CHUNK) * PAGE, CHUNK, CHUNK + CHUNK / 2);
    if (moved == MAP_FAILED) return 0;
    protect(way, moved + 3l * PAGE, CHUNK, PROT_READ | PROT_WRITE);
    return 1;
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
    for (int way = 0; way < WAYS; way++)
        if (!huge(way)) return 1;
    /* The dynamic linker's own calls. */
    void *library = dlopen("libresolv.so.2", RTLD_NOW), *other = dlopen("libm.so.6", RTLD_NOW);
    if (!library || !other || dlclose(library)) return 1;
    pthread_t threads[THREADS];
    for (size_t at = 0; at < THREADS; at++) pthread_create(&threads[at], 0, storm, (void *)at);
    for (size_t at = 0; at < THREADS; at++) pthread_join(threads[at], 0);
    printf("%d\n", getpid());
    fflush(stdout);
    getchar();
    static const unsigned char code[] = {0x49, 0x89, 0xca, 0x0f, 0x05, 0xc3}; /* mov r10, rcx; syscall; ret */
    char *made = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(made, code, sizeof code);
    mprotect(made, PAGE, PROT_READ | PROT_EXEC);
    long at;
    __asm__ volatile("mov $-1, %%r8; xor %%r9d, %%r9d; call *%[made]"
                     : "=a"(at)
                     : "a"(SYS_mmap), "D"(0), "S"((long)UNSEEN * PAGE), "d"(PROT_READ), "c"(MAP_PRIVATE | MAP_ANONYMOUS), [made] "r"(made)
                     : "r8", "r9", "r10", "r11", "memory");
    printf("%d\n", UNSEEN);
    fflush(stdout);
    getchar();
    return at < 0 || !failed || shared == MAP_FAILED;
}
