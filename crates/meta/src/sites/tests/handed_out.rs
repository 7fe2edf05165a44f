//! Whose is what a function returns: its callers', its own, lent.

use super::{HEAD, Options, check, check_at, each_stripped};
use pointee_model::image::site_flags;
use std::collections::BTreeSet;

/// What was put into a list's part is read from there again before it is handed out.
#[test]
fn an_element_of_a_part() {
    // Unoptimised code reads the part from a variable each time, which may be one or another.
    let source = format!(
        "{HEAD}{}",
        "struct part { void *items; size_t used; struct part *next; };
        struct list { struct part *last; size_t size, room; };
        __attribute__((noinline)) void *push(struct list *l) {
            struct part *last = l->last;
            if (last->used == l->room) {
                last = malloc(sizeof *last); //= Whole struct part
                last->items = malloc(l->room * l->size); //= wrapper
                last->used = 0; last->next = 0;
                l->last->next = last; l->last = last;
            }
            return (char *)last->items + l->size * last->used++;
        }
        void note(struct list *l, char *name) {
            struct pair *p = push(l); //= Element struct pair
            p->first = 0; p->second = 0; p->name = name;
        }"
    );
    let options = Options {
        sources: false,
        ..Options::default()
    };
    check_at(&["-O1", "-O2", "-O3"], "part.c", "gcc", &source, &options);
}

#[test]
fn a_copy_as_long_as_a_field_says() {
    check(
        "counted.c",
        "struct counted { size_t length; char *bytes; };
        __attribute__((noinline)) char *copy(struct counted *from) {
            char *to = malloc(from->length); //= wrapper
            if (to) memcpy(to, from->bytes, from->length);
            return to;
        }
        void name(struct pair *p, struct counted *from) {
            p->name = copy(from); //= Characters char
        }",
    );
}

/// A description of a class tells the size of both; one function knows which class it makes.
#[test]
fn who_knows_what_it_makes() {
    check(
        "classes.c",
        "struct class { const char *name; size_t size; };
        struct object { long uses; struct class *class; };
        struct text { struct object base; long length; char *bytes; };
        struct list { struct object base; struct object *first; };
        __attribute__((noinline)) struct object *make(struct class *class) {
            struct object *o = malloc(class->size); //= wrapper
            o->uses = 1; o->class = class;
            return o;
        }
        struct class texts;
        __attribute__((noinline)) struct object *make_text(long n) {
            struct text *t = malloc(texts.size); //= Unknown struct text
            t->base.uses = 1; t->base.class = &texts; t->length = n; t->bytes = 0;
            return &t->base;
        }
        struct list *make_list(struct class *class) {
            struct list *l = (struct list *)make(class); //= Unknown struct list
            l->first = make_text(3);
            return l;
        }",
    );
}

/// The exported functions of a library without symbols and debug info that hand out what they allocate.
#[test]
fn without_debug_info() {
    let source = "#include <stdlib.h>
        #include <string.h>
        struct holder { char *text; long n; };
        char *doubled(void *context, const char *s) { return strdup(s); }
        char *of_field(struct holder *h) { return strdup(h->text); }
        void set(struct holder *h, const char *s) { free(h->text); h->text = strdup(s); }
        char *lent(struct holder *h, const char *s) { return h->text = strdup(s); }
        void list_insert(struct holder *, char *);
        char *known(struct holder *h, const char *s) {
            char *copy = strdup(s); list_insert(h, copy); return copy;
        }
        char *counted(const char *s, const char *end) {
            size_t n = end - s; char *p = malloc(n + 1);
            p[n] = 0; return memcpy(p, s, n);
        }
        void *cleared(size_t n, size_t size) { return calloc(n ? n : 1, size ? size : 1); }";
    let expect = BTreeSet::from(["doubled", "of_field", "counted", "cleared"]);
    each_stripped(source, |level, found| {
        let names: BTreeSet<&str> = found.wrappers.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, expect, "{level}: {found:#?}");
    });
}

/// A scalar's text that is made for the room in it, and handed out.
#[test]
fn what_was_put_into_what_is_returned() {
    let source = "#include <stdlib.h>
        #include <string.h>
        struct scalar { void *any; long uses; char *text; long room; };
        struct scalar *fresh(void *);
        __attribute__((noinline)) struct scalar *scalar(void *context, size_t n) {
            struct scalar *s = fresh(context);
            s->room = n + 2;
            s->text = malloc(n + 2);
            return s;
        }
        __attribute__((noinline)) struct scalar *noted(void *context, size_t n) {
            struct scalar *s = fresh(context);
            s->text = malloc(n);
            return s->any;
        }
        void *room(void *context, size_t n) {
            char *text = scalar(context, n - 1)->text;
            *(char **)context = text;
            return memset(text, 0, n);
        }
        void *other(void *context, size_t n) { return scalar(context, n)->any; }
        void *another(void *context, size_t n) { return noted(context, n)->text; }
        void *fixed(void *context) { return scalar(context, 20)->text; }
        __attribute__((noinline)) struct scalar *named(void *context, size_t n, const char *name) {
            struct scalar *s = fresh(context);
            s->text = malloc(n);
            strcpy(s->text, name);
            return s;
        }
        char *name(void *context, size_t n, const char *name) { return named(context, n, name)->text; }
        char *copy(const char *s) { return strdup(s); }";
    let expect = BTreeSet::from(["copy", "room", "scalar"]);
    each_stripped(source, |level, found| {
        let names: BTreeSet<&str> = found.wrappers.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, expect, "{level}: {found:#?}");
        let of = |callee: &str| {
            let calls = found.sites.iter().filter(move |site| site.callee == callee);
            let inner = calls.map(|site| site.flags & site_flags::WRAPPER != 0);
            inner.collect::<Vec<bool>>()
        };
        assert_eq!(of("scalar"), [true, false, false], "{level}: {found:#?}");
    });
}

/// Returns that are jumps, as compilers write them against speculation.
#[test]
fn returns_through_a_thunk() {
    let source = format!(
        "{HEAD}{}",
        "#pragma GCC optimize (\"no-inline\")
        #define THUNK __attribute__((function_return(\"thunk\"), indirect_branch(\"thunk\"), noinline))
        THUNK void *room(size_t n) {
            void *p = malloc(n); //= wrapper
            if (!p) abort();
            return p;
        }
        THUNK struct node *fresh(void) {
            struct node *n = room(sizeof *n); //= Whole struct node
            n->key = 3;
            return n;
        }"
    );
    let options = Options {
        sources: false,
        ..Options::default()
    };
    check_at(&["-O1", "-O2"], "thunk.c", "gcc", &source, &options);
}

/// What lies before a block and behind it is its wrapper's own.
#[test]
fn marks_around_a_block() {
    check(
        "marks.c",
        "struct mark { size_t size; long magic; };
        __attribute__((noinline)) void *marked(size_t n) {
            struct mark *m = malloc(sizeof *m + n + 8); //= wrapper
            if (!m) abort();
            m->size = n; m->magic = 42;
            return m + 1;
        }
        void fill(struct pair *p) {
            p->first = marked(sizeof(struct node)); //= Whole struct node
        }",
    );
}

/// A buffer that is kept by number, and lent, is nobody else's.
#[test]
fn text_that_is_lent() {
    check(
        "lent.c",
        "static struct slot { size_t size; char *text; } slots[4];
        __attribute__((noinline)) char *shown(int at, const char *s) {
            size_t n = strlen(s) + 3;
            if (slots[at].size < n) {
                free(slots[at].text);
                slots[at].text = malloc(n); //= Characters char
                slots[at].size = n;
            }
            char *text = slots[at].text;
            text[0] = '(';
            memcpy(text + 1, s, n - 3);
            text[n - 2] = ')'; text[n - 1] = 0;
            return text;
        }
        void print(const char *s) { puts(shown(1, s)); }",
    );
}
