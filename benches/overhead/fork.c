/* How long fork takes, seen from the caller: fork BYTES FORKS holds BYTES in blocks of 100, forks FORKS times
 * a child that ends at once, and prints the median in milliseconds. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 100, MOST = 1000 };

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static int ascending(const void *a, const void *b)
{
	double left = *(const double *)a, right = *(const double *)b;
	return (left > right) - (left < right);
}

int main(int argc, char **argv)
{
	static double taken[MOST];
	if (argc != 3)
		return 2;
	size_t count = strtoul(argv[1], NULL, 10) / BLOCK;
	int forks = atoi(argv[2]);
	char **held = malloc(count * sizeof *held);
	if (!held || forks < 1 || forks > MOST)
		return 2;
	for (size_t i = 0; i < count; i++) {
		held[i] = malloc(BLOCK);
		if (!held[i])
			return 1;
		held[i][0] = 1;
	}
	for (int i = 0; i < forks; i++) {
		double start = now();
		pid_t child = fork();
		if (child == 0)
			_exit(0);
		taken[i] = now() - start;
		if (child < 0 || waitpid(child, NULL, 0) != child)
			return 1;
	}
	qsort(taken, forks, sizeof *taken, ascending);
	printf("%f\n", taken[forks / 2]);
	return 0;
}
