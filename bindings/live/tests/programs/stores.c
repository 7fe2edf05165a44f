/* A free list whose functions are inlined everywhere, as an allocator's fast path is: each place that writes its head gets a probe, which sees the
 * value before it is stored. The list as the probes see it must be the list as it is. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "pointee_hooks.h"

struct node { struct node *next; long value; };
static struct node *head;
static long length;

static inline __attribute__((always_inline)) void push(struct node *node)
{
	node->next = head;
	head = node;
	length++;
}
static inline __attribute__((always_inline)) struct node *pop(void)
{
	struct node *node = head;
	if (node) {
		head = node->next;
		length--;
	}
	return node;
}

/* Three users, in each of which the functions disappear. */
__attribute__((noinline)) void fill(struct node *nodes, int count)
{
	for (int i = 0; i < count; i++) {
		nodes[i].value = i;
		push(&nodes[i]);
		__asm__ volatile("" : : : "memory");
	}
}
__attribute__((noinline)) long drain(int count)
{
	long sum = 0;
	for (int i = 0; i < count; i++) {
		struct node *node = pop();
		__asm__ volatile("" : : : "memory");
		sum += node ? node->value : 0;
	}
	return sum;
}
__attribute__((noinline)) void clear(void)
{
	head = NULL;
	__asm__ volatile("" : : : "memory");
	length = 0;
}

static struct pointee_store stores[32];
static volatile long seen, wrong;
static struct node *volatile last;

static void on_store(struct pointee_state *at, uint64_t number)
{
	struct pointee_store *store = &stores[number];
	const uint64_t *registers = &at->rax;
	seen++;
	wrong += at->rip != (uint64_t)store->at || head != last;
	last = store->source >= 0 ? (struct node *)registers[store->source] : store->source == POINTEE_CONSTANT ? (struct node *)store->value : NULL;
	wrong += store->source == POINTEE_OTHER;
}

int main(void)
{
	enum { COUNT = 100 };
	static struct node nodes[COUNT];
	long count = pointee_find_stores(&head, sizeof head, stores, 32);
	void *probes[32];
	if (count < 3 || count > 32)
		return printf("%ld stores\n", count), 1;
	for (long i = 0; i < count; i++) {
		struct pointee_result result = pointee_probe(stores[i].at, POINTEE_EVERYTHING, on_store, (uint64_t)i, POINTEE_ANY);
		if (result.refusal[0])
			return printf("%p: %s\n", stores[i].at, result.refusal), 1;
		probes[i] = result.hook;
	}
	fill(nodes, COUNT);
	long sum = drain(60);
	int as_seen = last == head && length == 40;
	clear();
	as_seen &= last == NULL && head == NULL;
	long expected = COUNT + 60 + 1;
	for (long i = 0; i < count; i++)
		if (pointee_remove_probe(probes[i]).refusal[0])
			return printf("probe %ld stays\n", i), 1;
	fill(nodes, COUNT);
	printf("%ld places, %ld of %ld stores seen, %ld wrong, sum %ld\n", count, seen, expected, wrong, sum);
	return seen != expected || wrong || !as_seen || sum != (99 + 40) * 60 / 2;
}
