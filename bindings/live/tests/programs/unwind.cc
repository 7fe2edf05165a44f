// Exceptions, backtraces, cancellation and jumps through functions that are hooked in every way: unwind KIND. KIND is "replace", "wrap", "site" and
// "callers" (the call of the function), "probe", "general" and "count" (at its entry), "call" (at a call of its own). "unwind KIND threads" has another
// thread, so that entries are changed by one byte; "unwind KIND uncancelled" cancels nobody: that goes wrong by itself where there are two unwinders,
// since glibc brings its own; "unwind KIND stop" stops in the innermost function, for a debugger.
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <string>
#include <unistd.h>

#include "check.h"
#include "pointee_hooks.h"

static long entered, left_, destroyed;

struct Guard {
	~Guard() { destroyed++; }
};

extern "C" {
jmp_buf back;
std::string seen;

__attribute__((noinline)) void innermost(int what)
{
	if (what == 0) {
		void *frames[64];
		int count = backtrace(frames, 64);
		for (int i = 0; i < count; i++) {
			Dl_info info;
			if (dladdr((char *)frames[i] - 1, &info) && info.dli_sname)
				seen += std::string(info.dli_sname) + " ";
		}
	}
	if (what == 1)
		throw 42;
	if (what == 2)
		longjmp(back, 1);
	if (what == 3)
		for (;;)
			pause();
}

__attribute__((noinline)) int hooked(int what)
{
	Guard guard;
	innermost(what);
	return what + 1;
}

__attribute__((noinline)) int outer(int what)
{
	Guard guard;
	return hooked(what) + 1;
}

static void *original;
int replacement(int what)
{
	entered++;
	int result = reinterpret_cast<int (*)(int)>(original)(what);
	left_++;
	return result;
}
}

static void enter(pointee_call *call) { entered += call->data; }
static void leave(pointee_return *result) { left_ += result->data; }

// Looks around once, as a profiler would.
static std::string seen_by_handler;
static void handler(pointee_state *, uint64_t data)
{
	entered += data;
	if (seen_by_handler.empty()) {
		seen.clear();
		innermost(0);
		seen_by_handler.swap(seen);
	}
}

// The call of CALLED in CALLER.
static void *call_in(void *caller, void *called)
{
	for (unsigned char *at = (unsigned char *)caller; at < (unsigned char *)caller + 200; at++) {
		int distance;
		memcpy(&distance, at + 1, sizeof distance);
		if (*at == 0xe8 && at + 5 + distance == (unsigned char *)called)
			return at;
	}
	return nullptr;
}

// What a handler that may use no vector registers can do.
__attribute__((target("general-regs-only"))) static void count_general(pointee_state *, uint64_t data)
{
	entered += data;
}

static void *choose(void *, uint64_t)
{
	return (void *)replacement;
}

static pointee_result put(const char *kind)
{
	if (!strcmp(kind, "wrap"))
		return pointee_wrap((void *)hooked, enter, leave, 1);
	if (!strcmp(kind, "site"))
		return pointee_redirect_call(call_in((void *)outer, (void *)hooked), (void *)replacement, &original);
	if (!strcmp(kind, "callers"))
		return pointee_redirect_callers((void *)hooked, choose, 0, &original);
	if (!strcmp(kind, "probe"))
		return pointee_probe((void *)hooked, POINTEE_EVERYTHING, handler, 1, POINTEE_PSABI);
	if (!strcmp(kind, "general"))
		return pointee_probe((void *)hooked, POINTEE_GENERAL, count_general, 1, POINTEE_PSABI);
	if (!strcmp(kind, "count"))
		return pointee_count((void *)hooked, (uint64_t *)&entered, 1, POINTEE_PSABI);
	if (!strcmp(kind, "call"))
		return pointee_probe(call_in((void *)hooked, (void *)innermost), POINTEE_EVERYTHING, handler, 1, POINTEE_ANY);
	return pointee_replace((void *)hooked, (void *)replacement, &original);
}

static void *sleeper(void *)
{
	for (;;)
		pause();
}

static void *cancelled(void *)
{
	outer(3);
	return nullptr;
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "replace";
	const bool looks = !strcmp(kind, "probe") || !strcmp(kind, "call");
	const bool probes = looks || !strcmp(kind, "general") || !strcmp(kind, "count");
	void *frames[4];
	backtrace(frames, 4); // loads the unwinder
	if (argc > 2 && !strcmp(argv[2], "threads")) {
		pthread_t thread;
		pthread_create(&thread, nullptr, sleeper, nullptr);
	}
	Dl_info unwinder;
	if (dladdr((void *)backtrace, &unwinder))
		printf("backtrace() of %s\n", unwinder.dli_fname);
	pointee_result in = put(kind);
	if (in.refusal[0]) {
		printf("refused: %s\n", in.refusal);
		return 1;
	}
	CHECK(outer(5) == 7);
	CHECK(entered == 1 && left_ == !probes);
	if (looks) {
		// The handler's callers are those of the function.
		CHECK(seen_by_handler.find("outer main") != std::string::npos);
		if (failures)
			printf("%s\n", seen_by_handler.c_str());
	}
	if (argc > 2 && !strcmp(argv[2], "stop"))
		return outer(5) != 7 || outer(0) != 2;

	outer(0);
	size_t inner_at = seen.find("innermost "), hooked_at = seen.find("hooked "), outer_at = seen.find("outer "), main_at = seen.find("main ");
	CHECK(inner_at < hooked_at && hooked_at < outer_at && outer_at < main_at && main_at != std::string::npos);
	if (failures)
		printf("%s\n", seen.c_str());

	for (int i = 0; i < 1000; i++) {
		int caught = 0;
		destroyed = 0;
		try {
			outer(1);
		} catch (int value) {
			caught = value;
		}
		CHECK(caught == 42 && destroyed == 2);
		if (failures)
			break;
	}
	entered = left_ = 0;
	for (volatile int i = 0; i < 1000; i++)
		if (!setjmp(back))
			outer(2);
	CHECK(entered == 1000 && left_ == 0);
	CHECK(outer(5) == 7 && left_ == !probes);

	const bool cancels = argc < 3 || strcmp(argv[2], "uncancelled");
	for (int i = 0; cancels && i < 20; i++) {
		pthread_t thread;
		destroyed = 0;
		entered = 0;
		pthread_create(&thread, nullptr, cancelled, nullptr);
		while (__atomic_load_n(&entered, __ATOMIC_RELAXED) == 0)
			usleep(100);
		usleep(1000);
		pthread_cancel(thread);
		void *result;
		pthread_join(thread, &result);
		CHECK(result == PTHREAD_CANCELED && destroyed == 2);
	}
	CHECK(!(probes ? pointee_remove_probe(in.hook) : pointee_remove(in.hook)).refusal[0]);
	entered = 0;
	CHECK(outer(5) == 7 && entered == 0);
	CHECK(pointee_settle() == 0);
	CHECK(outer(5) == 7);
	printf("%s: %d failures, %lu missed\n", kind, failures, (unsigned long)pointee_missed());
	return failures != 0;
}
