/* A timer's handler allocates (between the program's own calls: the handler backs off while one is under way), sixty thousand times a minute. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

static volatile sig_atomic_t inside, handled;

static void tick(int signal)
{
    (void)signal;
    if (!inside) {
        free(malloc(123));
        handled++;
    }
}

int main(void)
{
    struct sigaction action = {.sa_handler = tick};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval timer = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_REAL, &timer, NULL);
    volatile double sum = 0;
    while (handled < 200) {
        for (int i = 0; i < 1000; i++) {
            inside = 1;
            void *block = malloc(i);
            inside = 0;
            for (int j = 0; j < 200; j++)
                sum += j;
            inside = 1;
            free(block);
            inside = 0;
        }
    }
    printf("handled %s\n", handled >= 200 ? "enough" : "too few");
    return 0;
}
