/* One call, one tail call and one call through memory are redirected and restored, TIMES times, while threads run through them: sites TIMES. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pointee_hooks.h"

enum { MORE = 1000 };
long target(long);
long by_call(long), by_jump(long), by_memory(long), neighbour(long);
extern char call_site[], jump_site[], memory_site[], text_end[];
__asm__(".text\n"
	"target: lea 1(%rdi), %rax; ret\n"
	"by_call: sub $8, %rsp\ncall_site: call target\nadd $8, %rsp; ret\n"
	"by_jump: inc %rdi\njump_site: .byte 0xe9; .long target - . - 4\n"
	"by_memory: sub $8, %rsp\nmemory_site: call *pointer(%rip)\nadd $8, %rsp; ret\n"
	"neighbour: sub $8, %rsp; call target; add $8, %rsp; ret\n"
	"text_end:\n.data\n.balign 8\npointer: .quad target\n.text\n");

static void *originals[3];
static int stop;
static long calls, wrong;

#define HOOK(n) static long hook##n(long x) { return ((long (*)(long))originals[n])(x) + MORE; }
HOOK(0) HOOK(1) HOOK(2)

static void *caller(void *unused)
{
	(void)unused;
	long count = 0, bad = 0;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		long x = count++ % 100, a = by_call(x), b = by_jump(x), c = by_memory(x);
		bad += a % MORE != x + 1 || b % MORE != x + 2 || c % MORE != x + 1 || neighbour(x) != x + 1;
	}
	__atomic_fetch_add(&calls, count, __ATOMIC_RELAXED);
	__atomic_fetch_add(&wrong, bad, __ATOMIC_RELAXED);
	return NULL;
}

int main(int argc, char **argv)
{
	int times = argc > 1 ? atoi(argv[1]) : 100, failures = 0;
	static char before[256];
	char *sites[] = { call_site, jump_site, memory_site };
	void *hooks[] = { (void *)hook0, (void *)hook1, (void *)hook2 };
	long (*functions[])(long) = { by_call, by_jump, by_memory };
	size_t len = (size_t)(text_end - (char *)target);
	memcpy(before, (void *)target, len);
	pthread_t threads[2];
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, caller, NULL);
	for (int i = 0; i < times; i++) {
		struct pointee_result in[3];
		for (int j = 0; j < 3; j++) {
			in[j] = pointee_redirect_call(sites[j], hooks[j], &originals[j]);
			if (in[j].refusal[0])
				return printf("%d refused: %s\n", j, in[j].refusal), 1;
			failures += functions[j](5) < MORE || neighbour(5) != 6;
			/* One byte of each distance changes where the processor lets it, and nobody stands still. */
			failures += __builtin_cpu_is("amd") && in[j].threads != 0;
		}
		for (int j = 0; j < 3; j++) {
			failures += pointee_remove(in[j].hook).refusal[0] != 0;
			failures += functions[j](5) > MORE;
		}
	}
	/* What is no call is refused. */
	failures += !pointee_redirect_call((void *)target, hooks[0], &originals[0]).refusal[0];
	failures += memcmp(before, (void *)target, len) != 0;
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	failures += pointee_settle() != 0;
	printf("%d times, %ld calls: %ld wrong, %d failures\n", times, calls, wrong, failures);
	return failures != 0 || wrong != 0;
}
