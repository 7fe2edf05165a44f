/* What is on the end of this pointer?
 *
 * Pointee's interface for programs that ask about themselves, in C (gnu11, c11) and C++. Compile with plain
 * `gcc -g` and link with nothing. Run by itself, the program gets "don't know" to every question; under
 * `pointee run`, or with Pointee's runtime preloaded, it gets answers.
 *
 *   struct pointee_answer a;
 *   if (pointee_what(p, &a))
 *       printf("%zu bytes of %s, %zu in\n", a.size, pointee_type_name(a.type), (char *)p - (char *)a.base);
 *   assert(is_a(p, "struct commit"));
 *
 * All calls may be made from any thread and from signal handlers; they take no lock, allocate nothing and leave errno
 * alone. Only what lies on another thread's stack, in its thread-locals, or in nothing but a mapping is asked of the kernel. What they hand out (types, names, allocators) stays valid until the process ends.
 *
 * Types need debug info of the file that allocates, and its metadata image: `pointee run` makes it before a
 * program with this header in it starts; of libraries, it has those of the last run.
 */
#ifndef POINTEE_H
#define POINTEE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A size or length that is not known. */
#define POINTEE_UNKNOWN SIZE_MAX

/* ---- Types ------------------------------------------------------------------------------------------------------ */

enum uniqtype_kind {
    UNIQTYPE_UNKNOWN = 0,
    UNIQTYPE_VOID = 1,
    UNIQTYPE_BASE = 2,
    UNIQTYPE_POINTER = 3,
    UNIQTYPE_REFERENCE = 4,
    UNIQTYPE_RVALUE_REFERENCE = 5,
    UNIQTYPE_MEMBER_POINTER = 6,
    UNIQTYPE_STRUCT = 7,
    UNIQTYPE_CLASS = 8,
    UNIQTYPE_UNION = 9,
    UNIQTYPE_ENUM = 10,
    UNIQTYPE_ARRAY = 11,
    UNIQTYPE_FUNCTION = 12,
    UNIQTYPE_VARIANT = 18,
    /* What a site makes of a header and an array behind it: `malloc(sizeof(struct h) + n * sizeof(int))`. */
    UNIQTYPE_TRAILED = 32
};

/* A member of a structure, class, union or variant; a parameter of a function; an enumerator. */
struct uniqtype_member {
    const char *name;             /* "" if it has none */
    const struct uniqtype *type;  /* NULL for enumerators */
    uint64_t offset;              /* bytes; of an enumerator, its value */
    uint16_t bit_offset;          /* of a bit-field: first bit, from the least significant one at offset */
    uint16_t bit_size;            /* of a bit-field: its width; else 0 */
    uint32_t flags;               /* 1: base class, 2: virtual base, 4: artificial */
};

/* A type. One type has one address in a process, whatever file it was compiled into: compare pointers.
 * Typedefs and qualifiers are not types: they stand for what they stand for. */
struct uniqtype {
    const char *name;                       /* as C writes it: "struct commit *[4]" */
    size_t size;                            /* bytes, or POINTEE_UNKNOWN */
    size_t length;                          /* elements of an array, or POINTEE_UNKNOWN; else 0 */
    const struct uniqtype *target;          /* pointee, element, result, what an enumeration is stored as */
    const struct uniqtype_member *members;  /* members, parameters, enumerators */
    uint32_t members_len;
    uint8_t kind;                           /* enum uniqtype_kind */
    uint8_t encoding;                       /* of base types: DW_ATE_* */
    uint16_t flags;                         /* 1: only declared, 2: has virtual functions, 4: has no name of its own */
    uint64_t identity[2];                   /* hash of what the type is; the same in every process */
};

/* ---- Answers ---------------------------------------------------------------------------------------------------- */

enum pointee_kind {
    POINTEE_NOTHING = 0,   /* not known */
    POINTEE_HEAP = 1,      /* a block */
    POINTEE_STATIC = 2,    /* a variable with a fixed address */
    POINTEE_FUNCTION = 3,
    POINTEE_SECTION = 4,   /* a loaded file, known by section only */
    POINTEE_LOCAL = 5,     /* a variable in a frame of the asking thread */
    POINTEE_FRAME = 6,     /* such a frame, but no variable that is known */
    POINTEE_THREAD = 7,    /* a thread-local variable */
    POINTEE_MAPPING = 8,   /* memory that is mapped, and nothing else is known */
    POINTEE_SIGNAL_STACK = 9, /* what a thread set aside for its signal handlers, outside of the asking thread's frames */
    POINTEE_STACK = 10,    /* the stack of a thread, outside of the asking thread's frames */
    POINTEE_ALLOCA = 11    /* made by alloca in a frame of the asking thread, where a pointer to it is a variable in memory;
                              up to what lies next in the frame */
};

struct pointee_allocator;

struct pointee_answer {
    uint32_t kind;                              /* enum pointee_kind */
    uint32_t thread;                            /* the kernel's number of the thread whose it is; 0 for the asking thread's
                                                   own, and what is no thread's */
    void *base;                                 /* first byte */
    size_t size;                                /* bytes: of a block, those that were asked for */
    const struct uniqtype *type;                /* of the whole; NULL if not known. Of an array block "T[]": it has
                                                   size / type->target->size elements */
    const void *site;                           /* where the call that allocated returns to; of a local, where its
                                                   frame goes on */
    const struct pointee_allocator *allocator;  /* who gave it; NULL if not known */
    const char *name;                           /* of a variable, function or section; else NULL */
    const char *module;                         /* path of the file it lies in; NULL for blocks */
};

/* An allocator. Pointee has its own for blocks, statics and stacks; a program may register more. */
struct pointee_allocator {
    const char *name;                           /* "malloc of libc.so.6" */
    const char *free_name;                      /* the function that must free: "free", "operator delete[]"; or NULL */
    void (*free)(void *object);                 /* the same to be called; or NULL */
    /* Fills in the answer for the object that holds `address`, and returns 1; 0 if there is none. The answer comes zeroed, with
     * allocator set. It is called wherever a question is asked: no lock, no allocation. NULL in those of Pointee's own. */
    int (*what)(const struct pointee_allocator *self, const void *address, struct pointee_answer *answer);
};

/* A code address in words. Fields are NULL or 0 where not known. */
struct pointee_place {
    const char *function;
    const char *file;
    const char *module;    /* path of the loaded file */
    uint32_t line;
    uint32_t reserved;
    uint64_t offset;       /* the address as that file states it */
};

struct pointee_mapping {
    uint64_t start, end;   /* addresses */
    uint64_t offset;       /* in the file */
    uint64_t inode;        /* of the file; 0 if there is none */
    uint32_t protection;   /* PROT_* */
    uint32_t is_shared;
};

/* Answers to yes-or-no questions. "Don't know" is true, so that `assert(is_a(p, "struct commit"))` does not fail
 * a program that runs without Pointee; ask `is_a(…) == POINTEE_YES` to be sure. */
enum pointee_truth { POINTEE_DONT_KNOW = -1, POINTEE_NO = 0, POINTEE_YES = 1 };

/* ---- How calls find Pointee -------------------------------------------------------------------------------------- */

enum pointee_relation { POINTEE_IS = 0, POINTEE_LIKE = 1, POINTEE_NAMED = 2, POINTEE_LIKE_NAMED = 3 };

typedef int pointee_visit(const struct pointee_answer *block, void *argument);
typedef int pointee_visit_frame(void *code, void *sp, void *bp, void *argument);

struct pointee_calls {
    uint32_t version;
    uint32_t len;
    int (*what)(const void *, unsigned, struct pointee_answer *);
    int (*is)(const void *, unsigned, const void *);
    int (*walk_stack)(pointee_visit_frame *, void *);
    int (*each_block)(pointee_visit *, void *);
    int (*place)(const void *, struct pointee_place *);
    int (*mapping)(const void *, struct pointee_mapping *);
    int (*release)(void *);
    int (*add_allocator)(const struct pointee_allocator *, const void *, size_t);
    int (*remove_allocator)(const void *);
    const struct uniqtype *(*type_named)(const char *);
    const struct uniqtype *(*type_derived)(unsigned, const struct uniqtype *, size_t);
    const struct uniqtype *(*type_of_parts)(unsigned, const struct uniqtype *, size_t, const struct uniqtype *const *);
    const struct uniqtype *(*innermost)(const struct uniqtype *, size_t, unsigned, size_t *);
    int (*set_type)(void *, const struct uniqtype *);
    int (*site_id)(const void *);
    const void *(*site_by_id)(int);
};

/* One in each executable or library, in a section of its own, and a note that says where: the runtime finds it when
 * the file is loaded, and fills in `calls`. A group, so that many objects linked together have one. */
struct pointee_slot {
    char magic[8];
    uint32_t version;
    uint32_t reserved;
    const struct pointee_calls *calls;
};
extern struct pointee_slot pointee_slot __attribute__((visibility("hidden")));

/* One definition in one assembly: link-time optimization may put several objects' into it. */
__asm__(".ifndef pointee_slot\n"
        "\t.pushsection pointee_slots,\"awG\",%progbits,pointee_slot,comdat\n"
        "\t.weak pointee_slot\n"
        "\t.hidden pointee_slot\n"
        "\t.type pointee_slot,%object\n"
        "\t.balign 8\n"
        "pointee_slot:\n"
        "\t.ascii \"PTEESLOT\"\n"
        "\t.long 1, 0\n"
        "\t.quad 0\n"
        "\t.size pointee_slot, . - pointee_slot\n"
        "\t.popsection\n"
        "\t.pushsection .note.pointee,\"aG\",%note,pointee_slot,comdat\n"
        "\t.balign 4\n"
        "\t.long 8, 8, 1\n"
        "\t.asciz \"Pointee\"\n"
        "\t.quad pointee_slot - .\n"
        "\t.popsection\n"
        ".endif\n");

/* Calls go straight to Pointee, and objects that are asked about need not have been written yet: compilers shall not warn
 * that they are read. */
#define POINTEE_INLINE static inline __attribute__((always_inline))
POINTEE_INLINE const void *pointee_unread(const void *object)
{
    __asm__("" : "+r"(object));
    return object;
}

POINTEE_INLINE const struct pointee_calls *pointee_get_calls(void)
{
    return __atomic_load_n(&pointee_slot.calls, __ATOMIC_ACQUIRE);
}

/* Whether Pointee is there to answer. */
POINTEE_INLINE int pointee_is_there(void)
{
    return pointee_get_calls() != NULL;
}

/* ---- Questions --------------------------------------------------------------------------------------------------- */

/* What holds `address`: fills in `answer`, returns 1; or zeroes it and returns 0. The deepest allocation answers. What nothing else
 * is known of is looked for among the mappings, which takes some microseconds. */
POINTEE_INLINE int pointee_what(const void *address, struct pointee_answer *answer)
{
    const struct pointee_calls *calls = pointee_get_calls();
    if (calls)
        return calls->what(pointee_unread(address), 0, answer);
    __builtin_memset(answer, 0, sizeof *answer);
    return 0;
}

/* What holds what holds it: with `skip` 1 the block that a pool's block lies in, and so on outwards. */
POINTEE_INLINE int pointee_what_around(const void *address, unsigned skip, struct pointee_answer *answer)
{
    const struct pointee_calls *calls = pointee_get_calls();
    if (calls)
        return calls->what(pointee_unread(address), skip, answer);
    __builtin_memset(answer, 0, sizeof *answer);
    return 0;
}

/* Type of the whole allocation; NULL if not known. */
POINTEE_INLINE const struct uniqtype *pointee_type(const void *address)
{
    struct pointee_answer answer;
    pointee_what(address, &answer);
    return answer.type;
}

/* First byte of the allocation; NULL if not known. */
POINTEE_INLINE void *pointee_base(const void *address)
{
    struct pointee_answer answer;
    pointee_what(address, &answer);
    return answer.base;
}

/* One past its last byte; NULL if not known. */
POINTEE_INLINE void *pointee_limit(const void *address)
{
    struct pointee_answer answer;
    return pointee_what(address, &answer) ? (char *)answer.base + answer.size : NULL;
}

/* Its bytes: of a block, those that were asked for; 0 if not known. */
POINTEE_INLINE size_t pointee_size(const void *address)
{
    struct pointee_answer answer;
    pointee_what(address, &answer);
    return answer.size;
}

/* Where the call that allocated it returns to; NULL if not known. */
POINTEE_INLINE const void *pointee_site(const void *address)
{
    struct pointee_answer answer;
    pointee_what(address, &answer);
    return answer.site;
}

/* Who gave it; NULL if not known. */
POINTEE_INLINE const struct pointee_allocator *pointee_allocator_of(const void *address)
{
    struct pointee_answer answer;
    pointee_what(address, &answer);
    return answer.allocator;
}

/* Name of the function that must free it; NULL if not known, or nothing must. */
POINTEE_INLINE const char *pointee_free_name(const void *address)
{
    const struct pointee_allocator *allocator = pointee_allocator_of(address);
    return allocator ? allocator->free_name : NULL;
}

/* Frees the allocation that holds `object` by that function. POINTEE_YES, or POINTEE_DONT_KNOW and nothing was done. */
POINTEE_INLINE int pointee_free(void *object)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->release(object) : POINTEE_DONT_KNOW;
}

/* The innermost object at `address` but for `skip` around it (0: the field itself, 1: what the field is in, …); how far
 * into it the address lies goes to `inside`, if that is not NULL. */
POINTEE_INLINE const struct uniqtype *pointee_inner_type(const void *address, unsigned skip, size_t *inside)
{
    const struct pointee_calls *calls = pointee_get_calls();
    struct pointee_answer answer;
    if (!calls || !calls->what(pointee_unread(address), 0, &answer))
        return NULL;
    return calls->innermost(answer.type, (size_t)((const char *)address - (const char *)answer.base), skip, inside);
}

/* Function, file and line of a code address (of a site: one byte before it, the call). 1, or 0 if not known. */
POINTEE_INLINE int pointee_where(const void *code, struct pointee_place *place)
{
    const struct pointee_calls *calls = pointee_get_calls();
    if (calls && calls->place(code, place))
        return 1;
    __builtin_memset(place, 0, sizeof *place);
    return 0;
}

/* The mapping that holds `address`. Reads /proc/self/maps. 1, or 0 if there is none, or it cannot be read. */
POINTEE_INLINE int pointee_mapping_of(const void *address, struct pointee_mapping *mapping)
{
    const struct pointee_calls *calls = pointee_get_calls();
    if (calls && calls->mapping(pointee_unread(address), mapping))
        return 1;
    __builtin_memset(mapping, 0, sizeof *mapping);
    return 0;
}

/* Calls `visit` for the frames of this thread from the caller outwards, until it returns something else than 0, which is
 * returned; 0 at the last frame that can be left by simple rules; POINTEE_DONT_KNOW without Pointee. */
POINTEE_INLINE int pointee_walk_stack(pointee_visit_frame *visit, void *argument)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->walk_stack(visit, argument) : POINTEE_DONT_KNOW;
}

/* Calls `visit` for every live block, until it returns something else than 0, which is returned. What is allocated or freed
 * meanwhile may be left out. */
POINTEE_INLINE int pointee_each_block(pointee_visit *visit, void *argument)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->each_block(visit, argument) : POINTEE_DONT_KNOW;
}

/* Registers an allocator of the program's own for `len` bytes from `start`: a pool in a block, an arena in a mapping. Where
 * ranges lie in each other, the smallest is asked first. POINTEE_YES, or POINTEE_DONT_KNOW if there is no room or no Pointee. */
POINTEE_INLINE int pointee_add_allocator(const struct pointee_allocator *allocator, const void *start, size_t len)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->add_allocator(allocator, start, len) : POINTEE_DONT_KNOW;
}

/* Takes that back; before the memory is given back. */
POINTEE_INLINE int pointee_remove_allocator(const void *start)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->remove_allocator(start) : POINTEE_DONT_KNOW;
}

/* ---- Types, by name and made ------------------------------------------------------------------------------------- */

/* "(no type)" for NULL. */
POINTEE_INLINE const char *pointee_type_name(const struct uniqtype *type)
{
    return type ? type->name : "(no type)";
}

/* The type of a name: "struct commit", "commit", "struct commit *", "int[4]", "__uniqtype__commit". NULL if no loaded file has
 * it. The first request looks through all types. */
POINTEE_INLINE const struct uniqtype *pointee_type_named(const char *name)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->type_named(name) : NULL;
}

POINTEE_INLINE const struct uniqtype *pointee_pointer_to(const struct uniqtype *target)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->type_derived(UNIQTYPE_POINTER, target, 0) : NULL;
}

/* `length` elements, or POINTEE_UNKNOWN. */
POINTEE_INLINE const struct uniqtype *pointee_array_of(const struct uniqtype *element, size_t length)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->type_derived(UNIQTYPE_ARRAY, element, length) : NULL;
}

/* NULL as `result` is void. */
POINTEE_INLINE const struct uniqtype *pointee_function_type(const struct uniqtype *result, size_t count,
                                                           const struct uniqtype *const *parameters)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->type_of_parts(UNIQTYPE_FUNCTION, result, count, parameters) : NULL;
}

/* An object that is one of `count` types. */
POINTEE_INLINE const struct uniqtype *pointee_union_of(size_t count, const struct uniqtype *const *types)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->type_of_parts(UNIQTYPE_UNION, NULL, count, types) : NULL;
}

/* Says that the block at `object` is of another type than its site tells, as long as it lives. POINTEE_YES, or
 * POINTEE_DONT_KNOW if there is no such block, or no room. */
POINTEE_INLINE int pointee_set_type(void *object, const struct uniqtype *type)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->set_type(object, type) : POINTEE_DONT_KNOW;
}

/* The member of a name; NULL if there is none. */
POINTEE_INLINE const struct uniqtype_member *pointee_member(const struct uniqtype *type, const char *name)
{
    for (uint32_t at = 0; type && at < type->members_len; at++)
        if (!__builtin_strcmp(type->members[at].name, name))
            return &type->members[at];
    return NULL;
}

/* ---- Is it? ------------------------------------------------------------------------------------------------------ */

POINTEE_INLINE int pointee_is(const void *object, enum pointee_relation relation, const void *wanted)
{
    const struct pointee_calls *calls = pointee_get_calls();
    return calls ? calls->is(pointee_unread(object), relation, wanted) : POINTEE_DONT_KNOW;
}

/* Whether an object of the type starts exactly at `object`: the allocation, an element, a member, an arm of a union. */
POINTEE_INLINE int pointee_is_a(const void *object, const struct uniqtype *type)
{
    return pointee_is(object, POINTEE_IS, type);
}

/* … of a type by that name, with or without `struct`; several types may have it. */
POINTEE_INLINE int pointee_is_named(const void *object, const char *name)
{
    return pointee_is(object, POINTEE_NAMED, name);
}

/* Whether what starts there can be used as one: the same type, signed for unsigned, or its first members are those of
 * the type, in order, at the same offsets. */
POINTEE_INLINE int pointee_is_like(const void *object, const struct uniqtype *type)
{
    return pointee_is(object, POINTEE_LIKE, type);
}

POINTEE_INLINE int pointee_is_like_named(const void *object, const char *name)
{
    return pointee_is(object, POINTEE_LIKE_NAMED, name);
}

#ifdef __cplusplus
}
#endif

/* Short names: `is_a(object, type)` and `like_a(object, type)` with a `struct uniqtype *` or a name, `named_a(object, name)`. */
#ifndef POINTEE_NO_SHORT_NAMES
#define named_a(object, name) pointee_is_named((object), (name))
#ifdef __cplusplus
POINTEE_INLINE int is_a(const void *object, const struct uniqtype *type) { return pointee_is_a(object, type); }
POINTEE_INLINE int is_a(const void *object, const char *name) { return pointee_is_named(object, name); }
POINTEE_INLINE int like_a(const void *object, const struct uniqtype *type) { return pointee_is_like(object, type); }
POINTEE_INLINE int like_a(const void *object, const char *name) { return pointee_is_like_named(object, name); }
#else
#define is_a(object, type) \
    _Generic((type), char *: pointee_is_named, const char *: pointee_is_named, default: pointee_is_a)((object), (type))
#define like_a(object, type) \
    _Generic((type), char *: pointee_is_like_named, const char *: pointee_is_like_named, default: pointee_is_like)( \
        (object), (type))
#endif
#endif

#endif
