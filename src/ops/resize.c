/*
** resize2d: images [N, C, H, W] in another size. An output row (and likewise a column) reads two input rows a and b with the
** weights 1 - w and w; of the nearest modes only row a. Where that is follows PyTorch: with `step` input pixels per output pixel,
** output i lies at i step when the corners are aligned, else at (i + 1/2) step - 1/2, not before 0; nearest takes floor(i step),
** computed in f32 as there, nearest_exact floor((i + 1/2) step). The op is linear and its backward op is its transpose.
*/
#include "ops/op.h"
#include <math.h>
#include <string.h>

enum { NEAREST, BILINEAR, NEAREST_EXACT };

#define RESIZE_ATTRS(F, T)                                                                                                  \
  F(T, SHAPE, output_size, 0, 1, RSI_BIG, NULL, "size of the result: one number, or height and width")                     \
  F(T, ENUM, mode, NEAREST, 0, 2, "nearest,bilinear,nearest_exact", "which pixels an output is made of")                   \
  F(T, BOOL, align_corners, 0, 0, 1, NULL, "bilinear: the centres of the corner pixels keep their place, not the corners")  \
  F(T, FLOAT, scale_h, 0, 0, RSI_BIG, NULL, "how much taller the result is meant to be; 0: the quotient of the sizes")      \
  F(T, FLOAT, scale_w, 0, 0, RSI_BIG, NULL, "how much wider the result is meant to be; 0: the quotient of the sizes")
#define RESIZE_BACKWARD_ATTRS(F, T) RESIZE_ATTRS(F, T) F(T, SHAPE, input_size, 0, 0, RSI_BIG, NULL, "shape of the input")
RSI_ATTRS(resize2d, RESIZE_ATTRS)
RSI_ATTRS(resize2d_backward, RESIZE_BACKWARD_ATTRS)

/* The attributes that both ops begin with. */
static resize2d_attrs common_attrs(const void *attrs) {
  resize2d_attrs a;
  memcpy(&a, attrs, sizeof a);
  return a;
}

static rs_status check_images(const rs_tensor *x, const char *name) {
  RSI_CHECK(x->ndim == 4, RS_ERR_SHAPE, "%s must have 4 dimensions, [N, C, H, W], got %s", name, rsi_text(x));
  return RS_OK;
}

static rs_status check_sizes(const rs_list *output_size, const int64_t *x) {
  RSI_CHECK(output_size->n == 1 || output_size->n == 2, RS_ERR_ARG, "output_size has %d values; give one, or two (height, width)",
            (int)output_size->n);
  for (int i = 0; i < output_size->n; i++)
    RSI_CHECK(output_size->v[i] >= 1 && output_size->v[i] <= INT32_MAX, RS_ERR_ARG, "output_size is %lld, but must be 1 or more",
              (long long)output_size->v[i]);
  RSI_CHECK(x[2] > 0 && x[3] > 0 && x[2] <= INT32_MAX && x[3] <= INT32_MAX, RS_ERR_SHAPE, "input %s has images without pixels",
            rsi_shape_text(4, x));
  return RS_OK;
}

static rs_status resize2d_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  const rs_list *const size = &RSI_ATTR(c, resize2d)->output_size;
  RSI_TRY(check_images(x, "input"));
  RSI_TRY(check_sizes(size, x->shape));
  c->desc[0] = (rsi_desc){.dtype = x->dtype, .ndim = 4, .shape = {x->shape[0], x->shape[1], rsi_at(size, 0, 1), rsi_at(size, 1, 1)}};
  return RS_OK;
}

static rs_status resize2d_backward_infer(rsi_call *c) {
  const resize2d_backward_attrs *const a = RSI_ATTR(c, resize2d_backward);
  const rs_tensor *const g = c->in[0];
  RSI_TRY(check_images(g, "gradient"));
  RSI_CHECK(a->input_size.n == 4, RS_ERR_ARG, "input_size must have 4 values, got %s",
            rsi_shape_text((int)a->input_size.n, a->input_size.v));
  RSI_TRY(check_sizes(&a->output_size, a->input_size.v));
  const int64_t want[4] = {a->input_size.v[0], a->input_size.v[1], rsi_at(&a->output_size, 0, 1), rsi_at(&a->output_size, 1, 1)};
  RSI_CHECK(memcmp(g->shape, want, sizeof want) == 0, RS_ERR_SHAPE, "the gradient has shape %s, but the result has %s", rsi_text(g),
            rsi_shape_text(4, want));
  c->desc[0] = (rsi_desc){.dtype = g->dtype, .ndim = 4};
  memcpy(c->desc[0].shape, a->input_size.v, 4 * sizeof(int64_t));
  return RS_OK;
}

/* ---- where outputs read ---------------------------------------------------------------------------------------------- */

typedef struct tap {
  int32_t a, b;
  double  w;
} tap;

static void fill_taps(tap *taps, int64_t out, int64_t in, double scale, int mode, bool align) {
  const double step = align && mode == BILINEAR ? (out > 1 ? (double)(in - 1) / (double)(out - 1) : 0)
                      : scale > 0              ? 1.0 / scale
                                               : (double)in / (double)out;
  const float coarse = scale > 0 ? (float)(1.0 / scale) : (float)in / (float)out;
  for (int64_t i = 0; i < out; i++) {
    double at = align ? (double)i * step : ((double)i + 0.5) * step - 0.5;
    if (mode == NEAREST) at = (double)floorf((float)i * coarse);
    if (mode == NEAREST_EXACT) at = (double)floorf(((float)i + 0.5f) * coarse);
    if (at < 0) at = 0;
    const int64_t a = at < (double)(in - 1) ? (int64_t)at : in - 1;
    taps[i].a = (int32_t)a;
    taps[i].b = (int32_t)(a < in - 1 ? a + 1 : a);
    taps[i].w = mode == BILINEAR && a < in - 1 ? at - (double)a : 0;
  }
}

typedef struct job {
  const char *in;
  char       *out;
  int64_t     h, w, oh, ow;        /* of the input image and of the result of resize2d */
  const tap  *rows, *columns;
  bool        nearest;
} job;

/* x: [h, w], y: [oh, ow], planes first..last-1 */
#define PLANES(T)                                                                                                           \
  static void forward_##T(void *arg, int64_t first, int64_t last) {                                                         \
    const job *const j = arg;                                                                                               \
    for (int64_t p = first; p < last; p++) {                                                                                \
      const T *const x = (const T *)(const void *)j->in + p * j->h * j->w;                                                  \
      T *y = (T *)(void *)j->out + p * j->oh * j->ow;                                                                       \
      for (int64_t i = 0; i < j->oh; i++, y += j->ow) {                                                                     \
        const T *const a = x + j->rows[i].a * j->w, *const b = x + j->rows[i].b * j->w;                                     \
        const T v = (T)j->rows[i].w;                                                                                        \
        if (j->nearest) {                                                                                                   \
          for (int64_t k = 0; k < j->ow; k++) y[k] = a[j->columns[k].a];                                                    \
          continue;                                                                                                         \
        }                                                                                                                   \
        for (int64_t k = 0; k < j->ow; k++) {                                                                               \
          const tap c = j->columns[k];                                                                                      \
          const T w = (T)c.w, top = a[c.a] * (1 - w) + a[c.b] * w, bottom = b[c.a] * (1 - w) + b[c.b] * w;                  \
          y[k] = top * (1 - v) + bottom * v;                                                                                \
        }                                                                                                                   \
      }                                                                                                                     \
    }                                                                                                                       \
  }                                                                                                                         \
  static void backward_##T(void *arg, int64_t first, int64_t last) {                                                        \
    const job *const j = arg;                                                                                               \
    for (int64_t p = first; p < last; p++) {                                                                                \
      const T *g = (const T *)(const void *)j->in + p * j->oh * j->ow;                                                      \
      T *const x = (T *)(void *)j->out + p * j->h * j->w;                                                                   \
      memset(x, 0, sizeof(T) * (size_t)(j->h * j->w));                                                                      \
      for (int64_t i = 0; i < j->oh; i++, g += j->ow) {                                                                     \
        T *const a = x + j->rows[i].a * j->w, *const b = x + j->rows[i].b * j->w;                                           \
        const T v = (T)j->rows[i].w;                                                                                        \
        if (j->nearest) {                                                                                                   \
          for (int64_t k = 0; k < j->ow; k++) a[j->columns[k].a] += g[k];                                                   \
          continue;                                                                                                         \
        }                                                                                                                   \
        for (int64_t k = 0; k < j->ow; k++) {                                                                               \
          const tap c = j->columns[k];                                                                                      \
          const T w = (T)c.w, top = g[k] * (1 - v), bottom = g[k] * v;                                                      \
          a[c.a] += top * (1 - w);                                                                                          \
          a[c.b] += top * w;                                                                                                \
          b[c.a] += bottom * (1 - w);                                                                                       \
          b[c.b] += bottom * w;                                                                                             \
        }                                                                                                                   \
      }                                                                                                                     \
    }                                                                                                                       \
  }
PLANES(float)
PLANES(double)

static size_t resize_scratch(const rsi_call *c) {
  const resize2d_attrs a = common_attrs(c->attrs);
  return sizeof(tap) * (size_t)(rsi_at(&a.output_size, 0, 1) + rsi_at(&a.output_size, 1, 1));
}

static rs_status run(const rsi_call *c, const rs_tensor *x, const rs_tensor *y, rsi_range_fn f32, rsi_range_fn f64) {
  const resize2d_attrs a = common_attrs(c->attrs);
  tap *const rows = c->scratch;
  job j = {.in = c->in[0]->data, .out = c->out[0]->data, .h = x->shape[2], .w = x->shape[3], .oh = y->shape[2], .ow = y->shape[3],
           .rows = rows, .columns = rows + y->shape[2], .nearest = a.mode != BILINEAR};
  fill_taps(rows, j.oh, j.h, a.scale_h, (int)a.mode, a.align_corners != 0);
  fill_taps(rows + j.oh, j.ow, j.w, a.scale_w, (int)a.mode, a.align_corners != 0);
  const double work = (j.nearest ? 0.6 : 1.5) * (double)(j.oh * j.ow + j.h * j.w);
  rsi_parallel(c->x, x->shape[0] * x->shape[1], work, x->dtype == RS_F32 ? f32 : f64, &j);
  return RS_OK;
}

static rs_status resize2d_run(const rsi_call *c) { return run(c, c->in[0], c->out[0], forward_float, forward_double); }
static rs_status resize2d_backward_run(const rsi_call *c) { return run(c, c->out[0], c->in[0], backward_float, backward_double); }

/* ---- the ops --------------------------------------------------------------------------------------------------------- */

static void resize2d_grad(rsi_grad *g) {
  const resize2d_attrs a = common_attrs(rsi_attrs(g));
  resize2d_backward_attrs b = {a.output_size, a.mode, a.align_corners, a.scale_h, a.scale_w, {.n = 4}};
  memcpy(b.input_size.v, rsi_in_desc(g, 0)->shape, 4 * sizeof(int64_t));
  rsi_give(g, 0, rsi_emit1(g, RS_OP_resize2d_backward, &b, rsi_gout(g, 0)));
}

static void resize2d_backward_grad(rsi_grad *g) {
  const resize2d_attrs a = common_attrs(rsi_attrs(g));
  rsi_give(g, 0, rsi_emit1(g, RS_OP_resize2d, &a, rsi_gout(g, 0)));
}

static const rsi_kernel resize2d_kernels[] = {{"planes", RSI_PORTABLE, RSI_FLOATS, NULL, resize_scratch, resize2d_run}, {0}};
static const rsi_kernel resize2d_backward_kernels[] = {
  {"planes", RSI_PORTABLE, RSI_FLOATS, NULL, resize_scratch, resize2d_backward_run}, {0}};

#define PAIR(a, b) {2, {a, b}}
static const resize2d_attrs nearest = {PAIR(8, 6), NEAREST, 0, 0, 0}, nearest_odd = {PAIR(5, 11), NEAREST, 0, 0, 2.3},
                            exact = {PAIR(5, 11), NEAREST_EXACT, 0, 0, 0}, bilinear = {PAIR(9, 7), BILINEAR, 0, 0, 0},
                            scaled = {PAIR(9, 7), BILINEAR, 0, 2.3, 1.9}, aligned = {PAIR(3, 9), BILINEAR, 1, 0, 0},
                            to_one = {{1, {1}}, BILINEAR, 1, 0, 0};
static const rsi_sample resize2d_samples[] = {
  {"f2x3x4x3", &nearest, 0, 0},  {"f1x2x7x5", &nearest_odd, 0, 0}, {"f1x2x7x5", &exact, 0, 0},   {"f2x2x4x4", &bilinear, 0, 0},
  {"f1x3x4x4", &scaled, 0, 0},   {"f2x1x5x4", &aligned, 0, 0},     {"f1x2x3x3", &to_one, 0, 0},  {"f1x1x3x33", &bilinear, 0, 0},
  {"f0x3x4x3", &nearest, 0, 0},  {NULL, NULL, 0, 0}};
static const resize2d_backward_attrs nearest_back = {PAIR(8, 6), NEAREST, 0, 0, 0, {4, {2, 3, 4, 3}}},
                                     bilinear_back = {PAIR(9, 7), BILINEAR, 0, 2.3, 1.9, {4, {1, 3, 4, 4}}},
                                     aligned_back = {PAIR(3, 9), BILINEAR, 1, 0, 0, {4, {2, 1, 5, 4}}},
                                     exact_back = {PAIR(5, 11), NEAREST_EXACT, 0, 0, 0, {4, {1, 2, 7, 5}}},
                                     empty_back = {PAIR(8, 6), NEAREST, 0, 0, 0, {4, {0, 3, 4, 3}}};
static const rsi_sample resize2d_backward_samples[] = {
  {"f2x3x8x6", &nearest_back, 0, 0}, {"f1x3x9x7", &bilinear_back, 0, 0}, {"f2x1x3x9", &aligned_back, 0, 0},
  {"f1x2x5x11", &exact_back, 0, 0},  {"f0x3x8x6", &empty_back, 0, 0},    {NULL, NULL, 0, 0}};

const rs_op rsi_op_resize2d = {
  .name = "resize2d", .doc = "Images x [N, C, H, W] in another size, by nearest pixels or bilinear interpolation.", .inputs = "x",
  .nin_min = 1, .nin_max = 1, .nout = 1, .dtypes = RSI_FLOATS, RSI_USES_ATTRS(resize2d), .infer = resize2d_infer,
  .grad = resize2d_grad, .kernels = resize2d_kernels, .samples = resize2d_samples,
};

const rs_op rsi_op_resize2d_backward = {
  .name = "resize2d_backward", .doc = "Gradient of resize2d.", .inputs = "grad", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS, RSI_USES_ATTRS(resize2d_backward), .infer = resize2d_backward_infer,
  .grad = resize2d_backward_grad, .kernels = resize2d_backward_kernels, .samples = resize2d_backward_samples,
};
