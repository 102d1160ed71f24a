/*
** Which convolutions kernels/depthwise.c computes, and how they are cut: into parts of some bands of rows of a plane, numbered over
** [image, part, block of channels], so that a thread has about the same rows as in the 1x1 convolutions around it (conv_point.c; where
** those go along the blocks, a plane is one part). The gradient for x, at stride 1, is the convolution of y's gradient with the filters
** turned around and the rest of the padding. What is computed depends on the shape only.
*/
#include "ops/depthwise.h"
#include "base/lanes.h"
#include <math.h>
#include <string.h>

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool rsi_depthwise_accepts(const rsi_exec *x, const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const int64_t L = x->k->depthwise->lanes;
  if (k->kind > RSI_CONV_DATA || k->x_dtype != RS_F32 || k->y_dtype != RS_F32 || k->x_block != L || k->y_block != L) return false;
  if (s->groups != s->c || s->c != s->o || s->n == 0 || s->c == 0 || s->dh != 1 || s->dw != 1) return false;
  if (s->kh != s->kw || (s->kh != 3 && s->kh != 5) || s->sh != s->sw || s->ph >= s->kh || s->pw >= s->kw) return false;
  return s->sh == 1 || (s->sh == 2 && k->kind == RSI_CONV_FORWARD);
}

/* ---- filters ------------------------------------------------------------------------------------------------------------- */

static size_t filter_bytes(const rsi_exec *x, const rsi_conv_call *k) {
  const int64_t L = x->k->depthwise->lanes;
  return rsi_lane_round((size_t)(divide_up(k->s.c, L) * L * k->s.kh * k->s.kw) * sizeof(float));
}

/* w: [c, taps] to u: [c / L, taps, L], filled up with zeros. */
static void lay_filters(const rsi_exec *x, const rsi_conv_call *k, const float *w, float *u) {
  const int64_t L = x->k->depthwise->lanes, taps = k->s.kh * k->s.kw;
  const bool flipped = k->kind == RSI_CONV_DATA;
  memset(u, 0, filter_bytes(x, k));
  for (int64_t c = 0; c < k->s.c; c++) {
    float *const to = u + c / L * taps * L + c % L;
    for (int64_t t = 0; t < taps; t++) to[t * L] = w[c * taps + (flipped ? taps - 1 - t : t)];
  }
}

size_t rsi_depthwise_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout) {
  *layout = (uint64_t)(x->k->depthwise->lanes << 48 | k->s.kh << 40 | k->s.c);
  return filter_bytes(x, k);
}

void rsi_depthwise_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch) {
  (void)scratch;
  lay_filters(x, k, weight, packed);
}

/* ---- a run --------------------------------------------------------------------------------------------------------------- */

/* A bias that ends within a block is copied. */
static size_t bias_bytes(const rsi_exec *x, const rsi_conv_call *k) {
  const int64_t L = x->k->depthwise->lanes;
  return k->s.c % L != 0 ? rsi_lane_round((size_t)(divide_up(k->s.c, L) * L) * sizeof(float)) : 0;
}

size_t rsi_depthwise_bytes(const rsi_exec *x, const rsi_conv_call *k) {
  return bias_bytes(x, k) + (k->packed ? 0 : filter_bytes(x, k));
}

enum { PARTS = 4, LEAST_BANDS = 3 };

typedef struct bands_job { const rsi_k_depthwise *k; rsi_depthwise s; int64_t bands, parts; } bands_job;     /* of a plane */

static void parts_range(void *arg, int64_t first, int64_t last) {
  const bands_job *const j = arg;
  for (int64_t i = first; i < last; i++) {
    const int64_t g = i % j->s.groups, part = i / j->s.groups % j->parts, begin = (i / j->s.groups / j->parts * j->s.groups + g) * j->bands;
    j->k->bands(&j->s, begin + j->bands * part / j->parts, begin + j->bands * (part + 1) / j->parts);
  }
}

void rsi_depthwise_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch) {
  const rsi_conv_shape *const s = &k->s;
  const bool back = k->kind == RSI_CONV_DATA;
  const int64_t L = x->k->depthwise->lanes, groups = divide_up(s->c, L);
  char *at = scratch;
  bands_job j = {x->k->depthwise, {.h = s->h, .w = s->w, .oh = s->oh, .ow = s->ow, .size = s->kh, .stride = s->sh, .ph = s->ph, .pw = s->pw,
                                   .groups = groups, .x = data->x, .y = data->y, .u = data->w, .bias = data->bias,
                                   .residual = data->residual, .low = -INFINITY, .high = INFINITY}, 0, 0};
  if (back) {
    j.s.h = s->oh, j.s.w = s->ow, j.s.oh = s->h, j.s.ow = s->w, j.s.ph = s->kh - 1 - s->ph, j.s.pw = s->kw - 1 - s->pw;
    j.s.x = data->y, j.s.y = data->x;
  }
  if (k->act != RSI_CONV_NO_ACT) j.s.low = 0;
  if (k->act == RSI_CONV_RELU6) j.s.high = 6;
  if (data->bias != NULL && bias_bytes(x, k) > 0) {
    memset(at, 0, bias_bytes(x, k));
    memcpy(at, data->bias, (size_t)s->c * sizeof(float));
    j.s.bias = (const float *)(void *)at;
    at += bias_bytes(x, k);
  }
  if (!k->packed) {
    lay_filters(x, k, data->w, (float *)(void *)at);
    j.s.u = (const float *)(void *)at;
  }
  /* Measured: 14 products and sums in a nanosecond for each 4 lanes, and what it takes to read a pixel. */
  const double ns = (double)(j.s.oh * j.s.ow * s->kh * s->kw) / 3.5 + 0.3 * (double)(j.s.h * j.s.w);
  j.bands = divide_up(j.s.oh, RSI_DEPTHWISE_ROWS);
  j.parts = s->c > s->n * j.s.h * j.s.w || j.bands < 2 * LEAST_BANDS ? 1 : j.bands < PARTS * LEAST_BANDS ? 2 : PARTS;
  rsi_parallel(x, s->n * j.parts * groups, ns / (double)j.parts, parts_range, &j);
}
