/* Loads, uses and unloads a plugin two hundred times. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    int used = 0;
    for (int i = 0; i < 200; i++) {
        void *plugin = dlopen(argv[argc - 1], RTLD_NOW);
        if (!plugin) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        void *(*allocate)(void) = (void *(*)(void))dlsym(plugin, "plugin_allocate");
        void *block = allocate();
        used += block != NULL;
        free(block);
        dlclose(plugin);
    }
    printf("used %d\n", used);
    return 0;
}
