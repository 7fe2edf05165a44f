/* The program's own handler: it is asked for as it was set, and gets all SIGTRAPs but those of traps. */
#include "trapped.h"
#include <ucontext.h>

static volatile int handled, code, blocked_inside;
static volatile unsigned long address;

static void handler(int signal, siginfo_t *info, void *context)
{
    trap(10);
    handled += signal == SIGTRAP;
    code = info->si_code;
    address = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    blocked_inside = is_blocked();
}

int main(void)
{
    struct sigaction set, was;
    trap(100);
    sigaction(SIGTRAP, NULL, &was);
    CHECK(was.sa_handler == SIG_DFL && was.sa_flags == 0 && !sigismember(&was.sa_mask, SIGUSR1));
    memset(&set, 0, sizeof set);
    set.sa_sigaction = handler;
    set.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaddset(&set.sa_mask, SIGUSR1);
    CHECK(sigaction(SIGTRAP, &set, &was) == 0 && was.sa_handler == SIG_DFL);
    trap(100);
    CHECK(handled == 0);
    CHECK(sigaction(SIGTRAP, NULL, &was) == 0);
    CHECK(was.sa_sigaction == handler && (was.sa_flags & (SA_SIGINFO | SA_RESTART)) == (SA_SIGINFO | SA_RESTART));
    CHECK(sigismember(&was.sa_mask, SIGUSR1) && !sigismember(&was.sa_mask, SIGUSR2));
    raise(SIGTRAP);
    CHECK(handled == 1 && code == SI_TKILL && blocked_inside && !is_blocked());
    kill(getpid(), SIGTRAP);
    CHECK(handled == 2 && code == SI_USER);
    union sigval value = {.sival_int = 3};
    sigqueue(getpid(), SIGTRAP, value);
    CHECK(handled == 3 && code == SI_QUEUE);
    __asm__ volatile("int3\n .globl after_int3\n after_int3:");
    extern char after_int3[];
    CHECK(handled == 4 && code == SI_KERNEL && address == (unsigned long)after_int3);
    trap(100);
    CHECK(signal(SIGTRAP, SIG_IGN) == (void (*)(int))handler);
    raise(SIGTRAP);
    trap(100);
    CHECK(handled == 4);
    CHECK(signal(SIGTRAP, SIG_DFL) == SIG_IGN);
    trap(100);
    return done();
}
