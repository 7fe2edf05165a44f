/* An object that is loaded late and imports what others do. */
#include <stdlib.h>
#include <string.h>

long imported_strtol(const char *text) { return strtol(text, NULL, 10); }
size_t imported_strlen(const char *text) { return strlen(text); }
