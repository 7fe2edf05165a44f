/* What a pair of malloc and free costs: malloc SHAPE DEPTH THREADS prints nanoseconds of CPU time a pair.
 *
 *   steady     1,024 live blocks a thread, a random one replaced at each step: all in the caches
 *   growing    from nothing to 300,000 live blocks, two allocations for each free of a random one
 *   shrinking  from 300,000 to nothing, the other way round
 *
 * DEPTH is the number of wrappers between the site and malloc (0 or 2). Each thread has a heap of its own. */
#include "wrappers.h"
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { SLOTS = 1024, STEPS = 2000000, BLOCKS = 300000 };
enum shape { STEADY, GROWING, SHRINKING };

static enum shape shape;
static int wrapped;

static uint32_t next(uint32_t *random) { return *random = *random * 1664525u + 1013904223u; }

/* Four sites, each direct and wrapped; sizes as programs have them, small ones most often. */
static inline __attribute__((always_inline)) void *allocate(uint32_t *random)
{
	static const uint8_t sizes[16] = {16, 24, 32, 40, 48, 64, 80, 100, 128, 16, 200, 24, 255, 32, 48, 60};
	uint32_t drawn = next(random);
	size_t size = sizes[(drawn >> 8) & 15];
	switch (drawn >> 30) {
	case 0: return wrapped ? outer(size) : malloc(size);
	case 1: return wrapped ? outer(size) : malloc(size);
	case 2: return wrapped ? outer(size) : malloc(size);
	default: return wrapped ? outer(size) : malloc(size);
	}
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static double steady(uint32_t *random)
{
	void **live = calloc(SLOTS, sizeof *live);
	double start = now();
	for (long step = 0; step < STEPS; step++) {
		unsigned slot = next(random) >> 16 & (SLOTS - 1);
		free(live[slot]);
		live[slot] = allocate(random);
	}
	double pair = (now() - start) / STEPS;
	for (unsigned slot = 0; slot < SLOTS; slot++)
		free(live[slot]);
	free(live);
	return pair;
}

static void free_one(void **live, size_t *count, uint32_t *random)
{
	size_t chosen = (uint64_t)next(random) * *count >> 32;
	free(live[chosen]);
	live[chosen] = live[--*count];
}

static double changing(uint32_t *random)
{
	void **live = malloc(BLOCKS * sizeof *live);
	memset(live, 1, BLOCKS * sizeof *live);
	size_t count = 0;
	long operations = 0;
	double start = now();
	while (count + 2 <= BLOCKS) {
		live[count++] = allocate(random);
		live[count++] = allocate(random);
		free_one(live, &count, random);
		operations += 3;
	}
	double grown = now();
	double time = grown - start;
	if (shape == SHRINKING) {
		operations = 0;
		while (count >= 2) {
			free_one(live, &count, random);
			free_one(live, &count, random);
			live[count++] = allocate(random);
			operations += 3;
		}
		time = now() - grown;
	}
	while (count)
		free_one(live, &count, random);
	free(live);
	return time / operations * 2;
}

static void *thread(void *result)
{
	uint32_t random = 1;
	*(double *)result = shape == STEADY ? steady(&random) : changing(&random);
	return NULL;
}

int main(int argc, char **argv)
{
	static const char *const names[] = {"steady", "growing", "shrinking"};
	double results[64], sum = 0;
	pthread_t threads[64];
	int count = argc == 4 ? atoi(argv[3]) : 0;
	if (count < 1 || count > 64)
		return 2;
	while (strcmp(names[shape], argv[1]))
		if (++shape > SHRINKING)
			return 2;
	wrapped = atoi(argv[2]);
	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, thread, &results[i]))
			return 1;
	for (int i = 0; i < count; i++) {
		pthread_join(threads[i], NULL);
		sum += results[i];
	}
	printf("%.3f\n", sum / count);
	return 0;
}
