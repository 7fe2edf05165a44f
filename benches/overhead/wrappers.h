/* Two wrappers between a site and malloc, as programs have them. */
#include <stdlib.h>

__attribute__((noinline)) static void *inner(size_t size)
{
	void *block = malloc(size);
	if (!block)
		abort();
	return block;
}

__attribute__((noinline)) static void *outer(size_t size)
{
	void *block = inner(size);
	if (!block)
		abort();
	return block;
}
