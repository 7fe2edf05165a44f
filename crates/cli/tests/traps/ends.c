/* The process ends by SIGTRAP where it would have: raised, an int3 of its own, blocked, ignored, in a thread. */
#include "trapped.h"
#include <pthread.h>

static void *thread(void *unused)
{
    raise(SIGTRAP);
    return unused;
}

int main(int count, char **words)
{
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, SIGTRAP);
    trap(10);
    printf("calls %ld\n", calls);
    fflush(stdout);
    switch (count > 1 ? words[1][0] : ' ') {
    case 'r': raise(SIGTRAP); break;
    case 'k': kill(getpid(), SIGTRAP); break;
    case 'i': __asm__ volatile("int3"); break;
    case 'b': sigprocmask(SIG_BLOCK, &only, NULL); __asm__ volatile("int3"); break;
    case 'g': signal(SIGTRAP, SIG_IGN); __asm__ volatile("int3"); break;
    case 'u':
        sigprocmask(SIG_BLOCK, &only, NULL);
        raise(SIGTRAP);
        puts("blocked");
        fflush(stdout);
        sigprocmask(SIG_UNBLOCK, &only, NULL);
        break;
    case 't': {
        pthread_t another;
        pthread_create(&another, NULL, thread, NULL);
        pthread_join(another, NULL);
        break;
    }
    }
    return 0;
}
