/* A library that asks too: its type is the program's, at the same address. */
#include "pointee.h"

struct point { int x, y; };
static struct point own;

const struct uniqtype *type_of_the_library(void);
const struct uniqtype *type_of_the_library(void)
{
    return pointee_type(&own);
}
