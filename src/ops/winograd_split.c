/*
** Which convolutions kernels/winograd_split.c computes, and how they are cut. A task is a part of the image with all its results; where
** there is only one part, tasks make some groups of its results each, and all of them its points: what another core has just written is
** slow to read. The cut follows from the shape and the number of threads, and changes no bit of the result; whether a call is computed so
** at all follows from the shape.
*/
#include "base/lanes.h"
#include "ops/winograd.h"
#include <string.h>

enum {
  NEAR_BYTES = 1024 * 1024,        /* of the points of filters: up to here they stay in the second-level cache */
  ROOM_BYTES = 1024 * 1024,        /* of v and m beside these */
  MOST_BYTES = 32 * 1024 * 1024,
  ONE_PART   = 4 * 1024 * 1024,    /* from here on they are read by one core each, though all make the same v */
  FEW_TILES  = 16, LEAST_TILES = 8,
  NEAR_GROUPS = 4, FAR_GROUPS = RSI_WINOGRAD_AT_ONCE, /* at once */
  SEVERAL    = 16                  /* parts: so many need not be a multiple of the threads */
};

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct plan {
  const rsi_k_winograd_split *k;
  rsi_winograd_split z;
  int64_t tiles, parts, groups, ranges;      /* groups of a task; tasks for the same part */
  size_t  bias, u, v, lane;                  /* bytes */
} plan;

static plan make_plan(const rsi_exec *x, const rsi_conv_call *k) {
  plan p = {.k = x->k->winograd_split};
  rsi_winograd *const s = &p.z.s;
  const int64_t threads = rsi_pool_threads(x->pool);
  rsi_winograd_sizes(k, RSI_SPLIT_SIDE, s);
  p.z.f = rsi_winograd_weights(k, NULL);
  p.z.runs = divide_up(s->groups_in, 2);
  p.tiles = k->s.n * s->down * s->across;
  p.u = rsi_lane_round((size_t)(RSI_WINOGRAD_POINTS * rsi_winograd_u_step(s->groups_out, p.z.runs)) * sizeof(uint16_t));
  p.z.far = p.u > NEAR_BYTES;
  p.z.at_once = smaller(p.z.far ? FAR_GROUPS : NEAR_GROUPS, s->groups_out);
  int64_t most = RSI_WINOGRAD_PART;
  if (!p.z.far) {                            /* bytes of a tile: of v, and of m */
    const int64_t v = RSI_WINOGRAD_POINTS * p.z.runs * RSI_SPLIT_RUN / 16 * 2, m = RSI_WINOGRAD_POINTS * 64 * p.z.at_once;
    most = smaller(ROOM_BYTES / (v + m) / 16 * 16, RSI_WINOGRAD_PART);
    if (most < 16) most = 16;
  }
  p.parts = divide_up(p.tiles, most);
  const bool apart = p.parts == 1 && p.z.far && (p.u > ONE_PART || p.tiles <= FEW_TILES);
  if (p.parts < SEVERAL && !apart) p.parts = smaller(divide_up(p.parts, threads) * threads, divide_up(p.tiles, LEAST_TILES));
  p.z.part = divide_up(p.tiles, p.parts);
  p.parts = divide_up(p.tiles, p.z.part);
  p.z.strips = divide_up(p.z.part, 16), p.z.rows = divide_up(p.z.part, p.z.strips);
  p.groups = apart ? divide_up(divide_up(s->groups_out, 2), smaller(threads, 4)) * 2 : s->groups_out;
  p.ranges = divide_up(s->groups_out, p.groups);
  p.v = rsi_lane_round((size_t)(RSI_WINOGRAD_POINTS * rsi_winograd_v_step(&p.z)) * sizeof(uint16_t));
  p.lane = p.v + rsi_lane_round((size_t)rsi_winograd_m_room(&p.z) * sizeof(float));
  p.bias = rsi_lane_round((size_t)s->groups_out * RSI_WINOGRAD_BIAS);
  return p;
}

/*
** The form with FMA was slower for all shapes measured but those of fewer than 16 channels. Beside the direct form by split products, in
** nanoseconds on one core: 300 products and sums a nanosecond on tiles, 400 for the direct form, whose sums are longer; 16 bytes of filters
** from memory, 14 where they are transformed each time.
*/
static bool pays(const rsi_exec *x, const rsi_conv_call *k, const plan *p) {
  const rsi_winograd *const s = &p->z.s;
  if (p->z.f.in < 16 || p->z.f.out < 16 || p->tiles < LEAST_TILES || p->u > MOST_BYTES || p->z.runs > RSI_WINOGRAD_RUNS) return false;
  if (rsi_winograd_accepts(x, k)) return true;
  const double tiles = (double)p->tiles, weights = (double)(p->z.f.in * p->z.f.out), bytes = (double)p->u;
  const double products = 72 * tiles * (double)(p->z.runs * 32 * s->groups_out * 16) / 300;
  const double filters = p->z.far ? (double)divide_up(p->tiles, RSI_WINOGRAD_PART) * bytes / 16 : 0;
  const double transforms = tiles * (double)(450 * p->z.runs + 130 * s->groups_out) + (k->packed ? 0 : bytes / 14);
  const double direct = 18 * (double)(k->s.n * s->oh * s->ow) * weights / 400 + 54 * weights / (k->packed ? 15 : 8);
  return (products > filters ? products : filters) + transforms < 0.9 * direct;
}

bool rsi_winograd_split_accepts(const rsi_exec *x, const rsi_conv_call *k) {
  if (x->k->winograd_split->task == NULL || !rsi_cpu_split() || !rsi_winograd_fits(x, k)) return false;
  const plan p = make_plan(x, k);
  return pays(x, k, &p);
}

/* ---- weights ------------------------------------------------------------------------------------------------------------ */

typedef struct filters_job { const plan *p; rsi_winograd_filters f; uint16_t *u; } filters_job;

static void filters_of_groups(void *arg, int64_t first, int64_t last) {
  const filters_job *const j = arg;
  for (int64_t i = first; i < last; i++) j->p->k->filters(&j->f, i / j->p->z.runs, i % j->p->z.runs, j->u);
}

static void transform(const rsi_exec *x, const rsi_conv_call *k, const plan *p, const float *w, uint16_t *u) {
  filters_job j = {p, rsi_winograd_weights(k, w), u};
  rsi_parallel(x, p->z.s.groups_out * p->z.runs, 4e3, filters_of_groups, &j);
}

static size_t plain_bytes(const plan *p) { return (size_t)(p->z.f.in * p->z.f.out * 9) * sizeof(float); }

size_t rsi_winograd_split_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout) {
  const plan p = make_plan(x, k);
  *layout = (uint64_t)(p.z.s.groups_in << 24 | p.z.s.groups_out);
  return p.u + plain_bytes(&p);
}

void rsi_winograd_split_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch) {
  (void)scratch;
  const plan p = make_plan(x, k);
  transform(x, k, &p, weight, packed);
  memcpy((char *)packed + p.u, weight, plain_bytes(&p));
}

/* ---- a run --------------------------------------------------------------------------------------------------------------- */

static void part_task(void *arg, int64_t task, void *scratch) {
  const plan *const p = arg;
  const int64_t first = task / p->ranges * p->z.part, group = task % p->ranges * p->groups;
  const rsi_winograd_task t = {first, smaller(first + p->z.part, p->tiles), group, smaller(p->groups, p->z.s.groups_out - group), scratch,
                               (float *)(void *)((char *)scratch + p->v)};
  p->k->task(&p->z, &t);
}

/* A second thread does not pay for a few microseconds. */
static int64_t lanes_of(const rsi_exec *x, const plan *p) {
  const double work = (double)(p->tiles * p->z.runs * p->z.s.groups_out) * (72 * 32 * 16 / 200.0);   /* ns */
  return work < 10e3 ? 1 : rsi_lane_count(rsi_pool_threads(x->pool), p->parts * p->ranges);
}

size_t rsi_winograd_split_bytes(const rsi_exec *x, const rsi_conv_call *k) {
  const plan p = make_plan(x, k);
  return p.bias + (k->packed ? 0 : p.u) + (size_t)lanes_of(x, &p) * p.lane;
}

void rsi_winograd_split_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch) {
  plan p = make_plan(x, k);
  char *at = (char *)scratch + p.bias;
  rsi_winograd_ends(k, data, &p.z.s, scratch);
  p.z.u = data->w;
  p.z.f.w = (const float *)(const void *)((const char *)data->w + (k->packed ? p.u : 0));
  if (!k->packed) {
    transform(x, k, &p, data->w, (uint16_t *)(void *)at);
    p.z.u = (const uint16_t *)(const void *)at;
    at += p.u;
  }
  rsi_lanes_run(x->pool, lanes_of(x, &p), p.parts * p.ranges, part_task, &p, at, p.lane);
}
