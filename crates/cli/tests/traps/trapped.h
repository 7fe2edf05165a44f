/* A function of one byte that pointers lead to, with another right behind it, and no dead bytes around: only a trap fits there. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__asm__(".text\n .fill 160, 1, 0xc3\n"
        ".type trapped, @function\n trapped: ret\n .size trapped, . - trapped\n"
        ".type behind, @function\n behind: ret\n .size behind, . - behind\n"
        ".type end_of_both, @function\n end_of_both: ret\n .size end_of_both, . - end_of_both\n"
        ".fill 160, 1, 0xc3\n");
void trapped(void);
void behind(void);
void end_of_both(void);
static void (*volatile const functions[])(void) = {trapped, behind, end_of_both};
static volatile long calls;

static void trap(int times)
{
    while (times-- > 0) {
        functions[0]();
        __atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST);
    }
}

#define CHECK(what) \
    do { \
        if (!(what)) printf("line %d: not %s\n", __LINE__, #what); \
    } while (0)

static int done(void)
{
    printf("calls %ld\n", calls);
    return 0;
}

static int is_blocked(void)
{
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    return sigismember(&now, SIGTRAP);
}
