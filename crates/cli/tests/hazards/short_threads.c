/* A hundred thousand short threads: the index stays flat. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static void *one(void *arg)
{
    free(malloc(48));
    return arg;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 100000;
    for (int i = 0; i < threads; i += 4) {
        pthread_t batch[4];
        for (int j = 0; j < 4; j++)
            pthread_create(&batch[j], NULL, one, NULL);
        for (int j = 0; j < 4; j++)
            pthread_join(batch[j], NULL);
    }
    printf("threads %d\n", threads);
    return 0;
}
