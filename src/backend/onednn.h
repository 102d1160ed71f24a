/*
** What the files behind the door to oneDNN share: one C API out of two, and the entries of the table.
**
** A convolution has three operands, X (images), W (filters) and Y (results); its kind says which one is computed, and its forms
** (block, dtype) say how the caller holds them. All that has to be made for one rsi_conv_call is an entry of a bounded table
** (onednn.c). An entry cuts the work into slices along the batch, the filters, the channels, the groups or the rows; slices of
** one shape share a piece: primitives and the layouts of the operands, as given and as used. Where these are the same memory
** nothing is reordered; otherwise the slice reorders what it reads and writes, while that is in the cache.
** An operand without the dimension that is cut is shared by all slices: it is reordered before they run, and if it is the result
** (W, cut along the batch), every slice makes a partial sum, added in the order of the slices.
**
** An entry is immutable, but for its lists of idle argument sets (memory objects, one set for each thread at work), which the
** table's mutex guards. refs counts the calls that hold an entry; only one that nobody holds is dropped, least recently used first.
** What an entry is, and with it the result, depends on its key alone and not on the number of threads.
*/
#ifndef RSI_ONEDNN_H
#define RSI_ONEDNN_H

#include "backend/backend.h"

#ifdef RSI_WITH_ONEDNN

#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>

/* ---- one C API out of two -------------------------------------------------------------------------------------------- */

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t md;                 /* owned */
typedef const_dnnl_memory_desc_t md_ref;
static inline md_ref ref(const md *d) { return *d; }
static inline dnnl_status_t md_copy(md *d, md_ref from) { return dnnl_memory_desc_clone(d, from); }
static inline void md_free(md *d) {
  if (*d != NULL) dnnl_memory_desc_destroy(*d);
  *d = NULL;
}
static inline dnnl_status_t md_tag(md *d, int n, const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag) {
  return dnnl_memory_desc_create_with_tag(d, n, dims, type, tag);
}
static inline dnnl_status_t md_strided(md *d, int n, const dnnl_dims_t dims, dnnl_data_type_t type, const dnnl_dims_t strides) {
  return dnnl_memory_desc_create_with_strides(d, n, dims, type, strides);
}
static inline dnnl_status_t md_part(md *d, const md *whole, const dnnl_dims_t dims, const dnnl_dims_t at) {
  return dnnl_memory_desc_create_submemory(d, *whole, dims, at);
}
static inline int64_t md_offset(const md *d) {
  dnnl_dim_t offset = 0;
  return dnnl_memory_desc_query(*d, dnnl_query_submemory_offset_s64, &offset) == dnnl_success ? offset : 0;
}
#else
typedef dnnl_memory_desc_t md;
typedef const dnnl_memory_desc_t *md_ref;
static inline md_ref ref(const md *d) { return d; }
static inline dnnl_status_t md_copy(md *d, md_ref from) {
  *d = *from;
  return dnnl_success;
}
static inline void md_free(md *d) { (void)d; }
static inline dnnl_status_t md_tag(md *d, int n, const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag) {
  return dnnl_memory_desc_init_by_tag(d, n, dims, type, tag);
}
static inline dnnl_status_t md_strided(md *d, int n, const dnnl_dims_t dims, dnnl_data_type_t type, const dnnl_dims_t strides) {
  return dnnl_memory_desc_init_by_strides(d, n, dims, type, strides);
}
static inline dnnl_status_t md_part(md *d, const md *whole, const dnnl_dims_t dims, const dnnl_dims_t at) {
  return dnnl_memory_desc_init_submemory(d, whole, dims, at);
}
static inline int64_t md_offset(const md *d) { return d->offset0; }
#endif

#define DNNL_TRY(expr)                                                                                                      \
  do {                                                                                                                      \
    const dnnl_status_t status_ = (expr);                                                                                   \
    if (status_ != dnnl_success) return status_;                                                                            \
  } while (0)

/* ---- entries --------------------------------------------------------------------------------------------------------- */

enum { X, W, Y, OPERANDS, R = OPERANDS, MEMORIES };      /* images, filters, results, or their gradients; R: residual, laid out as Y */

typedef enum split { BY_BATCH, BY_FILTER, BY_CHANNEL, BY_GROUP, BY_ROWS } split;

typedef struct window { dnnl_dims_t stride, dilation, before, after; } window;

typedef struct operand {
  md     given, used;            /* as part of the caller's tensor; as the primitive wants it */
  bool   present, same;          /* same: no reorder */
  size_t bytes;                  /* of used */
  dnnl_primitive_t reorder;      /* given to used, or used to given for the result */
  size_t reorder_pad;            /* scratchpad bytes */
  md     reorder_pad_md;
} operand;

/* What a thread needs to run a piece: memory objects, whose addresses are set for each run. */
typedef struct arguments {
  struct arguments *next;
  dnnl_memory_t given[MEMORIES], used[MEMORIES], bias, pad, reorder_pad[MEMORIES];
} arguments;

/* What slices of one shape have in common. */
typedef struct piece {
  rsi_conv_shape s;
  window  window;
  operand op[MEMORIES];
  bool    with_bias;
  md      bias, pad;
  size_t  pad_bytes;
  uint64_t name;                 /* hash of the implementation's */
  dnnl_primitive_t conv;
  arguments *idle;               /* under the table's mutex */
} piece;

enum { MOST_PIECES = 3 };

typedef struct entry {
  struct entry *older, *newer, *chain;   /* by last use; of one bucket */
  rsi_conv_call key;
  int     refs;
  bool    usable;                /* false: oneDNN has nothing good for this shape */
  int     result, shared;        /* operands; shared -1: none */
  bool    partial;               /* the shared one is the result */
  split   cut;
  int64_t size, slices;          /* of a slice, along the cut */
  piece   piece[MOST_PIECES];    /* of the first slice, those between, the last */
  int     middle, last;          /* which pieces these are */
  piece   part;                  /* the shared filters again, cut into `parts` equal parts that are reordered apart; parts 0: not cut */
  int64_t parts;
  size_t  part_given, part_used; /* bytes from one to the next */
  size_t  shared_bytes, lane_bytes;
  bool    apart;                 /* the residual is read where it is; otherwise it is put into y first */
  bool    unfolded;              /* a product of matrices: onednn_unfold.c */
  int64_t images;                /* of such an entry, at a time */
} entry;

enum { BUCKETS = 512 };

struct rsi_onednn {
  pthread_mutex_t mutex;
  dnnl_engine_t   engine;
  dnnl_stream_t   stream;        /* a processor's stream has no state: any thread may use it */
  dnnl_primitive_attr_t attr;
  entry *buckets[BUCKETS];
  entry *newest, *oldest;
  int    entries;
};

/* ---- onednn.c -------------------------------------------------------------------------------------------------------- */

/* While a thread makes or runs primitives, oneDNN finds that it may use this thread only. Returns what to give back after. */
int  rsi_onednn_alone(void);
void rsi_onednn_not_alone(int former);
/* Takes a reference to the entry of a call (its act left out), made now if need be; NULL when there is no memory for it. */
entry *rsi_onednn_take(rsi_onednn *t, const rsi_conv_call *asked);
void   rsi_onednn_give(rsi_onednn *t, entry *e);
/* An idle argument set of a piece, or a new one. */
dnnl_status_t rsi_onednn_arguments(rsi_onednn *t, piece *p, arguments **out);
void   rsi_onednn_arguments_back(rsi_onednn *t, piece *p, arguments *a);
void   rsi_onednn_piece_free(piece *p);

/* ---- onednn_make.c --------------------------------------------------------------------------------------------------- */

/*
** Fills an entry for its key; usable only if all of it could be made. False when memory ran out, which says nothing about the
** shape: the layout of an entry, and with it the scratch it needs, must be a function of the key alone.
*/
bool rsi_onednn_make(rsi_onednn *t, entry *e);
/* oneDNN's reference loops, and its own unfolding: the portable kernels are better. */
bool rsi_onednn_is_slow(dnnl_primitive_desc_t desc);
dnnl_status_t rsi_onednn_primitive(dnnl_primitive_desc_t desc, dnnl_primitive_t *out, md *pad, size_t *pad_bytes);
/* The change from o->given to o->used, or back for a result. */
dnnl_status_t rsi_onednn_reorder(rsi_onednn *t, operand *o, bool result);

/* Of images in blocks of `block`; last: the channels of a pixel lie together if block == channels. undef: oneDNN has no such form. */
dnnl_format_tag_t rsi_onednn_tag(int64_t block, int64_t channels, bool last);

/* ---- onednn_image.c -------------------------------------------------------------------------------------------------- */

dnnl_status_t rsi_onednn_image_make(rsi_onednn *t, entry *e);

/* ---- onednn_unfold.c ------------------------------------------------------------------------------------------------- */

/* Makes e an entry of its own kind (`unfolded`) if that is faster; dnnl_unimplemented: it is not. */
dnnl_status_t rsi_onednn_unfold_make(rsi_onednn *t, entry *e);
dnnl_status_t rsi_onednn_unfold_slice(rsi_onednn *t, entry *e, int64_t task, const char *x, char *w, const char *g, char *scratch);

#endif
#endif
