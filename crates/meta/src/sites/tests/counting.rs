//! Pools whose cursor is a number, put into their users by the compiler or the preprocessor, and numbers that are none.

use super::{DebugFiles, HEAD, LEVELS, Options, compile, described, infer, read_facts, site_flags};

/// What is carved out in each of the functions `users`, compiled in all ways that put the pool's code there.
fn check(name: &str, levels: &[&str], source: &str, users: &[(&str, &str)]) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        sources: false,
        ..Options::default()
    };
    let source = format!("{HEAD}{source}");
    for compiler in ["gcc", "clang"] {
        for level in levels {
            let elf = compile(folder.path(), name, compiler, level, &source);
            let facts = read_facts(&elf, &DebugFiles::inside(&elf));
            let found = infer(&elf, &facts, &options);
            for (user, expect) in users {
                let function = facts.functions.iter().find(|it| it.name == *user);
                let ranges = &function.expect("compiled").ranges;
                let is_here = |at: u64| ranges.iter().any(|(from, to)| (*from..*to).contains(&at));
                let carved = found.sites.iter();
                let carved = carved.filter(|site| site.flags & site_flags::NO_CALL != 0);
                let carved = carved.filter(|site| is_here(site.call));
                let mut here: Vec<String> = carved.map(|site| described(&facts, site)).collect();
                here.dedup();
                let writes = found.cursor_writes.iter();
                let is_told = writes.into_iter().any(|write| is_here(write.address));
                let expect: Vec<&str> = expect.split_terminator(", ").collect();
                let what = format!("{name} {compiler} {level} {user}");
                assert_eq!(
                    here, expect,
                    "{what}: {:#?} {:#?}",
                    found.sites, found.cursor_writes
                );
                assert_eq!(
                    is_told,
                    !expect.is_empty(),
                    "{what}: {:#?}",
                    found.cursor_writes
                );
            }
        }
    }
}

const INLINED: [&str; 3] = ["-O1", "-O2", "-O3"];

/// Users of `take(POOL, n)`.
const USERS: &str = "struct node *head;
    struct node *rows;
    struct pair *last;
    void push(struct pool *p, long key) {
        struct node *n = take(p, sizeof(struct node));
        n->next = head; n->key = key; head = n;
    }
    struct pair *couple(struct pool *p, struct node *a, struct node *b) {
        struct pair *pair = take(p, sizeof(struct pair));
        pair->first = a; pair->second = b; pair->name = 0;
        return pair;
    }
    void row(struct pool *p, int n) {
        struct node *all = take(p, n * sizeof(struct node));
        memset(all, 0, n * sizeof(struct node));
        rows = all;
    }";

const TYPES: [(&str, &str); 3] = [
    ("push", "Whole struct node"),
    ("couple", "Whole struct pair"),
    ("row", "Element struct node"),
];

#[test]
fn of_a_pointer_and_a_number() {
    let pool = "struct pool { char *base; size_t used, size; };
        void start(struct pool *p, size_t size) { p->base = malloc(size); p->used = 0; p->size = size; }
        void reset(struct pool *p) { p->used = 0; }
        void more(struct pool *p, size_t n);
        static inline __attribute__((always_inline)) void *take(struct pool *p, size_t n) {
            n = (n + 7) & ~(size_t)7;
            if (p->size - p->used < n) more(p, n);
            void *block = p->base + p->used;
            p->used += n;
            return block;
        }";
    check("pointer.c", &INLINED, &format!("{pool}{USERS}"), &TYPES);
    // As it is with other words.
    let void = pool.replace("char *base", "void *base");
    check("void.c", &INLINED, &format!("{void}{USERS}"), &TYPES);
    let narrow = pool.replace("size_t used, size;", "unsigned used, size;");
    check("narrow.c", &INLINED, &format!("{narrow}{USERS}"), &TYPES);
}

#[test]
fn of_an_array_in_the_pool() {
    let pool = "struct pool { struct pool *next; size_t used; char bytes[4000]; };
        struct pool *new_pool(struct pool *next) {
            struct pool *p = malloc(sizeof(struct pool));
            p->next = next; p->used = 0;
            return p;
        }
        static inline __attribute__((always_inline)) void *take(struct pool *p, size_t n) {
            if (p->used + n > sizeof p->bytes) abort();
            void *block = p->bytes + p->used;
            p->used += (n + 7) & ~(size_t)7;
            return block;
        }";
    check("array.c", &INLINED, &format!("{pool}{USERS}"), &TYPES);
    let flexible = pool.replace("char bytes[4000];", "unsigned char bytes[];");
    let flexible = flexible.replace("sizeof p->bytes", "4000");
    check(
        "flexible.c",
        &INLINED,
        &format!("{flexible}{USERS}"),
        &TYPES,
    );
}

#[test]
fn of_a_variable() {
    let pool = "struct pool;
        static char arena[1 << 16] __attribute__((aligned(16)));
        static size_t used;
        static inline __attribute__((always_inline)) void *take(struct pool *p, size_t n) {
            size_t start = (used + 15) & ~(size_t)15;
            if (start + n > sizeof arena) return 0;
            used = start + n;
            return arena + start;
        }
        void reset(void) { used = 0; }";
    check("variable.c", &INLINED, &format!("{pool}{USERS}"), &TYPES);
    let record = "struct pool;
        static struct { int count; int used; long words[4096]; } all;
        static inline __attribute__((always_inline)) void *take(struct pool *p, size_t n) {
            int words = (n + sizeof(long) - 1) / sizeof(long);
            if (all.used + words > 4096) abort();
            void *block = &all.words[all.used];
            all.used += words;
            all.count++;
            return block;
        }";
    check("record.c", &INLINED, &format!("{record}{USERS}"), &TYPES);
}

/// No function at all: only that what is kept is as long as the number grows tells.
#[test]
fn of_a_macro() {
    let source = "struct pool { char *base; unsigned used, size; };
        void start(struct pool *p) { p->base = malloc(4096); p->used = 0; p->size = 4096; }
        #define TAKE(to, p) do { \\
            if ((p)->used + sizeof *(to) > (p)->size) abort(); \\
            (to) = (void *)((p)->base + (p)->used); \\
            (p)->used += sizeof *(to); \\
        } while (0)
        struct node *head;
        void push(struct pool *p, long key) {
            struct node *n;
            TAKE(n, p);
            n->next = head; n->key = key; head = n;
        }
        struct pair *last;
        void couple(struct pool *p, struct node *a) {
            TAKE(last, p);
            last->first = a; last->second = a;
        }";
    let users = [
        ("push", "Whole struct node"),
        ("couple", "Whole struct pair"),
    ];
    check("macro.c", &LEVELS, source, &users);
}

#[test]
fn numbers_that_are_no_cursors() {
    let nothing = [("use", "")];
    let rows = [
        (
            "A text that grows, of what is reallocated.",
            "struct text { char *base; size_t used, size; };
            static inline char *room(struct text *t, size_t n) {
                if (t->used + n > t->size) t->base = realloc(t->base, t->size = (t->used + n) * 2);
                char *at = t->base + t->used;
                t->used += n;
                return at;
            }
            struct node *head;
            void use(struct text *t, const char *s) {
                memcpy(room(t, strlen(s)), s, strlen(s));
                struct node *n = (struct node *)room(t, sizeof(struct node));
                n->key = 1; head = n;
            }",
        ),
        (
            "A message that is put together.",
            "struct header { int kind, size; struct node *of; };
            struct message { unsigned used; char bytes[1000]; struct header *last; };
            void use(struct message *m, const char *s, struct node *of) {
                if (m->used + sizeof(struct header) > sizeof m->bytes) abort();
                struct header *h = (struct header *)(m->bytes + m->used);
                m->used += sizeof(struct header);
                h->kind = 1; h->size = 4; h->of = of;
                m->last = h;
                memcpy(m->bytes + m->used, s, 4);
                m->used += 4;
            }",
        ),
        (
            "A stack.",
            "struct stack { char *base; size_t used, size; };
            void start(struct stack *p) { p->base = malloc(4096); p->used = 0; p->size = 4096; }
            struct node *top;
            void use(struct stack *s, long key) {
                if (s->used + sizeof(struct node) > s->size) abort();
                struct node *n = (void *)(s->base + s->used);
                s->used += sizeof(struct node);
                n->next = top; n->key = key; top = n;
            }
            long pop(struct stack *s) {
                long key = top->key;
                top = top->next;
                s->used -= sizeof(struct node);
                return key;
            }",
        ),
        (
            "A ring.",
            "static char ring[4096];
            static size_t used;
            struct node *newest;
            void use(long key) {
                if (used + sizeof(struct node) > sizeof ring) used = 0;
                struct node *n = (void *)(ring + used);
                used += sizeof(struct node);
                n->next = newest; n->key = key; newest = n;
            }",
        ),
        (
            "What is read.",
            "struct file { char *base; size_t used, size; };
            void start(struct file *p, size_t n) { p->base = malloc(n); p->used = 0; p->size = fread(p->base, 1, n, stdin); }
            static inline void *get(struct file *f, size_t n) {
                if (f->size - f->used < n) return 0;
                void *p = f->base + f->used;
                f->used += n;
                return p;
            }
            struct node *found;
            long use(struct file *f) {
                struct node *n = get(f, sizeof(struct node));
                if (!n || n->key != 17) return 0;
                found = n;
                return n->key;
            }",
        ),
        (
            "Records of an array, of which some are taken: its type says what they are.",
            "struct table { struct node *nodes; size_t used, size; };
            void start(struct table *t) { t->nodes = malloc(100 * sizeof(struct node)); t->used = 0; t->size = 100; }
            struct node *newest;
            void use(struct table *t, long key) {
                if (t->used == t->size) abort();
                struct node *n = &t->nodes[t->used++];
                n->next = newest; n->key = key; newest = n;
            }",
        ),
    ];
    for (what, source) in rows {
        println!("{what}");
        check("none.c", &LEVELS, source, &nothing);
    }
}
