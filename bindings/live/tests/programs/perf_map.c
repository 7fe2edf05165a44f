/* Names for perf: none until they are asked for, then those of what was hooked before and after; not through a link that lies in the way. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "pointee_hooks.h"

__attribute__((noinline)) int before(int x) { return x * 3 + 1; }
__attribute__((noinline)) int after(int x) { return x * 5 + 2; }

static void *original;
static int hook(int x) { return ((int (*)(int))original)(x); }
static void enter(struct pointee_call *call) { (void)call; }
static void leave(struct pointee_return *result) { (void)result; }

/* The address and length of the line of NAME; 0 if there is none. */
static int find(const char *path, const char *name, unsigned long *at, unsigned long *len)
{
	unsigned long start, size;
	char line[256], found[200];
	FILE *file = fopen(path, "r");
	int seen = 0;
	while (file && fgets(line, sizeof line, file))
		if (sscanf(line, "%lx %lx %199s", &start, &size, found) == 3 && !strcmp(found, name))
			seen = 1, *at = start, *len = size;
	if (file)
		fclose(file);
	return seen;
}

int main(void)
{
	char path[64];
	int failures = 0;
	unsigned long at, len;
	snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
	struct pointee_result first = pointee_replace((void *)before, (void *)hook, &original);
	failures += access(path, F_OK) == 0;
	failures += symlink("/dev/null", path) != 0 || pointee_write_perf_map() != -1 || unlink(path) != 0;
	failures += pointee_write_perf_map() != 0;
	struct pointee_result second = pointee_wrap((void *)after, enter, leave, 0);
	if (!find(path, "before@hook", &at, &len) || (unsigned long)original - at >= len)
		failures++, printf("the first hook has no name\n");
	if (!find(path, "after@hook", &at, &len) || !find(path, "returned@hook", &at, &len))
		failures++, printf("the second hook has no name\n");
	failures += first.refusal[0] || second.refusal[0] || before(1) != 4 || after(1) != 7;
	unlink(path);
	printf("perf map: %d failures\n", failures);
	return failures != 0;
}
