/* What cannot be done is refused with its reason, nothing has changed, and the program lives on: threads that cannot be stopped, functions that
 * cannot be patched. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pointee_hooks.h"

static int failures, unblock;
static void *original;

static void expect(int line, struct pointee_result result, const char *reason)
{
	if (strcmp(result.refusal, reason)) {
		printf("line %d: \"%s\" instead of \"%s\"\n", line, result.refusal, reason);
		failures++;
	}
	if (result.hook)
		pointee_remove(result.hook);
}
#define EXPECT(function, reason) expect(__LINE__, pointee_replace((void *)(function), (void *)replacement, &original), reason)

int function(int);
int inward(int), looped(int), tiny(int), into_next(int);
extern char data[];
__asm__(".text\n"
	"function: mov %edi, %eax; add $7, %eax; imul $3, %eax, %eax; ret\n"
	".balign 16\ninward: xor %eax, %eax\n1: inc %eax; dec %edi; jnz 1b; ret\n"
	".balign 16\nlooped: dec %edi; nop; nop; nop; jnz looped; mov $1, %eax; ret\n"
	".balign 16\ntiny: xchg %eax, %edi; ret\ninto_next: mov $2, %eax; ret\n"
	".balign 16\n.data\ndata: .zero 16\n.text\n");
/* The same with unwind rules, which tell their length: changed by one byte, they lose nothing. */
int known_inward(int), known_tiny(int);
__asm__(".text\n"
	".balign 16\nknown_inward: .cfi_startproc; xor %eax, %eax\n1: inc %eax; dec %edi; jnz 1b; ret; .cfi_endproc\n"
	".balign 16\nknown_tiny: .cfi_startproc; xchg %eax, %edi; ret; .cfi_endproc\nmov $2, %eax; ret\n");
static int replacement(int x) { return ((int (*)(int))original)(x); }

static void *raw_blocker(void *unused)
{
	(void)unused;
	uint64_t all = ~0ULL, none = 0;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8);
	__atomic_store_n(&unblock, 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&unblock, __ATOMIC_ACQUIRE) == 1)
		usleep(50000);
	/* What was sent arrives now, when nobody waits for it. */
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8);
	__atomic_store_n(&unblock, 3, __ATOMIC_RELEASE);
	pause();
	return NULL;
}

static void *parent(void *microseconds)
{
	pid_t child = vfork();
	if (child == 0) {
		usleep((useconds_t)(long)microseconds);
		_exit(0);
	}
	int status;
	waitpid(child, &status, 0);
	return NULL;
}

static void with_vfork(long microseconds, const char *reason)
{
	pthread_t thread;
	pthread_create(&thread, NULL, parent, (void *)microseconds);
	usleep(30000);
	EXPECT(function, reason);
	pthread_join(thread, NULL);
}

static uintptr_t disposition(void)
{
	uint64_t old[4] = { 0 };
	syscall(SYS_rt_sigaction, 33, NULL, old, 8);
	return old[0];
}

/* Hooked and unhooked, FUNCTION does as it did. */
static void expect_done(int line, int (*function)(int), int argument, int result)
{
	struct pointee_result in = pointee_replace((void *)function, (void *)replacement, &original);
	int hooked = in.refusal[0] ? -1 : function(argument);
	struct pointee_result out = pointee_remove(in.hook);
	if (hooked != result || out.refusal[0] || function(argument) != result) {
		printf("line %d: \"%s\", \"%s\", %d instead of %d\n", line, in.refusal, out.refusal, hooked, result);
		failures++;
	}
}

int main(void)
{
	expect_done(__LINE__, known_inward, 5, 5);
	expect_done(__LINE__, known_tiny, 5, 5);
	EXPECT(function, "");
	EXPECT(inward, "a branch goes into the launch pad");
	EXPECT(looped, "the function jumps to its own start");
	EXPECT(tiny, "too short for a launch pad");
	EXPECT(data, "not executable memory");
	struct pointee_result first = pointee_replace((void *)function, (void *)replacement, &original);
	EXPECT(function, "hooked already");
	if (pointee_remove(first.hook).refusal[0] || strcmp(pointee_remove(first.hook).refusal, "not hooked"))
		failures++, printf("removal\n");

	/* The child of vfork runs in this memory: it is waited for, but not for ever. */
	with_vfork(100000, "");
	with_vfork(1500000, "a thread sleeps uninterruptibly");
	EXPECT(function, "");

	uintptr_t before = disposition();
	pthread_t thread;
	pthread_create(&thread, NULL, raw_blocker, NULL);
	while (__atomic_load_n(&unblock, __ATOMIC_ACQUIRE) == 0)
		usleep(100);
	EXPECT(function, "a thread blocks the signal that stops threads");
	if (function(1) != 24)
		failures++;
	/* Where the processor lets a single byte change, nobody has to be stopped. */
	if (__builtin_cpu_is("amd"))
		expect_done(__LINE__, known_inward, 5, 5);
	__atomic_store_n(&unblock, 2, __ATOMIC_RELEASE);
	while (__atomic_load_n(&unblock, __ATOMIC_ACQUIRE) != 3)
		usleep(100);
	EXPECT(function, "");
	if (disposition() != before)
		failures++, printf("the signal's handler is not what it was\n");
	if (pointee_settle() != 0 || function(1) != 24)
		failures++, printf("settling\n");
	printf("refusals: %d failures\n", failures);
	return failures != 0;
}
