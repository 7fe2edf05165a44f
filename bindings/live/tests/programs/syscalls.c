/* System calls, seen and changed at the instruction that makes them, in libc: two bytes in place, no trap. Threads wait in such calls while probes
 * come and go. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pointee_hooks.h"

static volatile long calls[512];

static void on_call(struct pointee_state *at, uint64_t swap)
{
	if (at->rax < 512)
		__atomic_fetch_add(&calls[at->rax], 1, __ATOMIC_RELAXED);
	if (swap && at->rax == SYS_getppid)
		at->rax = SYS_getpid;
}

/* Probes at each system call in the first LEN bytes of a function. */
static int put(void *function, int len, void **probes, uint64_t swap)
{
	int count = 0;
	unsigned char *code = function;
	for (int i = 0; i < len; i++) {
		if (code[i] != 0x0f || code[i + 1] != 0x05)
			continue;
		struct pointee_result result = pointee_probe(code + i, POINTEE_EVERYTHING, on_call, swap, POINTEE_ANY);
		if (result.refusal[0])
			printf("%p+%d: %s\n", function, i, result.refusal);
		else
			probes[count++] = result.hook;
	}
	return count;
}

static int ends[2];
static atomic_int bytes;

static void *reader(void *unused)
{
	char byte;
	(void)unused;
	while (read(ends[0], &byte, 1) == 1 && byte != 'x')
		atomic_fetch_add(&bytes, 1);
	return NULL;
}

int main(void)
{
	enum { READERS = 4, ROUNDS = 50 };
	void *probes[8];
	pid_t parent = getppid();
	int count = put((void *)getppid, 12, probes, 1), failures = 0;
	if (count != 1 || getppid() != getpid() || calls[SYS_getppid] != 1)
		failures += printf("getppid is not seen\n");
	failures += pointee_remove_probe(probes[0]).refusal[0] != 0;
	if (getppid() != parent)
		failures += printf("getppid is not as it was\n");

	pthread_t readers[READERS];
	if (pipe(ends) != 0)
		return 1;
	for (int i = 0; i < READERS; i++)
		pthread_create(&readers[i], NULL, reader, NULL);
	for (int i = 0; i < ROUNDS; i++) {
		count = put((void *)read, 160, probes, 0);
		failures += count == 0;
		for (int j = 0; j < 20; j++)
			failures += write(ends[1], "a", 1) != 1;
		usleep(500);
		for (int j = 0; j < count; j++)
			failures += pointee_remove_probe(probes[j]).refusal[0] != 0;
		failures += write(ends[1], "b", 1) != 1;
	}
	failures += write(ends[1], "xxxx", READERS) != READERS;
	for (int i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
	int left = pointee_settle();
	printf("%ld calls of read seen, %d bytes, %d left, %d failures\n", calls[SYS_read], bytes, left, failures);
	return failures || left || calls[SYS_read] == 0 || bytes != ROUNDS * 21;
}
