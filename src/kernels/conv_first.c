/*
** A tile knows the rows of x that it sees by pointers: in the image, in a row of zeros above or below it, or, for the tiles at the left
** and at the right edge, in a copy. The last tile of a row begins where it ends with the row; what the one before it made it leaves out.
*/
#include "kernels/conv_first.h"
#include "kernels/float_vec.h"
#include <string.h>

enum {
#if RSI_ISA_LEVEL == 2
  WIDE = 14
#else
  WIDE = 6
#endif
};

/* row: what each of the channels * kh rows has for the first tap of the first pixel. y, residual: the first pixel in the first of the
   blocks (1 or 2; it and sw are constants where this is called). Pixels before `skip` are not written. */
INLINE void tile(int sw, int blocks, const rsi_conv_first *s, const float *const *row, const float *u, const float *bias,
                 const float *residual, float *y, int64_t skip) {
  const int64_t plane = s->oh * s->ow * L, rows = s->channels * s->kh, kw = s->kw;
  vec acc[WIDE][2];
#pragma GCC unroll 14
  for (int i = 0; i < WIDE; i++)
#pragma GCC unroll 2
    for (int b = 0; b < blocks; b++) acc[i][b] = bias != NULL ? load(bias + b * L) : (vec){0};
  for (int64_t r = 0; r < rows; r++) {
    const float *x = row[r];
    for (int64_t k = 0; k < kw; k++, x++, u += blocks * L) {
      __asm__("" : "+r"(x));     /* else the compiler keeps numbers for the next step, in memory for want of registers */
      vec v[2];
#pragma GCC unroll 2
      for (int b = 0; b < blocks; b++) v[b] = load(u + b * L);
#pragma GCC unroll 14
      for (int i = 0; i < WIDE; i++)
#pragma GCC unroll 2
        for (int b = 0; b < blocks; b++) acc[i][b] += v[b] * x[i * sw];
    }
  }
  const vec low = all_lanes(s->low), high = all_lanes(s->high);
#pragma GCC unroll 2
  for (int b = 0; b < blocks; b++)
#pragma GCC unroll 14
    for (int i = 0; i < WIDE; i++) {
      if (i < skip) continue;
      vec v = acc[i][b];
      if (residual != NULL) v += load(residual + b * plane + i * L);
      store(y + b * plane + i * L, clamp(v, low, high));
    }
}

#define TILE(sw, blocks)                                                                                                    \
  static void tile_##sw##_##blocks(const rsi_conv_first *s, const float *const *row, const float *u, const float *bias,     \
                                   const float *residual, float *y, int64_t skip) {                                         \
    tile(sw, blocks, s, row, u, bias, residual, y, skip);                                                                   \
  }
TILE(1, 1)
TILE(1, 2)
TILE(2, 1)
TILE(2, 2)

/* Rows of x at `left` pixels from its beginning, copied when the tile does not see pixels of it only; zeros: at least as long as a row. */
static void find_rows(const rsi_conv_first *s, const float *x, int64_t top, int64_t left, const float *zeros, float *copy,
                      const float **row) {
  const int64_t width = rsi_first_width(s, WIDE), lead = left < 0 ? -left : 0, end = s->w - left < width ? s->w - left : width;
  const bool inside = lead == 0 && end == width;
  for (int64_t c = 0; c < s->channels; c++, x += s->h * s->w)
    for (int64_t k = 0, y = top; k < s->kh; k++, y += s->dh, row++) {
      const float *const from = x + y * s->w + left;
      if (y < 0 || y >= s->h) *row = zeros;
      else if (inside) *row = from;
      else {
        int64_t j = 0;
        for (; j < lead && j < width; j++) copy[j] = 0;
        for (; j + L <= end; j += L) store(copy + j, load(from + j));
        for (; j < end; j++) copy[j] = from[j];
        for (; j < width; j++) copy[j] = 0;
        *row = copy, copy += width;
      }
    }
}

static void rows(const rsi_conv_first *s, int64_t first, int64_t last, float *strip) {
  const int64_t taps = s->channels * s->kh * s->kw, plane = s->oh * s->ow * L, width = rsi_first_width(s, WIDE);
  float *const copy = strip + (width > s->w ? width : s->w);
  const float *row[RSI_FIRST_ROWS];
  memset(strip, 0, (size_t)(copy - strip) * sizeof *strip);
  for (int64_t i = first; i < last; i++) {
    const int64_t n = i / s->oh, oy = i % s->oh;
    const float *const x = s->x + n * s->channels * s->h * s->w;
    for (int64_t at = 0; at < s->ow; at += WIDE) {
      const int64_t begin = s->ow - at < WIDE ? s->ow - WIDE : at;
      find_rows(s, x, oy * s->sh - s->ph, begin * s->sw - s->pw, strip, copy, row);
      for (int64_t g = 0; g < s->groups; g += 2) {
        const int64_t blocks = s->groups - g < 2 ? 1 : 2, to = (n * s->groups + g) * plane + (oy * s->ow + begin) * L;
        const float *const u = s->u + g * taps * L, *const bias = s->bias != NULL ? s->bias + g * L : NULL;
        const float *const residual = s->residual != NULL ? s->residual + to : NULL;
        (s->sw == 1 ? blocks == 1 ? tile_1_1 : tile_1_2
                    : blocks == 1 ? tile_2_1 : tile_2_2)(s, row, u, bias, residual, s->y + to, at - begin);
      }
    }
  }
}

extern const rsi_k_conv_first RSI_ISA(rsi_k_conv_first);
const rsi_k_conv_first RSI_ISA(rsi_k_conv_first) = {.lanes = L, .wide = WIDE, .rows = rows};
