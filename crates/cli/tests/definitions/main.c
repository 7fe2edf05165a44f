/* Calls malloc from inside and outside, 100 times each, and prints how many calls of each the own definition saw. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>

void outside(void);
#ifndef LOADED
void inside(void);
long own_calls(void);
#endif

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
#ifdef LOADED
    void *object = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!object) return 2;
    void (*inside)(void) = (void (*)(void))dlsym(object, "inside");
    long (*own_calls)(void) = (long (*)(void))dlsym(object, "own_calls");
#endif
    long before = own_calls();
    for (int i = 0; i < 100; i++) inside();
    long between = own_calls();
    for (int i = 0; i < 100; i++) outside();
    long after = own_calls();
    char text[64];
    int len = snprintf(text, sizeof text, "%ld %ld\n", between - before, after - between);
    return fwrite(text, 1, (size_t)len, stdout) != (size_t)len;
}
