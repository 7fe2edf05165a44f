/* Who am I, and am I trusted? */
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <unistd.h>

int main(void)
{
    free(malloc(10));
    printf("uid %d euid %d secure %lu preload %s\n", getuid(), geteuid(), getauxval(AT_SECURE), getenv("LD_PRELOAD") ? "set" : "unset");
    return 0;
}
