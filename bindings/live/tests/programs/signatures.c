/* Functions of many types are wrapped, none of which the observers know: what goes in and comes out must be what it is
 * without. Recursion goes deeper than calls are followed. */
#include <immintrin.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "pointee_hooks.h"

static int failures;
static long entered, left;
#define CHECK(condition) ((condition) ? (void)0 : (void)(failures++, printf("line %d: %s\n", __LINE__, #condition)))

struct large { long values[9]; };
struct two_words { long a, b; };
struct two_doubles { double a, b; };
struct mixed { double a; long b; };

#define FUNCTION __attribute__((noinline))
FUNCTION long many(long a, long b, long c, long d, long e, long f, long g, long h, long i)
{
	return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i;
}
FUNCTION struct large by_memory(long start)
{
	struct large large;
	for (int i = 0; i < 9; i++)
		large.values[i] = start + i;
	return large;
}
FUNCTION struct two_words by_registers(long a) { return (struct two_words){ a, -a }; }
FUNCTION struct two_doubles by_vectors(double a) { return (struct two_doubles){ a, -a }; }
FUNCTION struct mixed by_both(double a, long b) { return (struct mixed){ a + 1, b + 1 }; }
FUNCTION long double by_stack(long double a, double b) { return a * b + 1; }
FUNCTION double variadic(int count, ...)
{
	va_list list;
	double sum = 0;
	va_start(list, count);
	for (int i = 0; i < count; i++)
		sum += va_arg(list, double) * (i + 1) + va_arg(list, int);
	va_end(list);
	return sum;
}
FUNCTION double doubles(double a, double b, double c, double d, double e, double f, double g, double h, double i)
{
	return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i;
}
FUNCTION __attribute__((target("avx"))) __m256d wide(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
FUNCTION long recursive(long n)
{
	long rest = n == 0 ? -1 : recursive(n - 1);
	__asm__ volatile("" : "+r"(rest)); /* no loop */
	return rest + 1;
}
FUNCTION long last(long a) { __asm__ volatile(""); return a + 1; }
FUNCTION long tail(long a) { __asm__ volatile(""); return last(a + 1); }

/* What an observer that is compiled code does to the registers that a call may change. */
static void disturb(void)
{
	volatile double sum = 0;
	for (int i = 0; i < 4; i++)
		sum += i * 1.5;
	char text[64];
	snprintf(text, sizeof text, "%f %d", sum, 17);
}
static void enter(struct pointee_call *call) { entered += call->data; disturb(); }
static void leave(struct pointee_return *result) { left += result->data; disturb(); }

__attribute__((target("avx"))) static int wide_is_right(void)
{
	double out[4];
	_mm256_storeu_pd(out, wide(_mm256_set_pd(1, 2, 3, 4), _mm256_set_pd(10, 20, 30, 40)));
	return out[0] == 44 && out[1] == 33 && out[2] == 22 && out[3] == 11;
}

static void all(void)
{
	CHECK(many(1, 2, 3, 4, 5, 6, 7, 8, 9) == 285);
	struct large large = by_memory(7);
	CHECK(large.values[0] == 7 && large.values[8] == 15);
	struct two_words words = by_registers(5);
	CHECK(words.a == 5 && words.b == -5);
	struct two_doubles two = by_vectors(2.5);
	CHECK(two.a == 2.5 && two.b == -2.5);
	struct mixed mixed = by_both(1.5, 4);
	CHECK(mixed.a == 2.5 && mixed.b == 5);
	CHECK(by_stack(1.5L, 2) == 4);
	CHECK(variadic(5, 1.0, 1, 2.0, 2, 3.0, 3, 4.0, 4, 5.0, 5) == 70);
	CHECK(doubles(1, 2, 3, 4, 5, 6, 7, 8, 9) == 285);
	CHECK(!__builtin_cpu_supports("avx") || wide_is_right());
	CHECK(recursive(100) == 100);
	CHECK(tail(1) == 3);
}

int main(void)
{
	void *functions[] = { (void *)many, (void *)by_memory, (void *)by_registers, (void *)by_vectors, (void *)by_both, (void *)by_stack,
		(void *)variadic, (void *)doubles, (void *)wide, (void *)recursive, (void *)tail, (void *)last };
	enum { COUNT = sizeof functions / sizeof *functions };
	void *hooks[COUNT];
	all();
	for (int i = 0; i < COUNT; i++) {
		struct pointee_result in = pointee_wrap(functions[i], enter, leave, 1);
		if (in.refusal[0])
			return printf("%d refused: %s\n", i, in.refusal), 1;
		hooks[i] = in.hook;
	}
	all();
	/* Each once, and the recursion 101 times. */
	long expected = COUNT - 1 + 101 - !__builtin_cpu_supports("avx");
	CHECK(entered == expected && left == expected && pointee_missed() == 0);
	CHECK(recursive(1000) == 1000 && entered == left && pointee_missed() == 1001 - 128);
	for (int i = 0; i < COUNT; i++)
		CHECK(!pointee_remove(hooks[i]).refusal[0]);
	entered = 0;
	all();
	CHECK(entered == 0);
	CHECK(pointee_settle() == 0);
	all();
	printf("%d types: %d failures\n", COUNT, failures);
	return failures != 0;
}
