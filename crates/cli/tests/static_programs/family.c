/* Threads, a fork, a child by posix_spawn and one by vfork; each allocates a known number of `struct node`s. */
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct node {
    struct node *next;
    long values[3];
};
extern char **environ;

static void *work(void *unused)
{
    struct node *first = NULL;
    for (int i = 0; i < 5000; i++) {
        struct node *node = malloc(sizeof *node);
        node->next = first;
        first = node;
    }
    while (first) {
        struct node *next = first->next;
        free(first);
        first = next;
    }
    return unused;
}

static int end_of(pid_t pid)
{
    int status = -1;
    waitpid(pid, &status, 0);
    return status;
}

int main(void)
{
    pthread_t threads[4];
    char *sh[] = {"sh", "-c", "exit 3", NULL};
    pid_t pid;
    int failed;
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, work, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    pid = fork();
    if (pid == 0) {
        struct node *kept = calloc(10, sizeof *kept);
        for (int i = 0; i < 9; i++)
            kept[i].next = malloc(sizeof *kept);
        _exit(kept[3].next != NULL);
    }
    printf("forked %d\n", end_of(pid));
    failed = posix_spawn(&pid, "/bin/sh", NULL, NULL, sh, environ);
    printf("spawned %d %d\n", failed, end_of(pid));
    pid = vfork();
    if (pid == 0) {
        execv("/bin/sh", sh);
        _exit(9);
    }
    printf("executed %d\n", end_of(pid));
    return 5;
}
