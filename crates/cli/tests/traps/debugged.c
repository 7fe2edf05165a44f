/* A debugger stops at its own breakpoints, and nowhere else. */
#include "trapped.h"

__attribute__((noinline)) void stop_here(int number)
{
    trap(10);
    __asm__ volatile("" : : "r"(number));
}

int main(void)
{
    for (int number = 0; number < 3; number++) {
        trap(1);
        stop_here(number);
    }
    return done();
}
