// Linked with nothing: a program that loads it has what it calls.
#include <stddef.h>

void *host_get(size_t size);
void *inner_get(size_t size);
void *hidden(size_t size);

struct task {
    struct task *next;
    double due;
};

struct task *tasks;

void start(void) {
    tasks = host_get(sizeof *tasks);
    tasks->next = inner_get(sizeof *tasks);
    tasks->next->next = hidden(sizeof *tasks);
}
