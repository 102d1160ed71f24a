/*
** pad: a tensor in a larger (or smaller) frame. Pairs (before, after) start at the last dimension; negative ones cut off.
** Position o of the result shows position p = o - before of the input when that exists. Where it does not, the mode says what:
** constant, the value; reflect, the mirror image without the edge itself; replicate, the nearest edge.
** So each dimension has a map from positions of the result to positions of the input (-1: none), and a result row is one run
** copied from an input row with mapped elements on both sides. The backward op adds along the same map.
*/
#include "ops/op.h"
#include <math.h>
#include <string.h>

enum { CONSTANT, REFLECT, REPLICATE, PAD_DIMS = 4 };

static inline int64_t map(int mode, int64_t p, int64_t n) {
  if (p >= 0 && p < n) return p;
  if (mode == REFLECT) return p < 0 ? -p : 2 * (n - 1) - p;
  if (mode == REPLICATE) return p < 0 ? 0 : n - 1;
  return -1;
}

/* The frame of a call; a 0-d tensor counts as one of shape [1]. */
typedef struct frame {
  int     ndim, padded, mode;                  /* padded: how many trailing dimensions have pads */
  int64_t small[RS_MAX_DIMS], large[RS_MAX_DIMS], before[RS_MAX_DIMS];   /* the input's and the result's shape */
} frame;

static rs_status frame_make(const rsi_call *c, int ndim, const int64_t *shape, const rs_list *padding, int mode, frame *f) {
  const char *text = rsi_shape_text(ndim, shape);
  const int pairs = (int)padding->n / 2;
  RSI_CHECK(padding->n % 2 == 0, RS_ERR_ARG, "padding %s has an odd number of values; it takes pairs (before, after), the last "
            "dimension's first", rsi_shape_text((int)padding->n, padding->v));
  RSI_CHECK(pairs <= ndim, RS_ERR_SHAPE, "padding %s has %d pairs but input %s has %d dimensions (at most %d can be padded)",
            rsi_shape_text((int)padding->n, padding->v), pairs, text, ndim, PAD_DIMS);
  f->ndim = ndim > 0 ? ndim : 1;
  f->padded = pairs;
  f->mode = mode;
  f->small[0] = f->large[0] = 1;
  f->before[0] = 0;
  for (int i = 0; i < ndim; i++) {
    const int pair = ndim - 1 - i;
    const int64_t n = shape[i], before = pair < pairs ? padding->v[2 * pair] : 0, after = pair < pairs ? padding->v[2 * pair + 1] : 0;
    const int64_t most = before > after ? before : after;
    int64_t size;
    const bool fits = !__builtin_add_overflow(n, before, &size) && !__builtin_add_overflow(size, after, &size);
    RSI_CHECK(fits && size >= 0, RS_ERR_SHAPE, "padding (%lld, %lld) of dimension %d of input %s gives it an impossible size",
              (long long)before, (long long)after, i + rsi_base(c), text);
    RSI_CHECK(mode != REFLECT || most <= 0 || most < n, RS_ERR_SHAPE,
              "reflect padding (%lld, %lld) of dimension %d of input %s must be smaller than the size %lld", (long long)before,
              (long long)after, i + rsi_base(c), text, (long long)n);
    RSI_CHECK(mode != REPLICATE || most <= 0 || n > 0, RS_ERR_SHAPE,
              "dimension %d of input %s is empty and has nothing to replicate", i + rsi_base(c), text);
    f->small[i] = n;
    f->large[i] = size;
    f->before[i] = before;
  }
  return RS_OK;
}

/* The frame of attributes that infer has accepted. */
static void frame_again(const rsi_call *c, const rs_tensor *small, const rs_list *padding, int64_t mode, frame *f) {
  (void)frame_make(c, small->ndim, small->shape, padding, (int)mode, f);
}

/* The columns low..high-1 of a result row show an unbroken run of the input row. */
static void run_of(const frame *f, int64_t *low, int64_t *high) {
  const int last = f->ndim - 1;
  const int64_t before = f->before[last], n = f->small[last], width = f->large[last];
  *low = before > 0 ? (before < width ? before : width) : 0;
  *high = before + n < width ? before + n : width;
  if (*high < *low) *high = *low;
}

/* Walks rows of the result and knows the input row that each shows. */
typedef struct walk { int64_t at[RS_MAX_DIMS]; } walk;

static void walk_begin(const frame *f, int64_t row, walk *w) {
  for (int i = f->ndim - 2; i >= 0; i--) {
    w->at[i] = row % f->large[i];
    row /= f->large[i];
  }
}

static void walk_next(const frame *f, walk *w) {
  for (int i = f->ndim - 2; i >= 0 && ++w->at[i] == f->large[i]; i--) w->at[i] = 0;
}

static int64_t walk_source(const frame *f, const walk *w) {   /* -1: none */
  int64_t row = 0;
  for (int i = 0; i < f->ndim - 1; i++) {
    const int64_t p = map(f->mode, w->at[i] - f->before[i], f->small[i]);
    if (p < 0) return -1;
    row = row * f->small[i] + p;
  }
  return row;
}

/* ---- pad ------------------------------------------------------------------------------------------------------------- */

#define PAD_ATTRS(F, T) \
  F(T, INTS, padding, 0, -RSI_BIG, RSI_BIG, NULL, "pairs (before, after), the last dimension's first; at most 4 pairs; negative cuts off") \
  F(T, ENUM, mode, CONSTANT, 0, 2, "constant,reflect,replicate", "what the new places hold") \
  F(T, FLOAT, value, 0, -HUGE_VAL, HUGE_VAL, NULL, "the value of mode constant")
RSI_ATTRS(pad, PAD_ATTRS)

#define PAD_BACKWARD_ATTRS(F, T) \
  F(T, INTS, padding, 0, -RSI_BIG, RSI_BIG, NULL, "as in pad") \
  F(T, ENUM, mode, CONSTANT, 0, 2, "constant,reflect,replicate", "as in pad") \
  F(T, SHAPE, shape, 0, 0, RSI_BIG, NULL, "the shape before padding")
RSI_ATTRS(pad_backward, PAD_BACKWARD_ATTRS)

static rs_status check_value(double v, int dtype) {
  bool fits = true;
  if (dtype == RS_I64) fits = v >= -9223372036854775808.0 && v < 9223372036854775808.0;
  if (dtype == RS_I32) fits = v >= INT32_MIN && v <= INT32_MAX;
  if (dtype == RS_U8) fits = v >= 0 && v <= UINT8_MAX;
  RSI_CHECK(fits, RS_ERR_ARG, "value %g does not fit an element of dtype %s", v, rs_dtype_name(dtype));
  return RS_OK;
}

static rs_status pad_infer(rsi_call *c) {
  const pad_attrs *a = c->attrs;
  const rs_tensor *x = c->in[0];
  frame f;
  RSI_TRY(frame_make(c, x->ndim, x->shape, &a->padding, (int)a->mode, &f));
  RSI_TRY(check_value(a->value, x->dtype));
  rsi_desc_of(x, &c->desc[0]);
  for (int i = 0; i < x->ndim; i++) c->desc[0].shape[i] = f.large[i];
  return RS_OK;
}

typedef struct pad_job {
  frame  f;
  char  *small, *large;
  double value;
} pad_job;

/* small: [.., n], large: [.., width], rows first..last-1 of large */
#define PAD_ROWS(T)                                                                                                         \
  static void pad_rows_##T(void *arg, int64_t first, int64_t last) {                                                        \
    const pad_job *j = arg;                                                                                                 \
    const frame *f = &j->f;                                                                                                 \
    const int64_t n = f->small[f->ndim - 1], width = f->large[f->ndim - 1], before = f->before[f->ndim - 1];                \
    const T value = (T)j->value;                                                                                            \
    int64_t low, high;                                                                                                      \
    walk w;                                                                                                                 \
    run_of(f, &low, &high);                                                                                                 \
    walk_begin(f, first, &w);                                                                                               \
    for (int64_t row = first; row < last; row++, walk_next(f, &w)) {                                                        \
      const int64_t source = walk_source(f, &w);                                                                            \
      T *out = (T *)(void *)j->large + row * width;                                                                         \
      const T *x = (const T *)(const void *)j->small + (source < 0 ? 0 : source) * n;                                       \
      if (source < 0 || (f->mode == CONSTANT && low == high)) {                                                             \
        for (int64_t i = 0; i < width; i++) out[i] = value;                                                                 \
        continue;                                                                                                           \
      }                                                                                                                     \
      for (int64_t i = 0; i < low; i++) out[i] = f->mode == CONSTANT ? value : x[map(f->mode, i - before, n)];              \
      if (high > low) memcpy(out + low, x + (low - before), (size_t)(high - low) * sizeof(T));                              \
      for (int64_t i = high; i < width; i++) out[i] = f->mode == CONSTANT ? value : x[map(f->mode, i - before, n)];         \
    }                                                                                                                       \
  }
PAD_ROWS(float)
PAD_ROWS(double)
PAD_ROWS(int64_t)
PAD_ROWS(int32_t)
PAD_ROWS(uint8_t)
PAD_ROWS(bool)

static rs_status pad_run(const rsi_call *c) {
  static const rsi_range_fn rows[RS_DTYPES] = {[RS_F32] = pad_rows_float,   [RS_F64] = pad_rows_double,
                                               [RS_I64] = pad_rows_int64_t, [RS_I32] = pad_rows_int32_t,
                                               [RS_U8] = pad_rows_uint8_t,  [RS_BOOL] = pad_rows_bool};
  const pad_attrs *a = RSI_ATTR(c, pad);
  const rs_tensor *x = c->in[0], *out = c->out[0];
  pad_job j = {.small = x->data, .large = out->data, .value = a->value};
  if (out->numel == 0) return RS_OK;
  frame_again(c, x, &a->padding, a->mode, &j.f);
  const int64_t width = j.f.large[j.f.ndim - 1];
  rsi_parallel(c->x, out->numel / width, 10.0 + 0.3 * (double)width, rows[x->dtype], &j);
  return RS_OK;
}

static void pad_grad(rsi_grad *g) {
  const pad_attrs *a = rsi_attrs(g);
  if (a->mode == CONSTANT) {
    pad_attrs back = {.padding = a->padding};
    for (int i = 0; i < (int)a->padding.n; i++) back.padding.v[i] = -a->padding.v[i];
    rsi_give(g, 0, rsi_emit1(g, RS_OP_pad, &back, rsi_gout(g, 0)));
    return;
  }
  const rsi_desc *d = rsi_in_desc(g, 0);
  pad_backward_attrs back = {.padding = a->padding, .mode = a->mode, .shape = {.n = d->ndim}};
  for (int i = 0; i < d->ndim; i++) back.shape.v[i] = d->shape[i];
  rsi_give(g, 0, rsi_emit1(g, RS_OP_pad_backward, &back, rsi_gout(g, 0)));
}

static const rsi_kernel pad_kernels[] = {{.name = "rows", .dtypes = RSI_ANY & ~RSI_HALF, .run = pad_run}, {.name = NULL}};

static const pad_attrs pad_s1 = {.padding = {2, {1, 2}}, .value = 0.5}, pad_s2 = {.padding = {4, {1, 1, 2, 0}}},
                       pad_s3 = {.padding = {4, {2, 1, 1, 3}}, .mode = REFLECT},
                       pad_s4 = {.padding = {4, {3, 2, 0, 5}}, .mode = REPLICATE}, pad_s5 = {.padding = {4, {-1, 2, 1, -2}}},
                       pad_s6 = {.padding = {2, {-2, 3}}, .mode = REFLECT}, pad_s7 = {.padding = {2, {1, -3}}, .mode = REPLICATE},
                       pad_s8 = {.padding = {8, {1, 0, 0, 1, 2, 1, 1, 1}}, .value = 2},
                       pad_s9 = {.padding = {6, {1, 1, 1, 0, 0, 1}}, .mode = REFLECT};
static const rsi_sample pad_samples[] = {
  {.inputs = "f3x7", .attrs = &pad_s1},   {.inputs = "f2x3x5x5", .attrs = &pad_s2}, {.inputs = "f2x4x7", .attrs = &pad_s3},
  {.inputs = "f3x33", .attrs = &pad_s4},  {.inputs = "f2x5x7", .attrs = &pad_s5},   {.inputs = "f2x7", .attrs = &pad_s6},
  {.inputs = "f5x7", .attrs = &pad_s7},   {.inputs = "f2x3x2x3", .attrs = &pad_s8}, {.inputs = "f2x3x3x2", .attrs = &pad_s9},
  {.inputs = "f2x0", .attrs = &pad_s1},   {.inputs = "f0x3", .attrs = &pad_s1},     {.inputs = "f"},
  {.inputs = NULL}};

const rs_op rsi_op_pad = {
  .name = "pad", .doc = "Adds entries before and after up to four trailing dimensions, or cuts them off.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(pad), .infer = pad_infer, .grad = pad_grad, .kernels = pad_kernels, .samples = pad_samples};

/* ---- pad_backward: reflect and replicate show an element at several places, whose gradients add up --------------------- */

static rs_status pad_backward_infer(rsi_call *c) {
  const pad_backward_attrs *a = c->attrs;
  const rs_tensor *g = c->in[0];
  rsi_desc *d = &c->desc[0];
  int64_t numel;
  frame f;
  const int n = (int)a->shape.n;
  RSI_TRY(rsi_numel(n, a->shape.v, 1, &numel));
  RSI_TRY(frame_make(c, n, a->shape.v, &a->padding, (int)a->mode, &f));
  bool fits = g->ndim == n;
  for (int i = 0; fits && i < n; i++) fits = g->shape[i] == f.large[i];
  RSI_CHECK(fits, RS_ERR_SHAPE, "g %s is not what padding %s makes of %s", rsi_text(g),
            rsi_shape_text((int)a->padding.n, a->padding.v), rsi_shape_text(n, a->shape.v));
  d->dtype = g->dtype;
  d->ndim = n;
  for (int i = 0; i < n; i++) d->shape[i] = a->shape.v[i];
  return RS_OK;
}

/* One item is an index of the leading dimensions without pads; its part of the result belongs to it alone. */
#define PAD_ADD(T)                                                                                                          \
  static void pad_add_##T(void *arg, int64_t first, int64_t last) {                                                         \
    const pad_job *j = arg;                                                                                                 \
    const frame *f = &j->f;                                                                                                 \
    const int64_t n = f->small[f->ndim - 1], width = f->large[f->ndim - 1], before = f->before[f->ndim - 1];                \
    int64_t low, high, from = 1, to = n;                                                                                    \
    walk w;                                                                                                                 \
    for (int i = f->ndim - f->padded; i < f->ndim - 1; i++) {                                                               \
      from *= f->large[i];                                                                                                  \
      to *= f->small[i];                                                                                                    \
    }                                                                                                                       \
    T *out = (T *)(void *)j->small;                                                                                          \
    memset(out + first * to, 0, (size_t)((last - first) * to) * sizeof(T));                                                 \
    run_of(f, &low, &high);                                                                                                 \
    walk_begin(f, first * from, &w);                                                                                        \
    for (int64_t row = first * from; row < last * from; row++, walk_next(f, &w)) {                                          \
      const int64_t source = walk_source(f, &w);                                                                            \
      const T *g = (const T *)(const void *)j->large + row * width;                                                         \
      if (source < 0) continue;                                                                                             \
      T *x = out + source * n;                                                                                              \
      for (int64_t i = 0; i < low && f->mode != CONSTANT; i++) x[map(f->mode, i - before, n)] += g[i];                      \
      for (int64_t i = low; i < high; i++) x[i - before] += g[i];                                                           \
      for (int64_t i = high; i < width && f->mode != CONSTANT; i++) x[map(f->mode, i - before, n)] += g[i];                 \
    }                                                                                                                       \
  }
PAD_ADD(float)
PAD_ADD(double)

/* g: the padded shape, out: attribute shape */
static rs_status pad_backward_run(const rsi_call *c) {
  const pad_backward_attrs *a = RSI_ATTR(c, pad_backward);
  const rs_tensor *g = c->in[0], *out = c->out[0];
  pad_job j = {.small = out->data, .large = g->data};
  frame_again(c, out, &a->padding, a->mode, &j.f);
  if (j.f.padded == 0) j.f.padded = 1;
  int64_t outer = 1;
  for (int i = 0; i < j.f.ndim - j.f.padded; i++) outer *= j.f.large[i];
  if (out->numel == 0) return RS_OK;
  const double work = 0.5 * (double)(g->numel + out->numel) / (double)outer;
  rsi_parallel(c->x, outer, work, g->dtype == RS_F32 ? pad_add_float : pad_add_double, &j);
  return RS_OK;
}

static void pad_backward_grad(rsi_grad *g) {
  const pad_backward_attrs *a = rsi_attrs(g);
  const pad_attrs again = {.padding = a->padding, .mode = a->mode};
  rsi_give(g, 0, rsi_emit1(g, RS_OP_pad, &again, rsi_gout(g, 0)));
}

static const rsi_kernel pad_backward_kernels[] = {{.name = "rows", .dtypes = RSI_FLOATS, .run = pad_backward_run}, {.name = NULL}};

static const pad_backward_attrs pb_s1 = {.padding = {4, {2, 1, 1, 3}}, .mode = REFLECT, .shape = {3, {2, 4, 7}}},
                                pb_s2 = {.padding = {2, {3, 2}}, .mode = REPLICATE, .shape = {2, {3, 33}}},
                                pb_s3 = {.padding = {2, {-2, 3}}, .mode = REFLECT, .shape = {1, {7}}},
                                pb_s4 = {.padding = {2, {1, 1}}, .mode = CONSTANT, .shape = {2, {2, 5}}},
                                pb_s5 = {.padding = {2, {1, 1}}, .mode = REFLECT, .shape = {2, {0, 3}}};
static const rsi_sample pad_backward_samples[] = {
  {.inputs = "f2x8x10", .attrs = &pb_s1}, {.inputs = "f3x38", .attrs = &pb_s2}, {.inputs = "f8", .attrs = &pb_s3},
  {.inputs = "f2x7", .attrs = &pb_s4},    {.inputs = "f0x5", .attrs = &pb_s5},  {.inputs = "f"},
  {.inputs = NULL}};

const rs_op rsi_op_pad_backward = {
  .name = "pad_backward", .doc = "Adds each entry of g to the place that pad took it from: the gradient of pad.",
  .inputs = "g", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(pad_backward), .infer = pad_backward_infer, .grad = pad_backward_grad, .kernels = pad_backward_kernels,
  .samples = pad_backward_samples};
