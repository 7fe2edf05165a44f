//! What is a copy of what, and which multiple of which number is asked for.

use super::{HEAD, Options, check, check_at, check_with};

fn optimized(name: &str, source: &str) {
    let options = Options {
        sources: false,
        ..Options::default()
    };
    let levels = ["-O1", "-O2", "-O3"];
    check_at(&levels, name, "gcc", &format!("{HEAD}{source}"), &options);
}

/// A duplicate has the type of what is copied, also where nothing else tells.
#[test]
fn a_duplicate() {
    check(
        "duplicate.c",
        "__attribute__((noinline)) void *copy_of(const void *from, size_t n) {
            void *to = malloc(n); //= wrapper
            if (to) memcpy(to, from, n);
            return to;
        }
        __attribute__((noinline)) void *copied(int mark, const void *from, size_t n) {
            return copy_of(from, n); //= wrapper
        }
        struct box { void *any; unsigned char *bytes; } box;
        void keep(const struct node *n, const unsigned char *bytes, size_t length) {
            box.any = copy_of(n, sizeof *n); //= Whole struct node
            box.bytes = copied(3, bytes, length); //= Bytes unsigned char
            box.any = copy_of(bytes, length); //= Bytes unsigned char
        }",
    );
}

/// As many numbers as there are behind a parameter: text of wide characters is one such.
#[test]
fn a_duplicate_of_numbers() {
    check(
        "numbers.c",
        "__attribute__((noinline)) int *copy_of(const int *from) {
            size_t n = 0;
            while (from[n]) n++;
            int *to = malloc((n + 1) * sizeof(int)); //= wrapper
            if (to) memcpy(to, from, (n + 1) * sizeof(int));
            return to;
        }
        __attribute__((noinline)) struct node *like(const struct node *from) {
            struct node *to = malloc(sizeof *to); //= Whole struct node
            if (to) memcpy(to, from, sizeof *to);
            return to;
        }
        int *numbers; struct node *last;
        void keep(const int *some, const struct node *node) {
            numbers = copy_of(some); //= Element int
            last = like(node);
        }",
    );
}

/// `28 · (n + 1)` is computed as `(8m - m) · 4`.
#[test]
fn a_product_in_steps() {
    optimized(
        "steps.c",
        "struct odd { int more[7]; } *odd;
        struct large { char bytes[19]; } *large;
        void grow(int n) {
            odd = malloc((n + 1) * sizeof *odd); //= Element struct odd
        }
        void others(size_t n) {
            large = malloc((n + 2) * sizeof *large); //= Element struct large
        }",
    );
}

/// What is made for those who only call through pointers is one thing.
#[test]
fn one_thing_of_many() {
    check(
        "things.c",
        "__attribute__((noinline)) void *room(size_t n) {
            return malloc(n); //= wrapper
        }
        struct kind { void *(*create)(int); int (*start)(void *); };
        static void *create(int mark) {
            return room(sizeof(struct pair)); //= opaque
        }
        static int start(void *it) { return ((struct pair *)it)->name != 0; }
        struct kind kinds[] = { { create, start } };
        void *all[4];
        void begin(void) { all[0] = kinds[0].create(0); }",
    );
}

#[test]
fn an_address_of_whatever_kind() {
    check(
        "address.c",
        "struct address { unsigned short kind; char bytes[14]; };
        struct peer { struct address *address; unsigned length; };
        void set(struct peer *p, unsigned length) {
            p->address = malloc(length); //= Header struct address
        }",
    );
}

/// The offset of an array in its object is added to the index.
#[test]
fn an_array_in_a_variable() {
    optimized(
        "within.c",
        "struct all { long other[101]; double *numbers; struct node *nodes[4]; struct pair *pairs[4]; } all;
        void set(unsigned at) {
            if (!all.pairs[at])
                all.pairs[at] = malloc(24); //= Whole struct pair
            if (!all.nodes[at])
                all.nodes[at] = malloc(32); //= Whole struct node
        }",
    );
}

/// A list of items of whatever size, of which the caller gets one.
#[test]
fn one_more_item() {
    let source = format!(
        "{HEAD}{}",
        "struct list { void *items; size_t count, room; };
        __attribute__((noinline)) void *one_more(struct list *l, size_t size, int step) {
            if (l->room <= l->count) {
                size_t more = step < 0 ? -step : l->room < (size_t)step ? step - l->room : l->room;
                void *items = realloc(l->items, (l->room + more) * size); //= wrapper
                if (!items) abort();
                l->items = items; l->room += more;
            }
            return (char *)l->items + l->count++ * size;
        }
        #define ONE_MORE(list, type, step) ((type *)one_more(list, sizeof(type), step))
        void note(struct list *l, char *name) {
            struct pair *p = ONE_MORE(l, struct pair, -4); //= Element struct pair
            p->name = name;
        }
        void reserve(struct list *l) {
            (void)ONE_MORE(l, struct node, 10); //= Element struct node
        }"
    );
    check_with("items.c", "gcc", &source, &Options::default());
}

/// Variables of one name in a function and in what is inlined into it.
#[test]
fn a_name_of_two_things() {
    let source = format!(
        "{HEAD}{}",
        "struct state { void *kept; struct { struct node *some; } *more; };
        #define NEW(x) ((x) = (void *)calloc(1, sizeof(*(x))))
        void *slots[4];
        static inline void fill(struct state *state) {
            slots[0] = NEW(state->more->some); //= Whole struct node
        }
        void all(struct pair *pair, struct state *given) {
            struct pair state = *pair;
            slots[1] = state.first;
            fill(given);
        }"
    );
    check_with("two.c", "gcc", &source, &Options::default());
}
