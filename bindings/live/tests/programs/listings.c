/* Listings: none until they are asked for, then those of what was hooked before and after, each as long as its hook; not through a link that lies
 * in the way. A forked child has its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "pointee_hooks.h"

volatile int sink;
__attribute__((noinline)) int before(int x) { return sink = x * 3 + 1, sink * 7 + x; }
__attribute__((noinline)) int after(int x) { return sink = x * 5 + 2, sink * 9 + x; }

static void *original;
static int hook(int x) { return ((int (*)(int))original)(x); }
static void enter(struct pointee_call *call) { (void)call; }
static void leave(struct pointee_return *result) { (void)result; }

/* The text of the listing of code called NAME@hook, which this process has written; null if there is none. */
static const char *listing(const char *name)
{
	static char text[4096];
	char command[128];
	snprintf(command, sizeof command, "cat /tmp/pointee-code-%d/%s@hook.* 2>/dev/null", getpid(), name);
	FILE *cat = popen(command, "r");
	text[fread(text, 1, sizeof text - 1, cat)] = 0;
	pclose(cat);
	return text[0] ? text : NULL;
}

int main(void)
{
	char path[64];
	snprintf(path, sizeof path, "/tmp/pointee-code-%d", getpid());
	struct pointee_result first = pointee_replace((void *)before, (void *)hook, &original);
	CHECK(access(path, F_OK) != 0);
	CHECK(symlink("/tmp", path) == 0 && pointee_write_listings() == -1 && unlink(path) == 0);
	CHECK(pointee_write_listings() == 0);
	const char *text = listing("before");
	CHECK(text && !strncmp(text, "entry hook of before (", 22) && strstr(text, "\ndisplaced: before ("));
	CHECK(text && strstr(text, "\njump: back to before+0x"));
	struct pointee_result second = pointee_wrap((void *)after, enter, leave, 0);
	text = listing("after");
	CHECK(text && !strncmp(text, "entry hook of after (", 21) && strstr(text, "each call and return is observed\npush: "));
	CHECK(listing("returned"));
	CHECK(!first.refusal[0] && !second.refusal[0] && before(1) == 29 && after(1) == 64);
	fflush(stdout);
	pid_t child = fork();
	if (child == 0) {
		CHECK(!pointee_remove(second.hook).refusal[0] && pointee_settle() == 0);
		CHECK(!listing("after"));
		second = pointee_wrap((void *)after, enter, leave, 1);
		CHECK(listing("after"));
		CHECK(!pointee_remove(second.hook).refusal[0] && pointee_settle() == 0);
		snprintf(path, sizeof path, "/tmp/pointee-code-%d", getpid());
		CHECK(rmdir(path) == 0);
		exit(failures);
	}
	int status = 0;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(listing("after"));
	CHECK(!pointee_remove(first.hook).refusal[0] && !pointee_remove(second.hook).refusal[0] && pointee_settle() == 0);
	CHECK(rmdir(path) == 0);
	printf("listings: %d failures\n", failures);
	return failures != 0;
}
