/* Asks from four threads and, all the while, from a signal handler that interrupts them, for things nobody asked for before.
 * Prints how many answers were wrong. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pointee.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

struct outer;
struct inner { int x; struct outer *up; };
struct outer { long y; struct inner in[3]; };
static struct outer a_static;
static volatile long hits, wrong;

static void array_of_inner(size_t length)
{
    const struct uniqtype *inner = pointee_type_named("struct inner");
    const struct uniqtype *array = pointee_array_of(inner, length);
    wrong += !array || array->length != length || array->target != inner || !array->name || !*array->name;
}

static void handler(int number)
{
    struct inner here = {number, NULL};
    struct pointee_answer answer;
    hits = hits + 1;
    wrong += !pointee_what(&here.up, &answer) || answer.kind != POINTEE_LOCAL || answer.base != &here;
    wrong += is_a(&a_static.in[1], "struct inner") != POINTEE_YES;
    array_of_inner((size_t)(hits * 7919 % 5000) + 1);
}

static void *asks(void *unused)
{
    for (size_t round = 0; round < 20000; round++) {
        struct outer *block = (struct outer *)malloc(sizeof *block);
        wrong += is_a(&block->in[1], "struct inner") != POINTEE_YES;
        array_of_inner(round % 5000 + 1);
        free(block);
    }
    return unused;
}

int main(void)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    struct itimerval often = {{0, 50}, {0, 50}}, never = {{0, 0}, {0, 0}};
    signal(SIGALRM, handler);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int n = 0; n < THREADS; n++)
        pthread_create(&threads[n], NULL, asks, NULL);
    for (int n = 0; n < THREADS; n++)
        pthread_join(threads[n], NULL);
    setitimer(ITIMER_REAL, &never, NULL);
    if (!hits)
        puts("no signal came");
    printf("end %ld\n", wrong);
    return wrong != 0;
}
