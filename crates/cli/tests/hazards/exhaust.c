/* Allocates until there is nothing left, gives all back, and goes on. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct chunk { struct chunk *next; char rest[100000]; };

int main(void)
{
    struct chunk *all = NULL;
    int most = 0, count = 0;
    for (int round = 0; round < 3; round++) {
        count = 0;
        for (;;) {
            errno = 0;
            struct chunk *chunk = malloc(sizeof *chunk);
            if (!chunk)
                break;
            chunk->next = all;
            chunk->rest[50000] = 1;
            all = chunk;
            count++;
        }
        if (errno != ENOMEM)
            return 2;
        if (count > most)
            most = count;
        void *grown = realloc(all, (size_t)1 << 40);
        if (grown)
            return 3;
        while (all) {
            struct chunk *next = all->next;
            free(all);
            all = next;
        }
    }
    void *after = malloc(100000);
    printf("exhausted at about the same point each time: %s, afterwards %s\n", count > most / 2 ? "yes" : "no", after ? "well" : "lost");
    free(after);
    return 0;
}
