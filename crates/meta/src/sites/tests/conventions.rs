//! What programs agree on with themselves: allocators of their own, arrays that grow, macros, kinds of records.

use super::{
    DebugFiles, HEAD, Options, check, check_at, check_with, compile, described, infer, read_facts,
    site_flags,
};

/// With the source text too.
fn check_read(name: &str, source: &str) {
    check_with(name, "gcc", &format!("{HEAD}{source}"), &Options::default());
}

/// Without the source text, where optimisation matters.
fn check_levels(levels: &[&str], name: &str, source: &str) {
    let options = Options {
        sources: false,
        ..Options::default()
    };
    check_at(levels, name, "gcc", &format!("{HEAD}{source}"), &options);
}

#[test]
fn beneath_a_malloc_of_its_own() {
    check(
        "beneath.c",
        "static char pool[1 << 20]; static size_t used;
        __attribute__((noinline)) static void *grab(const char *file, int line, size_t n) {
            if (used + n > sizeof pool) { puts(file); return 0; }
            void *p = pool + used; used += (n + 15) & -16; return p;
        }
        void *malloc(size_t n) { return grab(0, 0, n); }
        void *traced(size_t n, const char *file, int line) { return grab(file, line, n); }
        struct node *head;
        void push(void) {
            head = traced(sizeof(struct node), \"a\", 1); //= Whole struct node
        }",
    );
}

#[test]
fn an_element_of_what_grows() {
    check(
        "element.c",
        "struct list { void *items; size_t used, room, size; };
        __attribute__((noinline)) void *add(struct list *l) {
            if (l->used == l->room) {
                void *more = malloc(2 * l->room * l->size); //= wrapper
                memcpy(more, l->items, l->room * l->size);
                l->items = more; l->room *= 2;
            }
            return (char *)l->items + l->size * l->used++;
        }
        void note(struct list *l, char *name) {
            struct pair *p = add(l); //= Element struct pair
            p->first = 0; p->second = 0; p->name = name;
        }",
    );
}

#[test]
fn a_pool_is_no_base() {
    check(
        "pool.c",
        "struct pool { char *next, *end; struct pool *more; };
        __attribute__((noinline)) struct pool *create(size_t n) {
            struct pool *p = malloc(n);
            p->next = (char *)(p + 1); p->end = (char *)p + n; p->more = 0;
            return p;
        }
        struct pool *general;
        void start(int n) {
            general = create(4096); //= Header struct pool
            general->more = create(n); //= Header struct pool
        }",
    );
}

#[test]
fn an_arm_that_is_text() {
    check(
        "arm.c",
        "struct value { int kind; union { struct node *node; struct pair *pair; char *text; void (*call)(void); }; };
        void name(struct value *v, char *from, size_t n) {
            v->text = malloc(n + 1); //= Characters char
            memcpy(v->text, from, n);
        }",
    );
}

#[test]
fn a_kind_and_bytes_are_a_base() {
    check(
        "kinds.c",
        "struct any { unsigned short kind; char data[14]; };
        struct special { unsigned short kind, port; unsigned address; char zero[8]; };
        struct holder { struct any *any; } *holder;
        void set(int port) {
            struct special *s = malloc(sizeof *s); //= Whole struct special
            s->port = port; s->address = 0;
            holder->any = (struct any *)s;
        }",
    );
}

#[test]
fn text_that_is_written_at_once() {
    // Beyond that the length is known, and bytes are copied.
    check_levels(
        &["-O0", "-O1"],
        "text.c",
        "struct entry { void *key; };
        void keep(struct entry *e, const char *from) {
            e->key = strcpy(malloc(1 + strlen(from)), from); //= Characters char
        }",
    );
}

#[test]
fn through_a_pointer_to_a_function() {
    check(
        "through.c",
        "struct table { int (*take)(struct table *, struct node *); };
        int give(struct table *t) {
            return t->take(t, calloc(1, sizeof(struct node))); //= Whole struct node
        }",
    );
}

#[test]
fn at_least_one_byte() {
    check(
        "least.c",
        "__attribute__((noinline)) void *get(size_t n) { void *p = malloc(n); if (!p) abort(); return p; }
        static inline void *getn(size_t n, size_t s) { return get(n && s ? n * s : 1); }
        struct pair *pairs;
        void make(size_t n) {
            pairs = getn(n, sizeof(struct pair));
            pairs[0].name = get(n + 1); //= Characters char
        }",
    );
}

#[test]
fn a_macro_that_assigns() {
    check_read(
        "assigns.c",
        "struct value { int kind; union { struct node **nodes; struct pair **pairs; } u; };
        #define items u.nodes
        #define obtain(var, type, n) ((var) = (type)check(malloc((n) * sizeof(*(var))), #var))
        __attribute__((noinline)) void *check(void *p, const char *who) { if (!p) puts(who); return p; }
        void fill(struct value *v, int n) {
            obtain(v->items, struct node **, n); //= Element struct node *
        }",
    );
}

#[test]
fn a_size_that_is_handed_in() {
    check_read(
        "handed.c",
        "struct list { void *items; size_t room, size; }; struct pair *described;
        static inline __attribute__((always_inline)) int begin(struct list *l, size_t n, size_t size) {
            l->items = malloc(n * size); //= Element struct pair
            l->room = n; l->size = size; return l->items != 0; }
        int start(struct list *l) {
            return begin(l, 8, sizeof(struct pair));
        }",
    );
}

#[test]
fn a_header_by_offset() {
    check_read(
        "offset.c",
        "struct tree { int used; struct node *nodes[4]; };
        #define tree_size(n) ((int)(__builtin_offsetof(struct tree, nodes)) + (int)(sizeof(struct node *)) * (n))
        struct tree *grow(int n) {
            struct tree *t = malloc(tree_size(n)); //= Header struct tree + struct node *
            t->used = n;
            return t;
        }",
    );
}

#[test]
fn a_jump_has_stand_ins() {
    let source = format!(
        "{HEAD}
        __attribute__((noinline)) struct node *make(int k) {{
            if (k) puts(\"made\");
            return calloc(1, sizeof(struct node));
        }}
        long use(int k) {{ struct node *n = make(k); return n->key + 1; }}"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let elf = compile(folder.path(), "jump.c", "gcc", "-O2", &source);
    let facts = read_facts(&elf, &DebugFiles::inside(&elf));
    let found = infer(&elf, &facts, &Options::default());
    let told: Vec<(u16, String)> = found
        .sites
        .iter()
        .map(|site| {
            let kind = site.flags & (site_flags::TAIL | site_flags::STAND_IN);
            (kind, described(&facts, site))
        })
        .collect();
    let node = "Whole struct node".to_owned();
    assert!(told.contains(&(site_flags::TAIL, node.clone())), "{told:?}");
    assert!(told.contains(&(site_flags::STAND_IN, node)), "{told:?}");
}

#[test]
fn stepping_through_a_global_array() {
    check_levels(
        &["-O1", "-O2"],
        "stepping.c",
        "char *names[40];
        __attribute__((noinline)) void *must(size_t n) { void *p = malloc(n); if (!p) abort(); return p; }
        extern long length(int);
        void fill(void) {
            for (char **at = names; at < names + 40; at++)
                *at = must(length(at - names) + 1); //= Characters char
        }",
    );
}

/// What a parser passes on is a union and a number: the compiler keeps each in a register, and debug info states pieces.
#[test]
fn a_variable_in_pieces() {
    check_at(
        &["-O2"],
        "pieces.c",
        "gcc",
        "#include <stdlib.h>
        struct item { struct item *next; long a, b, c; };
        struct value { union { char *text; struct item *item; long n; } u; int line; long pad; };
        extern void fill(void *); extern int next(void); extern void at(int);
        void parse(void) {
            struct value value;
            value.line = next();
            value.u.item = calloc(1, sizeof(struct item)); //= Whole struct item
            fill(value.u.item);
            at(value.line);
        }",
        &Options {
            sources: false,
            ..Options::default()
        },
    );
}
