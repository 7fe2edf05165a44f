/* Functions of libc are replaced, wrapped and probed, used, and left alone again, a thousand times, with a thread that uses them all the while: text,
 * mappings and memory are then what they were. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pointee_hooks.h"

static int stop;
static long entered, probed;
static uint64_t counted;
static void *originals[4];

static void enter(struct pointee_call *call) { __atomic_fetch_add(&entered, call->data, __ATOMIC_RELAXED); }
static void look(struct pointee_state *at, uint64_t data) { (void)at; __atomic_fetch_add(&probed, data, __ATOMIC_RELAXED); }
static void leave(struct pointee_return *result) { (void)result; }
static void *my_malloc(size_t size) { entered++; return ((void *(*)(size_t))originals[0])(size); }
static void my_free(void *block) { entered++; ((void (*)(void *))originals[1])(block); }
static char *my_getenv(const char *name) { return ((char *(*)(const char *))originals[2])(name); }
static int my_rand(void) { return ((int (*)(void))originals[3])(); }

static void use(void)
{
	free(malloc(100));
	getenv("HOME");
	(void)rand();
	unsigned seed = 1;
	(void)rand_r(&seed);
	char text[32], *end;
	snprintf(text, sizeof text, "%d", 5);
	strtol(text, &end, 10);
	time_t now = 0;
	struct tm tm;
	gmtime_r(&now, &tm);
}

static void *user(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		use();
	return NULL;
}

static size_t read_file(const char *path, char *into, size_t room)
{
	FILE *file = fopen(path, "r");
	size_t len = file ? fread(into, 1, room - 1, file) : 0;
	into[len] = 0;
	if (file)
		fclose(file);
	return len;
}

/* No page is writable and executable, ever. */
static void check_pages(void)
{
	static char maps[1 << 16];
	read_file("/proc/self/maps", maps, sizeof maps);
	if (strstr(maps, " rwx") || strstr(maps, " -wx")) {
		printf("a page is writable and executable:\n%s", maps);
		exit(1);
	}
}

static void cycle(void)
{
	static struct { void *function, *replacement; } const rows[] = {
		{ (void *)malloc, (void *)my_malloc }, { (void *)free, (void *)my_free }, { (void *)getenv, (void *)my_getenv }, { (void *)rand, (void *)my_rand },
		{ (void *)snprintf, NULL }, { (void *)strtol, NULL }, { (void *)gmtime_r, NULL },
	};
	enum { COUNT = sizeof rows / sizeof *rows };
	void *hooks[COUNT];
	for (int i = 0; i < COUNT; i++) {
		struct pointee_result in = rows[i].replacement ? pointee_replace(rows[i].function, rows[i].replacement, &originals[i])
		                                               : pointee_wrap(rows[i].function, enter, leave, 1);
		if (in.refusal[0]) {
			printf("%d refused: %s\n", i, in.refusal);
			exit(1);
		}
		hooks[i] = in.hook;
	}
	struct pointee_result probes[] = {
		pointee_probe((void *)rand_r, POINTEE_EVERYTHING, look, 1, POINTEE_PSABI),
		pointee_count((void *)rand_r, &counted, 1, POINTEE_PSABI),
		pointee_probe((void *)rand_r, POINTEE_EVERYTHING, look, 1, POINTEE_ANY),
	};
	use();
	check_pages();
	for (int i = 0; i < 3; i++) {
		struct pointee_result out = pointee_remove_probe(probes[(i + 1) % 3].hook);
		if (probes[i].refusal[0] || out.refusal[0]) {
			printf("probe %d: %s %s\n", i, probes[i].refusal, out.refusal);
			exit(1);
		}
	}
	for (int i = COUNT; i-- > 0;) {
		struct pointee_result out = pointee_remove(hooks[i]);
		if (out.refusal[0]) {
			printf("%d stays: %s\n", i, out.refusal);
			exit(1);
		}
	}
	while (pointee_settle() != 0)
		usleep(100);
}

int main(int argc, char **argv)
{
	static char before[1 << 16], after[1 << 16], memory[256];
	int times = argc > 1 ? atoi(argv[1]) : 200;
	long was = 0, is = 0;
	pthread_t thread;
	pthread_create(&thread, NULL, user, NULL);
	read_file("/proc/self/maps", before, sizeof before);
	for (int i = 0; i < 10; i++)
		cycle();
	read_file("/proc/self/maps", before, sizeof before);
	read_file("/proc/self/statm", memory, sizeof memory);
	sscanf(memory, "%*d %ld", &was);
	for (int i = 0; i < times; i++)
		cycle();
	read_file("/proc/self/statm", memory, sizeof memory);
	sscanf(memory, "%*d %ld", &is);
	read_file("/proc/self/maps", after, sizeof after);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	int same = strcmp(before, after) == 0;
	printf("%d times: %ld calls and %ld probes seen, %lu counted, mappings %s, resident %+ld KiB\n", times, entered, probed, counted, same ? "as before" : "CHANGED", (is - was) * 4);
	if (!same)
		printf("%s---\n%s", before, after);
	return !same || is - was > 16 || entered == 0 || probed == 0 || counted == 0;
}
