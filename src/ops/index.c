/*
** Ops that read or add at places named by an index tensor: gather, index_select, embedding, and their gradients.
** An index tensor is i64, i32 or u8 and counts from rsi_exec.base. A kernel first checks all of it, so a bad index is an error
** before anything is written, and the loops behind use it unchecked.
** Gradients add in the order of the indices. Threads share out the places that are added to, never the indices, so the sum
** does not depend on their number.
*/
#include "ops/op.h"
#include <stdio.h>
#include <string.h>

static int64_t wrap(int64_t i, int64_t n) { return i < 0 ? i + n : i; }

static int64_t product(const int64_t *shape, int first, int last) {
  int64_t n = 1;
  for (int i = first; i < last; i++) n *= shape[i];
  return n;
}

/* ---- indices --------------------------------------------------------------------------------------------------------- */

typedef struct ids {
  const void *data;
  int         dtype;
  int64_t     base;
} ids;

static inline int64_t id_at(ids x, int64_t i) {
  if (x.dtype == RS_I64) return (int64_t)(((const uint64_t *)x.data)[i] - (uint64_t)x.base);
  if (x.dtype == RS_I32) return ((const int32_t *)x.data)[i] - x.base;
  return ((const uint8_t *)x.data)[i] - x.base;
}

static rs_status check_dtype(const rsi_call *c, int i, const char *name) {
  const int dtype = c->in[i]->dtype;
  RSI_CHECK(rsi_is_integer(dtype), RS_ERR_DTYPE, "%s has dtype %s but must be i64, i32 or u8", name, rs_dtype_name(dtype));
  return RS_OK;
}

static bool all_inside(ids x, int64_t count, int64_t n) {
  bool bad = false;
  if (x.dtype == RS_I64)
    for (int64_t i = 0; i < count; i++) bad |= (uint64_t)((const int64_t *)x.data)[i] - (uint64_t)x.base >= (uint64_t)n;
  else
    for (int64_t i = 0; i < count; i++) bad |= (uint64_t)id_at(x, i) >= (uint64_t)n;
  return !bad;
}

/* "5" for a vector, "[2, 3]" for more dimensions, as the caller counts. */
static const char *position_text(char *text, size_t size, const rs_tensor *t, int64_t i, int64_t base) {
  int64_t at[RS_MAX_DIMS];
  if (t->ndim == 1) {
    (void)snprintf(text, size, "%lld", (long long)(i + base));
    return text;
  }
  for (int d = t->ndim - 1; d >= 0; d--) {
    at[d] = i % t->shape[d] + base;
    i /= t->shape[d];
  }
  return rsi_shape_text(t->ndim, at);
}

/* Every index of in[1] names one entry of dimension dim of x. */
static rs_status take_ids(const rsi_call *c, const rs_tensor *x, int64_t dim, ids *out) {
  const rs_tensor *t = c->in[1];
  const int64_t n = x->ndim > 0 ? x->shape[dim] : 1;
  *out = (ids){.data = t->data, .dtype = t->dtype, .base = c->x->base};
  if (rsi_likely(all_inside(*out, t->numel, n))) return RS_OK;
  const int64_t base = out->base;
  char text[24];
  int64_t k = 0;
  while ((uint64_t)id_at(*out, k) < (uint64_t)n) k++;
  const long long bad = (long long)((uint64_t)id_at(*out, k) + (uint64_t)base);
  const char *where = position_text(text, sizeof text, t, k, base);
  RSI_CHECK(n > 0, RS_ERR_INDEX, "index %lld at position %s: dimension %lld of %s has no entries", bad, where,
            (long long)(dim + base), rsi_text(x));
  return rsi_fail(RS_ERR_INDEX, "index %lld at position %s is outside %lld..%lld, dimension %lld of %s", bad, where,
                  (long long)base, (long long)(n - 1 + base), (long long)(dim + base), rsi_text(x));
}

/* ---- gather ---------------------------------------------------------------------------------------------------------- */

#define GATHER_ATTRS(F, T) F(T, DIM, dim, 0, -8, 7, NULL, "the dimension that the indices are positions of")
RSI_ATTRS(gather, GATHER_ATTRS)
#define GATHER_BACKWARD_ATTRS(F, T) \
  F(T, DIM, dim, 0, -8, 7, NULL, "the dimension that the indices are positions of") \
  F(T, SHAPE, shape, 0, 0, RSI_BIG, NULL, "the shape of the result")
RSI_ATTRS(gather_backward, GATHER_BACKWARD_ATTRS)

static rs_status check_gather(const rsi_call *c, int ndim, const int64_t *shape, const rs_tensor *index, int64_t *dim) {
  const int base = rsi_base(c);
  RSI_TRY(check_dtype(c, 1, "index"));
  RSI_CHECK(index->ndim == ndim, RS_ERR_SHAPE, "index %s must have as many dimensions as %s", rsi_text(index),
            rsi_shape_text(ndim, shape));
  if (ndim > 0) RSI_TRY(rsi_dim(c->ctx, *dim, ndim, dim));
  else {
    RSI_CHECK(*dim == 0 || *dim == -1, RS_ERR_INDEX, "dimension %lld does not exist: the tensor is 0-d",
              (long long)(*dim < 0 ? *dim : *dim + base));
    *dim = 0;
  }
  for (int i = 0; i < ndim; i++)
    RSI_CHECK(i == *dim || index->shape[i] <= shape[i], RS_ERR_SHAPE,
              "index %s is larger than %s in dimension %d; only dimension %lld may be", rsi_text(index),
              rsi_shape_text(ndim, shape), i + base, (long long)*dim + base);
  return RS_OK;
}

static rs_status gather_infer(rsi_call *c) {
  gather_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0], *index = c->in[1];
  RSI_TRY(check_gather(c, x->ndim, x->shape, index, &a->dim));
  rsi_desc_of(index, &c->desc[0]);
  c->desc[0].dtype = x->dtype;
  return RS_OK;
}

/*
** The index tensor is walked in rows along its last dimension; `wide` is the tensor that is indexed. Element j of a row has its
** partner at base + id * step + j * next, where base comes from the coordinates of the row without dimension dim.
*/
typedef struct gather_job {
  ids         id;
  int         ndim, dim;
  int64_t     width;                     /* of an index row */
  int64_t     shape[RS_MAX_DIMS];        /* of the index */
  int64_t     strides[RS_MAX_DIMS];      /* of `wide`; 0 for dim */
  int64_t     step, next;
  int64_t     per_item;                  /* backward: index rows of an item */
  const void *from;
  void       *to;
} gather_job;

static gather_job gather_prepare(const rs_tensor *wide, const rs_tensor *index, int64_t dim, ids id) {
  gather_job j = {.id = id, .ndim = index->ndim, .dim = (int)dim, .width = 1, .step = 1};
  int64_t stride = 1;
  for (int i = j.ndim - 1; i >= 0; i--) {
    j.shape[i] = index->shape[i];
    j.strides[i] = i == dim ? 0 : stride;
    if (i == dim) j.step = stride;
    stride *= wide->shape[i];
  }
  if (j.ndim > 0) {
    j.width = index->shape[j.ndim - 1];
    j.next = j.strides[j.ndim - 1];
  }
  return j;
}

static void gather_coordinates(const gather_job *j, int64_t row, int64_t *at) {
  for (int i = j->ndim - 2; i >= 0; i--) {
    at[i] = row % j->shape[i];
    row /= j->shape[i];
  }
}

/* Where the row at `at` begins in `wide`; then `at` goes on to the next row. */
static int64_t gather_base(const gather_job *j, int64_t *at) {
  int64_t base = 0;
  for (int i = 0; i < j->ndim - 1; i++) base += at[i] * j->strides[i];
  for (int i = j->ndim - 2; i >= 0 && ++at[i] == j->shape[i]; i--) at[i] = 0;
  return base;
}

#define GATHER(T)                                                                                                           \
  static void gather_##T(void *arg, int64_t first, int64_t last) {                                                          \
    const gather_job *j = arg;                                                                                              \
    const T *x = j->from;                                                                                                   \
    T *out = j->to;                                                                                                         \
    int64_t at[RS_MAX_DIMS];                                                                                                \
    gather_coordinates(j, first, at);                                                                                       \
    for (int64_t row = first; row < last; row++) {                                                                          \
      const int64_t base = gather_base(j, at), k = row * j->width;                                                          \
      for (int64_t i = 0; i < j->width; i++) out[k + i] = x[base + id_at(j->id, k + i) * j->step + i * j->next];            \
    }                                                                                                                       \
  }
GATHER(uint8_t)
GATHER(uint16_t)
GATHER(uint32_t)
GATHER(uint64_t)

/* x: any shape, index: out: [.., J, ..], out[.., j, ..] = x[.., index[.., j, ..], ..] */
static rs_status gather_run(const rsi_call *c) {
  const rs_tensor *x = c->in[0], *index = c->in[1], *out = c->out[0];
  const int64_t dim = RSI_ATTR(c, gather)->dim;
  ids id;
  RSI_TRY(take_ids(c, x, dim, &id));
  if (out->numel == 0) return RS_OK;
  gather_job j = gather_prepare(x, index, dim, id);
  j.from = x->data;
  j.to = out->data;
  const size_t item = rsi_item_size(x);
  const rsi_range_fn run = item == 1 ? gather_uint8_t : item == 2 ? gather_uint16_t : item == 4 ? gather_uint32_t : gather_uint64_t;
  rsi_parallel(c->x, out->numel / j.width, 5.0 + 2.0 * (double)j.width, run, &j);
  return RS_OK;
}

static void gather_grad(rsi_grad *g) {
  const gather_attrs *a = rsi_attrs(g);
  const rsi_desc *d = rsi_in_desc(g, 0);
  gather_backward_attrs back = {.dim = a->dim, .shape = {.n = d->ndim}};
  for (int i = 0; i < d->ndim; i++) back.shape.v[i] = d->shape[i];
  rsi_give(g, 0, rsi_emit2(g, RS_OP_gather_backward, &back, rsi_gout(g, 0), rsi_in(g, 1)));
}

static const rsi_kernel gather_kernels[] = {{.name = "rows", .dtypes = RSI_ANY, .run = gather_run}, {.name = NULL}};

static const gather_attrs gather_s1 = {.dim = 1}, gather_s2 = {.dim = -1}, gather_s3 = {.dim = 0};
static const rsi_sample gather_samples[] = {
  {.inputs = "f5x7,i3x7@0:4"}, {.inputs = "f5x7,i5x9@0:6", .attrs = &gather_s1}, {.inputs = "f2x3x33,i2x3x7@0:32", .attrs = &gather_s2},
  {.inputs = "f2x5x3,i1x4x2@0:4", .attrs = &gather_s1}, {.inputs = "f,i@0:0", .attrs = &gather_s3}, {.inputs = "f5,i0@0:4"},
  {.inputs = "f8x4,i8x1@0:3", .attrs = &gather_s1}, {.inputs = "f0x3,i0x2@0:2", .attrs = &gather_s1}, {.inputs = NULL}};

const rs_op rsi_op_gather = {
  .name = "gather", .doc = "Takes x at index along one dimension: out[i, j] = x[index[i, j], j] for the first dimension.",
  .inputs = "x,index", .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_INDEXED | RSI_T_HALF, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(gather), .infer = gather_infer, .grad = gather_grad, .saves = {RSI_KEEP_IN(1)}, .kernels = gather_kernels,
  .samples = gather_samples};

static rs_status gather_backward_infer(rsi_call *c) {
  gather_backward_attrs *a = c->attrs;
  const rs_tensor *g = c->in[0], *index = c->in[1];
  rsi_desc *d = &c->desc[0];
  int64_t numel;
  RSI_TRY(rsi_numel((int)a->shape.n, a->shape.v, 1, &numel));
  RSI_TRY(check_gather(c, (int)a->shape.n, a->shape.v, index, &a->dim));
  RSI_CHECK(rsi_same_shape(g, index), RS_ERR_SHAPE, "g %s must have the shape of index %s", rsi_text(g), rsi_text(index));
  d->dtype = g->dtype;
  d->ndim = (int)a->shape.n;
  for (int i = 0; i < d->ndim; i++) d->shape[i] = a->shape.v[i];
  return RS_OK;
}

/* An item is an index of the dimensions before dim: all its indices point into its own part of the result. */
#define SCATTER(T)                                                                                                          \
  static void scatter_##T(void *arg, int64_t first, int64_t last) {                                                         \
    const gather_job *j = arg;                                                                                              \
    const T *g = j->from;                                                                                                   \
    T *out = j->to;                                                                                                         \
    int64_t at[RS_MAX_DIMS];                                                                                                \
    gather_coordinates(j, first * j->per_item, at);                                                                         \
    for (int64_t row = first * j->per_item; row < last * j->per_item; row++) {                                              \
      const int64_t base = gather_base(j, at), k = row * j->width;                                                          \
      for (int64_t i = 0; i < j->width; i++) out[base + id_at(j->id, k + i) * j->step + i * j->next] += g[k + i];           \
    }                                                                                                                       \
  }
SCATTER(float)
SCATTER(double)

/* g, index: [.., J, ..], out: attribute shape, out[.., index[.., j, ..], ..] += g[.., j, ..] */
static rs_status gather_backward_run(const rsi_call *c) {
  const gather_backward_attrs *a = RSI_ATTR(c, gather_backward);
  const rs_tensor *g = c->in[0], *index = c->in[1], *out = c->out[0];
  ids id;
  RSI_TRY(take_ids(c, out, a->dim, &id));
  memset(out->data, 0, (size_t)out->numel * rsi_item_size(out));
  if (g->numel == 0) return RS_OK;
  gather_job j = gather_prepare(out, index, a->dim, id);
  j.from = g->data;
  j.to = out->data;
  /* When dim is the last, an item is one row; otherwise the rows of all dimensions behind the ones before dim. */
  const int64_t rows = g->numel / j.width;
  const int64_t items = j.ndim == 0 ? 1 : product(index->shape, 0, j.dim < j.ndim - 1 ? j.dim : j.ndim - 1);
  j.per_item = rows / items;
  rsi_parallel(c->x, items, (double)j.per_item * (5.0 + 2.0 * (double)j.width), g->dtype == RS_F32 ? scatter_float : scatter_double, &j);
  return RS_OK;
}

static void gather_backward_grad(rsi_grad *g) {
  const gather_backward_attrs *a = rsi_attrs(g);
  const gather_attrs again = {.dim = a->dim};
  rsi_give(g, 0, rsi_emit2(g, RS_OP_gather, &again, rsi_gout(g, 0), rsi_in(g, 1)));
}

static const rsi_kernel gather_backward_kernels[] = {
  {.name = "rows", .dtypes = RSI_FLOATS, .run = gather_backward_run}, {.name = NULL}};

static const gather_backward_attrs gb_s1 = {.dim = 0, .shape = {2, {4, 7}}}, gb_s2 = {.dim = -1, .shape = {3, {2, 3, 33}}},
                                   gb_s3 = {.dim = 1, .shape = {3, {2, 5, 3}}}, gb_s4 = {.dim = 0, .shape = {0, {0}}},
                                   gb_s5 = {.dim = 1, .shape = {2, {3, 5}}};
static const rsi_sample gather_backward_samples[] = {
  {.inputs = "f9x7,i9x7@0:3", .attrs = &gb_s1}, {.inputs = "f2x3x40,i2x3x40@0:32", .attrs = &gb_s2},
  {.inputs = "f1x8x2,i1x8x2@0:4", .attrs = &gb_s3}, {.inputs = "f,i@0:0", .attrs = &gb_s4},
  {.inputs = "f3x0,i3x0@0:4", .attrs = &gb_s5}, {.inputs = NULL}};

const rs_op rsi_op_gather_backward = {
  .name = "gather_backward", .doc = "Zeros with each entry of g added at its index: the gradient of gather.",
  .inputs = "g,index", .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_INDEXED, .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(gather_backward), .infer = gather_backward_infer, .grad = gather_backward_grad, .saves = {RSI_KEEP_IN(1)},
  .kernels = gather_backward_kernels, .samples = gather_backward_samples};

/* ---- whole rows: index_select and embedding ---------------------------------------------------------------------------- */

/* x: [outer, size, inner], out: [outer, count, inner], out[o, j, :] = x[o, id[j], :]; backward the other way round. */
typedef struct rows_job {
  ids         id;
  int64_t     outer, size, count, inner;   /* inner: in bytes for copies, in elements for sums */
  int64_t     skip;                        /* sums: an index that is left out, or -1 */
  int64_t     parts;                       /* sums: ranges of destination rows */
  const void *from;
  void       *to;
} rows_job;

static void copy_rows(void *arg, int64_t first, int64_t last) {
  const rows_job *j = arg;
  const size_t bytes = (size_t)j->inner;
  int64_t o = first / j->count, k = first % j->count;
  for (int64_t row = first; row < last; row++) {
    const char *from = (const char *)j->from + (o * j->size + id_at(j->id, k)) * j->inner;
    char *to = (char *)j->to + row * j->inner;
    if (bytes == 4) memcpy(to, from, 4);
    else if (bytes == 8) memcpy(to, from, 8);
    else memcpy(to, from, bytes);
    if (++k == j->count) {
      k = 0;
      o++;
    }
  }
}

static void take_rows(const rsi_call *c, rows_job *j) {
  if (c->out[0]->numel == 0) return;
  j->from = c->in[0]->data;
  j->to = c->out[0]->data;
  rsi_parallel(c->x, j->outer * j->count, 10.0 + 0.1 * (double)j->inner, copy_rows, j);
}

enum { PART_COLUMNS = 16, MOST_PARTS = 16 };

/*
** An item adds to one of `parts` ranges of the destination rows of one outer index. Each item reads all indices, so there are
** few ranges, and only as many as rows wide enough to make that cheap allow.
*/
#define ADD_ROWS(T)                                                                                                         \
  static void add_rows_##T(void *arg, int64_t first, int64_t last) {                                                        \
    const rows_job *j = arg;                                                                                                \
    while (first < last) {                                                                                                  \
      const int64_t o = first / j->parts, begin = first % j->parts;                                                         \
      const int64_t end = begin + (last - first) < j->parts ? begin + (last - first) : j->parts;                            \
      const int64_t low = j->size * begin / j->parts, high = j->size * end / j->parts;                                      \
      T *out = (T *)j->to + o * j->size * j->inner;                                                                         \
      const T *g = (const T *)j->from + o * j->count * j->inner;                                                            \
      memset(out + low * j->inner, 0, (size_t)((high - low) * j->inner) * sizeof(T));                                       \
      for (int64_t k = 0; k < j->count; k++) {                                                                              \
        const int64_t id = id_at(j->id, k);                                                                                 \
        if (id < low || id >= high || id == j->skip) continue;                                                              \
        T *to = out + id * j->inner;                                                                                        \
        const T *from = g + k * j->inner;                                                                                   \
        int64_t i = 0;                                                                                                      \
        for (; i + 16 <= j->inner; i += 16)                                                                                 \
          for (int b = 0; b < 16; b++) to[i + b] += from[i + b];                                                            \
        for (; i < j->inner; i++) to[i] += from[i];                                                                         \
      }                                                                                                                     \
      first += end - begin;                                                                                                 \
    }                                                                                                                       \
  }
ADD_ROWS(float)
ADD_ROWS(double)

static void give_rows(const rsi_call *c, rows_job *j) {
  if (c->out[0]->numel == 0) return;
  j->from = c->in[0]->data;
  j->to = c->out[0]->data;
  int64_t parts = j->inner / PART_COLUMNS;
  if (parts > j->size) parts = j->size;
  if (parts > MOST_PARTS) parts = MOST_PARTS;
  j->parts = parts > 1 ? parts : 1;
  const double elements = (double)(j->count + j->size) * (double)j->inner;
  rsi_parallel(c->x, j->outer * j->parts, 0.2 * elements / (double)j->parts + (double)j->count,
               c->out[0]->dtype == RS_F32 ? add_rows_float : add_rows_double, j);
}

/* ---- index_select ---------------------------------------------------------------------------------------------------- */

#define INDEX_SELECT_ATTRS(F, T) F(T, DIM, dim, 0, -8, 7, NULL, "the dimension")
RSI_ATTRS(index_select, INDEX_SELECT_ATTRS)
#define INDEX_SELECT_BACKWARD_ATTRS(F, T) \
  F(T, DIM, dim, 0, -8, 7, NULL, "the dimension") \
  F(T, INT, size, 1, 0, RSI_BIG, NULL, "size of the dimension in the result")
RSI_ATTRS(index_select_backward, INDEX_SELECT_BACKWARD_ATTRS)

static rs_status check_vector(const rsi_call *c) {
  RSI_TRY(check_dtype(c, 1, "index"));
  RSI_CHECK(c->in[1]->ndim == 1, RS_ERR_SHAPE, "index %s must have one dimension", rsi_text(c->in[1]));
  return RS_OK;
}

static rs_status index_select_infer(rsi_call *c) {
  index_select_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  RSI_TRY(check_vector(c));
  rsi_desc_of(x, &c->desc[0]);
  RSI_TRY(rsi_dim(c->ctx, a->dim, x->ndim, &a->dim));
  c->desc[0].shape[a->dim] = c->in[1]->numel;
  return RS_OK;
}

static rs_status index_select_run(const rsi_call *c) {
  const rs_tensor *x = c->in[0];
  const int dim = (int)RSI_ATTR(c, index_select)->dim;
  rows_job j = {.outer = product(x->shape, 0, dim), .size = x->shape[dim], .count = c->in[1]->numel,
                .inner = product(x->shape, dim + 1, x->ndim) * (int64_t)rsi_item_size(x)};
  RSI_TRY(take_ids(c, x, dim, &j.id));
  take_rows(c, &j);
  return RS_OK;
}

static void index_select_grad(rsi_grad *g) {
  const index_select_attrs *a = rsi_attrs(g);
  const rsi_desc *d = rsi_in_desc(g, 0);
  const index_select_backward_attrs back = {.dim = a->dim, .size = d->shape[wrap(a->dim, d->ndim)]};
  rsi_give(g, 0, rsi_emit2(g, RS_OP_index_select_backward, &back, rsi_gout(g, 0), rsi_in(g, 1)));
}

static const rsi_kernel index_select_kernels[] = {{.name = "rows", .dtypes = RSI_ANY, .run = index_select_run}, {.name = NULL}};

static const index_select_attrs is_s1 = {.dim = 1}, is_s2 = {.dim = -1};
static const rsi_sample index_select_samples[] = {
  {.inputs = "f5x7,i4@0:4"}, {.inputs = "f2x5x3,i9@0:4", .attrs = &is_s1}, {.inputs = "f3x33,i7@0:32", .attrs = &is_s2},
  {.inputs = "f5,i0@0:4"}, {.inputs = "f0x3,i2@0:2", .attrs = &is_s1}, {.inputs = "f7,i33@0:6"}, {.inputs = NULL}};

const rs_op rsi_op_index_select = {
  .name = "index_select", .doc = "The entries of one dimension that index lists, in its order.",
  .inputs = "x,index", .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_INDEXED | RSI_T_HALF, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(index_select), .infer = index_select_infer, .grad = index_select_grad, .saves = {RSI_KEEP_IN(1)},
  .kernels = index_select_kernels, .samples = index_select_samples};

static rs_status index_select_backward_infer(rsi_call *c) {
  index_select_backward_attrs *a = c->attrs;
  const rs_tensor *g = c->in[0], *index = c->in[1];
  RSI_TRY(check_vector(c));
  rsi_desc_of(g, &c->desc[0]);
  RSI_TRY(rsi_dim(c->ctx, a->dim, g->ndim, &a->dim));
  RSI_CHECK(g->shape[a->dim] == index->numel, RS_ERR_SHAPE, "dimension %lld of g %s must have the size of index %s",
            (long long)a->dim + rsi_base(c), rsi_text(g), rsi_text(index));
  c->desc[0].shape[a->dim] = a->size;
  return RS_OK;
}

static rs_status index_select_backward_run(const rsi_call *c) {
  const rs_tensor *out = c->out[0];
  const int dim = (int)RSI_ATTR(c, index_select_backward)->dim;
  rows_job j = {.outer = product(out->shape, 0, dim), .size = out->shape[dim], .count = c->in[1]->numel,
                .inner = product(out->shape, dim + 1, out->ndim), .skip = -1};
  RSI_TRY(take_ids(c, out, dim, &j.id));
  give_rows(c, &j);
  return RS_OK;
}

static void index_select_backward_grad(rsi_grad *g) {
  const index_select_backward_attrs *a = rsi_attrs(g);
  const index_select_attrs again = {.dim = a->dim};
  rsi_give(g, 0, rsi_emit2(g, RS_OP_index_select, &again, rsi_gout(g, 0), rsi_in(g, 1)));
}

static const rsi_kernel index_select_backward_kernels[] = {
  {.name = "ranges", .dtypes = RSI_FLOATS, .run = index_select_backward_run}, {.name = NULL}};

static const index_select_backward_attrs ib_s1 = {.dim = 0, .size = 4}, ib_s2 = {.dim = 1, .size = 5}, ib_s3 = {.dim = -1, .size = 33};
static const rsi_sample index_select_backward_samples[] = {
  {.inputs = "f9x7,i9@0:3", .attrs = &ib_s1}, {.inputs = "f2x8x33,i8@0:4", .attrs = &ib_s2}, {.inputs = "f3x7,i7@0:32", .attrs = &ib_s3},
  {.inputs = "f0x3,i0@0:3", .attrs = &ib_s1}, {.inputs = "f0x3,i3@0:4", .attrs = &ib_s2}, {.inputs = NULL}};

const rs_op rsi_op_index_select_backward = {
  .name = "index_select_backward", .doc = "Zeros with each slice of g added at its index: the gradient of index_select.",
  .inputs = "g,index", .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_INDEXED, .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(index_select_backward), .infer = index_select_backward_infer, .grad = index_select_backward_grad,
  .saves = {RSI_KEEP_IN(1)}, .kernels = index_select_backward_kernels, .samples = index_select_backward_samples};

/* ---- embedding ------------------------------------------------------------------------------------------------------- */

#define EMBEDDING_ATTRS(F, T) \
  F(T, INT, padding_index, -1, -1, RSI_BIG, NULL, "row that receives no gradient, counted from 0; -1: none")
RSI_ATTRS(embedding, EMBEDDING_ATTRS)
#define EMBEDDING_BACKWARD_ATTRS(F, T) \
  F(T, INT, rows, 1, 0, RSI_BIG, NULL, "rows of the weight") \
  F(T, INT, padding_index, -1, -1, RSI_BIG, NULL, "row that stays zero, counted from 0; -1: none")
RSI_ATTRS(embedding_backward, EMBEDDING_BACKWARD_ATTRS)

static rs_status check_padding(const rsi_call *c, int64_t padding, int64_t rows) {
  const int base = rsi_base(c);
  RSI_CHECK(padding < rows, RS_ERR_INDEX, "padding_index %lld is outside %d..%lld, the rows of the weight",
            (long long)padding + base, base, (long long)rows - 1 + base);
  return RS_OK;
}

static rs_status embedding_infer(rsi_call *c) {
  const rs_tensor *weight = c->in[0], *id = c->in[1];
  rsi_desc *d = &c->desc[0];
  RSI_CHECK(weight->ndim == 2, RS_ERR_SHAPE, "weight %s must have two dimensions (rows, features)", rsi_text(weight));
  RSI_TRY(check_dtype(c, 1, "ids"));
  RSI_CHECK(id->ndim < RS_MAX_DIMS, RS_ERR_SHAPE, "ids %s has %d dimensions; %d is the most", rsi_text(id), id->ndim, RS_MAX_DIMS - 1);
  RSI_TRY(check_padding(c, RSI_ATTR(c, embedding)->padding_index, weight->shape[0]));
  rsi_desc_of(id, d);
  d->dtype = weight->dtype;
  d->shape[d->ndim++] = weight->shape[1];
  return RS_OK;
}

/* weight: [rows, features], ids: [..], out: [.., features] */
static rs_status embedding_run(const rsi_call *c) {
  const rs_tensor *weight = c->in[0];
  rows_job j = {.outer = 1, .size = weight->shape[0], .count = c->in[1]->numel,
                .inner = weight->shape[1] * (int64_t)rsi_item_size(weight)};
  RSI_TRY(take_ids(c, weight, 0, &j.id));
  take_rows(c, &j);
  return RS_OK;
}

static void embedding_grad(rsi_grad *g) {
  const embedding_attrs *a = rsi_attrs(g);
  const embedding_backward_attrs back = {.rows = rsi_in_desc(g, 0)->shape[0], .padding_index = a->padding_index};
  rsi_give(g, 0, rsi_emit2(g, RS_OP_embedding_backward, &back, rsi_gout(g, 0), rsi_in(g, 1)));
}

static const rsi_kernel embedding_kernels[] = {{.name = "rows", .dtypes = RSI_ANY, .run = embedding_run}, {.name = NULL}};

static const embedding_attrs embedding_s1 = {.padding_index = 2};
static const rsi_sample embedding_samples[] = {
  {.inputs = "f5x7,i4@0:4"}, {.inputs = "f9x33,i2x3@0:8"}, {.inputs = "f4x3,i@0:3"}, {.inputs = "f4x3,i0x2@0:3"},
  {.inputs = "f5x3,i3x7@0:4", .attrs = &embedding_s1, .no_grad = 1},   /* by intention not the derivative of what it computes */
  {.inputs = "f4x0,i3@0:3"}, {.inputs = NULL}};

const rs_op rsi_op_embedding = {
  .name = "embedding", .doc = "The rows of weight that ids name.",
  .inputs = "weight,ids", .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_INDEXED | RSI_T_HALF | RSI_T_NOT_METHOD,
  .dtypes = RSI_ANY, RSI_USES_ATTRS(embedding), .infer = embedding_infer, .grad = embedding_grad, .saves = {RSI_KEEP_IN(1)},
  .kernels = embedding_kernels, .samples = embedding_samples};

static rs_status embedding_backward_infer(rsi_call *c) {
  const embedding_backward_attrs *a = c->attrs;
  const rs_tensor *g = c->in[0], *id = c->in[1];
  RSI_TRY(check_dtype(c, 1, "ids"));
  bool fits = g->ndim == id->ndim + 1;
  for (int i = 0; fits && i < id->ndim; i++) fits = g->shape[i] == id->shape[i];
  RSI_CHECK(fits, RS_ERR_SHAPE, "g %s must have the shape of ids %s and one dimension more", rsi_text(g), rsi_text(id));
  RSI_TRY(check_padding(c, a->padding_index, a->rows));
  c->desc[0] = (rsi_desc){.dtype = g->dtype, .ndim = 2, .shape = {a->rows, g->shape[g->ndim - 1]}};
  return RS_OK;
}

/* g: [.., features], ids: [..], out: [rows, features] */
static rs_status embedding_backward_run(const rsi_call *c) {
  const embedding_backward_attrs *a = RSI_ATTR(c, embedding_backward);
  const rs_tensor *out = c->out[0];
  rows_job j = {.outer = 1, .size = a->rows, .count = c->in[1]->numel, .inner = out->shape[1], .skip = a->padding_index};
  RSI_TRY(take_ids(c, out, 0, &j.id));
  give_rows(c, &j);
  return RS_OK;
}

/* Rows of the padding index did not reach the result: their places get zeros. */
static void embedding_backward_grad(rsi_grad *g) {
  const embedding_backward_attrs *a = rsi_attrs(g);
  rs_tensor *t = rsi_gout(g, 0);
  if (a->padding_index >= 0) {
    rs_tensor *row = rsi_b_narrow(g, t, 0, a->padding_index, 1);
    t = rsi_emit2(g, RS_OP_sub, NULL, t, rsi_b_narrow_backward(g, row, 0, a->padding_index, a->rows));
  }
  rsi_give(g, 0, rsi_emit2(g, RS_OP_embedding, NULL, t, rsi_in(g, 1)));
}

static const rsi_kernel embedding_backward_kernels[] = {
  {.name = "ranges", .dtypes = RSI_FLOATS, .run = embedding_backward_run}, {.name = NULL}};

static const embedding_backward_attrs eb_s1 = {.rows = 5, .padding_index = -1}, eb_s2 = {.rows = 9, .padding_index = 3};
static const rsi_sample embedding_backward_samples[] = {
  {.inputs = "f8x7,i8@0:4", .attrs = &eb_s1}, {.inputs = "f2x9x33,i2x9@0:8", .attrs = &eb_s2}, {.inputs = "f3,i@0:4", .attrs = &eb_s1},
  {.inputs = "f0x3,i0@0:4", .attrs = &eb_s1}, {.inputs = NULL}};

const rs_op rsi_op_embedding_backward = {
  .name = "embedding_backward", .doc = "Zeros with each row of g added at its id: the gradient of embedding.",
  .inputs = "g,ids", .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_INDEXED, .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(embedding_backward), .infer = embedding_backward_infer, .grad = embedding_backward_grad, .saves = {RSI_KEEP_IN(1)},
  .kernels = embedding_backward_kernels, .samples = embedding_backward_samples};
