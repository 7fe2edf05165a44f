/* Hooks in a running program: each function here may be called at any time, from any thread, while other threads run
 * through the code that is changed. Link with -lpointee_hooks. */
#ifndef POINTEE_HOOKS_H
#define POINTEE_HOOKS_H

#include <stddef.h>
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

/* The call or jump at SITE (call rel32, jmp rel32, call [rip+d], jmp [rip+d]) goes to DESTINATION, and no other does;
 * *ORIGINAL is set to where it went before it first does. Taken out by pointee_remove. */
struct pointee_result pointee_redirect_call(void *site, void *destination, void **original);

/* Each call of FUNCTION goes where CHOOSE says, which is asked with DATA when a call comes from a place for the first time, with the address
 * that it returns to; null: to the function as it was, by *ORIGINAL. From then on the instruction itself leads there (call rel32, also by way of
 * a PLT, and call [rip+d]), and its calls do not pass FUNCTION's entry; calls by a register or a tail jump come by the entry to the same answer.
 * CHOOSE may be asked by several threads at once, and again for the same place; its own calls of FUNCTION go to that as it was. Taken out by
 * pointee_remove, from all places. */
struct pointee_result pointee_redirect_callers(void *function, void *(*choose)(void *return_address, uint64_t data), uint64_t data,
                                               void **original);
struct pointee_caller {
	void *return_address;
	void *destination;
	int in_place; /* the instruction itself leads there */
};
/* The places from which calls have come: the first ROOM of them. The answer: how many there are, or -1 if HOOK is no such hook in place. */
long pointee_callers(void *hook, struct pointee_caller *callers, size_t room);

/* Slots of an imported symbol, while they lead to a hook. */
struct pointee_imports {
	uint64_t private_words[8];
};

/* All objects but those that hold one of the COUNT addresses EXCEPT come to DESTINATION where they import NAME; *ORIGINAL is set
 * before. No thread is stopped. The answer: how many slots; -1 if nobody imports it. */
int pointee_redirect_imports(struct pointee_imports *, const char *name, void *destination, void *const *except,
                             size_t count, void **original);
/* The same for objects that were loaded since: how many slots. */
int pointee_refresh_imports(struct pointee_imports *, const char *name, void *const *except, size_t count);
/* The slots lead where they did: how many. */
int pointee_restore_imports(struct pointee_imports *);

/* The state of the processor at a probe. FLAGS: bit 0 overflow, bits 8, 10, 12, 14, 15 carry, parity, adjust, zero, sign, or as
 * pushfq pushes them; only set when the program still reads them. VECTORS: 0, or the vector registers whose bit is set in SAVED_VECTORS, each
 * 64 bytes from the one before; or what xsavec wrote, when SAVED_VECTORS is all ones. What a handler changes is so behind it; not
 * rsp and rip. */
struct pointee_state {
	uint64_t rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
	uint64_t rip, flags, vectors, saved_vectors;
};

enum pointee_context {
	POINTEE_NOTHING,    /* nothing is saved: the handler, in assembly, changes no register and no flag */
	POINTEE_GENERAL,    /* not the vector registers: the handler is compiled with -mgeneral-regs-only */
	POINTEE_EVERYTHING  /* any function */
};

/* What the function with the probe may be relied on for. PSABI: its callers and callees keep to the psABI, so that what it does not
 * read need not be saved. Functions that are local to a unit may not (-fipa-ra). */
enum pointee_convention { POINTEE_ANY, POINTEE_PSABI };

/* HANDLER is called with DATA before each execution of INSTRUCTION, behind what was put there before. Up to eight probes at one
 * instruction; they go in any order. */
struct pointee_result pointee_probe(void *instruction, enum pointee_context context, void (*handler)(struct pointee_state *, uint64_t data),
                                    uint64_t data, enum pointee_convention convention);
/* *CELL grows by one before each execution of INSTRUCTION; exactly, with several threads, if SHARED. */
struct pointee_result pointee_count(void *instruction, uint64_t *cell, int shared, enum pointee_convention convention);
/* Takes out a probe that one of these two gave. */
struct pointee_result pointee_remove_probe(void *probe);

/* An instruction that writes to a variable. SOURCE: the general register that it stores, by its number in struct pointee_state (rax is 0);
 * POINTEE_CONSTANT: VALUE is stored; POINTEE_OTHER: a vector register, or something that depends on what was there. */
struct pointee_store {
	void *at;
	int source;
	int64_t value;
};
enum { POINTEE_CONSTANT = -1, POINTEE_OTHER = -2 };

/* Each instruction of all loaded code that writes to one of LEN bytes at VARIABLE, by its name and not through a pointer: where a function was
 * inlined that writes to a global of its own, a probe there sees what it stores. The first ROOM of them are put into STORES. The answer:
 * how many there are, or -1. */
long pointee_find_stores(const void *variable, size_t len, struct pointee_store *stores, size_t room);

/* A parameter of an inlined function. SOURCE: the general register that holds it less VALUE, by its number in struct pointee_state (rax is 0);
 * POINTEE_IN_MEMORY more than that: it lies VALUE bytes from where that register points; POINTEE_CONSTANT: it is VALUE. */
struct pointee_operand {
	const char *name;
	int64_t value;
	int source;
	uint8_t width, is_signed; /* bytes: 1, 2, 4 or 8 */
};
enum { POINTEE_IN_MEMORY = 16, POINTEE_OPERANDS = 8 };

/* A place where FUNCTION was inlined, in HOLDER: its first instruction, and the first of its parameters that are known there. */
struct pointee_instance {
	void *at;
	const char *function, *holder;
	size_t count;
	struct pointee_operand operands[POINTEE_OPERANDS];
	struct pointee_result placed; /* the probe, by pointee_probe_inlined */
};

/* The places where functions were inlined, by a TABLE of LEN bytes that `pointee probe --dry-run FILE --inlined NAME --table TABLE` has
 * written; FILE is loaded. Names point into the table. The first ROOM are put into INSTANCES. The answer: how many there are; -1 if it is no table, or
 * no loaded object has FILE's build ID. Places that debug info does not tell, or of which no code is left, are not among them. */
long pointee_find_inlined(const void *table, size_t len, struct pointee_instance *instances, size_t room);

/* pointee_probe at each of COUNT places, of which PLACED tells how it went; HANDLER is given the address of the struct pointee_instance as DATA, which
 * stays as long as the probes. The answer: how many were placed. */
long pointee_probe_inlined(struct pointee_instance *instances, size_t count, enum pointee_context context,
                           void (*handler)(struct pointee_state *, uint64_t data), enum pointee_convention convention);

/* The value of a parameter, for a handler that is given the STATE. */
static inline int64_t pointee_operand_value(const struct pointee_state *state, const struct pointee_operand *operand)
{
	uint64_t value = (uint64_t)operand->value;
	int unused = 64 - 8 * operand->width;
	if (operand->source >= 0)
		value += ((const uint64_t *)state)[operand->source % POINTEE_IN_MEMORY];
	if (operand->source >= POINTEE_IN_MEMORY) {
		const volatile uint8_t *at = (const volatile uint8_t *)(uintptr_t)value;
		value = 0;
		for (int number = 0; number < operand->width; number++)
			value |= (uint64_t)at[number] << 8 * number;
	}
	return operand->is_signed ? (int64_t)(value << unused) >> unused : (int64_t)(value << unused >> unused);
}

/* Takes a hook out. From its return on, no call begins that goes to the hook. */
struct pointee_result pointee_remove(void *hook);

/* Gives back the memory of removed hooks, but of those that some thread may still be in: the answer is their number, or
 * -1 when the threads could not be stopped. */
int pointee_settle(void);

/* From now on /tmp/perf-PID.map names for perf what is hooked and what was: 0, or -1 if it cannot be written. Debuggers are told always. */
int pointee_write_perf_map(void);

/* From now on each hook in place has a text file, /tmp/pointee-code-PID/NAME@hook.ADDRESS.lst, that tells for each instruction written for it what it is
 * for, and of displaced ones where they come from: 0, or -1 if there cannot be. The lines that debuggers show for that code are those of these
 * files; in gdb, `call ((int (*)(void))pointee_write_listings)()` does as well. A file goes when its hook's memory is given back. */
int pointee_write_listings(void);

#ifdef __cplusplus
}
#endif
#endif
