/*
** What both forms of Winograd's F(4x4, 3x3) are made of (kernels/winograd.c, winograd_split.c): the transforms, and how tiles lie in
** images.
*/
#ifndef RSI_K_WINOGRAD_LOOPS_H
#define RSI_K_WINOGRAD_LOOPS_H

#include "kernels/winograd.h"
#include "kernels/float_vec.h"

INLINE vec pick(mask_lanes which, vec a, vec b) { return (vec)(((mask_lanes)a & which) | ((mask_lanes)b & ~which)); }

static const float A = 0.625f, B = 1.5f, AA = 0.390625f, BB = 2.25f, AAA = 0.244140625f, BBB = 3.375f, AABB = 0.87890625f,
                   SUM = 2.640625f;   /* of AA and BB */

/* Six pixels in a row seen from the six points. */
INLINE void to_points(vec x0, vec x1, vec x2, vec x3, vec x4, vec x5, vec to[6]) {
  const vec ea = x4 - x2 * BB, oa = x3 - x1 * BB, eb = x4 - x2 * AA, ob = x3 - x1 * AA;
  to[0] = (x4 - x2 * SUM) + x0 * AABB;
  to[1] = ea + oa * A;
  to[2] = ea - oa * A;
  to[3] = eb + ob * B;
  to[4] = eb - ob * B;
  to[5] = (x5 - x3 * SUM) + x1 * AABB;
}

/* Four outputs from six points. */
INLINE void from_points(vec m0, vec m1, vec m2, vec m3, vec m4, vec m5, vec y[4]) {
  const vec sa = m1 + m2, da = m1 - m2, sb = m3 + m4, db = m3 - m4;
  y[0] = m0 + sa + sb;
  y[1] = da * A + db * B;
  y[2] = sa * AA + sb * BB;
  y[3] = (m5 + da * AAA) + db * BBB;
}

/* Three taps in a row seen from the six points: the rows of G. */
INLINE void taps_to_points(vec w0, vec w1, vec w2, vec to[6]) {
  /* 1 / (A A B B), 1 / (2 A A (A A - B B)), 1 / (2 B B (B B - A A)) */
  const float zero = 1.1377777777777778f, a = -0.6884033613445378f, b = 0.11951447245564893f;
  const vec ea = (w0 + w2 * AA) * a, oa = w1 * (A * a), eb = (w0 + w2 * BB) * b, ob = w1 * (B * b);
  to[0] = w0 * zero, to[1] = ea + oa, to[2] = ea - oa, to[3] = eb + ob, to[4] = eb - ob, to[5] = w2;
}

/* ---- points to images -------------------------------------------------------------------------------------------------- */

/* The sums of one tile, [column][row], from its points, `step` floats apart. */
INLINE void tile_sums(const float *m, int64_t step, vec sum[4][4]) {
  vec half[4][6], out[4];
#pragma GCC unroll 6
  for (int i = 0; i < 6; i++) {
    const float *const p = m + 6 * i * step;
    from_points(load(p), load(p + step), load(p + 2 * step), load(p + 3 * step), load(p + 4 * step), load(p + 5 * step), out);
    for (int j = 0; j < 4; j++) half[j][i] = out[j];
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) from_points(half[j][0], half[j][1], half[j][2], half[j][3], half[j][4], half[j][5], sum[j]);
}

INLINE void put(const rsi_winograd *s, vec sum, vec bias, int64_t at) {
  const vec low = all_lanes(s->low), high = all_lanes(s->high);
  vec v = sum + bias;
  if (s->residual != NULL) v += load(s->residual + at);
  v = pick(v < low, low, v);
  store(s->y + at, pick(v > high, high, v));
}

/* `rows` x `columns` of a tile are inside. */
INLINE void tile_end(const rsi_winograd *s, vec sum[4][4], vec bias, int64_t offset, int64_t rows, int64_t columns) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    if (j >= columns) return;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      if (i >= rows) break;
      put(s, sum[j][i], bias, offset + (i * s->ow + j) * L);
    }
  }
}

/* A run of tiles in one row of one image; the number of tiles in it. */
static inline int64_t run_at(const rsi_winograd *s, int64_t tile, int64_t end, int64_t *n, int64_t *row, int64_t *column) {
  *column = tile % s->across, *row = tile / s->across % s->down, *n = tile / (s->across * s->down);
  return end - tile < s->across - *column ? end - tile : s->across - *column;
}

#endif
