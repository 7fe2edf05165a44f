/* Loaded and unloaded by dlopen_loop. */
#include <stdlib.h>

void *plugin_allocate(void)
{
    void *block = malloc(72);
    *(volatile char *)block = 1;
    return block;
}
