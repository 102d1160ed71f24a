/*
** Convolutions by split products. What a task does:
**   split    its part of the image becomes a (pack_rows, pack_images)
**   tiles    for each pair of blocks of the result and each pair of tiles of positions a chain of products, at most RSI_SPLIT_CHAIN
**            runs at once; longer sums are added up in f32
**   finish   bias, residual, clamp and store of 16 pixels x 16 channels, done while the next chain is multiplied
** A sum that may be wrong (rsi_odd) makes the task do all its results again by FMA.
*/
#include "kernels/split_conv.h"
#include "kernels/split_tiles.h"

#if RSI_ISA_LEVEL == 2

typedef rsi_split_conv conv;
enum { TABLE = RSI_SIDE, RING = 8, SUMS = 4 * 256, PIXEL = 32 };      /* PIXEL: elements of a position */

/* ---- scratch ----------------------------------------------------------------------------------------------------------- */

/* Tile t: rows at positions start[t].., and the pixel of y (in pixels from y's start, of block 0) of each row, or -1. */
typedef struct room {
  uint16_t *a;
  float    *sums, *acc;          /* [2][4][16][16]; [4][16][16] */
  int32_t  *out, *start;         /* [tiles][16], [tiles] */
  int32_t  *a_at, *b_at;         /* [runs * taps]: where a run of the chain lies, elements */
} room;

static size_t round64(size_t bytes) { return (bytes + 63) / 64 * 64; }

static int64_t most_taps(const conv *s) {
  int64_t most = 1;
  for (int64_t p = 0; p < s->phases; p++)
    if (s->phase[p].taps > most) most = s->phase[p].taps;
  return most;
}

static int64_t tile_count(const conv *s) { return (s->by_image ? 0 : s->tiles) + RING; }

static size_t room_of(const conv *s, char *at, room *z) {
  const int64_t taps = most_taps(s);
  size_t a = (size_t)(s->runs * RSI_PARTS * s->positions * PIXEL) * sizeof(uint16_t);
  const size_t panel = (size_t)(s->runs * PIXEL * taps * RSI_SIDE) * sizeof(float);       /* of again() */
  if (a < panel) a = panel;
  char *const begin = at;
  if (z) z->a = (uint16_t *)(void *)at;
  at += round64(a);
  if (z) z->sums = (float *)(void *)at, z->acc = z->sums + 2 * SUMS;
  at += 3 * SUMS * sizeof(float);
  if (z) z->out = (int32_t *)(void *)at;
  at += round64((size_t)(tile_count(s) * TABLE) * sizeof(int32_t));
  if (z) z->start = (int32_t *)(void *)at;
  at += round64((size_t)tile_count(s) * sizeof(int32_t));
  if (z) z->a_at = (int32_t *)(void *)at;
  at += round64((size_t)(s->runs * taps) * sizeof(int32_t));
  if (z) z->b_at = (int32_t *)(void *)at;
  at += round64((size_t)(s->runs * taps) * sizeof(int32_t));
  return (size_t)(at - begin);
}

static size_t scratch_bytes(const conv *s) { return room_of(s, NULL, NULL); }

/* ---- pieces of images -------------------------------------------------------------------------------------------------- */

/* Rows [from, to) of the grids of image n; their positions begin at `at` in each image in steps. */
typedef struct piece { int64_t n, from, to, at; } piece;

/* The piece that begins at row `first` of all; the next begins after it. */
static bool next_piece(const conv *s, int64_t *first, int64_t last, piece *p) {
  if (*first >= last) return false;
  const int64_t n = *first / s->down, from = *first % s->down, left = last - *first;
  const int64_t rows = s->down - from < left ? s->down - from : left;
  p->n = n, p->from = from, p->to = from + rows;
  *first += rows;
  return true;
}

static int64_t piece_positions(const conv *s, const piece *p) { return (p->to - p->from + s->far_y) * s->pitch; }

/* ---- splitting the image ----------------------------------------------------------------------------------------------- */

RSI_TILES_IN void zeros(uint16_t *to, int64_t part, int64_t count) {
  for (int p = 0; p < RSI_PARTS; p++, to += part)
    for (int64_t i = 0; i < count; i++) _mm512_storeu_si512(to + i * PIXEL, _mm512_setzero_si512());
}

/* `count` pixels, `step` floats apart, of two blocks (y NULL: of one). */
RSI_TILES_IN void split_pixels(const float *x, const float *y, int64_t step, int64_t count, uint16_t *to, int64_t part, int64_t to_step) {
  for (int64_t i = 0; i < count; i++, x += step, to += to_step) {
    __m512i v[RSI_PARTS];
    const __m512 second = y != NULL ? _mm512_loadu_ps(y + i * step) : _mm512_setzero_ps();
    rsi_split(_mm512_loadu_ps(x), second, v);
    for (int p = 0; p < RSI_PARTS; p++) _mm512_storeu_si512(to + p * part, v[p]);
  }
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* One run of one piece; x0 and x1 are the planes of its two blocks. */
RSI_TILES static void pack_piece(const conv *s, const piece *p, const float *x0, const float *x1, uint16_t *a) {
  const int64_t part = s->positions * PIXEL;
  if (s->flat) {
    split_pixels(x0 + p->from * 16, x1 ? x1 + p->from * 16 : NULL, 16, p->to - p->from, a + p->at * PIXEL, part, PIXEL);
    return;
  }
  const int64_t rows = p->to - p->from + s->far_y;
  for (int64_t q = 0; q < s->step_h * s->step_w; q++) {
    if (s->sub[q] < 0) continue;
    const int64_t base_y = q / s->step_w + s->low_y, base_x = q % s->step_w + s->low_x;
    uint16_t *to = a + (s->sub[q] * s->each + p->at) * PIXEL;
    const int64_t begin = smaller(base_x < 0 ? divide_up(-base_x, s->step_w) : 0, s->pitch);
    const int64_t end = larger(smaller(s->w > base_x ? divide_up(s->w - base_x, s->step_w) : 0, s->pitch), begin);
    for (int64_t row = 0; row < rows; row++, to += s->pitch * PIXEL) {
      const int64_t y = (p->from + row) * s->step_h + base_y;
      if (y < 0 || y >= s->h) {
        zeros(to, part, s->pitch);
        continue;
      }
      const int64_t from = (y * s->w + begin * s->step_w + base_x) * 16;
      zeros(to, part, begin);
      split_pixels(x0 + from, x1 ? x1 + from : NULL, s->step_w * 16, end - begin, to + begin * PIXEL, part, PIXEL);
      zeros(to + end * PIXEL, part, s->pitch - end);
    }
    zeros(to, part, s->columns - s->pitch);
  }
}

RSI_TILES static void pack_rows(const conv *s, int64_t first, int64_t last, uint16_t *a) {
  const int64_t plane = s->h * s->w * 16;
  piece p = {0, 0, 0, 0};
  while (next_piece(s, &first, last, &p)) {
    for (int64_t r = 0; r < s->runs; r++) {
      const float *const x0 = s->x + (p.n * s->groups_in + 2 * r) * plane;
      pack_piece(s, &p, x0, 2 * r + 1 < s->groups_in ? x0 + plane : NULL, a + r * RSI_PARTS * s->positions * PIXEL);
    }
    p.at += piece_positions(s, &p);
  }
}

/* Up to 16 images from image `first` on. */
RSI_TILES static void pack_images(const conv *s, int64_t first, int64_t count, uint16_t *a) {
  const int64_t pixels = s->h * s->w, part = s->positions * PIXEL;
  for (int64_t r = 0; r < s->runs; r++, a += RSI_PARTS * part)
    for (int64_t i = 0; i < count; i++) {
      const float *const x0 = s->x + ((first + i) * s->groups_in + 2 * r) * pixels * 16;
      split_pixels(x0, 2 * r + 1 < s->groups_in ? x0 + pixels * 16 : NULL, 16, pixels, a + i * PIXEL, part, RSI_SPLIT_IMAGES * PIXEL);
    }
}

/* ---- tiles of positions ------------------------------------------------------------------------------------------------ */

typedef struct tiling { room *z; int64_t count; } tiling;

/* `count` results at positions start.., the first at pixel `out` of y, the others `step` apart. A tile begins where none reaches. */
RSI_TILES_IN void add_results(tiling *t, int64_t start, int64_t count, int64_t out, int64_t step) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int64_t done = 0; done < count;) {
    const int64_t at = start + done;
    if (t->count == 0 || at >= t->z->start[t->count - 1] + RSI_SIDE) {
      t->z->start[t->count] = (int32_t)at;
      _mm512_storeu_si512(t->z->out + t->count * TABLE, _mm512_set1_epi32(-1));
      t->count++;
    }
    const int64_t from = t->z->start[t->count - 1], low = at - from, high = smaller(RSI_SIDE, start + count - from);
    const __mmask16 mask = (__mmask16)(rsi_first_of(high) & ~rsi_first_of(low));
    const __m512i pixel = _mm512_add_epi32(_mm512_set1_epi32((int32_t)(out + (from - start) * step)),
                                           _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int32_t)step)));
    _mm512_mask_storeu_epi32(t->z->out + (t->count - 1) * TABLE, mask, pixel);
    done = from + high - start;
  }
}

RSI_TILES static int64_t make_tiles(const conv *s, const rsi_split_phase *f, int64_t first, int64_t last, room *z) {
  const int64_t plane = s->oh * s->ow;
  tiling t = {z, 0};
  piece p = {0, 0, 0, 0};
  while (next_piece(s, &first, last, &p)) {
    const int64_t image = p.n * s->groups_out * plane;
    if (s->flat) add_results(&t, p.at, p.to - p.from, image + p.from, 1);
    else
      for (int64_t i = p.from; i < smaller(p.to, f->down); i++)
        add_results(&t, p.at + (i - p.from) * s->pitch, f->across, image + (i * s->over_h + f->y) * s->ow + f->x, s->over_w);
    p.at += piece_positions(s, &p);
  }
  return t.count;
}

/* ---- finishing --------------------------------------------------------------------------------------------------------- */

/* Sums that are multiplied and not yet where they belong. */
typedef struct late {
  const float *sums;
  const int32_t *out[2];
  int64_t group;                 /* of the first column of tiles */
  int down, across, row;         /* row: how many rows of each tile are done; 16: nothing is left */
  bool first, last;              /* of the parts of a chain */
} late;

typedef struct work {
  const conv *s;
  room *z;
  late  left;
  int   turn;
  __mmask16 odd;
} work;

RSI_TILES_IN void finish(work *w, int rows) {
  const conv *const s = w->s;
  late *const l = &w->left;
  const int64_t plane = s->oh * s->ow;
  for (; rows > 0 && l->row < RSI_SIDE; rows--, l->row++)
    for (int d = 0; d < l->down; d++) {
      const int64_t pixel = l->out[d][l->row];
      if (pixel < 0) continue;
      for (int q = 0; q < l->across; q++) {
        const int at = ((d * l->across + q) * RSI_SIDE + l->row) * RSI_SIDE;
        __m512 v = _mm512_load_ps(l->sums + at);
        if (!l->first) v = _mm512_add_ps(v, _mm512_load_ps(w->z->acc + at));
        if (!l->last) {
          _mm512_store_ps(w->z->acc + at, v);
          continue;
        }
        const int64_t to = (pixel + (l->group + q) * plane) * 16;
        w->odd |= rsi_odd(v);
        if (s->bias != NULL) v = _mm512_add_ps(v, _mm512_loadu_ps(s->bias + (l->group + q) * 16));
        if (s->residual != NULL) v = _mm512_add_ps(v, _mm512_loadu_ps(s->residual + to));
        _mm512_storeu_ps(s->y + to, _mm512_min_ps(_mm512_set1_ps(s->high), _mm512_max_ps(_mm512_set1_ps(s->low), v)));
      }
    }
}

/* ---- products ---------------------------------------------------------------------------------------------------------- */

/*
** sums: [down][across][16][16] = a x b over `runs` runs at a_at and b_at; a[h] and b[q] are the two tiles of rows and of columns. The
** order of the parts is that of rsi_split_multiply. Between the runs the sums before are finished.
*/
RSI_TILES_IN void multiply(work *w, int down, int across, int64_t runs, const int32_t *a_at, const int32_t *b_at,
                           const uint16_t *const a[2], const uint16_t *const b[2], float *sums) {
  const int64_t part = w->s->positions * PIXEL;
  const bool lower = down > 1, right = across > 1;
  const int each = runs >= RSI_SIDE ? 1 : (int)(RSI_SIDE / (runs > 0 ? runs : 1)) + 1;
  _tile_zero(0);
  if (right) _tile_zero(1);
  if (lower) _tile_zero(2);
  if (lower && right) _tile_zero(3);
#define LOAD_A(p) { _tile_loadd(4, a0 + (p) * part, 64); if (lower) _tile_loadd(5, a1 + (p) * part, 64); }
#define LOAD_B(p) { _tile_loadd(6, b0 + (p) * RSI_TILE, 64); if (right) _tile_loadd(7, b1 + (p) * RSI_TILE, 64); }
#define TIMES {                                                                                                             \
    _tile_dpbf16ps(0, 4, 6);                                                                                                \
    if (right) _tile_dpbf16ps(1, 4, 7);                                                                                     \
    if (lower) _tile_dpbf16ps(2, 5, 6);                                                                                     \
    if (lower && right) _tile_dpbf16ps(3, 5, 7);                                                                            \
  }
  for (int64_t r = 0; r < runs; r++) {
    const uint16_t *const a0 = a[0] + a_at[r], *const a1 = lower ? a[1] + a_at[r] : NULL;
    const uint16_t *const b0 = b[0] + b_at[r], *const b1 = right ? b[1] + b_at[r] : NULL;
    LOAD_A(2) LOAD_B(0) TIMES
    LOAD_A(1) TIMES
    LOAD_B(1) TIMES
    finish(w, each);
    LOAD_A(0) TIMES
    LOAD_B(2) TIMES
    LOAD_B(0) TIMES
  }
#undef LOAD_A
#undef LOAD_B
#undef TIMES
  finish(w, RSI_SIDE);
  _tile_stored(0, sums, 64);
  if (right) _tile_stored(1, sums + 256, 64);
  if (lower) _tile_stored(2, sums + across * 256, 64);
  if (lower && right) _tile_stored(3, sums + 768, 64);
}

/* A whole chain of `runs` runs for tiles at start[h] and blocks group.. of the result. */
RSI_TILES_IN void chain(work *w, int down, int across, int64_t runs, const int32_t *start, const int32_t *out, int64_t group,
                        const uint16_t *b, int64_t b_step) {
  const int64_t parts = runs > 0 ? divide_up(runs, RSI_SPLIT_CHAIN) : 1, each = divide_up(runs, parts);
  const uint16_t *const as[2] = {w->z->a + (int64_t)start[0] * PIXEL, w->z->a + (int64_t)start[down - 1] * PIXEL};
  const uint16_t *const bs[2] = {b, b + b_step};
  for (int64_t i = 0; i < parts; i++) {
    float *const sums = w->z->sums + (w->turn ^= 1) * SUMS;
    multiply(w, down, across, smaller(each, runs - i * each), w->z->a_at + i * each, w->z->b_at + i * each, as, bs, sums);
    w->left = (late){sums, {out, out + (down - 1) * TABLE}, group, down, across, 0, i == 0, i == parts - 1};
  }
}

RSI_TILES static void chain11(work *w, int64_t runs, const int32_t *start, const int32_t *out, int64_t group, const uint16_t *b, int64_t step) {
  chain(w, 1, 1, runs, start, out, group, b, step);
}
RSI_TILES static void chain12(work *w, int64_t runs, const int32_t *start, const int32_t *out, int64_t group, const uint16_t *b, int64_t step) {
  chain(w, 1, 2, runs, start, out, group, b, step);
}
RSI_TILES static void chain21(work *w, int64_t runs, const int32_t *start, const int32_t *out, int64_t group, const uint16_t *b, int64_t step) {
  chain(w, 2, 1, runs, start, out, group, b, step);
}
RSI_TILES static void chain22(work *w, int64_t runs, const int32_t *start, const int32_t *out, int64_t group, const uint16_t *b, int64_t step) {
  chain(w, 2, 2, runs, start, out, group, b, step);
}

typedef void (*chain_fn)(work *w, int64_t runs, const int32_t *start, const int32_t *out, int64_t group, const uint16_t *b, int64_t step);
static const chain_fn chains[2][2] = {{chain11, chain12}, {chain21, chain22}};

/* ---- a task by rows ---------------------------------------------------------------------------------------------------- */

RSI_TILES static void rows_task(work *w, int64_t first, int64_t last, int64_t group, int64_t groups) {
  const conv *const s = w->s;
  pack_rows(s, first, last, w->z->a);
  for (int64_t k = 0; k < s->phases; k++) {
    const rsi_split_phase *const f = &s->phase[k];
    const int64_t runs = s->runs * f->taps, step = runs * RSI_RUN;
    finish(w, RSI_SIDE);                         /* it reads the table of tiles */
    const int64_t tiles = make_tiles(s, f, first, last, w->z);
    for (int64_t r = 0; r < s->runs; r++)
      for (int64_t t = 0; t < f->taps; t++) {
        const int64_t y = s->tap[f->first + t].y - s->low_y, x = s->tap[f->first + t].x - s->low_x;
        const int64_t sub = s->sub[y % s->step_h * s->step_w + x % s->step_w];
        const int64_t at = sub * s->each + y / s->step_h * s->pitch + x / s->step_w;
        w->z->a_at[r * f->taps + t] = (int32_t)((r * RSI_PARTS * s->positions + at) * PIXEL);
        w->z->b_at[r * f->taps + t] = (int32_t)((r * f->taps + t) * RSI_RUN);
      }
    for (int64_t g = 0; g < groups; g += 2) {
      const uint16_t *const b = s->b + f->b + (group + g) * step;
      for (int64_t t = 0; t < tiles; t += 2)
        chains[t + 1 < tiles][g + 1 < groups](w, runs, w->z->start + t, w->z->out + t * TABLE, group + g, b, step);
    }
  }
}

/* ---- a task by images -------------------------------------------------------------------------------------------------- */

/* Of a grid line of `size` points from `from` on: how many meet the image of `length` with the same taps. bit t: with offset t. */
static uint64_t met(const conv *s, const rsi_split_phase *f, bool down, int64_t i) {
  uint64_t mask = 0;
  for (int64_t t = 0; t < f->taps; t++) {
    const rsi_split_tap *const tap = &s->tap[f->first + t];
    const int64_t at = down ? i * s->step_h + tap->y : i * s->step_w + tap->x;
    if (at >= 0 && at < (down ? s->h : s->w)) mask |= (uint64_t)1 << t;
  }
  return mask;
}

RSI_TILES static void images_task(work *w, int64_t first, int64_t last, int64_t group, int64_t groups) {
  const conv *const s = w->s;
  const int64_t plane = s->oh * s->ow, count = last - first;
  room *const z = w->z;
  pack_images(s, first, count, z->a);
  int64_t ring = 0;
  for (int64_t k = 0; k < s->phases; k++) {
    const rsi_split_phase *const f = &s->phase[k];
    const int64_t step = s->runs * f->taps * RSI_RUN;
    for (int64_t g = 0; g < groups; g += 2) {
      const uint16_t *const b = s->b + f->b + (group + g) * step;
      for (int64_t i0 = 0, i1; i0 < f->down; i0 = i1) {
        const uint64_t vertical = met(s, f, true, i0);
        for (i1 = i0 + 1; i1 < f->down && met(s, f, true, i1) == vertical;) i1++;
        for (int64_t j0 = 0, j1; j0 < f->across; j0 = j1) {
          const uint64_t horizontal = met(s, f, false, j0), both = vertical & horizontal;
          for (j1 = j0 + 1; j1 < f->across && met(s, f, false, j1) == horizontal;) j1++;
          int64_t runs = 0;
          for (int64_t r = 0; r < s->runs; r++)
            for (int64_t t = 0; t < f->taps; t++) {
              if (!(both >> t & 1)) continue;
              const rsi_split_tap *const tap = &s->tap[f->first + t];
              z->a_at[runs] = (int32_t)((r * RSI_PARTS * s->positions + (tap->y * s->w + tap->x) * RSI_SPLIT_IMAGES) * PIXEL);
              z->b_at[runs++] = (int32_t)((r * f->taps + t) * RSI_RUN);
            }
          const int64_t pixels = (i1 - i0) * (j1 - j0);
          for (int64_t p = 0; p < pixels; p += 2, ring = (ring + 2) % RING) {
            const int64_t both_tiles = smaller(2, pixels - p);
            for (int64_t d = 0; d < both_tiles; d++) {
              const int64_t i = i0 + (p + d) / (j1 - j0), j = j0 + (p + d) % (j1 - j0);
              z->start[ring + d] = (int32_t)((i * s->step_h * s->w + j * s->step_w) * RSI_SPLIT_IMAGES);
              const int64_t out = first * s->groups_out * plane + (i * s->over_h + f->y) * s->ow + j * s->over_w + f->x;
              for (int64_t n = 0; n < RSI_SPLIT_IMAGES; n++)
                z->out[(ring + d) * TABLE + n] = n < count ? (int32_t)(out + n * s->groups_out * plane) : -1;
            }
            chains[both_tiles - 1][g + 1 < groups](w, runs, z->start + ring, z->out + ring * TABLE, group + g, b, step);
          }
        }
      }
    }
  }
}

/* ---- once more, by FMA ------------------------------------------------------------------------------------------------- */

/* panel: [in][taps][16] weights of block `group` */
static void make_panel(const conv *s, const rsi_split_phase *f, int64_t group, float *panel) {
  const int64_t filled = smaller(16, s->out - group * 16);
  for (int64_t c = 0; c < s->in; c++)
    for (int64_t t = 0; t < f->taps; t++, panel += 16)
      for (int64_t o = 0; o < 16; o++)
        panel[o] = o < filled ? s->weight[(group * 16 + o) * s->weight_out + c * s->weight_in + s->tap[f->first + t].index] : 0.0f;
}

static void again_pixel(const conv *s, const rsi_split_phase *f, int64_t n, int64_t i, int64_t j, int64_t group, const float *panel) {
  const float zero = 0;
  const int64_t pixels = s->h * s->w;
  const float *const image = s->x + n * s->groups_in * pixels * 16;
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t t = 0; t < f->taps; t++) {
    const rsi_split_tap *const tap = &s->tap[f->first + t];
    const int64_t y = i * s->step_h + tap->y, x = j * s->step_w + tap->x;
    const bool inside = y >= 0 && y < s->h && x >= 0 && x < s->w;
    if (!inside && s->skips) continue;
    for (int64_t c = 0; c < s->in; c++) {
      const float *const v = inside ? image + (c / 16 * pixels + y * s->w + x) * 16 + c % 16 : &zero;
      sum[c % 4] = _mm512_fmadd_ps(_mm512_set1_ps(*v), _mm512_loadu_ps(panel + (c * f->taps + t) * 16), sum[c % 4]);
    }
  }
  const int64_t at = ((n * s->groups_out + group) * s->oh * s->ow + (i * s->over_h + f->y) * s->ow + j * s->over_w + f->x) * 16;
  __m512 v = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
  if (s->bias != NULL) v = _mm512_add_ps(v, _mm512_loadu_ps(s->bias + group * 16));
  if (s->residual != NULL) v = _mm512_add_ps(v, _mm512_loadu_ps(s->residual + at));
  _mm512_storeu_ps(s->y + at, _mm512_min_ps(_mm512_set1_ps(s->high), _mm512_max_ps(_mm512_set1_ps(s->low), v)));
}

static void again(const conv *s, int64_t first, int64_t last, int64_t group, int64_t groups, float *panel) {
  if (s->by_image) first *= s->down, last *= s->down;
  for (int64_t k = 0; k < s->phases; k++)
    for (int64_t g = group; g < group + groups; g++) {
      make_panel(s, &s->phase[k], g, panel);
      for (int64_t r = first; r < last; r++)
        for (int64_t j = 0; r % s->down < s->phase[k].down && j < s->phase[k].across; j++)
          again_pixel(s, &s->phase[k], r / s->down, r % s->down, j, g, panel);
    }
}

/* ---- the whole --------------------------------------------------------------------------------------------------------- */

RSI_TILES static void task(const conv *s, int64_t first, int64_t rows, int64_t group, int64_t groups, char *scratch) {
  room z;
  work w = {.s = s, .z = &z, .left = {.row = RSI_SIDE}};
  room_of(s, scratch, &z);
  rsi_tiles_begin();
  if (s->by_image) images_task(&w, first, first + rows, group, groups);
  else rows_task(&w, first, first + rows, group, groups);
  finish(&w, RSI_SIDE);
  _tile_release();
  if (w.odd) again(s, first, first + rows, group, groups, (float *)(void *)z.a);
}

/* ---- weights ------------------------------------------------------------------------------------------------------------- */

/* lines: [32 channels][taps of a filter][16 results], zeros where there is no channel or result */
RSI_TILES static void gather_lines(const conv *s, int64_t group, int64_t run, int64_t taps, float *lines) {
  const int64_t filled = smaller(16, s->out - group * 16), c0 = run * RSI_DEEP;
  for (int64_t half = 0; half < 2; half++) {
    float *const to = lines + half * 16 * taps * 16;
    const int64_t channels = smaller(16, s->in - c0 - half * 16);
    if (channels < 16) memset(to, 0, (size_t)(16 * taps * 16) * sizeof(float));
    if (channels <= 0) continue;
    const float *const from = s->weight + group * 16 * s->weight_out + (c0 + half * 16) * s->weight_in;
    if (s->weight_in == taps) {                    /* the channels and taps of a filter lie side by side */
      for (int64_t i = 0; i < channels * taps; i += 16) {
        __m512 v[16];
        rsi_load16(from + i, s->weight_out, 1, filled, smaller(16, channels * taps - i), v);
        rsi_transpose16(v);
        for (int64_t q = 0; q < smaller(16, channels * taps - i); q++) _mm512_storeu_ps(to + (i + q) * 16, v[q]);
      }
    } else {
      const __m512i index = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                               _mm512_set1_epi32((int32_t)s->weight_out));
      const __mmask16 mask = rsi_first_of(filled);
      for (int64_t c = 0; c < channels; c++)
        for (int64_t t = 0; t < taps; t++)
          _mm512_storeu_ps(to + (c * taps + t) * 16,
                           _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, from + c * s->weight_in + t, 4));
    }
  }
}

RSI_TILES static void pack(const conv *s, int64_t group, int64_t run, int64_t taps, uint16_t *b, float *scratch) {
  gather_lines(s, group, run, taps, scratch);
  for (int64_t k = 0; k < s->phases; k++) {
    const rsi_split_phase *const f = &s->phase[k];
    uint16_t *to = b + f->b + (group * s->runs + run) * f->taps * RSI_RUN;
    for (int64_t t = 0; t < f->taps; t++, to += RSI_RUN) {
      const float *const from = scratch + s->tap[f->first + t].index * 16;
      for (int64_t i = 0; i < 16; i++) {
        __m512i v[RSI_PARTS];
        rsi_split(_mm512_loadu_ps(from + i * taps * 16), _mm512_loadu_ps(from + (16 + i) * taps * 16), v);
        for (int p = 0; p < RSI_PARTS; p++) _mm512_storeu_si512(to + p * RSI_TILE + i * RSI_DEEP, v[p]);
      }
    }
  }
}

const rsi_k_split_conv RSI_ISA(rsi_k_split_conv) = {.scratch = scratch_bytes, .pack = pack, .task = task};
#else
const rsi_k_split_conv RSI_ISA(rsi_k_split_conv) = {NULL, NULL, NULL};
#endif
