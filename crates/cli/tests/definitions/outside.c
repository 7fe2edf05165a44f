/* A caller of malloc that does not lie beside the definition. */
#include <stdlib.h>

__attribute__((noinline)) void outside(void) {
    void *volatile p = malloc(2000);
    free(p);
}
