/* What a pair of malloc(64) and free costs: cost PAIRS prints nanoseconds of CPU time a pair, the least of ten parts. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv)
{
	enum { PARTS = 10 };
	if (argc < 2)
		return 2;
	long pairs = atol(argv[1]) / PARTS;
	double least = 1e9;
	for (int part = 0; part < PARTS; part++) {
		double start = now();
		for (long i = 0; i < pairs; i++) {
			void *block = malloc(64);
			__asm__ volatile("" : : "r"(block) : "memory");
			free(block);
		}
		double taken = (now() - start) / pairs;
		least = taken < least ? taken : least;
	}
	printf("%f\n", least);
	return 0;
}
