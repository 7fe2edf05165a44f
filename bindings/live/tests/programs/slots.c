/* Imports of a program and of an object that is loaded later are redirected and restored: slots LIBRARY. Built for lazy binding, for
 * binding at start with read-only slots, and without a procedure linkage table. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pointee_hooks.h"

enum { MORE = 1000 };
static int failures;
#define CHECK(condition) ((condition) ? (void)0 : (void)(failures++, printf("line %d: %s\n", __LINE__, #condition)))

static void *original, *original_length;
static long hook(const char *text, char **end, int base) { return ((long (*)(const char *, char **, int))original)(text, end, base) + MORE; }
/* An indirect function: its slot holds what a resolver chose. */
static size_t length_hook(const char *text) { return ((size_t (*)(const char *))original_length)(text) + MORE; }

static void maps(char *into, size_t room)
{
	FILE *file = fopen("/proc/self/maps", "r");
	size_t len = file ? fread(into, 1, room - 1, file) : 0;
	into[len] = 0;
	if (file)
		fclose(file);
}

int main(int argc, char **argv)
{
	static char before[1 << 15], after[1 << 15];
	struct pointee_imports imports, lengths;
	char *volatile text = "17";
	if (argc < 2)
		return 2;
	maps(before, sizeof before);
	maps(before, sizeof before);
	CHECK(pointee_redirect_imports(&imports, "strtol", (void *)hook, NULL, 0, &original) >= 1);
	CHECK(strtol(text, NULL, 10) == 17 + MORE);
	CHECK(pointee_redirect_imports(&lengths, "strlen", (void *)length_hook, NULL, 0, &original_length) >= 1);
	size_t (*volatile indirect)(const char *) = strlen;
	(void)indirect;
	size_t length = strlen(text);
	CHECK(pointee_restore_imports(&lengths) >= 1);
	CHECK(length == 2 + MORE && strlen(text) == 2);
	maps(after, sizeof after);

	void *library = dlopen(argv[1], RTLD_LAZY);
	if (!library)
		return printf("%s\n", dlerror()), 1;
	long (*imported)(const char *) = (long (*)(const char *))dlsym(library, "imported_strtol");
	CHECK(imported(text) == 17);
	CHECK(pointee_refresh_imports(&imports, "strtol", NULL, 0) == 1);
	CHECK(imported(text) == 17 + MORE);
	CHECK(pointee_restore_imports(&imports) >= 2);
	CHECK(imported(text) == 17 && strtol(text, NULL, 10) == 17);

	/* But not that object. */
	void *except[] = { (void *)imported };
	CHECK(pointee_redirect_imports(&imports, "strtol", (void *)hook, except, 1, &original) >= 1);
	CHECK(imported(text) == 17 && strtol(text, NULL, 10) == 17 + MORE);
	dlclose(library);
	CHECK(pointee_restore_imports(&imports) >= 1);
	CHECK(strtol(text, NULL, 10) == 17);
	CHECK(pointee_redirect_imports(&imports, "no_such_function", (void *)hook, NULL, 0, &original) == -1);
	printf("slots: %d failures\n", failures);
	return failures != 0;
}
