/*
** Which convolutions kernels/winograd.c computes, and how they are cut: a task is some tiles, numbered over all images, with all
** channels and filters, so that its matrices and the transformed weights stay in the second-level cache. The gradient for x is the
** convolution of y's gradient with the filters turned around, channels and filters exchanged, and the rest of the padding.
** Tasks depend on the shape only, and so does the result.
*/
#include "ops/winograd.h"
#include "base/lanes.h"
#include <math.h>
#include <string.h>

enum {
  WEIGHT_BYTES = 10 * 1024 * 1024,   /* of transformed weights, at most: 256 x 256 */
  CACHE_BYTES  = 1216 * 1024,        /* of those that stay in the cache; more are read again for each part of the tiles */
  TILE_BYTES   = 512 * 1024,         /* of a part's matrices when the weights stay too */
  LEAST_PARTS  = 8, FEW_PARTS = 4,   /* of all tiles; when the weights do not stay */
  MOST_PARTS   = 8                   /* of a task: each asks for the pixels of the next */
};

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Sizes in the sense of the convolution that is computed. */
typedef struct plan {
  const rsi_k_winograd *k;
  rsi_winograd s;
  int64_t in, out, tiles, tasks, each_tiles;
  size_t  weights, each;         /* bytes: transformed weights; scratch of a lane */
} plan;

bool rsi_winograd_fits(const rsi_exec *x, const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const int64_t L = x->k->winograd->lanes;
  if (x->exact || k->kind > RSI_CONV_DATA || k->x_dtype != RS_F32 || k->y_dtype != RS_F32) return false;
  if (k->x_block != L || k->y_block != L) return false;
  if (s->kh != 3 || s->kw != 3 || s->sh != 1 || s->sw != 1 || s->dh != 1 || s->dw != 1 || s->ph > 2 || s->pw > 2 || s->groups != 1)
    return false;
  return s->n > 0 && s->h > 0 && s->w > 0 && s->oh > 0 && s->ow > 0 && s->c > 0 && s->o > 0;
}

void rsi_winograd_sizes(const rsi_conv_call *k, int64_t lanes, rsi_winograd *w) {
  const rsi_conv_shape *const s = &k->s;
  const bool data = k->kind == RSI_CONV_DATA;
  *w = (rsi_winograd){.h = s->h, .w = s->w, .oh = s->oh, .ow = s->ow, .before_h = s->ph, .before_w = s->pw, .low = -INFINITY,
                      .high = INFINITY, .groups_in = divide_up(data ? s->o : s->c, lanes),
                      .groups_out = divide_up(data ? s->c : s->o, lanes)};
  if (data) w->h = s->oh, w->w = s->ow, w->oh = s->h, w->ow = s->w, w->before_h = 2 - s->ph, w->before_w = 2 - s->pw;
  w->down = divide_up(w->oh, 4), w->across = divide_up(w->ow, 4);
}

static plan make_plan(const rsi_exec *x, const rsi_conv_call *k) {
  const bool data = k->kind == RSI_CONV_DATA;
  plan p = {.k = x->k->winograd, .in = data ? k->s.o : k->s.c, .out = data ? k->s.c : k->s.o};
  const int64_t L = p.k->lanes;
  rsi_winograd_sizes(k, L, &p.s);
  p.tiles = k->s.n * p.s.down * p.s.across;
  const int64_t blocks = p.s.groups_in + p.s.groups_out;
  p.weights = (size_t)(RSI_WINOGRAD_POINTS * rsi_winograd_step(p.s.groups_in * L, p.s.groups_out, L)) * sizeof(float);
  const bool stay = p.weights <= CACHE_BYTES;
  int64_t most = stay ? TILE_BYTES / (RSI_WINOGRAD_POINTS * blocks * L * (int64_t)sizeof(float)) : RSI_WINOGRAD_TILES;
  const int64_t share = divide_up(p.tiles, stay ? LEAST_PARTS : FEW_PARTS);
  if (most > share) most = share;
  if (most > RSI_WINOGRAD_TILES) most = RSI_WINOGRAD_TILES;
  p.s.most = most > p.k->rows ? most / p.k->rows * p.k->rows : p.k->rows;
  const int64_t parts = divide_up(p.tiles, p.s.most), each = parts / (2 * LEAST_PARTS);
  p.each_tiles = p.s.most * (each < 1 ? 1 : each < MOST_PARTS ? each : MOST_PARTS);
  p.tasks = divide_up(p.tiles, p.each_tiles);
  p.each = rsi_lane_round((size_t)rsi_winograd_scratch(p.s.groups_in, p.s.groups_out, p.s.most, L) * sizeof(float));
  return p;
}

/*
** Measured beside oneDNN's direct and Winograd forms in f32, AVX-512 and AVX2: this one is faster from a few tiles on, as long as the
** weights stay in the cache; from some dozens where they do not, fewer when they have to be transformed each time by oneDNN too.
*/
static bool pays(const rsi_conv_call *k, const plan *p) {
  const bool stay = p->weights <= CACHE_BYTES;
  if (p->weights > WEIGHT_BYTES || 2 * p->in < p->k->lanes) return false;
  return p->tiles >= (stay ? 8 : k->packed ? 48 : 24);
}

bool rsi_winograd_accepts(const rsi_exec *x, const rsi_conv_call *k) {
  if (!rsi_winograd_fits(x, k)) return false;
  const plan p = make_plan(x, k);
  return pays(k, &p);
}

/* ---- weights ------------------------------------------------------------------------------------------------------------ */

typedef struct filters_job { const rsi_k_winograd *k; rsi_winograd_filters f; float *u; } filters_job;

static void filters_of_groups(void *arg, int64_t first, int64_t last) {
  const filters_job *const j = arg;
  for (int64_t g = first; g < last; g++) j->k->filters(&j->f, g, j->u);
}

rsi_winograd_filters rsi_winograd_weights(const rsi_conv_call *k, const float *w) {
  const int64_t c = k->s.c, o = k->s.o;
  if (k->kind == RSI_CONV_DATA) return (rsi_winograd_filters){.w = w, .in = o, .out = c, .in_step = c * 9, .out_step = 9, .flipped = true};
  return (rsi_winograd_filters){.w = w, .in = c, .out = o, .in_step = 9, .out_step = c * 9};
}

static void transform(const rsi_exec *x, const rsi_conv_call *k, const plan *p, const float *w, float *u) {
  filters_job j = {p->k, rsi_winograd_weights(k, w), u};
  rsi_parallel(x, p->s.groups_in, 10.0 * (double)(p->k->lanes * p->out), filters_of_groups, &j);
}

size_t rsi_winograd_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout) {
  const plan p = make_plan(x, k);
  *layout = (uint64_t)(p.k->lanes << 48 | p.s.groups_in << 24 | p.s.groups_out);
  return p.weights;
}

void rsi_winograd_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch) {
  (void)scratch;
  const plan p = make_plan(x, k);
  transform(x, k, &p, weight, packed);
}

/* ---- a run --------------------------------------------------------------------------------------------------------------- */

typedef struct tiles_job { const rsi_k_winograd *k; rsi_winograd s; int64_t tiles, each; } tiles_job;

static void tiles_of_task(void *arg, int64_t task, void *scratch) {
  const tiles_job *const j = arg;
  const int64_t first = task * j->each, left = j->tiles - first;
  j->k->tiles(&j->s, first, left < j->each ? left : j->each, scratch);
}

/* A second thread does not pay for a few microseconds. */
static int64_t lanes_of(const rsi_exec *x, const plan *p) {
  const double work = 36.0 / 80 * (double)(p->tiles * p->s.groups_in * p->s.groups_out * p->k->lanes * p->k->lanes);   /* ns */
  return work < 10e3 ? 1 : rsi_lane_count(rsi_pool_threads(x->pool), p->tasks);
}

static size_t bias_bytes(const plan *p) { return rsi_lane_round((size_t)p->s.groups_out * RSI_WINOGRAD_BIAS); }

void rsi_winograd_ends(const rsi_conv_call *k, const rsi_conv_data *data, rsi_winograd *s, void *room) {
  const bool back = k->kind == RSI_CONV_DATA;
  s->x = back ? data->y : data->x, s->y = back ? data->x : data->y;
  s->residual = data->residual;
  if (data->bias != NULL) {
    memset(room, 0, (size_t)s->groups_out * RSI_WINOGRAD_BIAS);
    memcpy(room, data->bias, (size_t)(back ? k->s.c : k->s.o) * sizeof(float));
    s->bias = room;
  }
  if (k->act != RSI_CONV_NO_ACT) s->low = 0;
  if (k->act == RSI_CONV_RELU6) s->high = 6;
}

size_t rsi_winograd_bytes(const rsi_exec *x, const rsi_conv_call *k) {
  const plan p = make_plan(x, k);
  return bias_bytes(&p) + (k->packed ? 0 : rsi_lane_round(p.weights)) + (size_t)lanes_of(x, &p) * p.each;
}

void rsi_winograd_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch) {
  const plan p = make_plan(x, k);
  tiles_job j = {p.k, p.s, p.tiles, p.each_tiles};
  rsi_winograd_ends(k, data, &j.s, scratch);
  char *at = (char *)scratch + bias_bytes(&p);
  j.s.u = data->w;
  if (!k->packed) {
    transform(x, k, &p, data->w, (float *)(void *)at);
    j.s.u = (const float *)(void *)at;
    at += rsi_lane_round(p.weights);
  }
  rsi_lanes_run(x->pool, lanes_of(x, &p), p.tasks, tiles_of_task, &j, at, p.each);
}
