/* Calls of a function are led away one by one, when they first come: directly, by way of the PLT, through memory, through a register, by a
 * tail jump. TIMES times, with threads that call all the while: callers TIMES. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pointee_hooks.h"

enum { MORE = 1000, KINDS = 6 };
long target(long);
long by_call(long), by_left_alone(long), by_memory(long), by_register(long), by_jump(long), by_import(long);
extern char call_end[], left_end[], memory_end[], import_end[], text_end[], pointer[];
__asm__(".text\n.balign 16\n"
	"target: .cfi_startproc; push %rbx; .cfi_adjust_cfa_offset 8; lea 1(%rdi), %rax; pop %rbx; .cfi_adjust_cfa_offset -8; ret; .cfi_endproc\n"
	"by_call: sub $8, %rsp; call target\ncall_end: add $8, %rsp; ret\n"
	"by_left_alone: sub $8, %rsp; call target\nleft_end: add $8, %rsp; ret\n"
	"by_memory: sub $8, %rsp; call *pointer(%rip)\nmemory_end: add $8, %rsp; ret\n"
	"by_register: sub $8, %rsp; lea target(%rip), %rax; call *%rax; add $8, %rsp; ret\n"
	"by_jump: jmp target\n"
	"by_import: sub $8, %rsp; neg %rdi; call labs@PLT\nimport_end: inc %rax; add $8, %rsp; ret\n"
	"text_end:\n.data\n.balign 8\npointer: .quad target\n.text\n");

static void *original, *original_labs;
static int stop;
static long calls, wrong, asked;

static long hook(long x) { return ((long (*)(long))original)(x) + MORE; }
static long hook_labs(long x) { return ((long (*)(long))original_labs)(x) + MORE; }

static void *choose(void *return_address, uint64_t data)
{
	__atomic_fetch_add(&asked, 1, __ATOMIC_RELAXED);
	/* Calls of its own are not led away. */
	if (target(1) != 2)
		__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	if (data == 2)
		return (void *)hook_labs;
	return return_address == left_end ? NULL : (void *)hook;
}

static long (*const functions[KINDS])(long) = { by_call, by_left_alone, by_memory, by_register, by_jump, by_import };

static void *caller(void *unused)
{
	(void)unused;
	long count = 0, bad = 0;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		long x = count++ % 100;
		for (int i = 0; i < KINDS; i++)
			bad += functions[i](x) % MORE != x + 1;
		bad += by_left_alone(x) != x + 1;
	}
	__atomic_fetch_add(&calls, count, __ATOMIC_RELAXED);
	__atomic_fetch_add(&wrong, bad, __ATOMIC_RELAXED);
	return NULL;
}

static int is_in_place(void *hook, void *return_address)
{
	struct pointee_caller places[64];
	long count = pointee_callers(hook, places, 64);
	for (long i = 0; i < count && i < 64; i++)
		if (places[i].return_address == return_address)
			return places[i].in_place;
	return -1;
}

static long mappings(void)
{
	FILE *file = fopen("/proc/self/maps", "r");
	long lines = 0;
	for (int c; file && (c = fgetc(file)) != EOF;)
		lines += c == '\n';
	if (file)
		fclose(file);
	return lines;
}

int main(int argc, char **argv)
{
	int times = argc > 1 ? atoi(argv[1]) : 100, failures = 0;
	static char before[256];
	size_t len = (size_t)(text_end - (char *)target);
	memcpy(before, (void *)target, len);
	pthread_t threads[4];
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, caller, NULL);
	by_import(1); /* bound */
	long start = 0;
	for (int i = 0; i < times; i++) {
		struct pointee_result in = pointee_redirect_callers((void *)target, choose, 1, &original);
		struct pointee_result labs_in = pointee_redirect_callers((void *)labs, choose, 2, &original_labs);
		if (in.refusal[0] || labs_in.refusal[0])
			return printf("refused: %s, %s\n", in.refusal, labs_in.refusal), 1;
		for (int repeat = 0; repeat < 3; repeat++)
			for (int j = 0; j < KINDS; j++)
				failures += functions[j](5) != 6 + (j == 1 ? 0 : MORE);
		/* Where another thread was changing something when a call came, the next one tries again. */
		const struct {
			void *hook, *end;
			long (*function)(long);
		} in_place[] = { { in.hook, call_end, by_call }, { in.hook, left_end, by_left_alone }, { in.hook, memory_end, by_memory }, { labs_in.hook, import_end, by_import } };
		for (int j = 0; j < 4; j++) {
			int is = 0;
			for (int wait = 0; wait < 10000 && !(is = is_in_place(in_place[j].hook, in_place[j].end) == 1); wait++)
				in_place[j].function(1);
			if (!is)
				failures++, printf("%d is not in place\n", j);
		}
		if (i == 0)
			failures += memcmp(before + ((char *)call_end - (char *)target) - 4, call_end - 4, 4) == 0;
		failures += pointee_remove(in.hook).refusal[0] != 0;
		failures += pointee_remove(labs_in.hook).refusal[0] != 0;
		for (int j = 0; j < KINDS; j++)
			failures += functions[j](5) != 6;
		if (i % 16 == 15)
			pointee_settle();
		if (i == times / 2) {
			pointee_settle();
			start = mappings();
		}
	}
	failures += memcmp(before, (void *)target, len) != 0;
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	failures += pointee_settle() != 0;
	long grown = mappings() - start;
	printf("%d times, %ld calls: asked %ld times, %ld wrong, %d failures, mappings %+ld\n", times, calls, asked, wrong, failures, grown);
	return failures != 0 || wrong != 0 || grown > 4;
}
