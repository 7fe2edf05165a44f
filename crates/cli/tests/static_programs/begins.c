/* What a program finds when it begins: all that the kernel keeps of it that a tracer could have changed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    free(malloc(100));
    while (status && fgets(line, sizeof line, status))
        if ((!strncmp(line, "Sig", 3) && line[3] != 'Q') || !strncmp(line, "Shd", 3) || !strncmp(line, "TracerPid", 9)
            || !strncmp(line, "Threads", 7) || !strncmp(line, "NoNewPrivs", 10))
            fputs(line, stdout);
    for (int fd = 0; fd < 20; fd++)
        printf("%d", lseek(fd, 0, SEEK_CUR) != -1 || !access("/dev/null", F_OK) * (dup2(fd, fd) == fd));
    printf("\n");
    for (int at = 0; at < argc; at++)
        printf("%s\n", argv[at]);
    for (char **variable = environ; *variable; variable++)
        printf("%s\n", *variable);
    return 7;
}
