/* SA_NODEFER, SA_RESETHAND, SA_ONSTACK, a mask, and a handler that is left by a jump. */
#include "trapped.h"
#include <setjmp.h>

static volatile int depth, deepest, raised, on_other_stack, usr1_blocked;
static sigjmp_buf back;
static char other_stack[65536];

static void nested(int signal)
{
    if (++depth > deepest) deepest = depth;
    trap(1);
    if (raised++ < 2) raise(signal);
    depth--;
}

static void looks(int signal)
{
    (void)signal;
    char here;
    sigset_t now;
    on_other_stack = &here >= other_stack && &here < other_stack + sizeof other_stack;
    sigprocmask(SIG_BLOCK, NULL, &now);
    usr1_blocked = sigismember(&now, SIGUSR1);
    trap(1);
}

static void jumps(int signal)
{
    (void)signal;
    trap(1);
    siglongjmp(back, 1);
}

int main(void)
{
    struct sigaction set, was;
    memset(&set, 0, sizeof set);
    set.sa_handler = nested;
    set.sa_flags = SA_NODEFER;
    sigaction(SIGTRAP, &set, NULL);
    raise(SIGTRAP);
    CHECK(deepest == 3 && !is_blocked());
    deepest = raised = 0;
    set.sa_flags = 0;
    sigaction(SIGTRAP, &set, NULL);
    raise(SIGTRAP);
    CHECK(deepest == 1);
    stack_t stack = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    sigaltstack(&stack, NULL);
    set.sa_handler = looks;
    set.sa_flags = SA_ONSTACK | SA_RESETHAND;
    sigaddset(&set.sa_mask, SIGUSR1);
    sigaction(SIGTRAP, &set, NULL);
    trap(10);
    raise(SIGTRAP);
    CHECK(on_other_stack && usr1_blocked);
    sigaction(SIGTRAP, NULL, &was);
    CHECK(was.sa_handler == SIG_DFL);
    set.sa_handler = looks;
    set.sa_flags = 0;
    sigemptyset(&set.sa_mask);
    sigaction(SIGTRAP, &set, NULL);
    raise(SIGTRAP);
    CHECK(!on_other_stack && !usr1_blocked);
    set.sa_handler = jumps;
    sigaction(SIGTRAP, &set, NULL);
    for (volatile int i = 0; i < 5; i++) {
        if (sigsetjmp(back, 1) == 0) raise(SIGTRAP);
        CHECK(!is_blocked());
        trap(10);
    }
    return done();
}
