/* Threads that wait in the kernel are stopped a thousand times, and wait on: no call ends early that would not have, none with an error. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <time.h>
#include <unistd.h>

#include "pointee_hooks.h"

static void *original;
__attribute__((noinline)) int function(int x) { __asm__ volatile("" : "+r"(x)); return x * 3 + 1; }
static int replacement(int x) { return ((int (*)(int))original)(x); }

static int pipes[2], returned[8], errors[8];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;

static void *waiter(void *kind)
{
	int which = (int)(long)kind & 7, result = 0;
	struct pollfd descriptor = { pipes[0], POLLIN, 0 };
	struct epoll_event event = { EPOLLIN, { 0 } };
	struct timespec long_time = { 3600, 0 };
	fd_set set;
	char byte;
	sigset_t signals;
	errno = 0;
	switch (which) {
	case 0: result = poll(&descriptor, 1, -1); break;
	case 1: FD_ZERO(&set); FD_SET(pipes[0], &set); result = select(pipes[0] + 1, &set, NULL, NULL, NULL); break;
	case 2: { int epoll = epoll_create1(0); epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event); result = epoll_wait(epoll, &event, 1, -1); break; }
	case 3: result = (int)read(pipes[0], &byte, 1); break;
	case 4: result = pause(); break;
	case 5: result = nanosleep(&long_time, &long_time); break;
	case 6: sigemptyset(&signals); sigaddset(&signals, SIGUSR2); pthread_sigmask(SIG_BLOCK, &signals, NULL); result = sigwaitinfo(&signals, NULL); break;
	case 7: pthread_mutex_lock(&mutex); result = pthread_cond_wait(&condition, &mutex); break;
	}
	errors[which] = errno;
	__atomic_store_n(&returned[which], 1 + (result != 0), __ATOMIC_RELEASE);
	return NULL;
}

int main(void)
{
	pthread_t threads[8];
	int failures = 0;
	if (pipe(pipes))
		return 2;
	for (long i = 0; i < 8; i++)
		pthread_create(&threads[i], NULL, waiter, (void *)i);
	usleep(100000);
	for (int i = 0; i < 1000; i++) {
		struct pointee_result in = pointee_replace((void *)function, (void *)replacement, &original);
		if (in.refusal[0])
			return printf("refused: %s\n", in.refusal), 1;
		pointee_remove(in.hook);
	}
	for (int i = 0; i < 8; i++)
		if (__atomic_load_n(&returned[i], __ATOMIC_ACQUIRE)) {
			printf("waiter %d returned: errno %d\n", i, errors[i]);
			failures++;
		}
	printf("8 waiters stopped 2000 times: %d returned\n", failures);
	fflush(stdout);
	_exit(failures != 0 || pointee_settle() != 0);
}
