/* A preload library that hooks malloc and free when it is loaded, in the way that the variable HOOK says:
 *   replace    both replaced at their entry by functions that call the original
 *   imports    both redirected in the slots of all objects but this library
 *   wrap       both between observers that do nothing */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pointee_hooks.h"

static void *originals[2];
static void *on_malloc(size_t size) { return ((void *(*)(size_t))originals[0])(size); }
static void on_free(void *block) { ((void (*)(void *))originals[1])(block); }
static void enter(struct pointee_call *call) { (void)call; }
static void leave(struct pointee_return *result) { (void)result; }

static const char *hook(const char *kind)
{
	void *functions[] = { (void *)malloc, (void *)free }, *replacements[] = { (void *)on_malloc, (void *)on_free };
	static const char *const names[] = { "malloc", "free" };
	static struct pointee_imports imports[2];
	static struct pointee_result result;
	for (int i = 0; i < 2; i++) {
		if (!strcmp(kind, "replace"))
			result = pointee_replace(functions[i], replacements[i], &originals[i]);
		else if (!strcmp(kind, "wrap"))
			result = pointee_wrap(functions[i], enter, leave, 0);
		else if (!strcmp(kind, "imports") && pointee_redirect_imports(&imports[i], names[i], replacements[i], (void *[]){ (void *)hook }, 1, &originals[i]) < 1)
			return "not imported";
		if (result.refusal[0])
			return result.refusal;
	}
	return NULL;
}


__attribute__((constructor)) static void start(void)
{
	const char *kind = getenv("HOOK"), *refusal = hook(kind ? kind : "");
	if (refusal) {
		fprintf(stderr, "%s: %s\n", kind, refusal);
		exit(1);
	}
}
