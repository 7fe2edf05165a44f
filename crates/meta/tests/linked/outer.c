// Functions that hand out what those of another library give, under names of its own.
#include <stddef.h>

void *inner_get(size_t size);
int inner_through(void **block, size_t size);

void *outer_get(size_t count, size_t size) { return inner_get(count * size); }

int outer_through(size_t size, void **block) { return inner_through(block, size); }

struct note {
    struct note *next;
    long key;
};

struct note *notes;

void outer_note(long key) {
    struct note *note = inner_get(sizeof *note);
    note->key = key;
    note->next = notes;
    notes = note;
}
