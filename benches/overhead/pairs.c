/* COUNT pairs of malloc and free and nothing else: for counting instructions.
 * pairs DEPTH COUNT, where DEPTH is the number of wrappers (0 or 2). */
#include "wrappers.h"

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	int wrapped = atoi(argv[1]);
	long count = atol(argv[2]);
	for (long i = 0; i < count; i++) {
		size_t size = 32 + (i & 63);
		void *block = wrapped ? outer(size) : malloc(size);
		__asm__ volatile("" : : "r"(block) : "memory");
		free(block);
	}
	return 0;
}
