/* Uses the pools of apr.c; the figures are those of the test. */
#include <stddef.h>

typedef struct apr_pool_t {
    void *first, *spare;
} apr_pool_t;
void *apr_palloc(apr_pool_t *, size_t);
void apr_pool_clear(apr_pool_t *);
void apr_pool_destroy(apr_pool_t *);
void *_talloc(void *, size_t);
void *_talloc_realloc(void *, void *, size_t);
void release(void *);

struct node {
    struct node *next;
    long value[4];
};
struct pair {
    struct pair *next;
    long left, right;
};

static struct node *nodes;
static struct pair *pairs;
static apr_pool_t kept, gone, other;

int main(void) {
    for (int i = 0; i < 1000; i++) {
        pairs = apr_palloc(&kept, sizeof(struct pair));
        pairs->left = i;
    }
    apr_pool_clear(&kept); /* four chunks, all of them kept for later */
    for (int i = 0; i < 70; i++) {
        nodes = apr_palloc(&kept, sizeof(struct node));
        nodes->value[0] = i;
    }
    for (int i = 0; i < 30; i++) {
        nodes = apr_palloc(&gone, sizeof(struct node));
        nodes->value[0] = i;
    }
    apr_pool_destroy(&gone);
    for (int i = 0; i < 5; i++) {
        pairs = apr_palloc(&other, sizeof(struct pair));
        pairs->left = i;
    }
    /* A header alone, a block of no bytes behind it; then what grows where it is. */
    void *empty = _talloc(0, 0), *grown = _talloc(0, 16);
    for (int i = 0; i < 20; i++) pairs = _talloc(0, sizeof(struct pair));
    release(pairs);
    grown = _talloc_realloc(0, grown, 24);
    release(grown);
    release(empty);
    return 0;
}
