/* liballocs' public queries, by their own names: prints what the first says, and how many others are wrong. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "liballocs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct widget { int a; double d[3]; struct widget *next; };
static int wrong;

#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            printf("wrong: %d: %s\n", __LINE__, #condition); \
            wrong++; \
        } \
    } while (0)

static int found;

static int find(struct big_allocation *maybe, void *obj, struct uniqtype *type, const void *site, struct alloc_tree_link *link,
                void *wanted)
{
    (void)maybe, (void)link;
    if (obj == wanted)
        found += type && site;
    return 0;
}

static int count(void *ip, void *sp, void *bp, void *frames)
{
    (void)ip, (void)sp, (void)bp;
    ++*(int *)frames;
    return 0;
}

int main(void)
{
    struct widget *widgets = (struct widget *)calloc(4, sizeof *widgets);
    struct allocator *allocator;
    const void *start, *site;
    unsigned long size;
    struct uniqtype *type;
    struct liballocs_err *error =
        __liballocs_get_alloc_info(&widgets[2].d[1], &allocator, &start, &size, &type, &site);
    puts(__liballocs_errstring(error));
    if (error)
        return 0;
    EXPECT(start == widgets && size == 4 * sizeof *widgets && site);
    EXPECT(strstr(allocator->name, "malloc"));
    EXPECT(!strcmp(UNIQTYPE_NAME(type), "struct widget[4]"));
    EXPECT(UNIQTYPE_IS_ARRAY_TYPE(type) && UNIQTYPE_ARRAY_LENGTH(type) == 4);
    EXPECT(alloc_get_type(widgets) == type && __liballocs_get_outermost_type(widgets) == type);
    EXPECT(alloc_get_base(&widgets[1]) == widgets && alloc_get_limit(widgets) == widgets + 4);
    EXPECT(alloc_get_site(widgets) == site && alloc_get_allocator(widgets) == allocator);
    EXPECT(__liballocs_get_leaf_allocator(widgets) == allocator);
    EXPECT(alloc_get_size(widgets) == size && __liballocs_get_alloc_size(&widgets[1]) == size);
    EXPECT(__liballocs_get_alloc_type(widgets) == type && __liballocs_get_alloc_base(&widgets[3]) == widgets);
    EXPECT(__liballocs_get_alloc_site(widgets) == site);
    EXPECT(dlsym(RTLD_DEFAULT, "__uniqtype__widget") == (void *)UNIQTYPE_ARRAY_ELEMENT_TYPE(type));
    EXPECT(dlsym(RTLD_DEFAULT, "__uniqtype__int") == __liballocs_typestr_to_uniqtype("int"));
    EXPECT(!dlsym(RTLD_DEFAULT, "__uniqtype__of_nobody"));
    EXPECT(!strcmp(UNIQTYPE_NAME(__liballocs_get_inner_type(&widgets[2].d[1], 0)), "double"));
    EXPECT(!strcmp(UNIQTYPE_NAME(__liballocs_get_inner_type(&widgets[2].d[1], 1)), "double[3]"));
    EXPECT(__liballocs_get_inner_type(&widgets[2].d[1], 2) == UNIQTYPE_ARRAY_ELEMENT_TYPE(type));
    EXPECT(__liballocs_allocsite_by_id(__liballocs_allocsite_id(site)) == site);
    EXPECT(__liballocs_allocsite_id(&wrong) == ALLOCSITE_ID_UNKNOWN);
    EXPECT(__liballocs_typestr_to_uniqtype("__uniqtype__widget") == UNIQTYPE_ARRAY_ELEMENT_TYPE(type));

    struct uniqtype *integer = (struct uniqtype *)__liballocs_typestr_to_uniqtype("int");
    struct uniqtype *either = __liballocs_get_or_create_union_type(2, integer, type);
    EXPECT(either == __liballocs_get_or_create_union_type(2, integer, type));
    EXPECT(UNIQTYPE_SIZE_IN_BYTES(either) == sizeof(struct widget[4]));
    void *untyped = malloc(40);
    __liballocs_set_alloc_type(untyped, __liballocs_get_or_create_array_type(integer, 10));
    EXPECT(!strcmp(__liballocs_uniqtype_name(alloc_get_type(untyped)), "int[10]"));

    alloc_walk_allocations(NULL, find, widgets, NULL, NULL);
    __liballocs_walk_allocations_df(NULL, find, widgets);
    EXPECT(found == 2);
    int frames = 0;
    EXPECT(__liballocs_walk_stack(count, &frames) == 0 && frames > 1);
    struct mapping_entry *mapping = __liballocs_get_memory_mapping(widgets, NULL);
    EXPECT(mapping && mapping->is_anon && mapping->prot == 3);
    Dl_info info;
    EXPECT(alloc_dladdr(&wrong, &info) && !strcmp(info.dli_sname, "wrong") && info.dli_saddr == &wrong);
    EXPECT(__liballocs_get_alloc_info((void *)1, NULL, NULL, NULL, NULL, NULL)
           == &__liballocs_err_object_of_unknown_storage);
    printf("end %d\n", wrong);
    return wrong;
}
