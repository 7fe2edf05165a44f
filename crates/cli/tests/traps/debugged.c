/* A debugger stops at its own breakpoints, and nowhere else. */
#include "trapped.h"

volatile int attached;

__attribute__((noinline)) void stop_here(int number)
{
    trap(10);
    __asm__ volatile("" : : "r"(number));
}

int main(void)
{
    puts("ready");
    fflush(stdout);
    for (int seconds = 0; !attached && seconds < 120; seconds++)
        sleep(1);
    for (int number = 0; number < 3; number++) {
        trap(1);
        stop_here(number);
    }
    return done();
}
