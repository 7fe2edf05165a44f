//! Each row is a program with one hazard, compiled with gcc at several levels; the comment on a line
//! states what the allocations on that line must be found to be.

mod carving;
mod conventions;
mod copied;
mod counting;
mod ends;
mod handed_out;
mod parts;
mod pointers;
mod stated;
mod weak;

use super::{Options, Site, infer, spelled};
use crate::debug_files::DebugFiles;
use crate::dwarf::read_facts;
use crate::elf::Elf;
use crate::facts::Facts;
use pointee_model::evidence::Verdict;
use pointee_model::image::site_flags;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const LEVELS: [&str; 4] = ["-O0", "-O1", "-O2", "-O3"];

/// What `//=` comments say, by line.
fn expected(source: &str) -> Vec<(u32, &str)> {
    (1..)
        .zip(source.lines())
        .filter_map(|(line, text)| Some((line, text.split("//= ").nth(1)?.trim())))
        .collect()
}

fn described(facts: &Facts, site: &Site) -> String {
    if site.flags & site_flags::WRAPPER != 0 {
        return "wrapper".to_owned();
    }
    let name = |at| spelled(facts, at);
    let r#type = site.r#type.map_or_else(|| "?".to_owned(), name);
    let tail = site
        .tail
        .map_or_else(String::new, |at| format!(" + {}", name(at)));
    match site.r#type {
        Some(_) => format!("{:?} {type}{tail}", site.role),
        None => site.verdict.word().to_owned(),
    }
}

/// The line of a call, through inlined functions the innermost.
fn line_of(facts: &Facts, address: u64) -> u32 {
    let after = facts.lines.partition_point(|row| row.address <= address);
    after.checked_sub(1).map_or(0, |at| facts.lines[at].line)
}

fn compile(folder: &Path, name: &str, compiler: &str, level: &str, source: &str) -> Elf {
    let text = folder.join(name);
    let program = folder.join(format!("{name}{level}.so"));
    std::fs::write(&text, source).expect("the source is written");
    let output = Command::new(compiler)
        .args(["-g", level, "-fPIC", "-shared", "-w", "-o"])
        .args([&program, &text])
        .output()
        .expect("the compiler runs");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {level}: {message}");
    Elf::open(&program).expect("the compiler writes ELF")
}

fn check_with(name: &str, compiler: &str, source: &str, options: &Options) {
    check_at(&LEVELS, name, compiler, source, options);
}

fn check_at(levels: &[&str], name: &str, compiler: &str, source: &str, options: &Options) {
    let folder = tempfile::tempdir().expect("a folder");
    for level in levels {
        let elf = compile(folder.path(), name, compiler, level, source);
        let facts = read_facts(&elf, &DebugFiles::inside(&elf));
        let found = infer(&elf, &facts, options);
        for (line, expect) in expected(source) {
            let here: BTreeSet<String> = found
                .sites
                .iter()
                .filter(|site| line_of(&facts, site.call) == line)
                .map(|site| described(&facts, site))
                .collect();
            let all: Vec<&String> = here.iter().collect();
            assert_eq!(
                all,
                [expect],
                "{name} {level} line {line}: {:#?}",
                found.sites
            );
        }
    }
}

/// Without source text: what code and debug info alone tell.
fn check(name: &str, source: &str) {
    let options = Options {
        sources: false,
        ..Options::default()
    };
    check_with(name, "gcc", &format!("{HEAD}{source}"), &options);
}

const HEAD: &str = "#include <stdlib.h>
#include <string.h>
#include <stdio.h>
struct node { struct node *next; long key; int more[4]; };
struct pair { struct node *first, *second; char *name; };
";

#[test]
fn variable() {
    check(
        "variable.c",
        "long keep(void) {
            struct node *n = malloc(sizeof *n); //= Whole struct node
            n->key = 3; n->next = 0;
            return (long)n;
        }",
    );
}

#[test]
fn field() {
    check(
        "field.c",
        "void fill(struct pair *p) {
            p->second = malloc(sizeof(struct node)); //= Whole struct node
            p->name = malloc(strlen(p->name) + 1); //= Characters char
        }",
    );
}

#[test]
fn global() {
    check(
        "global.c",
        "struct node *head; struct pair table[4];
        void grow(int i) {
            head = malloc(sizeof(struct node)); //= Whole struct node
            table[i].second = calloc(10, sizeof(struct node)); //= Element struct node
        }",
    );
}

#[test]
fn tail_call() {
    check(
        "tail_call.c",
        "struct node *fresh(void) {
            return malloc(sizeof(struct node)); //= Whole struct node
        }",
    );
}

#[test]
fn spill() {
    check(
        "spill.c",
        "void use(void *, ...); void sink(struct node *, long, long, long, long, long, long);
        void spill(long a, long b, long c, long d, long e, long f) {
            struct node *n = malloc(sizeof *n); //= Whole struct node
            use(0, a, b); use(0, c, d); use(0, e, f);
            n->key = a + b + c + d + e + f;
            sink(n, a, b, c, d, e, f);
        }",
    );
}

#[test]
fn union_arm() {
    check(
        "union_arm.c",
        "struct value { int tag; union { struct node *node; struct pair *pair; char *text; } u; };
        void set(struct value *v) {
            v->u.node = malloc(sizeof(struct node)); //= Whole struct node
        }",
    );
}

#[test]
fn wrapper_of_wrapper() {
    check(
        "wrapper_of_wrapper.c",
        "static int calls;
        __attribute__((noinline)) void *must(size_t n) {
            void *p = malloc(n); //= wrapper
            if (!p) abort();
            return p;
        }
        __attribute__((noinline)) void *counted(size_t n) {
            calls++;
            return must(n); //= wrapper
        }
        void fill(struct pair *p) {
            p->first = counted(sizeof(struct node)); //= Whole struct node
        }",
    );
}

#[test]
fn no_wrapper() {
    check(
        "no_wrapper.c",
        "void *make(int key) {
            struct node *n = malloc(sizeof *n); //= Whole struct node
            n->key = key; n->next = 0;
            return n;
        }",
    );
}

#[test]
fn reallocation() {
    check(
        "reallocation.c",
        "struct list { struct pair *items; int count; };
        int grow(struct list *l) {
            void *more = realloc(l->items, (l->count + 1) * sizeof *l->items); //= Element struct pair
            if (!more) return 0;
            l->items = more; l->count++;
            return 1;
        }",
    );
}

#[test]
fn calloc_array() {
    check(
        "calloc_array.c",
        "struct pair *many(int n) {
            struct pair *all = calloc(n, sizeof *all); //= Element struct pair
            return all;
        }
        char **names(int n) {
            return calloc(n + 1, sizeof(char *)); //= Element char *
        }",
    );
}

#[test]
fn flexible_array() {
    check(
        "flexible_array.c",
        "struct blob { long size; struct pair rows[]; };
        struct blob *make(int n) {
            struct blob *b = malloc(sizeof *b + n * sizeof b->rows[0]); //= Header struct blob + struct pair
            b->size = n;
            return b;
        }",
    );
}

#[test]
fn out_parameter() {
    check(
        "out_parameter.c",
        "void use(struct node *);
        void aligned(struct pair *p) {
            struct node *n = 0;
            if (posix_memalign((void **)&n, 64, sizeof *n)) //= Whole struct node
                return;
            n->key = 1;
            use(n);
        }",
    );
}

#[test]
fn base_factory() {
    check(
        "base_factory.c",
        "struct object { struct object *next; int tag; };
        struct text { struct object *next; int tag; long length; };
        static struct object *all;
        __attribute__((noinline)) struct object *new_object(int tag, size_t size) {
            struct object *o = malloc(size); //= wrapper
            o->tag = tag; o->next = all; all = o;
            return o;
        }
        struct text *new_text(long n) {
            struct text *t = (struct text *)new_object(4, sizeof *t); //= Whole struct text
            t->length = n;
            return t;
        }",
    );
}

#[test]
fn hook_in_table() {
    check(
        "hook_in_table.c",
        "struct hooks { void *(*get)(int); void (*put)(void *); };
        static void *get(int n) { return malloc(n); } //= wrapper
        static void put(void *p) { free(p); }
        struct hooks hooks = { get, put };
        __attribute__((noinline)) void *take(int n) {
            return hooks.get(n); //= wrapper
        }
        void fill(struct pair *p) {
            p->first = take(sizeof(struct node)); //= Whole struct node
        }",
    );
}

#[test]
fn text() {
    check(
        "text.c",
        "void fill(struct pair *p, const char *s) {
            p->name = strdup(s); //= Characters char
        }
        FILE *open_it(const char *s) {
            return fopen(s, \"r\"); //= Whole struct _IO_FILE
        }",
    );
}

#[test]
fn opaque() {
    check(
        "opaque.c",
        "struct box { void *any; int size; };
        void fill(struct box *b, int n) {
            b->any = malloc(n); //= opaque
        }",
    );
}

#[test]
fn field_of_new_object() {
    check(
        "field_of_new_object.c",
        "struct pair *make(void) {
            struct pair *p = malloc(sizeof *p); //= Whole struct pair
            if (!p) return 0;
            p->first = malloc(sizeof(struct node)); //= Whole struct node
            p->second = 0; p->name = 0;
            return p;
        }",
    );
}

#[test]
fn failed_allocation_is_null() {
    check(
        "failed_allocation_is_null.c",
        "int read_into(struct pair *p, struct node **out) {
            char *buffer = malloc(64); //= Characters char
            if (!buffer) { *out = 0; return -1; }
            p->name = buffer;
            *out = p->first;
            return 0;
        }",
    );
}

#[test]
fn derived_object() {
    check(
        "derived_object.c",
        "struct cursor { long table; };
        struct row_cursor { struct cursor base; long row; char *text; };
        void use(void *);
        int advance(struct cursor *c, int n) {
            struct row_cursor *r = (struct row_cursor *)c;
            use(r); use(r);
            r->text = malloc(n); //= Characters char
            return r->text != 0 ? (int)r->row : 0;
        }",
    );
}

/// What only the source text tells: the destinations say nothing.
#[test]
fn sizeof_in_source() {
    let source = format!(
        "{HEAD}void *slots[6];
        struct chunk {{ long used; int items[]; }} *all;
        #define NEW(type) malloc(sizeof(type))
        void fill(struct node *like, long n) {{
            slots[4] = malloc(sizeof(struct node)); //= Whole struct node
            slots[0] = calloc(n, sizeof *like); //= Element struct node
            slots[1] = malloc(n * sizeof(struct pair)); //= Element struct pair
            slots[2] = malloc(sizeof(struct chunk) + n * sizeof(int)); //= Header struct chunk + int
            slots[3] = (struct pair *)malloc(n); //= Unknown struct pair
            slots[5] = malloc(n); //= opaque
        }}
        void hidden(void) {{
            slots[5] = NEW(struct pair); //= Whole struct pair
        }}"
    );
    check_with("sizeof_in_source.c", "gcc", &source, &Options::default());
}

#[test]
fn pool_of_slots() {
    check(
        "pool_of_slots.c",
        "struct slot { struct slot *next; };
        struct pool { void *start; struct slot *free; };
        void fill(struct pool *pool, int size, int count) {
            void *start = malloc((long)size * count); //= opaque
            struct slot *s = start;
            pool->start = start;
            for (int i = 0; i < count; i++) {
                s->next = pool->free;
                pool->free = s;
                s = (struct slot *)((char *)s + size);
            }
        }",
    );
}

/// Debug info states one name of a function, its symbols others, as in libc.
#[test]
fn another_name() {
    check(
        "another_name.c",
        "static __attribute__((noinline, noclone)) char *inner(const char *s, size_t n) {
            char *p = malloc(100);
            return p ? memcpy(p, s, n) : p;
        }
        char *strndup(const char *, size_t) __attribute__((alias(\"inner\")));
        char *kept;
        void keep(const char *s, size_t n) {
            kept = inner(s, n); //= Characters char
        }",
    );
}

/// Without symbols and debug info there are still sites, and wrappers by the flow of values.
#[test]
fn stripped() {
    let source = "#include <stdlib.h>
        void *keep;
        static __attribute__((noinline)) void *must(size_t n) {
            void *p = malloc(n ? n : 1);
            if (!p) abort();
            return p;
        }
        static __attribute__((noinline)) void grow(size_t n) { keep = malloc(n); }
        void *first(void) { keep = must(40); grow(7); return must(30); }
        void *second(int n) { grow(n); return must(24 * n); }";
    each_stripped(source, |level, found| {
        let inner = |site: &&Site| site.flags & site_flags::WRAPPER != 0;
        // `must` hands out; `grow` keeps, although its register of results still holds the block.
        assert_eq!(
            found.sites.iter().filter(inner).count(),
            1,
            "{level}: {found:#?}"
        );
        assert_eq!(found.sites.len(), 5, "{level}: {found:#?}");
    });
}

/// What is found in a stripped library made of C, at each of two levels of optimisation.
fn each_stripped(source: &str, check: impl Fn(&str, &super::Sites)) {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("stripped.c");
    std::fs::write(&text, source).expect("the source is written");
    for level in ["-O1", "-O2"] {
        let program = folder.path().join(format!("stripped{level}.so"));
        let status = Command::new("gcc")
            .args(["-s", level, "-fPIC", "-shared", "-w", "-o"])
            .args([&program, &text])
            .status()
            .expect("the compiler runs");
        assert!(status.success(), "{level}");
        let elf = Elf::open(&program).expect("the compiler writes ELF");
        let facts = read_facts(&elf, &DebugFiles::inside(&elf));
        check(level, &infer(&elf, &facts, &Options::default()));
    }
}
