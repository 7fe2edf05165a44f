/* A timer's handler allocates, between the program's own calls: it backs off while one is under way. Counts its own calls. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

static volatile sig_atomic_t inside, handled;
static unsigned long own;

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
            own++;
            inside = 0;
            for (int j = 0; j < 100; j++)
                sum += j;
            inside = 1;
            free(block);
            inside = 0;
        }
    }
    timer = (struct itimerval){{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &timer, NULL);
    fprintf(stderr, "%lu\n", own + handled);
    return 0;
}
