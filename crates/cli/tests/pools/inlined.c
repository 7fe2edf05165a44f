// Pools that nobody declares. Obstacks: their macros finish an object by moving object_base. A bump allocator in a function (found, and
// hooked), and the same in its callers (seen where they move the cursor). A reader of the same shape is none.
#include <obstack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define obstack_chunk_alloc malloc
#define obstack_chunk_free free

struct node { struct node *next; long key; };
struct leaf { double weight; struct node *of; char name[8]; };
struct slot { struct slot *next; int a[6]; };

static struct obstack fixed;
struct node *nodes;
struct leaf *leaves;
struct slot *slots;

struct pool { char *next, *end; struct pool *before; };
static struct pool *pool;

__attribute__((noinline)) static void grow(void) {
    struct pool *p = malloc(4096);
    p->before = pool;
    p->end = (char *)p + 4096;
    p->next = (char *)(p + 1);
    pool = p;
}

__attribute__((noinline)) void *bump(size_t n) {
    n = (n + 7) & -8;
    if (!pool || (size_t)(pool->end - pool->next) < n) grow();
    void *block = pool->next;
    pool->next += n;
    return block;
}

static inline __attribute__((always_inline)) void *bump_inline(size_t n) {
    n = (n + 7) & -8;
    if (!pool || (size_t)(pool->end - pool->next) < n) grow();
    void *block = pool->next;
    pool->next += n;
    return block;
}

struct reader { const char *at, *end; };
__attribute__((noinline)) const void *get(struct reader *r, size_t n) {
    const void *p = r->at;
    if ((size_t)(r->end - r->at) < n) return 0;
    r->at += n;
    return p;
}

__attribute__((noinline)) void use_bump(int n) {
    for (int i = 0; i < n; i++) {
        struct slot *o = bump(sizeof *o);
        o->next = slots;
        slots = o;
    }
}

__attribute__((noinline)) void use_inline(int n) {
    for (int i = 0; i < n; i++) {
        struct leaf *l = bump_inline(sizeof *l);
        l->of = nodes;
        leaves = l;
    }
}

__attribute__((noinline)) void push(struct obstack *o, long key) {
    struct node *n = obstack_alloc(o, sizeof *n);
    n->next = nodes;
    n->key = key;
    nodes = n;
}

int main(int argc, char **argv) {
    obstack_init(&fixed);
    struct obstack *made = malloc(sizeof *made);
    obstack_init(made);
    for (int i = 0; i < 100; i++) push(&fixed, i);
    void *mark = obstack_alloc(&fixed, 24);
    for (int i = 0; i < 50; i++) push(&fixed, i);
    obstack_free(&fixed, mark); // 51 in this chunk
    for (int i = 0; i < 1000; i++) push(made, i);
    void *before = obstack_alloc(&fixed, 8);
    for (int i = 0; i < 1000; i++) push(&fixed, i);
    obstack_free(&fixed, before); // 1001 in several
    obstack_grow(&fixed, "abcdef", 6);
    obstack_1grow(&fixed, 0);
    char *text = obstack_finish(&fixed);
    use_bump(300);
    use_inline(200);
    struct reader reader = {malloc(100), 0};
    reader.end = reader.at + 100;
    for (int i = 0; i < 10; i++) get(&reader, 8);
    printf("%p %p\n", (void *)nodes, (void *)text);
    return 0;
}
