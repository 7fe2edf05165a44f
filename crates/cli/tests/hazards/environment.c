/* Nothing of ours shows: not in environ, not on the way from envp to the auxiliary vector, not in a child started with an empty environment. */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv, char **envp)
{
    int seen = 0;
    char **at = envp;
    for (; *at; at++)
        seen += !strncmp(*at, "LD_PRELOAD", 10) || !strncmp(*at, "POINTEE", 7);
    unsigned long page = 0;
    for (Elf64_auxv_t *aux = (Elf64_auxv_t *)(at + 1); aux->a_type != AT_NULL; aux++)
        if (aux->a_type == AT_PAGESZ)
            page = aux->a_un.a_val;
    printf("seen %d page %lu %lu preload %s\n", seen, page, getauxval(AT_PAGESZ), getenv("LD_PRELOAD") ? getenv("LD_PRELOAD") : "unset");
    fflush(stdout);
    if (argc == 1 && fork() == 0) {
        char *none[] = {NULL};
        char *arguments[] = {argv[0], "child", NULL};
        execve(argv[0], arguments, none);
        _exit(1);
    }
    wait(NULL);
    return 0;
}
