/* Probes at instructions of running code: each context leaves registers, flags, vectors, the stack below the stack pointer as they were; they
 * stack on one instruction, go in any order, and count exactly with threads. Ends with 0 when all is well. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pointee_hooks.h"

static int failures;
#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			printf("%s:%d: %s\n", __func__, __LINE__, #condition); \
			failures++; \
		} \
	} while (0)

/* state(where): every register gets a value of its own, flags are set, the red zone is filled; at `probed` nothing may change. Then all is
 * stored and compared by the caller. The direction flag is set if asked. */
struct all {
	uint64_t general[16], flags, red[16];
	uint8_t vectors[32][64];
	uint64_t masks[8];
	uint32_t mxcsr;
};
void state(const struct all *in, struct all *out);
extern char probed[], probed_end[];
__asm__(".text\n.globl state, probed, probed_end\n.type state, @function\nstate:\n.cfi_startproc\n"
	"push %rbx\n.cfi_adjust_cfa_offset 8\npush %rbp\n.cfi_adjust_cfa_offset 8\npush %r12\n.cfi_adjust_cfa_offset 8\n"
	"push %r13\n.cfi_adjust_cfa_offset 8\npush %r14\n.cfi_adjust_cfa_offset 8\npush %r15\n.cfi_adjust_cfa_offset 8\n"
	"push %rsi\n.cfi_adjust_cfa_offset 8\n"
	"mov %rdi, %rax\n"
	".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nmovups 256+64*\\n+8(%rax), %xmm\\n\n.endr\n"
	"mov 8(%rax), %rcx\nmov 16(%rax), %rdx\nmov 24(%rax), %rbx\nmov 40(%rax), %rbp\nmov 48(%rax), %rsi\nmov 56(%rax), %rdi\n"
	"mov 64(%rax), %r8\nmov 72(%rax), %r9\nmov 80(%rax), %r10\nmov 88(%rax), %r11\nmov 96(%rax), %r12\nmov 104(%rax), %r13\n"
	"mov 112(%rax), %r14\nmov 120(%rax), %r15\n"
	".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16\nmovq $0x1234+\\n, -8*\\n(%rsp)\n.endr\n"
	"lea -128(%rsp), %rsp\npush 128(%rax)\npopf\nlea 128(%rsp), %rsp\n"
	"mov (%rax), %rax\n"
	"probed:\nnop\nnop\nnop\nmov %rax, %rax\nnop\nnop\n"
	"probed_end:\n"
	"mov %rax, -136(%rsp)\nmov (%rsp), %rax\n"
	"mov %rcx, 8(%rax)\nmov %rdx, 16(%rax)\nmov %rbx, 24(%rax)\nmov %rbp, 40(%rax)\nmov %rsi, 48(%rax)\nmov %rdi, 56(%rax)\n"
	"mov %r8, 64(%rax)\nmov %r9, 72(%rax)\nmov %r10, 80(%rax)\nmov %r11, 88(%rax)\nmov %r12, 96(%rax)\nmov %r13, 104(%rax)\n"
	"mov %r14, 112(%rax)\nmov %r15, 120(%rax)\n"
	"mov -136(%rsp), %rcx\nmov %rcx, (%rax)\n"
	".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16\nmov -8*\\n(%rsp), %rcx\nmov %rcx, 136+8*(\\n-1)(%rax)\n.endr\n"
	"lea -128(%rsp), %rsp\npushf\npop 128(%rax)\nlea 128(%rsp), %rsp\ncld\n"
	".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nmovups %xmm\\n, 256+64*\\n+8(%rax)\n.endr\n"
	"stmxcsr 2376(%rax)\n"
	"pop %rsi\n.cfi_adjust_cfa_offset -8\npop %r15\n.cfi_adjust_cfa_offset -8\npop %r14\n.cfi_adjust_cfa_offset -8\n"
	"pop %r13\n.cfi_adjust_cfa_offset -8\npop %r12\n.cfi_adjust_cfa_offset -8\npop %rbp\n.cfi_adjust_cfa_offset -8\n"
	"pop %rbx\n.cfi_adjust_cfa_offset -8\nret\n.cfi_endproc\n.size state, .-state\n");
_Static_assert(offsetof(struct all, red) == 136 && offsetof(struct all, vectors) == 264 && offsetof(struct all, mxcsr) == 2376, "as in the assembly");

/* The upper halves and the masks are set and read here, on both sides of what is probed. */
__attribute__((target("avx512f,avx512bw"))) static void load_high(const struct all *in)
{
	__asm__ volatile(".irp n, 16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\nvmovups 64*\\n(%0), %%zmm\\n\n.endr\n"
	                 ".irp n, 0,1,2,3,4,5,6,7\nkmovq 8*\\n(%1), %%k\\n\n.endr" : : "r"(in->vectors), "r"(in->masks));
}
__attribute__((target("avx512f,avx512bw"))) static void store_high(struct all *out)
{
	__asm__ volatile(".irp n, 16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\nvmovups %%zmm\\n, 64*\\n(%0)\n.endr\n"
	                 ".irp n, 0,1,2,3,4,5,6,7\nkmovq %%k\\n, 8*\\n(%1)\n.endr" : : "r"(out->vectors), "r"(out->masks) : "memory");
}

/* Volatile: what the compiler sees of the functions that are probed does not change them. */
volatile long handled;
static uint64_t seen_data;
static volatile struct pointee_state seen;

/* Word by word: a compiler copies structures through vector registers. */
__attribute__((target("general-regs-only"))) static void look(const struct pointee_state *at, uint64_t data)
{
	handled++;
	for (size_t i = 0; i < sizeof seen / 8; i++)
		((volatile uint64_t *)&seen)[i] = ((const uint64_t *)at)[i];
	seen_data = data;
}

/* Changes all that a function may change. */
static void everything(struct pointee_state *at, uint64_t data)
{
	look(at, data);
	volatile double x = 3;
	x = sqrt(x) / 7;
	if (__builtin_cpu_supports("avx512bw"))
		__asm__ volatile(".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
		                 "vpternlogd $255, %%zmm\\n, %%zmm\\n, %%zmm\\n\n.endr\n.irp n, 1,2,3,4,5,6,7\nkxnorw %%k\\n, %%k\\n, %%k\\n\n.endr" : : : "memory");
	else
		__asm__ volatile(".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\npcmpeqd %%xmm\\n, %%xmm\\n\n.endr" : : : "memory");
	__asm__ volatile("mov $-1, %%rcx\nmov %%rcx, %%rdx\nmov %%rcx, %%rsi\nmov %%rcx, %%rdi\nmov %%rcx, %%r8\nmov %%rcx, %%r9\n"
	                 "mov %%rcx, %%r10\nmov %%rcx, %%r11\nxor %%eax, %%eax" : : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc");
}

__attribute__((target("general-regs-only"))) static void general(struct pointee_state *at, uint64_t data)
{
	look(at, data);
	__asm__ volatile("mov $-1, %%rcx\nmov %%rcx, %%rdx\nmov %%rcx, %%rsi\nmov %%rcx, %%rdi\nmov %%rcx, %%r8\nmov %%rcx, %%r9\n"
	                 "mov %%rcx, %%r10\nmov %%rcx, %%r11\nxor %%eax, %%eax" : : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc");
}

void nothing(void);
__asm__(".text\n.type nothing, @function\nnothing:\npush %rax\npushf\nincq handled(%rip)\npopf\npop %rax\nret\n");

static void fill(struct all *all, unsigned seed)
{
	srand(seed);
	for (size_t i = 0; i < sizeof *all; i++)
		((uint8_t *)all)[i] = (uint8_t)rand();
	/* Carry, parity, adjust, zero, sign, direction, overflow. */
	all->flags = ((uint64_t)rand() & 0xcd5) | 0x202;
}

static int same(struct all *in, struct all *out)
{
	int high = __builtin_cpu_supports("avx512bw");
	for (int i = 0; i < 16; i++)
		if (i != 4 && in->general[i] != out->general[i])
			return printf("general %d\n", i), 0;
	for (int i = 0; i < 16; i++)
		if (out->red[i] != 0x1235u + i)
			return printf("red zone %d\n", i), 0;
	for (int i = 0; i < 16; i++)
		if (memcmp(in->vectors[i], out->vectors[i], 16))
			return printf("vector %d\n", i), 0;
	if (high && (memcmp(in->vectors[16], out->vectors[16], 16 * 64) || memcmp(in->masks, out->masks, 64)))
		return printf("upper vectors or masks\n"), 0;
	if ((in->flags ^ out->flags) & 0xcd5)
		return printf("flags %lx %lx\n", in->flags, out->flags), 0;
	return 1;
}

static void run(const char *what, long expected)
{
	static struct all in, out;
	uint32_t mxcsr;
	handled = 0;
	for (unsigned seed = 1; seed <= 200; seed++) {
		fill(&in, seed);
		mxcsr = __builtin_ia32_stmxcsr();
		if (__builtin_cpu_supports("avx512bw"))
			load_high(&in);
		state(&in, &out);
		if (__builtin_cpu_supports("avx512bw"))
			store_high(&out);
		if (!same(&in, &out) || out.mxcsr != mxcsr) {
			printf("%s, seed %u\n", what, seed);
			failures++;
			return;
		}
	}
	if (handled != expected) {
		printf("%s: %ld handled, expected %ld\n", what, handled, expected);
		failures++;
	}
}

static void *put(struct pointee_result result)
{
	if (result.refusal[0])
		printf("refused: %s\n", result.refusal);
	CHECK(!result.refusal[0]);
	return result.hook;
}

static void contexts(void)
{
	static const struct { const char *name; enum pointee_context context; void (*handler)(struct pointee_state *, uint64_t); } rows[] = {
		{ "nothing", POINTEE_NOTHING, (void (*)(struct pointee_state *, uint64_t))nothing },
		{ "general", POINTEE_GENERAL, general },
		{ "everything", POINTEE_EVERYTHING, everything },
	};
	uint8_t before[16];
	memcpy(before, probed, sizeof before);
	run("none", 0);
	for (int i = 0; i < 3; i++) {
		void *probe = put(pointee_probe(probed, rows[i].context, rows[i].handler, 0x123456789abcdef0, POINTEE_ANY));
		run(rows[i].name, 200);
		if (rows[i].context != POINTEE_NOTHING) {
			static struct all in;
			fill(&in, 200);
			CHECK(seen_data == 0x123456789abcdef0 && seen.rip == (uint64_t)probed);
			CHECK(seen.rax == in.general[0] && seen.rbx == in.general[3] && seen.r15 == in.general[15] && seen.rsi == in.general[6]);
			CHECK(((seen.flags ^ in.flags) & 0xcd5) == 0);
		}
		put(pointee_remove_probe(probe));
		CHECK(memcmp(before, probed, sizeof before) == 0);
	}
	static uint64_t cell;
	uint64_t *far = malloc(1 << 26);
	*far = 0;
	void *near_probe = put(pointee_count(probed, &cell, 0, POINTEE_ANY));
	void *far_probe = put(pointee_count(probed, far, 1, POINTEE_ANY));
	run("counters", 0);
	CHECK(cell == 200 && *far == 200);
	void *third = put(pointee_probe(probed, POINTEE_EVERYTHING, everything, 3, POINTEE_ANY));
	put(pointee_remove_probe(near_probe));
	run("counter and handler", 200);
	CHECK(cell == 200 && *far == 400);
	put(pointee_remove_probe(far_probe));
	run("handler", 200);
	put(pointee_remove_probe(third));
	run("none again", 0);
	CHECK(memcmp(before, probed, sizeof before) == 0 && cell == 200 && *far == 400);
	CHECK(pointee_remove_probe(third).refusal[0]);
	free(far);
}

/* Handlers may change registers. */
__attribute__((noinline)) uint64_t add(uint64_t a, uint64_t b);
__asm__(".text\n.globl add\n.type add, @function\nadd:\n.cfi_startproc\nlea (%rdi, %rsi), %rax\nadd $0, %rax\nret\n.cfi_endproc\n.size add, .-add\n");
static void change(struct pointee_state *at, uint64_t data) { at->rdi += data; }

static void changes(void)
{
	void *probe = put(pointee_probe(add, POINTEE_EVERYTHING, change, 100, POINTEE_PSABI));
	CHECK(add(1, 2) == 103);
	put(pointee_remove_probe(probe));
	CHECK(add(1, 2) == 3);
}

/* Under the psABI only what the function reads is saved: floating point goes on all the same, in SSE and in AVX. */
__attribute__((noinline)) double series(int n)
{
	double sum = 0;
	for (int i = 1; i <= n; i++) {
		__asm__ volatile("series_step: nop; nop; nop; nop; nop" : "+x"(sum));
		sum += 1.0 / i;
	}
	return sum;
}
__attribute__((noinline, target("avx2"))) void scale(float *f, int n)
{
	typedef float v8 __attribute__((vector_size(32)));
	v8 s = { 1, 2, 3, 4, 5, 6, 7, 8 };
	for (int i = 0; i < n; i++) {
		__asm__ volatile("scale_step: nop; nop; nop; nop; nop" : "+x"(s));
		s = s * 0.5f + 1.0f;
	}
	memcpy(f, &s, 32);
}
extern char series_step[], scale_step[];

static void few(void)
{
	float before[8] = { 0 }, after[8] = { 0 };
	int avx = __builtin_cpu_supports("avx2");
	double plain = series(1000);
	void *probe = put(pointee_probe(series_step, POINTEE_EVERYTHING, everything, 0, POINTEE_PSABI));
	handled = 0;
	CHECK(series(1000) == plain && handled == 1000);
	CHECK(seen.vectors && seen.saved_vectors != ~0UL);
	put(pointee_remove_probe(probe));
	if (avx) {
		scale(before, 100);
		probe = put(pointee_probe(scale_step, POINTEE_EVERYTHING, everything, 0, POINTEE_PSABI));
		handled = 0;
		scale(after, 100);
		CHECK(handled == 100 && memcmp(before, after, sizeof before) == 0);
		put(pointee_remove_probe(probe));
	}
}

/* Threads run through while probes come, stack and go. */
enum { THREADS = 6, ROUNDS = 20000 };
static atomic_int stop;
static void *worker(void *result)
{
	uint64_t sum = 0;
	for (uint64_t i = 0; i < ROUNDS || !atomic_load(&stop); i++)
		sum += add(i, 1) != i + 1;
	*(uint64_t *)result = sum;
	return NULL;
}
static void quiet(struct pointee_state *at, uint64_t data) { (void)at; __atomic_fetch_add((long *)data, 1, __ATOMIC_RELAXED); }

static void threads(int times)
{
	pthread_t all[THREADS];
	uint64_t wrong[THREADS] = { 0 };
	static uint64_t cells[3];
	static long calls;
	for (int i = 0; i < THREADS; i++)
		pthread_create(&all[i], NULL, worker, &wrong[i]);
	for (int i = 0; i < times; i++) {
		void *a = put(pointee_count(add, &cells[0], 1, POINTEE_PSABI));
		void *b = put(pointee_probe(add, POINTEE_EVERYTHING, quiet, (uint64_t)&calls, i % 2 ? POINTEE_ANY : POINTEE_PSABI));
		void *c = put(pointee_count(add, &cells[1], 1, POINTEE_ANY));
		void *order[] = { a, b, c };
		for (int j = 0; j < 3; j++)
			put(pointee_remove_probe(order[(i + j * (1 + i % 2)) % 3]));
	}
	atomic_store(&stop, 1);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(all[i], NULL);
		CHECK(wrong[i] == 0);
	}
	/* With the threads at rest: exact. */
	void *a = put(pointee_count(add, &cells[2], 1, POINTEE_PSABI));
	for (int i = 0; i < THREADS; i++)
		pthread_create(&all[i], NULL, worker, &wrong[i]);
	for (int i = 0; i < THREADS; i++)
		pthread_join(all[i], NULL);
	CHECK(cells[2] == (uint64_t)THREADS * ROUNDS);
	put(pointee_remove_probe(a));
	while (pointee_settle() > 0)
		;
	printf("%d times: %lu and %lu counted, %ld calls\n", times, cells[0], cells[1], calls);
}

int main(int argc, char **argv)
{
	contexts();
	changes();
	few();
	threads(argc > 1 ? atoi(argv[1]) : 30);
	printf("%d failures\n", failures);
	return failures != 0;
}
