/*
** Steps of `fused` and `fused_many`: element-wise ops in a row, done on one tile after another. A step is one integer. Its operands
** are inputs of the op, slots (tiles that live only while they are needed), numbers, or results of earlier steps.
*/
#ifndef RSI_FUSED_H
#define RSI_FUSED_H

#include "ops/op.h"

enum { RSI_F_INPUTS = 8, RSI_F_SLOTS = 6, RSI_F_NUMBERS = 8, RSI_F_STEPS = 16 };
/* Where an operand is, or where a step writes. */
enum { RSI_F_INPUT = 0, RSI_F_RESULT = 8, RSI_F_SLOT = 12, RSI_F_NUMBER = 18, RSI_F_NONE = 31 };
/* Which table the row is in: unary, binary, where, and cast of kernels/elementwise.h, both of kernels/activation.h. */
typedef enum rsi_fused_family { RSI_F_UNARY, RSI_F_BINARY, RSI_F_FORWARD, RSI_F_BACKWARD, RSI_F_WHERE, RSI_F_CAST } rsi_fused_family;

/* `arg`: the first of the numbers that the row takes besides its operands, as doubles; RSI_F_NONE: none. */
typedef struct rsi_fused_step { int family, index, to, from[3], arg; } rsi_fused_step;

static inline int64_t rsi_fused_pack(const rsi_fused_step *s) {
  return (int64_t)s->family | (int64_t)s->index << 4 | (int64_t)s->to << 12 | (int64_t)s->from[0] << 17 | (int64_t)s->from[1] << 22 |
         (int64_t)s->from[2] << 27 | (int64_t)s->arg << 32;
}

static inline rsi_fused_step rsi_fused_unpack(int64_t v) {
  return (rsi_fused_step){.family = (int)(v & 15), .index = (int)(v >> 4 & 255), .to = (int)(v >> 12 & 31),
                          .from = {(int)(v >> 17 & 31), (int)(v >> 22 & 31), (int)(v >> 27 & 31)}, .arg = (int)(v >> 32 & 31)};
}

static inline int rsi_fused_operands(int family) {
  return family == RSI_F_WHERE ? 3 : family == RSI_F_BINARY || family == RSI_F_BACKWARD ? 2 : 1;
}

#endif
