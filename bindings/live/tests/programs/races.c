/* A hot function of one-byte pushes, called back to back by THREADS threads, is hooked and unhooked TIMES times:
 * races THREADS TIMES [stop]. With "stop" the memory is taken to which the function would lead if one byte of it were changed,
 * so that five have to be, and all threads to stand still for it. Threads are born and end, get signals, and block signals all the while.
 * Prints histograms of how long threads stood still, and of how long the changes took. Ends with 1 when a result is wrong, when a call comes to the hook after its removal, or when text or memory are
 * not what they were. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "pointee_hooks.h"

__attribute__((aligned(64))) uint64_t hot(uint64_t);
__asm__(".text\n.globl hot\n.type hot, @function\n.balign 64\nhot:\n.cfi_startproc\n"
	"push %rbx\n.cfi_adjust_cfa_offset 8\n"
	"push %rsi\n.cfi_adjust_cfa_offset 8\n"
	"push %rdi\n.cfi_adjust_cfa_offset 8\n"
	"push %rbp\n.cfi_adjust_cfa_offset 8\n"
	"push %rdx\n.cfi_adjust_cfa_offset 8\n"
	"push %rcx\n.cfi_adjust_cfa_offset 8\n"
	"lea 1(%rdi), %rax\n"
	"pop %rcx\n.cfi_adjust_cfa_offset -8\n"
	"pop %rdx\n.cfi_adjust_cfa_offset -8\n"
	"pop %rbp\n.cfi_adjust_cfa_offset -8\n"
	"pop %rdi\n.cfi_adjust_cfa_offset -8\n"
	"pop %rsi\n.cfi_adjust_cfa_offset -8\n"
	"pop %rbx\n.cfi_adjust_cfa_offset -8\n"
	"ret\n.cfi_endproc\n.size hot, .-hot\n");

enum { HOOKED = 1000, MOST_THREADS = 256, CLASSES = 24 };

static void *original;
static pthread_t hooking;
static atomic_int stop, started, came;
static atomic_long calls, hooked, wrong, late, missed, ticks;
/* Rises by one at each step: not hooked, about to be, hooked, about to be unhooked. */
static atomic_long phase;

static uint64_t hook(uint64_t x)
{
	if (!atomic_load_explicit(&came, memory_order_relaxed) && !pthread_equal(pthread_self(), hooking))
		atomic_store(&came, 1);
	return ((uint64_t(*)(uint64_t))original)(x) + HOOKED;
}

/* A call between two steps must be hooked or not, as they say. */
static void *caller(void *blocks)
{
	sigset_t all;
	sigfillset(&all);
	if (blocks)
		pthread_sigmask(SIG_BLOCK, &all, NULL);
	long count = 0, through = 0;
	atomic_fetch_add(&started, 1);
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		uint64_t x = (uint64_t)count++;
		long before = atomic_load(&phase);
		uint64_t y = hot(x);
		if (atomic_load(&phase) == before) {
			if (before % 4 == 0 && y != x + 1)
				atomic_fetch_add(&late, 1);
			if (before % 4 == 2 && y == x + 1)
				atomic_fetch_add(&missed, 1);
		}
		if (y == x + 1 + HOOKED)
			through++;
		else if (y != x + 1)
			atomic_fetch_add(&wrong, 1);
	}
	atomic_fetch_add(&calls, count);
	atomic_fetch_add(&hooked, through);
	return NULL;
}

static void *short_lived(void *unused)
{
	(void)unused;
	for (int i = 0; i < 100; i++)
		if (hot(1) % HOOKED != 2)
			atomic_fetch_add(&wrong, 1);
	return NULL;
}

/* Births and deaths, for as long as the test takes. */
static void *mother(void *unused)
{
	(void)unused;
	while (!atomic_load(&stop)) {
		pthread_t child;
		if (pthread_create(&child, NULL, short_lived, NULL) == 0)
			pthread_join(child, NULL);
		usleep(500);
	}
	return NULL;
}

/* Saves program counters in signal frames, some of them in the pad. */
static void tick(int signal)
{
	(void)signal;
	atomic_fetch_add(&ticks, 1);
	hot(3);
}

static long resident(void)
{
	long pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");
	if (file && fscanf(file, "%*d %ld", &pages) != 1)
		pages = 0;
	if (file)
		fclose(file);
	return pages * 4;
}

static void check(struct pointee_result result, const char *what)
{
	if (result.refusal[0]) {
		printf("%s refused: %s\n", what, result.refusal);
		exit(1);
	}
}

/* On a busy machine a thread may get no processor for as long as a stop waits: nothing was changed then, and it is tried again. */
static int tried_in_vain(struct pointee_result result)
{
	static int left = 5;
	return !strcmp(result.refusal, "a thread does not come to run") && left-- > 0;
}

static double now_us(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

/* Takes the memory to which the function leads when its first byte becomes that of "jmp rel32". */
static int take_memory(void)
{
	int32_t distance;
	memcpy(&distance, (char *)hot + 1, sizeof distance);
	uint64_t page = ((uint64_t)hot + 5 + (int64_t)distance) & ~4095ul;
	return mmap((void *)page, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == (void *)page;
}

struct histogram {
	long classes[CLASSES];
	double sum, most;
};

static void add(struct histogram *histogram, double us)
{
	int class = 0;
	while (class < CLASSES - 1 && us >= (1 << class))
		class++;
	histogram->classes[class]++;
	histogram->sum += us;
	histogram->most = us > histogram->most ? us : histogram->most;
}

static void print(const char *what, const struct histogram *histogram, int count)
{
	printf("%s: mean %.1f us, longest %.1f us\n", what, histogram->sum / count, histogram->most);
	for (int i = 0; i < CLASSES; i++)
		if (histogram->classes[i])
			printf("%s %10d us  %ld\n", what, 1 << i, histogram->classes[i]);
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 8, times = argc > 2 ? atoi(argv[2]) : 1000;
	static pthread_t all[MOST_THREADS];
	int stops = argc > 3 && !strcmp(argv[3], "stop");
	static struct histogram pauses, changes;
	uint8_t before[64];
	if (threads < 1 || threads > MOST_THREADS - 1 || (stops && !take_memory()))
		return 2;
	memcpy(before, (void *)hot, sizeof before);
	hooking = pthread_self();
	signal(SIGPROF, tick);
	struct itimerval every = { { 0, 997 }, { 0, 997 } };
	setitimer(ITIMER_PROF, &every, NULL);
	for (int i = 0; i < threads; i++)
		pthread_create(&all[i], NULL, caller, i % 4 == 1 ? all : NULL);
	pthread_create(&all[threads], NULL, mother, NULL);
	/* Where that is allowed: 64 busy threads leave the one that hooks a 65th of the time, and it is the hooking that is tested. */
	setpriority(PRIO_PROCESS, (id_t)gettid(), -20);
	while (atomic_load(&started) < threads)
		usleep(1000);
	long start = 0, stood = 0;
	for (int i = 0; i < times; i++) {
		atomic_fetch_add(&phase, 1);
		struct pointee_result in, out;
		double before_change = now_us();
		do
			in = pointee_replace((void *)hot, (void *)hook, &original);
		while (tried_in_vain(in));
		add(&changes, now_us() - before_change);
		check(in, "installation");
		atomic_fetch_add(&phase, 1);
		if (hot(5) != 6 + HOOKED)
			atomic_fetch_add(&wrong, 1);
		if (i % 64 == 0)
			usleep(1000);
		/* On a busy machine the callers may not have had a processor while the hook was there. */
		for (int ms = 0; i == times - 1 && !atomic_load(&came) && ms < 30000; ms++)
			usleep(1000);
		atomic_fetch_add(&phase, 1);
		before_change = now_us();
		do
			out = pointee_remove(in.hook);
		while (tried_in_vain(out));
		add(&changes, now_us() - before_change);
		check(out, "removal");
		atomic_fetch_add(&phase, 1);
		if (hot(5) != 6)
			atomic_fetch_add(&late, 1);
		if (i % 64 == 0)
			usleep(1000);
		add(&pauses, in.pause / 1e3);
		add(&pauses, out.pause / 1e3);
		stood += in.threads + out.threads;
		if (i == times / 10)
			start = resident();
	}
	long end = resident();
	atomic_store(&stop, 1);
	for (int i = 0; i <= threads; i++)
		pthread_join(all[i], NULL);
	signal(SIGPROF, SIG_IGN);
	/* Who was in the hook when it was removed has left it. */
	int left = pointee_settle();
	int text = memcmp(before, (void *)hot, sizeof before) != 0;
	printf("%d threads, %d times: %ld calls, %ld hooked, %ld wrong, %ld late, %ld missed, %ld ticks; text %s, %d left, grown %ld KiB\n", threads, times,
	       calls, hooked, wrong, late, missed, ticks, text ? "CHANGED" : "restored", left, end - start);
	print("pause", &pauses, 2 * times);
	print("change", &changes, 2 * times);
	int unexpected = stops && stood < 2L * times * threads;
	return wrong || late || missed || text || left || unexpected || !came || end - start > 256 + 24L * threads;
}
