/*
** Element-wise loops. Every row function is called as row(n, data, strides, arg): operand 0 is the result, the others are the
** inputs, strides are in bytes. Contiguous operands and, for two inputs, a stride of 0 (one value for all) have tight loops;
** anything else goes through small contiguous buffers. The result may be in[0] itself.
*/
#ifndef RSI_K_ELEMENTWISE_H
#define RSI_K_ELEMENTWISE_H

#include "tensor/tensor.h"

typedef enum rsi_unary {
  RSI_U_NEG, RSI_U_ABS, RSI_U_SQUARE, RSI_U_SIGN, RSI_U_RELU, RSI_U_CLAMP,   /* clamp: arg double[2], lowest and highest */
  RSI_U_SQRT, RSI_U_RSQRT, RSI_U_RECIPROCAL, RSI_U_FLOOR, RSI_U_CEIL, RSI_U_ROUND,
  RSI_U_EXP, RSI_U_EXPM1, RSI_U_LOG, RSI_U_LOG1P, RSI_U_SIN, RSI_U_COS, RSI_U_ERF, RSI_U_TANH, RSI_U_SIGMOID,
  RSI_U_GELU, RSI_U_GELU_TANH,
  RSI_U_NOT, RSI_U_ISNAN, RSI_U_ISFINITE,                                     /* results are bool */
  RSI_UNARIES
} rsi_unary;

typedef enum rsi_binary {
  RSI_B_ADD, RSI_B_ADD_SCALED, RSI_B_SUB, RSI_B_MUL,   /* add_scaled: a + alpha * b, arg double alpha */
  RSI_B_DIV,                                           /* of integers: the result is f32 */
  RSI_B_POW, RSI_B_MAXIMUM, RSI_B_MINIMUM,
  RSI_B_EQ, RSI_B_NE, RSI_B_LT, RSI_B_LE, RSI_B_GT, RSI_B_GE, RSI_B_AND, RSI_B_OR,   /* results are bool */
  RSI_B_TANH_BACKWARD, RSI_B_SIGMOID_BACKWARD, RSI_B_RELU_BACKWARD,                  /* (g, y) */
  RSI_B_GELU_BACKWARD, RSI_B_GELU_TANH_BACKWARD, RSI_B_CLAMP_BACKWARD,               /* (g, x); clamp: arg double[2] */
  RSI_BINARIES
} rsi_binary;

/* Tables that live in files of their own. Sizes 1, 2, 4 and 8 have the numbers 0 to 3. */
typedef struct rsi_k_cast   { rsi_row_fn cast[RS_DTYPES][RS_DTYPES], copy[4]; } rsi_k_cast;   /* cast[from][to] */
typedef struct rsi_k_random {
  /* out: [4 * blocks] = the words of the blocks first, first + 1, … of Philox under `key` */
  void (*words)(uint64_t key, uint64_t first, int64_t blocks, uint32_t *out);
  /* out: [n], n even: pairs of words become pairs of independent values of the standard normal distribution */
  void (*normal_f32)(int64_t n, const uint32_t *words, float *out);
  /* out: [n] = words as fractions of [0, 1) with 24 bits */
  void (*fraction_f32)(int64_t n, const uint32_t *words, float *out);
} rsi_k_random;

typedef struct rsi_k_elementwise {
  rsi_row_fn          unary[RSI_UNARIES][RS_DTYPES];     /* by dtype of the input; NULL: there is none */
  rsi_row_fn          binary[RSI_BINARIES][RS_DTYPES];
  rsi_row_fn          where[4];                          /* (bool, a, b) by size of an element */
  const rsi_k_cast   *cast;
  const rsi_k_random *random;
} rsi_k_elementwise;

/* The number of an element size: 1, 2, 4, 8 -> 0, 1, 2, 3. */
static inline int rsi_size_index(int dtype) { return __builtin_ctz(rsi_dtype_size[dtype]); }

#endif
