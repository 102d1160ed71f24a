/*
** How a row function is written. RSI_LOOP before a for promises that iterations do not depend on each other, which holds when
** the result is an input itself, so the loop becomes vector code then too. rsi_row_blocks is the way of all operands that are
** neither contiguous nor one value: it gathers blocks of them, calls the row function again, and scatters its result.
*/
#ifndef RSI_K_ROW_H
#define RSI_K_ROW_H

#include "tensor/tensor.h"
#include <string.h>

#if defined(__clang__)
#define RSI_LOOP _Pragma("clang loop vectorize(assume_safety)")
#pragma clang diagnostic ignored "-Wpass-failed"
#elif defined(__GNUC__)
#define RSI_LOOP _Pragma("GCC ivdep")
#else
#define RSI_LOOP
#endif

enum { RSI_ROW_BLOCK = 256, RSI_ROW_MAX = 4 };

/* to: [n] elements `ts` bytes apart, from: `fs` bytes apart, each of `size` bytes */
static inline void rsi_row_move(int64_t n, size_t size, char *to, int64_t ts, const char *from, int64_t fs) {
#define RSI_ROW_MOVE(T)                                                                                                     \
  for (int64_t i = 0; i < n; i++) {                                                                                         \
    T v;                                                                                                                    \
    memcpy(&v, from + i * fs, sizeof v);                                                                                    \
    memcpy(to + i * ts, &v, sizeof v);                                                                                      \
  }
  switch (size) {
  case 1: RSI_ROW_MOVE(uint8_t) break;
  case 2: RSI_ROW_MOVE(uint16_t) break;
  case 4: RSI_ROW_MOVE(uint32_t) break;
  default: RSI_ROW_MOVE(uint64_t) break;
  }
#undef RSI_ROW_MOVE
}

/* sizes[k]: bytes of an element of operand k. `row` must take contiguous operands without coming back here. */
static __attribute__((noinline, unused)) void rsi_row_blocks(rsi_row_fn row, int operands, const size_t *sizes, int64_t n,
                                                     char *const *data, const int64_t *strides, const void *arg) {
  _Alignas(64) uint64_t buffer[RSI_ROW_MAX][RSI_ROW_BLOCK];
  char *block[RSI_ROW_MAX];
  int64_t step[RSI_ROW_MAX];
  const int64_t most = n < RSI_ROW_BLOCK ? n : RSI_ROW_BLOCK;
  for (int k = 0; k < operands; k++) {
    step[k] = (int64_t)sizes[k];
    if (k > 0 && strides[k] == 0) rsi_row_move(most, sizes[k], (char *)buffer[k], step[k], data[k], 0);
  }
  for (int64_t at = 0; at < n; at += most) {
    const int64_t count = n - at < most ? n - at : most;
    for (int k = 0; k < operands; k++) {
      block[k] = strides[k] == step[k] ? data[k] + at * step[k] : (char *)buffer[k];
      if (k > 0 && strides[k] != 0 && strides[k] != step[k])
        rsi_row_move(count, sizes[k], block[k], step[k], data[k] + at * strides[k], strides[k]);
    }
    row(count, block, step, arg);
    if (strides[0] != step[0]) rsi_row_move(count, sizes[0], data[0] + at * strides[0], strides[0], block[0], step[0]);
  }
}

/* static row function NAME: R from T, where `x` stands for the element and `setup` may read `arg` */
#define RSI_ROW_UNARY_WITH(NAME, T, R, setup, expression)                                                                   \
  static void NAME(int64_t n, char *const *data, const int64_t *strides, const void *arg) {                                 \
    if (strides[0] != (int64_t)sizeof(R) || strides[1] != (int64_t)sizeof(T)) {                                             \
      rsi_row_blocks(NAME, 2, (const size_t[]){sizeof(R), sizeof(T)}, n, data, strides, arg);                               \
      return;                                                                                                               \
    }                                                                                                                       \
    R *const out = (R *)(void *)data[0];                                                                                    \
    const T *const in = (const T *)(const void *)data[1];                                                                   \
    setup;                                                                                                                  \
    RSI_LOOP for (int64_t i = 0; i < n; i++) {                                                                              \
      const T x = in[i];                                                                                                    \
      out[i] = (R)(expression);                                                                                             \
    }                                                                                                                       \
  }
#define RSI_ROW_UNARY(NAME, T, R, expression) RSI_ROW_UNARY_WITH(NAME, T, R, (void)arg, expression)

/* The same with two inputs `x` and `y`; either may be one value for all. */
#define RSI_ROW_BINARY_WITH(NAME, T, R, setup, expression)                                                                  \
  static void NAME(int64_t n, char *const *data, const int64_t *strides, const void *arg) {                                 \
    R *const out = (R *)(void *)data[0];                                                                                    \
    const T *const a = (const T *)(const void *)data[1], *const b = (const T *)(const void *)data[2];                       \
    const int64_t size = (int64_t)sizeof(T);                                                                                \
    setup;                                                                                                                  \
    if (strides[0] == (int64_t)sizeof(R) && strides[1] == size && strides[2] == size) {                                     \
      RSI_LOOP for (int64_t i = 0; i < n; i++) {                                                                            \
        const T x = a[i], y = b[i];                                                                                         \
        out[i] = (R)(expression);                                                                                           \
      }                                                                                                                     \
    } else if (strides[0] == (int64_t)sizeof(R) && strides[1] == size && strides[2] == 0) {                                 \
      const T y = *b;                                                                                                       \
      RSI_LOOP for (int64_t i = 0; i < n; i++) {                                                                            \
        const T x = a[i];                                                                                                   \
        out[i] = (R)(expression);                                                                                           \
      }                                                                                                                     \
    } else if (strides[0] == (int64_t)sizeof(R) && strides[1] == 0 && strides[2] == size) {                                 \
      const T x = *a;                                                                                                       \
      RSI_LOOP for (int64_t i = 0; i < n; i++) {                                                                            \
        const T y = b[i];                                                                                                   \
        out[i] = (R)(expression);                                                                                           \
      }                                                                                                                     \
    } else {                                                                                                                \
      rsi_row_blocks(NAME, 3, (const size_t[]){sizeof(R), sizeof(T), sizeof(T)}, n, data, strides, arg);                    \
    }                                                                                                                       \
  }
#define RSI_ROW_BINARY(NAME, T, R, expression) RSI_ROW_BINARY_WITH(NAME, T, R, (void)arg, expression)

#endif
