/* What probes at an instruction cost, each in nanoseconds of CPU time beyond the loop without any: probes TIMES prints "NAME NANOSECONDS" lines, the
 * least of many parts, interleaved. Beside them a pair of xsavec and xrstor of all that functions may change. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "pointee_hooks.h"

/* Six live vector registers, which hold what is added up. */
__attribute__((noinline)) double hot(double a, double b, double c);
__asm__(".text\n.globl hot, hot_step\n.type hot, @function\nhot:\n.cfi_startproc\nmovapd %xmm0, %xmm3\naddsd %xmm1, %xmm3\nmovapd %xmm2, %xmm4\n"
	"hot_step:\nmovapd %xmm3, %xmm5\naddsd %xmm4, %xmm5\nmovapd %xmm5, %xmm0\ntest %eax, %eax\nret\n.cfi_endproc\n.size hot, .-hot\n");
extern char hot_step[];

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static double per_call(long times)
{
	double sum = 0, start = now();
	for (long i = 0; i < times; i++) {
		sum = hot(sum, 1, 2);
		__asm__ volatile("" : "+x"(sum));
	}
	return (now() - start) / times;
}

static char area[1 << 14] __attribute__((aligned(64)));
static double per_pair(long times)
{
	double start = now();
	for (long i = 0; i < times; i++)
		__asm__ volatile("mov $0xe7, %%eax\nxor %%edx, %%edx\nxsavec (%0)\nmov $0xe7, %%eax\nxor %%edx, %%edx\nxrstor (%0)" : : "r"(area) : "eax", "edx", "memory");
	return (now() - start) / times;
}

static void handler(struct pointee_state *at, uint64_t data) { (void)at; (void)data; }
void leaf(void);
__asm__(".text\nleaf: ret\n");

enum { PARTS = 40 };
static uint64_t cell;

static struct pointee_result put(int kind)
{
	switch (kind) {
	case 1: return pointee_count(hot_step, &cell, 0, POINTEE_PSABI);
	case 2: return pointee_count(hot_step, &cell, 0, POINTEE_ANY);
	case 3: return pointee_count(hot_step, &cell, 1, POINTEE_PSABI);
	case 4: return pointee_probe(hot_step, POINTEE_NOTHING, (void (*)(struct pointee_state *, uint64_t))leaf, 0, POINTEE_PSABI);
	case 5: return pointee_probe(hot_step, POINTEE_GENERAL, handler, 0, POINTEE_PSABI);
	case 6: return pointee_probe(hot_step, POINTEE_EVERYTHING, handler, 0, POINTEE_PSABI);
	default: return pointee_probe(hot_step, POINTEE_EVERYTHING, handler, 0, POINTEE_ANY);
	}
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "none", "counter", "counter, convention unknown", "counter of all threads", "handler, nothing saved",
		"handler, general registers", "handler, everything that is live", "handler, everything, convention unknown", "xsavec and xrstor" };
	enum { COUNT = sizeof names / sizeof *names };
	long times = argc > 1 ? atol(argv[1]) / PARTS : 100000;
	double least[COUNT];
	for (int kind = 0; kind < COUNT; kind++)
		least[kind] = 1e9;
	for (int part = 0; part < PARTS; part++)
		for (int kind = 0; kind < COUNT; kind++) {
			struct pointee_result probe = { 0 };
			int probed = kind > 0 && kind < COUNT - 1;
			if (probed && (probe = put(kind)).refusal[0]) {
				printf("%s: %s\n", names[kind], probe.refusal);
				return 1;
			}
			double taken = kind < COUNT - 1 ? per_call(times) : per_pair(times);
			least[kind] = taken < least[kind] ? taken : least[kind];
			if (probed)
				pointee_remove_probe(probe.hook);
		}
	for (int kind = 1; kind < COUNT; kind++)
		printf("%s\t%f\n", names[kind], kind < COUNT - 1 ? least[kind] - least[0] : least[kind]);
	return 0;
}
