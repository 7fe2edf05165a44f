/* In strict seccomp nothing but read, write, exit and sigreturn may be called. malloc of what is mapped already works; so must its hook. */
#define _GNU_SOURCE
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        void *warm[100];
        for (int i = 0; i < 100; i++)
            warm[i] = malloc(1 << (i % 12));
        for (int i = 0; i < 100; i++)
            free(warm[i]);
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
        for (int i = 0; i < 1000; i++) {
            char *block = malloc(1 << (i % 12));
            block[0] = 1;
            free(block);
        }
        write(1, "alive\n", 6);
        syscall(SYS_exit, 5);
    }
    int status;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status))
        printf("killed by %d\n", WTERMSIG(status));
    else
        printf("exit %d\n", WEXITSTATUS(status));
    return 0;
}
