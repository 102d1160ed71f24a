/*
** Ops that look at the same memory in another shape.
** Each op gives a view: `infer` says the shape, `view` the offset and strides (in elements) relative to its input. Only reshape
** (and flatten, its special case) can fail to be a view; then it asks for a contiguous copy of its input and tries again.
** Attributes are normalised by infer; the gradient rules normalise again, since they may see what the caller gave.
*/
#include "ops/op.h"
#include <string.h>

/* Dimension or index i of n, counted from the end when negative. */
static int64_t wrap(int64_t i, int64_t n) { return i < 0 ? i + n : i; }

static rs_list list_of(int n, const int64_t *v) {
  rs_list list = {.n = n};
  for (int i = 0; i < n; i++) list.v[i] = v[i];
  return list;
}

/* ---- reshape --------------------------------------------------------------------------------------------------------- */

#define RESHAPE_ATTRS(F, T) \
  F(T, SHAPE, shape, 0, -1, RSI_BIG, NULL, "the new shape; one -1 stands for what is left; none gives a 0-d tensor")
RSI_ATTRS(reshape, RESHAPE_ATTRS)

static rs_status reshape_infer(rsi_call *c) {
  reshape_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  int hole = -1;
  const int n = (int)a->shape.n;
  const char *wanted = rsi_shape_text(n, a->shape.v);
  rsi_desc_of(x, d);
  d->ndim = n;
  for (int i = 0; i < n; i++) {
    d->shape[i] = a->shape.v[i];
    RSI_CHECK(d->shape[i] >= -1, RS_ERR_SHAPE, "shape %s has a negative size; only one -1 is allowed", wanted);
    if (d->shape[i] == -1) {
      RSI_CHECK(hole < 0, RS_ERR_SHAPE, "shape %s has more than one -1", wanted);
      hole = i;
      d->shape[i] = 1;
    }
  }
  int64_t known;
  RSI_TRY(rsi_numel(n, d->shape, 1, &known));
  if (hole >= 0) {
    RSI_CHECK(known > 0, RS_ERR_SHAPE, "the -1 in %s can be anything for input %s, which has no elements; give its size", wanted,
              rsi_text(x));
    RSI_CHECK(x->numel % known == 0, RS_ERR_SHAPE, "input %s has %lld elements, no multiple of the %lld that %s needs",
              rsi_text(x), (long long)x->numel, (long long)known, wanted);
    d->shape[hole] = x->numel / known;
  } else {
    RSI_CHECK(known == x->numel, RS_ERR_SHAPE, "input %s has %lld elements but shape %s needs %lld", rsi_text(x),
              (long long)x->numel, wanted, (long long)known);
  }
  a->shape = list_of(n, d->shape);
  return RS_OK;
}

/*
** The input is seen as pieces: maximal runs of dimensions that lie one after the other. An output dimension can be a view
** when it divides what is left of one piece, going from the last dimension to the first.
*/
static rs_status reshape_view(const rsi_call *c, int64_t *offset, int64_t *strides) {
  const rs_tensor *x = c->in[0];
  const rsi_desc *d = &c->desc[0];
  *offset = 0;
  if (rsi_is_contiguous(x) || x->numel == 0) {
    int64_t step = 1;
    for (int i = d->ndim - 1; i >= 0; i--) {
      strides[i] = step;
      if (d->shape[i] > 0) step *= d->shape[i];
    }
    return RS_OK;
  }
  int64_t size[RS_MAX_DIMS], stride[RS_MAX_DIMS];   /* pieces, the last dimension's first */
  int pieces = 0;
  for (int i = x->ndim - 1; i >= 0; i--) {
    if (x->shape[i] == 1) continue;
    if (pieces > 0 && x->strides[i] == stride[pieces - 1] * size[pieces - 1]) {
      size[pieces - 1] *= x->shape[i];
    } else {
      size[pieces] = x->shape[i];
      stride[pieces++] = x->strides[i];
    }
  }
  int next = 0;
  int64_t left = 1, step = 1;
  for (int i = d->ndim - 1; i >= 0; i--) {
    strides[i] = step;
    if (d->shape[i] == 1) continue;
    if (left == 1) {
      if (next == pieces) return RS_ERR_STATE;
      left = size[next];
      step = stride[next++];
    }
    if (left % d->shape[i] != 0) return RS_ERR_STATE;
    strides[i] = step;
    step *= d->shape[i];
    left /= d->shape[i];
  }
  return RS_OK;
}

/* The gradient of every op here that keeps the order of the elements. */
static void reshape_grad(rsi_grad *g) {
  const rsi_desc *d = rsi_in_desc(g, 0);
  rsi_give(g, 0, rsi_b_reshape(g, rsi_gout(g, 0), d->ndim, d->shape));
}

rs_tensor *rsi_b_reshape(rsi_grad *g, rs_tensor *t, int ndim, const int64_t *shape) {
  if (t == NULL) return NULL;
  if (t->ndim == ndim && memcmp(t->shape, shape, (size_t)ndim * sizeof *shape) == 0) return t;
  const reshape_attrs a = {.shape = list_of(ndim, shape)};
  return rsi_emit1(g, RS_OP_reshape, &a, t);
}

static const reshape_attrs reshape_s1 = {.shape = {2, {6, 4}}}, reshape_s2 = {.shape = {3, {2, -1, 3}}},
                           reshape_s3 = {.shape = {0, {0}}}, reshape_s4 = {.shape = {3, {3, 0, 5}}},
                           reshape_s5 = {.shape = {1, {-1}}}, reshape_s6 = {.shape = {4, {1, 7, 1, 33}}};
static const rsi_sample reshape_samples[] = {
  {.inputs = "f2x3x4", .attrs = &reshape_s1}, {.inputs = "f3x7x2", .attrs = &reshape_s2},
  {.inputs = "f1x1", .attrs = &reshape_s3},   {.inputs = "f", .attrs = &reshape_s5},
  {.inputs = "f0x4", .attrs = &reshape_s4},   {.inputs = "f33x7", .attrs = &reshape_s6},
  {.inputs = NULL}};

const rs_op rsi_op_reshape = {
  .name = "reshape", .doc = "The same elements, in row-major order, in another shape; a view when the memory allows it.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_VIEW, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(reshape), .infer = reshape_infer, .view = reshape_view, .grad = reshape_grad, .samples = reshape_samples};

/* ---- flatten --------------------------------------------------------------------------------------------------------- */

#define FLATTEN_ATTRS(F, T) \
  F(T, DIM, start_dim, 0, -8, 7, NULL, "first dimension that is merged") \
  F(T, DIM, end_dim, -1, -8, 7, NULL, "last dimension that is merged")
RSI_ATTRS(flatten, FLATTEN_ATTRS)

static rs_status flatten_infer(rsi_call *c) {
  flatten_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  rsi_desc_of(x, d);
  const int n = x->ndim > 0 ? x->ndim : 1;   /* a 0-d tensor becomes one of shape [1] */
  if (x->ndim == 0) d->shape[0] = 1;
  RSI_TRY(rsi_dim(c->ctx, a->start_dim, n, &a->start_dim));
  RSI_TRY(rsi_dim(c->ctx, a->end_dim, n, &a->end_dim));
  RSI_CHECK(a->start_dim <= a->end_dim, RS_ERR_SHAPE, "start_dim %lld lies after end_dim %lld in input %s",
            (long long)a->start_dim + rsi_base(c), (long long)a->end_dim + rsi_base(c), rsi_text(x));
  const int first = (int)a->start_dim, last = (int)a->end_dim;
  int64_t merged;
  RSI_TRY(rsi_numel(last - first + 1, d->shape + first, 1, &merged));
  d->shape[first] = merged;
  for (int i = last + 1; i < n; i++) d->shape[first + i - last] = d->shape[i];
  d->ndim = n - (last - first);
  return RS_OK;
}

static const flatten_attrs flatten_s1 = {.start_dim = 1, .end_dim = -1}, flatten_s2 = {.start_dim = -3, .end_dim = -2},
                           flatten_s3 = {.start_dim = 0, .end_dim = 0};
static const rsi_sample flatten_samples[] = {
  {.inputs = "f2x3x5", .attrs = &flatten_s1}, {.inputs = "f2x7x3x4", .attrs = &flatten_s2}, {.inputs = "f33x3"},
  {.inputs = "f"}, {.inputs = "f4x0x3", .attrs = &flatten_s1}, {.inputs = "f3x7", .attrs = &flatten_s3},
  {.inputs = NULL}};

const rs_op rsi_op_flatten = {
  .name = "flatten", .doc = "Merges the dimensions start_dim to end_dim into one.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_VIEW, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(flatten), .infer = flatten_infer, .view = reshape_view, .grad = reshape_grad, .samples = flatten_samples};

/* ---- permute --------------------------------------------------------------------------------------------------------- */

#define PERMUTE_ATTRS(F, T) F(T, DIMS, dims, 0, -8, 7, NULL, "for each dimension of the result, the input's dimension")
RSI_ATTRS(permute, PERMUTE_ATTRS)

static rs_status permute_infer(rsi_call *c) {
  permute_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  rsi_desc_of(x, d);
  RSI_CHECK(a->dims.n == x->ndim, RS_ERR_SHAPE, "%lld dims were given but input %s has %d", (long long)a->dims.n, rsi_text(x),
            x->ndim);
  unsigned seen = 0;
  for (int i = 0; i < x->ndim; i++) {
    RSI_TRY(rsi_dim(c->ctx, a->dims.v[i], x->ndim, &a->dims.v[i]));
    const int from = (int)a->dims.v[i];
    RSI_CHECK((seen >> from & 1u) == 0, RS_ERR_SHAPE, "dimension %d is named twice for input %s; name each one once",
              from + rsi_base(c), rsi_text(x));
    seen |= 1u << from;
    d->shape[i] = x->shape[from];
  }
  return RS_OK;
}

static rs_status permute_view(const rsi_call *c, int64_t *offset, int64_t *strides) {
  const permute_attrs *a = RSI_ATTR(c, permute);
  const rs_tensor *x = c->in[0];
  *offset = 0;
  for (int i = 0; i < x->ndim; i++) strides[i] = x->strides[wrap(a->dims.v[i], x->ndim)];
  return RS_OK;
}

static void permute_grad(rsi_grad *g) {
  const permute_attrs *a = rsi_attrs(g);
  rs_list inverse = {.n = a->dims.n};
  for (int i = 0; i < (int)a->dims.n; i++) inverse.v[wrap(a->dims.v[i], a->dims.n)] = i;
  rsi_give(g, 0, rsi_b_permute(g, rsi_gout(g, 0), &inverse));
}

rs_tensor *rsi_b_permute(rsi_grad *g, rs_tensor *t, const rs_list *dims) {
  const permute_attrs a = {.dims = *dims};
  return rsi_emit1(g, RS_OP_permute, &a, t);
}

static const permute_attrs permute_s1 = {.dims = {3, {2, 0, 1}}}, permute_s2 = {.dims = {4, {0, -1, 1, 2}}},
                           permute_s3 = {.dims = {2, {1, 0}}};
static const rsi_sample permute_samples[] = {
  {.inputs = "f2x3x5", .attrs = &permute_s1}, {.inputs = "f2x3x4x7", .attrs = &permute_s2},
  {.inputs = "f33x7", .attrs = &permute_s3},  {.inputs = "f0x3", .attrs = &permute_s3}, {.inputs = "f"},
  {.inputs = NULL}};

const rs_op rsi_op_permute = {
  .name = "permute", .doc = "Dimension i of the result is dimension dims[i] of x; a view.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_VIEW, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(permute), .infer = permute_infer, .view = permute_view, .grad = permute_grad, .samples = permute_samples};

/* ---- transpose ------------------------------------------------------------------------------------------------------- */

#define TRANSPOSE_ATTRS(F, T) \
  F(T, DIM, dim0, -2, -8, 7, NULL, "one dimension") \
  F(T, DIM, dim1, -1, -8, 7, NULL, "the dimension it changes places with")
RSI_ATTRS(transpose, TRANSPOSE_ATTRS)

static rs_status transpose_infer(rsi_call *c) {
  transpose_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  rsi_desc_of(x, d);
  RSI_TRY(rsi_dim(c->ctx, a->dim0, x->ndim, &a->dim0));
  RSI_TRY(rsi_dim(c->ctx, a->dim1, x->ndim, &a->dim1));
  d->shape[a->dim0] = x->shape[a->dim1];
  d->shape[a->dim1] = x->shape[a->dim0];
  return RS_OK;
}

static rs_status transpose_view(const rsi_call *c, int64_t *offset, int64_t *strides) {
  const transpose_attrs *a = RSI_ATTR(c, transpose);
  const rs_tensor *x = c->in[0];
  const int64_t dim0 = wrap(a->dim0, x->ndim), dim1 = wrap(a->dim1, x->ndim);
  *offset = 0;
  for (int i = 0; i < x->ndim; i++) strides[i] = x->strides[i];
  strides[dim0] = x->strides[dim1];
  strides[dim1] = x->strides[dim0];
  return RS_OK;
}

static void transpose_grad(rsi_grad *g) {
  const transpose_attrs *a = rsi_attrs(g);
  rsi_give(g, 0, rsi_b_transpose(g, rsi_gout(g, 0), a->dim0, a->dim1));
}

rs_tensor *rsi_b_transpose(rsi_grad *g, rs_tensor *t, int64_t dim0, int64_t dim1) {
  const transpose_attrs a = {.dim0 = dim0, .dim1 = dim1};
  return rsi_emit1(g, RS_OP_transpose, &a, t);
}

static const transpose_attrs transpose_s1 = {.dim0 = 0, .dim1 = 2}, transpose_s2 = {.dim0 = 0, .dim1 = -1},
                             transpose_s3 = {.dim0 = 1, .dim1 = 1};
static const rsi_sample transpose_samples[] = {
  {.inputs = "f33x7"}, {.inputs = "f2x3x5", .attrs = &transpose_s1}, {.inputs = "f0x3", .attrs = &transpose_s2},
  {.inputs = "f5", .attrs = &transpose_s2}, {.inputs = "f2x3", .attrs = &transpose_s3}, {.inputs = NULL}};

const rs_op rsi_op_transpose = {
  .name = "transpose", .doc = "Two dimensions change places; a view.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_VIEW, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(transpose), .infer = transpose_infer, .view = transpose_view, .grad = transpose_grad,
  .samples = transpose_samples};

/* ---- narrow ---------------------------------------------------------------------------------------------------------- */

#define NARROW_ATTRS(F, T) \
  F(T, DIM, dim, 0, -8, 7, NULL, "the dimension") \
  F(T, INDEX, start, 0, -RSI_BIG, RSI_BIG, NULL, "first index that is kept") \
  F(T, INT, length, 1, 0, RSI_BIG, NULL, "how many are kept")
RSI_ATTRS(narrow, NARROW_ATTRS)

/* An index as the caller counts: from the base, or as given when it counts from the end. */
static long long shown(const rsi_call *c, int64_t index) { return (long long)(index < 0 ? index : index + rsi_base(c)); }

static rs_status narrow_infer(rsi_call *c) {
  narrow_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  rsi_desc_of(x, d);
  RSI_TRY(rsi_dim(c->ctx, a->dim, x->ndim, &a->dim));
  const int64_t size = x->shape[a->dim], start = wrap(a->start, size);
  RSI_CHECK(a->length >= 0, RS_ERR_ARG, "length is %lld; it must not be negative", (long long)a->length);
  RSI_CHECK(start >= 0 && start <= size && a->length <= size - start, RS_ERR_INDEX,
            "start %lld and length %lld reach outside dimension %lld of input %s, which has %lld entries", shown(c, a->start),
            (long long)a->length, (long long)a->dim + rsi_base(c), rsi_text(x), (long long)size);
  a->start = start;
  d->shape[a->dim] = a->length;
  return RS_OK;
}

static rs_status narrow_view(const rsi_call *c, int64_t *offset, int64_t *strides) {
  const narrow_attrs *a = RSI_ATTR(c, narrow);
  const rs_tensor *x = c->in[0];
  const int64_t dim = wrap(a->dim, x->ndim);
  for (int i = 0; i < x->ndim; i++) strides[i] = x->strides[i];
  *offset = a->length > 0 ? wrap(a->start, x->shape[dim]) * x->strides[dim] : 0;
  return RS_OK;
}

static void narrow_grad(rsi_grad *g) {
  const narrow_attrs *a = rsi_attrs(g);
  const rsi_desc *d = rsi_in_desc(g, 0);
  const int64_t dim = wrap(a->dim, d->ndim), size = d->shape[dim];
  rsi_give(g, 0, rsi_b_narrow_backward(g, rsi_gout(g, 0), dim, wrap(a->start, size), size));
}

rs_tensor *rsi_b_narrow(rsi_grad *g, rs_tensor *t, int64_t dim, int64_t start, int64_t length) {
  const narrow_attrs a = {.dim = dim, .start = start, .length = length};
  return rsi_emit1(g, RS_OP_narrow, &a, t);
}

static const narrow_attrs narrow_s1 = {.dim = 0, .start = 1, .length = 2}, narrow_s2 = {.dim = -1, .start = -5, .length = 3},
                          narrow_s3 = {.dim = 1, .start = 3, .length = 0}, narrow_s4 = {.dim = 1, .start = 0, .length = 4},
                          narrow_s5 = {.dim = 0, .start = 7, .length = 17};
static const rsi_sample narrow_samples[] = {
  {.inputs = "f4x3", .attrs = &narrow_s1}, {.inputs = "f2x3x7", .attrs = &narrow_s2}, {.inputs = "f2x3", .attrs = &narrow_s3},
  {.inputs = "f0x4", .attrs = &narrow_s4}, {.inputs = "f33", .attrs = &narrow_s5},    {.inputs = NULL}};

const rs_op rsi_op_narrow = {
  .name = "narrow", .doc = "The entries start to start + length - 1 of one dimension; a view.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_VIEW, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(narrow), .infer = narrow_infer, .view = narrow_view, .grad = narrow_grad, .samples = narrow_samples};

/* ---- select ---------------------------------------------------------------------------------------------------------- */

#define SELECT_ATTRS(F, T) \
  F(T, DIM, dim, 0, -8, 7, NULL, "the dimension, which the result does not have") \
  F(T, INDEX, index, 0, -RSI_BIG, RSI_BIG, NULL, "the entry that is taken")
RSI_ATTRS(select, SELECT_ATTRS)

static rs_status select_infer(rsi_call *c) {
  select_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  rsi_desc_of(x, d);
  RSI_TRY(rsi_dim(c->ctx, a->dim, x->ndim, &a->dim));
  const int64_t size = x->shape[a->dim], index = wrap(a->index, size);
  const int base = rsi_base(c);
  RSI_CHECK(size > 0, RS_ERR_INDEX, "dimension %lld of input %s is empty", (long long)a->dim + base, rsi_text(x));
  RSI_CHECK(index >= 0 && index < size, RS_ERR_INDEX, "index %lld is outside %d..%lld of dimension %lld of input %s",
            shown(c, a->index), base, (long long)size - 1 + base, (long long)a->dim + base, rsi_text(x));
  a->index = index;
  d->ndim = x->ndim - 1;
  for (int i = (int)a->dim; i < d->ndim; i++) d->shape[i] = x->shape[i + 1];
  return RS_OK;
}

static rs_status select_view(const rsi_call *c, int64_t *offset, int64_t *strides) {
  const select_attrs *a = RSI_ATTR(c, select);
  const rs_tensor *x = c->in[0];
  const int dim = (int)wrap(a->dim, x->ndim);
  *offset = wrap(a->index, x->shape[dim]) * x->strides[dim];
  for (int i = 0; i < x->ndim - 1; i++) strides[i] = x->strides[i < dim ? i : i + 1];
  return RS_OK;
}

static void select_grad(rsi_grad *g) {
  const select_attrs *a = rsi_attrs(g);
  const rsi_desc *d = rsi_in_desc(g, 0);
  const int64_t dim = wrap(a->dim, d->ndim), size = d->shape[dim];
  rsi_desc one = *d;
  one.shape[dim] = 1;
  rs_tensor *t = rsi_b_reshape(g, rsi_gout(g, 0), one.ndim, one.shape);
  rsi_give(g, 0, rsi_b_narrow_backward(g, t, dim, wrap(a->index, size), size));
}

rs_tensor *rsi_b_select(rsi_grad *g, rs_tensor *t, int64_t dim, int64_t index) {
  const select_attrs a = {.dim = dim, .index = index};
  return rsi_emit1(g, RS_OP_select, &a, t);
}

static const select_attrs select_s1 = {.dim = 1, .index = 2}, select_s2 = {.dim = -1, .index = -1},
                          select_s3 = {.dim = 1, .index = 0};
static const rsi_sample select_samples[] = {
  {.inputs = "f3x7"}, {.inputs = "f4x3x5", .attrs = &select_s1}, {.inputs = "f2x33", .attrs = &select_s2}, {.inputs = "f5"},
  {.inputs = "f0x3", .attrs = &select_s3}, {.inputs = NULL}};

const rs_op rsi_op_select = {
  .name = "select", .doc = "One entry of a dimension, which disappears; a view.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_VIEW, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(select), .infer = select_infer, .view = select_view, .grad = select_grad, .samples = select_samples};

/* ---- expand ---------------------------------------------------------------------------------------------------------- */

#define EXPAND_ATTRS(F, T) F(T, SHAPE, shape, 0, -1, RSI_BIG, NULL, "the shape; -1 keeps the size of the input")
RSI_ATTRS(expand, EXPAND_ATTRS)

static rs_status expand_infer(rsi_call *c) {
  expand_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  rsi_desc_of(x, d);
  const int n = (int)a->shape.n, lead = n - x->ndim;
  const char *wanted = rsi_shape_text(n, a->shape.v);
  RSI_CHECK(lead >= 0, RS_ERR_SHAPE, "shape %s has fewer dimensions than input %s", wanted, rsi_text(x));
  d->ndim = n;
  for (int i = 0; i < n; i++) {
    const int64_t size = a->shape.v[i];
    RSI_CHECK(size >= 0 || (size == -1 && i >= lead), RS_ERR_SHAPE,
              "shape %s: -1 is allowed only for a dimension that input %s has", wanted, rsi_text(x));
    d->shape[i] = size;
    if (i < lead) continue;
    const int64_t old = x->shape[i - lead];
    if (size == -1) d->shape[i] = old;
    RSI_CHECK(d->shape[i] == old || old == 1, RS_ERR_SHAPE,
              "input %s does not expand to %s: dimension %d has size %lld, and only size 1 can become %lld", rsi_text(x), wanted,
              i + rsi_base(c), (long long)old, (long long)size);
  }
  a->shape = list_of(n, d->shape);
  int64_t numel;
  return rsi_numel(n, d->shape, 1, &numel);
}

static rs_status expand_view(const rsi_call *c, int64_t *offset, int64_t *strides) {
  const rs_tensor *x = c->in[0];
  const rsi_desc *d = &c->desc[0];
  const int lead = d->ndim - x->ndim;
  *offset = 0;
  for (int i = 0; i < d->ndim; i++)
    strides[i] = i < lead || x->shape[i - lead] != d->shape[i] ? 0 : x->strides[i - lead];
  return RS_OK;
}

static void expand_grad(rsi_grad *g) { rsi_give(g, 0, rsi_b_sum_to(g, rsi_gout(g, 0), rsi_in_desc(g, 0))); }

rs_tensor *rsi_b_expand(rsi_grad *g, rs_tensor *t, int ndim, const int64_t *shape) {
  if (t == NULL) return NULL;
  if (t->ndim == ndim && memcmp(t->shape, shape, (size_t)ndim * sizeof *shape) == 0) return t;
  const expand_attrs a = {.shape = list_of(ndim, shape)};
  return rsi_emit1(g, RS_OP_expand, &a, t);
}

static const expand_attrs expand_s1 = {.shape = {2, {4, 7}}}, expand_s2 = {.shape = {3, {2, 3, 33}}},
                          expand_s3 = {.shape = {3, {5, -1, 4}}}, expand_s4 = {.shape = {2, {0, 3}}},
                          expand_s5 = {.shape = {2, {-1, -1}}}, expand_s6 = {.shape = {0, {0}}};
static const rsi_sample expand_samples[] = {
  {.inputs = "f1x7", .attrs = &expand_s1}, {.inputs = "f", .attrs = &expand_s2},    {.inputs = "f3x1", .attrs = &expand_s3},
  {.inputs = "f1x3", .attrs = &expand_s4}, {.inputs = "f2x3", .attrs = &expand_s5}, {.inputs = "f", .attrs = &expand_s6},
  {.inputs = "f3x1x33", .attrs = &(const expand_attrs){.shape = {3, {3, 7, 33}}}},  {.inputs = NULL}};

const rs_op rsi_op_expand = {
  .name = "expand", .doc = "Repeats dimensions of size 1 without copying, and puts new ones in front; a view.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_VIEW, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(expand), .infer = expand_infer, .view = expand_view, .grad = expand_grad, .samples = expand_samples};

/* ---- squeeze, unsqueeze ---------------------------------------------------------------------------------------------- */

#define SQUEEZE_ATTRS(F, T) F(T, DIM, dim, RSI_NO_DIM, -8, 7, NULL, "the dimension to drop when its size is 1; not given: all")
RSI_ATTRS(squeeze, SQUEEZE_ATTRS)

static rs_status squeeze_infer(rsi_call *c) {
  squeeze_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  rsi_desc_of(x, d);
  if (a->dim != RSI_NO_DIM) RSI_TRY(rsi_dim(c->ctx, a->dim, x->ndim, &a->dim));
  int n = 0;
  for (int i = 0; i < x->ndim; i++) {
    if (x->shape[i] == 1 && (a->dim == RSI_NO_DIM || a->dim == i)) continue;
    d->shape[n++] = x->shape[i];
  }
  d->ndim = n;
  return RS_OK;
}

static rs_status squeeze_view(const rsi_call *c, int64_t *offset, int64_t *strides) {
  const squeeze_attrs *a = RSI_ATTR(c, squeeze);
  const rs_tensor *x = c->in[0];
  const int64_t dim = a->dim == RSI_NO_DIM ? RSI_NO_DIM : wrap(a->dim, x->ndim);
  int n = 0;
  *offset = 0;
  for (int i = 0; i < x->ndim; i++) {
    if (x->shape[i] == 1 && (dim == RSI_NO_DIM || dim == i)) continue;
    strides[n++] = x->strides[i];
  }
  return RS_OK;
}

static const squeeze_attrs squeeze_s1 = {.dim = 1}, squeeze_s2 = {.dim = -1};
static const rsi_sample squeeze_samples[] = {
  {.inputs = "f1x3x1x7"}, {.inputs = "f3x1x5", .attrs = &squeeze_s1}, {.inputs = "f1x33x3", .attrs = &squeeze_s2},
  {.inputs = "f"}, {.inputs = "f0x1"}, {.inputs = "f1"}, {.inputs = NULL}};

const rs_op rsi_op_squeeze = {
  .name = "squeeze", .doc = "Drops one dimension of size 1, or all of them; a view.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_VIEW, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(squeeze), .infer = squeeze_infer, .view = squeeze_view, .grad = reshape_grad, .samples = squeeze_samples};

#define UNSQUEEZE_ATTRS(F, T) F(T, DIM, dim, 0, -9, 8, NULL, "where the new dimension stands in the result")
RSI_ATTRS(unsqueeze, UNSQUEEZE_ATTRS)

static rs_status unsqueeze_infer(rsi_call *c) {
  unsqueeze_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  rsi_desc *d = &c->desc[0];
  rsi_desc_of(x, d);
  RSI_CHECK(x->ndim < RS_MAX_DIMS, RS_ERR_SHAPE, "input %s has %d dimensions already; %d is the most", rsi_text(x), x->ndim,
            RS_MAX_DIMS);
  RSI_TRY(rsi_dim(c->ctx, a->dim, x->ndim + 1, &a->dim));
  d->ndim = x->ndim + 1;
  d->shape[a->dim] = 1;
  for (int i = (int)a->dim; i < x->ndim; i++) d->shape[i + 1] = x->shape[i];
  return RS_OK;
}

static rs_status unsqueeze_view(const rsi_call *c, int64_t *offset, int64_t *strides) {
  const unsqueeze_attrs *a = RSI_ATTR(c, unsqueeze);
  const rs_tensor *x = c->in[0];
  const int dim = (int)wrap(a->dim, x->ndim + 1);
  *offset = 0;
  for (int i = 0; i < dim; i++) strides[i] = x->strides[i];
  strides[dim] = dim < x->ndim ? x->strides[dim] * x->shape[dim] : 1;
  for (int i = dim; i < x->ndim; i++) strides[i + 1] = x->strides[i];
  return RS_OK;
}

static const unsqueeze_attrs unsqueeze_s1 = {.dim = 2}, unsqueeze_s2 = {.dim = -1}, unsqueeze_s3 = {.dim = 1};
static const rsi_sample unsqueeze_samples[] = {
  {.inputs = "f3x7"}, {.inputs = "f3x5", .attrs = &unsqueeze_s1}, {.inputs = "f33", .attrs = &unsqueeze_s2}, {.inputs = "f"},
  {.inputs = "f0x3", .attrs = &unsqueeze_s3}, {.inputs = NULL}};

const rs_op rsi_op_unsqueeze = {
  .name = "unsqueeze", .doc = "Puts in a new dimension of size 1; a view.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_VIEW, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(unsqueeze), .infer = unsqueeze_infer, .view = unsqueeze_view, .grad = reshape_grad,
  .samples = unsqueeze_samples};
