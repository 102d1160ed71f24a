/*
** Ops that put contiguous pieces one behind the other: cat, stack, and narrow_backward (zeros, a tensor, zeros).
** The result is a sequence of equal rows; a row is a sequence of segments, none of them empty; row r of a segment is the r-th
** block of its bytes in its source, or zeros when it has no source. Threads fill byte ranges of the result, so one long row is
** shared as well as many short ones. Bytes are moved, so every dtype works.
*/
#include "ops/op.h"
#include <string.h>

typedef struct segment {
  const char *from;    /* NULL: zeros */
  size_t      bytes;   /* in one row; not 0 */
} segment;

typedef struct rows {
  const segment *segments;
  int            n;
  char          *out;
  size_t         row, total;   /* bytes of a row, of the result */
} rows;

enum { PIECE = 32768, NS_PER_PIECE = 4000 };

static inline void move(char *to, const char *from, size_t bytes) {
  if (bytes == 4) memcpy(to, from, 4);
  else if (bytes == 8) memcpy(to, from, 8);
  else memcpy(to, from, bytes);
}

static void fill_range(void *arg, int64_t first, int64_t last) {
  const rows *r = arg;
  size_t at = (size_t)first * PIECE, end = (size_t)last * PIECE;
  if (end > r->total) end = r->total;
  size_t row = at / r->row, skip = at % r->row;   /* skip: bytes of the segment that lie before `at` */
  int s = 0;
  while (skip >= r->segments[s].bytes) skip -= r->segments[s++].bytes;
  while (at < end) {
    const segment *g = &r->segments[s];
    size_t bytes = g->bytes - skip;
    if (bytes > end - at) bytes = end - at;
    if (g->from) move(r->out + at, g->from + row * g->bytes + skip, bytes);
    else memset(r->out + at, 0, bytes);
    at += bytes;
    skip = 0;
    if (++s == r->n) {
      s = 0;
      row++;
    }
  }
}

static int add_segment(segment *segments, int n, const void *from, size_t bytes) {
  if (bytes == 0) return n;
  segments[n] = (segment){.from = from, .bytes = bytes};
  return n + 1;
}

static void fill(const rsi_call *c, const segment *segments, int n) {
  rs_tensor *out = c->out[0];
  rows r = {.segments = segments, .n = n, .out = out->data, .total = (size_t)out->numel * rsi_item_size(out)};
  for (int i = 0; i < n; i++) r.row += segments[i].bytes;
  rsi_parallel(c->x, (int64_t)((r.total + PIECE - 1) / PIECE), NS_PER_PIECE, fill_range, &r);
}

/* Product of the sizes of dimensions first..last-1. */
static int64_t product(const int64_t *shape, int first, int last) {
  int64_t n = 1;
  for (int i = first; i < last; i++) n *= shape[i];
  return n;
}

static rs_status check_given(const rsi_call *c) {
  for (int i = 0; i < c->nin; i++) RSI_CHECK(c->in[i], RS_ERR_ARG, "tensor %d is missing", i + rsi_base(c));
  return RS_OK;
}

/* ---- cat and stack --------------------------------------------------------------------------------------------------- */

#define CAT_ATTRS(F, T) F(T, DIM, dim, 0, -8, 7, NULL, "the dimension along which the tensors follow each other")
RSI_ATTRS(cat, CAT_ATTRS)
#define STACK_ATTRS(F, T) F(T, DIM, dim, 0, -8, 7, NULL, "where the new dimension stands in the result")
RSI_ATTRS(stack, STACK_ATTRS)

static rs_status cat_infer(rsi_call *c) {
  cat_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  const int base = rsi_base(c);
  RSI_TRY(check_given(c));
  rsi_desc_of(x, d);
  RSI_CHECK(x->ndim > 0, RS_ERR_SHAPE, "tensor %d is 0-d and has no dimension to join along; use stack", base);
  RSI_TRY(rsi_dim(c->ctx, a->dim, x->ndim, &a->dim));
  for (int i = 1; i < c->nin; i++) {
    const rs_tensor *y = c->in[i];
    bool fits = y->ndim == x->ndim;
    for (int k = 0; fits && k < x->ndim; k++) fits = k == a->dim || y->shape[k] == x->shape[k];
    RSI_CHECK(fits, RS_ERR_SHAPE, "tensor %d %s does not fit tensor %d %s: all dimensions but %lld must be equal", i + base,
              rsi_text(y), base, rsi_text(x), (long long)a->dim + base);
    RSI_CHECK(!__builtin_add_overflow(d->shape[a->dim], y->shape[a->dim], &d->shape[a->dim]), RS_ERR_SHAPE,
              "the result has more elements than memory can hold");
  }
  return RS_OK;
}

static rs_status stack_infer(rsi_call *c) {
  stack_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  const int base = rsi_base(c);
  RSI_TRY(check_given(c));
  rsi_desc_of(x, d);
  RSI_CHECK(x->ndim < RS_MAX_DIMS, RS_ERR_SHAPE, "tensor %d %s has %d dimensions already; %d is the most", base, rsi_text(x),
            x->ndim, RS_MAX_DIMS);
  RSI_TRY(rsi_dim(c->ctx, a->dim, x->ndim + 1, &a->dim));
  for (int i = 1; i < c->nin; i++)
    RSI_CHECK(rsi_same_shape(x, c->in[i]), RS_ERR_SHAPE, "tensor %d %s has another shape than tensor %d %s", i + base,
              rsi_text(c->in[i]), base, rsi_text(x));
  const int dim = (int)a->dim;
  d->ndim = x->ndim + 1;
  d->shape[dim] = c->nin;
  for (int i = dim; i < x->ndim; i++) d->shape[i + 1] = x->shape[i];
  return RS_OK;
}

static size_t segments_size(const rsi_call *c) { return (size_t)c->nin * sizeof(segment); }

/* in i: [outer, n_i, inner], out: [outer, sum of n_i, inner]; stack: n_i = 1. `dim` is the first attribute of both ops. */
static rs_status join_run(const rsi_call *c) {
  const rs_tensor *out = c->out[0];
  segment *segments = c->scratch;
  int n = 0;
  if (out->numel == 0) return RS_OK;
  const size_t outer = (size_t)product(out->shape, 0, (int)*(const int64_t *)c->attrs);
  for (int i = 0; i < c->nin; i++)
    n = add_segment(segments, n, c->in[i]->data, (size_t)c->in[i]->numel / outer * rsi_item_size(out));
  fill(c, segments, n);
  return RS_OK;
}

static const rsi_kernel join_kernels[] = {
  {.name = "join", .dtypes = RSI_ANY, .scratch = segments_size, .run = join_run}, {.name = NULL}};

static int64_t wrap(int64_t i, int64_t n) { return i < 0 ? i + n : i; }

static void cat_grad(rsi_grad *g) {
  const cat_attrs *a = rsi_attrs(g);
  int64_t start = 0;
  for (int i = 0; i < rsi_nin(g); i++) {
    const rsi_desc *d = rsi_in_desc(g, i);
    const int64_t dim = wrap(a->dim, d->ndim), length = d->shape[dim];
    if (rsi_needs(g, i)) rsi_give(g, i, rsi_b_narrow(g, rsi_gout(g, 0), dim, start, length));
    start += length;
  }
}

static void stack_grad(rsi_grad *g) {
  const stack_attrs *a = rsi_attrs(g);
  for (int i = 0; i < rsi_nin(g); i++)
    if (rsi_needs(g, i)) rsi_give(g, i, rsi_b_select(g, rsi_gout(g, 0), a->dim, i));
}

static const cat_attrs cat_s1 = {.dim = 1}, cat_s2 = {.dim = -1};
static const rsi_sample cat_samples[] = {
  {.inputs = "f2x3,f4x3"}, {.inputs = "f2x3,f2x1,f2x7", .attrs = &cat_s1}, {.inputs = "f2x3x5,f2x3x33", .attrs = &cat_s2},
  {.inputs = "f7"}, {.inputs = "f0x3,f2x3"}, {.inputs = "f0x3,f0x2", .attrs = &cat_s1},
  {.inputs = "f2x2x3,f2x5x3,f2x0x3,f2x1x3", .attrs = &cat_s1}, {.inputs = NULL}};

const rs_op rsi_op_cat = {
  .name = "cat", .doc = "Joins tensors along a dimension; all other sizes are equal.",
  .inputs = "tensors...", .nin_min = 1, .nin_max = RSI_VARIADIC, .nout = 1,
  .traits = RSI_T_PROMOTE | RSI_T_HALF | RSI_T_NOT_METHOD, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(cat), .infer = cat_infer, .grad = cat_grad, .kernels = join_kernels, .samples = cat_samples};

static const stack_attrs stack_s1 = {.dim = 1}, stack_s2 = {.dim = -1};
static const rsi_sample stack_samples[] = {
  {.inputs = "f2x3,f2x3"}, {.inputs = "f3x7,f3x7,f3x7", .attrs = &stack_s1}, {.inputs = "f33,f33", .attrs = &stack_s2},
  {.inputs = "f,f,f"}, {.inputs = "f0x3,f0x3"}, {.inputs = "f2x3x5", .attrs = &stack_s2}, {.inputs = NULL}};

const rs_op rsi_op_stack = {
  .name = "stack", .doc = "Joins tensors of one shape along a new dimension.",
  .inputs = "tensors...", .nin_min = 1, .nin_max = RSI_VARIADIC, .nout = 1,
  .traits = RSI_T_PROMOTE | RSI_T_HALF | RSI_T_NOT_METHOD, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(stack), .infer = stack_infer, .grad = stack_grad, .kernels = join_kernels, .samples = stack_samples};

/* ---- narrow_backward ------------------------------------------------------------------------------------------------- */

#define NARROW_BACKWARD_ATTRS(F, T) \
  F(T, DIM, dim, 0, -8, 7, NULL, "the dimension") \
  F(T, INDEX, start, 0, 0, RSI_BIG, NULL, "where g begins in the result") \
  F(T, INT, size, 1, 0, RSI_BIG, NULL, "size of the dimension in the result")
RSI_ATTRS(narrow_backward, NARROW_BACKWARD_ATTRS)

static rs_status narrow_backward_infer(rsi_call *c) {
  narrow_backward_attrs *a = c->attrs;
  const rs_tensor *g = c->in[0];
  rsi_desc *d = &c->desc[0];
  rsi_desc_of(g, d);
  RSI_TRY(rsi_dim(c->ctx, a->dim, g->ndim, &a->dim));
  RSI_CHECK(a->start >= 0 && a->start <= a->size && g->shape[a->dim] <= a->size - a->start, RS_ERR_INDEX,
            "g %s at start %lld does not fit into size %lld of dimension %lld", rsi_text(g), (long long)a->start + rsi_base(c),
            (long long)a->size, (long long)a->dim + rsi_base(c));
  d->shape[a->dim] = a->size;
  return RS_OK;
}

/* g: [outer, length, inner], out: [outer, size, inner] */
static rs_status narrow_backward_run(const rsi_call *c) {
  const narrow_backward_attrs *a = RSI_ATTR(c, narrow_backward);
  const rs_tensor *g = c->in[0], *out = c->out[0];
  segment segments[3];
  if (out->numel == 0) return RS_OK;
  const int64_t inner = product(out->shape, (int)a->dim + 1, out->ndim) * (int64_t)rsi_item_size(out);
  const int64_t length = g->shape[a->dim];
  int n = add_segment(segments, 0, NULL, (size_t)(a->start * inner));
  n = add_segment(segments, n, g->data, (size_t)(length * inner));
  n = add_segment(segments, n, NULL, (size_t)((a->size - a->start - length) * inner));
  fill(c, segments, n);
  return RS_OK;
}

static void narrow_backward_grad(rsi_grad *g) {
  const narrow_backward_attrs *a = rsi_attrs(g);
  const rsi_desc *d = rsi_in_desc(g, 0);
  const int64_t dim = wrap(a->dim, d->ndim);
  rsi_give(g, 0, rsi_b_narrow(g, rsi_gout(g, 0), dim, a->start, d->shape[dim]));
}

rs_tensor *rsi_b_narrow_backward(rsi_grad *g, rs_tensor *t, int64_t dim, int64_t start, int64_t size) {
  const narrow_backward_attrs a = {.dim = dim, .start = start, .size = size};
  return rsi_emit1(g, RS_OP_narrow_backward, &a, t);
}

static const rsi_kernel narrow_backward_kernels[] = {
  {.name = "segments", .dtypes = RSI_ANY, .run = narrow_backward_run}, {.name = NULL}};

static const narrow_backward_attrs nb_s1 = {.dim = 0, .start = 1, .size = 5}, nb_s2 = {.dim = -1, .start = 0, .size = 33},
                                   nb_s3 = {.dim = 1, .start = 2, .size = 9}, nb_s4 = {.dim = 1, .start = 3, .size = 3};
static const rsi_sample narrow_backward_samples[] = {
  {.inputs = "f2x3", .attrs = &nb_s1}, {.inputs = "f3x7", .attrs = &nb_s2}, {.inputs = "f2x7x3", .attrs = &nb_s3},
  {.inputs = "f2x0", .attrs = &nb_s4}, {.inputs = "f0x2", .attrs = &nb_s3}, {.inputs = "f3", .attrs = &nb_s1},
  {.inputs = NULL}};

const rs_op rsi_op_narrow_backward = {
  .name = "narrow_backward", .doc = "Zeros with g written at start of one dimension: the gradient of narrow.",
  .inputs = "g", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_HALF, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(narrow_backward), .infer = narrow_backward_infer, .grad = narrow_backward_grad,
  .kernels = narrow_backward_kernels, .samples = narrow_backward_samples};
