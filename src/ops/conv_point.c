/*
** Which 1x1 convolutions kernels/conv_point.c computes, and how they are cut. Tasks are numbered along the pixels, so that a thread, which
** takes them from one end (pool.c), finds the same part of the image in its cache from job to job; but where the weights are more than
** the image, along the blocks of the result, so that a thread reads its part of them. Tasks and results depend on the shape only.
*/
#include "ops/conv_point.h"
#include "ops/weight_pairs.h"
#include <math.h>

/* MANY_PIXELS: beside them laying out weights, which one thread does, does not count. */
enum { MANY_PIXELS = 1024, CACHE_BYTES = 2 << 20, WEIGHT_BYTES = 1 << 18, TASK_NS = 4000, MOST_TASKS = 64, FEW_TASKS = 8, SHARED_NS = 5000,
       WAKING_NS = 32000 };

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct plan {
  int64_t n, tiles, pairs;       /* tiles of an image */
  int64_t along, across;         /* parts into which all tiles and the pairs are cut */
  bool    by_pixels;
  double  ns;                    /* of one thread */
} plan;

static plan make_plan(const rsi_exec *x, const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const int64_t L = x->k->conv_point->lanes, pixels = s->h * s->w, groups = divide_up(s->o, L);
  plan p = {.n = s->n, .tiles = divide_up(pixels, x->k->conv_point->wide), .pairs = divide_up(groups, 2)};
  /* Measured: a product of a number and a vector; a byte of images that are more than the cache holds. */
  const double bytes = (double)(s->n * pixels * (s->c + s->o)) * sizeof(float);
  p.ns = 0.175 * (double)(s->n * pixels * s->c * groups) + (bytes > CACHE_BYTES ? 0.03 * (bytes - CACHE_BYTES) : 0);
  const int64_t tasks = smaller((int64_t)(p.ns / TASK_NS) + 1, MOST_TASKS), all = p.n * p.tiles;
  p.by_pixels = s->o <= s->n * pixels;                 /* both times the channels of x */
  if (p.by_pixels) p.along = smaller(tasks, all), p.across = smaller(divide_up(tasks, p.along), p.pairs);
  else p.across = smaller(tasks, p.pairs), p.along = smaller(divide_up(smaller(tasks, FEW_TASKS), p.across), all);
  return p;
}

/* What split products take where there are tiles for them, measured: products, splitting, what follows them, distant weights. */
static double split_ns(const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const double pixels = (double)(s->n * s->h * s->w), runs = (double)divide_up(s->c, 32), groups = (double)divide_up(s->o, 16);
  const double tiles = (double)(s->n * divide_up(s->h * s->w, 16)), weights = 3072 * runs * groups;
  return 50 * tiles * runs * groups + 7.5 * pixels * runs + 5 * pixels * groups + (weights > WEIGHT_BYTES ? 0.03 * weights : 0);
}

bool rsi_conv_point_accepts(const rsi_exec *x, const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const int64_t L = x->k->conv_point->lanes;
  if (k->kind != RSI_CONV_FORWARD || k->x_dtype != RS_F32 || k->y_dtype != RS_F32 || k->x_block != L || k->y_block != L) return false;
  if (s->groups != 1 || s->n == 0 || s->c == 0 || s->o == 0 || s->h == 0 || s->w == 0 || s->kh != 1 || s->kw != 1) return false;
  if (s->sh != 1 || s->sw != 1 || s->ph != 0 || s->pw != 0) return false;
  if (!k->packed && s->n * s->h * s->w < MANY_PIXELS) return false;
  const bool split = L == 16 && !x->exact && x->k->split_conv->task != NULL && rsi_cpu_split();
  return !split || make_plan(x, k).ns <= split_ns(k);
}

/* ---- weights ------------------------------------------------------------------------------------------------------------- */

static size_t weight_bytes(const rsi_exec *x, const rsi_conv_call *k) { return rsi_pairs_bytes(k->s.o, k->s.c, x->k->conv_point->lanes); }

size_t rsi_conv_point_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout) {
  *layout = (uint64_t)(x->k->conv_point->lanes << 56 | k->s.c << 28 | k->s.o);
  return weight_bytes(x, k);
}

void rsi_conv_point_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch) {
  (void)scratch;
  rsi_pairs_lay(k->s.o, k->s.c, x->k->conv_point->lanes, weight, packed);
}

/* ---- a run --------------------------------------------------------------------------------------------------------------- */

size_t rsi_conv_point_bytes(const rsi_exec *x, const rsi_conv_call *k) {
  return rsi_pairs_bias_bytes(k->s.o, x->k->conv_point->lanes) + (k->packed ? 0 : weight_bytes(x, k));
}

typedef struct point_job { const rsi_k_conv_point *k; rsi_conv_point s; plan p; } point_job;

static void point_task(void *arg, int64_t task) {
  const point_job *const j = arg;
  const plan *const p = &j->p;
  const int64_t a = p->by_pixels ? task / p->across : task % p->along, b = p->by_pixels ? task % p->across : task / p->along;
  const int64_t all = p->n * p->tiles, end = all * (a + 1) / p->along;
  const int64_t pair = p->pairs * b / p->across, last = p->pairs * (b + 1) / p->across;
  for (int64_t t = all * a / p->along; t < end;) {     /* what of it lies in one image */
    const int64_t n = t / p->tiles, next = smaller(end, (n + 1) * p->tiles);
    j->k->task(&j->s, n, j->s.pixels * (t - n * p->tiles) / p->tiles, j->s.pixels * (next - n * p->tiles) / p->tiles, pair, last);
    t = next;
  }
}

void rsi_conv_point_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch) {
  const rsi_conv_shape *const s = &k->s;
  const int64_t L = x->k->conv_point->lanes;
  float *const weights = (float *)(void *)((char *)scratch + rsi_pairs_bias_bytes(s->o, L));
  point_job j = {x->k->conv_point, {.pixels = s->h * s->w, .channels = s->c, .groups_in = divide_up(s->c, L), .groups = divide_up(s->o, L),
                                    .x = data->x, .y = data->y, .w = data->w, .bias = rsi_pairs_bias(s->o, L, data->bias, scratch),
                                    .residual = data->residual, .low = k->act == RSI_CONV_NO_ACT ? -INFINITY : 0,
                                    .high = k->act == RSI_CONV_RELU6 ? 6 : INFINITY}, make_plan(x, k)};
  if (!k->packed) rsi_pairs_lay(s->o, s->c, L, data->w, weights), j.s.w = weights;
  const int64_t tasks = j.p.along * j.p.across;
  if (j.p.ns < SHARED_NS) for (int64_t i = 0; i < tasks; i++) point_task(&j, i);
  else (j.p.ns < WAKING_NS ? rsi_pool_offer : rsi_pool_run)(x->pool, tasks, point_task, &j);
}
