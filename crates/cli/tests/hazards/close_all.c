/* A daemon closes every descriptor there may be, and opens its own with the lowest numbers. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(void)
{
    int out = dup(1);
    for (int fd = 0; fd < 1024; fd++)
        if (fd != out)
            close(fd);
    int first = open("/dev/null", O_RDWR);
    int second = open("/dev/null", O_RDWR);
    for (int i = 0; i < 100000; i++)
        free(malloc(i));
    dprintf(out, "first %d second %d\n", first, second);
    return 0;
}
