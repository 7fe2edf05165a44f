//! Records that are cut short, text of other characters, and names that several files use.

use super::{
    DebugFiles, Elf, HEAD, LEVELS, Options, Site, check, check_at, check_with, compile, described,
    expected, infer, line_of, read_facts, site_flags,
};
use std::process::Command;

#[test]
fn up_to_an_arm_of_the_union_at_the_end() {
    check(
        "cut.c",
        "struct entry { long kind; union { char text[64]; char *name; } u; } *entry;
        void name(void) {
            entry = malloc(sizeof(struct entry) + sizeof(char *) - 64); //= Whole struct entry
        }
        void text(size_t n) {
            entry = malloc(sizeof(struct entry) - 64 + n); //= Header struct entry + char
        }",
    );
}

#[test]
fn text_is_of_the_characters_that_its_copier_says() {
    check(
        "letters.c",
        "typedef unsigned char letter;
        __attribute__((noinline)) letter *copy(letter *s) {
            size_t n = strlen((char *)s) + 1;
            letter *p = malloc(n); //= wrapper
            return memcpy(p, s, n);
        }
        letter *title;
        void name(letter *s) {
            title = copy(s); //= Bytes unsigned char
        }",
    );
}

/// Each file has a `struct state` and a `data` of its own.
#[test]
fn names_mean_what_their_file_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |members: &str, function: &str| {
        format!(
            "{HEAD}struct state {{ {members} }}; typedef struct {{ {members} long more; }} data;
            extern struct state *state;
            data *{function}_last;
            void *{function}(void) {{ return calloc(1, sizeof(data)); }}
            void {function}_start(void) {{ state = calloc(1, sizeof(struct state)); }}"
        )
    };
    let sources = [
        ("one.c", file("long a, b, c;", "one")),
        ("two.c", file("int *p; long q[4];", "two")),
        ("state.c", "struct state *state;".to_owned()),
    ];
    for (name, text) in &sources {
        std::fs::write(folder.path().join(name), text).expect("the source is written");
    }
    let built = Command::new("gcc")
        .current_dir(folder.path())
        .args(["-g", "-O2", "-fPIC", "-shared", "-w", "-o", "both.so"])
        .args(sources.each_ref().map(|(name, _)| *name))
        .status();
    assert!(built.expect("the compiler runs").success());
    let elf = Elf::open(folder.path().join("both.so")).expect("the compiler writes ELF");
    let facts = read_facts(&elf, &DebugFiles::inside(&elf));
    let found = infer(&elf, &facts, &Options::default());
    let said: Vec<String> = found
        .sites
        .iter()
        .filter(|site| site.callee == "calloc")
        .map(|site| {
            let size = site.r#type.and_then(|at| facts.types[at as usize].size);
            format!("{} {}", described(&facts, site), size.unwrap_or(0))
        })
        .collect();
    let mut expect = [24, 40]
        .map(|size| format!("Whole struct state {size}"))
        .to_vec();
    expect.extend([32, 48].map(|size| format!("Whole data {size}")));
    assert_eq!(
        said.iter().collect::<std::collections::BTreeSet<_>>(),
        expect.iter().collect()
    );
}

#[test]
fn a_length_in_front() {
    const SOURCE: &str = "#include <stddef.h>
        #include <stdio.h>
        struct item { long id; item *next; ~item() { printf(\"%ld\", id); } };
        struct plain { int a, b; double c; };
        struct holder {
            item *list; size_t n;
            holder(size_t n);
        };
        item *items, *given;
        plain *plains;
        item **pointers;
        void *volatile bytes;
        __attribute__((noinline)) void take(item *them) { given = them; }
        holder::holder(size_t n)
            : list(new item[n]), n(n) {} //= Header long unsigned int + struct item
        void kept(int n) {
            items = new item[n]; //= Header long unsigned int + struct item
        }
        void seven(void) {
            items = new item[7]; //= Header long unsigned int + struct item
        }
        void passed(int n) {
            take(new item[n]); //= Header long unsigned int + struct item
        }
        item *returned(size_t n) {
            return new item[n]; //= Header long unsigned int + struct item
        }
        void none(int n) {
            plains = new plain[n]; //= Element struct plain
        }
        void first(int n, item *item) {
            pointers = new struct item *[n + 1]; //= Element struct item *
            pointers[0] = item;
        }
        ";
    let options = Options {
        sources: false,
        ..Options::default()
    };
    check_with("counted.cc", "g++", SOURCE, &options);
    // It has another name for the number.
    let source = SOURCE.replace("Header long unsigned int", "Header unsigned long");
    check_with("counted.cc", "clang++", &source, &options);
}

/// Where the array must be aligned there is a gap before its length: `operator new[]` gives 16 bytes by itself, and more is asked for.
#[test]
fn a_length_behind_a_gap() {
    const SOURCE: &str = "#include <stddef.h>
        #include <stdio.h>
        struct alignas(16) four { float at[4]; ~four() { printf(\"%f\", at[0]); } };
        struct alignas(64) line { long id; line *next; ~line() { printf(\"%ld\", id); } };
        struct alignas(32) plain { double of[4]; };
        four *fours; line *lines; plain *plains, *one;
        void sixteen(int n) {
            fours = new four[n]; //= 16: Header long unsigned int + struct four
        }
        four *returned(size_t n) {
            return new four[n]; //= 16: Header long unsigned int + struct four
        }
        void sixty_four(int n) {
            lines = new line[n]; //= 64: Header long unsigned int + struct line
        }
        void three(void) {
            lines = new line[3]; //= 64: Header long unsigned int + struct line
        }
        void none(int n) {
            plains = new plain[n]; //= 0: Element struct plain
        }
        void single(void) {
            one = new plain; //= 0: Whole struct plain
        }
        ";
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        sources: false,
        ..Options::default()
    };
    for (compiler, number) in [("g++", "long unsigned int"), ("clang++", "unsigned long")] {
        let source = SOURCE.replace("long unsigned int", number);
        for level in LEVELS {
            let elf = compile(folder.path(), "aligned.cc", compiler, level, &source);
            let facts = read_facts(&elf, &DebugFiles::inside(&elf));
            let found = infer(&elf, &facts, &options);
            for (line, expect) in expected(&source) {
                let described = |site: &Site| {
                    let front = 1 << (site.flags >> site_flags::ARRAY_AT.trailing_zeros());
                    let front = if front == 1 { 0 } else { front };
                    format!("{front}: {}", described(&facts, site))
                };
                let here = found.sites.iter();
                let mut here = here.filter(|site| line_of(&facts, site.call) == line);
                let found = here.next().map(described);
                assert_eq!(
                    found.as_deref(),
                    Some(expect),
                    "{compiler} {level} line {line}"
                );
            }
        }
    }
}

/// A pointer leads to what rounds the size: it confirms a type of just that size, and refutes none.
#[test]
fn a_size_that_is_rounded_elsewhere() {
    check(
        "rounded.c",
        "int (*round_up)(int);
        __attribute__((noinline)) void *get(int n) {
            return malloc(round_up(n));
        }
        struct node *nodes;
        void whole(void) {
            nodes = get(sizeof(struct node)); //= Whole struct node
        }
        void kind(void) {
            nodes = get(3); //= Unknown struct node
        }
        void more(int n) {
            nodes = get(sizeof(struct node) + n * (int)sizeof(struct pair)); //= Header struct node
        }
        void many(int n) {
            nodes = get(n * (int)sizeof(struct node)); //= Element struct node
        }
        void named(const char *name) {
            nodes = get((int)sizeof(struct node) + (int)strlen(name) + 1); //= Header struct node
        }
        void several(int n) {
            nodes = get(3 * (int)sizeof(struct node) + n); //= Unknown struct node
        }
        ",
    );
}

/// What asks for more of them is given the size of one.
#[test]
fn an_array_that_grows_by_the_size_of_one() {
    check(
        "grown.c",
        "__attribute__((noinline)) void *grow(void *old, size_t *count, size_t size) {
            *count += old ? *count / 2 + 1 : *count ? 0 : 128 / size;
            return reallocarray(old, *count, size); //= wrapper
        }
        struct vector { size_t count, allocated; struct node *nodes; };
        struct vector *create(size_t n) {
            struct vector *vector = malloc(sizeof(struct vector)); //= Whole struct vector
            vector->count = 0; vector->allocated = n;
            vector->nodes = grow(0, &vector->allocated, sizeof(struct node)); //= Element struct node
            return vector;
        }",
    );
}

/// `2(n + 1)` of them are a number of them, as are those that a number takes the place of.
#[test]
fn a_doubled_count() {
    check(
        "doubled.c",
        "struct range { long from, to; } *ranges;
        struct set { int used, room; struct range *all; };
        void twice(struct set *s) {
            ranges = malloc(2 * (s->used + 1) * sizeof(struct range)); //= Element struct range
        }
        void grow(struct set *s) {
            long room = s->room ? 2 * s->room : 42;
            ranges = malloc(room * sizeof(struct range)); //= Element struct range
        }
        void uneven(struct set *s) {
            ranges = malloc((3 * s->used + 1) * sizeof(struct range)); //= Unknown struct range
        }",
    );
}

/// How blocks that were given back are linked says nothing of what they were.
#[test]
fn a_list_of_free_blocks() {
    check(
        "free.c",
        "struct slot { struct slot *next; } *slots;
        struct pair *pairs;
        static void give_back(void *p) {
            struct slot *s = (struct slot *)p;
            s->next = slots;
            slots = s;
        }
        void text(const char *from) {
            char *copy = malloc(strlen(from) + 1); //= Characters char
            strcpy(copy, from);
            puts(copy);
            give_back(copy);
        }
        void slot(void) {
            slots = malloc(sizeof(struct slot)); //= Whole struct slot
        }
        void cut(size_t n) {
            struct slot *first = malloc(100 * n); //= Unknown struct slot
            char *p = (char *)first;
            for (int i = 0; i < 99; i++, p += n) ((struct slot *)p)->next = (struct slot *)(p + n);
            ((struct slot *)p)->next = 0;
            slots = first;
        }",
    );
}

/// What a file without debug info calls text is the type that one with debug info states.
#[test]
fn text_is_one_type_everywhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = "char *text; int main(void) { return !text; }";
    let elf = compile(folder.path(), "text.c", "gcc", "-O0", source);
    let facts = read_facts(&elf, &DebugFiles::inside(&elf));
    let mut types = facts.types.iter();
    let stated = types.find(|known| known.name == "char").expect("char");
    assert_eq!(stated.identity, crate::dwarf::of_base("char", 1, 6));
}

/// gcc's link-time optimisation states a base type under the name of a typedef.
#[test]
fn a_base_type_that_goes_by_the_name_of_a_typedef() {
    check_at(
        &["-flto"],
        "named.c",
        "gcc",
        "#include <string.h>
        typedef unsigned char byte;
        extern void take(void *, unsigned);
        byte *kept;
        void room(unsigned n, const void *from) {
            byte all[n]; //= Bytes unsigned char
            memcpy(all, from, n);
            take(all, n);
        }",
        &Options {
            sources: false,
            ..Options::default()
        },
    );
}
