// Frees by the wrong function, one a row; `argv[1]` says which. "right" makes none. Each runs three times.
#include <cstdlib>
#include <cstring>
#include <cstdio>
#include <new>

extern "C" void __libc_free(void *);

struct Point {
    int x, y;
    ~Point() { x = 0; }
};
struct Quiet {
    int x, y;
};

#define KEEP __attribute__((noinline))

KEEP void *made_by_malloc(size_t n) { return std::malloc(n); }
KEEP Quiet *made_by_new() {
    Quiet *q = new Quiet;
    q->x = 1;
    return q;
}
KEEP int *made_by_new_array(int n) {
    int *a = new int[n];
    a[0] = 1;
    return a;
}

KEEP void by_free(void *p) {
    std::free(p);
    asm volatile("");
}
KEEP void by_delete(void *p) {
    ::operator delete(p);
    asm volatile("");
}
KEEP void by_sized_delete(Quiet *p) {
    delete p;
    asm volatile("");
}
KEEP void by_delete_array(int *p) {
    delete[] p;
    asm volatile("");
}
KEEP void by_delete_int(int *p) {
    delete p;
    asm volatile("");
}
KEEP void by_realloc(void *p) {
    void *q = std::realloc(p, 100);
    std::free(q);
    asm volatile("");
}

static void right() {
    by_free(made_by_malloc(10));
    by_sized_delete(made_by_new());
    by_delete_array(made_by_new_array(10));
    __libc_free(std::malloc(20));
    std::free(std::calloc(2, 20));
    std::free(std::realloc(std::malloc(3), 50));
    std::free(strdup("text"));
    std::free(std::aligned_alloc(64, 128));
    void *aligned = nullptr;
    if (posix_memalign(&aligned, 64, 100) == 0) std::free(aligned);
    delete[] new Point[5];
    delete new (std::nothrow) Quiet;
    delete[] new (std::nothrow) int[7];
    struct alignas(64) Wide {
        char bytes[64];
    };
    delete new Wide;
    delete[] new Wide[3];
    ::operator delete(::operator new(40), size_t(40));
    ::operator delete[](::operator new[](40), std::nothrow);
    // Through pointers: which operator it is cannot be read from the call.
    void *(*volatile any_new)(size_t) = ::operator new[];
    void (*volatile any_delete)(void *) = ::operator delete[];
    any_delete(any_new(30));
}

int main(int, char **argv) {
    const char *which = argv[1];
    for (int i = 0; i < 3; i++) {
        if (!strcmp(which, "right")) right();
        else if (!strcmp(which, "malloc-delete")) by_delete(made_by_malloc(30));
        else if (!strcmp(which, "malloc-sized-delete")) by_sized_delete((Quiet *)made_by_malloc(8));
        else if (!strcmp(which, "malloc-delete[]")) by_delete_array((int *)made_by_malloc(40));
        else if (!strcmp(which, "new-free")) by_free(made_by_new());
        else if (!strcmp(which, "new[]-free")) by_free(made_by_new_array(9));
        else if (!strcmp(which, "new[]-delete")) by_delete_int(made_by_new_array(9));
        else if (!strcmp(which, "new-delete[]")) by_delete_array((int *)made_by_new());
        else if (!strcmp(which, "new-realloc")) by_realloc(made_by_new());
        else return 2;
    }
    return 0;
}
