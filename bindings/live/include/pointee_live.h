/* Hooks in a running program: each function here may be called at any time, from any thread, while other threads run
 * through the code that is changed. Link with -lpointee_live. */
#ifndef POINTEE_LIVE_H
#define POINTEE_LIVE_H

#include <stdint.h>

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

/* Takes a hook out. From its return on, no call begins that goes to the hook. */
struct pointee_result pointee_remove(void *hook);

/* Gives back the memory of removed hooks, but of those that some thread may still be in: the answer is their number, or
 * -1 when the threads could not be stopped. */
int pointee_settle(void);

#ifdef __cplusplus
}
#endif
#endif
