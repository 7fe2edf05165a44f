/* What forked and executed processes find: SIGTRAP blocked or ignored where the program had it so. */
#include "trapped.h"
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static void wait_for(pid_t child)
{
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void each_way(char **show)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        execv(show[0], show);
        _exit(1);
    }
    wait_for(child);
    child = vfork();
    if (child == 0) {
        execv(show[0], show);
        _exit(1);
    }
    wait_for(child);
    posix_spawn(&child, show[0], NULL, NULL, show, environ);
    wait_for(child);
}

int main(int count, char **words)
{
    if (count > 1) {
        struct sigaction now;
        sigaction(SIGTRAP, NULL, &now);
        printf("blocked %d ignored %d\n", is_blocked(), now.sa_handler == SIG_IGN);
        return 0;
    }
    char *show[] = {"/proc/self/exe", "show", NULL};
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, SIGTRAP);
    each_way(show);
    sigprocmask(SIG_BLOCK, &only, NULL);
    each_way(show);
    trap(100);
    CHECK(is_blocked());
    signal(SIGTRAP, SIG_IGN);
    each_way(show);
    sigprocmask(SIG_UNBLOCK, &only, NULL);
    each_way(show);
    trap(100);
    CHECK(execl("/no/such/program", "program", NULL) == -1);
    trap(100);

    /* A child whose memory is its parent's may do with its signals what it likes. */
    signal(SIGTRAP, SIG_DFL);
    pid_t child = vfork();
    if (child == 0) {
        sigprocmask(SIG_BLOCK, &only, NULL);
        signal(SIGTRAP, SIG_IGN);
        functions[0]();
        execv(show[0], show);
        _exit(1);
    }
    calls++;
    wait_for(child);
    CHECK(!is_blocked());
    struct sigaction now;
    sigaction(SIGTRAP, NULL, &now);
    CHECK(now.sa_handler == SIG_DFL);

    /* A forked child has signals of its own, none of them waiting. */
    sigprocmask(SIG_BLOCK, &only, NULL);
    raise(SIGTRAP);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        sigset_t waiting;
        sigpending(&waiting);
        functions[0]();
        _exit(sigismember(&waiting, SIGTRAP) || !is_blocked());
    }
    calls++;
    wait_for(child);
    signal(SIGTRAP, SIG_IGN);
    sigprocmask(SIG_UNBLOCK, &only, NULL);

    /* Nor is a forked child taken for one that borrows memory because its own child did so first. */
    fflush(stdout);
    child = fork();
    if (child == 0) {
        pid_t own = vfork();
        if (own == 0) {
            execv(show[0], show);
            _exit(1);
        }
        wait_for(own);
        signal(SIGTRAP, SIG_DFL);
        sigaction(SIGTRAP, NULL, &now);
        CHECK(now.sa_handler == SIG_DFL);
        fflush(stdout);
        _exit(0);
    }
    wait_for(child);
    return done();
}
