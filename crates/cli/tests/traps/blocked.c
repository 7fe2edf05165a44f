/* SIGTRAP blocked, alone and with all others: it waits, as it should; traps do not. */
#include "trapped.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <time.h>

static volatile int handled, other;
static void handler(int signal)
{
    (void)signal;
    trap(1);
    handled++;
}
static void other_handler(int signal)
{
    (void)signal;
    trap(1);
    other++;
}

static int is_pending(void)
{
    sigset_t now;
    sigpending(&now);
    return sigismember(&now, SIGTRAP);
}

static void *thread(void *unused)
{
    (void)unused;
    CHECK(is_blocked());
    trap(100);
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, SIGTRAP);
    pthread_sigmask(SIG_UNBLOCK, &only, NULL);
    CHECK(!is_blocked());
    trap(100);
    return NULL;
}

int main(void)
{
    sigset_t all, only, old, none;
    sigfillset(&all);
    sigemptyset(&none);
    sigemptyset(&only);
    sigaddset(&only, SIGTRAP);
    signal(SIGTRAP, handler);
    CHECK(!is_blocked());
    sigprocmask(SIG_BLOCK, &all, &old);
    CHECK(!sigismember(&old, SIGTRAP) && is_blocked());
    trap(100);
    raise(SIGTRAP);
    raise(SIGTRAP);
    CHECK(handled == 0 && is_pending());
    trap(100);
    sigprocmask(SIG_SETMASK, &old, &all);
    CHECK(handled == 1 && sigismember(&all, SIGTRAP) && !is_pending() && !is_blocked());
    sigprocmask(SIG_BLOCK, &only, NULL);
    kill(getpid(), SIGTRAP);
    CHECK(handled == 1);
    int which = 0;
    CHECK(sigwait(&only, &which) == 0 && which == SIGTRAP && handled == 1 && !is_pending());
    struct timespec moment = {0, 1000000};
    CHECK(sigtimedwait(&only, NULL, &moment) == -1 && errno == EAGAIN);
    pthread_t another;
    pthread_create(&another, NULL, thread, NULL);
    pthread_join(another, NULL);
    CHECK(is_blocked());
    sigprocmask(SIG_UNBLOCK, &only, NULL);

    /* Handlers that run with everything blocked, while the program waits. */
    struct sigaction set, was;
    memset(&set, 0, sizeof set);
    set.sa_handler = other_handler;
    sigfillset(&set.sa_mask);
    sigaction(SIGUSR1, &set, NULL);
    sigaction(SIGUSR1, NULL, &was);
    CHECK(sigismember(&was.sa_mask, SIGTRAP));
    raise(SIGUSR1);
    CHECK(other == 1);
    sigemptyset(&set.sa_mask);
    sigaction(SIGUSR1, &set, &was);
    CHECK(sigismember(&was.sa_mask, SIGTRAP));
    sigaction(SIGUSR1, NULL, &was);
    CHECK(!sigismember(&was.sa_mask, SIGTRAP));
    sigset_t but_usr1, usr1;
    sigfillset(&but_usr1);
    sigdelset(&but_usr1, SIGUSR1);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    raise(SIGUSR1);
    CHECK(sigsuspend(&but_usr1) == -1 && errno == EINTR && other == 2 && !is_blocked());
    raise(SIGUSR1);
    CHECK(ppoll(NULL, 0, NULL, &but_usr1) == -1 && errno == EINTR && other == 3);
    raise(SIGUSR1);
    CHECK(pselect(0, NULL, NULL, NULL, NULL, &but_usr1) == -1 && errno == EINTR && other == 4);
    int epoll = epoll_create1(0);
    struct epoll_event event;
    raise(SIGUSR1);
    CHECK(epoll_pwait(epoll, &event, 1, -1, &but_usr1) == -1 && errno == EINTR && other == 5);
    sigprocmask(SIG_BLOCK, &only, NULL);
    raise(SIGTRAP);
    handled = 0;
    CHECK(sigsuspend(&none) == -1 && errno == EINTR && handled == 1 && is_blocked());
    trap(100);
    return done();
}
