/* One pointer of each kind, printed with what must be said of it:
 *   ADDRESS KIND NAME TYPE FIELD-TYPE   ("-": not asked)
 * Of a signal stack that is not in use the kernel tells nobody: "idle", which is its kind where calls were seen.
 * Then it waits for a line, with every thread where it printed from. Compiled as C and as C++. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <alloca.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

struct inner { short a; int b[3]; };
struct item { int id; struct inner in; const char *name; struct item *next; };

struct item global_item = { 1, { 2, { 3, 4, 5 } }, "a literal of the tour", 0 };
static double statics[100];
static __thread struct item of_thread;
extern char **environ;

static pthread_barrier_t ready;
static pthread_mutex_t printing = PTHREAD_MUTEX_INITIALIZER;

static void row(const void *address, const char *kind, const char *name, const char *type,
                const char *field) {
    pthread_mutex_lock(&printing);
    printf("%p %s %s %s %s\n", address, kind, name, type, field);
    pthread_mutex_unlock(&printing);
}

static void wait_for_ever(void) {
    pthread_barrier_wait(&ready);
    for (;;) pause();
}

__attribute__((noinline)) static int counted(void) {
    static long calls = 7;
    row(&calls, "static", "counted::calls", "long_int", "long_int");
    return (int)++calls;
}

__attribute__((noinline)) static void on_stack(struct item *passed) {
    struct item here = *passed;
    char bytes[64];
    memset(bytes, 'x', sizeof bytes);
    row(&here.in.b[2], "local", "here", "item", "int");
    row(&here.name, "local", "here", "item", "char*");
    row(bytes + 10, "local", "bytes", "char[64]", "char");
    row(&of_thread.in.a, "thread-local", "of_thread", "item", "short_int");
    row((const char *)pthread_self() + 0x2d0, "thread", "-", "-", "-");
    wait_for_ever();
    /* Never reached; keeps the variables alive. */
    row(&here, bytes, bytes, bytes, bytes);
}

/* Its variable lies in the frame of whoever it is inlined with. */
__attribute__((always_inline)) static inline void inlined(struct item *passed) {
    struct item inside = *passed;
    row(&inside.in.b[0], "local", "inside", "item", "int");
    wait_for_ever();
    row(&inside, "", "", "", "");
}

__attribute__((noinline)) static void carved(int n, struct item *passed) {
    int numbers[n];
    struct item *made = (struct item *)alloca(n * sizeof *made);
    memset(numbers, 0, sizeof numbers);
    memset(made, 0, n * sizeof *made);
    row(&numbers[3], "local", "numbers", "int[]", "int");
    row(&made[2].in.b[1], "alloca", "-", "item[]", "int");
    inlined(passed);
    row(numbers, (const char *)made, "", "", "");
    row(made, "", "", "", "");
}

static void *carver(void *of) {
    carved(((struct item *)of)->id, (struct item *)of);
    return 0;
}

static void *worker(void *of) {
    of_thread.id = 3;
    on_stack((struct item *)of);
    return 0;
}

__attribute__((noinline)) static void *function_of_the_tour(void *p) {
    return (char *)p + counted();
}

static void handler(int number) {
    volatile int in_handler = number;
    row((const void *)&in_handler, "local", "in_handler", "volatile_int", "volatile_int");
    wait_for_ever();
}

static void *interrupted(void *of) {
    (void)of;
    raise(SIGUSR1);
    return 0;
}

enum { SIGNAL_STACK = 64 << 10 };
static char idle_stack[SIGNAL_STACK];

static void set_signal_stack(char *memory) {
    stack_t stack;
    memset(&stack, 0, sizeof stack);
    stack.ss_sp = memory;
    stack.ss_size = SIGNAL_STACK;
    if (sigaltstack(&stack, 0)) abort();
}

static void on_signal_stack(int number) {
    struct item elsewhere = { number, { 1, { 2, 3, 4 } }, 0, 0 };
    row(&elsewhere.in.b[1], "local", "elsewhere", "item", "int");
    wait_for_ever();
    row(&elsewhere, "", "", "", "");
}

/* A handler on a stack of its own, cut out of a block; below it the frame that was interrupted. */
__attribute__((noinline)) static void *interrupted_elsewhere(void *of) {
    struct item beneath = *(struct item *)of;
    char *memory = (char *)malloc(SIGNAL_STACK);
    set_signal_stack(memory);
    row(&beneath.in.b[1], "local", "beneath", "item", "int");
    row(memory + 500, "signal-stack", "-", "-", "-");
    raise(SIGUSR2);
    row(&beneath, memory, memory, memory, memory);
    return 0;
}

/* Memory right behind the runtime's last static, which the kernel shows as one mapping with it. */
static void behind_the_runtime(void) {
    static char maps[1 << 16];
    int file = open("/proc/self/maps", O_RDONLY);
    ssize_t len = 0, got;
    while ((got = read(file, maps + len, sizeof maps - 1 - len)) > 0)
        len += got;
    close(file);
    unsigned long start, end, last = 0;
    for (char *line = maps; line && *line; line = strchr(line, '\n'), line += line != 0) {
        char *stop = strchr(line, '\n');
        *stop = 0;
        int is_memory = strstr(line, " rw-p 00000000 00:00 0 ") != 0;
        if (sscanf(line, "%lx-%lx", &start, &end) == 2
            && (strstr(line, "/libpointee") || (start == last && is_memory)))
            last = end;
        *stop = '\n';
    }
    if (!last)
        return;
    char *there = (char *)mmap((void *)last, 4096, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (there == (char *)last)
        row(there + 9, "anonymous", "-", "-", "-");
}

int main(int argc, char **argv) {
    pthread_t threads[4];
    struct item mine = { 9, { 8, { 7, 6, 5 } }, argv[0], 0 };
    signal(SIGUSR1, handler);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal_stack;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR2, &action, 0);
    set_signal_stack(idle_stack);
    printf("tour\n");
    pthread_barrier_init(&ready, 0, 5);

    struct item *heap = (struct item *)malloc(sizeof *heap);
    struct item *many = (struct item *)calloc(5, sizeof *many);
    char *freed = (char *)malloc(30000);
    char *kept = (char *)malloc(50);
    free(freed);
    *heap = mine;
    many[3].next = heap;
    row(&heap->in.b[1], "heap", "-", "item", "int");
    row(&many[3].next, "heap", "-", "item[]", "item*");
    row(freed + 20000, "free", "-", "-", "-");
    row(kept - 8, "header", "-", "-", "-");
    row(kept + 50, "slack", "-", "-", "-");

    row(&global_item.in.b[1], "static", "global_item", "item", "int");
    row(&statics[42], "static", "statics", "double[100]", "double");
    row(global_item.name + 3, "literal", "-", "char[22]", "-");
    row((const char *)(size_t)function_of_the_tour + 1, "code", "function_of_the_tour", "-", "-");
    row((const void *)(size_t)counted, "code", "counted", "-", "-");
    row(function_of_the_tour(&statics[0]), "static", "statics", "double[100]", "double");

    row(&mine.in.b[2], "local", "mine", "item", "int");
    row(&of_thread.id, "thread-local", "of_thread", "item", "int");
    row((char *)&mine - 100000, "stack", "-", "-", "-");
    row(argv[0] + 1, "argument", "argv[0]", "-", "-");
    row(argv + argc, "argument", "argv", "-", "-");
    row(environ[0] + 1, "environment", "-", "-", "-");
    row(environ, "environment", "environ", "-", "-");
    row((const void *)getauxval(AT_RANDOM), "auxiliary", "AT_RANDOM", "-", "-");
    row((const char *)getauxval(AT_SYSINFO_EHDR) + 64, "vdso", "-", "-", "-");

    int file = open(argv[0], O_RDONLY);
    char *mapped = (char *)mmap(0, 4096, PROT_READ, MAP_PRIVATE, file, 4096);
    char *nothing = (char *)mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *guard = (char *)mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    row(mapped + 7, "file", "-", "-", "-");
    row(nothing + 5000, "anonymous", "-", "-", "-");
    row(guard, "reserved", "-", "-", "-");
    behind_the_runtime();
    row(idle_stack + 100, "idle", "-", "-", "-");
    row((const void *)8, "-", "-", "-", "-");

    pthread_create(&threads[0], 0, worker, &mine);
    pthread_create(&threads[1], 0, interrupted, 0);
    pthread_create(&threads[2], 0, interrupted_elsewhere, &mine);
    pthread_create(&threads[3], 0, carver, &mine);
    pthread_barrier_wait(&ready);
    printf("end\n");
    fflush(stdout);
    int c = getchar();
    row(&mine, heap->name, "", "", "");
    _exit(c == 'x');
}
