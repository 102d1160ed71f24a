/*
** Weights [o, rows] as loops that make two blocks of the result at a time want them: [pairs of blocks][rows][2][L] with zeros from o on;
** the last block of an odd number is [rows][L].
*/
#ifndef RSI_WEIGHT_PAIRS_H
#define RSI_WEIGHT_PAIRS_H

#include "base/lanes.h"
#include <string.h>

static inline int64_t rsi_pairs_blocks(int64_t o, int64_t L) { return (o + L - 1) / L; }

static inline size_t rsi_pairs_bytes(int64_t o, int64_t rows, int64_t L) {
  return rsi_lane_round((size_t)(rsi_pairs_blocks(o, L) * L * rows) * sizeof(float));
}

static inline void rsi_pairs_lay(int64_t o, int64_t rows, int64_t L, const float *w, float *to) {
  const int64_t groups = rsi_pairs_blocks(o, L);
  memset(to, 0, rsi_pairs_bytes(o, rows, L));
  for (int64_t i = 0; i < o; i++) {
    const int64_t g = i / L, first = g - g % 2, step = groups - first < 2 ? L : 2 * L;
    float *const at = to + first * rows * L + (g - first) * L + i % L;
    for (int64_t r = 0; r < rows; r++) at[r * step] = w[i * rows + r];
  }
}

/* A bias [o] that ends within a block is copied to `to`, with zeros behind it; bytes of it. */
static inline size_t rsi_pairs_bias_bytes(int64_t o, int64_t L) {
  return o % L != 0 ? rsi_lane_round((size_t)(rsi_pairs_blocks(o, L) * L) * sizeof(float)) : 0;
}

static inline const float *rsi_pairs_bias(int64_t o, int64_t L, const float *bias, void *to) {
  const size_t bytes = rsi_pairs_bias_bytes(o, L);
  if (bias == NULL || bytes == 0) return bias;
  memset(to, 0, bytes);
  memcpy(to, bias, (size_t)o * sizeof(float));
  return to;
}

#endif
