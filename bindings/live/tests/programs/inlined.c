/* A function that has no entry, since it was put into all its callers: probes where it begins see its parameters, in registers, on the stack, and
 * constant. inlined TABLE COUNT: the table of the places of take(), which are COUNT. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "pointee_hooks.h"

enum { CALLS = 1000, THREADS = 4, PLACES = 16 };
volatile long taken;
volatile short last;

static inline __attribute__((always_inline)) void take(long size, short kind)
{
	taken = size;
	last = kind;
	__asm__ volatile("" : : : "memory");
}

__attribute__((noinline)) void by_register(long size, short kind)
{
	take(size, kind);
}

__attribute__((noinline)) void by_constant(void)
{
	take(64, -3);
}

__attribute__((noinline)) void by_stack(int a, int b, int c, int d, int e, int f, long size, short kind)
{
	taken = a + b + c + d + e + f;
	__asm__ volatile("" : : : "memory");
	take(size, kind);
}

__attribute__((noinline)) void twice(long size)
{
	take(size, 1);
	if (size & 1)
		take(-size, 2);
}

/* What each place has seen. */
static struct pointee_instance places[PLACES];
static long counts[PLACES], sizes[PLACES], kinds[PLACES], known[PLACES];

__attribute__((target("general-regs-only"))) static void seen(struct pointee_state *state, uint64_t data)
{
	struct pointee_instance *place = (struct pointee_instance *)data;
	long number = place - places;
	__atomic_fetch_add(&counts[number], 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < place->count; i++) {
		long value = pointee_operand_value(state, &place->operands[i]);
		__atomic_fetch_add(&known[number], 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(place->operands[i].name[0] == 's' ? &sizes[number] : &kinds[number], value, __ATOMIC_RELAXED);
	}
}

static void *run(void *unused)
{
	for (long i = 0; i < CALLS; i++) {
		by_register(i, (short)-i);
		by_constant();
		by_stack(1, 2, 3, 4, 5, 6, 1000 + i, (short)(i % 7));
		twice(i);
	}
	return unused;
}

/* The sums over all places in HOLDER. */
static void check(const char *holder, long count, long size, long kind)
{
	long sums[4] = {0};
	for (int i = 0; i < PLACES; i++)
		if (places[i].holder && !strcmp(places[i].holder, holder))
			sums[0] += counts[i], sums[1] += sizes[i], sums[2] += kinds[i], sums[3] += known[i];
	if (sums[0] != count * THREADS || sums[1] != size * THREADS || sums[2] != kind * THREADS || sums[3] != 2 * sums[0])
		failures++, printf("%s: %ld calls, sizes %ld, kinds %ld, %ld known\n", holder, sums[0], sums[1], sums[2], sums[3]);
}

int main(int argc, char **argv)
{
	static char table[65536];
	FILE *file = fopen(argc > 2 ? argv[1] : "", "r");
	if (!file)
		return 2;
	size_t len = fread(table, 1, sizeof table, file);
	fclose(file);
	long expected = atol(argv[2]);
	CHECK(pointee_find_inlined(table, len - 1, places, PLACES) == -1);
	table[12] ^= 1; /* another build */
	CHECK(pointee_find_inlined(table, len, places, PLACES) == -1);
	table[12] ^= 1;
	long count = pointee_find_inlined(table, len, places, PLACES);
	CHECK(count == expected && count >= 5 && count <= PLACES);
	CHECK(pointee_probe_inlined(places, count, POINTEE_GENERAL, seen, POINTEE_PSABI) == count);
	for (long i = 0; i < count; i++)
		if (places[i].placed.refusal[0])
			printf("%s+%p: %s\n", places[i].holder, places[i].at, places[i].placed.refusal);
	pthread_t threads[THREADS];
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], 0, run, 0);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], 0);
	long all = CALLS * (CALLS - 1L) / 2, odd = CALLS / 2 * (CALLS / 2), sevens = 0;
	for (int i = 0; i < CALLS; i++)
		sevens += i % 7;
	check("by_register", CALLS, all, -all);
	check("by_constant", CALLS, 64L * CALLS, -3L * CALLS);
	check("by_stack", CALLS, 1000L * CALLS + all, sevens);
	check("twice", CALLS + CALLS / 2, all - odd, CALLS + 2 * (CALLS / 2));
	for (long i = 0; i < count; i++)
		CHECK(!pointee_remove_probe(places[i].placed.hook).refusal[0]);
	CHECK(pointee_settle() == 0);
	printf("inlined: %ld places, %d failures\n", count, failures);
	return failures != 0;
}
