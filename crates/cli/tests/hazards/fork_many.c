/* A thousand forks under eight allocating threads: every child's index is its own heap. Each child frees and allocates, and checks nothing but that it lives. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int stop;

static void *churn(void *arg)
{
    void *held[64] = {0};
    unsigned at = 0;
    while (!stop) {
        free(held[at & 63]);
        held[at & 63] = malloc(16 + (at & 255));
        at++;
        /* A rest now and then: on few processors the forks would wait for eight busy threads instead. */
        if (at % 4096 == 0)
            usleep(300);
    }
    for (int i = 0; i < 64; i++)
        free(held[i]);
    return arg;
}

int main(int argc, char **argv)
{
    int forks = argc > 1 ? atoi(argv[1]) : 1000, bad = 0;
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, churn, NULL);
    for (int i = 0; i < forks; i++) {
        void *before = malloc(100);
        pid_t pid = fork();
        if (pid == 0) {
            free(before);
            void *block = malloc(1000);
            _exit(block ? 7 : 8);
        }
        int status;
        waitpid(pid, &status, 0);
        bad += !WIFEXITED(status) || WEXITSTATUS(status) != 7;
        free(before);
    }
    stop = 1;
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    printf("forks %d bad %d\n", forks, bad);
    return bad != 0;
}
