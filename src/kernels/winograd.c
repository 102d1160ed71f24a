/*
** Winograd's F(4x4, 3x3). For a handful of tiles:
**   v [36][groups_in][most][L]   their input transforms, which the products read one number at a time
**   m [36][groups_out][most][L]  the products with u [36][pairs of output blocks][channels][2 L], one block alone at the end
** and all of it stays in the second-level cache. Tiles that stand side by side share two columns of pixels, so the image is first
** transformed column by column into a strip, and then tile by tile along the rows.
*/
#include "kernels/winograd_loops.h"

enum {
#if RSI_ISA_LEVEL == 2
  ROWS = 14, FEW = 8             /* with two vectors each 28 of the 32 registers; for the last tiles */
#else
  ROWS = 6, FEW = 4              /* 12 of 16 */
#endif
};

/* ---- images to points ------------------------------------------------------------------------------------------------- */

/*
** The columns of `count` tiles side by side, the first at (row, column) in tiles of plane x: [h, w, L]: strip [4 count + 2][6][L].
** Pixels outside the image are zeros.
*/
INLINE void columns_to_points(const rsi_winograd *s, const float *x, int64_t row, int64_t column, int64_t count, float *strip) {
  static const float zeros[RSI_LANES];
  const float *line[6];
  int64_t move[6];
  vec to[6];
  for (int i = 0; i < 6; i++) {
    const int64_t y = 4 * row + i - s->before_h;
    const bool inside = y >= 0 && y < s->h;
    line[i] = inside ? x + y * s->w * L : zeros, move[i] = inside ? L : 0;
  }
  const int64_t first = 4 * column - s->before_w, columns = 4 * count + 2;
  for (int64_t j = 0; j < columns; j++, strip += 6 * L) {
    const int64_t at = first + j;
    if (at < 0 || at >= s->w) {
      for (int i = 0; i < 6; i++) store(strip + i * L, (vec){0});
      continue;
    }
    to_points(load(line[0] + at * move[0]), load(line[1] + at * move[1]), load(line[2] + at * move[2]), load(line[3] + at * move[3]),
              load(line[4] + at * move[4]), load(line[5] + at * move[5]), to);
    for (int i = 0; i < 6; i++) store(strip + i * L, to[i]);
  }
}

/* Row i of points of tile k of a strip. */
INLINE void row_to_points(const float *strip, int64_t k, int64_t i, vec to[6]) {
  const float *const p = strip + (24 * k + i) * L;
  to_points(load(p), load(p + 6 * L), load(p + 12 * L), load(p + 18 * L), load(p + 24 * L), load(p + 30 * L), to);
}

/*
** `count` tiles side by side, the first at (row, column) in tiles of plane x: [h, w, L], to v, the place of the first tile.
** strip: [4 count + 2][6][L].
*/
static void tiles_in(const rsi_winograd *s, const float *x, int64_t row, int64_t column, int64_t count, float *v, int64_t step,
                     float *strip) {
  vec to[6];
  columns_to_points(s, x, row, column, count, strip);
  for (int64_t k = 0; k < count; k++)
    for (int64_t i = 0; i < 6; i++) {
      row_to_points(strip, k, i, to);
      for (int j = 0; j < 6; j++) store(v + (6 * i + j) * step + k * L, to[j]);
    }
}

/* ---- products ---------------------------------------------------------------------------------------------------------- */

/*
** What will be read soon, four pixels of L channels each. The products alone keep the memory idle, so they ask for it: `each` at a
** time. The list ends with `end`.
*/
typedef struct wishes { const float **at, **end; int64_t each; } wishes;

INLINE void ask(wishes *w) {
  for (int64_t k = 0; k < w->each && w->at < w->end; k++, w->at++)
#pragma GCC unroll 4
    for (int i = 0; i < 4 * L; i += 16) __builtin_prefetch(*w->at + i, 0, 2);
}

/* m: [blocks][most][L] = v: [groups][most][L] x u: [groups L][blocks L], for `rows` tiles and 1 or 2 blocks. */
INLINE void multiply(int rows, int blocks, const float *v, const float *u, int64_t groups, int64_t most, float *m, wishes *w) {
  vec acc[ROWS][2] = {{{0}}};
  for (int64_t g = 0; g < groups; g++, v += most * L) {
    ask(w);
    for (int64_t j = 0; j < L; j++, u += blocks * L) {
      const vec w0 = load(u), w1 = blocks > 1 ? load(u + L) : w0;
#pragma GCC unroll 16
      for (int r = 0; r < rows; r++) {
        const vec a = all_lanes(v[r * L + j]);
        acc[r][0] += a * w0;
        if (blocks > 1) acc[r][1] += a * w1;
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
    store(m + r * L, acc[r][0]);
    if (blocks > 1) store(m + most * L + r * L, acc[r][1]);
  }
}

/* Tiles that are multiplied next, when so many are left. */
INLINE int64_t rows_of(int64_t left) { return left <= FEW || (left > ROWS && left <= 2 * FEW) ? FEW : ROWS; }

static void products(const rsi_winograd *s, int64_t count, const float *v, float *m, int64_t v_step, int64_t m_step, wishes w) {
  const int64_t times = RSI_WINOGRAD_POINTS * ((s->groups_out + 1) / 2) * ((count + ROWS - 1) / ROWS) * s->groups_in;
  const float *u;
  w.each = (w.end - w.at + times - 1) / times;
  for (int p = 0; p < RSI_WINOGRAD_POINTS; p++, v += v_step, m += m_step) {
    u = s->u + p * rsi_winograd_step(s->groups_in * L, s->groups_out, L);
    for (int64_t o = 0; o < s->groups_out; o += 2) {
      const int64_t blocks = o + 1 < s->groups_out ? 2 : 1;
      for (int64_t t = 0, rows; t < count; t += rows) {
        float *const to = m + (o * s->most + t) * L;
        rows = rows_of(count - t);
        if (rows == ROWS && blocks == 2) multiply(ROWS, 2, v + t * L, u, s->groups_in, s->most, to, &w);
        else if (rows == ROWS) multiply(ROWS, 1, v + t * L, u, s->groups_in, s->most, to, &w);
        else if (blocks == 2) multiply(FEW, 2, v + t * L, u, s->groups_in, s->most, to, &w);
        else multiply(FEW, 1, v + t * L, u, s->groups_in, s->most, to, &w);
      }
      u += blocks * s->groups_in * L * L;
    }
  }
}

/* ---- points to images -------------------------------------------------------------------------------------------------- */

/* `count` tiles side by side, the first at (row, column) of the plane that starts at `offset`. */
static void tiles_out(const rsi_winograd *s, const float *m, int64_t step, const float *bias, int64_t offset, int64_t row, int64_t column,
                      int64_t count) {
  const vec b = bias != NULL ? load(bias) : (vec){0};
  const int64_t rows = s->oh - 4 * row < 4 ? s->oh - 4 * row : 4;
  offset += 4 * row * s->ow * L;
  for (int64_t k = 0; k < count; k++, m += L) {
    const int64_t at = 4 * (column + k), columns = s->ow - at < 4 ? s->ow - at : 4;
    vec sum[4][4];
    tile_sums(m, step, sum);
    if (rows == 4 && columns == 4) tile_end(s, sum, b, offset + at * L, 4, 4);
    else tile_end(s, sum, b, offset + at * L, rows, columns);
  }
}

/* ---- the whole ---------------------------------------------------------------------------------------------------------- */

/* Rows of four pixels, `rows` of them from (y, x) on; what lies outside a plane [height, width, L] is left out. */
static const float **wish(const float **at, const float *plane, int64_t height, int64_t width, int64_t y, int64_t x, int64_t rows) {
  x = x > width - 4 ? width - 4 : x;
  x = x < 0 ? 0 : x;
  for (int64_t i = y < 0 ? 0 : y; i < y + rows && i < height; i++) *at++ = plane + (i * width + x) * L;
  return at;
}

/* What the transforms of these tiles read, or write. */
static const float **wish_in(const rsi_winograd *s, int64_t first, int64_t end, const float **at) {
  int64_t n, row, column;
  for (int64_t t = first; t < end; t++) {
    run_at(s, t, end, &n, &row, &column);
    for (int64_t g = 0; g < s->groups_in; g++)
      at = wish(at, s->x + (n * s->groups_in + g) * s->h * s->w * L, s->h, s->w, 4 * row - s->before_h, 4 * column - s->before_w, 6);
  }
  return at;
}
static const float **wish_out(const rsi_winograd *s, const float *y, int64_t first, int64_t end, const float **at) {
  int64_t n, row, column;
  for (int64_t t = first; t < end && y != NULL; t++) {
    run_at(s, t, end, &n, &row, &column);
    for (int64_t g = 0; g < s->groups_out; g++)
      at = wish(at, y + (n * s->groups_out + g) * s->oh * s->ow * L, s->oh, s->ow, 4 * row, 4 * column, 4);
  }
  return at;
}

static void tiles(const rsi_winograd *s, int64_t first, int64_t count, float *scratch) {
  const int64_t v_step = rsi_winograd_step(s->most, s->groups_in, L), m_step = rsi_winograd_step(s->most, s->groups_out, L);
  const int64_t in = s->h * s->w * L, out = s->oh * s->ow * L, last = first + count;
  float *const v = scratch, *const m = v + RSI_WINOGRAD_POINTS * v_step, *const strip = m + RSI_WINOGRAD_POINTS * m_step;
  const float **const list = (const float **)(void *)(strip + 36 * s->most * L);
  int64_t n, row, column, run;
  for (int64_t end; first < last; first = end) {
    end = last - first < s->most ? last : first + s->most;
    for (int64_t g = 0; g < s->groups_in; g++)
      for (int64_t t = first; t < end; t += run) {
        run = run_at(s, t, end, &n, &row, &column);
        tiles_in(s, s->x + (n * s->groups_in + g) * in, row, column, run, v + (g * s->most + t - first) * L, v_step, strip);
      }
    const float **wanted = wish_out(s, s->y, first, end, list);
    if (s->residual != s->y) wanted = wish_out(s, s->residual, first, end, wanted);
    wanted = wish_in(s, end, last - end < s->most ? last : end + s->most, wanted);
    products(s, end - first, v, m, v_step, m_step, (wishes){list, wanted, 0});
    for (int64_t g = 0; g < s->groups_out; g++)
      for (int64_t t = first; t < end; t += run) {
        run = run_at(s, t, end, &n, &row, &column);
        tiles_out(s, m + (g * s->most + t - first) * L, m_step, s->bias != NULL ? s->bias + g * L : NULL,
                  (n * s->groups_out + g) * out, row, column, run);
      }
  }
}

/* ---- weights ------------------------------------------------------------------------------------------------------------- */

static void filters(const rsi_winograd_filters *f, int64_t group, float *u) {
  const int64_t groups_in = (f->in + L - 1) / L, groups_out = (f->out + L - 1) / L, channels = groups_in * L;
  const int64_t step = rsi_winograd_step(channels, groups_out, L);
  for (int64_t g = 0; g < groups_out; g++) {
    const int64_t blocks = g % 2 != 0 || g + 1 < groups_out ? 2 : 1, o0 = g * L, c0 = group * L;
    const int64_t rows = f->out - o0 < L ? f->out - o0 : L, filled = f->in - c0 < L ? f->in - c0 : L;
    float *const to = u + (g - g % 2) * channels * L + (c0 * blocks + g % 2) * L;
    float taps[RSI_LANES][9][RSI_LANES] = {{{0}}};
    for (int64_t o = 0; o < rows; o++)
      for (int64_t j = 0; j < filled; j++) {
        const float *const w = f->w + (o0 + o) * f->out_step + (c0 + j) * f->in_step;
        if (f->flipped)
          for (int t = 0; t < 9; t++) taps[j][t][o] = w[8 - t];
        else
          for (int t = 0; t < 9; t++) taps[j][t][o] = w[t];
      }
    for (int64_t j = 0; j < L; j++) {
      vec half[3][6], out[6];
      for (int k = 0; k < 3; k++) taps_to_points(load(taps[j][k]), load(taps[j][3 + k]), load(taps[j][6 + k]), half[k]);
      for (int i = 0; i < 6; i++) {
        taps_to_points(half[0][i], half[1][i], half[2][i], out);
        for (int k = 0; k < 6; k++) store(to + (6 * i + k) * step + j * blocks * L, out[k]);
      }
    }
  }
}

extern const rsi_k_winograd RSI_ISA(rsi_k_winograd);
const rsi_k_winograd RSI_ISA(rsi_k_winograd) = {.lanes = L, .rows = ROWS, .filters = filters, .tiles = tiles};
