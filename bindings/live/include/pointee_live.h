/* Hooks in a running program: each function here may be called at any time, from any thread, while other threads run
 * through the code that is changed. Link with -lpointee_live. */
#ifndef POINTEE_LIVE_H
#define POINTEE_LIVE_H

#include <stdint.h>
#ifndef __cplusplus
#include <stdalign.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct pointee_result {
	void *hook;        /* the hook; null when there is none */
	uint64_t pause;    /* how long the other threads stood still, in nanoseconds */
	uint32_t threads;  /* how many */
	char refusal[60];  /* why nothing was done; empty when it was */
};

/* Calls of FUNCTION go to REPLACEMENT, which calls the function as it was through *ORIGINAL, set before its first call.
 * ORIGINAL is used as long as the hook is in place. */
struct pointee_result pointee_replace(void *function, void *replacement, void **original);

/* The registers at a call or return. Vector registers from the lowest byte up, as wide as the processor has them. */
struct pointee_registers {
	uint64_t rdi, rsi, rdx, rcx, r8, r9, rax, r10, r11, unused[7];
	alignas(64) uint8_t vectors[16][64];
};

struct pointee_call {
	void *function;
	uint64_t data;
	void *return_address;
	uint64_t *stack; /* arguments on the stack */
	struct pointee_registers *registers;
};

struct pointee_return {
	void *function;
	uint64_t data;
	void *return_address;
	struct pointee_registers *registers;
};

/* ENTER is called before each call of FUNCTION, whatever its type, LEAVE after its return, both with DATA. They may change
 * registers, must return, and are not themselves seen; LEAVE is not called when FUNCTION is left by longjmp or an
 * exception. Both may be called by any thread as long as the hook is in place, and by calls that began before. */
struct pointee_result pointee_wrap(void *function, void (*enter)(struct pointee_call *),
                                   void (*leave)(struct pointee_return *), uint64_t data);

/* Calls of wrapped functions that were not seen: made by ENTER or LEAVE, more than 128 deep, or on more than 1,024 threads. */
uint64_t pointee_missed(void);

/* Takes a hook out. From its return on, no call begins that goes to the hook. */
struct pointee_result pointee_remove(void *hook);

/* Gives back the memory of removed hooks, but of those that some thread may still be in: the answer is their number, or
 * -1 when the threads could not be stopped. */
int pointee_settle(void);

#ifdef __cplusplus
}
#endif
#endif
