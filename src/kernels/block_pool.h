/*
** Pooling of images in block form [N, G, H, W, b]: loops that make one row of a plane [H, W, b]. One set per element type.
**
** The maximum leaves for its gradient the number of the chosen tap, ki * kw + kj, a byte for each element of the result. The
** gradients gather: an element of the image adds up what the windows that hold it give, so each is written once.
*/
#ifndef RSI_K_BLOCK_POOL_H
#define RSI_K_BLOCK_POOL_H

#include "kernels/conv.h"

typedef struct rsi_block_pool_loops {
  /* x: [h, w, b] -> y, tap: [ow, b], row `row` of the result. NaN is chosen; of equal ones the first. */
  void (*max)(const rsi_pool_shape *s, int64_t b, const void *x, int64_t row, void *y, uint8_t *tap);
  /* g, tap: [oh, ow, b] -> x: [w, b], row `row` of the image */
  void (*max_back)(const rsi_pool_shape *s, int64_t b, const void *g, const uint8_t *tap, int64_t row, void *x);
  void (*avg)(const rsi_pool_shape *s, int64_t b, const void *x, int64_t row, void *y);
  void (*avg_back)(const rsi_pool_shape *s, int64_t b, const void *g, int64_t row, void *x);
} rsi_block_pool_loops;

typedef struct rsi_k_block_pool { rsi_block_pool_loops f32, bf16; } rsi_k_block_pool;

#endif
