/* Writes to a file beyond the limit, and survives the signal. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void over(int signal)
{
    (void)signal;
    signals++;
}

int main(void)
{
    signal(SIGXFSZ, over);
    for (int i = 0; i < 10000; i++)
        free(malloc(i));
    FILE *file = tmpfile();
    char block[4096] = {0};
    int written = 0;
    while (write(fileno(file), block, sizeof block) == sizeof block && written < 100)
        written++;
    int error = errno;
    if (fork() == 0) {
        free(malloc(100));
        _exit(0);
    }
    printf("blocks %d signals %d error %d\n", written, signals, error == EFBIG);
    return 0;
}
