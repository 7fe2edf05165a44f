/* Allocates, leaks, and dies by SIGKILL from its own hand. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct record { long key; struct record *next; char name[48]; };

int main(int argc, char **argv)
{
    struct record *list = NULL;
    for (int i = 0; i < 1000; i++) {
        struct record *record = malloc(sizeof *record);
        record->next = list;
        list = record;
    }
    printf("%p\n", (void *)list);
    fflush(stdout);
    int signal = argc > 1 ? atoi(argv[1]) : SIGKILL;
    if (signal == 0)
        _exit(3);
    kill(getpid(), signal);
    pause();
    return 0;
}
