/* Makes and frees lists; how many nodes it made is printed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node {
    struct node *next;
    char text[];
};

int main(void)
{
    struct node *first = NULL;
    int *numbers = NULL;
    unsigned made = 0;
    for (unsigned i = 0; i < 400; i++) {
        size_t len = i * 37 % 300;
        struct node *node = i % 5 ? malloc(sizeof *node + len) : calloc(1 + len % 7, sizeof *node + len / 3);
        memset(node->text, 'x', len / 3);
        node->next = first;
        first = node;
        made++;
        if (i % 3 == 0)
            for (int at = 0; at < 2 && first; at++) {
                struct node *next = first->next;
                free(first);
                first = next;
            }
        if (i % 4 == 0)
            numbers = realloc(numbers, (i + 1) * sizeof *numbers);
    }
    printf("%u\n", made);
    return numbers == NULL;
}
