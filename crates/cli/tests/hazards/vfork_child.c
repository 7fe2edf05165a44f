/* A vfork child runs in its parent's memory, then becomes another program; a failed one leaves by _exit. */
#define _GNU_SOURCE
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int main(void)
{
    int status;
    pid_t pid = vfork();
    if (pid == 0) {
        execl("/bin/echo", "echo", "from vfork", (char *)NULL);
        _exit(127);
    }
    waitpid(pid, &status, 0);
    printf("vfork %d\n", WEXITSTATUS(status));
    fflush(stdout);
    pid = vfork();
    if (pid == 0) {
        execl("/nonexistent/program", "program", (char *)NULL);
        _exit(42);
    }
    waitpid(pid, &status, 0);
    printf("failed exec %d\n", WEXITSTATUS(status));
    fflush(stdout);
    char *arguments[] = {"sh", "-c", "echo from spawn; exit 3", NULL};
    posix_spawn(&pid, "/bin/sh", NULL, NULL, arguments, environ);
    waitpid(pid, &status, 0);
    printf("posix_spawn %d\n", WEXITSTATUS(status));
    return 0;
}
