/* Makes and frees short lists for more calls than can be looked at in a second; how many nodes it made is printed. Two threads, one at a time. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct node {
    struct node *next;
    char text[];
};

static void *make(void *made)
{
    for (unsigned i = 0; i < 100000; i++) {
        struct node *first = NULL;
        for (unsigned len = 0; len < 1 + i % 3; len++) {
            struct node *node = malloc(sizeof *node + i % 100 * 7);
            node->next = first;
            first = node;
            ++*(unsigned *)made;
        }
        while (first) {
            struct node *next = first->next;
            free(first);
            first = next;
        }
    }
    return NULL;
}

int main(void)
{
    unsigned made = 0;
    pthread_t thread;
    make(&made);
    pthread_create(&thread, NULL, make, &made);
    pthread_join(thread, NULL);
    printf("%u\n", made);
    return 0;
}
