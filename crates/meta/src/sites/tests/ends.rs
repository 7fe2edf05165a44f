//! Records that end in an array, and records that leave their bytes to their kinds.

use super::check;

#[test]
fn bytes_of_a_number_that_is_stated_are_for_the_kinds() {
    check(
        "kinds.c",
        "#define ADDRESS unsigned char kind, bits; unsigned short length;
        struct address { ADDRESS unsigned char data[20]; unsigned long aligned[0]; } *list;
        struct six { ADDRESS unsigned char six[16]; unsigned most, owner; } *last;
        struct rule { ADDRESS unsigned four; unsigned char data[0]; };
        __attribute__((noinline)) void add(struct address *one) { list = one; }
        void owned(void) {
            list = malloc(sizeof(struct six)); //= Base struct address
        }
        void rule(size_t n, unsigned four) {
            struct rule *rule = malloc(sizeof(struct rule) + n); //= Header struct rule + unsigned char
            rule->kind = 3; rule->four = four;
            add((struct address *)rule);
        }",
    );
}

/// The array says how long it is by the number before it; the record of 16 bytes is no kind of it.
#[test]
fn bytes_of_no_stated_number_are_an_array() {
    check(
        "text.c",
        "struct text { unsigned length; unsigned char data[0]; } *text;
        struct other { unsigned length; long a; } *other;
        void longer(unsigned n) {
            text = malloc(sizeof(struct text) + n + 12); //= Header struct text + unsigned char
            text->length = n + 12;
        }
        void twelve(void) {
            text = malloc(sizeof(struct text) + 12); //= Header struct text + unsigned char
        }",
    );
}

#[test]
fn an_array_of_what_goes_on_has_none_of_it() {
    check(
        "sectors.c",
        "struct spare { char head[24]; long count; struct entry { long a, b; } entries[0]; } *spare;
        void sectors(unsigned n) {
            spare = malloc((size_t)n * 512); //= Header struct spare + struct entry
        }",
    );
}

/// 288 bytes are nine rules, for one with more parts has none over; 320 are ten, or one with thirteen parts.
#[test]
fn an_array_of_one_at_the_end() {
    check(
        "one.c",
        "struct rule { long a; struct part { long x, y, z; } parts[1]; } *rules, *rule;
        void nine(void) {
            rules = malloc(9 * sizeof(struct rule)); //= Element struct rule
        }
        void parts(void) {
            rule = malloc(sizeof(struct rule) + 12 * sizeof(struct part)); //= Header struct rule + struct part
        }",
    );
}

/// A variable for a list of one is the same bytes, and nothing derived from the list.
#[test]
fn a_head_with_its_elements_written_out() {
    check(
        "written.c",
        "struct list { struct list *next; long count; struct entry { long a, b; } entries[0]; } *last;
        struct one { struct list list; struct entry entry; } one;
        void one_more(void) {
            last = malloc(sizeof(struct list) + sizeof(struct entry)); //= Header struct list + struct entry
        }",
    );
}
