// What each program here checks, and how many of its checks failed.
#pragma once
#include <stdio.h>

static int failures;
#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			printf("line %d: %s\n", __LINE__, #condition); \
			failures++; \
		} \
	} while (0)
