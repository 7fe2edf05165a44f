//! What is no answer though one type is left, and what the text of a size says by itself.

use super::{DebugFiles, read_facts};
use super::{HEAD, Options, Verdict, check, check_at, check_with, compile, infer, line_of};

fn with_sources(name: &str, source: &str) {
    check_with(name, "gcc", &format!("{HEAD}{source}"), &Options::default());
}

#[test]
fn an_arm_that_nothing_names_alone() {
    const SOURCE: &str = "#include <stdlib.h>
        struct two { int a, b; };
        struct four { int a, b, c, d; };
        union place { void *any; struct two *two; struct four *four; } place, *places;
        union node { int kind; struct { int kind; void *left, *right; } pair; char wide[64]; };
        struct tree { union { union node *node; struct four *four; } of; } *trees;
        void open(void) { place.any = malloc(sizeof(double)); } // weak
        void cut(struct tree *tree) { tree->of.node = malloc(16); } // answered
        void part(struct tree *tree) {
            union node *node = malloc(16); // weak
            node->kind = 3; tree->of.node = node;
        }
        ";
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        sources: false,
        ..Options::default()
    };
    for level in ["-O0", "-O2"] {
        let elf = compile(folder.path(), "arm.c", "gcc", level, SOURCE);
        let facts = read_facts(&elf, &DebugFiles::inside(&elf));
        let found = infer(&elf, &facts, &options);
        for (line, text) in (1..).zip(SOURCE.lines()) {
            if let Some((_, expect)) = text.split_once("// ") {
                let sites = found.sites.iter();
                let here = sites.filter(|site| line_of(&facts, site.call) == line);
                let verdicts: Vec<_> = here.map(|site| site.verdict).collect();
                let expect = match expect {
                    "weak" => Verdict::Conflicting,
                    _ => Verdict::Single,
                };
                assert_eq!(verdicts, [expect], "{level} line {line}: {found:#?}");
            }
        }
    }
}

#[test]
fn something_derived_has_just_those_bytes() {
    check(
        "derived.c",
        "struct base { struct base *next; long key; };
        struct derived { struct base base; long more; };
        struct base *list;
        struct derived *last;
        void derived(void) {
            list = malloc(sizeof(struct derived)); //= Base struct base
        }
        void buffer(void) {
            list = malloc(sizeof(struct base) + 100); //= Header struct base
        }",
    );
}

#[test]
fn a_size_in_text_of_digits() {
    with_sources(
        "digits.c",
        "char *digits, *where;
        void number(void) {
            digits = malloc(3 * sizeof(int) + 1); //= Characters char
        }
        void numbers(int n) {
            where = malloc(n * sizeof(char *)); //= Characters char
        }",
    );
}

#[test]
fn a_size_that_a_variable_brings() {
    with_sources(
        "brought.c",
        "void *kept[4];
        struct node *nodes;
        struct pair *pairs;
        void array(size_t n) {
            size_t size = n * sizeof(struct node);
            kept[0] = malloc(size); //= Element struct node
        }
        void header(size_t n) {
            size_t size = 0;
            size = sizeof(struct pair) + n;
            kept[1] = malloc((size_t)size); //= Header struct pair
        }
        void grown(size_t n) {
            size_t size = sizeof(struct pair);
            if (n > 3) size += n;
            kept[2] = malloc(size); //= opaque
        }",
    );
}

#[test]
fn a_size_rounded_up() {
    with_sources(
        "rounded.c",
        "#define ALIGN(n) (((n) + 4 - 1) & ~(4 - 1))
        #define LENGTH(n) (ALIGN(sizeof(struct note)) + (n))
        struct note { unsigned short length, type; };
        struct note *held;
        void note(unsigned n) {
            held = malloc(LENGTH(n)); //= Header struct note
        }",
    );
}

#[test]
fn a_call_made_for_one_and_for_many() {
    check_at(
        &["-O2", "-O3"],
        "many.c",
        "gcc",
        &format!(
            "{HEAD}static inline struct node *many(size_t n) {{
            return malloc(n * sizeof(struct node)); //= Element struct node
        }}
        struct node *first, *others;
        void one(void) {{ first = many(1); }}
        void all(size_t n) {{ others = many(n); }}"
        ),
        &Options {
            sources: false,
            ..Options::default()
        },
    );
}

#[test]
fn room_in_a_chunk_that_is_counted_down() {
    check_at(
        &["-O2"],
        "chunk.c",
        "gcc",
        &format!(
            "{HEAD}struct chunk {{ size_t left; void *memory; }};
        __attribute__((noinline)) static void *room(struct chunk *c, size_t n) {{
            n = (n + 7) & ~(size_t)7;
            if (n > c->left) {{
                c->memory = malloc(4096);
                if (!c->memory) return 0;
                memset((char *)c->memory, 0, 4096);
                c->left = 4096;
            }}
            c->left -= n;
            return (char *)c->memory + c->left;
        }}
        struct node *one(struct chunk *c) {{
            struct node *n = room(c, sizeof *n); //= Whole struct node
            n->key = 3;
            return n;
        }}
        struct pair *other(struct chunk *c) {{
            struct pair *p = room(c, sizeof *p); //= Whole struct pair
            p->name = 0;
            return p;
        }}"
        ),
        &Options {
            sources: false,
            ..Options::default()
        },
    );
}

/// Nodes of a tree are kept as `void *`, and what is returned is a leaf.
#[test]
fn what_is_returned_of_what_is_kept_untyped() {
    check_at(
        &["-O1", "-O2", "-O3"],
        "tree.c",
        "gcc",
        "#include <stdlib.h>
        struct tree { void *root; unsigned char depth, bits; };
        extern unsigned long *new_leaf(struct tree *);
        unsigned long *leaf(struct tree *tree, unsigned long key) {
            void **node = &tree->root;
            for (unsigned char depth = 0; depth <= tree->depth; depth++) {
                if (!*node)
                    *node = depth == tree->depth ? (void *)new_leaf(tree) :
                        calloc(1UL << tree->bits, 1); //= opaque
                if (depth == tree->depth) break;
                node = (void **)*node + (key >> depth & 3);
            }
            return (unsigned long *)*node;
        }",
        &Options {
            sources: false,
            ..Options::default()
        },
    );
}

/// The compiler throws the store away, and with it all that it tells.
#[test]
fn parentheses_that_a_macro_brings() {
    with_sources(
        "macro.c",
        "#define NEW(n) (get((size_t)(n)))
        __attribute__((noinline)) void *get(size_t n) {
            return malloc(n); //= wrapper
        }
        struct text { char *base, *end; };
        static struct text *create(void) {
            struct text *text = malloc(sizeof(struct text)); //= Whole struct text
            if (text && (text->base = text->end = NEW(24)) == 0) { //= Characters char
                free(text);
                text = 0;
            }
            return text;
        }
        struct text *renew(char *value) {
            struct text *text = create();
            text->base = value;
            text->end = value + strlen(value);
            return text;
        }",
    );
}

/// The line is no number of objects, though an inlined function is given it beside their size.
#[test]
fn a_line_number_that_a_macro_hands_on() {
    with_sources(
        "line.c",
        "#define MAKE(p, type, n) ((p) = (type)make((size_t)(n), __LINE__))
        static inline __attribute__((always_inline)) void *make(size_t n, int line) {
            void *p = malloc(n); //= Whole struct node
            if (!p) exit(line);
            return p;
        }
        struct node *head;
        void one(void) {
            MAKE(head, struct node *, sizeof(struct node));
        }",
    );
}

/// The library's function has one argument, a text.
#[test]
fn a_function_that_is_the_librarys_by_name_only() {
    const SOURCE: &str = "#include <stdio.h>
        __attribute__((noinline)) char *readline(FILE *from, char *room, size_t n) {
            return fgets(room, n, from);
        }
        char *first(FILE *from, char *room) { return readline(from, room, 80); }
        ";
    let folder = tempfile::tempdir().expect("a folder");
    let elf = compile(folder.path(), "own.c", "gcc", "-O1", SOURCE);
    let facts = read_facts(&elf, &DebugFiles::inside(&elf));
    let found = infer(&elf, &facts, &Options::default());
    assert!(found.sites.is_empty(), "{found:#?}");
}
