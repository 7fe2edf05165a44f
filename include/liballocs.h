/* liballocs' public queries, by the same names and with the same meanings, answered by Pointee: for programs written
 * to liballocs. New programs use pointee.h, which this includes; what is said there of linking, threads and signals holds here.
 *
 * Where Pointee differs, on purpose:
 *   - the size of a malloc'd block is the size asked for, not the usable size;
 *   - the type of a local variable is the variable's, not that of its whole frame;
 *   - `struct uniqtype` is Pointee's: read it through the UNIQTYPE_ macros, which are liballocs'.
 * Not there: lifetime policies, the calls for writers of allocators (register those by pointee_add_allocator). Symbols of types are found by
 * dlsym, not by the linker.
 */
#ifndef POINTEE_LIBALLOCS_H
#define POINTEE_LIBALLOCS_H

#ifndef POINTEE_NO_SHORT_NAMES
#define POINTEE_NO_SHORT_NAMES
#endif
#include "pointee.h"

#include <dlfcn.h>
#include <stdarg.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Errors: compared by address --------------------------------------------------------------------------------- */

struct liballocs_err {
    const char *message;
};
typedef struct liballocs_err *liballocs_err_t;

#define LIBALLOCS_ERROR(name, text) \
    __attribute__((weak, visibility("hidden"))) struct liballocs_err __liballocs_err_##name = {text};
LIBALLOCS_ERROR(stack_walk_step_failure, "stack walk step failure")
LIBALLOCS_ERROR(unindexed_heap_object, "unindexed heap object")
LIBALLOCS_ERROR(unrecognised_alloc_site, "unrecognised alloc site")
LIBALLOCS_ERROR(unrecognised_static_object, "unrecognised static object")
LIBALLOCS_ERROR(object_of_unknown_storage, "object of unknown storage")
#undef LIBALLOCS_ERROR

static inline const char *__liballocs_errstring(struct liballocs_err *err)
{
    return err ? err->message : "no error";
}

/* ---- The allocation that holds an object ------------------------------------------------------------------------- */

/* Starts as `struct pointee_allocator` does. */
struct allocator {
    const char *name;
};
struct big_allocation;

/* Of an array block, the array with its length. */
static inline struct uniqtype *__liballocs_precise_type(const struct pointee_answer *answer)
{
    const struct uniqtype *type = answer->type;
    int is_open = type && type->kind == UNIQTYPE_ARRAY && type->length == POINTEE_UNKNOWN;
    if (is_open && type->target && type->target->size && type->target->size != POINTEE_UNKNOWN) {
        const struct uniqtype *precise = pointee_array_of(type->target, answer->size / type->target->size);
        type = precise ? precise : type;
    }
    return (struct uniqtype *)type;
}

/* All at once. NULL if all is known; what is known is filled in either way. Each pointer may be NULL. */
static inline struct liballocs_err *__liballocs_get_alloc_info(const void *obj, struct allocator **out_allocator,
                                                               const void **out_start, unsigned long *out_size,
                                                               struct uniqtype **out_type, const void **out_site)
{
    struct pointee_answer answer;
    int is_known = pointee_what(obj, &answer);
    if (out_allocator)
        *out_allocator = (struct allocator *)answer.allocator;
    if (out_start)
        *out_start = answer.base;
    if (out_size)
        *out_size = answer.size;
    if (out_type)
        *out_type = __liballocs_precise_type(&answer);
    if (out_site)
        *out_site = answer.site;
    if (!is_known)
        return &__liballocs_err_object_of_unknown_storage;
    if (answer.type || answer.kind == POINTEE_FUNCTION)
        return NULL;
    return answer.kind == POINTEE_HEAP ? &__liballocs_err_unrecognised_alloc_site
                                       : &__liballocs_err_unrecognised_static_object;
}

static inline struct uniqtype *alloc_get_type(void *obj)
{
    struct pointee_answer answer;
    pointee_what(obj, &answer);
    return __liballocs_precise_type(&answer);
}

static inline void *alloc_get_base(void *obj) { return pointee_base(obj); }
static inline void *alloc_get_limit(void *obj) { return pointee_limit(obj); }
static inline unsigned long alloc_get_size(void *obj) { return pointee_size(obj); }
static inline const void *alloc_get_site(void *obj) { return pointee_site(obj); }
static inline struct allocator *alloc_get_allocator(void *obj) { return (struct allocator *)pointee_allocator_of(obj); }

/* dladdr for any object: the file, or the allocator's name; the variable or function; where it starts. 0 if not known. */
#if defined(__USE_GNU)
static inline int alloc_dladdr(void *obj, Dl_info *info)
{
    struct pointee_answer answer;
    if (!pointee_what(obj, &answer))
        return 0;
    info->dli_fname = answer.module ? answer.module : answer.allocator ? answer.allocator->name : "";
    info->dli_fbase = answer.base;
    info->dli_sname = answer.name;
    info->dli_saddr = answer.base;
    return 1;
}
#endif

static inline struct uniqtype *__liballocs_get_alloc_type(void *obj) { return alloc_get_type(obj); }
static inline struct uniqtype *__liballocs_get_outermost_type(void *obj) { return alloc_get_type(obj); }
static inline struct uniqtype *__liballocs_get_type(void *obj) { return alloc_get_type(obj); }
static inline void *__liballocs_get_alloc_base(void *obj) { return alloc_get_base(obj); }
static inline void *__liballocs_get_base(void *obj) { return alloc_get_base(obj); }
static inline unsigned long __liballocs_get_alloc_size(void *obj) { return alloc_get_size(obj); }
static inline const void *__liballocs_get_alloc_site(void *obj) { return alloc_get_site(obj); }
static inline struct allocator *__liballocs_get_leaf_allocator(void *obj) { return alloc_get_allocator(obj); }

/* The innermost object at `obj`, but for as many around it. */
static inline struct uniqtype *__liballocs_get_inner_type(void *obj, unsigned skip_at_bottom)
{
    return (struct uniqtype *)pointee_inner_type(obj, skip_at_bottom, NULL);
}
static inline struct uniqtype *__liballocs_get_innermost_type(void *obj) { return __liballocs_get_inner_type(obj, 0); }

/* Another type for a block, as long as it lives. */
static inline void __liballocs_set_alloc_type(void *obj, const struct uniqtype *type)
{
    const struct pointee_calls *calls = pointee_get_calls();
    if (calls)
        calls->set_type(obj, type);
}

/* ---- Sites ------------------------------------------------------------------------------------------------------- */

typedef unsigned short allocsite_id_t;
#define ALLOCSITE_ID_UNKNOWN ((allocsite_id_t)-1)

/* A small number for a site that some answer named; ALLOCSITE_ID_UNKNOWN for other addresses. */
static inline allocsite_id_t __liballocs_allocsite_id(const void *allocsite)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? (allocsite_id_t)calls->site_id(allocsite) : ALLOCSITE_ID_UNKNOWN;
}

/* The site of that number; NULL if there is none. */
static inline const void *__liballocs_allocsite_by_id(allocsite_id_t id)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->site_by_id(id) : NULL;
}

/* ---- Mappings, stack, all allocations ------------------------------------------------------------------------------ */

struct mapping_entry {
    void *begin;
    void *end;
    int prot;
    int flags; /* 1: shared, 2: private (MAP_SHARED, MAP_PRIVATE) */
    long offset;
    unsigned is_anon : 1;
    void *caller;
};

/* The mapping that holds `obj`; overwritten by the thread's next call. NULL if there is none. `out_bigalloc` is left NULL. */
static inline struct mapping_entry *__liballocs_get_memory_mapping(const void *obj, struct big_allocation **out_bigalloc)
{
    static __thread struct mapping_entry entry __attribute__((tls_model("initial-exec")));
    struct pointee_mapping mapping;
    if (out_bigalloc)
        *out_bigalloc = NULL;
    if (!pointee_mapping_of(obj, &mapping))
        return NULL;
    entry.begin = (void *)(uintptr_t)mapping.start;
    entry.end = (void *)(uintptr_t)mapping.end;
    entry.prot = (int)mapping.protection;
    entry.flags = mapping.is_shared ? 1 : 2;
    entry.offset = (long)mapping.offset;
    entry.is_anon = mapping.inode == 0;
    entry.caller = NULL;
    return &entry;
}

/* From the caller outwards, until the callback returns something else than 0. */
static inline int __liballocs_walk_stack(int (*cb)(void *ip, void *sp, void *bp, void *arg), void *arg)
{
    return pointee_walk_stack(cb, arg);
}

struct alloc_tree_pos;
struct alloc_tree_link;
typedef int walk_alloc_cb_t(struct big_allocation *maybe_the_allocation, void *obj, struct uniqtype *type,
                            const void *allocsite, struct alloc_tree_link *link_to_here, void *arg);

struct __liballocs_walk {
    walk_alloc_cb_t *cb;
    void *arg;
    void *begin;
    void *end;
};

static inline int __liballocs_walk_one(const struct pointee_answer *block, void *argument)
{
    struct __liballocs_walk *walk = (struct __liballocs_walk *)argument;
    if ((walk->begin && block->base < walk->begin) || (walk->end && block->base >= walk->end))
        return 0;
    return walk->cb(NULL, block->base, __liballocs_precise_type(block), block->site, NULL, walk->arg);
}

/* Every live block that starts in [begin, end), NULL for no bound; `pos` is not looked at. Until the callback returns
 * something else than 0, which is returned. */
static inline int alloc_walk_allocations(struct alloc_tree_pos *pos, walk_alloc_cb_t *cb, void *arg, void *begin, void *end)
{
    struct __liballocs_walk walk = {cb, arg, begin, end};
    (void)pos;
    return pointee_each_block(__liballocs_walk_one, &walk);
}

static inline int __liballocs_walk_allocations_df(struct alloc_tree_pos *pos, walk_alloc_cb_t *cb, void *arg)
{
    return alloc_walk_allocations(pos, cb, arg, NULL, NULL);
}

/* 0 if there is somebody to answer. */
static inline int __liballocs_global_init(void) { return pointee_is_there() ? 0 : -1; }
static inline void __liballocs_ensure_init(void) {}

/* ---- Types ------------------------------------------------------------------------------------------------------- */

static inline const char *__liballocs_uniqtype_name(const struct uniqtype *u) { return pointee_type_name(u); }

/* By name, or by the name of liballocs' symbol: "int", "__uniqtype__commit", "__uniqtype_1a2b3c4d_commit". */
static inline const void *__liballocs_typestr_to_uniqtype(const char *name) { return pointee_type_named(name); }

static inline struct uniqtype *__liballocs_get_or_create_array_type(struct uniqtype *element, unsigned length)
{
    return (struct uniqtype *)pointee_array_of(element, length);
}
static inline struct uniqtype *__liballocs_get_or_create_unbounded_array_type(struct uniqtype *element)
{
    return (struct uniqtype *)pointee_array_of(element, POINTEE_UNKNOWN);
}
static inline struct uniqtype *__liballocs_get_or_create_flexible_array_type(struct uniqtype *element)
{
    return (struct uniqtype *)pointee_array_of(element, POINTEE_UNKNOWN);
}
static inline struct uniqtype *__liballocs_get_or_create_address_type(const struct uniqtype *target)
{
    return (struct uniqtype *)pointee_pointer_to(target);
}
static inline struct uniqtype *__liballocs_get_or_create_subprogram_type(struct uniqtype *result, unsigned count,
                                                                        struct uniqtype **arguments)
{
    return (struct uniqtype *)pointee_function_type(result, count, (const struct uniqtype *const *)arguments);
}
/* Of up to sixteen types. */
static inline struct uniqtype *__liballocs_get_or_create_union_type(unsigned count, ...)
{
    const struct uniqtype *types[16];
    va_list rest;
    unsigned at;
    if (count > sizeof types / sizeof types[0])
        return NULL;
    va_start(rest, count);
    for (at = 0; at < count; at++)
        types[at] = va_arg(rest, struct uniqtype *);
    va_end(rest);
    return (struct uniqtype *)pointee_union_of(count, types);
}

#ifdef __cplusplus
}
#endif

#define UNIQTYPE_NAME(u) __liballocs_uniqtype_name(u)
#define NAME_FOR_UNIQTYPE(u) __liballocs_uniqtype_name(u)
#define UNIQTYPE_SIZE_IN_BYTES(u) ((u)->size)
#define UNIQTYPE_KIND(u) ((u)->kind)
#define UNIQTYPE_IS_SUBPROGRAM_TYPE(u) ((u)->kind == UNIQTYPE_FUNCTION)
#define UNIQTYPE_IS_POINTER_TYPE(u) ((u)->kind == UNIQTYPE_POINTER || (u)->kind == UNIQTYPE_REFERENCE || (u)->kind == UNIQTYPE_RVALUE_REFERENCE)
#define UNIQTYPE_IS_ARRAY_TYPE(u) ((u)->kind == UNIQTYPE_ARRAY)
#define UNIQTYPE_IS_BASE_TYPE(u) ((u)->kind == UNIQTYPE_BASE)
#define UNIQTYPE_IS_ENUM_TYPE(u) ((u)->kind == UNIQTYPE_ENUM)
#define UNIQTYPE_IS_COMPOSITE_TYPE(u) \
    ((u)->kind == UNIQTYPE_STRUCT || (u)->kind == UNIQTYPE_CLASS || (u)->kind == UNIQTYPE_UNION \
     || (u)->kind == UNIQTYPE_VARIANT || (u)->kind == UNIQTYPE_TRAILED)
#define UNIQTYPE_POINTEE_TYPE(u) ((struct uniqtype *)(u)->target)
#define UNIQTYPE_ARRAY_LENGTH(u) ((u)->length)
#define UNIQTYPE_ARRAY_ELEMENT_TYPE(u) ((struct uniqtype *)(u)->target)
#define UNIQTYPE_COMPOSITE_MEMBER_COUNT(u) ((u)->members_len)
#define UNIQTYPE_SUBPROGRAM_ARG_COUNT(u) ((u)->members_len)

#endif
