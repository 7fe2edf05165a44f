//! Calls through pointers, and what is stored through a pointer for the caller.

use super::{HEAD, Options, check, check_at};

#[test]
fn to_functions_of_other_files() {
    check(
        "callback.c",
        "void *(*get)(size_t) = malloc;
        struct hooks { void *(*clear)(size_t, size_t); } *hooks;
        void start(void) { hooks->clear = calloc; }
        struct node *head; struct pair *pairs;
        void push(void) {
            head = get(sizeof(struct node)); //= Whole struct node
        }
        void fill(size_t n) {
            pairs = hooks->clear(n, sizeof(struct pair)); //= Element struct pair
        }",
    );
}

/// Other functions of their type may do anything, so the pointer itself must lead there.
#[test]
fn to_functions_known_by_their_pointer() {
    let source = "char *(*copy)(const char *) = strdup; char *(*find)(const char *);
        char *word;
        void note(const char *s) {
            word = copy(s); //= Characters char
        }
        void seek(const char *s) { word = find(s); }";
    let options = Options::default();
    let source = format!("{HEAD}{source}");
    check_at(&["-O2", "-O3"], "cell.c", "gcc", &source, &options);
}

/// Compilers keep in a register what they call several times, and its type is not stated.
#[test]
fn to_functions_in_registers() {
    check(
        "register.c",
        "struct node *head;
        void push(void) {
            void *far = malloc;
            head = ((void *(*)(size_t))far)(sizeof(struct node)); //= Whole struct node
        }",
    );
}

#[test]
fn a_list_that_grows_for_its_owner() {
    check(
        "grow.c",
        "__attribute__((noinline)) void *grow(void **list, size_t n, size_t more, size_t size) {
            void *p = realloc(*list, (n + more) * size); //= wrapper
            if (!p) abort();
            return *list = p;
        }
        struct list { size_t used; struct pair *all; };
        void add(struct list *l) {
            grow((void **)&l->all, l->used, 4, sizeof(struct pair)); //= Element struct pair
        }",
    );
}

#[test]
fn of_which_nobody_takes_the_address() {
    check(
        "dropped.c",
        "__attribute__((noinline)) void *get(size_t n) {
            void *p = malloc(n); //= wrapper
            if (!p) abort();
            return p;
        }
        void room(void) {
            get(16); //= opaque
        }",
    );
}
