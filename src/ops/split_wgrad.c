/*
** Which weight gradients kernels/split_wgrad.c computes, of f32 by split products and of bf16, and how they are cut. A task is some
** blocks of filters, some blocks of channels and some rows of pixels, so that what it splits stays in the second-level cache. When tasks
** differ in their rows, each has sums of its own, which are added in order at the end. Bands and tasks depend on the shape only, and so
** does the result.
*/
#include "ops/split_wgrad.h"
#include "ops/split_product.h"
#include "base/lanes.h"
#include <math.h>

enum {
  MOST_FILTERS = 16,             /* blocks of a task */
  BANDS = 8,                     /* members of an image, as a multiple of what fills a group */
  MOST_TASKS = 8                 /* that pixels are cut into smaller slices for */
};

/*
** Cycles, measured: products of four pairs of tiles, and in 1x1 convolutions; sums of a chain of products; splitting a pixel of 32 members;
** a sum brought to the result; and those of a slice that is worth it. What a task may have: bytes of split pixels, if possible; blocks of
** channels.
*/
typedef struct prices { double run, point, chain, split_x, split_y, sum, task; int64_t bytes, blocks; } prices;
static const prices SPLIT = {470, 470, 350, 600, 900, 2, 5e6, 1536 * 1024, 8}, HALF = {85, 150, 300, 350, 400, 2, 2e6, 1024 * 1024, 16};
/* Of a multiplication and addition by oneDNN, in a 1x1 convolution, more with few channels; and of a weight that Winograd brings back. */
static const double WINOGRAD = 0.0182, DIRECT = 0.045, POINT = 0.042, FEW = 0.15, WEIGHT = 3;
/* Of bf16: the usual convolution, more with few channels and in small images; a 1x1 one; how much longer with a stride; a weight; a call. */
static const double HALF_DIRECT = 0.008, HALF_FEW = 0.14, HALF_SMALL = 4, HALF_POINT = 0.008, HALF_POINT_FEW = 0.7, HALF_APART = 1.5,
                    HALF_WEIGHT = 1, HALF_CALL = 2e4;

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

typedef struct plan {
  rsi_split_wgrad s;
  int64_t o_each, i_each;        /* blocks of a task */
  int64_t o_tasks, i_tasks, slices;
  double  cycles;
} plan;

/* Rows (columns) of dy at which taps are inside an image, summed over the taps. */
static int64_t pixels_inside(int64_t count, int64_t stride, int64_t taps, int64_t dilation, int64_t before, int64_t size) {
  int64_t sum = 0;
  for (int64_t t = 0; t < taps; t++) {
    const int64_t start = before - t * dilation, end = size - 1 + start;
    const int64_t lo = start <= 0 ? 0 : divide_up(start, stride), hi = end < 0 ? 0 : least(end / stride + 1, count);
    sum += most(hi - lo, 0);
  }
  return sum;
}

static int64_t common(int64_t a, int64_t b) { return b == 0 ? a : common(b, a % b); }

static int64_t even_part(int64_t blocks, int64_t parts) {
  const int64_t each = divide_up(blocks, parts);
  return parts > 1 ? each + each % 2 : each;
}

/* The plan with these bands and at most so many blocks of channels in a task; its cycles tell how good it is. */
static plan plan_of(const rsi_conv_shape *s, int64_t parts, int64_t bands_h, int64_t bands_w, int64_t blocks) {
  const prices *const cost = parts == 1 ? &HALF : &SPLIT;
  plan p = {.s = {.parts = parts, .n = s->n, .in = divide_up(s->c, RSI_SIDE), .out = divide_up(s->o, RSI_SIDE), .h = s->h, .w = s->w,
                  .oh = s->oh, .ow = s->ow, .kh = s->kh, .kw = s->kw, .before_h = s->ph, .before_w = s->pw, .bands_h = bands_h,
                  .bands_w = bands_w}};
  rsi_split_wgrad *const g = &p.s;
  g->rows = divide_up(s->oh, bands_h), g->columns = divide_up(s->ow, bands_w);
  g->groups = divide_up(s->n * bands_h * bands_w, RSI_DEEP);
  g->unit_h = s->kh == 1 ? s->sh : common(s->sh, s->dh), g->unit_w = s->kw == 1 ? s->sw : common(s->sw, s->dw);
  g->step_h = s->sh / g->unit_h, g->step_w = s->sw / g->unit_w;
  g->tap_h = s->kh == 1 ? 0 : s->dh / g->unit_h, g->tap_w = s->kw == 1 ? 0 : s->dw / g->unit_w;
  g->win_h = (g->rows - 1) * g->step_h + (s->kh - 1) * g->tap_h + 1, g->win_w = (g->columns - 1) * g->step_w + (s->kw - 1) * g->tap_w + 1;
  p.o_tasks = divide_up(g->out, MOST_FILTERS), p.i_tasks = divide_up(g->in, blocks);
  p.o_each = even_part(g->out, p.o_tasks), p.i_each = even_part(g->in, p.i_tasks);
  p.o_tasks = divide_up(g->out, p.o_each), p.i_tasks = divide_up(g->in, p.i_each);

  /* A chunk row takes a_row and step_h b_row, twice when there is a next chunk. */
  const int64_t pixel = rsi_wgrad_pixel(parts) * (int64_t)sizeof(uint16_t), taps_h = (s->kh - 1) * g->tap_h + 1;
  const int64_t a_row = 4 * g->columns * pixel, b_row = p.i_each * g->win_w * pixel;
  g->chunk = g->rows;
  if (a_row * g->rows + b_row * g->win_h > cost->bytes)
    g->chunk = most(1, least(g->rows, (cost->bytes - (taps_h - g->step_h) * b_row) / (a_row + 2 * g->step_h * b_row)));
  g->chunks = divide_up(g->rows, g->chunk), g->chunk = divide_up(g->rows, g->chunks);
  g->ring = (g->chunk - 1) * g->step_h + taps_h + (g->chunks > 1 ? g->chunk * g->step_h : 0);
  const int64_t bytes = rsi_wgrad_split_bytes(g, p.i_each);

  const double taps = (double)(s->kh * s->kw), pairs = (double)(rsi_wgrad_pairs(g->out) * rsi_wgrad_pairs(g->in));
  const double down = bands_h > 1 ? (double)(g->rows * s->kh) : (double)pixels_inside(s->oh, s->sh, s->kh, s->dh, s->ph, s->h);
  const bool sweeps = parts == 1 && s->kw > 1, wide = bands_w > 1 || sweeps;                /* as in the kernel */
  const double across = wide ? (double)(g->columns * s->kw) : (double)pixels_inside(s->ow, s->sw, s->kw, s->dw, s->pw, s->w);
  const int64_t rows_x = bands_h > 1 ? g->win_h : least(g->win_h, divide_up(s->h, g->unit_h));
  const int64_t columns_x = wide ? g->win_w : least(g->win_w, divide_up(s->w, g->unit_w));
  const double run = s->kw == 1 ? cost->point : sweeps && g->in % 2 == 1 ? cost->run * (double)g->in / (double)(g->in + 1) : cost->run;
  p.cycles = (double)g->groups * (down * across * pairs * run + (double)g->chunks * taps * pairs * cost->chain +
                                  (double)(rows_x * (columns_x + 4) * g->in * p.o_tasks) * cost->split_x +
                                  (double)(g->rows * g->columns * g->out * p.i_tasks) * cost->split_y);
  const double weights = (double)(g->in * g->out * RSI_SIDE * RSI_SIDE) * taps;
  p.slices = 1;
  while (p.slices < MOST_TASKS && p.o_tasks * p.i_tasks * p.slices < MOST_TASKS && 2 * p.slices <= g->groups * g->chunks &&
         p.cycles >= 2 * cost->task * (double)(p.o_tasks * p.i_tasks * p.slices))
    p.slices *= 2;
  p.cycles += weights * cost->sum * (double)(p.slices > 1 ? p.slices + 1 : 1);
  /* What does not fit has to come from further away. */
  if (bytes > cost->bytes) p.cycles *= (double)bytes / (double)cost->bytes;
  return p;
}

static plan make_plan(const rsi_conv_call *k) {
  rsi_conv_shape s = k->s;
  if (s.kh == 1 && s.kw == 1 && s.sh == 1 && s.sw == 1 && s.ph == 0 && s.pw == 0) s.w *= s.h, s.ow *= s.oh, s.h = s.oh = 1;
  static const uint8_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64};
  const int n = (int)(sizeof counts / sizeof *counts);
  const int64_t most_bands = BANDS * divide_up(RSI_DEEP, s.n);
  const int64_t parts = k->x_dtype == RS_BF16 ? 1 : RSI_PARTS;
  const prices *const cost = parts == 1 ? &HALF : &SPLIT;
  plan best = {.cycles = (double)INFINITY};
  for (int i = 0; i < n && counts[i] <= s.oh; i++)
    for (int j = 0; j < n && counts[j] <= s.ow && counts[i] * counts[j] <= most_bands; j++)
      for (int64_t blocks = cost->blocks; blocks >= 4; blocks /= 2) {
        const plan p = plan_of(&s, parts, counts[i], counts[j], blocks);
        if (p.cycles < best.cycles) best = p;
        if (p.s.in <= blocks / 2) break;
      }
  return best;
}

/* Cycles of oneDNN's forms, measured: Winograd, which it takes for the usual 3x3 convolution when there are tiles enough, and direct sums. */
static double others(const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const double weights = (double)(s->c * s->o * s->kh * s->kw), work = weights * (double)(s->n * s->oh * s->ow);
  const bool winograd = s->kh == 3 && s->kw == 3 && s->sh == 1 && s->sw == 1 && s->dh == 1 && s->dw == 1 && s->ph <= 1 && s->pw <= 1 &&
                        s->c >= 32 && s->o >= 32 && s->c % 16 == 0 && s->o % 16 == 0 && s->n * divide_up(s->oh, 4) * divide_up(s->ow, 4) >= 32;
  const double few = 1 / (double)s->c + 1 / (double)s->o;
  if (k->x_dtype == RS_BF16) {
    if (s->kh * s->kw == 1) return work * (HALF_POINT + HALF_POINT_FEW * few) + HALF_CALL;
    const double apart = s->sh * s->sw * s->dh * s->dw > 1 ? HALF_APART : 1;
    return work * (HALF_DIRECT + HALF_FEW * few) * (1 + HALF_SMALL / (double)s->ow) * apart + weights * HALF_WEIGHT + HALF_CALL;
  }
  if (s->kh * s->kw == 1) return work * POINT;
  return work * ((winograd ? WINOGRAD : DIRECT) + FEW * few) + (winograd ? weights * WEIGHT : 0);
}

bool rsi_split_wgrad_accepts(const rsi_exec *x, const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  if (!rsi_splits(x) || x->k->split_wgrad->sum == NULL || k->kind != RSI_CONV_WEIGHT) return false;
  const bool split = k->x_dtype == RS_F32 && k->y_dtype == RS_F32 && k->x_block == RSI_SIDE && k->y_block == RSI_SIDE;
  const bool half = k->x_dtype == RS_BF16 && k->y_dtype == RS_BF16 && k->x_block == s->c && k->y_block == s->o;
  if (!(split || half) || s->groups != 1) return false;
  if (s->n == 0 || s->c == 0 || s->o == 0 || s->h * s->w == 0 || s->oh * s->ow == 0 || s->kh * s->kw == 0) return false;
  return make_plan(k).cycles < others(k);
}

/* ---- a run --------------------------------------------------------------------------------------------------------------- */

typedef struct job {
  const rsi_k_split_wgrad *k;
  const plan *p;
  float *sums;                   /* of all tasks, when there are slices */
  int64_t part;                  /* floats of one */
  float  *dw;
  _Atomic int odd;
} job;

static rsi_wgrad_piece piece_of(const plan *p, int64_t tile, int64_t slice) {
  const int64_t o = tile / p->i_tasks * p->o_each, i = tile % p->i_tasks * p->i_each, chunks = p->s.groups * p->s.chunks;
  return (rsi_wgrad_piece){o, least(o + p->o_each, p->s.out), i, least(i + p->i_each, p->s.in), chunks * slice / p->slices,
                           chunks * (slice + 1) / p->slices};
}

static void finish(job *j, const rsi_wgrad_piece *piece, int64_t o, const float *sums) {
  if (j->k->finish(&j->p->s, piece, o, j->p->slices, j->part, sums, j->dw))
    atomic_store_explicit(&j->odd, 1, memory_order_relaxed);
}

static size_t own_bytes(const plan *p) { return rsi_lane_round(rsi_wgrad_scratch(&p->s, p->i_each)); }
static int64_t part_floats(const plan *p) { return rsi_wgrad_sums(&p->s, p->o_each, p->i_each); }

static void task(void *arg, int64_t number, void *scratch) {
  job *const j = arg;
  const plan *const p = j->p;
  const int64_t tile = number / p->slices, slice = number % p->slices;
  const rsi_wgrad_piece piece = piece_of(p, tile, slice);
  float *const own = (float *)(void *)((char *)scratch + own_bytes(p));
  float *const sums = p->slices > 1 ? j->sums + number * j->part : own;
  j->k->sum(&p->s, &piece, sums, scratch);
  if (p->slices == 1)
    for (int64_t o = piece.o0; o < piece.o1; o++) finish(j, &piece, o, sums);
}

/* Block `item / i_tasks` of filters with the channels of task `item % i_tasks`. */
static void finish_task(void *arg, int64_t item) {
  job *const j = arg;
  const plan *const p = j->p;
  const int64_t o = item / p->i_tasks, tile = o / p->o_each * p->i_tasks + item % p->i_tasks;
  const rsi_wgrad_piece piece = piece_of(p, tile, 0);
  finish(j, &piece, o, j->sums + tile * p->slices * j->part);
}

static int64_t task_count(const plan *p) { return p->o_tasks * p->i_tasks * p->slices; }
/* A second thread does not pay for a few microseconds. */
static int64_t lanes_of(const rsi_exec *x, const plan *p) {
  return p->cycles < 3e4 ? 1 : rsi_lane_count(rsi_pool_threads(x->pool), task_count(p));
}
static size_t lane_bytes(const plan *p) {
  return own_bytes(p) + (p->slices > 1 ? 0 : rsi_lane_round((size_t)part_floats(p) * sizeof(float)));
}
static size_t sums_bytes(const plan *p) {
  return p->slices > 1 ? rsi_lane_round((size_t)(task_count(p) * part_floats(p)) * sizeof(float)) : 0;
}

size_t rsi_split_wgrad_bytes(const rsi_exec *x, const rsi_conv_call *k) {
  const plan p = make_plan(k);
  return sums_bytes(&p) + (size_t)lanes_of(x, &p) * lane_bytes(&p);
}

/* f32 in blocks of 16 channels, bf16 with all channels of a pixel side by side. */
static rsi_wgrad_image image_of(const void *data, int64_t parts, int64_t channels, int64_t pixels) {
  if (parts == 1) return (rsi_wgrad_image){data, channels, pixels * channels * 2, RSI_SIDE * 2, channels * 2};
  const int64_t pixel = RSI_SIDE * (int64_t)sizeof(float);
  return (rsi_wgrad_image){data, channels, divide_up(channels, RSI_SIDE) * pixels * pixel, pixels * pixel, pixel};
}

bool rsi_split_wgrad_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch) {
  plan p = make_plan(k);
  p.s.x = image_of(data->x, p.s.parts, k->s.c, k->s.h * k->s.w), p.s.dy = image_of(data->y, p.s.parts, k->s.o, k->s.oh * k->s.ow);
  job j = {.k = x->k->split_wgrad, .p = &p, .sums = scratch, .part = part_floats(&p), .dw = data->w};
  atomic_init(&j.odd, 0);
  const int64_t lanes = lanes_of(x, &p);
  rsi_lanes_run(x->pool, lanes, task_count(&p), task, &j, (char *)scratch + sums_bytes(&p), lane_bytes(&p));
  if (p.slices > 1) {
    const int64_t items = p.s.out * p.i_tasks;
    if (lanes > 1) rsi_pool_run(x->pool, items, finish_task, &j);
    else for (int64_t i = 0; i < items; i++) finish_task(&j, i);
  }
  return atomic_load_explicit(&j.odd, memory_order_relaxed) == 0;
}
