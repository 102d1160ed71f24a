/* The loops of kernels/split_wgrad.h. Only to be called where rsi_cpu_amx(); the functions are NULL below AVX-512. */
#include "kernels/split_wgrad.h"

#if RSI_ISA_LEVEL == 2

enum { STAGE = RSI_WGRAD_STAGE, STAGE_HALF = STAGE / 4, STAGE_ROW = (STAGE + 1) * RSI_SIDE, SIDE = RSI_SIDE };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- what is to be split --------------------------------------------------------------------------------------------------- */

/*
** Splitting is done between the products, whose tiles leave the vector units and the memory idle. Measured, its arithmetic is free there
** if the steps are small (more than some dozen instructions in a row and the tiles run out of work); what it moves is not. What is to
** be split is a list of items.
** A step of an item of x is X_STEP columns of a pair of members in a row of their windows. Of dy, STAGE pixels of each member are
** copied side by side, a step each (the members often lie a power of two apart, in one set of the cache), then each pixel is transposed
** in two steps, for 16 members each, and split in four. A bf16 image is taken 32 channels at a time, so items are pairs of blocks there;
** the numbers of two members are made units, and those of dy are transposed, half of the channels in a step.
*/
enum { X_STEP = 3, X_STEP_HALF = 8, Y_STEP = 4, PIXEL_STEPS = 2 + SIDE / Y_STEP, PIXEL_STEPS_HALF = 2, MOST_ITEMS = 40, ONE = 1 << 16 };

typedef struct item {
  bool    dy;
  bool    wide;                        /* bf16: there is a second block */
  uint32_t exist;                      /* bf16: the channels that do */
  int64_t group, block, first, last;   /* rows of windows, or of bands */
  uint16_t *to;                        /* dy: the first row; x: row 0 of the block's ring */
  int64_t to_block;                    /* to the second block */
} item;

/* Where a member lies: its image (-1: there is none), and the first row and column of its band of dy. */
typedef struct member { int64_t image, row, column; } member;

typedef struct splitter {
  const rsi_split_wgrad *s;
  float  *stage, *turned;              /* [32][STAGE + 1][16], [2][16][16] */
  int64_t lo, hi;                      /* columns of windows that hold something */
  int64_t group;                       /* whose members these are */
  member  m[RSI_DEEP];
  item    items[MOST_ITEMS];
  int     count, at;                   /* items; the one at hand. In it: */
  int64_t row, column, step;           /* x: row and column of windows, unit; dy: line, first column of the stage, and step there */
  int64_t count_here;                  /* dy: pixels of the stage */
  const char *from[2];                 /* x: the rows of two members (NULL: zeros), and the columns there */
  int64_t from_column[2];
  const char *next[2];                 /* those that come next, and how far their columns are from these */
  int64_t next_move[2];
  int64_t rate, credit;                /* steps for each part of a run of products, in 1 / ONE */
} splitter;

/* Whether taps side by side are summed together; then all of them have the columns of all. */
static bool sweeps(const rsi_split_wgrad *s) { return s->parts == 1 && s->kw > 1; }
static int64_t taps_together(int64_t left) { return left == 4 ? 2 : least(left, 3); }

static void begin_splitter(splitter *q, const rsi_split_wgrad *s, float *stage) {
  q->s = s, q->stage = stage, q->turned = stage + RSI_DEEP * STAGE_ROW, q->group = -1, q->count = q->at = 0, q->credit = q->rate = 0;
  q->lo = 0, q->hi = s->win_w;
  if (s->bands_w > 1 || sweeps(s)) return;
  q->lo = (s->before_w + s->unit_w - 1) / s->unit_w;
  q->hi = least(s->win_w, (s->w - 1 + s->before_w) / s->unit_w + 1);
}

/* Rows of windows that no member has hold nothing, and are never asked for. */
static bool row_exists(const rsi_split_wgrad *s, int64_t j) {
  return s->bands_h > 1 || (j * s->unit_h >= s->before_h && j * s->unit_h - s->before_h < s->h);
}

static void find_members(splitter *q, int64_t group) {
  const rsi_split_wgrad *const s = q->s;
  q->group = group;
  for (int64_t i = 0; i < RSI_DEEP; i++) {
    const int64_t number = group * RSI_DEEP + i, band = number / s->n;
    const bool exists = band < s->bands_h * s->bands_w;
    q->m[i] = (member){exists ? number % s->n : -1, band / s->bands_w * s->rows, band % s->bands_w * s->columns};
  }
}

static int64_t stage_of(const rsi_split_wgrad *s) { return s->parts == 1 ? STAGE_HALF : STAGE; }
static int64_t x_step_of(const rsi_split_wgrad *s) { return s->parts == 1 ? X_STEP_HALF : X_STEP; }
static int64_t pixel_steps_of(const rsi_split_wgrad *s) { return s->parts == 1 ? PIXEL_STEPS_HALF : PIXEL_STEPS; }

/* Rows of dy of an item as lines: one of all, when bands are as wide as the image. */
static int64_t lines_of(const rsi_split_wgrad *s, const item *e) { return s->bands_w == 1 ? 1 : e->last - e->first; }
static int64_t width_of(const rsi_split_wgrad *s, const item *e) { return s->bands_w == 1 ? (e->last - e->first) * s->columns : s->columns; }

static int64_t steps_of(const splitter *q, const item *e) {
  const rsi_split_wgrad *const s = q->s;
  const int64_t width = width_of(s, e), stage = stage_of(s);
  if (e->dy) return lines_of(s, e) * (width * pixel_steps_of(s) + (width + stage - 1) / stage * RSI_DEEP);
  int64_t rows = 0;
  for (int64_t j = e->first; j < e->last; j++) rows += row_exists(s, j);
  return rows * ((q->hi - q->lo + x_step_of(s) - 1) / x_step_of(s)) * SIDE;
}

/* The first pixel that a member sees in row j of its window, if that is inside the image; NULL: the row is not. */
static const char *seen_row(const splitter *q, const item *e, const member *m, int64_t j) {
  const rsi_split_wgrad *const s = q->s;
  const int64_t y = (m->row * s->step_h + j) * s->unit_h - s->before_h;
  return m->image >= 0 && y >= 0 && y < s->h
    ? s->x.data + m->image * s->x.image + e->block * s->x.block + y * s->w * s->x.pixel : NULL;
}

/* Looks for what unit q->step sees in row q->row of the windows; the next one is fetched while this one is split. */
static void begin_unit(splitter *q, const item *e) {
  const rsi_split_wgrad *const s = q->s;
  q->column = q->lo;
  for (int h = 0; h < 2; h++) {
    const member *const m = &q->m[q->step + h * SIDE], *const next = &q->m[(q->step + 1) % SIDE + h * SIDE];
    q->from[h] = seen_row(q, e, m, q->row);
    q->from_column[h] = (m->column * s->step_w + q->lo) * s->unit_w - s->before_w;
    q->next[h] = seen_row(q, e, next, q->row + (q->step + 1) / SIDE);
    q->next_move[h] = (next->column - m->column) * s->step_w * s->unit_w;
  }
}

static void begin_stage(splitter *q, const item *e) { q->step = 0, q->count_here = least(stage_of(q->s), width_of(q->s, e) - q->column); }

/* Items of rows that do not exist are passed over. */
static void begin_item(splitter *q) {
  for (; q->at < q->count; q->at++) {
    const item *const e = &q->items[q->at];
    if (e->group != q->group) find_members(q, e->group);
    if (e->dy) {
      q->row = q->column = 0;
      begin_stage(q, e);
      return;
    }
    q->row = e->first, q->step = 0;
    while (q->row < e->last && !row_exists(q->s, q->row)) q->row++;
    if (q->row == e->last || q->lo >= q->hi) continue;
    begin_unit(q, e);
    return;
  }
}

static void add_item(splitter *q, item e) {
  if (e.first >= e.last) return;
  q->items[q->count++] = e;
  if (q->at == q->count - 1) begin_item(q);
}

/* ---- splitting ----------------------------------------------------------------------------------------------------------- */

RSI_TILES_IN __m512 pixel_at(const char *row, int64_t at, int64_t width) {
  const bool inside = row != NULL && at >= 0 && at < width;
  return inside ? _mm512_loadu_ps(row + at * (int64_t)sizeof(__m512)) : _mm512_setzero_ps();
}

RSI_TILES_IN void fetch(const char *row, int64_t at, int64_t width) {
  if (row != NULL && at >= 0 && at < width) _mm_prefetch(row + at * (int64_t)sizeof(__m512), _MM_HINT_T1);
}

/* Some columns of a pair of members; whether the item is done. */
RSI_TILES_IN bool split_x(splitter *q, const item *e) {
  const rsi_split_wgrad *const s = q->s;
  const int64_t pixel = rsi_wgrad_pixel(RSI_PARTS);
  uint16_t *to = e->to + (q->row % s->ring * s->win_w + q->column) * pixel + q->step * RSI_DEEP;
  for (int n = 0; n < X_STEP && q->column < q->hi; n++, to += pixel, q->column++) {
    __m512i part[RSI_PARTS];
    rsi_split(pixel_at(q->from[0], q->from_column[0], s->w), pixel_at(q->from[1], q->from_column[1], s->w), part);
    for (int i = 0; i < RSI_PARTS; i++) _mm512_store_si512((void *)(to + i * RSI_TILE), part[i]);
    for (int h = 0; h < 2; h++) {
      fetch(q->next[h], q->from_column[h] + q->next_move[h], s->w);
      q->from_column[h] += s->unit_w;
    }
  }
  if (q->column < q->hi) return false;
  if (++q->step == SIDE) {
    q->step = 0, q->row++;
    while (q->row < e->last && !row_exists(s, q->row)) q->row++;
    if (q->row == e->last) return true;
  }
  begin_unit(q, e);
  return false;
}

/* Some columns of a pair of members, of two blocks of bf16, then those of the next pair. To fetch ahead did not pay here. */
RSI_TILES_IN bool split_x_half(splitter *q, const item *e) {
  const rsi_split_wgrad *const s = q->s;
  const int64_t last = least(q->column + X_STEP_HALF, q->hi), pixel = rsi_wgrad_pixel(1);
  uint16_t *to = e->to + (q->row % s->ring * s->win_w + q->column) * pixel + q->step * RSI_DEEP;
  const char *from[2];
  int64_t at[2];
  for (int h = 0; h < 2; h++) {
    const member *const m = &q->m[q->step + h * SIDE];
    from[h] = seen_row(q, e, m, q->row);
    at[h] = from[h] != NULL ? (m->column * s->step_w + q->column) * s->unit_w - s->before_w : s->w;
  }
  for (int64_t c = q->column; c < last; c++, to += pixel) {
    __m512i v[2];
    for (int h = 0; h < 2; h++) {
      const bool inside = at[h] >= 0 && at[h] < s->w;
      v[h] = inside ? _mm512_maskz_loadu_epi16(e->exist, from[h] + at[h] * s->x.pixel) : _mm512_setzero_si512();
      at[h] += s->unit_w;
    }
    /* Units of channels 0..3, 8..11, ... and 4..7, 12..15, ... */
    const __m512i low = _mm512_unpacklo_epi16(v[0], v[1]), high = _mm512_unpackhi_epi16(v[0], v[1]);
    _mm512_store_si512((void *)to, _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high));
    if (e->wide)
      _mm512_store_si512((void *)(to + e->to_block), _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high));
  }
  if (++q->step < SIDE) return false;
  q->step = 0, q->column = last;
  if (last < q->hi) return false;
  q->column = q->lo, q->row++;
  while (q->row < e->last && !row_exists(s, q->row)) q->row++;
  return q->row == e->last;
}

/* `count` pixels of member u from `column` of a line on: where they are, and how many of them there are. */
RSI_TILES_IN int64_t find_dy(const splitter *q, const item *e, int64_t u, int64_t column, int64_t count, const char **from) {
  const rsi_split_wgrad *const s = q->s;
  const member *const m = &q->m[u];
  const int64_t row = m->row + e->first + q->row, at = m->column + column;
  const int64_t all = s->bands_w == 1 ? (s->oh - row) * s->ow : s->ow;         /* the first pixel that is not there */
  const int64_t there = m->image >= 0 && row < s->oh ? most(least(count, all - at), 0) : 0;
  *from = there > 0 ? s->dy.data + m->image * s->dy.image + e->block * s->dy.block + (row * s->ow + at) * s->dy.pixel : NULL;
  return there;
}

/* The pixels of member u that belong to the stage; those of a later member, or of the next stage, are fetched. */
RSI_TILES_IN void copy_dy(int parts, const splitter *q, const item *e, int64_t u) {
  enum { AHEAD = 4 };
  const int64_t pixel = q->s->dy.pixel, stage = parts == 1 ? STAGE_HALF : STAGE;
  const char *from, *later;
  float *const to = q->stage + u * STAGE_ROW;
  const int64_t there = find_dy(q, e, u, q->column, q->count_here, &from);
  const int64_t wrap = u + AHEAD >= RSI_DEEP, column = q->column + wrap * stage;
  const int64_t coming = find_dy(q, e, (u + AHEAD) % RSI_DEEP, column, least(stage, width_of(q->s, e) - column), &later);
  if (parts == 1)
    for (int64_t i = 0; i < there; i++) _mm512_store_si512(to + i * SIDE, _mm512_maskz_loadu_epi16(e->exist, from + i * pixel));
  else
    for (int64_t i = 0; i < there; i++) _mm512_store_ps(to + i * SIDE, _mm512_loadu_ps(from + i * (int64_t)sizeof(__m512)));
  for (int64_t i = there; i < q->count_here; i++) _mm512_store_ps(to + i * SIDE, _mm512_setzero_ps());
  for (int64_t i = 0; parts > 1 && i < coming; i++) _mm_prefetch(later + i * pixel, _MM_HINT_T1);
}

/* A pixel of the stage, half of the channels of a pair of blocks: 0..3, 8..11, ... or 4..7, 12..15, ... */
RSI_TILES_IN void transpose_half(const splitter *q, const item *e, int64_t pixel, int64_t half) {
  const float *const from = q->stage + pixel * SIDE;
  uint16_t *const to = e->to + (q->row * q->s->columns + q->column + pixel) * rsi_wgrad_pixel(1) + half * 4 * RSI_DEEP;
  __m512 v[SIDE];
  for (int u = 0; u < SIDE; u++) {
    const __m512i x = _mm512_load_si512(from + u * STAGE_ROW), y = _mm512_load_si512(from + (u + SIDE) * STAGE_ROW);
    v[u] = _mm512_castsi512_ps(half ? _mm512_unpackhi_epi16(x, y) : _mm512_unpacklo_epi16(x, y));
  }
  rsi_transpose16(v);
  for (int r = 0; r < SIDE; r++) {
    const int channel = r / 4 * 8 + r % 4;
    _mm512_store_ps((void *)(to + (channel % SIDE) * RSI_DEEP + (channel < SIDE ? 0 : e->to_block)), v[r]);
  }
}

RSI_TILES_IN bool split_dy(int parts, splitter *q, const item *e) {
  const rsi_split_wgrad *const s = q->s;
  const int64_t steps = parts == 1 ? PIXEL_STEPS_HALF : PIXEL_STEPS;
  if (q->step < RSI_DEEP) {
    copy_dy(parts, q, e, q->step++);
    return false;
  }
  const int64_t at = q->step - RSI_DEEP, pixel = at / steps, part = at % steps;
  if (parts == 1) {
    if (part == 0) transpose_half(q, e, pixel, 0);
    else transpose_half(q, e, pixel, 1);
  } else if (part < 2) {
    const float *const from = q->stage + part * SIDE * STAGE_ROW + pixel * SIDE;
    __m512 v[SIDE];
    for (int u = 0; u < SIDE; u++) v[u] = _mm512_load_ps(from + u * STAGE_ROW);
    rsi_transpose16(v);
    for (int u = 0; u < SIDE; u++) _mm512_store_ps(q->turned + (part * SIDE + u) * SIDE, v[u]);
  } else {
    const int64_t r = (part - 2) * Y_STEP;
    uint16_t *const to = e->to + (q->row * s->columns + q->column + pixel) * rsi_wgrad_pixel(parts) + r * RSI_DEEP;
    const float *const low = q->turned + r * SIDE, *const high = low + SIDE * SIDE;
    for (int64_t i = 0; i < Y_STEP; i++) {
      __m512i p[RSI_PARTS];
      rsi_split(_mm512_load_ps(low + i * SIDE), _mm512_load_ps(high + i * SIDE), p);
      for (int k = 0; k < RSI_PARTS; k++) _mm512_store_si512((void *)(to + k * RSI_TILE + i * RSI_DEEP), p[k]);
    }
  }
  if (++q->step < RSI_DEEP + q->count_here * steps) return false;
  q->column += parts == 1 ? STAGE_HALF : STAGE;
  if (q->column >= width_of(s, e)) {
    q->column = 0;
    if (++q->row == lines_of(s, e)) return true;
  }
  begin_stage(q, e);
  return false;
}

RSI_TILES static void split_step(splitter *q) {
  const item *const e = &q->items[q->at];
  const bool half = q->s->parts == 1;
  if (!(half ? e->dy ? split_dy(1, q, e) : split_x_half(q, e) : e->dy ? split_dy(RSI_PARTS, q, e) : split_x(q, e))) return;
  q->at++;
  begin_item(q);
}

static void split_until(splitter *q, int item_at) {
  while (q->at < item_at) split_step(q);
}

__attribute__((noinline)) static void split_some(splitter *q) {
  for (; q->credit >= ONE; q->credit -= ONE)
    if (q->at < q->count) split_step(q);
}

/* ---- products ------------------------------------------------------------------------------------------------------------ */

typedef struct work {
  const rsi_split_wgrad *s;
  const rsi_wgrad_piece *p;
  rsi_wgrad_area *areas;               /* of the taps, in this chunk */
  uint16_t *a[2], *b;                  /* a: two pairs of blocks, one in use */
  int64_t a_block, a_row, b_block, b_row, b_column, b_tap;   /* elements to the next block, row, column, and tap to the right */
  float *sums, *part;                  /* part: of a chain of products */
  splitter q;
} work;

/* Between products there is splitting, as much as keeps pace. */
RSI_TILES_IN void split_between(void *arg) {
  splitter *const q = arg;
  if ((q->credit += q->rate) >= ONE) split_some(q);
}

/* The products of an area, from a and b on, to sums: [2][2][16][16], of which down x across tiles are used, 1 or 2 of each. */
RSI_TILES_IN void multiply(int parts, int down, int across, work *w, const rsi_wgrad_area *z, const uint16_t *a, const uint16_t *b,
                           float *sums) {
  const int64_t pixel = rsi_wgrad_pixel(parts);
  int64_t line = z->line;
  rsi_split_begin(down, across);
  for (int64_t r = 0; r < z->rows; r++) {
    const uint16_t *a0 = a + r * w->a_row, *b0 = b + line * w->b_row;
    for (int64_t c = 0; c < z->columns; c++, a0 += pixel, b0 += w->b_column)
      rsi_split_run(parts, down, across, a0, a0 + w->a_block, RSI_TILE, b0, b0 + w->b_block, RSI_TILE, split_between, &w->q);
    line += w->s->step_h;
    while (line >= w->s->ring) line -= w->s->ring;
  }
  rsi_split_end(down, across, sums, 512);
}

/*
** The products of an area of bf16 with `taps` taps that lie side by side, w->b_tap apart: of one or two blocks of dy with one of x, added
** to what is there if `more`. With one product for a pair of tiles, bringing those from the second-level cache is what takes time: here a
** tile of x comes from there once for all these taps, and one of dy, too.
*/
RSI_TILES_IN void sweep(int down, int taps, work *w, const rsi_wgrad_area *z, const uint16_t *a, const uint16_t *b, bool more,
                        float *sums) {
  const bool lower = down > 1;
  const int64_t pixel = rsi_wgrad_pixel(1), tap = w->b_tap;
  splitter *const q = &w->q;
#define EACH(DO) { DO(0, 0, 0) if (taps > 1) DO(1, 1, 0) if (taps > 2) DO(2, 2, 0)                                          \
    if (lower) { DO(3, 0, 1) if (taps > 1) DO(4, 1, 1) if (taps > 2) DO(5, 2, 1) } }
#define AT(t, h) (sums + (t) * RSI_WGRAD_SUMS + (h) * (RSI_WGRAD_SUMS / 2))
#define BEGIN(n, t, h) { if (more) _tile_loadd(n, AT(t, h), 64); else _tile_zero(n); }
#define END(n, t, h) _tile_stored(n, AT(t, h), 64);
  EACH(BEGIN)
  int64_t line = z->line;
  for (int64_t r = 0; r < z->rows; r++) {
    const uint16_t *a0 = a + r * w->a_row, *b0 = b + line * w->b_row;
    for (int64_t c = 0; c < z->columns; c++) {
      _tile_loadd(6, a0, 64);
      _tile_loadd(7, b0, 64);
      _tile_dpbf16ps(0, 6, 7);
      if (taps > 1) {
        _tile_loadd(7, b0 + tap, 64);
        _tile_dpbf16ps(1, 6, 7);
      }
      if (taps > 2) {
        _tile_loadd(7, b0 + 2 * tap, 64);
        _tile_dpbf16ps(2, 6, 7);
      }
      split_between(q);
      if (lower) {
        _tile_loadd(6, a0 + w->a_block, 64);
        if (taps > 2) {
          _tile_dpbf16ps(5, 6, 7);
          _tile_loadd(7, b0 + tap, 64);
        }
        if (taps > 1) {
          _tile_dpbf16ps(4, 6, 7);
          _tile_loadd(7, b0, 64);
        }
        _tile_dpbf16ps(3, 6, 7);
        split_between(q);
      }
      a0 += pixel, b0 += w->b_column;
    }
    line += w->s->step_h;
    while (line >= w->s->ring) line -= w->s->ring;
  }
  EACH(END)
#undef EACH
#undef AT
#undef BEGIN
#undef END
}

/* Rows (columns) first..last - 1 of `count` of dy from `from` on at which a tap is inside an image of `size`. */
static void inside(int64_t from, int64_t count, int64_t stride, int64_t tap, int64_t before, int64_t size, int64_t *first, int64_t *last) {
  const int64_t start = before - tap, end = size - 1 + before - tap;     /* start <= row * stride <= end */
  const int64_t lo = start <= 0 ? 0 : (start + stride - 1) / stride, hi = end < 0 ? 0 : end / stride + 1;
  *first = most(lo, from), *last = most(least(hi, from + count), *first);
}

/* Rows of dy of a chunk: where they begin in the bands of the group, and those of windows that they see. */
typedef struct chunk_at { int64_t group, row, rows, begin, end; } chunk_at;

static chunk_at chunk_of(const rsi_split_wgrad *s, int64_t number) {
  const int64_t row = number % s->chunks * s->chunk, rows = least(s->chunk, s->rows - row);
  return (chunk_at){number / s->chunks, row, rows, row * s->step_h, (row + rows - 1) * s->step_h + (s->kh - 1) * s->tap_h + 1};
}

/* The areas of a chunk; where in the products of a pair of blocks of dy there may be splitting, so many times. */
static int64_t find_areas(work *w, const chunk_at *t, bool lower) {
  const rsi_split_wgrad *const s = w->s;
  const int64_t pixel = rsi_wgrad_pixel(s->parts);
  int64_t runs = 0;
  for (int64_t r = 0; r < s->kh; r++)
    for (int64_t c = 0; c < s->kw; c++) {
      int64_t top = t->row, bottom = t->row + t->rows, left = 0, right = s->columns;
      if (s->bands_h == 1) inside(t->row, t->rows, s->step_h * s->unit_h, r * s->tap_h * s->unit_h, s->before_h, s->h, &top, &bottom);
      if (s->bands_w == 1 && !sweeps(s))
        inside(0, s->columns, s->step_w * s->unit_w, c * s->tap_w * s->unit_w, s->before_w, s->w, &left, &right);
      w->areas[r * s->kw + c] = (rsi_wgrad_area){bottom - top, right - left, (top - t->row) * w->a_row + left * pixel,
                                                 (left * s->step_w + c * s->tap_w) * pixel, (top * s->step_h + r * s->tap_h) % s->ring};
      runs += (bottom - top) * (right - left);
    }
  const int64_t in = w->p->i1 - w->p->i0;
  if (!sweeps(s)) return runs * rsi_wgrad_pairs(in) * (s->parts > 1 ? 6 : 1);
  int64_t sweep_count = 0;
  for (int64_t c = 0; c < s->kw; c += taps_together(s->kw - c)) sweep_count++;
  return runs / s->kw * sweep_count * in * (lower ? 2 : 1);
}

/* Products of a pair of blocks of dy with all of x. before[i]: items to be done before block i of x is used. */
RSI_TILES_IN void products_of(int parts, work *w, int64_t o, const uint16_t *a, const int *before, bool more) {
  const rsi_split_wgrad *const s = w->s;
  const int64_t in = w->p->i1 - w->p->i0, taps = s->kh * s->kw;
  const bool lower = o + 1 < w->p->o1 - w->p->o0;
  float *sums = w->sums + o / 2 * rsi_wgrad_pairs(in) * taps * RSI_WGRAD_SUMS;
  for (int64_t i = 0; i < in; i += 2) {
    const bool wide = i + 1 < in;
    split_until(&w->q, before[wide ? i + 1 : i]);
    for (int64_t t = 0; t < taps; t++, sums += RSI_WGRAD_SUMS) {
      const rsi_wgrad_area *const z = &w->areas[t];
      float *const to = more ? w->part : sums;
      const uint16_t *const from_a = a + z->a, *const from_b = w->b + i * w->b_block + z->b;
      if (lower && wide) multiply(parts, 2, 2, w, z, from_a, from_b, to);
      else if (lower) multiply(parts, 2, 1, w, z, from_a, from_b, to);
      else if (wide) multiply(parts, 1, 2, w, z, from_a, from_b, to);
      else multiply(parts, 1, 1, w, z, from_a, from_b, to);
      for (int64_t k = 0; more && k < RSI_WGRAD_SUMS; k += SIDE)
        _mm512_store_ps(sums + k, _mm512_add_ps(_mm512_load_ps(sums + k), _mm512_load_ps(to + k)));
    }
  }
}

/* The same by sweeps. */
RSI_TILES static void products_side_by_side(work *w, int64_t o, const uint16_t *a, const int *before, bool more) {
  const rsi_split_wgrad *const s = w->s;
  const int64_t in = w->p->i1 - w->p->i0, taps = s->kh * s->kw;
  const bool lower = o + 1 < w->p->o1 - w->p->o0;
  for (int64_t i = 0; i < in; i++) {
    float *const sums = w->sums + (o / 2 * rsi_wgrad_pairs(in) + i / 2) * taps * RSI_WGRAD_SUMS + i % 2 * (RSI_WGRAD_SUMS / 4);
    split_until(&w->q, before[i]);
    for (int64_t r = 0; r < s->kh; r++)
      for (int64_t c = 0, n; c < s->kw; c += n) {
        const rsi_wgrad_area *const z = &w->areas[r * s->kw + c];
        float *const to = sums + (r * s->kw + c) * RSI_WGRAD_SUMS;
        const uint16_t *const from_a = a + z->a, *const from_b = w->b + i * w->b_block + z->b;
        n = taps_together(s->kw - c);
        if (lower) {
          if (n == 3) sweep(2, 3, w, z, from_a, from_b, more, to);
          else if (n == 2) sweep(2, 2, w, z, from_a, from_b, more, to);
          else sweep(2, 1, w, z, from_a, from_b, more, to);
        } else {
          if (n == 3) sweep(1, 3, w, z, from_a, from_b, more, to);
          else if (n == 2) sweep(1, 2, w, z, from_a, from_b, more, to);
          else sweep(1, 1, w, z, from_a, from_b, more, to);
        }
      }
  }
}

RSI_TILES static void products(work *w, int64_t o, const uint16_t *a, const int *before, bool more) {
  if (sweeps(w->s)) products_side_by_side(w, o, a, before, more);
  else if (w->s->parts == 1) products_of(1, w, o, a, before, more);
  else products_of(RSI_PARTS, w, o, a, before, more);
}

/* Steps at each place, so that the items are done when the products are. */
static void set_rate(splitter *q, int64_t places) {
  int64_t steps = 0;
  for (int i = q->at; i < q->count; i++) steps += steps_of(q, &q->items[i]);
  q->credit = 0, q->rate = places > 0 ? (steps * ONE + places - 1) / places : 0;
}

/* Items of blocks i, or of blocks i and i + 1 of a bf16 image when i is even. */
static void add_block(work *w, const rsi_wgrad_image *m, item e, int64_t i, int64_t first, int64_t last, uint16_t *to, int64_t to_block) {
  e.block = first + i, e.to = to + i * to_block, e.to_block = to_block;
  if (w->s->parts == 1) {
    if (i % 2 != 0) return;
    const int64_t channels = least(m->channels - e.block * SIDE, RSI_DEEP);
    e.wide = e.block + 1 < last, e.exist = channels == RSI_DEEP ? UINT32_MAX : (1u << channels) - 1;
  }
  add_item(&w->q, e);
}

static void add_x(work *w, const chunk_at *t, int64_t i, int64_t known) {
  const item e = {.dy = false, .group = t->group, .first = most(t->begin, known), .last = t->end};
  add_block(w, &w->s->x, e, i, w->p->i0, w->p->i1, w->b, w->b_block);
}

static void add_dy(work *w, const chunk_at *t, int64_t o, uint16_t *to) {
  const item e = {.dy = true, .group = t->group, .first = t->row, .last = t->row + t->rows};
  for (int64_t h = 0; h < 2 && o + h < w->p->o1 - w->p->o0; h++) add_block(w, &w->s->dy, e, h, w->p->o0 + o, w->p->o1, to, w->a_block);
}

RSI_TILES static void sum(const rsi_split_wgrad *s, const rsi_wgrad_piece *p, float *sums, void *scratch) {
  const int64_t in = p->i1 - p->i0, pairs = rsi_wgrad_pairs(p->o1 - p->o0);
  const int64_t pixel = rsi_wgrad_pixel(s->parts);
  int before[MOST_ITEMS] = {0};
  work w = {.s = s, .p = p, .sums = sums, .a_block = s->chunk * s->columns * pixel, .a_row = s->columns * pixel,
            .b_block = s->ring * s->win_w * pixel, .b_row = s->win_w * pixel, .b_column = s->step_w * pixel, .b_tap = s->tap_w * pixel};
  w.part = scratch;
  begin_splitter(&w.q, s, w.part + RSI_WGRAD_SUMS);
  w.a[0] = (uint16_t *)(void *)(w.q.turned + 2 * SIDE * SIDE), w.a[1] = w.a[0] + 2 * w.a_block, w.b = w.a[1] + 2 * w.a_block;
  w.areas = (rsi_wgrad_area *)(void *)(w.b + in * w.b_block);
  for (int64_t k = 0; k < RSI_WGRAD_SUMS; k++) w.part[k] = 0;
  rsi_tiles_begin();
  int64_t turn = 0;
  chunk_at t = chunk_of(s, p->first);
  add_dy(&w, &t, 0, w.a[0]);
  bool fresh = true;                       /* nothing of this chunk's windows is there */
  for (int64_t number = p->first; number < p->last; number++) {
    const chunk_at next = chunk_of(s, number + 1);
    const bool last = number + 1 == p->last, follows = !last && next.group == t.group;
    for (int64_t o = 0; o < pairs; o++, turn++) {
      /* What pair o needs is split; the rest of the list is for those after it. */
      if (o == 0 && fresh)
        for (int64_t i = 0; i < in; i++) {
          add_x(&w, &t, i, 0);
          before[i] = w.q.count;
        }
      else {
        split_until(&w.q, w.q.count);
        w.q.count = w.q.at = 0;
        for (int64_t i = 0; i < in; i++) before[i] = 0;
      }
      if (o + 1 < pairs) add_dy(&w, &t, 2 * o + 2, w.a[(turn + 1) % 2]);
      if (follows)
        for (int64_t i = in * o / pairs; i < in * (o + 1) / pairs; i++) add_x(&w, &next, i, t.end);
      if (o + 1 == pairs && !last) add_dy(&w, &next, 0, w.a[(turn + 1) % 2]);
      set_rate(&w.q, find_areas(&w, &t, 2 * o + 1 < p->o1 - p->o0));
      products(&w, 2 * o, w.a[turn % 2], before, number > p->first);
    }
    split_until(&w.q, w.q.count);
    w.q.count = w.q.at = 0;
    t = next, fresh = !follows;
  }
  _tile_release();
}

/* ---- the result ---------------------------------------------------------------------------------------------------------- */

RSI_TILES static bool finish(const rsi_split_wgrad *s, const rsi_wgrad_piece *p, int64_t o, int64_t parts, int64_t part, const float *sums,
                             float *dw) {
  enum { NOT_FINITE = 0x99 };
  const int64_t filters = s->dy.channels, channels = s->x.channels;
  const int64_t taps = s->kh * s->kw, pairs = rsi_wgrad_pairs(p->i1 - p->i0), at = o - p->o0;
  __mmask16 odd = 0;
  sums += at / 2 * pairs * taps * RSI_WGRAD_SUMS + at % 2 * (RSI_WGRAD_SUMS / 2);
  for (int64_t i = p->i0; i < p->i1; i++) {
    const int64_t k = i - p->i0;
    const float *const from = sums + k / 2 * taps * RSI_WGRAD_SUMS + k % 2 * (RSI_WGRAD_SUMS / 4);
    const int64_t columns = least(channels - i * SIDE, SIDE);
    for (int64_t r = 0; r < SIDE && o * SIDE + r < filters; r++) {
      float *const to = dw + ((o * SIDE + r) * channels + i * SIDE) * taps;
      for (int64_t t0 = 0; t0 < taps; t0 += SIDE) {
        const int64_t count = least(taps - t0, SIDE);
        __m512 v[SIDE];
        for (int t = 0; t < SIDE; t++) {
          v[t] = _mm512_setzero_ps();
          if (t >= count) continue;
          const float *const line = from + (t0 + t) * RSI_WGRAD_SUMS + r * SIDE;
          v[t] = _mm512_load_ps(line);
          for (int64_t q = 1; q < parts; q++) v[t] = _mm512_add_ps(v[t], _mm512_load_ps(line + q * part));
          odd |= (s->parts == 1 ? _mm512_fpclass_ps_mask(v[t], NOT_FINITE) : rsi_odd(v[t])) & rsi_first_of(columns);
        }
        if (taps == 1) {
          _mm512_mask_storeu_ps(to, rsi_first_of(columns), v[0]);
          continue;
        }
        rsi_transpose16(v);
        for (int64_t c = 0; c < columns; c++) _mm512_mask_storeu_ps(to + c * taps + t0, rsi_first_of(count), v[c]);
      }
    }
  }
  return odd != 0;
}

const rsi_k_split_wgrad RSI_ISA(rsi_k_split_wgrad) = {.sum = sum, .finish = finish};
#else
const rsi_k_split_wgrad RSI_ISA(rsi_k_split_wgrad) = {NULL, NULL};
#endif
