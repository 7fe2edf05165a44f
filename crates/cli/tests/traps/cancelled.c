/* Threads are cancelled, and unwound by a handler, while they wait in calls that come to the runtime. */
#include "trapped.h"
#include <execinfo.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>

static volatile int cleaned, ready;
static char names[8192];

static void clean(void *unused)
{
    (void)unused;
    trap(1);
    cleaned++;
}

static void shows(int signal)
{
    (void)signal;
    void *frames[64];
    char **text = backtrace_symbols(frames, backtrace(frames, 64));
    for (int i = 0; text && strlen(names) < 6000 && text[i] && i < 20; i++) {
        strcat(names, text[i]);
        if (strstr(text[i], "waiting")) break;
    }
}

__attribute__((noinline)) void *waiting(void *how)
{
    pthread_cleanup_push(clean, NULL);
    sigset_t all_but;
    sigfillset(&all_but);
    sigdelset(&all_but, SIGUSR1);
    struct epoll_event event;
    ready = 1;
    for (;;) {
        switch ((long)how) {
        case 0: sigsuspend(&all_but); break;
        case 1: ppoll(NULL, 0, NULL, &all_but); break;
        case 2: epoll_pwait(epoll_create1(0), &event, 1, -1, &all_but); break;
        }
    }
    pthread_cleanup_pop(0);
    return NULL;
}

int main(void)
{
    void *frames[4];
    backtrace(frames, 4);
    signal(SIGUSR1, shows);
    for (long how = 0; how < 3; how++) {
        pthread_t thread;
        ready = 0;
        names[0] = 0;
        pthread_create(&thread, NULL, waiting, (void *)how);
        while (!ready) usleep(1000);
        usleep(200000);
        pthread_kill(thread, SIGUSR1);
        for (int tries = 0; tries < 1000 && !strstr(names, "waiting"); tries++) usleep(10000);
        CHECK(strstr(names, "waiting"));
        pthread_cancel(thread);
        void *result = NULL;
        pthread_join(thread, &result);
        CHECK(result == PTHREAD_CANCELED && cleaned == how + 1);
    }
    return done();
}
