/* More threads at a time than there are slots for, in waves, on cached and fresh stacks; the program counts its own calls. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_ulong allocations, frees;
static pthread_barrier_t barrier;

enum { MOST = 4000 };

static void *work(void *arg)
{
    long count = (long)arg;
    void *first = malloc(7);
    allocations++;
    pthread_barrier_wait(&barrier); /* All are alive and have allocated. */
    for (long i = 0; i < count; i++) {
        void *block = malloc(i % 100 + 1);
        allocations++;
        free(block);
        frees++;
    }
    free(first);
    frees++;
    return NULL;
}

int main(int argc, char **argv)
{
    int most = argc > 1 ? atoi(argv[1]) : 200;
    long calls = argc > 2 ? atol(argv[2]) : 100000;
    static pthread_t threads[MOST];
    if (most > MOST)
        return 2;
    for (int wave = 0; wave < 6; wave++) {
        int count = wave % 2 ? most : 8;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, (wave + 1) * (256 << 10));
        pthread_barrier_init(&barrier, NULL, count);
        for (int i = 0; i < count; i++)
            if (pthread_create(&threads[i], &attributes, work, (void *)calls))
                return 1;
        for (int i = 0; i < count; i++)
            pthread_join(threads[i], NULL);
    }
    printf("%lu %lu\n", allocations, frees);
    return 0;
}
