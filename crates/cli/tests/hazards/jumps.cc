// longjmp and exceptions over frames that allocated; a new_handler that allocates and then throws.
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

static std::jmp_buf back;

static void jump(int depth)
{
    void *block = std::malloc(64 + depth);
    if (depth == 0) {
        std::free(block);
        std::longjmp(back, 1);
    }
    std::free(block);
    jump(depth - 1);
}

static int thrown;

static void thrower(int depth)
{
    std::vector<std::string> lines(depth + 1, std::string(100, 'x'));
    if (depth == 0)
        throw std::runtime_error("from " + lines[0]);
    thrower(depth - 1);
}

static void handler()
{
    void *block = std::malloc(10);
    std::free(block);
    throw std::bad_alloc();
}

int main()
{
    volatile int jumps = 0;
    for (volatile int i = 0; i < 1000; i = i + 1) {
        if (setjmp(back) == 0)
            jump(i % 20);
        else
            jumps = jumps + 1;
    }
    for (int i = 0; i < 1000; i++) {
        try {
            thrower(i % 10);
        } catch (const std::exception &) {
            thrown++;
        }
    }
    std::set_new_handler(handler);
    int refused = 0;
    for (int i = 0; i < 100; i++) {
        try {
            volatile size_t huge = ~size_t(0) / 4;
            char *block = new char[huge];
            delete[] block;
        } catch (const std::bad_alloc &) {
            refused++;
        }
    }
    void *failed = std::malloc(100);
    volatile size_t huge = ~size_t(0) / 4;
    void *grown = std::realloc(failed, huge);
    std::printf("jumps %d thrown %d refused %d realloc %s\n", jumps, thrown, refused, grown ? "grown" : "failed");
    std::free(failed);
}
