/*
** Recurrent layers: rnn, gru and lstm run one layer in one direction over a whole sequence; layers and directions are chained in
** Lua. The sums of all steps that come from the input are one matrix product. Then each step is one product of the state with
** w_hh and one sweep that turns sums into gates, gates into the new state.
**
** A sequence is rows of values: the row of step t and batch entry b is t * st + b * sb, so both orders of the first two
** dimensions cost the same and nothing is transposed. `saved` keeps per row what the gradient needs: i f g o c of lstm, r z n and
** W h + b of gru's n; the sums are computed in place there. Its rows are in the order of the steps, t * B + b, whatever that of x
** (which is copied into this order first): what a step reads lies together, and not on the same sets of the cache.
**
** Entries of a batch do not depend on each other: with enough of them, and weights that fit a core's cache, blocks of them run
** through all steps on their own. Otherwise each step is cut into ranges of units. Both follow from the shape alone.
**
** lstm in f32 reads w_hh from panels (kernels/gemm.h) when that pays: the four panels of 32 units lie side by side, their sums go to
** a tile that the sweep reads while it is in L1, and every other step takes the units from the last to the first, so that the
** panels which the cache still holds come first. What a step hands on (h, or the gradients of the sums) is also kept in rows that
** lie together, in turn in one of two places: rows of the tensors themselves may all fall on the same sets of the cache.
** Where split products pay (kernels/split_strips.h), w_hh and what is handed on lie in strips instead. 32 units of a block are one run of
** k, so the block that makes them splits them itself. A product whose sums may be wrong, since a number was not finite or tiny, is made
** again by FMA of the tensors themselves.
**
** The gradient ops give the gradients of the sums; those of weights, biases and the input are products with them, emitted by the
** rules as ops of their own.
*/
#include "ops/product.h"
#include "ops/split_product.h"
#include <string.h>

#define LAYER_ATTRS(F, T)                                                                                                   \
  F(T, BOOL, reverse, 0, 0, 1, NULL, "go from the last step to the first")                                                  \
  F(T, BOOL, batch_first, 0, 0, 1, NULL, "x and y are [B, T, ...] instead of [T, B, ...]")
RSI_ATTRS(layer, LAYER_ATTRS)

#define RNN_ATTRS(F, T)                                                                                                     \
  LAYER_ATTRS(F, T)                                                                                                         \
  F(T, ENUM, nonlinearity, 0, 0, 1, "tanh,relu", "what is applied to the sum")
RSI_ATTRS(rnn, RNN_ATTRS)

enum { RNN, GRU, LSTM };
enum { X, W_IH, W_HH, B_IH, B_HH, H0, C0 };   /* inputs of the forward ops */

enum {
  STEPS_WORTH_A_COPY = 4, ROWS_WORTH_A_COPY = 128,   /* from here on w_hh is copied into the order in which it is read */
  FEW_ROWS = 32,                   /* a product with so few rows reads w_hh well as it is */
  PAD = 16,                        /* elements between its rows, so that they do not share cache sets */
  ROWS = 8, UNITS = RSI_PANEL,     /* blocks are multiples of these */
  MANY_ROWS = 16, MOST_BLOCKS = 16, FEW_WEIGHT_BYTES = 512 * 1024,
  BLOCK_NS = 30000,                /* work that is worth a block of its own */
  SPLIT_ROWS = 16, PANEL_STRIPS = RSI_PANEL / RSI_SPLIT_SIDE
};

static const double FMA_NS = 0.012, SPLIT_NS = 0.0083;   /* of a product of two numbers and the sum */

enum { LSTM_GATES = 4 };
static const int gates_of[] = {1, 3, LSTM_GATES}, width_of[] = {1, 4, 5};   /* gates; values of a unit in a row of `saved` (rnn: in y) */

/* ---- the plan -------------------------------------------------------------------------------------------------------- */

typedef struct sequence {
  const rsi_exec      *x;
  const rsi_rnn_loops *k;
  int     cell, dtype, relu;
  bool    reverse;
  size_t  item;
  int64_t T, B, H, G;              /* G: columns of all gates */
  int64_t S;                       /* elements of a row of sums */
  int64_t st, sb;                  /* rows from one step to the next, from one batch entry to the next */
  int64_t sst, ssb;                /* the same of the sums */
  double  step_ns;                 /* of one step, about */
  int64_t rows, units;             /* of a block */
  int64_t row_blocks, unit_blocks;
  bool    packed, split;           /* w_hh lies in panels at w; in strips there */
  int64_t panel, state_ld;         /* elements of one panel; between the rows of a state that is handed on */
  int64_t gate_runs, strip;        /* with strips: runs of one gate; elements of a strip */
  size_t  room_bytes, weight_bytes, vector_bytes, state_bytes;   /* parts of the scratch; two states */
  char   *state[2];
  char   *room;                    /* of the products, one for each block; packed: the tile */
  size_t  tile_bytes;
  const char *w_hh, *w;            /* w_hh; it or its copy, with strides */
  int64_t wrs, wcs;
  const char *zeros;               /* [H] */
  /* forward */
  const char *h0, *c0, *bias;      /* states [B, H] or NULL; bias as the loops take it */
  char   *y, *sums, *u;            /* y: [rows, H], sums: [rows, S], u: [B, G] of gru */
  /* backward */
  const char *gy;
  char   *d, *du, *dh, *dc;        /* d, du: [rows, G]; dh, dc: [B, H] */
} sequence;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }
static int64_t whole_of(int64_t n, int64_t unit) { return parts(n, unit) * unit; }
static size_t whole(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* `like` has the first dimensions of the sequence. */
static void measure(sequence *s, const rsi_call *c, int cell, const rs_tensor *like, int64_t hidden) {
  const layer_attrs *const a = c->attrs;
  *s = (sequence){.x = c->x, .k = c->x->k->rnn->of[like->dtype], .cell = cell, .dtype = like->dtype, .reverse = a->reverse != 0,
                  .item = rsi_item_size(like), .H = hidden, .G = gates_of[cell] * hidden, .S = width_of[cell] * hidden, .B = 1, .sb = 1,
                  .relu = cell == RNN && RSI_ATTR(c, rnn)->nonlinearity};
  if (like->ndim == 2) {
    s->T = like->shape[0], s->st = 1;
  } else if (a->batch_first) {
    s->B = like->shape[0], s->T = like->shape[1];
    s->st = 1, s->sb = s->T;
  } else {
    s->T = like->shape[0], s->B = like->shape[1];
    s->st = s->B;
  }
  s->sst = cell == RNN ? s->st : s->B;
  s->ssb = cell == RNN ? s->sb : 1;
}

/* Whether strips, which are padded, are faster than panels. */
static bool split_pays(const sequence *s) {
  const double h = (double)whole_of(s->H, RSI_PANEL), rows = (double)whole_of(s->B, RSI_SPLIT_SIDE);
  return s->B >= SPLIT_ROWS && rsi_splits(s->x) && SPLIT_NS * rows * h * h < FMA_NS * (double)s->B * (double)s->H * (double)s->H;
}

/* Cuts the work; m x n x k: the product of a step for all rows and units. */
static void cut(sequence *s, bool backward) {
  const bool slow = !backward && (s->B > FEW_ROWS || s->H < 8 * s->B);   /* would copy in every step */
  const bool copied = s->B > 1 && s->T >= STEPS_WORTH_A_COPY && (slow || s->T * s->B >= ROWS_WORTH_A_COPY);
  s->packed = copied && s->cell == LSTM && s->dtype == RS_F32;
  s->split = s->packed && split_pays(s);
  const double mac = s->split ? SPLIT_NS : s->x->k->level == RSI_ISA_AVX512 ? FMA_NS : s->x->k->level == RSI_ISA_AVX2 ? 0.02 : 0.05;
  const int64_t unit = s->split ? RSI_SPLIT_SIDE : ROWS;
  const double wide = s->dtype == RS_F64 ? 2.0 : 1.0;
  const int64_t weights = s->G * s->H * (int64_t)s->item;
  s->step_ns = wide * (double)s->B * (mac * (double)s->G * (double)s->H + 3.0 * (double)s->G);
  s->rows = s->B;
  s->units = s->H;
  if (s->B >= MANY_ROWS && weights <= FEW_WEIGHT_BYTES && s->step_ns * (double)s->T > 2.0 * BLOCK_NS) {
    s->rows = whole_of(parts(s->B, smaller(MOST_BLOCKS, s->B / unit)), unit);
  } else if (s->step_ns > 2.0 * BLOCK_NS && s->H >= 2 * UNITS) {
    const int64_t most = smaller(MOST_BLOCKS, (int64_t)(s->step_ns / BLOCK_NS));
    s->units = parts(parts(s->H, smaller(most, s->H / (backward ? 2 * UNITS : UNITS))), UNITS) * UNITS;
  }
  s->row_blocks = larger(parts(s->B, larger(s->rows, 1)), 1);
  s->unit_blocks = larger(parts(s->H, larger(s->units, 1)), 1);
  const int64_t n = s->unit_blocks > 1 ? s->units : backward ? s->H : s->G;
  s->room_bytes = whole(s->x->k->gemm->scratch(s->rows, n, backward ? s->G : s->H, s->item));
  if (s->split) {
    s->gate_runs = parts(s->H, RSI_SPLIT_DEEP);
    s->strip = (backward ? LSTM_GATES : 1) * s->gate_runs * RSI_SPLIT_RUN;
    s->tile_bytes = backward ? 0 : whole((size_t)(s->rows * LSTM_GATES * RSI_PANEL) * s->item);
    s->room_bytes = s->tile_bytes + whole(s->x->k->gemm->scratch(s->rows, backward ? n : RSI_PANEL, backward ? s->G : s->H, s->item));
    s->weight_bytes = (size_t)(rsi_panels(s->H) * (backward ? 1 : LSTM_GATES) * PANEL_STRIPS * s->strip) * sizeof(uint16_t);
    s->state_bytes = (size_t)(parts(s->B, RSI_SPLIT_SIDE) * s->strip) * sizeof(uint16_t);
  } else if (s->packed) {
    s->panel = rsi_panel_size(backward ? s->G : s->H, false);
    s->room_bytes = backward ? 0 : whole((size_t)(s->rows * LSTM_GATES * RSI_PANEL) * s->item);
    s->weight_bytes = (size_t)(rsi_panels(s->H) * (backward ? 1 : LSTM_GATES) * s->panel) * s->item;
    s->state_ld = (backward ? s->G : s->H) + PAD;
    s->state_bytes = whole((size_t)(s->B * s->state_ld) * s->item);
  } else
    s->weight_bytes = !copied ? 0 : whole((size_t)(backward ? s->G * (s->H + PAD) : s->H * (s->G + PAD)) * s->item);
  /* bias (4 H, gru's; or G) and zeros; u of gru */
  s->vector_bytes = whole((size_t)(5 * s->H) * s->item);
  if (s->cell == GRU && !backward) s->vector_bytes += whole((size_t)(s->B * s->G) * s->item);
}

static size_t scratch_of(const sequence *s) {
  return s->room_bytes * (size_t)(s->row_blocks * s->unit_blocks) + s->weight_bytes + s->vector_bytes + 2 * s->state_bytes;
}

typedef struct packing { const sequence *s; const float *w; float *to; bool backward; } packing;

/* The strips of the same units. Backward, each gate has runs of its own. */
static void pack_strips(const packing *j, int64_t u) {
  const sequence *const s = j->s;
  const int64_t H = s->H, gate = s->gate_runs * RSI_SPLIT_RUN;
  uint16_t *to = (uint16_t *)(void *)j->to + u / RSI_SPLIT_SIDE * LSTM_GATES * gate;
  for (int64_t at = 0; at < LSTM_GATES * PANEL_STRIPS; at++, to += gate) {
    const int64_t q = j->backward ? at % LSTM_GATES : at / PANEL_STRIPS, half = j->backward ? at / LSTM_GATES : at % PANEL_STRIPS;
    const int64_t i = u + half * RSI_SPLIT_SIDE;
    const int64_t n = larger(0, smaller(RSI_SPLIT_SIDE, H - i));
    if (j->backward) s->x->k->split_strips->columns(n, H, j->w + q * H * H + i, H, 1, to);
    else s->x->k->split_strips->columns(n, H, j->w + (q * H + i) * H, 1, H, to);
  }
}

/* Forward: the panels of 32 units, one gate after the other. Backward: the panel of 32 columns of w_hh. */
static void pack_units(void *arg, int64_t first, int64_t last) {
  const packing *const j = arg;
  const sequence *const s = j->s;
  const rsi_k_gemm *const gemm = s->x->k->gemm;
  for (int64_t v = first; v < last; v++) {
    const int64_t u = v * RSI_PANEL, left = s->H - u;
    if (s->split) {
      pack_strips(j, u);
      continue;
    }
    if (j->backward) {
      gemm->pack_panels(0, 1, left, s->G, j->w + u, s->H, 1, false, j->to + v * s->panel);
      continue;
    }
    for (int64_t q = 0; q < LSTM_GATES; q++)
      gemm->pack_panels(0, 1, left, s->H, j->w + (q * s->H + u) * s->H, 1, s->H, false, j->to + (v * LSTM_GATES + q) * s->panel);
  }
}

/* Rows r0.. of what comes before `step`: n units of gate q from u on, as strips. */
static void hand_on(const sequence *s, int64_t step, int64_t r0, int64_t r1, int64_t u, int64_t q, const float *x, int64_t ld) {
  uint16_t *const to = (uint16_t *)(void *)s->state[step % 2] + r0 / RSI_SPLIT_SIDE * s->strip;
  s->x->k->split_strips->rows(r1 - r0, smaller(RSI_PANEL, s->H - u), x, ld, to + (q * s->gate_runs + u / RSI_SPLIT_DEEP) * RSI_SPLIT_RUN,
                              s->strip);
}

/* Lays out the scratch. Returns the place of the bias; what is between it and u is zero. */
static char *lay_out(sequence *s, const rs_tensor *w, bool backward, char *scratch) {
  char *at = scratch;
  s->room = at;
  at += s->room_bytes * (size_t)(s->row_blocks * s->unit_blocks);
  s->w = s->w_hh = w->data;
  s->wrs = backward ? s->H : 1, s->wcs = backward ? 1 : s->H;
  if (s->packed) {
    packing j = {s, w->data, (float *)(void *)at, backward};
    rsi_parallel(s->x, rsi_panels(s->H), 0.4 * (double)(s->G * RSI_PANEL), pack_units, &j);
    s->w = at;
    at += s->weight_bytes;
    for (int i = 0; i < 2; i++, at += s->state_bytes) s->state[i] = at;
    for (int64_t u = 0; s->split && s->h0 && u < s->H; u += RSI_PANEL)
      hand_on(s, 0, 0, s->B, u, 0, (const float *)(const void *)s->h0 + u, s->H);
  } else if (s->weight_bytes) {
    const int64_t columns = backward ? s->H : s->G, ld = columns + PAD;
    if (!backward) s->k->transpose(s->G, s->H, w->data, s->H, at, ld);
    else
      for (int64_t i = 0; i < s->G; i++)
        memcpy(at + (size_t)(i * ld) * s->item, (const char *)w->data + (size_t)(i * s->H) * s->item, (size_t)s->H * s->item);
    s->w = at;
    s->wrs = ld, s->wcs = 1;
    at += s->weight_bytes;
  }
  memset(at, 0, s->vector_bytes);
  s->zeros = at + (size_t)(4 * s->H) * s->item;
  s->u = at + whole((size_t)(5 * s->H) * s->item);
  return at;
}

static inline char *offset(const sequence *s, const void *base, int64_t elements) {
  return (char *)(uintptr_t)base + elements * (int64_t)s->item;
}

static inline int64_t row_of(const sequence *s, int64_t t, int64_t b) { return t * s->st + b * s->sb; }
static inline int64_t sums_row(const sequence *s, int64_t t, int64_t b) { return t * s->sst + b * s->ssb; }

static void multiply(const sequence *s, int64_t m, int64_t n, int64_t k, const void *a, int64_t ars, const void *b, int beta, void *c,
                     int64_t ldc, void *room) {
  if (s->dtype == RS_F32) s->x->k->gemm->sgemm(m, n, k, a, ars, 1, b, s->wrs, s->wcs, beta, c, ldc, room);
  else s->x->k->gemm->dgemm(m, n, k, a, ars, 1, b, s->wrs, s->wcs, beta, c, ldc, room);
}

/* ---- running the steps ----------------------------------------------------------------------------------------------- */

typedef struct block { int64_t r0, r1, u0, u1; void *room; } block;
typedef void (*step_fn)(const sequence *s, int64_t step, const block *b);
typedef struct walk { const sequence *s; step_fn fn; int64_t step, count; } walk;

static void block_of(const sequence *s, int64_t rows, int64_t units, block *b) {
  b->r0 = rows * s->rows, b->r1 = smaller(b->r0 + s->rows, s->B);
  b->u0 = units * s->units, b->u1 = smaller(b->u0 + s->units, s->H);
  b->room = s->room_bytes ? s->room + s->room_bytes * (size_t)(rows * s->unit_blocks + units) : NULL;
}

static void run_rows(void *arg, int64_t first, int64_t last) {
  const walk *const j = arg;
  block b;
  for (int64_t i = first; i < last; i++) {
    block_of(j->s, i, 0, &b);
    for (int64_t step = 0; step < j->count; step++) j->fn(j->s, step, &b);
  }
}

static void run_units(void *arg, int64_t first, int64_t last) {
  const walk *const j = arg;
  block b;
  for (int64_t i = first; i < last; i++) {
    block_of(j->s, 0, j->s->packed && j->step % 2 ? j->s->unit_blocks - 1 - i : i, &b);
    j->fn(j->s, j->step, &b);
  }
}

static void run_steps(const sequence *s, int64_t count, step_fn fn) {
  walk j = {s, fn, 0, count};
  if (s->unit_blocks == 1) {
    rsi_parallel(s->x, s->row_blocks, s->step_ns * (double)count / (double)s->row_blocks, run_rows, &j);
    return;
  }
  for (; j.step < count; j.step++) rsi_parallel(s->x, s->unit_blocks, s->step_ns / (double)s->unit_blocks, run_units, &j);
}

/*
** The rows of the sums, the cells and the gradients, which the sweep will read, come while the product is made. Inlined, since a
** compiler that sees a function which does nothing but this may leave out its calls.
*/
static inline __attribute__((always_inline)) void fetch_rows(const sequence *s, const block *b, int64_t t, int64_t u, int64_t n) {
  for (int64_t r = b->r0; r < b->r1; r++) {
    const char *const row = offset(s, s->sums, sums_row(s, t, r) * s->S + u);
    for (int64_t at = 0; at < n; at += 16) {
      for (int64_t q = 0; q <= LSTM_GATES; q++) __builtin_prefetch(offset(s, row, q * s->H + at), 1);
      if (s->gy) __builtin_prefetch(offset(s, s->gy, row_of(s, t, r) * s->H + u + at));
    }
  }
}

static bool ends_strip(const block *b, int64_t r) { return (r + 1) % RSI_SPLIT_SIDE == 0 || r + 1 == b->r1; }

/* ---- forward --------------------------------------------------------------------------------------------------------- */

/* c (+)= state x w_hh^T for the columns of the block's units in every gate */
static void state_product(const sequence *s, const block *b, const char *state, int64_t ars, int beta, char *c, int64_t ldc) {
  const int64_t m = b->r1 - b->r0, n = b->u1 - b->u0;
  if (n == s->H) {
    multiply(s, m, s->G, s->H, state, ars, s->w, beta, c, ldc, b->room);
    return;
  }
  for (int64_t at = b->u0; at < s->G; at += s->H)
    multiply(s, m, n, s->H, state, ars, offset(s, s->w, at * s->wcs), beta, offset(s, c, at), ldc, b->room);
}

/* `pieces` pieces of n elements, `step` elements apart, of rows ld elements apart: memory that the sweep needs. */
static rsi_soon soon(const sequence *s, const block *b, const char *at, int64_t ld, int64_t pieces, int64_t step, int64_t n) {
  const int64_t item = (int64_t)s->item;
  return (rsi_soon){at, b->r1 - b->r0, ld * item, pieces, step * item, parts(n * item, 64)};
}

/* The same for the four gates of units u.. with w_hh in strips. `state` is as it lies. */
static void strip_product(const sequence *s, const block *b, int64_t step, int64_t t, int64_t u, const char *state, int64_t ars) {
  const int64_t m = b->r1 - b->r0, width = LSTM_GATES * RSI_PANEL, n = smaller(RSI_PANEL, s->H - u);
  const uint16_t *const rows = (const uint16_t *)(const void *)s->state[step % 2] + b->r0 / RSI_SPLIT_SIDE * s->strip;
  const uint16_t *const columns = (const uint16_t *)(const void *)s->w + u / RSI_SPLIT_SIDE * LSTM_GATES * s->strip;
  const rsi_soon list[] = {
    soon(s, b, offset(s, s->sums, sums_row(s, t, b->r0) * s->S + u), s->ssb * s->S, LSTM_GATES + 1, s->H, n),
    soon(s, b, offset(s, s->y, row_of(s, t, b->r0) * s->H + u), s->sb * s->H, 1, 0, n)};
  if (s->x->k->split_strips->product(m, width, s->gate_runs, rows, columns, b->room, width, list, 2)) return;
  const float *const w = (const float *)(const void *)s->w_hh;
  for (int64_t q = 0; q < LSTM_GATES; q++)
    s->x->k->gemm->sgemm(m, n, s->H, (const float *)(const void *)state, ars, 1, w + (q * s->H + u) * s->H, 1, s->H, 0,
                         (float *)b->room + q * RSI_PANEL, width, (char *)b->room + s->tile_bytes);
}

/* A step of lstm with w_hh in panels or strips. */
static void packed_step(const sequence *s, int64_t step, const block *b) {
  const int64_t t = s->reverse ? s->T - 1 - step : step, before = s->reverse ? t + 1 : t - 1, H = s->H, m = b->r1 - b->r0;
  const int64_t first = b->u0 / RSI_PANEL, count = rsi_panels(b->u1) - first, width = LSTM_GATES * RSI_PANEL;
  const char *state = step == 0 ? s->h0 : s->split ? offset(s, s->y, row_of(s, before, 0) * H) : s->state[step % 2];
  const int64_t stride = step == 0 ? H : s->split ? s->sb * H : s->state_ld;
  char *const next = s->state[(step + 1) % 2];
  for (int64_t i = 0; i < count; i++) {
    const int64_t v = first + (step % 2 ? count - 1 - i : i), u = v * RSI_PANEL, n = smaller(RSI_PANEL, H - u);
    if (!state || !s->split) fetch_rows(s, b, t, u, n);
    if (state && s->split) strip_product(s, b, step, t, u, offset(s, state, b->r0 * stride), stride);
    else if (state)
      s->x->k->gemm->panels(m, width, H, (const float *)(const void *)offset(s, state, b->r0 * stride), stride,
                            (const float *)(const void *)offset(s, s->w, v * LSTM_GATES * s->panel), b->room, width, NULL, 0, 0);
    for (int64_t r = b->r0; r < b->r1; r++) {
      char *const sums = offset(s, s->sums, sums_row(s, t, r) * s->S + u), *const h = offset(s, s->y, row_of(s, t, r) * H + u);
      const char *const c0 = step > 0 ? offset(s, s->sums, sums_row(s, before, r) * s->S + 4 * H + u)
                           : s->c0 ? offset(s, s->c0, r * H + u) : s->zeros;
      s->k->lstm(n, H, sums, state ? offset(s, b->room, (r - b->r0) * width) : s->zeros, state ? RSI_PANEL : 0,
                 offset(s, s->bias, u), c0, offset(s, sums, 4 * H), h);
      if (!s->split) memcpy(offset(s, next, r * s->state_ld + u), h, (size_t)n * s->item);
      else if (ends_strip(b, r)) {
        const int64_t r0 = r / RSI_SPLIT_SIDE * RSI_SPLIT_SIDE;
        hand_on(s, step + 1, r0, r + 1, u, 0, (const float *)(const void *)offset(s, s->y, row_of(s, t, r0) * H + u), s->sb * H);
      }
    }
  }
}

static void forward_step(const sequence *s, int64_t step, const block *b) {
  const int64_t t = s->reverse ? s->T - 1 - step : step, before = s->reverse ? t + 1 : t - 1, H = s->H, n = b->u1 - b->u0;
  const int64_t row = sums_row(s, t, b->r0);
  const char *state = s->h0 ? offset(s, s->h0, b->r0 * H) : NULL;   /* h of the step before, rows `stride` elements apart */
  int64_t stride = H;
  if (step > 0) state = offset(s, s->y, row_of(s, before, b->r0) * H), stride = s->sb * H;
  if (state && s->cell == GRU) state_product(s, b, state, stride, 0, offset(s, s->u, b->r0 * s->G), s->G);
  else if (state) state_product(s, b, state, stride, 1, offset(s, s->sums, row * s->S), s->ssb * s->S);
  const char *const bias = offset(s, s->bias, b->u0);
  for (int64_t r = b->r0; r < b->r1; r++) {
    char *const sums = offset(s, s->sums, sums_row(s, t, r) * s->S + b->u0), *const h = offset(s, s->y, row_of(s, t, r) * H + b->u0);
    if (s->cell == RNN) {
      s->k->rnn(n, h, bias, s->relu);
    } else if (s->cell == GRU) {
      const char *const h0 = state ? offset(s, state, (r - b->r0) * stride + b->u0) : s->zeros;
      s->k->gru(n, H, sums, offset(s, s->u, r * s->G + b->u0), bias, h0, h);
    } else {
      const char *const c0 = step > 0 ? offset(s, s->sums, sums_row(s, before, r) * s->S + 4 * H + b->u0)
                           : s->c0 ? offset(s, s->c0, r * H + b->u0) : s->zeros;
      s->k->lstm(n, H, sums, s->zeros, 0, bias, c0, offset(s, sums, 4 * H), h);
    }
  }
}

static void add_vectors(const sequence *s, int64_t n, const void *a, const void *b, void *out) {
  if (s->dtype == RS_F32)
    for (int64_t i = 0; i < n; i++) ((float *)out)[i] = (a ? ((const float *)a)[i] : 0) + (b ? ((const float *)b)[i] : 0);
  else
    for (int64_t i = 0; i < n; i++) ((double *)out)[i] = (a ? ((const double *)a)[i] : 0) + (b ? ((const double *)b)[i] : 0);
}

/* The biases as the loops take them: both added; those of gru's n apart. */
static void join_biases(const sequence *s, const rs_tensor *ih, const rs_tensor *hh, char *out) {
  const void *const a = ih ? ih->data : NULL, *const b = hh ? hh->data : NULL;
  const int64_t H = s->H;
  if (s->cell != GRU) {
    add_vectors(s, s->G, a, b, out);
    return;
  }
  add_vectors(s, 2 * H, a, b, out);
  add_vectors(s, H, a ? offset(s, a, 2 * H) : NULL, NULL, offset(s, out, 2 * H));
  add_vectors(s, H, NULL, b ? offset(s, b, 2 * H) : NULL, offset(s, out, 3 * H));
}

/* to: [B, H] = the rows of the last step at `column` of from: [rows, width] (y, or the sums); without steps the first state, or zeros. */
static void last_state(const sequence *s, const char *from, int64_t width, int64_t column, const char *first, char *to) {
  const int64_t t = s->reverse ? 0 : s->T - 1;
  const size_t bytes = (size_t)s->H * s->item;
  for (int64_t r = 0; r < s->B; r++) {
    char *const out = offset(s, to, r * s->H);
    if (s->T > 0) memcpy(out, offset(s, from, (from == s->y ? row_of(s, t, r) : sums_row(s, t, r)) * width + column), bytes);
    else if (first) memcpy(out, offset(s, first, r * s->H), bytes);
    else memset(out, 0, bytes);
  }
}

static void forward_plan(sequence *s, const rsi_call *c, int cell) {
  measure(s, c, cell, c->in[X], c->in[W_HH]->shape[1]);
  cut(s, false);
}

/* Bytes of x in the order of the sums; 0 where it has that order. */
static size_t turned_bytes(const sequence *s, const rsi_call *c) {
  return s->sst == s->st || s->B == 1 || s->T <= 1 ? 0 : whole((size_t)(s->T * s->B * c->in[W_IH]->shape[1]) * s->item);
}

static size_t input_scratch(const sequence *s, const rsi_call *c) {
  return turned_bytes(s, c) + rsi_product_scratch(s->x, s->dtype, s->T * s->B, s->G, c->in[W_IH]->shape[1]);
}

typedef struct turning { const sequence *s; const char *from; char *to; int64_t width; } turning;

static void turn_steps(void *arg, int64_t first, int64_t last) {
  const turning *const j = arg;
  const sequence *const s = j->s;
  for (int64_t t = first; t < last; t++)
    for (int64_t r = 0; r < s->B; r++)
      memcpy(offset(s, j->to, sums_row(s, t, r) * j->width), offset(s, j->from, row_of(s, t, r) * j->width),
             (size_t)j->width * s->item);
}

static size_t forward_scratch(const rsi_call *c, int cell) {
  sequence s;
  forward_plan(&s, c, cell);
  const size_t first = input_scratch(&s, c), then = scratch_of(&s);
  return first > then ? first : then;
}

static rs_status forward_run(const rsi_call *c, int cell) {
  const int64_t inputs = c->in[W_IH]->shape[1];
  sequence s;
  forward_plan(&s, c, cell);
  s.y = c->out[0]->data;
  s.sums = cell == RNN ? s.y : c->out[c->nout - 1]->data;
  s.h0 = c->in[H0] ? c->in[H0]->data : NULL;
  s.c0 = cell == LSTM && c->in[C0] ? c->in[C0]->data : NULL;
  const size_t turned = turned_bytes(&s, c);
  turning j = {&s, c->in[X]->data, c->scratch, inputs};
  if (turned) rsi_parallel(c->x, s.T, 0.3 * (double)(s.B * inputs), turn_steps, &j);
  rsi_product(c->x, s.dtype, s.T * s.B, s.G, inputs, turned ? j.to : j.from, inputs, 1, c->in[W_IH]->data, 1, inputs, 0, s.sums, s.S,
              (char *)c->scratch + turned);
  char *const bias = lay_out(&s, c->in[W_HH], false, c->scratch);
  join_biases(&s, c->in[B_IH], c->in[B_HH], bias);
  s.bias = bias;
  if (s.B > 0 && s.H > 0) run_steps(&s, s.T, s.packed ? packed_step : forward_step);
  last_state(&s, s.y, s.H, 0, s.h0, c->out[1]->data);
  if (cell == LSTM) last_state(&s, s.sums, s.S, 4 * s.H, s.c0, c->out[2]->data);
  return RS_OK;
}

/* ---- backward -------------------------------------------------------------------------------------------------------- */

/* dh of the block = gradients of the sums x w_hh, which is in strips. d: they as they lie. */
static void strip_gradients(const sequence *s, const block *b, int64_t step, int64_t t, const char *d) {
  const int64_t m = b->r1 - b->r0, n = b->u1 - b->u0;
  const uint16_t *const rows = (const uint16_t *)(const void *)s->state[step % 2] + b->r0 / RSI_SPLIT_SIDE * s->strip;
  const uint16_t *const columns = (const uint16_t *)(const void *)s->w + b->u0 / RSI_SPLIT_SIDE * s->strip;
  float *const dh = (float *)(void *)offset(s, s->dh, b->r0 * s->H + b->u0);
  const int64_t at = row_of(s, t, b->r0);
  const rsi_soon list[] = {
    soon(s, b, offset(s, s->sums, sums_row(s, t, b->r0) * s->S + b->u0), s->ssb * s->S, LSTM_GATES + 1, s->H, n),
    soon(s, b, offset(s, s->du, at * s->G + b->u0), s->sb * s->G, LSTM_GATES, s->H, n),
    soon(s, b, offset(s, s->gy ? s->gy : s->sums, at * s->H + b->u0), s->sb * s->H, 1, 0, n)};
  if (!s->x->k->split_strips->product(m, n, LSTM_GATES * s->gate_runs, rows, columns, dh, s->H, list, step == s->T ? 0 : s->gy ? 3 : 2))
    s->x->k->gemm->sgemm(m, n, s->G, (const float *)(const void *)d, s->sb * s->G, 1, (const float *)(const void *)s->w_hh + b->u0, s->H, 1,
                         0, dh, s->H, b->room);
}

/* The gradients of the sums of step t for the block's units, and the rows of a strip up to r. */
static void hand_on_gradients(const sequence *s, const block *b, int64_t step, int64_t t, int64_t r) {
  const int64_t r0 = r / RSI_SPLIT_SIDE * RSI_SPLIT_SIDE;
  const float *const d = (const float *)(const void *)offset(s, s->du, row_of(s, t, r0) * s->G);
  for (int64_t q = 0; q < LSTM_GATES; q++)
    for (int64_t u = b->u0; u < b->u1; u += RSI_PANEL) hand_on(s, step, r0, r + 1, u, q, d + q * s->H + u, s->sb * s->G);
}

/*
** Steps run from the last one back. dh holds what the steps after gave to h of this one, dc to c; after the last step of all
** they are the gradients of h0 and c0. Step T only takes the product that reaches h0.
*/
static void backward_step(const sequence *s, int64_t step, const block *b) {
  const int64_t t = s->reverse ? step : s->T - 1 - step, after = s->reverse ? t - 1 : t + 1, before = s->reverse ? t + 1 : t - 1;
  const int64_t H = s->H, n = b->u1 - b->u0;
  if (s->packed && n <= 8 * RSI_PANEL && step < s->T && !(s->split && step > 0)) fetch_rows(s, b, t, b->u0, n);
  if (step > 0 && s->split)
    strip_gradients(s, b, step, t, offset(s, s->du, row_of(s, after, b->r0) * s->G));
  else if (step > 0 && s->packed)
    s->x->k->gemm->panels(b->r1 - b->r0, n, s->G, (const float *)(const void *)offset(s, s->state[step % 2], b->r0 * s->state_ld),
                          s->state_ld, (const float *)(const void *)offset(s, s->w, b->u0 / RSI_PANEL * s->panel),
                          (float *)(void *)offset(s, s->dh, b->r0 * H + b->u0), H, NULL, 0, 0);
  else if (step > 0)
    multiply(s, b->r1 - b->r0, n, s->G, offset(s, s->du, row_of(s, after, b->r0) * s->G), s->sb * s->G, offset(s, s->w, b->u0),
             s->cell == GRU, offset(s, s->dh, b->r0 * H + b->u0), H, b->room);
  if (step == s->T) return;
  for (int64_t r = b->r0; r < b->r1; r++) {
    const int64_t at = row_of(s, t, r), earlier = sums_row(s, before, r);
    char *const dh = offset(s, s->dh, r * H + b->u0), *const du = offset(s, s->du, at * s->G + b->u0);
    const char *const gy = s->gy ? offset(s, s->gy, at * H + b->u0) : s->zeros;
    const char *const sums = offset(s, s->sums, sums_row(s, t, r) * s->S + b->u0);
    if (s->cell == RNN) {
      s->k->rnn_grad(n, offset(s, s->y, at * H + b->u0), dh, gy, s->relu, du);
    } else if (s->cell == GRU) {
      const char *const h0 = step + 1 < s->T ? offset(s, s->y, row_of(s, before, r) * H + b->u0)
                           : s->h0 ? offset(s, s->h0, r * H + b->u0) : s->zeros;
      s->k->gru_grad(n, H, sums, h0, gy, dh, offset(s, s->d, at * s->G + b->u0), du);
    } else {
      const char *const c0 = step + 1 < s->T ? offset(s, s->sums, earlier * s->S + 4 * H + b->u0)
                           : s->c0 ? offset(s, s->c0, r * H + b->u0) : s->zeros;
      s->k->lstm_grad(n, H, sums, c0, offset(s, sums, 4 * H), dh, gy, offset(s, s->dc, r * H + b->u0), du);
      for (int64_t q = 0; s->packed && !s->split && q < LSTM_GATES; q++)
        memcpy(offset(s, s->state[(step + 1) % 2], r * s->state_ld + q * H + b->u0), offset(s, du, q * H), (size_t)n * s->item);
      if (s->split && ends_strip(b, r)) hand_on_gradients(s, b, step + 1, t, r);
    }
  }
}

/* Inputs of the gradient ops after w_hh, by cell; -1: it has none. */
static const struct { int y, saved, gy, gh, gc, h0, c0; } places[] = {
  [RNN] = {1, -1, 2, 3, -1, -1, -1}, [GRU] = {1, 2, 3, 4, -1, 5, -1}, [LSTM] = {-1, 1, 2, 3, 4, -1, 5}};

static const char *data_of(const rsi_call *c, int i) { return i >= 0 && c->in[i] ? c->in[i]->data : NULL; }

static void start_from(const rsi_call *c, int i, rs_tensor *to) {
  const char *const from = data_of(c, i);
  const size_t bytes = (size_t)to->numel * rsi_item_size(to);
  if (from) memcpy(to->data, from, bytes);
  else memset(to->data, 0, bytes);
}

static void backward_plan(sequence *s, const rsi_call *c, int cell) {
  measure(s, c, cell, c->in[1], c->in[0]->shape[1]);
  cut(s, true);
}

static size_t backward_scratch(const rsi_call *c, int cell) {
  sequence s;
  backward_plan(&s, c, cell);
  return scratch_of(&s);
}

static rs_status backward_run(const rsi_call *c, int cell) {
  sequence s;
  backward_plan(&s, c, cell);
  lay_out(&s, c->in[0], true, c->scratch);
  s.y = (char *)(uintptr_t)data_of(c, places[cell].y);
  s.sums = (char *)(uintptr_t)data_of(c, places[cell].saved);
  s.gy = data_of(c, places[cell].gy);
  s.h0 = data_of(c, places[cell].h0);
  s.c0 = data_of(c, places[cell].c0);
  s.d = c->out[0]->data;
  s.du = cell == GRU ? c->out[1]->data : s.d;
  rs_tensor *const dh = c->out[cell == GRU ? 2 : 1];
  start_from(c, places[cell].gh, dh);
  s.dh = dh->data;
  if (cell == LSTM) {
    start_from(c, places[cell].gc, c->out[2]);
    s.dc = c->out[2]->data;
  }
  if (s.B > 0 && s.H > 0 && s.T > 0) run_steps(&s, s.T + 1, backward_step);
  return RS_OK;
}

/* ---- shapes ---------------------------------------------------------------------------------------------------------- */

static rs_status check_like(const rs_tensor *t, const char *name, const rs_tensor *x, int ndim, const int64_t *shape) {
  if (!t) return RS_OK;
  RSI_CHECK(t->dtype == x->dtype, RS_ERR_DTYPE, "%s is %s but the first input is %s; cast one of them", name, rs_dtype_name(t->dtype),
            rs_dtype_name(x->dtype));
  RSI_CHECK(t->ndim == ndim && memcmp(t->shape, shape, sizeof(int64_t) * (size_t)ndim) == 0, RS_ERR_SHAPE, "%s %s must be %s", name,
            rsi_text(t), rsi_shape_text(ndim, shape));
  return RS_OK;
}

/* A row for every step and batch entry: `like` with another last dimension. A state: [1, B, width], or [1, width] without batch. */
static void sequence_desc(const rs_tensor *like, int64_t width, rsi_desc *out) {
  rsi_desc_of(like, out);
  out->shape[like->ndim - 1] = width;
}

static void state_desc(const rsi_call *c, const rs_tensor *like, int64_t width, rsi_desc *out) {
  const bool batch_first = ((const layer_attrs *)c->attrs)->batch_first != 0;
  *out = (rsi_desc){.dtype = like->dtype, .ndim = like->ndim, .shape = {1, width}};
  if (like->ndim == 3) out->shape[1] = like->shape[batch_first ? 0 : 1], out->shape[2] = width;
}

static rs_status forward_infer(rsi_call *c, int cell) {
  const rs_tensor *const x = c->in[X], *const wi = c->in[W_IH], *const wh = c->in[W_HH];
  const int gates = gates_of[cell];
  RSI_CHECK(x->ndim == 2 || x->ndim == 3, RS_ERR_SHAPE, "input %s must be %s, or [T, features] without a batch", rsi_text(x),
            ((const layer_attrs *)c->attrs)->batch_first ? "[B, T, features]" : "[T, B, features]");
  RSI_CHECK(wh->ndim == 2 && wh->shape[0] == gates * wh->shape[1], RS_ERR_SHAPE, "w_hh %s must be [%d * hidden, hidden]", rsi_text(wh),
            gates);
  const int64_t hidden = wh->shape[1], size = gates * hidden, features = x->shape[x->ndim - 1];
  RSI_CHECK(wi->ndim == 2 && wi->shape[0] == size, RS_ERR_SHAPE, "w_ih %s must have as many rows as w_hh %s", rsi_text(wi), rsi_text(wh));
  RSI_CHECK(wi->shape[1] == features, RS_ERR_SHAPE, "input %s has %lld features but w_ih %s expects %lld", rsi_text(x),
            (long long)features, rsi_text(wi), (long long)wi->shape[1]);
  RSI_TRY(check_like(wi, "w_ih", x, 2, wi->shape));
  RSI_TRY(check_like(wh, "w_hh", x, 2, wh->shape));
  RSI_TRY(check_like(c->in[B_IH], "b_ih", x, 1, &size));
  RSI_TRY(check_like(c->in[B_HH], "b_hh", x, 1, &size));
  sequence_desc(x, hidden, &c->desc[0]);
  state_desc(c, x, hidden, &c->desc[1]);
  RSI_TRY(check_like(c->in[H0], "h0", x, x->ndim, c->desc[1].shape));
  if (cell == LSTM) RSI_TRY(check_like(c->in[C0], "c0", x, x->ndim, c->desc[1].shape));
  c->desc[2] = c->desc[1];
  if (cell != RNN) sequence_desc(x, width_of[cell] * hidden, &c->desc[c->nout - 1]);
  return RS_OK;
}

static rs_status backward_infer(rsi_call *c, int cell) {
  const rs_tensor *const w = c->in[0], *const rows = c->in[1];
  const int gates = gates_of[cell];
  RSI_CHECK(w->ndim == 2 && w->shape[0] == gates * w->shape[1], RS_ERR_SHAPE, "w_hh %s must be [%d * hidden, hidden]", rsi_text(w), gates);
  RSI_CHECK(rows->ndim == 2 || rows->ndim == 3, RS_ERR_SHAPE, "%s %s must have two or three dimensions",
            cell == LSTM ? "saved" : "y", rsi_text(rows));
  const int64_t hidden = w->shape[1];
  rsi_desc y, saved, state;
  sequence_desc(rows, hidden, &y);
  sequence_desc(rows, width_of[cell] * hidden, &saved);
  state_desc(c, rows, hidden, &state);
  const struct { int at; const char *name; const rsi_desc *desc; } all[] = {
    {places[cell].y, "y", &y}, {places[cell].saved, "saved", &saved}, {places[cell].gy, "gy", &y}, {places[cell].gh, "gh", &state},
    {places[cell].gc, "gc", &state}, {places[cell].h0, "h0", &state}, {places[cell].c0, "c0", &state}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (all[i].at >= 0) RSI_TRY(check_like(c->in[all[i].at], all[i].name, w, all[i].desc->ndim, all[i].desc->shape));
  sequence_desc(rows, gates * hidden, &c->desc[0]);
  c->desc[1] = cell == GRU ? c->desc[0] : state;
  c->desc[2] = state;
  return RS_OK;
}

/* ---- gradients ------------------------------------------------------------------------------------------------------- */

static rs_tensor *as_rows(rsi_grad *g, rs_tensor *t) {
  if (!t) return NULL;
  int64_t shape[2] = {1, t->shape[t->ndim - 1]};
  for (int i = 0; i < t->ndim - 1; i++) shape[0] *= t->shape[i];
  return rsi_b_reshape(g, t, 2, shape);
}

/* a^T b over all rows */
static rs_tensor *outer(rsi_grad *g, rs_tensor *a, rs_tensor *b) {
  return rsi_emit2(g, RS_OP_matmul, NULL, rsi_b_transpose(g, as_rows(g, a), 0, 1), as_rows(g, b));
}

/* The gradient of w_hh: sum over steps of d_t^T h_{t-1}, where h before the first step is h0. */
static rs_tensor *state_weights(rsi_grad *g, rs_tensor *d, rs_tensor *y, rs_tensor *h0) {
  const layer_attrs *const a = rsi_attrs(g);
  rs_tensor *later = NULL, *first = NULL;
  if (!d || !y) return NULL;
  const int64_t along = y->ndim == 3 && a->batch_first ? 1 : 0, steps = y->shape[along];
  rs_tensor *const before = steps > 1 ? rsi_b_narrow(g, y, along, a->reverse ? 1 : 0, steps - 1) : NULL;
  if (before && along == 1 && y->shape[0] > 1)   /* rows do not lie together: y, moved on by a step, is copied rather than d */
    later = outer(g, d, rsi_b_narrow_backward(g, before, along, a->reverse ? 0 : 1, steps));
  else if (before)
    later = outer(g, rsi_b_narrow(g, d, along, a->reverse ? 0 : 1, steps - 1), before);
  if (steps > 0 && h0) first = outer(g, rsi_b_narrow(g, d, along, a->reverse ? steps - 1 : 0, 1), h0);
  if (later && first) return rsi_emit2(g, RS_OP_add, NULL, later, first);
  return later ? later : first ? first : rsi_b_full(g, rsi_in_desc(g, W_HH), 0);
}

static rs_tensor *arrived(rsi_grad *g, int j) { return rsi_has_gout(g, j) ? rsi_gout(g, j) : NULL; }

/* Everything but the states. d: gradients of the sums from the input, du: of those from the state. */
static void give_all(rsi_grad *g, rs_tensor *d, rs_tensor *du) {
  if (rsi_needs(g, X)) rsi_give(g, X, rsi_emit2(g, RS_OP_matmul, NULL, d, rsi_in(g, W_IH)));
  if (rsi_needs(g, W_IH)) rsi_give(g, W_IH, outer(g, d, rsi_in(g, X)));
  if (rsi_needs(g, W_HH)) rsi_give(g, W_HH, state_weights(g, du, rsi_out(g, 0), rsi_in(g, H0)));
  rs_tensor *sum = NULL;
  for (int i = B_IH; i <= B_HH; i++) {
    if (!rsi_needs(g, i)) continue;
    if (!sum || d != du) sum = rsi_b_sum_to(g, i == B_IH ? d : du, rsi_in_desc(g, i));
    rsi_give(g, i, sum);
  }
}

static void rnn_grad(rsi_grad *g) {
  rs_tensor *const in[4] = {rsi_in(g, W_HH), rsi_out(g, 0), arrived(g, 0), arrived(g, 1)};
  rs_tensor *out[2] = {NULL};
  rsi_emit(g, RS_OP_rnn_backward, rsi_attrs(g), 4, in, 2, out);
  give_all(g, out[0], out[0]);
  if (rsi_needs(g, H0)) rsi_give(g, H0, out[1]);
}

static void gru_grad(rsi_grad *g) {
  rs_tensor *const in[6] = {rsi_in(g, W_HH), rsi_out(g, 0), rsi_out(g, 2), arrived(g, 0), arrived(g, 1), rsi_in(g, H0)};
  rs_tensor *out[3] = {NULL};
  rsi_emit(g, RS_OP_gru_backward, rsi_attrs(g), 6, in, 3, out);
  give_all(g, out[0], out[1]);
  if (rsi_needs(g, H0)) rsi_give(g, H0, out[2]);
}

static void lstm_grad(rsi_grad *g) {
  rs_tensor *const in[6] = {rsi_in(g, W_HH), rsi_out(g, 3), arrived(g, 0), arrived(g, 1), arrived(g, 2), rsi_in(g, C0)};
  rs_tensor *out[3] = {NULL};
  rsi_emit(g, RS_OP_lstm_backward, rsi_attrs(g), 6, in, 3, out);
  give_all(g, out[0], out[0]);
  if (rsi_needs(g, H0)) rsi_give(g, H0, out[1]);
  if (rsi_needs(g, C0)) rsi_give(g, C0, out[2]);
}

/* ---- the ops --------------------------------------------------------------------------------------------------------- */

#define CELL(name, NAME)                                                                                                    \
  static rs_status name##_infer(rsi_call *c) { return forward_infer(c, NAME); }                                             \
  static size_t name##_scratch(const rsi_call *c) { return forward_scratch(c, NAME); }                                      \
  static rs_status name##_run(const rsi_call *c) { return forward_run(c, NAME); }                                           \
  static const rsi_kernel name##_kernels[] = {{#name, RSI_PORTABLE, RSI_FLOATS, NULL, name##_scratch, name##_run}, {0}};    \
  static rs_status name##_backward_infer(rsi_call *c) { return backward_infer(c, NAME); }                                   \
  static size_t name##_backward_scratch(const rsi_call *c) { return backward_scratch(c, NAME); }                            \
  static rs_status name##_backward_run(const rsi_call *c) { return backward_run(c, NAME); }                                 \
  static const rsi_kernel name##_backward_kernels[] = {                                                                     \
    {#name "_backward", RSI_PORTABLE, RSI_FLOATS, NULL, name##_backward_scratch, name##_backward_run}, {0}};
CELL(rnn, RNN)
CELL(gru, GRU)
CELL(lstm, LSTM)

/* What every gradient needs; the weights' own need more. */
#define RNN_CORE (RSI_KEEP_IN(W_HH) | RSI_KEEP_OUT(0))
#define GRU_CORE (RSI_KEEP_IN(W_HH) | RSI_KEEP_OUT(0) | RSI_KEEP_OUT(2) | RSI_KEEP_IN(H0))
#define LSTM_CORE (RSI_KEEP_IN(W_HH) | RSI_KEEP_OUT(3) | RSI_KEEP_IN(C0))
#define SAVES(CORE)                                                                                                         \
  {CORE | RSI_KEEP_IN(W_IH), CORE | RSI_KEEP_IN(X), CORE | RSI_KEEP_OUT(0) | RSI_KEEP_IN(H0), CORE, CORE, CORE, CORE}

static const layer_attrs backwards = {1, 0}, batch_first = {0, 1}, both = {1, 1};
static const rnn_attrs relu = {0, 0, 1}, rnn_reverse = {1, 0, 0}, rnn_both = {1, 1, 1};

static const rsi_sample rnn_samples[] = {
  {"f5x3x4,f7x4,f7x7,f7,f7,f1x3x7", NULL, 0, 0},
  {"f5x3x4,f7x4,f7x7", &rnn_reverse, 0, 0},
  {"f3x5x4,f7x4,f7x7,f7@0.5:1,f7@0.5:1,f1x3x7@0:1", &rnn_both, 0, 1},   /* relu has kinks */
  {"f5x3x4@0:1,f7x4@0.1:0.2,f7x7@0:0.1,f7@0:1,f7@0:1,f1x3x7@0:1", &relu, 0, 0},
  {"f6x4,f33x4,f33x33@-0.2:0.2,f33,-,f1x33", NULL, 0, 0},
  {"f0x3x4,f7x4,f7x7,f7,f7,f1x3x7", NULL, 0, 0},
  {"f5x0x4,f7x4,f7x7,f7,f7", NULL, 0, 0},
  {"f1x1x4,f7x4,f7x7,f7,f7,f1x1x7", NULL, 0, 0},
  {NULL, NULL, 0, 0}};
static const rsi_sample gru_samples[] = {
  {"f5x3x4,f21x4,f21x7,f21,f21,f1x3x7", NULL, 0, 0},
  {"f5x3x4,f21x4,f21x7", &backwards, 0, 0},
  {"f3x5x4,f21x4,f21x7,f21,f21,f1x3x7", &both, 0, 0},
  {"f6x4,f99x4,f99x33@-0.2:0.2,f99,-,f1x33", NULL, 0, 0},
  {"f0x3x4,f21x4,f21x7,f21,f21,f1x3x7", NULL, 0, 0},
  {"f5x0x4,f21x4,f21x7,f21,f21", NULL, 0, 0},
  {"f1x1x4,f21x4,f21x7,f21,f21,f1x1x7", NULL, 0, 0},
  {"f9x37x5,f99x5,f99x33@-0.2:0.2,f99,f99,f1x37x33", NULL, 0, 1},
  {NULL, NULL, 0, 0}};
static const rsi_sample lstm_samples[] = {
  {"f5x3x4,f28x4,f28x7,f28,f28,f1x3x7,f1x3x7", NULL, 0, 0},
  {"f5x3x4,f28x4,f28x7", &backwards, 0, 0},
  {"f3x5x4,f28x4,f28x7,-,f28,f1x3x7,f1x3x7", &batch_first, 0, 0},
  {"f3x5x4,f28x4,f28x7,f28,f28,f1x3x7,f1x3x7", &both, 0, 0},
  {"f6x4,f132x4,f132x33@-0.2:0.2,f132,-,f1x33,f1x33", NULL, 0, 0},
  {"f4x2x3,f4x3,f4x1,f4,f4,-,f1x2x1", NULL, 0, 0},
  {"f0x3x4,f28x4,f28x7,f28,f28,f1x3x7,f1x3x7", NULL, 0, 0},
  {"f5x0x4,f28x4,f28x7,f28,f28", NULL, 0, 0},
  {"f1x1x4,f28x4,f28x7,f28,f28,f1x1x7,f1x1x7", NULL, 0, 0},
  {"f9x37x5,f132x5,f132x33@-0.2:0.2,f132,f132,f1x37x33,f1x37x33", &backwards, 0, 1},
  {"f5x29x5,f244x5,f244x61@-0.2:0.2,f244,f244,f1x29x61,f1x29x61", &backwards, 0, 1},   /* from here on by split tiles in f32 */
  {"f57x5x5,f240x5,f240x60@-0.2:0.2", &batch_first, 0, 1},
  {"f4x31x3,f760x3,f760x190@-0.1:0.1,-,f760,f1x31x190", NULL, 0, 1},
  {NULL, NULL, 0, 0}};
/* No second derivative. */
static const rsi_sample rnn_backward_samples[] = {
  {"f7x7,f5x3x7,f5x3x7,f1x3x7", NULL, 0, 1},
  {"f7x7,f3x5x7,-,f1x3x7", &rnn_both, 0, 1},
  {"f7x7,f0x3x7,f0x3x7,f1x3x7", NULL, 0, 1},
  {"f7x7,f1x7,f1x7", &rnn_reverse, 0, 1},
  {NULL, NULL, 0, 0}};
static const rsi_sample gru_backward_samples[] = {
  {"f21x7,f5x3x7,f5x3x28@0.1:0.9,f5x3x7,f1x3x7,f1x3x7", NULL, 0, 1},
  {"f21x7,f3x5x7,f3x5x28@0.1:0.9,-,f1x3x7", &both, 0, 1},
  {"f21x7,f0x3x7,f0x3x28@0.1:0.9,f0x3x7,f1x3x7,f1x3x7", NULL, 0, 1},
  {"f99x33@-0.2:0.2,f9x37x33,f9x37x132@0.1:0.9,f9x37x33", &backwards, 0, 1},
  {NULL, NULL, 0, 0}};
static const rsi_sample lstm_backward_samples[] = {
  {"f28x7,f5x3x35@0.1:0.9,f5x3x7,f1x3x7,f1x3x7,f1x3x7", NULL, 0, 1},
  {"f28x7,f3x5x35@0.1:0.9,-,f1x3x7", &both, 0, 1},
  {"f28x7,f0x3x35@0.1:0.9,f0x3x7,f1x3x7,f1x3x7,f1x3x7", NULL, 0, 1},
  {"f28x7,f1x35@0.1:0.9,f1x7,-,f1x7", &batch_first, 0, 1},
  {"f132x33@-0.2:0.2,f9x37x165@0.1:0.9,f9x37x33", &backwards, 0, 1},
  {"f244x61@-0.2:0.2,f5x29x305@0.1:0.9,f5x29x61", &backwards, 0, 1},   /* from here on by split tiles in f32 */
  {"f240x60@-0.2:0.2,f57x5x300@0.1:0.9,f57x5x60,f1x57x60,f1x57x60,f1x57x60", &batch_first, 0, 1},
  {"f760x190@-0.1:0.1,f4x31x950@0.1:0.9,f4x31x190", NULL, 0, 1},
  {NULL, NULL, 0, 0}};

const rs_op rsi_op_rnn = {
  .name = "rnn",
  .doc = "Elman layer over a sequence x [T, B, in] (or [T, in]): h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), f tanh or relu. "
         "Gives y [T, B, hidden] and the last h [1, B, hidden].",
  .inputs = "x,w_ih,w_hh,b_ih?,b_hh?,h0?", .nin_min = 3, .nin_max = 6, .nout = 2, .traits = RSI_T_NOT_METHOD,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(rnn), .infer = rnn_infer, .grad = rnn_grad, .saves = SAVES(RNN_CORE),
  .kernels = rnn_kernels, .samples = rnn_samples};

const rs_op rsi_op_rnn_backward = {
  .name = "rnn_backward", .doc = "Gradients of the sums of rnn, and of h0, from those of y and of the last h.",
  .inputs = "w_hh,y,gy?,gh?", .nin_min = 2, .nin_max = 4, .nout = 2, .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS | RSI_HALF,
  RSI_USES_ATTRS(rnn), .infer = rnn_backward_infer, .kernels = rnn_backward_kernels, .samples = rnn_backward_samples};

const rs_op rsi_op_gru = {
  .name = "gru",
  .doc = "Gated recurrent layer over a sequence (Cho and others 2014): r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh), "
         "n = tanh(W_in x + b_in + r (W_hn h + b_hn)), h' = (1 - z) n + z h; rows of the weights in the order r, z, n. Gives y and the "
         "last h.",
  .inputs = "x,w_ih,w_hh,b_ih?,b_hh?,h0?", .nin_min = 3, .nin_max = 6, .nout = 3, .nout_public = 2, .traits = RSI_T_NOT_METHOD,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(layer), .infer = gru_infer, .grad = gru_grad, .saves = SAVES(GRU_CORE),
  .kernels = gru_kernels, .samples = gru_samples};

const rs_op rsi_op_gru_backward = {
  .name = "gru_backward", .doc = "Gradients of the two kinds of sums of gru, and of h0, from those of y and of the last h.",
  .inputs = "w_hh,y,saved,gy?,gh?,h0?", .nin_min = 3, .nin_max = 6, .nout = 3, .traits = RSI_T_INTERNAL,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(layer), .infer = gru_backward_infer, .kernels = gru_backward_kernels,
  .samples = gru_backward_samples};

const rs_op rsi_op_lstm = {
  .name = "lstm",
  .doc = "Long short-term memory over a sequence (Hochreiter, Schmidhuber 1997): i, f, o = sigmoid(.), g = tanh(.) of "
         "W_ih x + b_ih + W_hh h + b_hh, c' = f c + i g, h' = o tanh(c'); rows of the weights in the order i, f, g, o. Gives y, the last h "
         "and the last c.",
  .inputs = "x,w_ih,w_hh,b_ih?,b_hh?,h0?,c0?", .nin_min = 3, .nin_max = 7, .nout = 4, .nout_public = 3, .traits = RSI_T_NOT_METHOD,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(layer), .infer = lstm_infer, .grad = lstm_grad, .saves = SAVES(LSTM_CORE),
  .kernels = lstm_kernels, .samples = lstm_samples};

const rs_op rsi_op_lstm_backward = {
  .name = "lstm_backward", .doc = "Gradients of the sums of lstm, of h0 and of c0, from those of y, of the last h and of the last c.",
  .inputs = "w_hh,saved,gy?,gh?,gc?,c0?", .nin_min = 2, .nin_max = 6, .nout = 3, .traits = RSI_T_INTERNAL,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(layer), .infer = lstm_backward_infer, .kernels = lstm_backward_kernels,
  .samples = lstm_backward_samples};
