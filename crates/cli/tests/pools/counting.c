// Pools whose cursor is a number, in their users: each says on its own how many blocks it gave and how many are left. A text and a stack of the
// same shape are none.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node { struct node *next; long key; };
struct leaf { double weight; struct leaf *next; char name[8]; };
struct slot { struct slot *next; int a[6]; };
struct word { struct word *next; int length; };

static int given[4], left[4];

// The chunk is pointed to, and replaced when it is full.
struct chunk { char *base; size_t used, size; };
struct chunk chunk;
static inline __attribute__((always_inline)) void *of_chunk(size_t n) {
    n = (n + 7) & ~(size_t)7;
    if (chunk.size - chunk.used < n) {
        chunk.base = malloc(4096);
        chunk.size = 4096;
        chunk.used = 0;
    }
    void *block = chunk.base + chunk.used;
    chunk.used += n;
    return block;
}

// The chunk is an array in the pool, which is marked and released.
struct pool { struct pool *before; unsigned used; long count; unsigned char bytes[4000]; };
static inline __attribute__((always_inline)) void *of_pool(struct pool *p, size_t n) {
    if (p->used + n > sizeof p->bytes) abort();
    void *block = p->bytes + p->used;
    p->used += (n + 7) & ~(size_t)7;
    return block;
}

// The chunk is a variable, counted in words.
static long arena[1000];
static int words;
static inline __attribute__((always_inline)) void *of_arena(size_t n) {
    int more = (n + sizeof(long) - 1) / sizeof(long);
    if (words + more > (int)(sizeof arena / sizeof *arena)) return NULL;
    void *block = &arena[words];
    words += more;
    return block;
}

// No function at all.
struct store { struct store *next; unsigned used, size; char *text; };
#define TAKE(to, from) do { \
    if ((from)->used + sizeof *(to) > (from)->size) abort(); \
    (to) = (void *)((from)->text + (from)->used); \
    (from)->used += sizeof *(to); \
} while (0)

struct node *nodes;
struct leaf *leaves;
struct slot *slots;
struct word *words_of;

__attribute__((noinline)) void use_chunk(int i) {
    struct node *it = of_chunk(sizeof *it);
    it->next = nodes; it->key = i; nodes = it;
    given[0]++;
}

__attribute__((noinline)) void use_pool(struct pool *p, int i) {
    struct leaf *it = of_pool(p, sizeof *it);
    it->next = leaves; it->weight = i; it->name[0] = 0; leaves = it;
    given[1]++;
}

__attribute__((noinline)) void release(struct pool *p, unsigned mark) { p->used = mark; }

__attribute__((noinline)) void use_arena(int i) {
    struct slot *it = of_arena(sizeof *it);
    if (!it) return;
    it->next = slots; it->a[0] = i; slots = it;
    given[2]++;
}

__attribute__((noinline)) void use_store(struct store *s, int i) {
    struct word *it;
    TAKE(it, s);
    it->next = words_of; it->length = i; words_of = it;
    given[3]++;
}

struct text { char *base; size_t used, size; };
__attribute__((noinline)) void say(struct text *t, const char *s) {
    size_t n = strlen(s);
    if (t->used + n > t->size) t->base = realloc(t->base, t->size = 2 * t->size + n);
    memcpy(t->base + t->used, s, n);
    t->used += n;
}

struct stack { char *base; size_t used, size; struct node *top; };
__attribute__((noinline)) void push(struct stack *s, long key) {
    if (s->used + sizeof(struct node) > s->size) abort();
    struct node *n = (void *)(s->base + s->used);
    s->used += sizeof(struct node);
    n->next = s->top; n->key = key; s->top = n;
}
__attribute__((noinline)) void pop(struct stack *s) {
    s->top = s->top->next;
    s->used -= sizeof(struct node);
}

int main(void) {
    for (int i = 0; i < 1000; i++) use_chunk(i);
    left[0] = given[0];
    struct pool *pool = calloc(1, sizeof *pool);
    for (int i = 0; i < 30; i++) use_pool(pool, i);
    unsigned mark = pool->used;
    for (int i = 0; i < 40; i++) use_pool(pool, i);
    release(pool, mark);
    for (int i = 0; i < 20; i++) use_pool(pool, i);
    left[1] = given[1] - 40;
    for (int i = 0; i < 100; i++) use_arena(i);
    left[2] = given[2];
    struct store *store = calloc(1, sizeof *store);
    store->text = malloc(8000);
    store->size = 8000;
    for (int i = 0; i < 300; i++) use_store(store, i);
    left[3] = given[3];
    struct text text = {0};
    for (int i = 0; i < 50; i++) say(&text, "some words ");
    struct stack stack = {malloc(4096), 0, 4096, 0};
    for (int i = 0; i < 50; i++) push(&stack, i);
    for (int i = 0; i < 20; i++) pop(&stack);
    for (int i = 0; i < 4; i++) printf("%d %d ", given[i], left[i]);
    printf("%p %p %p %p\n", (void *)nodes, (void *)leaves, (void *)slots, (void *)words_of);
    fflush(stdout);
    getchar();
    return 0;
}
