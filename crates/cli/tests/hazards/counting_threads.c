/* N threads allocate, reallocate, and free each other's blocks; the program counts its own calls and prints the sums. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_ulong allocations, frees, bytes;
static _Atomic(void *) mailbox[256];

static void *counted_malloc(size_t size)
{
    allocations++;
    bytes += size;
    return malloc(size);
}

static void *counted_realloc(void *block, size_t size)
{
    allocations++;
    frees += block != NULL;
    bytes += size;
    return realloc(block, size);
}

static void counted_free(void *block)
{
    frees += block != NULL;
    free(block);
}

static void *work(void *arg)
{
    unsigned random = (unsigned)(size_t)arg * 2654435761u + 1;
    for (int i = 0; i < 200000; i++) {
        random = random * 1664525 + 1013904223;
        size_t size = (random >> 8) % 700 + 1;
        void *block = counted_malloc(size);
        if (random % 5 == 0)
            block = counted_realloc(block, size * 3);
        counted_free(atomic_exchange(&mailbox[random >> 24], block));
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 8;
    pthread_t threads[64];
    for (long i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 128; i++)
        counted_free(atomic_exchange(&mailbox[i], NULL));
    printf("%lu %lu %lu\n", allocations, frees, bytes);
    return 0;
}
