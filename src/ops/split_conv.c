/*
** Which convolutions kernels/split_conv.c computes, and how they are cut. A task is some rows of the image, or some images, and some
** blocks of the result: its part of the image, split, is what the second-level cache holds for it, and the weights pass through. Tasks
** depend on the shape only, and so does the result.
*/
#include "ops/split_conv.h"
#include "base/lanes.h"
#include <math.h>
#include <string.h>

enum {
  CACHE_BYTES  = 640 * 1024,     /* of a task's image, half */
  IMAGES_BYTES = 1200 * 1024,    /* the same by image */
  WHOLE_BYTES  = 1200 * 1024,    /* of a task's split image, if all of it is needed at once */
  KEPT_BYTES   = 400 * 1024,     /* the same, where it need not be */
  SLICE_BYTES  = 320 * 1024,     /* of a chunk of it */
  SUM_BYTES    = 512 * 1024,     /* of sums that are kept from chunk to chunk */
  WEIGHT_BYTES = 1024 * 1024,    /* of weights that stay in the cache beside them */
  TASKS        = 8,              /* wanted, half */
  TASK_NS      = 15000,          /* the least of a band, half */
  CHUNK        = 8,              /* runs of channels in a chunk, at most */
  PARTS        = 3, TILE = 512, POSITION = 64
};

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

typedef struct plan {
  rsi_split_conv s;
  int64_t rows, row_tasks;       /* rows of the grids (or images) of a task; tasks along them */
  int64_t groups, group_tasks;   /* blocks of the result of a task */
  int64_t taps;                  /* of a filter */
  size_t  weights, each;         /* bytes: split weights; scratch of a lane */
  double  products;              /* of a tile, a block of the result and a run */
  double  work;                  /* nanoseconds of one thread, without packing the weights */
} plan;

/* ---- geometry ---------------------------------------------------------------------------------------------------------- */

static void add_tap(rsi_split_conv *s, rsi_split_phase *f, int64_t y, int64_t x, int64_t index) {
  s->tap[f->first + f->taps++] = (rsi_split_tap){y, x, index};
}

static void forward_taps(rsi_split_conv *s, const rsi_conv_shape *c) {
  s->phases = 1;
  s->phase[0] = (rsi_split_phase){.down = c->oh, .across = c->ow};
  for (int64_t y = 0; y < c->kh; y++)
    for (int64_t x = 0; x < c->kw; x++) add_tap(s, &s->phase[0], y * c->dh - c->ph, x * c->dw - c->pw, y * c->kw + x);
}

/* Pixel p of x meets pixel (p + padding - k * dilation) / stride of y by tap k, when that is whole. */
static void data_taps(rsi_split_conv *s, const rsi_conv_shape *c) {
  int64_t first = 0;
  for (int64_t py = 0; py < c->sh; py++)
    for (int64_t px = 0; px < c->sw; px++) {
      rsi_split_phase *const f = &s->phase[s->phases++];
      *f = (rsi_split_phase){.first = first, .down = divide_up(c->h - py, c->sh), .across = divide_up(c->w - px, c->sw), .y = py, .x = px};
      for (int64_t ky = 0; ky < c->kh; ky++)
        for (int64_t kx = 0; kx < c->kw; kx++) {
          const int64_t y = py + c->ph - ky * c->dh, x = px + c->pw - kx * c->dw;
          if (y % c->sh == 0 && x % c->sw == 0) add_tap(s, f, y / c->sh, x / c->sw, ky * c->kw + kx);
        }
      first += f->taps;
    }
}

static int64_t most_taps(const rsi_split_conv *s) {
  int64_t most = 1;
  for (int64_t k = 0; k < s->phases; k++) most = larger(most, s->phase[k].taps);
  return most;
}

/* Positions by row: how far taps reach, zeros, images in steps. */
static void lay_rows(rsi_split_conv *s, int64_t taps) {
  int64_t far_x = 0, lead = INT64_MAX, trail = INT64_MAX;
  s->low_y = s->low_x = 0;
  for (int64_t t = 0; t < taps; t++) {
    if (t == 0 || s->tap[t].y < s->low_y) s->low_y = s->tap[t].y;
    if (t == 0 || s->tap[t].x < s->low_x) s->low_x = s->tap[t].x;
  }
  for (int64_t q = 0; q < 4; q++) s->sub[q] = -1;
  s->subs = s->far_y = 0;
  for (int64_t t = 0; t < taps; t++) {
    const int64_t y = s->tap[t].y - s->low_y, x = s->tap[t].x - s->low_x;
    int64_t *const sub = &s->sub[y % s->step_h * s->step_w + x % s->step_w];
    if (*sub < 0) *sub = s->subs++;
    s->far_y = larger(s->far_y, y / s->step_h);
    far_x = larger(far_x, x / s->step_w);
  }
  s->columns = s->across + far_x;
  for (int64_t q = 0; q < s->step_w; q++) {
    const int64_t base = q + s->low_x, begin = base < 0 ? divide_up(-base, s->step_w) : 0;
    const int64_t end = s->w > base ? divide_up(s->w - base, s->step_w) : 0;
    lead = smaller(lead, begin);
    trail = smaller(trail, larger(s->columns - end, 0));
  }
  s->pitch = s->columns - smaller(smaller(lead, trail), s->columns - 1);
}

static int64_t tiles_of_rows(const rsi_split_conv *s, int64_t rows, int64_t across) {
  if (s->flat) return divide_up(rows, 16);
  return smaller(rows * divide_up(across, 16), divide_up((rows - 1) * s->pitch + across, 16));
}

/* Tiles times taps of one image of the grid, by row and, over 16 images, by image. */
static double products_by_row(const rsi_split_conv *s) {
  double sum = 0;
  for (int64_t k = 0; k < s->phases; k++)
    sum += (double)(tiles_of_rows(s, s->phase[k].down, s->phase[k].across) * s->phase[k].taps);
  return sum;
}

static double products_by_image(const rsi_split_conv *s) {
  double sum = 0;
  for (int64_t k = 0; k < s->phases; k++) {
    const rsi_split_phase *const f = &s->phase[k];
    for (int64_t t = f->first; t < f->first + f->taps; t++) {
      int64_t down = 0, across = 0;
      for (int64_t i = 0; i < f->down; i++) down += i * s->step_h + s->tap[t].y >= 0 && i * s->step_h + s->tap[t].y < s->h;
      for (int64_t j = 0; j < f->across; j++) across += j * s->step_w + s->tap[t].x >= 0 && j * s->step_w + s->tap[t].x < s->w;
      sum += (double)(down * across);
    }
  }
  return sum;
}

/* Tasks of so many rows of the grids (or, by image, images): all or part of one image, or several images; flat, any number. */
static void set_rows(plan *p, int64_t rows) {
  rsi_split_conv *const s = &p->s;
  const int64_t all = s->n * s->down, pieces = larger(rows / s->down, 1);
  p->rows = rows;
  if (s->by_image) {
    const int64_t sets = divide_up(rows, RSI_SPLIT_IMAGES);
    p->row_tasks = divide_up(s->n, rows);
    s->positions = sets * s->h * s->w * RSI_SPLIT_IMAGES;
    s->tiles = sets * s->down * s->across, s->strips = rows;
    return;
  }
  s->each = s->flat ? rows : (rows + pieces * s->far_y) * s->pitch + s->columns - s->pitch;
  p->row_tasks = s->flat || rows >= s->down ? divide_up(all, rows) : s->n * divide_up(s->down, rows);
  s->positions = s->each * larger(s->subs, 1) + 16;
  s->tiles = s->flat ? rows / 16 + 2 : smaller(rows * divide_up(s->across, 16), divide_up(s->each, 16));      /* they begin 16 apart */
  s->strips = s->flat ? rows / s->down + 2 : (3 * (s->each / s->pitch + 1) + pieces) * larger(s->subs, 1);
}

static void set_groups(plan *p, int64_t parts) {
  p->groups = 2 * divide_up(divide_up(p->s.groups_out, 2), parts);
  p->group_tasks = divide_up(p->s.groups_out, p->groups);
}

/* Nanoseconds, measured: a product of tiles (of three parts or of one), a pixel of a run that is split or copied. */
static double product_ns(const rsi_split_conv *s) { return s->half ? 7 : 42; }
static double split_ns(const rsi_split_conv *s) { return s->half ? s->in_place ? 0 : 2.5 : 6; }

/* ---- cutting, half ----------------------------------------------------------------------------------------------------- */

/* They do not stay in the cache from task to task: then a task is as large as possible. */
static bool many_weights(const plan *p) { return p->weights > WEIGHT_BYTES; }

/*
** Rows so that a task's image stays in the cache. Packing shows beside products in bf16: rather more bands than each of them packed for
** several tasks.
*/
static int64_t rows_of_half(const plan *p) {
  const rsi_split_conv *const s = &p->s;
  const int64_t all = s->n * s->down, image = s->down + s->far_y;
  int64_t rows = larger(CACHE_BYTES / (s->runs * POSITION * s->pitch * larger(s->subs, 1)), 1);
  if (s->by_image) {
    const int64_t sets = CACHE_BYTES / (s->h * s->w * RSI_SPLIT_IMAGES * s->runs * POSITION);
    return RSI_SPLIT_IMAGES * (many_weights(p) ? larger(smaller(sets, divide_up(s->n, RSI_SPLIT_IMAGES)), 1) : 1);
  }
  if (s->flat) {
    rows = larger(rows / 32 * 32, 16);
    rows = smaller(rows, larger(divide_up(divide_up(all, TASKS), 32) * 32, 64));
    return smaller(rows, all);
  }
  if (!many_weights(p)) {
    const int64_t tasks = larger(smaller((int64_t)(7 * p->products) / TASK_NS, TASKS), 1);
    rows = smaller(rows, divide_up(all, tasks) + s->far_y);
  }
  if (rows >= image) return larger(smaller(rows / image, many_weights(p) ? s->n : s->n / TASKS), 1) * s->down;
  rows = larger(rows - s->far_y, smaller(s->down, 2));
  return divide_up(s->down, divide_up(s->down, rows));
}

/*
** Few tasks along the rows: each is cut along the blocks of the result, too, but not so far that packing the image again takes more than a
** quarter of the products.
*/
static void cut_half(plan *p) {
  const rsi_split_conv *const s = &p->s;
  set_rows(p, rows_of_half(p));
  const double again = split_ns(s) * (double)(s->n * s->h * s->w * s->runs), worth = again > 0 ? 0.25 * product_ns(s) * p->products / again : TASKS;
  int64_t parts = smaller(divide_up(TASKS / 2, p->row_tasks), divide_up(s->groups_out, 2));
  if ((double)parts > 1 + worth) parts = 1 + (int64_t)worth;
  set_groups(p, parts);
}

/* ---- cutting, three parts ---------------------------------------------------------------------------------------------- */

enum { LANES = 2, TASK_COST = 1500 };       /* what is weighed are the times of two threads; nanoseconds of a task, whatever it does */

/*
** Nanoseconds from the first task to the last. Cut along rows, each task reads all weights; cut along blocks of the result, it splits its part
** of the image again. Weights are asked for beside products, so the slower of the two counts most. A tile that is left alone takes more than half
** of what a pair does.
*/
static double time_of(const plan *p) {
  const rsi_split_conv *const s = &p->s;
  const double all = (double)(s->by_image ? s->n : s->n * s->down), share = (double)p->rows / all;      /* of all rows */
  const double parts = (double)p->group_tasks;
  int64_t tiles = s->tiles;
  if (s->flat) tiles = divide_up(p->rows, 16);
  else if (!s->by_image) tiles = smaller(tiles, larger(p->rows / s->down, 1) * tiles_of_rows(s, smaller(p->rows, s->down), s->across));
  const double odd = tiles % 2 != 0 ? 0.3 / (double)tiles : 0;
  const double products = product_ns(s) * p->products * (1 + odd) * (share < 1 ? share : 1) / parts;
  const double byte = p->weights <= WEIGHT_BYTES ? 0.015 : p->row_tasks > 1 ? 0.06 : 0.08;       /* 0.08: no two threads read the same */
  const double weights = byte * (double)p->weights / parts;
  const double split = split_ns(s) * (double)(s->positions * s->runs);
  const double task = (products > weights ? products + 0.3 * weights : weights + 0.3 * products) + split + TASK_COST;
  const double few = p->row_tasks * p->group_tasks < 2 * LANES ? 0.04 : 0;      /* a thread that was interrupted can give nothing away */
  return ((double)divide_up(p->row_tasks * p->group_tasks, LANES) + few) * task;
}

/*
** Whether the cache holds what a task uses again and again. That is its image, if that is small or there are several phases; else it is
** gone through in slices, and what is kept are the sums.
*/
static bool settle(plan *p) {
  rsi_split_conv *const s = &p->s;
  const int64_t run = s->positions * PARTS * POSITION;
  const bool chunks = s->runs > s->chunk || most_taps(s) > RSI_SPLIT_CHAIN;
  s->deep = s->phases == 1 && run * s->runs > KEPT_BYTES;
  s->kept = s->deep ? smaller(s->chunk, s->runs) : s->runs;
  s->beside = s->deep || s->phases > 1 || chunks || s->runs < 2 ? 0 : divide_up(s->runs, 4);
  s->acc_groups = !chunks && !s->beside ? 0 : s->deep ? p->groups : 2;
  return run * s->kept <= (s->deep ? SLICE_BYTES : WHOLE_BYTES) && s->tiles * s->acc_groups * 1024 <= SUM_BYTES;
}

/* Rows of a task when an image, or flat all, is cut into so many parts. */
static int64_t rows_in(const rsi_split_conv *s, int64_t parts) {
  if (s->by_image) return RSI_SPLIT_IMAGES;
  if (!s->flat) return divide_up(s->down, parts);
  return smaller(divide_up(divide_up(s->n * s->down, parts), 16) * 16, s->n * s->down);
}

/* Of a few ways to cut rows and blocks of the result the fastest; the smallest task where nothing fits. */
static void cut_split(plan *p) {
  const rsi_split_conv *const s = &p->s;
  const int64_t pairs = divide_up(s->groups_out, 2), most = s->flat ? divide_up(s->n * s->down, 32) : s->down;
  int64_t best_rows = 0, best_parts = 1;
  double best = HUGE_VAL;
  int64_t images = s->by_image || s->flat ? 1 : s->n;          /* of a task; then parts of one, or of all */
  for (int64_t cuts = 1; cuts <= most;) {
    const int64_t rows = images > 1 ? images * s->down : rows_in(s, cuts);
    set_rows(p, rows);
    for (int64_t parts = 1; parts <= smaller(pairs, 16); parts *= 2) {
      set_groups(p, parts);
      const double time = time_of(p);
      if (settle(p) && time < best) best = time, best_rows = rows, best_parts = parts;
    }
    if (s->by_image) break;
    if (images > 1) images = divide_up(images, 2);
    else cuts += 1 + cuts / 4;
  }
  if (best_rows == 0) best_rows = rows_in(s, most), best_parts = smaller(pairs, 16);
  set_rows(p, best_rows);
  set_groups(p, best_parts);
  settle(p);
}

/* ---- the plan ---------------------------------------------------------------------------------------------------------- */

/* And a pixel of a block that is finished, a byte of weights that do not stay in the cache. */
static double work_of(const plan *p) {
  const rsi_split_conv *const s = &p->s;
  const double pixels = s->half ? (double)(s->n * s->h * s->w) : (double)(s->positions * p->row_tasks);
  const double split = pixels * (double)(s->runs * p->group_tasks), finished = (double)(s->n * s->oh * s->ow * s->groups_out);
  const double far = p->weights > WEIGHT_BYTES ? (double)p->weights * (s->half ? (double)smaller(p->row_tasks, 4) : 1) : 0;
  return product_ns(s) * p->products + split_ns(s) * split + (s->half ? 1 : 5) * finished + 0.03 * far;
}

static plan make_plan(const rsi_exec *x, const rsi_conv_call *k) {
  const rsi_conv_shape *const c = &k->s;
  const bool data = k->kind == RSI_CONV_DATA, half = k->x_dtype == RS_BF16;
  plan p = {.taps = c->kh * c->kw};
  rsi_split_conv *const s = &p.s;
  *s = (rsi_split_conv){.n = c->n, .h = data ? c->oh : c->h, .w = data ? c->ow : c->w, .oh = data ? c->h : c->oh,
                        .ow = data ? c->w : c->ow, .in = data ? c->o : c->c, .out = data ? c->c : c->o, .step_h = 1, .step_w = 1,
                        .over_h = 1, .over_w = 1, .skips = data, .low = -INFINITY, .high = INFINITY,
                        .half = half, .parts = half ? 1 : PARTS};
  s->groups_in = divide_up(s->in, 16), s->groups_out = divide_up(s->out, 16), s->runs = divide_up(s->groups_in, 2);
  s->weight_in = data ? c->c * p.taps : p.taps, s->weight_out = data ? p.taps : c->c * p.taps;
  if (data) s->over_h = c->sh, s->over_w = c->sw, data_taps(s, c);
  else s->step_h = c->sh, s->step_w = c->sw, forward_taps(s, c);
  int64_t taps = 0;
  for (int64_t i = 0; i < s->phases; i++) {
    rsi_split_phase *const f = &s->phase[i];
    f->b = taps * s->groups_out * s->runs * s->parts * TILE;
    taps += f->taps;
    s->down = larger(s->down, f->down), s->across = larger(s->across, f->across);
  }
  p.weights = (size_t)(taps * s->groups_out * s->runs * s->parts * TILE) * sizeof(uint16_t);
  s->flat = p.taps == 1 && c->sh == 1 && c->sw == 1 && c->ph == 0 && c->pw == 0;
  if (s->flat && half) s->h *= s->n, s->n = 1;                  /* images lie one after the other, whole pixels of all channels */
  s->in_place = s->flat && half && s->in % 32 == 0 && s->h * s->w >= 16;
  if (s->flat) s->h *= s->w, s->oh = s->down = s->phase[0].down = s->h, s->w = s->ow = s->across = s->phase[0].across = 1;
  lay_rows(s, taps);
  const double by_row = products_by_row(s) * (double)s->n;
  const double by_image = products_by_image(s) * (double)divide_up(s->n, RSI_SPLIT_IMAGES);
  const int64_t images = s->h * s->w * RSI_SPLIT_IMAGES * s->parts * POSITION;       /* of a run */
  s->chunk = larger(smaller(RSI_SPLIT_CHAIN / most_taps(s), CHUNK), 1);
  s->kept = s->runs;
  const bool fits = half ? images * s->runs <= IMAGES_BYTES : images * s->chunk <= SLICE_BYTES && s->down * s->across <= SUM_BYTES / 2048;
  s->by_image = !s->flat && fits && by_image < by_row * (half ? 0.9 : 1);
  s->streams = p.weights > WEIGHT_BYTES;
  p.products = (s->by_image ? by_image : by_row) * (double)(s->runs * s->groups_out);
  if (s->by_image) s->flat = false;
  if (half) cut_half(&p);
  else cut_split(&p);
  s->fresh = half && !k->packed && s->phases == 1 && p.row_tasks == 1;
  p.work = work_of(&p);
  p.each = rsi_lane_round(x->k->split_conv->scratch(s));
  const size_t packing = (size_t)(512 * p.taps) * sizeof(float);
  if (p.each < packing) p.each = packing;
  return p;
}

/* ---- choice ------------------------------------------------------------------------------------------------------------ */

/* Winograd's form, where it is accepted, goes first; oneDNN's direct forms do about 140 products and sums a nanosecond. In bf16 ours
   was faster for all shapes measured, except where a tile is mostly empty. */
static bool pays(const rsi_conv_call *k, const plan *p) {
  const rsi_conv_shape *const s = &k->s;
  const double work = 2.0 * (double)(s->n * s->oh * s->ow * s->kh * s->kw) * (double)(s->c * s->o);
  if (p->s.half) return work > 1e6 && s->c >= 16 && s->o >= 16;
  return work > 1e6 && p->work < work / 140;
}

bool rsi_split_conv_accepts(const rsi_exec *x, const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  if (x->exact || x->k->split_conv->task == NULL || !rsi_cpu_split()) return false;
  const bool f32 = k->x_dtype == RS_F32 && k->y_dtype == RS_F32 && k->x_block == 16 && k->y_block == 16;
  const bool half = k->x_dtype == RS_BF16 && k->y_dtype == RS_BF16 && k->x_block == s->c && k->y_block == s->o;
  if (k->kind > RSI_CONV_DATA || !(f32 || half)) return false;
  if (s->groups != 1 || s->n < 1 || s->c < 1 || s->o < 1 || s->h < 1 || s->w < 1 || s->oh < 1 || s->ow < 1) return false;
  if (s->sh > 2 || s->sw > 2 || s->kh * s->kw > RSI_SPLIT_TAPS || s->kh * s->kw < 1) return false;
  const plan p = make_plan(x, k);
  const int64_t most = INT32_MAX / 2;
  if (p.s.runs * p.s.parts * p.s.positions * 32 > most || (int64_t)(p.weights / 2) > most * p.s.groups_out) return false;
  if (p.s.n * larger(p.s.groups_in * p.s.h * p.s.w, p.s.groups_out * p.s.oh * p.s.ow) > most) return false;
  return pays(k, &p);
}

/* ---- weights ------------------------------------------------------------------------------------------------------------ */

typedef struct pack_job { const rsi_k_split_conv *k; const plan *p; uint16_t *b; } pack_job;

static void pack_task(void *arg, int64_t task, void *scratch) {
  const pack_job *const j = arg;
  const rsi_split_conv *const s = &j->p->s;
  j->k->pack(s, task / s->runs, task % s->runs, j->p->taps, j->b, scratch);
}

static int64_t lanes_of(const rsi_exec *x, double work, int64_t tasks) {
  return work < 10e3 ? 1 : rsi_lane_count(rsi_pool_threads(x->pool), tasks);
}

static void pack_weights(const rsi_exec *x, const plan *p, uint16_t *b, void *scratch) {
  pack_job j = {x->k->split_conv, p, b};
  const int64_t tasks = p->s.groups_out * p->s.runs;
  rsi_lanes_run(x->pool, lanes_of(x, (double)(tasks * p->taps) * 200, tasks), tasks, pack_task, &j, scratch, p->each);
}

static int64_t most_lanes(const rsi_exec *x) { return rsi_lane_count(rsi_pool_threads(x->pool), RSI_MOST_LANES); }

/* Of the weights that a pack ends with, for sums that are computed again. */
static size_t plain_bytes(const plan *p) { return p->s.half ? 0 : (size_t)(p->s.in * p->s.out * p->taps) * sizeof(float); }

size_t rsi_split_conv_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout) {
  const plan p = make_plan(x, k);
  *layout = (uint64_t)((int64_t)p.s.half << 62 | p.s.runs << 40 | p.s.groups_out << 16 | p.taps);
  return rsi_lane_round(p.weights) + plain_bytes(&p);
}

size_t rsi_split_conv_pack_scratch(const rsi_exec *x, const rsi_conv_call *k) {
  const plan p = make_plan(x, k);
  return (size_t)most_lanes(x) * p.each;
}

void rsi_split_conv_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch) {
  plan p = make_plan(x, k);
  p.s.weight = weight;
  pack_weights(x, &p, packed, scratch);
  memcpy((char *)packed + rsi_lane_round(p.weights), weight, plain_bytes(&p));
}

/* ---- a run --------------------------------------------------------------------------------------------------------------- */

typedef struct conv_job { const rsi_k_split_conv *k; const plan *p; } conv_job;

static void conv_task(void *arg, int64_t task, void *scratch) {
  const conv_job *const j = arg;
  const plan *const p = j->p;
  const rsi_split_conv *const s = &p->s;
  const int64_t part = task / p->group_tasks, group = task % p->group_tasks * p->groups;
  int64_t first = part * p->rows, last = smaller(first + p->rows, s->by_image ? s->n : s->n * s->down);
  if (!s->by_image && !s->flat && p->rows < s->down) {          /* a band of one image */
    const int64_t bands = divide_up(s->down, p->rows), image = part / bands * s->down;
    first = image + part % bands * p->rows, last = smaller(first + p->rows, image + s->down);
  }
  j->k->task(s, first, last - first, group, smaller(p->groups, s->groups_out - group), scratch);
}

static size_t bias_bytes(const plan *p) { return rsi_lane_round((size_t)(p->s.groups_out * 16) * sizeof(float)); }

size_t rsi_split_conv_bytes(const rsi_exec *x, const rsi_conv_call *k) {
  const plan p = make_plan(x, k);
  return bias_bytes(&p) + (k->packed || p.s.fresh ? 0 : rsi_lane_round(p.weights)) + (size_t)most_lanes(x) * p.each;
}

void rsi_split_conv_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch) {
  plan p = make_plan(x, k);
  char *at = scratch;
  p.s.x = k->kind == RSI_CONV_DATA ? data->y : data->x, p.s.y = k->kind == RSI_CONV_DATA ? data->x : data->y;
  p.s.residual = data->residual;
  if (data->bias != NULL || p.s.half) {
    memset(at, 0, bias_bytes(&p));
    if (data->bias != NULL) memcpy(at, data->bias, (size_t)p.s.out * sizeof(float));
    p.s.bias = (const float *)(void *)at;
  }
  at += bias_bytes(&p);
  if (k->act != RSI_CONV_NO_ACT) p.s.low = 0;
  if (k->act == RSI_CONV_RELU6) p.s.high = 6;
  uint16_t *const b = k->packed ? data->w : (uint16_t *)(void *)at;
  if (k->packed) p.s.weight = (const float *)(const void *)((const char *)data->w + rsi_lane_round(p.weights));
  else p.s.weight = data->w;
  if (!k->packed && !p.s.fresh) {
    at += rsi_lane_round(p.weights);
    pack_weights(x, &p, b, at);
  }
  p.s.b = b;
  conv_job j = {x->k->split_conv, &p};
  const int64_t tasks = p.row_tasks * p.group_tasks, lanes = lanes_of(x, p.work, tasks);
  rsi_lanes_run(x->pool, lanes, tasks, conv_task, &j, at, p.each);
}
