//! Blocks that no call of an allocator hands out: on the stack, and of pools.

use super::{DebugFiles, HEAD, Options, check, check_at, check_with, compile, infer, read_facts};

const STACK: &str = "#include <alloca.h>
    extern void see(void *), count(int *);
    int rows(int n) {
        struct node all[n]; //= Element struct node
        int marks[n + 1]; //= Element int
        see(all); count(marks);
        return marks[0];
    }
    int text(size_t n, const char *from) {
        char *copy = alloca(n + 1); //= Characters char
        memcpy(copy, from, n + 1);
        see(copy);
        return copy[0];
    }
    int pointers(size_t n) {
        struct node **list = alloca(n * sizeof *list); //= Element struct node *
        list[0] = 0;
        see(list);
        return list[1] == 0;
    }";

#[test]
fn on_the_stack() {
    let source = format!("{HEAD}{STACK}");
    let options = Options {
        sources: false,
        ..Options::default()
    };
    for compiler in ["gcc", "clang"] {
        check_with("stack.c", compiler, &source, &options);
    }
}

const POOL: &str = "struct chunk { struct chunk *next; char *free, *end; long space[]; };
    struct pool { struct chunk *first; };
    static __attribute__((noinline)) void more(struct pool *p, size_t n) {
        struct chunk *c = malloc(sizeof(struct chunk) + n + 4096);
        c->free = (char *)c->space; c->end = c->free + n + 4096;
        c->next = p->first; p->first = c;
    }
    static inline __attribute__((always_inline)) void *take(struct pool *p, size_t n) {
        if (!p->first || (size_t)(p->first->end - p->first->free) < n) more(p, n);
        void *block = p->first->free;
        p->first->free += n; //= Whole struct pair
        return block;
    }
    __attribute__((noinline)) void *pool_alloc(struct pool *p, size_t n) {
        return take(p, (n + 7) & ~(size_t)7);
    }
    __attribute__((noinline)) void *pool_zeroed(struct pool *p, size_t n) {
        void *block = pool_alloc(p, n); //= wrapper
        return memset(block, 0, n);
    }
    __attribute__((noinline)) char *pool_copy(struct pool *p, const char *s) {
        size_t n = strlen(s) + 1;
        return memcpy(pool_alloc(p, n), s, n); //= wrapper
    }
    struct node *head;
    void push(struct pool *p, long key, struct pair *of) {
        struct node *n = pool_alloc(p, sizeof(struct node)); //= Whole struct node
        n->next = head; n->key = key; head = n;
        of->second = pool_zeroed(p, 3 * sizeof(struct node)); //= Element struct node
        of->name = pool_copy(p, of->name); //= Characters char
    }
    struct pair *last;
    void inlined(struct pool *p) {
        struct pair *one = take(p, sizeof(struct pair));
        one->first = head; last = one;
    }";

#[test]
fn of_a_pool() {
    check("pool.c", POOL);
}

#[test]
fn of_a_pool_that_counts() {
    check(
        "counts.c",
        "struct arena { struct arena *next; size_t size, used; };
        static struct arena *top;
        __attribute__((noinline)) void *arena_alloc(size_t n) {
            n = (n + 15) & -16;
            if (!top || top->size - top->used < n) {
                struct arena *a = malloc(sizeof(struct arena) + n + 8192);
                a->next = top; a->size = n + 8192; a->used = 0; top = a;
            }
            void *block = (char *)(top + 1) + top->used;
            top->used += n;
            return block;
        }
        struct node *head;
        void push(long key) {
            struct node *n = arena_alloc(sizeof(struct node)); //= Whole struct node
            n->next = head; n->key = key; head = n;
        }",
    );
}

/// What only reads moves a pointer just so.
#[test]
fn a_reader_is_no_pool() {
    let source = format!(
        "{HEAD}struct reader {{ char *at, *end; }};
        __attribute__((noinline)) void *get(struct reader *r, size_t n) {{
            void *p = r->at;
            if ((size_t)(r->end - r->at) < n) return 0;
            r->at += n;
            return p;
        }}
        long key(struct reader *r) {{
            struct node *n = get(r, sizeof(struct node));
            return n ? n->key : 0;
        }}"
    );
    let folder = tempfile::tempdir().expect("a folder");
    for level in ["-O0", "-O2"] {
        let elf = compile(folder.path(), "reader.c", "gcc", level, &source);
        let facts = read_facts(&elf, &DebugFiles::inside(&elf));
        let found = infer(&elf, &facts, &Options::default());
        assert!(found.sites.is_empty(), "{level}: {found:#?}");
    }
}

/// The blocks of what is reallocated would move.
#[test]
fn a_buffer_that_grows_is_no_pool() {
    let source = format!(
        "{HEAD}struct buffer {{ char *data; size_t size, used; }};
        static int grow(struct buffer *b, size_t n) {{
            char *data = realloc(b->data, b->used + n);
            if (!data) return -1;
            b->data = data; b->size = b->used + n;
            return 0;
        }}
        __attribute__((noinline)) void *reserve(struct buffer *b, size_t n) {{
            if (b->used + n > b->size && grow(b, n) != 0) return 0;
            void *p = b->data + b->used;
            b->used += n;
            return p;
        }}
        struct node *first;
        void add(struct buffer *b) {{ first = reserve(b, sizeof(struct node)); }}"
    );
    let folder = tempfile::tempdir().expect("a folder");
    for level in ["-O0", "-O2"] {
        let elf = compile(folder.path(), "buffer.c", "gcc", level, &source);
        let facts = read_facts(&elf, &DebugFiles::inside(&elf));
        let found = infer(&elf, &facts, &Options::default());
        let pools = found.wrappers.iter().filter(|wrapper| wrapper.is_pool);
        assert_eq!(pools.count(), 0, "{level}: {found:#?}");
    }
}

/// What grows an object of an obstack hands out a part of it, and no block.
#[test]
fn an_object_of_an_obstack_that_grows() {
    let source = "#include <stdlib.h>
        #include <string.h>
        #include <obstack.h>
        void _obstack_newchunk(struct obstack *o, int room) {
            char *chunk = malloc(room + 100);
            o->object_base = o->next_free = chunk;
            o->chunk_limit = chunk + room + 100;
        }
        char *more(struct obstack *o, int room) {
            obstack_make_room(o, room);
            char *start = obstack_next_free(o);
            obstack_blank_fast(o, room);
            return start;
        }
        void fill(struct obstack *o) { memset(more(o, 8), 0, 8); }";
    let folder = tempfile::tempdir().expect("a folder");
    let elf = compile(folder.path(), "grows.c", "gcc", "-O1", source);
    let facts = read_facts(&elf, &DebugFiles::inside(&elf));
    let found = infer(&elf, &facts, &Options::default());
    let callees: Vec<&str> = found.sites.iter().map(|site| &*site.callee).collect();
    assert_eq!(callees, ["malloc"], "{:#?}", found.wrappers);
}

/// How long an object of an obstack is, the write of its cursor does not tell.
#[test]
fn of_an_obstack() {
    let source = format!(
        "{HEAD}#include <obstack.h>
        #define obstack_chunk_alloc malloc
        #define obstack_chunk_free free
        struct node *head;
        void push(struct obstack *o, long key) {{
            struct node *n = obstack_alloc(o, sizeof(struct node)); //= Unknown struct node
            n->next = head; n->key = key; head = n;
        }}"
    );
    let options = Options {
        sources: false,
        ..Options::default()
    };
    check_at(&["-O1", "-O2"], "obstack.c", "gcc", &source, &options);
}

/// How a part of the program looks at it does not matter.
#[test]
fn an_array_of_variable_length_is_what_it_is_declared_to_be() {
    check(
        "declared.c",
        "__attribute__((noinline)) long sum(struct node *node) { return node->key + node->more[1]; }
        extern long take(void *, size_t);
        long bytes(unsigned n, const void *from) {
            unsigned char room[n]; //= Bytes unsigned char
            memcpy(room, from, n);
            return sum((struct node *)room) + take(room, n);
        }",
    );
}
