/* Asks about one pointer of each kind and says where an answer is wrong. Compiled as C and as C++, in every way programs
 * are linked. `asking with` expects answers, `asking without` expects none to be known; a second argument is a library
 * to load. Then rows for `pointee what` to answer too:
 *   ADDRESS TYPE INNER-TYPE
 * until a line comes. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pointee.h"

#ifndef STATIC
#include <dlfcn.h>
#endif
#include <alloca.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct point { int x, y; };
struct thing { char tag; union { long number; struct point at; } u; struct point many[3]; struct thing *next; };
struct other { int id; char *name; };
struct prefix { int x; };
/* Defined in the library only, and so not in static programs. */
struct opaque;
static struct opaque *handle;
typedef struct { unsigned bits : 3, more : 5; double weight; } scale;

static struct thing a_static;
static scale scales[4];
static struct prefix unused_but_there;
static __thread struct point of_thread;
static int is_with, wrong;

#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            printf("wrong: %s:%d: %s\n", __func__, __LINE__, #condition); \
            wrong++; \
        } \
    } while (0)

static int same(const char *one, const char *other)
{
    return one == other || (one && other && !strcmp(one, other));
}

static void row(const void *address)
{
    if (is_with)
        printf("%p|%s|%s\n", address, pointee_type_name(pointee_type(address)),
               pointee_type_name(pointee_inner_type(address, 0, NULL)));
}

/* Inlined, so that the asking thread's frame is the caller's. */
#define CHECK(pointer, its_base, its_kind, its_name, its_type, its_inner) \
    do { \
        struct pointee_answer answer; \
        const char *is_wrong = NULL; \
        int known = pointee_what((pointer), &answer); \
        if (!is_with) { \
            is_wrong = known || answer.type ? "known" : NULL; \
        } else if (!known || answer.kind != (its_kind)) { \
            is_wrong = "kind"; \
        } else if (answer.base != (const void *)(its_base)) { \
            is_wrong = "base"; \
        } else if (!same(answer.name, (its_name))) { \
            is_wrong = "name"; \
        } else if (!same(pointee_type_name(answer.type), (its_type))) { \
            is_wrong = pointee_type_name(answer.type); \
        } else if (!same(pointee_type_name(pointee_inner_type((pointer), 0, NULL)), (its_inner))) { \
            is_wrong = "inner"; \
        } \
        if (is_wrong) { \
            printf("wrong: %s:%d: %s: %s\n", __func__, __LINE__, #pointer, is_wrong); \
            wrong++; \
        } \
    } while (0)

__attribute__((noinline)) static void *made_here(size_t size)
{
    void *block = malloc(size);
    return block;
}

__attribute__((noinline)) static void blocks(void)
{
    struct thing *one = (struct thing *)calloc(1, sizeof *one);
    struct point *many = (struct point *)malloc(10 * sizeof *many);
    struct other **table = (struct other **)malloc(64 * sizeof *table);
    CHECK(one, one, POINTEE_HEAP, NULL, "struct thing", "char");
    CHECK(&one->many[1].y, one, POINTEE_HEAP, NULL, "struct thing", "int");
    CHECK(&one->next, one, POINTEE_HEAP, NULL, "struct thing", "struct thing *");
    CHECK(&many[7].y, many, POINTEE_HEAP, NULL, "struct point[]", "int");
    CHECK(&table[63], table, POINTEE_HEAP, NULL, "struct other *[]", "struct other *");
    row(&one->many[1].y);
    row(&many[7].y);
    row(&table[63]);
    EXPECT(!is_with || pointee_size(many) == 10 * sizeof *many);
    EXPECT(!is_with || pointee_limit(many + 3) == many + 10);
    EXPECT(!is_with || same(pointee_free_name(many), "free"));
    EXPECT(is_with || (!pointee_size(many) && !pointee_base(many) && !pointee_site(many)));

    int yes = is_with ? POINTEE_YES : POINTEE_DONT_KNOW, no = is_with ? POINTEE_NO : POINTEE_DONT_KNOW;
    EXPECT(is_a(one, "struct thing") == yes);
    EXPECT(is_a(one, "thing") == yes);
    EXPECT(is_a(&one->many[2], "struct point") == yes);
    EXPECT(is_a(&one->u, "struct point") == yes && is_a(&one->u, "long int") == yes);
    EXPECT(is_a((char *)&one->many[2] + 1, "struct point") == no);
    EXPECT(is_a(one, "struct other") == no);
    EXPECT(named_a(many, "point") == yes);
    EXPECT(like_a(&many[1], "struct prefix") == yes);
    EXPECT(like_a(&many[1], "struct other") == no);
    EXPECT(is_a(many, pointee_type_named("struct point")) == yes);
    EXPECT(like_a(&many[1], pointee_type_named("struct prefix")) == yes);

    struct pointee_place place;
    const char *site = (const char *)pointee_site(one);
    EXPECT(pointee_where(site ? site - 1 : site, &place) == is_with);
    EXPECT(!is_with || (same(place.function, "blocks") || same(place.function, "main")));

    struct point *given_back = (struct point *)malloc(3 * sizeof *given_back);
    EXPECT(!is_with || pointee_is(given_back, POINTEE_NAMED, "point") == POINTEE_YES);
    EXPECT(pointee_free(given_back) == yes);
    EXPECT(!is_with || pointee_type(given_back) == NULL);
    struct other *stated = (struct other *)made_here(sizeof *stated);
    EXPECT(pointee_set_type(stated, pointee_type_named("struct other")) == yes);
    EXPECT(is_a(stated, "struct other") == yes);
}

__attribute__((noinline)) static void statics_and_locals(int argument)
{
    static long calls;
    unused_but_there.x = argument;
    handle = NULL;
    struct thing here;
    scale several[3];
    memset(&here, 0, sizeof here);
    memset(several, argument, sizeof several);
    CHECK(&a_static.many[2].x, &a_static, POINTEE_STATIC, "a_static", "struct thing", "int");
    CHECK(&scales[3].weight, scales, POINTEE_STATIC, "scales", "scale[4]", "double");
    row(&a_static.many[2].x);
    row(&scales[3].weight);
    CHECK(&here.u.number, &here, POINTEE_LOCAL, "here", "struct thing", "long int");
    CHECK(&several[2].weight, several, POINTEE_LOCAL, "several", "scale[3]", "double");
    row(&here.many[1].y);
    calls += argument;
    /* Another program counter of the same function. */
    CHECK(&here.many[1].y, &here, POINTEE_LOCAL, "here", "struct thing", "int");
    CHECK(&of_thread.y, &of_thread, POINTEE_THREAD, "of_thread", "struct point", "int");
    EXPECT(!is_with || same(pointee_type_name(pointee_type(&calls)), "long int"));
}

/* Blocks that a function makes on its stack while it runs. */
__attribute__((noinline)) static void carved(int n)
{
    int numbers[n];
    struct point *made = (struct point *)alloca(n * sizeof *made);
    char *text = (char *)alloca(n);
    memset(numbers, 0, sizeof numbers);
    memset(made, 0, n * sizeof *made);
    memset(text, 0, n);
    CHECK(&numbers[3], numbers, POINTEE_LOCAL, "numbers", "int[]", "int");
    CHECK(&made[2].y, made, POINTEE_ALLOCA, NULL, "struct point[]", "int");
    CHECK(text + 3, text, POINTEE_ALLOCA, NULL, "char[]", "char");
    /* Another one, with other places. */
    if (n < 20)
        carved(n + 13);
    CHECK(&made[3].x, made, POINTEE_ALLOCA, NULL, "struct point[]", "int");
    CHECK(&numbers[4], numbers, POINTEE_LOCAL, "numbers", "int[]", "int");
    /* Until here the pointers are somewhere. */
    __asm__ volatile("" : : "r"(numbers), "r"(made), "r"(text));
}

static int count_frames(void *code, void *sp, void *bp, void *count)
{
    (void)code, (void)sp, (void)bp;
    ++*(int *)count;
    return 0;
}

struct counted { const void *wanted; int found; };

static int count_blocks(const struct pointee_answer *block, void *of)
{
    struct counted *counted = (struct counted *)of;
    counted->found += block->base == counted->wanted;
    return 0;
}

static void rest(void)
{
    char *mapped = (char *)mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct pointee_mapping mapping;
    EXPECT(pointee_mapping_of(mapped + 5000, &mapping) == is_with);
    EXPECT(!is_with || (mapping.protection == (PROT_READ | PROT_WRITE) && !mapping.inode));
    struct pointee_answer answer;
    EXPECT(pointee_what(mapped + 5000, &answer) == is_with);
    EXPECT(!is_with || answer.kind == POINTEE_MAPPING);
    EXPECT(pointee_what(NULL, &answer) == 0 && pointee_what((void *)-1, &answer) == 0);
    EXPECT(pointee_what((const void *)(size_t)rest, &answer) == is_with);
    EXPECT(!is_with || (answer.kind == POINTEE_FUNCTION && same(answer.name, "rest")));
    int frames = 0;
    pointee_walk_stack(count_frames, &frames);
    EXPECT(is_with ? frames > 1 : frames == 0);
    struct counted counted = {malloc(123), 0};
    pointee_each_block(count_blocks, &counted);
    EXPECT(counted.found == is_with);
    errno = 77;
    pointee_what(&counted, &answer);
    EXPECT(errno == 77);
}

static void made_types(void)
{
    const struct uniqtype *point = pointee_type_named("struct point");
    EXPECT(!!point == is_with);
    if (!point)
        return;
    EXPECT(point->size == sizeof(struct point) && point->members_len == 2);
    EXPECT(same(point->members[1].name, "y") && point->members[1].offset == 4);
    EXPECT(point->members[1].type == pointee_type_named("int"));
    const struct uniqtype *thing = pointee_type_named("__uniqtype__thing");
    EXPECT(thing && pointee_member(thing, "next")->type == pointee_pointer_to(thing));
    EXPECT(pointee_member(thing, "many")->type == pointee_array_of(point, 3));
    EXPECT(same(pointee_array_of(point, 3)->name, "struct point[3]"));
    const struct uniqtype *parameters[] = {point, pointee_pointer_to(point)};
    const struct uniqtype *function = pointee_function_type(NULL, 2, parameters);
    EXPECT(same(pointee_pointer_to(function)->name, "void (*)(struct point, struct point *)"));
    EXPECT(function == pointee_function_type(NULL, 2, parameters));
    EXPECT(pointee_union_of(2, parameters) == pointee_union_of(2, parameters));
    const struct uniqtype *matrix = pointee_type_named("int[2][3]");
    EXPECT(matrix && matrix->length == 2 && matrix->target->length == 3 && matrix->size == 24);
    const struct uniqtype *with_bits = pointee_type_named("scale");
    EXPECT(with_bits && pointee_member(with_bits, "more")->bit_size == 5 && pointee_member(with_bits, "more")->bit_offset == 3);
    EXPECT(!pointee_type_named("struct none_such"));
}

/* A pool: objects of sixteen bytes, one after the other. */
struct pool { char *start; size_t used; };
static struct pool pool;

static int ask_pool(const struct pointee_allocator *self, const void *address, struct pointee_answer *answer)
{
    size_t at = (size_t)((const char *)address - pool.start);
    (void)self;
    if (at >= pool.used)
        return 0;
    answer->kind = POINTEE_HEAP;
    answer->base = pool.start + at / 16 * 16;
    answer->size = 16;
    answer->type = pointee_type_named("struct point");
    return 1;
}

static void *returned;
static void free_into_pool(void *object) { returned = object; }

static void registered(void)
{
    static const struct pointee_allocator allocator = {"pool", "free_into_pool", free_into_pool, ask_pool};
    pool.start = (char *)malloc(4096);
    pool.used = 160;
    EXPECT(pointee_add_allocator(&allocator, pool.start, 4096) == (is_with ? POINTEE_YES : POINTEE_DONT_KNOW));
    if (!is_with)
        return;
    struct pointee_answer answer;
    EXPECT(pointee_what(pool.start + 37, &answer) && answer.base == pool.start + 32);
    EXPECT(answer.allocator == &allocator && is_a(pool.start + 32, "struct point") == POINTEE_YES);
    EXPECT(pointee_what_around(pool.start + 37, 1, &answer) && answer.base == pool.start && answer.size == 4096);
    EXPECT(pointee_what(pool.start + 200, &answer) && answer.base == pool.start);
    EXPECT(pointee_free(pool.start + 37) == POINTEE_YES && returned == pool.start + 32);
    EXPECT(pointee_remove_allocator(pool.start) == POINTEE_YES);
    EXPECT(pointee_what(pool.start + 37, &answer) && answer.base == pool.start);
}

static void *in_thread(void *unused)
{
    struct thing mine;
    memset(&mine, 0, sizeof mine);
    CHECK(&mine.many[0], &mine, POINTEE_LOCAL, "mine", "struct thing", "int");
    CHECK(&of_thread, &of_thread, POINTEE_THREAD, "of_thread", "struct point", "int");
    return unused;
}

/* What lies on another thread's stack is told by the thread, what in its thread-local block by name. */
static pthread_barrier_t both;
static struct { struct thing *local; struct point *own; char *signal_stack; uint32_t number; } of_other;

static void set_signal_stack(char *memory, size_t size)
{
    stack_t stack;
    memset(&stack, 0, sizeof stack);
    stack.ss_sp = memory;
    stack.ss_size = size;
    EXPECT(!sigaltstack(&stack, NULL));
}

static void *other_thread(void *signal_stack)
{
    struct thing mine;
    memset(&mine, 0, sizeof mine);
    of_other.local = &mine;
    of_other.own = &of_thread;
    of_other.signal_stack = (char *)signal_stack;
    of_other.number = (uint32_t)syscall(SYS_gettid);
    set_signal_stack(of_other.signal_stack, 1 << 16);
    pthread_barrier_wait(&both);
    pthread_barrier_wait(&both);
    return mine.next;
}

static void others(void)
{
    pthread_t thread;
    pthread_barrier_init(&both, NULL, 2);
    pthread_create(&thread, NULL, other_thread, malloc(1 << 16));
    pthread_barrier_wait(&both);
    struct pointee_answer answer;
    int is_known = pointee_what(&of_other.local->many[1], &answer);
    EXPECT(is_known == is_with && (!is_with || (answer.kind == POINTEE_STACK && answer.thread == of_other.number)));
    EXPECT(!is_with || (answer.base < (void *)of_other.local && (char *)answer.base + answer.size > (char *)of_other.local));
    CHECK(&of_other.own->y, of_other.own, POINTEE_THREAD, "of_thread", "struct point", "int");
    CHECK(of_other.signal_stack + 300, of_other.signal_stack, POINTEE_SIGNAL_STACK, NULL, "(no type)", "(no type)");
    is_known = pointee_what(of_other.signal_stack + 300, &answer);
    EXPECT(is_known == is_with && (!is_with || answer.thread == of_other.number));
    is_known = pointee_what_around(of_other.signal_stack + 300, 1, &answer);
    EXPECT(is_known == is_with && (!is_with || (answer.kind == POINTEE_HEAP && answer.size == 1 << 16)));
    pthread_barrier_wait(&both);
    pthread_join(thread, NULL);
    /* The kernel's last steps for a thread come after it was joined. */
    for (int look = 0; look < 1000 && is_with; look++) {
        if (pointee_what(of_other.signal_stack, &answer) && answer.kind == POINTEE_HEAP)
            break;
        usleep(1000);
    }
    EXPECT(!is_with || answer.kind == POINTEE_HEAP);
    free(of_other.signal_stack);
}

/* Everything a type leads to is there when it is handed out, whoever asks first. */
static int is_whole(const struct uniqtype *type, int depth)
{
    if (!type || !type->name || !*type->name)
        return 0;
    if (type->kind == UNIQTYPE_POINTER || type->kind == UNIQTYPE_ARRAY)
        return type->target && (!depth || is_whole(type->target, depth - 1));
    for (uint32_t at = 0; at < type->members_len; at++)
        if (!type->members[at].name || (depth && type->kind != UNIQTYPE_ENUM && !is_whole(type->members[at].type, depth - 1)))
            return 0;
    return 1;
}

enum { RUSHING = 8 };
static pthread_barrier_t rush;
static FILE *streams[2];
static const struct uniqtype *found_in_rush[RUSHING];

static void *in_rush(void *number)
{
    pthread_barrier_wait(&rush);
    const struct uniqtype *type = pointee_type(&streams[(size_t)number % 2]);
    if (is_with && type && !is_whole(type, 6))
        type = NULL;
    found_in_rush[(size_t)number] = type;
    return NULL;
}

static void all_at_once(void)
{
    pthread_t threads[RUSHING];
    pthread_barrier_init(&rush, NULL, RUSHING);
    for (size_t n = 0; n < RUSHING; n++)
        pthread_create(&threads[n], NULL, in_rush, (void *)n);
    for (size_t n = 0; n < RUSHING; n++)
        pthread_join(threads[n], NULL);
    for (size_t n = 0; is_with && n < RUSHING; n++)
        EXPECT(found_in_rush[n] && found_in_rush[n] == pointee_type(streams));
}

static void handler(int number)
{
    struct point inside = {number, number};
    CHECK(&inside.y, &inside, POINTEE_LOCAL, "inside", "struct point", "int");
    CHECK(&a_static, &a_static, POINTEE_STATIC, "a_static", "struct thing", "char");
}

static struct thing *volatile interrupted;

static void elsewhere(int number)
{
    struct point inside = {number, number};
    CHECK(&inside.y, &inside, POINTEE_LOCAL, "inside", "struct point", "int");
    CHECK(&interrupted->many[2].x, interrupted, POINTEE_LOCAL, "under_the_signal", "struct thing", "int");
}

__attribute__((noinline)) static void on_signal_stack(void)
{
    struct thing under_the_signal;
    struct sigaction action;
    static char idle[1 << 16];
    memset(&under_the_signal, 0, sizeof under_the_signal);
    memset(&action, 0, sizeof action);
    interrupted = &under_the_signal;
    set_signal_stack(idle, sizeof idle);
    action.sa_handler = elsewhere;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR2, &action, NULL);
    raise(SIGUSR2);
    CHECK(idle + 100, idle, POINTEE_SIGNAL_STACK, NULL, "(no type)", "(no type)");
}

#ifdef __cplusplus
struct shape { virtual ~shape() {} int id; };
struct circle : shape { double radius; };

__attribute__((noinline)) static void objects()
{
    circle *round = new circle;
    point *points = new point[5];
    CHECK(&round->radius, round, POINTEE_HEAP, NULL, "struct circle", "double");
    CHECK(&points[2].y, points, POINTEE_HEAP, NULL, "struct point[]", "int");
    int yes = is_with ? POINTEE_YES : POINTEE_DONT_KNOW;
    EXPECT(is_a(round, "circle") == yes && is_a(round, "shape") == yes && is_a(points, "point") == yes);
    EXPECT(!is_with || same(pointee_free_name(round), "operator delete"));
    EXPECT(!is_with || same(pointee_free_name(points), "operator delete[]"));
    /* Linked statically, what nobody names is not there to be called. */
    void (*volatile freeing)(void *) = operator delete[];
    EXPECT(pointee_free(points) == yes && freeing);
}
#else
static void objects(void) {}
#endif

int main(int argc, char **argv)
{
    pthread_t thread;
    is_with = argc > 1 && !strcmp(argv[1], "with");
    EXPECT(pointee_is_there() == is_with);
    all_at_once();
    blocks();
    statics_and_locals(argc);
    carved(argc + 6);
    rest();
    made_types();
    registered();
    objects();
    pthread_create(&thread, NULL, in_thread, NULL);
    pthread_join(thread, NULL);
    others();
    on_signal_stack();
    signal(SIGUSR1, handler);
    raise(SIGUSR1);
#ifndef STATIC
    for (int round = 0; argc > 2 && round < 3; round++) {
        void *library = dlopen(argv[2], RTLD_NOW);
        const struct uniqtype *(*its)(void) = NULL;
        *(void **)&its = library ? dlsym(library, "type_of_the_library") : NULL;
        EXPECT(its && !!its() == is_with && its() == pointee_type_named("struct point"));
        struct point *(*its_own)(void) = NULL;
        *(void **)&its_own = library ? dlsym(library, "thread_local_of_the_library") : NULL;
        if (its_own)
            CHECK(&its_own()->y, its_own(), POINTEE_THREAD, "of_the_librarys_thread", "struct point", "int");
        EXPECT(dlsym(RTLD_DEFAULT, "__uniqtype__thing") == (const void *)pointee_type_named("struct thing"));
        EXPECT(!dlsym(RTLD_DEFAULT, "__uniqtype__none_such") && dlsym(RTLD_NEXT, "malloc") == dlsym(RTLD_DEFAULT, "malloc"));
        EXPECT(!handle && (!is_with || (pointee_type(&handle)->target == pointee_type_named("struct opaque")
                                        && pointee_type(&handle)->target->size == 24)));
        if (library)
            dlclose(library);
    }
#endif
    printf("end %d\n", wrong);
    fflush(stdout);
    getchar();
    return wrong != 0;
}
