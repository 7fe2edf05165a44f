/* A sandbox that kills for any system call a plain allocating, forking program has no need of. Allocation, threads and fork go on as before. */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const int allowed[] = {
    SYS_read, SYS_write, SYS_exit, SYS_exit_group, SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_madvise, SYS_mprotect, SYS_futex,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigaction, SYS_clone, SYS_clone3, SYS_set_robust_list, SYS_rseq, SYS_wait4, SYS_gettid,
    SYS_getpid, SYS_newfstatat, SYS_sched_yield, SYS_getrandom, SYS_sched_getaffinity,
};
enum { COUNT = sizeof allowed / sizeof *allowed };

static void enter_sandbox(void)
{
    struct sock_filter filter[COUNT + 3];
    filter[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < COUNT; i++)
        filter[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], COUNT - i, 0);
    filter[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    filter[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {.len = COUNT + 3, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        _exit(99);
}

static void *work(void *arg)
{
    for (int i = 0; i < 10000; i++)
        free(malloc(i));
    return arg;
}

int main(int argc, char **argv)
{
    enter_sandbox();
    void *blocks[100];
    for (int i = 0; i < 100; i++)
        memset(blocks[i] = malloc(100 << (i % 14)), 1, 100);
    for (int i = 0; i < 100; i++)
        blocks[i] = realloc(blocks[i], 1 << 20);
    pthread_t thread;
    pthread_create(&thread, NULL, work, NULL);
    pthread_join(thread, NULL);
    if (argc > 1 && !strcmp(argv[1], "fork")) {
        pid_t pid = fork();
        if (pid == 0) {
            free(malloc(1000));
            _exit(5);
        }
        int status;
        waitpid(pid, &status, 0);
        printf("child %d\n", status);
    }
    for (int i = 0; i < 100; i++)
        free(blocks[i]);
    printf("alive\n");
    return 3;
}
