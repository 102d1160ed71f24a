/*
** In each step a tile multiplies one channel of its pixels, broadcast, with that channel's weights for two blocks. Pixels are cut into
** tiles of almost the same size. While a tile goes through a block of channels, it fetches the pixels of the next one, and its share of
** the weights of the next pair, which are often far away.
*/
#include "kernels/conv_point.h"
#include "kernels/float_vec.h"

enum {
#if RSI_ISA_LEVEL == 2
  WIDE = 14,
#else
  WIDE = 6,
#endif
  LINE = 64 / sizeof(float),
  FAR = 3                        /* blocks of channels: what another core has written takes that long */
};

/* What is fetched: `lines` cache lines from `at` on with each block of channels. */
typedef struct ahead { const float *at; int64_t lines; } ahead;

/* count pixels, blocks (1 or 2): constants where this is called. x, y: the first pixel in block 0 of x and in the tile's first of y. */
INLINE void tile(int count, int blocks, const rsi_conv_point *s, const float *x, const float *w, const float *bias, const float *residual,
                 float *y, ahead next) {
  const int64_t plane = s->pixels * L;
  vec acc[WIDE][2];
#pragma GCC unroll 14
  for (int i = 0; i < count; i++)
#pragma GCC unroll 2
    for (int b = 0; b < blocks; b++) acc[i][b] = bias != NULL ? load(bias + b * L) : (vec){0};
  const int64_t far = s->groups_in < FAR ? s->groups_in : FAR, back = s->groups_in * plane - count * L;
  for (int64_t c = 0; c < s->channels; c += L, x += plane) {
    const int64_t here = s->channels - c < L ? s->channels - c : L;
    const float *const soon = x + far * plane - (c + far * L < s->channels ? 0 : back);
#pragma GCC unroll 14
    for (int i = 0; i < count; i++) __builtin_prefetch(soon + i * L);
    for (int64_t i = 0; i < next.lines; i++, next.at += LINE) __builtin_prefetch(next.at, 0, 2);
#pragma GCC unroll 2
    for (int64_t j = 0; j < here; j++, w += blocks * L) {
      vec v[2];
#pragma GCC unroll 2
      for (int b = 0; b < blocks; b++) v[b] = load(w + b * L);
#pragma GCC unroll 14
      for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int b = 0; b < blocks; b++) acc[i][b] += v[b] * x[i * L + j];
    }
  }
  const vec low = all_lanes(s->low), high = all_lanes(s->high);
#pragma GCC unroll 2
  for (int b = 0; b < blocks; b++)
#pragma GCC unroll 14
    for (int i = 0; i < count; i++) {
      vec v = acc[i][b];
      if (residual != NULL) v += load(residual + b * plane + i * L);
      store(y + b * plane + i * L, clamp(v, low, high));
    }
}

typedef void tile_fn(const rsi_conv_point *s, const float *x, const float *w, const float *bias, const float *residual, float *y,
                     ahead next);

#define TILES(count)                                                                                                        \
  static void tile_##count##_1(const rsi_conv_point *s, const float *x, const float *w, const float *bias,                  \
                               const float *residual, float *y, ahead next) {                                               \
    tile(count, 1, s, x, w, bias, residual, y, next);                                                                       \
  }                                                                                                                         \
  static void tile_##count##_2(const rsi_conv_point *s, const float *x, const float *w, const float *bias,                  \
                               const float *residual, float *y, ahead next) {                                               \
    tile(count, 2, s, x, w, bias, residual, y, next);                                                                       \
  }
#define BOTH(count) {tile_##count##_1, tile_##count##_2}

TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
#if RSI_ISA_LEVEL == 2
TILES(7) TILES(8) TILES(9) TILES(10) TILES(11) TILES(12) TILES(13) TILES(14)
#endif

/* [count - 1][blocks - 1] */
static tile_fn *const tiles_of[WIDE][2] = {
  BOTH(1), BOTH(2), BOTH(3), BOTH(4), BOTH(5), BOTH(6),
#if RSI_ISA_LEVEL == 2
  BOTH(7), BOTH(8), BOTH(9), BOTH(10), BOTH(11), BOTH(12), BOTH(13), BOTH(14),
#endif
};

static void task(const rsi_conv_point *s, int64_t n, int64_t first, int64_t last, int64_t pair, int64_t end) {
  const int64_t plane = s->pixels * L, pixels = last - first, tiles = (pixels + WIDE - 1) / WIDE;
  const float *const x = s->x + n * s->groups_in * plane;
  for (; pair < end; pair++) {
    const int64_t g = 2 * pair, blocks = s->groups - g < 2 ? 1 : 2, to = (n * s->groups + g) * plane;
    const float *const w = s->w + g * s->channels * L, *const bias = s->bias != NULL ? s->bias + g * L : NULL;
    const int64_t left = s->groups - g - blocks;
    ahead next = {w + blocks * s->channels * L, left > 0 ? ((left < 2 ? 1 : 2) * L * L / LINE + tiles - 1) / tiles : 0};
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t p = first + pixels * t / tiles, count = first + pixels * (t + 1) / tiles - p;
      const float *const residual = s->residual != NULL ? s->residual + to + p * L : NULL;
      tiles_of[count - 1][blocks - 1](s, x + p * L, w, bias, residual, s->y + to + p * L, next);
      next.at += next.lines * ((s->channels + L - 1) / L) * LINE;
    }
  }
}

extern const rsi_k_conv_point RSI_ISA(rsi_k_conv_point);
const rsi_k_conv_point RSI_ISA(rsi_k_conv_point) = {.lanes = L, .wide = WIDE, .task = task};
