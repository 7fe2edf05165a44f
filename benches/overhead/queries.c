// What does one question cost the program that asks? Nanoseconds a call, warm, for each kind of pointer; with nothing
// to answer when run without Pointee.
//
//   gcc -g -O2 -I include benches/overhead/queries.c -o queries && pointee run -- ./queries
#define _GNU_SOURCE
#include <pointee.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CALLS = 20000, ROUNDS = 200, BLOCKS = 64 };
// Nanoseconds after which there is no further round.
static const double LONG = 3e8;

struct item {
    int id;
    struct item *next;
};
static struct item items[100];
static int numbers[7];

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

// The best of many short rounds: others may use the machine.
#define MEASURE(name, question)                                                                    \
    do {                                                                                           \
        double best = 1e9, begin = now();                                                          \
        unsigned long known = 0;                                                                   \
        for (int round = 0; round < ROUNDS && now() - begin < LONG; round++) {                     \
            double start = now();                                                                  \
            for (unsigned long n = 0; n < CALLS; n++)                                              \
                known += (unsigned long)(question);                                                \
            double each = (now() - start) / CALLS;                                                 \
            best = each < best ? each : best;                                                      \
        }                                                                                          \
        printf("%-34s %7.1f ns   %s\n", name, best, known ? "known" : "not known");                \
    } while (0)

int main(void)
{
    struct pointee_answer answer;
    struct pointee_mapping mapping;
    struct item local = {0, NULL};
    struct item *blocks[BLOCKS];
    for (int n = 0; n < BLOCKS; n++)
        blocks[n] = malloc(sizeof *blocks[n]);
    char *kilobyte = malloc(1024), *large = malloc(10 << 20);
    const struct uniqtype *type = pointee_type_named("struct item");

    MEASURE("heap, base", pointee_what(blocks[n % BLOCKS], &answer));
    MEASURE("heap, a field", pointee_what(&blocks[n % BLOCKS]->next, &answer));
    MEASURE("heap, inside a kilobyte", pointee_what(kilobyte + n % 1024, &answer));
    MEASURE("heap, inside ten megabytes", pointee_what(large + n * 4099 % (10 << 20), &answer));
    MEASURE("heap, inside their first 64 KiB", pointee_what(large + n * 4099 % (64 << 10), &answer));
    MEASURE("static of the program", pointee_what(&items[n % 100].next, &answer));
    MEASURE("static, another", pointee_what(&numbers[n % 7], &answer));
    MEASURE("static of libc", pointee_what(stdout, &answer));
    MEASURE("local of this frame", pointee_what(&local.next, &answer));
    MEASURE("is_a by type, heap", is_a(blocks[n % BLOCKS], type) == POINTEE_YES);
    MEASURE("is_a by name, heap", is_a(blocks[n % BLOCKS], "struct item") == POINTEE_YES);
    MEASURE("the mapping of a block", pointee_mapping_of(blocks[n % BLOCKS], &mapping));
    MEASURE("nothing", pointee_what(NULL, &answer));
    return 0;
}
