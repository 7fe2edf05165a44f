/* An allocator of the program's own that a signal may interrupt at any instruction, and a handler that uses it at any time: also in the middle of a hook. */
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static char arena[64 << 20];
static atomic_size_t used;
static atomic_ulong allocations, frees;
static atomic_int handled;

void *malloc(size_t size)
{
    size_t at = atomic_fetch_add(&used, (size + 31) & ~(size_t)15);
    return at + size + 32 > sizeof arena ? NULL : arena + at;
}

void free(void *block)
{
    (void)block;
}

void *calloc(size_t count, size_t size)
{
    return malloc(count * size);
}

void *realloc(void *old, size_t size)
{
    void *new = malloc(size);
    return old && new ? memcpy(new, old, size) : new;
}

static void *(*volatile allocate)(size_t) = malloc;
static void (*volatile release)(void *) = free;

static void pair(size_t size)
{
    void *block = allocate(size);
    atomic_fetch_add(&allocations, block != NULL);
    release(block);
    atomic_fetch_add(&frees, block != NULL);
}

static void tick(int signal)
{
    (void)signal;
    pair(40);
    handled++;
}

int main(void)
{
    struct sigaction action = {.sa_handler = tick};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval timer = {{0, 200}, {0, 200}};
    setitimer(ITIMER_REAL, &timer, NULL);
    while (used < sizeof arena - (1 << 20))
        pair(24);
    timer = (struct itimerval){{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &timer, NULL);
    char text[100];
    int length = snprintf(text, sizeof text, "%lu %lu\n", allocations, frees);
    write(2, text, length);
    return 0;
}
