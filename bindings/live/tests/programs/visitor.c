#define _GNU_SOURCE
/* A preload library with a thread that hooks functions which the program is using, and unhooks them, for as long as the program lives. At its end
 * it appends "ROUNDS CALLS REFUSED" to the file that VISITS names. */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pointee_hooks.h"

static const char *const names[] = { "malloc", "free", "realloc", "calloc", "memcpy", "memset", "strlen", "memchr", "strcmp", "read", "write",
	"pthread_mutex_lock", "pthread_mutex_unlock", "pthread_cond_wait", "sysconf", "getenv", "fwrite", "qsort", "strtol", "vsnprintf", "epoll_wait", "poll" };
enum { COUNT = sizeof names / sizeof *names };
static void *functions[COUNT], *originals[2];
static long rounds, calls, refused;
static pid_t process;

static void *on_malloc(size_t size) { __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED); return ((void *(*)(size_t))originals[0])(size); }
static void on_free(void *block) { ((void (*)(void *))originals[1])(block); }
static void enter(struct pointee_call *call) { (void)call; __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED); }
static void leave(struct pointee_return *result) { (void)result; }

static void *visit(void *unused)
{
	static void *const replacements[] = { (void *)on_malloc, (void *)on_free };
	void *hooks[COUNT];
	(void)unused;
	for (;;) {
		for (int i = 0; i < COUNT; i++) {
			struct pointee_result result = i < 2 ? pointee_replace(functions[i], replacements[i], &originals[i]) : pointee_wrap(functions[i], enter, leave, 0);
			hooks[i] = result.hook;
			refused += !result.hook;
		}
		usleep(2000);
		for (int i = 0; i < COUNT; i++)
			if (hooks[i])
				pointee_remove(hooks[i]);
		if (++rounds % 16 == 0)
			pointee_settle();
		usleep(1000);
	}
	return NULL;
}

__attribute__((constructor)) static void start(void)
{
	pthread_t thread;
	sigset_t all, before;
	sigfillset(&all);
	process = getpid();
	for (int i = 0; i < COUNT; i++)
		functions[i] = dlsym(RTLD_NEXT, names[i]);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_create(&thread, NULL, visit, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

__attribute__((destructor)) static void end(void)
{
	const char *path = getenv("VISITS");
	int file = path && getpid() == process ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
	char line[80];
	if (file >= 0 && write(file, line, (size_t)snprintf(line, sizeof line, "%ld %ld %ld\n", rounds, calls, refused)) < 0)
		abort();
}
