/*
** A 1x1 convolution to more channels and the convolution with one filter for each of them that follows it, in one: of the image between
** them only a few rows of one block of channels exist at a time, in the cache. For programs; pass expand.c makes it where that image is
** large. Images are in block form b (conv_block.c); the filters come as [G, C, b] and [G, size * size, b], so that they are rearranged
** once, in the prologue.
*/
#include "backend/backend.h"
#include "base/lanes.h"
#include "ops/block_image.h"
#include <math.h>
#include <string.h>

#define EXPAND_ATTRS(F, T)                                                                                                  \
  F(T, INT, channels, 1, 1, INT32_MAX, NULL, "channels of x")                                                               \
  F(T, INT, size, 3, 3, 5, NULL, "of the filters: 3 or 5")                                                                  \
  F(T, INT, stride, 1, 1, 2, NULL, "as in conv2d")                                                                          \
  F(T, INTS, padding, 0, 0, 4, NULL, "as in conv2d")                                                                        \
  F(T, ENUM, inner, 0, 0, 2, "none,relu,relu6", "what is applied between the two")                                          \
  F(T, ENUM, act, 0, 0, 2, "none,relu,relu6", "what is applied at the end")
RSI_ATTRS(conv2d_expand_block, EXPAND_ATTRS)

static rs_status check_filters(const rs_tensor *w, const char *name, int64_t groups, int64_t rows, int64_t block) {
  RSI_CHECK(w->ndim == 3 && w->shape[0] == groups && w->shape[1] == rows && w->shape[2] == block && w->dtype == RS_F32, RS_ERR_SHAPE,
            "%s must be f32 [%lld, %lld, %lld], got %s", name, (long long)groups, (long long)rows, (long long)block, rsi_text(w));
  return RS_OK;
}

static rs_status check_bias(const rs_tensor *b, const char *name, int64_t n) {
  RSI_CHECK(b == NULL || (b->ndim == 1 && b->shape[0] == n && b->dtype == RS_F32), RS_ERR_SHAPE, "%s must be f32 [%lld], got %s", name,
            (long long)n, rsi_text(b));
  return RS_OK;
}

static rs_status expand_infer(rsi_call *c) {
  const conv2d_expand_block_attrs *const a = RSI_ATTR(c, conv2d_expand_block);
  const rs_tensor *const x = c->in[0], *const w1 = c->in[1];
  const int64_t block = rsi_block_of(x), groups = w1->ndim > 0 ? w1->shape[0] : 0;
  const int64_t size = a->size, ph = rsi_at(&a->padding, 0, 0), pw = rsi_at(&a->padding, 1, 0);
  RSI_TRY(rsi_block_check(x, "input", a->channels));
  RSI_CHECK(x->dtype == RS_F32, RS_ERR_DTYPE, "input is %s, but must be f32", rs_dtype_name(x->dtype));
  RSI_CHECK(size == 3 || size == 5, RS_ERR_ARG, "size must be 3 or 5, got %lld", (long long)size);
  RSI_CHECK(ph < size && pw < size, RS_ERR_ARG, "padding must be less than size");
  RSI_TRY(check_filters(w1, "weight", groups, a->channels, block));
  RSI_TRY(check_filters(c->in[2], "filters", groups, size * size, block));
  RSI_TRY(check_bias(c->in[3], "bias", groups * block));
  RSI_TRY(check_bias(c->in[4], "the filters' bias", groups * block));
  const int64_t h = x->shape[2] + 2 * ph - size, w = x->shape[3] + 2 * pw - size;
  RSI_CHECK(h >= 0 && w >= 0, RS_ERR_SHAPE, "input %s is smaller than the filters", rsi_text(x));
  c->desc[0] = (rsi_desc){.dtype = RS_F32, .ndim = 5, .shape = {x->shape[0], groups, h / a->stride + 1, w / a->stride + 1, block}};
  return RS_OK;
}

static rsi_expand expand_of(const rsi_call *c) {
  const conv2d_expand_block_attrs *const a = RSI_ATTR(c, conv2d_expand_block);
  const rs_tensor *const x = c->in[0];
  const int64_t *const y = c->desc[0].ndim == 5 ? c->desc[0].shape : c->out[0]->shape;
  return (rsi_expand){
    .s = {.h = x->shape[2], .w = x->shape[3], .oh = y[2], .ow = y[3], .size = a->size, .stride = a->stride, .ph = rsi_at(&a->padding, 0, 0),
          .pw = rsi_at(&a->padding, 1, 0), .groups = c->in[1]->shape[0], .u = c->in[2]->data, .bias = c->in[4] ? c->in[4]->data : NULL,
          .y = c->out && c->out[0] ? c->out[0]->data : NULL, .low = a->act == RSI_CONV_NO_ACT ? -INFINITY : 0,
          .high = a->act == RSI_CONV_RELU6 ? 6 : INFINITY},
    .channels = a->channels, .groups_in = x->shape[1], .from = x->data, .w1 = c->in[1]->data, .bias1 = c->in[3] ? c->in[3]->data : NULL,
    .low1 = a->inner == RSI_CONV_NO_ACT ? -INFINITY : 0, .high1 = a->inner == RSI_CONV_RELU6 ? 6 : INFINITY};
}

/* ---- by the loops of kernels/depthwise.h ---------------------------------------------------------------------------------- */

/* Tasks are numbered over [image, part, block of channels]; a part computes some rows that its neighbour computes too. */
enum { ITEMS = 16, LEAST_BANDS = 4 };

typedef struct expand_job { const rsi_k_depthwise *k; rsi_expand e; int64_t bands, parts; } expand_job;

static void expand_task(void *arg, int64_t task, void *strip) {
  const expand_job *const j = arg;
  const int64_t groups = j->e.s.groups, part = task / groups % j->parts, plane = task / groups / j->parts * groups + task % groups;
  j->k->expand(&j->e, plane, j->bands * part / j->parts, j->bands * (part + 1) / j->parts, strip);
}

static expand_job job_of(const rsi_call *c) {
  const int64_t planes = c->in[0]->shape[0] * c->in[1]->shape[0];
  expand_job j = {.k = c->x->k->depthwise, .e = expand_of(c)};
  j.bands = (j.e.s.oh + RSI_DEPTHWISE_ROWS - 1) / RSI_DEPTHWISE_ROWS;
  const int64_t wanted = planes > 0 ? (ITEMS + planes - 1) / planes : 1, most = j.bands / LEAST_BANDS;
  for (j.parts = 1; j.parts < wanted && 2 * j.parts <= most;) j.parts *= 2;
  return j;
}

static bool expand_accepts(const rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  return rsi_block_of(x) == c->x->k->depthwise->lanes && x->shape[3] >= c->x->k->depthwise->narrowest && x->numel > 0;
}

static size_t strip_bytes(const rsi_call *c, const rsi_expand *e) {
  return rsi_lane_round((size_t)rsi_expand_strip(&e->s, c->x->k->depthwise->lanes) * sizeof(float));
}

static int64_t lanes_of(const rsi_call *c, const expand_job *j) {
  return rsi_lane_count(rsi_pool_threads(c->x->pool), c->in[0]->shape[0] * c->in[1]->shape[0] * j->parts);
}

static size_t expand_scratch(const rsi_call *c) {
  const expand_job j = job_of(c);
  return (size_t)lanes_of(c, &j) * strip_bytes(c, &j.e);
}

static rs_status expand_run(const rsi_call *c) {
  expand_job j = job_of(c);
  rsi_lanes_run(c->x->pool, lanes_of(c, &j), c->in[0]->shape[0] * c->in[1]->shape[0] * j.parts, expand_task, &j, c->scratch,
                strip_bytes(c, &j.e));
  return RS_OK;
}

/* ---- plain ----------------------------------------------------------------------------------------------------------------- */

static float clamped(float v, float low, float high) { return v < low ? low : v > high ? high : v; }

static size_t plain_scratch(const rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  return rsi_lane_round((size_t)(x->shape[2] * x->shape[3] * rsi_block_of(x)) * sizeof(float));
}

static void plain_expand(const rsi_expand *e, int64_t b, int64_t n, int64_t g, float *to) {
  const int64_t pixels = e->s.h * e->s.w;
  for (int64_t i = 0; i < pixels * b; i++) {
    float sum = e->bias1 ? e->bias1[g * b + i % b] : 0;
    for (int64_t k = 0; k < e->channels; k++)
      sum += e->from[((n * e->groups_in + k / b) * pixels + i / b) * b + k % b] * e->w1[(g * e->channels + k) * b + i % b];
    to[i] = clamped(sum, e->low1, e->high1);
  }
}

static void plain_filter(const rsi_depthwise *s, int64_t b, int64_t plane, int64_t g, const float *x) {
  for (int64_t i = 0; i < s->oh * s->ow * b; i++) {
    const int64_t top = i / (s->ow * b) * s->stride - s->ph, left = i / b % s->ow * s->stride - s->pw, j = i % b;
    float sum = s->bias ? s->bias[g * b + j] : 0;
    for (int64_t k = 0; k < s->size; k++)
      for (int64_t l = 0; l < s->size; l++)
        if (top + k >= 0 && top + k < s->h && left + l >= 0 && left + l < s->w)
          sum += x[((top + k) * s->w + left + l) * b + j] * s->u[((g * s->size + k) * s->size + l) * b + j];
    s->y[plane * s->oh * s->ow * b + i] = clamped(sum, s->low, s->high);
  }
}

static rs_status plain_run(const rsi_call *c) {
  const rsi_expand e = expand_of(c);
  const int64_t b = rsi_block_of(c->in[0]);
  for (int64_t plane = 0; plane < c->in[0]->shape[0] * e.s.groups; plane++) {
    plain_expand(&e, b, plane / e.s.groups, plane % e.s.groups, c->scratch);
    plain_filter(&e.s, b, plane, plane % e.s.groups, c->scratch);
  }
  return RS_OK;
}

static const conv2d_expand_block_attrs
  one = {.channels = 16, .size = 3, .stride = 1, .padding = {1, {1}}, .inner = 2, .act = 2},
  two = {.channels = 24, .size = 3, .stride = 2, .padding = {1, {1}}, .inner = 1},
  eight = {.channels = 5, .size = 5, .stride = 2, .padding = {2, {2, 1}}, .inner = 2},
  four = {.channels = 6, .size = 3, .stride = 1, .act = 1},
  five = {.channels = 16, .size = 5, .stride = 1, .padding = {1, {2}}, .act = 2};
static const rsi_sample samples[] = {
  {"f2x1x15x14x16,f2x16x16,f2x9x16,f32,f32", &one, 2e-5, 1},
  {"f1x2x17x29x16,f3x24x16,f3x9x16,f48,f48", &two, 2e-5, 1},
  {"f1x1x19x22x8,f2x5x8,f2x25x8,f16,f16", &eight, 2e-5, 1},
  {"f2x2x6x9x4,f2x6x4,f2x9x4", &four, 2e-5, 1},
  {"f1x1x33x30x16,f1x16x16,f1x25x16,f16", &five, 2e-5, 1},
  {"f0x1x15x14x16,f2x16x16,f2x9x16,f32,f32", &one, 0, 1},
  {NULL, NULL, 0, 0}};

static const rsi_kernel kernels[] = {
  {"bands", RSI_PORTABLE, RSI_F32, expand_accepts, expand_scratch, expand_run},
  {"plain", RSI_PORTABLE, RSI_F32, NULL, plain_scratch, plain_run},
  {NULL, 0, 0, NULL, NULL, NULL}};

const rs_op rsi_op_conv2d_expand_block = {
  .name = "conv2d_expand_block", .doc = "act(each filter(inner(1x1 convolution of x))) on block images, where each channel has one filter.",
  .inputs = "x,weight,filters,bias?,filters_bias?", .nin_min = 3, .nin_max = 5, .nout = 1, .traits = RSI_T_INTERNAL, .dtypes = RSI_F32,
  RSI_USES_ATTRS(conv2d_expand_block), .infer = expand_infer, .kernels = kernels, .samples = samples,
};
