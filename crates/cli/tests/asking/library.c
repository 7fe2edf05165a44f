/* A library that asks too: its type is the program's, at the same address. */
#include "pointee.h"

struct point { int x, y; };
static struct point own;
struct opaque { long inside[3]; };
struct opaque exported_by_the_library;

static __thread struct point of_the_librarys_thread;

struct point *thread_local_of_the_library(void);
struct point *thread_local_of_the_library(void)
{
    return &of_the_librarys_thread;
}

const struct uniqtype *type_of_the_library(void);
const struct uniqtype *type_of_the_library(void)
{
    return pointee_type(&own);
}
