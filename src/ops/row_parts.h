/*
** Sums over rows (the gradients of a norm's weight and bias): rows fall into parts, of which each adds a few rows in the element type,
** then in double; the parts are added in their order. All follows from the shape, and ops that stand for one another share it, so
** that they give the same bits.
*/
#ifndef RSI_ROW_PARTS_H
#define RSI_ROW_PARTS_H

#include "base/base.h"

enum { RSI_FEW_ROWS = 32 };      /* that are added in the element type */

/* How many parts rows of n elements fall into. */
static inline int64_t rsi_row_parts(int64_t rows, int64_t n) {
  enum { PART_WORK = 32768, MOST = 16 };
  int64_t parts = rows * n / PART_WORK;
  if (parts > MOST) parts = MOST;
  if (parts > rows) parts = rows;
  return parts < 1 ? 1 : parts;
}

/* Scratch of a part for `sums` sums of n columns each: doubles, then the element type. */
static inline size_t rsi_row_part_bytes(int64_t n, int sums, size_t item) {
  return ((size_t)n * (size_t)sums * (sizeof(double) + item) + 63) & ~(size_t)63;
}

#endif
