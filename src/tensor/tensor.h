/*
** Tensors: a header {data, shape, strides, dtype} over a reference-counted storage. Several headers may look at one storage
** (views); they share its version, a count of the writes in place.
** Invariants: a header owns one reference to its storage and one to its node. RSI_CONTIGUOUS is set exactly when the
** strides are those of a row-major array (dimensions of size 1 are ignored). `data` points at the first element.
*/
#ifndef RSI_TENSOR_H
#define RSI_TENSOR_H

#include "base/base.h"

typedef struct rsi_node rsi_node;

enum { RSI_ALIGN = 64 };

/*
** The block of a new tensor holds its header, its storage and its data, in this order: one allocation. The header lies idle once
** it is released while views still use the storage.
*/
typedef struct rsi_storage {
  _Atomic int32_t refs;
  uint32_t        version;    /* writes in place so far */
  uint32_t        recorded;   /* version after the last write in place that is on a tape */
  rsi_heap       *heap;
  const char     *writer;     /* the op that wrote in place last; NULL: none, or the user */
  void           *data;
  size_t          bytes;      /* of data */
  size_t          block;      /* of the whole block */
} rsi_storage;

/* RSI_EMBEDDED: lies inside a node and cannot be kept. RSI_WITH_STORAGE: lies in the storage's block. */
/* RSI_DETACHED: an alias that was cut off from the tape on purpose. */
/* RSI_PHANTOM: made while a program was recorded; it has a form but no memory, and `data` only counts offsets. */
enum { RSI_CONTIGUOUS = 1, RSI_VIEW = 2, RSI_EMBEDDED = 4, RSI_WITH_STORAGE = 8, RSI_DETACHED = 16, RSI_PHANTOM = 32 };

struct rs_tensor {
  _Atomic int32_t refs;
  uint8_t         dtype, ndim, flags, out_index;   /* out_index: which output of node */
  void           *data;
  rsi_storage    *storage;
  rsi_node       *node;                            /* NULL: needs no gradient */
  int64_t         numel;
  uint32_t        view_version;                    /* of the storage, when this view with a node was made */
  uint32_t        trace_id;                        /* value number in the recording trace_serial */
  uint64_t        trace_serial;
  int64_t         shape[RS_MAX_DIMS];
  int64_t         strides[RS_MAX_DIMS];            /* in elements */
};

/* A shape and an element type: what an op infers for each result. */
typedef struct rsi_desc {
  int     dtype, ndim;
  int64_t shape[RS_MAX_DIMS];
} rsi_desc;

static inline bool rsi_is_contiguous(const rs_tensor *t) { return (t->flags & RSI_CONTIGUOUS) != 0; }
static inline bool rsi_is_float(int dtype) { return dtype <= RS_F16; }
static inline bool rsi_is_half(int dtype) { return dtype == RS_BF16 || dtype == RS_F16; }
static inline bool rsi_is_integer(int dtype) { return dtype >= RS_I64 && dtype <= RS_U8; }
extern const uint8_t rsi_dtype_size[RS_DTYPES];
static inline size_t rsi_item_size(const rs_tensor *t) { return rsi_dtype_size[t->dtype]; }

/* Makes a header and a storage; the content is undefined. RS_ERR_SHAPE when the size does not fit in memory. */
rs_status rsi_tensor_new(rsi_heap *heap, const rsi_desc *desc, rs_tensor **out);
/* The same without memory for its data. */
rs_status rsi_tensor_phantom(rsi_heap *heap, const rsi_desc *desc, rs_tensor **out);
/* Another header over the storage of `t`, with its shape; no node. */
rs_status rsi_tensor_alias(const rs_tensor *t, rs_tensor **out);
/* A header over the storage of `t` at `offset` elements from t->data. No node. */
rs_status rsi_tensor_view(const rs_tensor *t, int64_t offset, int ndim, const int64_t *shape, const int64_t *strides,
                          rs_tensor **out);
/* Copies header fields into dst (which may lie inside another object) and takes a storage reference. No node reference. */
void      rsi_tensor_embed(rs_tensor *dst, const rs_tensor *t);
void      rsi_tensor_update_flags(rs_tensor *t);                /* RSI_CONTIGUOUS from shape and strides */
void      rsi_storage_release(rsi_storage *s);
void      rsi_header_free(rs_tensor *t);    /* the last reference is gone; the storage and the node are released separately */
static inline void rsi_wrote(const rs_tensor *t, const char *op) {
  t->storage->version++;
  t->storage->writer = op;
}
static inline const char *rsi_last_writer(const rsi_storage *s) { return s->writer ? s->writer : "a write"; }
static inline void rsi_storage_retain(rsi_storage *s) { rsi_ref_take(&s->refs); }
/* Gives t another storage. A header that lies in its old storage's block keeps that block. */
void      rsi_tensor_move(rs_tensor *t, rsi_storage *to);
/* A new reference to t, or an alias when t lies inside a node and cannot be kept. */
rs_status rsi_tensor_share(rs_tensor *t, rs_tensor **out);

void      rsi_desc_of(const rs_tensor *t, rsi_desc *out);
/* An expanded tensor shows one element at several places: writing through it would be a lie. */
bool      rsi_overlaps_itself(const rs_tensor *t);
bool      rsi_same_shape(const rs_tensor *a, const rs_tensor *b);
rs_status rsi_numel(int ndim, const int64_t *shape, size_t item, int64_t *out);    /* checked product */
/* NumPy's rule. On failure the text names both shapes. */
rs_status rsi_broadcast(int na, const int64_t *a, int nb, const int64_t *b, int *nd, int64_t *out);
/* "[8, 64]" in one of a few buffers of this thread; valid until some more calls. */
const char *rsi_shape_text(int ndim, const int64_t *shape);
static inline const char *rsi_text(const rs_tensor *t) { return rsi_shape_text(t->ndim, t->shape); }
/* Turns a dimension that may count from the end into 0..ndim-1. */
rs_status rsi_dim(rs_ctx *ctx, int64_t dim, int ndim, int64_t *out);

/* ---- coalesced iteration --------------------------------------------------------------------------------------------- */

enum { RSI_MAX_OPERANDS = 12 };

/*
** A loop nest over operands of one broadcast shape; dimensions that lie one after the other in every operand are merged
** and dimensions of size 1 removed. Strides are in bytes; level ndim-1 is the innermost. shape[ndim-1] is the inner count.
*/
typedef struct rsi_nest {
  int     n, ndim;                                  /* operands, levels (0 when there is one element) */
  int64_t numel;
  int64_t shape[RS_MAX_DIMS];
  int64_t strides[RSI_MAX_OPERANDS][RS_MAX_DIMS];
  char   *data[RSI_MAX_OPERANDS];
} rsi_nest;

/* Operands broadcast to the shape of t[0]. */
void rsi_nest_make(rsi_nest *nest, rs_tensor *const *t, int n);
/* Calls run(n, pointers, byte strides, arg) for each innermost row of the elements first..last-1 in row-major order. */
typedef void (*rsi_row_fn)(int64_t n, char *const *data, const int64_t *strides, const void *arg);
void rsi_nest_run(const rsi_nest *nest, int64_t first, int64_t last, rsi_row_fn run, const void *arg);

#endif
