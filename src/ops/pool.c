/*
** Pooling of images [N, C, H, W]: every plane [H, W] by itself.
** max_pool2d also gives, for its gradient, the position of each chosen element in its plane (i32). These positions are internal:
** they count from 0 whatever the base of the context is, and only the ops of this file read them.
*/
#include "ops/op.h"
#include <string.h>

/* ---- what the windows have in common --------------------------------------------------------------------------------- */

#define WINDOW_ATTRS(F, T)                                                                                                  \
  F(T, INTS, kernel_size, 0, 1, RSI_BIG, NULL, "size of the window: one number, or vertical and horizontal")                \
  F(T, INTS, stride, 0, 1, RSI_BIG, NULL, "step of the window; the kernel size when not given")                             \
  F(T, INTS, padding, 0, 0, RSI_BIG, NULL, "width of the border around the image, at most half of the window")
#define MAX_ATTRS(F, T)                                                                                                     \
  WINDOW_ATTRS(F, T)                                                                                                        \
  F(T, INTS, dilation, 1, 1, RSI_BIG, NULL, "distance of the elements of a window")                                         \
  F(T, BOOL, ceil_mode, 0, 0, 1, NULL, "a last window may reach over the edge")
#define AVG_ATTRS(F, T)                                                                                                     \
  WINDOW_ATTRS(F, T)                                                                                                        \
  F(T, BOOL, ceil_mode, 0, 0, 1, NULL, "a last window may reach over the edge")                                             \
  F(T, BOOL, count_include_pad, 1, 0, 1, NULL, "the border counts in the divisor")
#define INPUT_SIZE(F, T) F(T, SHAPE, input_size, 0, 0, RSI_BIG, NULL, "shape of the input")
#define AVG_BACK_ATTRS(F, T) AVG_ATTRS(F, T) INPUT_SIZE(F, T)
#define ADAPTIVE_ATTRS(F, T) F(T, SHAPE, output_size, 0, 1, RSI_BIG, NULL, "size of the result: one number, or height and width")
RSI_ATTRS(max_pool2d, MAX_ATTRS)
RSI_ATTRS(max_pool2d_backward, INPUT_SIZE)
RSI_ATTRS(avg_pool2d, AVG_ATTRS)
RSI_ATTRS(avg_pool2d_backward, AVG_BACK_ATTRS)
RSI_ATTRS(adaptive_avg_pool2d, ADAPTIVE_ATTRS)
RSI_ATTRS(adaptive_avg_pool2d_backward, INPUT_SIZE)
RSI_ATTRS(adaptive_max_pool2d, ADAPTIVE_ATTRS)

static rs_status check_images(const rs_tensor *x, const char *name) {
  RSI_CHECK(x->ndim == 4, RS_ERR_SHAPE, "%s must have 4 dimensions, [N, C, H, W], got %s", name, rsi_text(x));
  return RS_OK;
}

/* n: the numbers must be 1 or 2, and `optional` allows none. */
static rs_status check_list(const char *name, const rs_list *list, int64_t least, bool optional) {
  RSI_CHECK(list->n == 1 || list->n == 2 || (optional && list->n == 0), RS_ERR_ARG,
            "%s has %d values; give one, or two (vertical, horizontal)", name, (int)list->n);
  for (int i = 0; i < list->n; i++)
    RSI_CHECK(list->v[i] >= least && list->v[i] <= INT32_MAX, RS_ERR_ARG, "%s is %lld, but must be %lld or more", name,
              (long long)list->v[i], (long long)least);
  return RS_OK;
}

/* Size of the result in one direction; with ceil_mode the last window must begin inside the image or its leading border. */
static int64_t pooled(int64_t size, int64_t extent, int64_t stride, int64_t pad, bool ceil_mode) {
  const int64_t room = size + 2 * pad - extent;
  int64_t out = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + pad) out--;
  return out;
}

/* Every window must hold an element: with a dilation, the taps inside of a small image may all be left out. */
static bool windows_filled(int64_t size, int64_t k, int64_t stride, int64_t pad, int64_t dilation, int64_t out) {
  for (int64_t i = 0; i < out && i * stride < pad; i++) {
    const int64_t tap = (pad - i * stride + dilation - 1) / dilation;
    if (tap >= k || i * stride - pad + tap * dilation >= size) return false;
  }
  return true;
}

typedef struct window {
  rs_list kernel, stride, padding, dilation;
  bool    ceil_mode, include_pad;
} window;

static rsi_pool_shape pool_shape(const window *a, const int64_t *x) {
  rsi_pool_shape s = {.h = x[2], .w = x[3], .kh = rsi_at(&a->kernel, 0, 1), .kw = rsi_at(&a->kernel, 1, 1), .include_pad = a->include_pad};
  s.sh = rsi_at(&a->stride, 0, s.kh), s.sw = rsi_at(&a->stride, 1, s.kw);
  s.ph = rsi_at(&a->padding, 0, 0), s.pw = rsi_at(&a->padding, 1, 0);
  s.dh = rsi_at(&a->dilation, 0, 1), s.dw = rsi_at(&a->dilation, 1, 1);
  s.oh = pooled(s.h, s.dh * (s.kh - 1) + 1, s.sh, s.ph, a->ceil_mode);
  s.ow = pooled(s.w, s.dw * (s.kw - 1) + 1, s.sw, s.pw, a->ceil_mode);
  return s;
}

static rs_status infer_windows(const window *a, const int64_t *x, rsi_pool_shape *s) {
  RSI_TRY(check_list("kernel_size", &a->kernel, 1, false));
  RSI_TRY(check_list("stride", &a->stride, 1, true));
  RSI_TRY(check_list("padding", &a->padding, 0, true));
  RSI_TRY(check_list("dilation", &a->dilation, 1, true));
  const char *const xs = rsi_shape_text(4, x);
  RSI_CHECK(x[2] > 0 && x[3] > 0 && x[2] <= INT32_MAX / x[3], RS_ERR_SHAPE, "input %s has images %s", xs,
            x[2] > 0 && x[3] > 0 ? "with more than 2147483647 pixels" : "without pixels");
  *s = pool_shape(a, x);
  const int64_t tall = s->dh * (s->kh - 1) + 1, wide = s->dw * (s->kw - 1) + 1;
  RSI_CHECK(2 * s->ph <= tall && 2 * s->pw <= wide, RS_ERR_ARG,
            "padding %lld, %lld is more than half of the window, which covers %lld x %lld pixels", (long long)s->ph, (long long)s->pw,
            (long long)tall, (long long)wide);
  RSI_CHECK(tall <= s->h + 2 * s->ph && wide <= s->w + 2 * s->pw, RS_ERR_SHAPE,
            "the window covers %lld x %lld pixels, more than the %lld x %lld of input %s with padding %lld, %lld", (long long)tall,
            (long long)wide, (long long)(s->h + 2 * s->ph), (long long)(s->w + 2 * s->pw), xs, (long long)s->ph, (long long)s->pw);
  RSI_CHECK(windows_filled(s->h, s->kh, s->sh, s->ph, s->dh, s->oh) && windows_filled(s->w, s->kw, s->sw, s->pw, s->dw, s->ow),
            RS_ERR_SHAPE, "with dilation %lld, %lld and padding %lld, %lld a window holds no pixel of input %s", (long long)s->dh,
            (long long)s->dw, (long long)s->ph, (long long)s->pw, xs);
  return RS_OK;
}

static rs_status check_size(const rs_list *size) {
  RSI_CHECK(size->n == 4, RS_ERR_ARG, "input_size must have 4 values, got %s", rsi_shape_text((int)size->n, size->v));
  for (int i = 0; i < 4; i++)
    RSI_CHECK(size->v[i] >= 0, RS_ERR_ARG, "input_size %s has a negative size", rsi_shape_text(4, size->v));
  return RS_OK;
}

static rs_status check_result(const rs_tensor *g, const int64_t *x, int64_t oh, int64_t ow) {
  const int64_t want[4] = {x[0], x[1], oh, ow};
  RSI_CHECK(memcmp(g->shape, want, sizeof want) == 0, RS_ERR_SHAPE, "the gradient has shape %s, but the result has %s", rsi_text(g),
            rsi_shape_text(4, want));
  return RS_OK;
}

/* ---- running over planes --------------------------------------------------------------------------------------------- */

typedef struct job {
  rsi_pool_shape s;
  const rsi_conv_loops *loops;
  size_t      item;
  int64_t     size, plane;       /* elements of an input and of an output plane */
  const char *in;
  char       *out;
  int32_t    *index;
} job;

static job make_job(const rsi_call *c, const rsi_pool_shape *s) {
  const bool f32 = c->in[0]->dtype == RS_F32;
  return (job){.s = *s, .loops = f32 ? &c->x->k->conv->f32 : &c->x->k->conv->f64, .item = rsi_dtype_size[c->in[0]->dtype],
               .size = s->h * s->w, .plane = s->oh * s->ow, .in = c->in[0]->data, .out = c->out[0]->data};
}

/* N * C of the 4-d tensor t. */
static int64_t planes(const rs_tensor *t) { return t->shape[0] * t->shape[1]; }

static const double ELEMENT_NS = 0.3;
/* Nanoseconds for a plane. */
static double window_work(const rsi_pool_shape *s) { return ELEMENT_NS * (double)(s->oh * s->ow) * (double)(s->kh * s->kw); }
static double plane_work(const rsi_pool_shape *s) { return ELEMENT_NS * (double)(s->h * s->w + s->oh * s->ow); }

#define IN(i)  (j->in + (size_t)(i) * j->item)
#define OUT(i) (j->out + (size_t)(i) * j->item)

/* ---- max ------------------------------------------------------------------------------------------------------------- */

static window max_window(const max_pool2d_attrs *a) {
  return (window){a->kernel_size, a->stride, a->padding, a->dilation, a->ceil_mode != 0, false};
}

static rs_status max_pool2d_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  const window a = max_window(RSI_ATTR(c, max_pool2d));
  rsi_pool_shape s;
  RSI_TRY(check_images(x, "input"));
  RSI_TRY(infer_windows(&a, x->shape, &s));
  c->desc[0] = (rsi_desc){.dtype = x->dtype, .ndim = 4, .shape = {x->shape[0], x->shape[1], s.oh, s.ow}};
  c->desc[1] = c->desc[0];
  c->desc[1].dtype = RS_I32;
  return RS_OK;
}

static void max_pool_range(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++) j->loops->max_pool(&j->s, IN(i * j->size), OUT(i * j->plane), j->index + i * j->plane);
}

static rs_status max_pool2d_run(const rsi_call *c) {
  const window a = max_window(RSI_ATTR(c, max_pool2d));
  const rsi_pool_shape s = pool_shape(&a, c->in[0]->shape);
  job j = make_job(c, &s);
  j.index = c->out[1]->data;
  rsi_parallel(c->x, planes(c->in[0]), window_work(&s), max_pool_range, &j);
  return RS_OK;
}

/* Positions come from max_pool2d, but a program or a user may pass others: a wrong one must not reach memory. */
static rs_status check_positions(const rs_tensor *index, int64_t size) {
  const int32_t *const at = index->data;
  uint32_t largest = 0;                     /* a negative one is a large one here */
  for (int64_t i = 0; i < index->numel; i++) largest = largest < (uint32_t)at[i] ? (uint32_t)at[i] : largest;
  RSI_CHECK(index->numel == 0 || (int64_t)largest < size, RS_ERR_INDEX, "the positions reach outside of an image of %lld pixels",
            (long long)size);
  return RS_OK;
}

static rs_status check_index(const rs_tensor *index) {
  RSI_CHECK(index->dtype == RS_I32, RS_ERR_DTYPE, "positions must be i32, got %s", rs_dtype_name(index->dtype));
  RSI_CHECK(index->ndim == 4, RS_ERR_SHAPE, "positions must have 4 dimensions, got %s", rsi_text(index));
  return RS_OK;
}

static rs_status max_pool2d_backward_infer(rsi_call *c) {
  const rs_tensor *const g = c->in[0], *const index = c->in[1];
  const rs_list *const size = &RSI_ATTR(c, max_pool2d_backward)->input_size;
  RSI_TRY(check_images(g, "gradient"));
  RSI_TRY(check_index(index));
  RSI_TRY(check_size(size));
  RSI_CHECK(rsi_same_shape(g, index), RS_ERR_SHAPE, "the gradient has shape %s but the positions have %s", rsi_text(g), rsi_text(index));
  RSI_TRY(check_result(g, size->v, g->shape[2], g->shape[3]));
  c->desc[0] = (rsi_desc){.dtype = g->dtype, .ndim = 4};
  memcpy(c->desc[0].shape, size->v, 4 * sizeof(int64_t));
  return RS_OK;
}

static void max_scatter_range(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++) {
    memset(OUT(i * j->size), 0, (size_t)j->size * j->item);
    j->loops->max_scatter(j->plane, IN(i * j->plane), j->index + i * j->plane, OUT(i * j->size));
  }
}

static rs_status max_pool2d_backward_run(const rsi_call *c) {
  const int64_t *const x = c->out[0]->shape;
  const rsi_pool_shape s = {.h = x[2], .w = x[3], .oh = c->in[0]->shape[2], .ow = c->in[0]->shape[3]};
  RSI_TRY(check_positions(c->in[1], s.h * s.w));
  job j = make_job(c, &s);
  j.index = c->in[1]->data;
  rsi_parallel(c->x, planes(c->out[0]), 2 * plane_work(&s), max_scatter_range, &j);
  return RS_OK;
}

static rs_status max_pool2d_gather_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0], *const index = c->in[1];
  RSI_TRY(check_images(x, "input"));
  RSI_TRY(check_index(index));
  RSI_CHECK(index->shape[0] == x->shape[0] && index->shape[1] == x->shape[1], RS_ERR_SHAPE,
            "the input has shape %s but the positions have %s", rsi_text(x), rsi_text(index));
  rsi_desc_of(index, &c->desc[0]);
  c->desc[0].dtype = x->dtype;
  return RS_OK;
}

static void max_gather_range(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++)
    j->loops->max_gather(j->plane, IN(i * j->size), j->index + i * j->plane, OUT(i * j->plane));
}

static rs_status max_pool2d_gather_run(const rsi_call *c) {
  const int64_t *const x = c->in[0]->shape, *const y = c->out[0]->shape;
  const rsi_pool_shape s = {.h = x[2], .w = x[3], .oh = y[2], .ow = y[3]};
  RSI_TRY(check_positions(c->in[1], s.h * s.w));
  job j = make_job(c, &s);
  j.index = c->in[1]->data;
  rsi_parallel(c->x, planes(c->in[0]), plane_work(&s), max_gather_range, &j);
  return RS_OK;
}

static rs_tensor *emit_scatter(rsi_grad *g, rs_tensor *gy, rs_tensor *index, const rsi_desc *x) {
  max_pool2d_backward_attrs a = {{.n = 4}};
  memcpy(a.input_size.v, x->shape, 4 * sizeof(int64_t));
  return rsi_emit2(g, RS_OP_max_pool2d_backward, &a, gy, index);
}

static void max_pool2d_grad(rsi_grad *g) {
  if (rsi_needs(g, 0)) rsi_give(g, 0, emit_scatter(g, rsi_gout(g, 0), rsi_out(g, 1), rsi_in_desc(g, 0)));
}

static void max_pool2d_backward_grad(rsi_grad *g) {
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_emit2(g, RS_OP_max_pool2d_gather, NULL, rsi_gout(g, 0), rsi_in(g, 1)));
}

static void max_pool2d_gather_grad(rsi_grad *g) {
  if (rsi_needs(g, 0)) rsi_give(g, 0, emit_scatter(g, rsi_gout(g, 0), rsi_in(g, 1), rsi_in_desc(g, 0)));
}

/* ---- average --------------------------------------------------------------------------------------------------------- */

/* For both directions: the attributes of avg_pool2d_backward begin with those of avg_pool2d. */
static window avg_window(const void *attrs) {
  avg_pool2d_attrs a;
  memcpy(&a, attrs, sizeof a);
  return (window){a.kernel_size, a.stride, a.padding, {.n = 0}, a.ceil_mode != 0, a.count_include_pad != 0};
}

static rs_status avg_pool2d_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  const window a = avg_window(c->attrs);
  rsi_pool_shape s;
  RSI_TRY(check_images(x, "input"));
  RSI_TRY(infer_windows(&a, x->shape, &s));
  c->desc[0] = (rsi_desc){.dtype = x->dtype, .ndim = 4, .shape = {x->shape[0], x->shape[1], s.oh, s.ow}};
  return RS_OK;
}

static rs_status avg_pool2d_backward_infer(rsi_call *c) {
  const rs_tensor *const g = c->in[0];
  const rs_list *const size = &RSI_ATTR(c, avg_pool2d_backward)->input_size;
  const window a = avg_window(c->attrs);
  rsi_pool_shape s;
  RSI_TRY(check_images(g, "gradient"));
  RSI_TRY(check_size(size));
  RSI_TRY(infer_windows(&a, size->v, &s));
  RSI_TRY(check_result(g, size->v, s.oh, s.ow));
  c->desc[0] = (rsi_desc){.dtype = g->dtype, .ndim = 4};
  memcpy(c->desc[0].shape, size->v, 4 * sizeof(int64_t));
  return RS_OK;
}

static void avg_range(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++) j->loops->avg_pool(&j->s, IN(i * j->size), OUT(i * j->plane));
}

static void avg_back_range(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++) j->loops->avg_pool_back(&j->s, IN(i * j->plane), OUT(i * j->size));
}

static rs_status avg_pool2d_run(const rsi_call *c) {
  const window a = avg_window(c->attrs);
  const rsi_pool_shape s = pool_shape(&a, c->in[0]->shape);
  job j = make_job(c, &s);
  rsi_parallel(c->x, planes(c->in[0]), window_work(&s), avg_range, &j);
  return RS_OK;
}

static rs_status avg_pool2d_backward_run(const rsi_call *c) {
  const window a = avg_window(c->attrs);
  const rsi_pool_shape s = pool_shape(&a, c->out[0]->shape);
  job j = make_job(c, &s);
  rsi_parallel(c->x, planes(c->out[0]), window_work(&s) + plane_work(&s), avg_back_range, &j);
  return RS_OK;
}

static void avg_pool2d_grad(rsi_grad *g) {
  const avg_pool2d_attrs *const a = rsi_attrs(g);
  avg_pool2d_backward_attrs b = {a->kernel_size, a->stride, a->padding, a->ceil_mode, a->count_include_pad, {.n = 4}};
  if (!rsi_needs(g, 0)) return;
  memcpy(b.input_size.v, rsi_in_desc(g, 0)->shape, 4 * sizeof(int64_t));
  rsi_give(g, 0, rsi_emit1(g, RS_OP_avg_pool2d_backward, &b, rsi_gout(g, 0)));
}

/* Both directions are linear: the derivative of one is the other. */
static void avg_pool2d_backward_grad(rsi_grad *g) {
  const avg_pool2d_backward_attrs *const a = rsi_attrs(g);
  const avg_pool2d_attrs b = {a->kernel_size, a->stride, a->padding, a->ceil_mode, a->count_include_pad};
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_emit1(g, RS_OP_avg_pool2d, &b, rsi_gout(g, 0)));
}

/* ---- adaptive average ------------------------------------------------------------------------------------------------ */

static rs_status adaptive_avg_pool2d_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  const rs_list *const size = &RSI_ATTR(c, adaptive_avg_pool2d)->output_size;
  RSI_TRY(check_images(x, "input"));
  RSI_TRY(check_list("output_size", size, 1, false));
  RSI_CHECK(x->shape[2] > 0 && x->shape[3] > 0, RS_ERR_SHAPE, "input %s has images without pixels", rsi_text(x));
  c->desc[0] = (rsi_desc){.dtype = x->dtype, .ndim = 4,
                          .shape = {x->shape[0], x->shape[1], rsi_at(size, 0, 1), rsi_at(size, 1, 1)}};
  return RS_OK;
}

static rs_status adaptive_avg_pool2d_backward_infer(rsi_call *c) {
  const rs_tensor *const g = c->in[0];
  const rs_list *const size = &RSI_ATTR(c, adaptive_avg_pool2d_backward)->input_size;
  RSI_TRY(check_images(g, "gradient"));
  RSI_TRY(check_size(size));
  RSI_CHECK(size->v[2] > 0 && size->v[3] > 0, RS_ERR_SHAPE, "input_size %s has images without pixels", rsi_shape_text(4, size->v));
  RSI_TRY(check_result(g, size->v, g->shape[2], g->shape[3]));
  c->desc[0] = (rsi_desc){.dtype = g->dtype, .ndim = 4};
  memcpy(c->desc[0].shape, size->v, 4 * sizeof(int64_t));
  return RS_OK;
}

static void adaptive_range(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++) j->loops->adaptive(&j->s, IN(i * j->size), OUT(i * j->plane));
}

static void adaptive_back_range(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++) j->loops->adaptive_back(&j->s, IN(i * j->plane), OUT(i * j->size));
}

static rs_status run_adaptive(const rsi_call *c, const rs_tensor *x, const rs_tensor *y, rsi_range_fn range) {
  const rsi_pool_shape s = {.h = x->shape[2], .w = x->shape[3], .oh = y->shape[2], .ow = y->shape[3]};
  job j = make_job(c, &s);
  rsi_parallel(c->x, planes(x), plane_work(&s), range, &j);
  return RS_OK;
}

static rs_status adaptive_avg_pool2d_run(const rsi_call *c) { return run_adaptive(c, c->in[0], c->out[0], adaptive_range); }
static rs_status adaptive_avg_pool2d_backward_run(const rsi_call *c) {
  return run_adaptive(c, c->out[0], c->in[0], adaptive_back_range);
}

static void adaptive_avg_pool2d_grad(rsi_grad *g) {
  adaptive_avg_pool2d_backward_attrs a = {{.n = 4}};
  if (!rsi_needs(g, 0)) return;
  memcpy(a.input_size.v, rsi_in_desc(g, 0)->shape, 4 * sizeof(int64_t));
  rsi_give(g, 0, rsi_emit1(g, RS_OP_adaptive_avg_pool2d_backward, &a, rsi_gout(g, 0)));
}

static void adaptive_avg_pool2d_backward_grad(rsi_grad *g) {
  const int64_t *const y = rsi_in_desc(g, 0)->shape;
  const adaptive_avg_pool2d_attrs a = {{2, {y[2], y[3]}}};
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_emit1(g, RS_OP_adaptive_avg_pool2d, &a, rsi_gout(g, 0)));
}

/* ---- adaptive maximum ------------------------------------------------------------------------------------------------ */

/* The bins of adaptive_avg_pool2d, the positions and gradient of max_pool2d. */
static rs_status adaptive_max_pool2d_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  const rs_list *const size = &RSI_ATTR(c, adaptive_max_pool2d)->output_size;
  RSI_TRY(check_images(x, "input"));
  RSI_TRY(check_list("output_size", size, 1, false));
  RSI_CHECK(x->shape[2] > 0 && x->shape[3] > 0 && x->shape[2] <= INT32_MAX / x->shape[3], RS_ERR_SHAPE, "input %s has images %s",
            rsi_text(x), x->shape[2] > 0 && x->shape[3] > 0 ? "with more than 2147483647 pixels" : "without pixels");
  c->desc[0] = (rsi_desc){.dtype = x->dtype, .ndim = 4,
                          .shape = {x->shape[0], x->shape[1], rsi_at(size, 0, 1), rsi_at(size, 1, 1)}};
  c->desc[1] = c->desc[0];
  c->desc[1].dtype = RS_I32;
  return RS_OK;
}

/* x: [h, w], y and index: [oh, ow] */
#define ADAPTIVE_MAX(T)                                                                                                     \
  static void adaptive_max_##T(void *arg, int64_t first, int64_t last) {                                                    \
    const job *const j = arg;                                                                                               \
    const rsi_pool_shape *const s = &j->s;                                                                                  \
    for (int64_t p = first; p < last; p++) {                                                                                \
      const T *const x = (const T *)(const void *)j->in + p * j->size;                                                      \
      T *y = (T *)(void *)j->out + p * j->plane;                                                                            \
      int32_t *index = j->index + p * j->plane;                                                                             \
      for (int64_t i = 0; i < s->oh; i++)                                                                                   \
        for (int64_t k = 0; k < s->ow; k++) {                                                                               \
          const int64_t top = i * s->h / s->oh, bottom = ((i + 1) * s->h + s->oh - 1) / s->oh;                              \
          const int64_t left = k * s->w / s->ow, right = ((k + 1) * s->w + s->ow - 1) / s->ow;                              \
          int64_t best = top * s->w + left;                                                                                 \
          for (int64_t r = top; r < bottom; r++)                                                                            \
            for (int64_t q = left; q < right; q++) {                                                                        \
              const int64_t at = r * s->w + q;                                                                              \
              if (x[at] > x[best] || x[at] != x[at]) best = at;                                                             \
            }                                                                                                               \
          *y++ = x[best];                                                                                                   \
          *index++ = (int32_t)best;                                                                                         \
        }                                                                                                                   \
    }                                                                                                                       \
  }
ADAPTIVE_MAX(float)
ADAPTIVE_MAX(double)

static rs_status adaptive_max_pool2d_run(const rsi_call *c) {
  const rs_tensor *const x = c->in[0], *const y = c->out[0];
  const rsi_pool_shape s = {.h = x->shape[2], .w = x->shape[3], .oh = y->shape[2], .ow = y->shape[3]};
  job j = make_job(c, &s);
  j.index = c->out[1]->data;
  rsi_parallel(c->x, planes(x), 3 * plane_work(&s), x->dtype == RS_F32 ? adaptive_max_float : adaptive_max_double, &j);
  return RS_OK;
}

#define adaptive_max_pool2d_grad max_pool2d_grad

/* ---- samples --------------------------------------------------------------------------------------------------------- */

#define ONE(a) {1, {a}}
#define PAIR(a, b) {2, {a, b}}
static const max_pool2d_attrs max2 = {.kernel_size = ONE(2)};
static const max_pool2d_attrs max3 = {ONE(3), ONE(2), ONE(1), {0}, 0};
static const max_pool2d_attrs max_wide = {PAIR(2, 3), PAIR(1, 3), PAIR(1, 1), PAIR(3, 2), 0};
static const max_pool2d_attrs max_ceil = {ONE(3), ONE(2), {0}, {0}, 1};
static const max_pool2d_attrs max_dense = {ONE(3), ONE(1), ONE(1), {0}, 0};
static const rsi_sample max_pool2d_samples[] = {
  {"d2x3x8x8", &max2, 0, 0},     {"d1x2x7x33", &max3, 0, 0},  {"d2x2x9x11", &max_wide, 0, 0}, {"d1x2x8x10", &max_ceil, 0, 0},
  {"d1x1x7x7", &max_dense, 0, 0}, {"d0x3x8x8", &max2, 0, 0},   {"d2x0x8x8", &max2, 0, 0},      {NULL, NULL, 0, 0}};

static const max_pool2d_backward_attrs max_back = {{4, {2, 3, 5, 7}}}, max_back_empty = {{4, {0, 3, 5, 7}}};
static const rsi_sample max_pool2d_backward_samples[] = {
  {"f2x3x2x3,j2x3x2x3@0:34", &max_back, 0, 0}, {"f0x3x2x3,j0x3x2x3@0:34", &max_back_empty, 0, 0}, {NULL, NULL, 0, 0}};
static const rsi_sample max_pool2d_gather_samples[] = {
  {"f2x3x5x7,j2x3x2x3@0:34", NULL, 0, 0}, {"f2x0x5x7,j2x0x2x3@0:34", NULL, 0, 0}, {NULL, NULL, 0, 0}};

static const avg_pool2d_attrs avg2 = {.kernel_size = ONE(2), .count_include_pad = 1};
static const avg_pool2d_attrs avg3 = {ONE(3), ONE(2), ONE(1), 0, 1};
static const avg_pool2d_attrs avg_inner = {PAIR(3, 2), PAIR(1, 2), ONE(1), 0, 0};
static const avg_pool2d_attrs avg_ceil = {ONE(3), ONE(2), ONE(1), 1, 1};
static const avg_pool2d_attrs avg_ceil_inner = {ONE(3), PAIR(2, 3), {0}, 1, 0};
static const rsi_sample avg_pool2d_samples[] = {
  {"f2x3x8x8", &avg2, 0, 0},       {"f1x2x7x33", &avg3, 0, 0}, {"f2x2x9x7", &avg_inner, 0, 0}, {"f1x2x8x10", &avg_ceil, 0, 0},
  {"f1x1x8x8", &avg_ceil_inner, 0, 0}, {"f0x3x8x8", &avg2, 0, 0},  {NULL, NULL, 0, 0}};

static const avg_pool2d_backward_attrs
  avg2_back = {.kernel_size = ONE(2), .count_include_pad = 1, .input_size = {4, {2, 3, 8, 8}}},
  avg3_back = {ONE(3), ONE(2), ONE(1), 0, 1, {4, {1, 2, 7, 33}}}, inner_back = {PAIR(3, 2), PAIR(1, 2), ONE(1), 0, 0, {4, {2, 2, 9, 7}}},
  ceil_back = {ONE(3), ONE(2), ONE(1), 1, 1, {4, {1, 2, 8, 10}}}, empty_back = {ONE(2), {0}, {0}, 0, 1, {4, {0, 3, 8, 8}}};
static const rsi_sample avg_pool2d_backward_samples[] = {
  {"f2x3x4x4", &avg2_back, 0, 0}, {"f1x2x4x17", &avg3_back, 0, 0},  {"f2x2x9x4", &inner_back, 0, 0},
  {"f1x2x5x6", &ceil_back, 0, 0}, {"f0x3x4x4", &empty_back, 0, 0}, {NULL, NULL, 0, 0}};

static const adaptive_avg_pool2d_attrs to1 = {ONE(1)}, to32 = {PAIR(3, 2)}, to_more = {PAIR(4, 9)};
static const rsi_sample adaptive_avg_pool2d_samples[] = {
  {"f2x3x7x7", &to1, 0, 0},  {"f2x2x8x7", &to32, 0, 0}, {"f1x2x3x5", &to_more, 0, 0},
  {"f1x1x9x33", &to1, 0, 0}, {"f0x3x7x7", &to1, 0, 0},  {NULL, NULL, 0, 0}};

static const adaptive_max_pool2d_attrs max_to1 = {ONE(1)}, max_to32 = {PAIR(3, 2)}, max_to_more = {PAIR(4, 9)};
static const rsi_sample adaptive_max_pool2d_samples[] = {
  {"d2x3x7x7", &max_to1, 0, 0},  {"d2x2x8x7", &max_to32, 0, 0}, {"d1x2x3x5", &max_to_more, 0, 0},
  {"d1x1x9x33", &max_to1, 0, 0}, {"d0x3x7x7", &max_to1, 0, 0},  {NULL, NULL, 0, 0}};

static const adaptive_avg_pool2d_backward_attrs to1_back = {{4, {2, 3, 7, 7}}}, to32_back = {{4, {2, 2, 8, 7}}},
                                                to_more_back = {{4, {1, 2, 3, 5}}}, to1_empty = {{4, {0, 3, 7, 7}}};
static const rsi_sample adaptive_avg_pool2d_backward_samples[] = {
  {"f2x3x1x1", &to1_back, 0, 0}, {"f2x2x3x2", &to32_back, 0, 0}, {"f1x2x4x9", &to_more_back, 0, 0},
  {"f0x3x1x1", &to1_empty, 0, 0}, {NULL, NULL, 0, 0}};

/* ---- ops ------------------------------------------------------------------------------------------------------------- */

#define KERNELS(op) \
  static const rsi_kernel op##_kernels[] = {{"portable", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, op##_run}, {NULL, 0, 0, NULL, NULL, NULL}};
KERNELS(max_pool2d)
KERNELS(max_pool2d_backward)
KERNELS(max_pool2d_gather)
KERNELS(avg_pool2d)
KERNELS(avg_pool2d_backward)
KERNELS(adaptive_avg_pool2d)
KERNELS(adaptive_avg_pool2d_backward)
KERNELS(adaptive_max_pool2d)

const rs_op rsi_op_max_pool2d = {
  .name = "max_pool2d",
  .doc = "Largest element of each window of images x [N, C, H, W]; NaN counts as largest. The second result is internal: the "
         "positions of the chosen elements in their planes, counted from 0, for the gradient.",
  .inputs = "x",
  .nin_min = 1, .nin_max = 1, .nout = 2, .nout_public = 1,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(max_pool2d),
  .infer = max_pool2d_infer,
  .grad = max_pool2d_grad,
  .saves = {RSI_KEEP_OUT(1)},
  .kernels = max_pool2d_kernels,
  .samples = max_pool2d_samples,
};

const rs_op rsi_op_max_pool2d_backward = {
  .name = "max_pool2d_backward",
  .doc = "Gradient of max_pool2d: adds each element of grad at its position.",
  .inputs = "grad,index",
  .nin_min = 2, .nin_max = 2, .nout = 1,
  .traits = RSI_T_INTERNAL,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(max_pool2d_backward),
  .infer = max_pool2d_backward_infer,
  .grad = max_pool2d_backward_grad,
  .saves = {RSI_KEEP_IN(1)},
  .kernels = max_pool2d_backward_kernels,
  .samples = max_pool2d_backward_samples,
};

const rs_op rsi_op_max_pool2d_gather = {
  .name = "max_pool2d_gather",
  .doc = "Gradient of max_pool2d_backward: the element of x at each position.",
  .inputs = "x,index",
  .nin_min = 2, .nin_max = 2, .nout = 1,
  .traits = RSI_T_INTERNAL,
  .dtypes = RSI_FLOATS,
  .infer = max_pool2d_gather_infer,
  .grad = max_pool2d_gather_grad,
  .saves = {RSI_KEEP_IN(1)},
  .kernels = max_pool2d_gather_kernels,
  .samples = max_pool2d_gather_samples,
};

const rs_op rsi_op_avg_pool2d = {
  .name = "avg_pool2d",
  .doc = "Mean of each window of images x [N, C, H, W].",
  .inputs = "x",
  .nin_min = 1, .nin_max = 1, .nout = 1,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(avg_pool2d),
  .infer = avg_pool2d_infer,
  .grad = avg_pool2d_grad,
  .kernels = avg_pool2d_kernels,
  .samples = avg_pool2d_samples,
};

const rs_op rsi_op_avg_pool2d_backward = {
  .name = "avg_pool2d_backward",
  .doc = "Gradient of avg_pool2d.",
  .inputs = "grad",
  .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_INTERNAL,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(avg_pool2d_backward),
  .infer = avg_pool2d_backward_infer,
  .grad = avg_pool2d_backward_grad,
  .kernels = avg_pool2d_backward_kernels,
  .samples = avg_pool2d_backward_samples,
};

const rs_op rsi_op_adaptive_avg_pool2d = {
  .name = "adaptive_avg_pool2d",
  .doc = "Means over bins that divide images x [N, C, H, W] into output_size: bin i is floor(i * H / out) .. ceil((i + 1) * H / out) - 1.",
  .inputs = "x",
  .nin_min = 1, .nin_max = 1, .nout = 1,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(adaptive_avg_pool2d),
  .infer = adaptive_avg_pool2d_infer,
  .grad = adaptive_avg_pool2d_grad,
  .kernels = adaptive_avg_pool2d_kernels,
  .samples = adaptive_avg_pool2d_samples,
};

const rs_op rsi_op_adaptive_avg_pool2d_backward = {
  .name = "adaptive_avg_pool2d_backward",
  .doc = "Gradient of adaptive_avg_pool2d.",
  .inputs = "grad",
  .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_INTERNAL,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(adaptive_avg_pool2d_backward),
  .infer = adaptive_avg_pool2d_backward_infer,
  .grad = adaptive_avg_pool2d_backward_grad,
  .kernels = adaptive_avg_pool2d_backward_kernels,
  .samples = adaptive_avg_pool2d_backward_samples,
};

const rs_op rsi_op_adaptive_max_pool2d = {
  .name = "adaptive_max_pool2d",
  .doc = "Largest elements of the bins of adaptive_avg_pool2d; NaN counts as largest. The second result is internal, as in max_pool2d.",
  .inputs = "x",
  .nin_min = 1, .nin_max = 1, .nout = 2, .nout_public = 1,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(adaptive_max_pool2d),
  .infer = adaptive_max_pool2d_infer,
  .grad = adaptive_max_pool2d_grad,
  .saves = {RSI_KEEP_OUT(1)},
  .kernels = adaptive_max_pool2d_kernels,
  .samples = adaptive_max_pool2d_samples,
};
