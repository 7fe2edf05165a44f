#include <stdlib.h>

void *hidden(size_t size) {
    void *block = malloc(size);
    if (!block)
        abort();
    return block;
}
