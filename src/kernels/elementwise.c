/*
** Arithmetic, elementary functions, comparison and selection, and the table of all element-wise loops. Conversions are in
** elementwise_cast.c, random words in elementwise_random.c.
** Integers wrap: sums and products are computed without a sign. A bool is a byte that holds 0 or 1.
*/
#include "kernels/elementwise.h"
#include "kernels/isa.h"
#include "kernels/row.h"
#include "kernels/vmath.h"

extern const rsi_k_cast RSI_ISA(rsi_k_cast);
extern const rsi_k_random RSI_ISA(rsi_k_random);
extern const rsi_k_elementwise RSI_ISA(rsi_k_elementwise);

/* ---- one input ------------------------------------------------------------------------------------------------------- */

#define FLOAT_UNARY(T, S)                                                                                                   \
  RSI_ROW_UNARY(neg_##S, T, T, -x)                                                                                          \
  RSI_ROW_UNARY(abs_##S, T, T, x < 0 ? -x : x + (T)0)                                                                       \
  RSI_ROW_UNARY(square_##S, T, T, x * x)                                                                                    \
  RSI_ROW_UNARY(sign_##S, T, T, x > 0 ? (T)1 : x < 0 ? (T)-1 : x)                                                           \
  RSI_ROW_UNARY(relu_##S, T, T, x < 0 ? (T)0 : x)                                                                           \
  RSI_ROW_UNARY_WITH(clamp_##S, T, T, const double *const range = arg; const T low = (T)range[0]; const T high = (T)range[1], \
                     (x < low ? low : x) > high ? high : (x < low ? low : x))                                               \
  RSI_ROW_UNARY(not_##S, T, uint8_t, x == 0)                                                                                \
  RSI_ROW_UNARY(isnan_##S, T, uint8_t, x != x)                                                                              \
  RSI_ROW_UNARY(isfinite_##S, T, uint8_t, x - x == 0)
FLOAT_UNARY(float, f32)
FLOAT_UNARY(double, f64)

/* U: the type in which sums and products wrap */
#define INT_UNARY(T, U, S)                                                                                                  \
  RSI_ROW_UNARY(neg_##S, T, T, (U)0 - (U)x)                                                                                 \
  RSI_ROW_UNARY(abs_##S, T, T, x < (T)1 ? (U)0 - (U)x : (U)x)                                                               \
  RSI_ROW_UNARY(square_##S, T, T, (U)x * (U)x)                                                                              \
  RSI_ROW_UNARY(sign_##S, T, T, (x > 0) - (x < (T)0))                                                                       \
  RSI_ROW_UNARY(relu_##S, T, T, x < (T)1 ? (T)0 : x)                                                                        \
  RSI_ROW_UNARY_WITH(clamp_##S, T, T, const T *const range = arg; const T low = range[0]; const T high = range[1],          \
                     (x < low ? low : x) > high ? high : (x < low ? low : x))                                               \
  RSI_ROW_UNARY(not_##S, T, uint8_t, x == 0)
INT_UNARY(int64_t, uint64_t, i64)
INT_UNARY(int32_t, uint32_t, i32)
RSI_ROW_UNARY(square_u8, uint8_t, uint8_t, (uint32_t)x * (uint32_t)x)
RSI_ROW_UNARY(sign_u8, uint8_t, uint8_t, x > 0)
RSI_ROW_UNARY_WITH(clamp_u8, uint8_t, uint8_t, const uint8_t *const range = arg; const uint8_t low = range[0];
                   const uint8_t high = range[1], (x < low ? low : x) > high ? high : (x < low ? low : x))
RSI_ROW_UNARY(not_u8, uint8_t, uint8_t, x == 0)

/* ---- elementary functions -------------------------------------------------------------------------------------------- */

RSI_ROW_UNARY(sqrt_f32, float, float, sqrtf(x))
RSI_ROW_UNARY(sqrt_f64, double, double, sqrt(x))
RSI_ROW_UNARY(rsqrt_f32, float, float, 1.0f / sqrtf(x))
RSI_ROW_UNARY(rsqrt_f64, double, double, 1.0 / sqrt(x))
RSI_ROW_UNARY(reciprocal_f32, float, float, 1.0f / x)
RSI_ROW_UNARY(reciprocal_f64, double, double, 1.0 / x)
RSI_ROW_UNARY(floor_f32, float, float, floorf(x))
RSI_ROW_UNARY(floor_f64, double, double, floor(x))
RSI_ROW_UNARY(ceil_f32, float, float, ceilf(x))
RSI_ROW_UNARY(ceil_f64, double, double, ceil(x))
RSI_ROW_UNARY(round_f32, float, float, rintf(x))
RSI_ROW_UNARY(round_f64, double, double, rint(x))
RSI_ROW_UNARY(sin_f64, double, double, sin(x))
RSI_ROW_UNARY(cos_f64, double, double, cos(x))

/*
** A long row of a function with much arithmetic, block by block: the next block is fetched while one is computed, because so few
** elements are under way at a time that the processor does not see far enough ahead by itself.
*/
static void fetch_ahead(rsi_row_fn row, int operands, int64_t n, char *const *data, const int64_t *strides, const void *arg) {
  enum { BLOCK = 256, LINE = 64, FEW = 2048 };
  bool lines = n >= FEW;
  for (int k = 0; k < operands; k++) lines = lines && (strides[k] == (int64_t)sizeof(float) || (k > 0 && strides[k] == 0));
  if (!lines) {
    row(n, data, strides, arg);
    return;
  }
  for (int64_t at = 0; at < n; at += BLOCK) {
    char *part[RSI_ROW_MAX];
    for (int k = 0; k < operands; k++) {
      part[k] = data[k] + at * strides[k];
      if (k == 0 || strides[k] == 0 || n - at < 2 * BLOCK) continue;
      const char *const next = part[k] + BLOCK * strides[k];
      for (int64_t byte = 0; byte < BLOCK * (int64_t)sizeof(float); byte += LINE) __builtin_prefetch(next + byte);
    }
    row(n - at < BLOCK ? n - at : BLOCK, part, strides, arg);
  }
}

#define FETCHED(NAME, OPERANDS)                                                                                             \
  static void NAME(int64_t n, char *const *data, const int64_t *strides, const void *arg) {                                 \
    fetch_ahead(NAME##_rows, OPERANDS, n, data, strides, arg);                                                              \
  }
#define MATH(NAME)                                                                                                          \
  RSI_ROW_UNARY(NAME##_f32_rows, float, float, rsi_##NAME##_f32(x))                                                         \
  FETCHED(NAME##_f32, 2)                                                                                                    \
  RSI_ROW_UNARY(NAME##_f64, double, double, rsi_##NAME##_f64(x))
MATH(exp)
MATH(expm1)
MATH(log)
MATH(log1p)
MATH(erf)
MATH(tanh)
MATH(sigmoid)
MATH(gelu)
MATH(gelu_tanh)

/* A block without large arguments is vector code; in one with them each large argument goes to libm. */
#define CIRCULAR(NAME)                                                                                                      \
  static void NAME##_f32(int64_t n, char *const *data, const int64_t *strides, const void *arg) {                           \
    if (strides[0] != (int64_t)sizeof(float) || strides[1] != (int64_t)sizeof(float)) {                                     \
      rsi_row_blocks(NAME##_f32, 2, (const size_t[]){sizeof(float), sizeof(float)}, n, data, strides, arg);                 \
      return;                                                                                                               \
    }                                                                                                                       \
    for (int64_t at = 0; at < n; at += RSI_ROW_BLOCK) {                                                                     \
      float *const out = (float *)(void *)data[0] + at;                                                                     \
      const float *const in = (const float *)(const void *)data[1] + at;                                                    \
      const int64_t count = n - at < RSI_ROW_BLOCK ? n - at : RSI_ROW_BLOCK;                                                \
      int large = 0;                                                                                                        \
      RSI_LOOP for (int64_t i = 0; i < count; i++) large |= fabsf(in[i]) > RSI_V_TRIG_MAX;                                  \
      if (rsi_likely(!large)) {                                                                                             \
        RSI_LOOP for (int64_t i = 0; i < count; i++) out[i] = rsi_v_##NAME(in[i]);                                          \
      } else {                                                                                                              \
        for (int64_t i = 0; i < count; i++)                                                                                 \
          out[i] = fabsf(in[i]) > RSI_V_TRIG_MAX ? NAME##f(in[i]) : rsi_v_##NAME(in[i]);                                    \
      }                                                                                                                     \
    }                                                                                                                       \
  }
CIRCULAR(sin)
CIRCULAR(cos)

/* ---- two inputs ------------------------------------------------------------------------------------------------------ */

/* maximum and minimum: a NaN on either side wins */
#define FLOAT_BINARY(T, S, POW)                                                                                             \
  RSI_ROW_BINARY(add_##S, T, T, x + y)                                                                                      \
  RSI_ROW_BINARY_WITH(add_scaled_##S, T, T, const T alpha = (T)*(const double *)arg, x + alpha * y)                         \
  RSI_ROW_BINARY(sub_##S, T, T, x - y)                                                                                      \
  RSI_ROW_BINARY(mul_##S, T, T, x * y)                                                                                      \
  RSI_ROW_BINARY(div_##S, T, T, x / y)                                                                                      \
  RSI_ROW_BINARY(pow_##S, T, T, POW(x, y))                                                                                  \
  RSI_ROW_BINARY(maximum_##S, T, T, x > y ? x : y >= x ? y : x + y)                                                         \
  RSI_ROW_BINARY(minimum_##S, T, T, x < y ? x : y <= x ? y : x + y)                                                         \
  RSI_ROW_BINARY(tanh_backward_##S, T, T, x * ((T)1 - y * y))                                                               \
  RSI_ROW_BINARY(sigmoid_backward_##S, T, T, x * (y * ((T)1 - y)))                                                          \
  RSI_ROW_BINARY(relu_backward_##S, T, T, y > 0 ? x : (T)0)                                                                 \
  RSI_ROW_BINARY_WITH(clamp_backward_##S, T, T, const double *const range = arg; const T low = (T)range[0];                 \
                      const T high = (T)range[1], ((y >= low) & (y <= high)) != 0 ? x : (T)0)
FLOAT_BINARY(float, f32, powf)
FLOAT_BINARY(double, f64, pow)
RSI_ROW_BINARY(gelu_backward_f32_rows, float, float, x * rsi_gelu_slope_f32(y))
FETCHED(gelu_backward_f32, 3)
RSI_ROW_BINARY(gelu_backward_f64, double, double, x * rsi_gelu_slope_f64(y))
RSI_ROW_BINARY(gelu_tanh_backward_f32_rows, float, float, x * rsi_gelu_tanh_slope_f32(y))
FETCHED(gelu_tanh_backward_f32, 3)
RSI_ROW_BINARY(gelu_tanh_backward_f64, double, double, x * rsi_gelu_tanh_slope_f64(y))

/* x^y by squaring, modulo 2^64. A negative exponent gives the whole part of the quotient: 0 unless x is 1 or -1. */
static inline uint64_t int_pow(int64_t x, int64_t y) {
  if (y < 0) return x == 1 ? 1 : x == -1 ? ((y & 1) != 0 ? UINT64_MAX : 1) : 0;
  uint64_t result = 1, base = (uint64_t)x;
  for (uint64_t rest = (uint64_t)y; rest != 0; rest >>= 1, base *= base)
    if ((rest & 1) != 0) result *= base;
  return result;
}

#define INT_BINARY(T, U, S)                                                                                                 \
  RSI_ROW_BINARY(add_##S, T, T, (U)x + (U)y)                                                                                \
  RSI_ROW_BINARY_WITH(add_scaled_##S, T, T, const U alpha = (U)(int64_t)*(const double *)arg, (U)x + alpha * (U)y)          \
  RSI_ROW_BINARY(sub_##S, T, T, (U)x - (U)y)                                                                                \
  RSI_ROW_BINARY(mul_##S, T, T, (U)x * (U)y)                                                                                \
  RSI_ROW_BINARY(div_##S, T, float, (double)x / (double)y)                                                                  \
  RSI_ROW_BINARY(pow_##S, T, T, int_pow((int64_t)x, (int64_t)y))                                                            \
  RSI_ROW_BINARY(maximum_##S, T, T, x > y ? x : y)                                                                          \
  RSI_ROW_BINARY(minimum_##S, T, T, x < y ? x : y)
INT_BINARY(int64_t, uint64_t, i64)
INT_BINARY(int32_t, uint32_t, i32)
INT_BINARY(uint8_t, uint32_t, u8)

#define COMPARE(T, S)                                                                                                       \
  RSI_ROW_BINARY(eq_##S, T, uint8_t, x == y)                                                                                \
  RSI_ROW_BINARY(ne_##S, T, uint8_t, x != y)                                                                                \
  RSI_ROW_BINARY(lt_##S, T, uint8_t, x < y)                                                                                 \
  RSI_ROW_BINARY(le_##S, T, uint8_t, x <= y)                                                                                \
  RSI_ROW_BINARY(gt_##S, T, uint8_t, x > y)                                                                                 \
  RSI_ROW_BINARY(ge_##S, T, uint8_t, x >= y)                                                                                \
  RSI_ROW_BINARY(and_##S, T, uint8_t, (x != 0) & (y != 0))                                                                  \
  RSI_ROW_BINARY(or_##S, T, uint8_t, (x != 0) | (y != 0))
COMPARE(float, f32)
COMPARE(double, f64)
COMPARE(int64_t, i64)
COMPARE(int32_t, i32)
COMPARE(uint8_t, u8)

/* ---- selection and constants ----------------------------------------------------------------------------------------- */

/* out = condition ? a : b; a and b are moved, not read as numbers. Masks instead of a branch. */
#define WHERE(T, S)                                                                                                         \
  static void where_##S(int64_t n, char *const *data, const int64_t *strides, const void *arg) {                            \
    const int64_t size = (int64_t)sizeof(T);                                                                                \
    T *const out = (T *)(void *)data[0];                                                                                    \
    const uint8_t *const condition = (const uint8_t *)data[1];                                                              \
    const T *const a = (const T *)(const void *)data[2], *const b = (const T *)(const void *)data[3];                       \
    if (strides[0] == size && strides[1] == 1 && strides[2] == size && strides[3] == size) {                                \
      RSI_LOOP for (int64_t i = 0; i < n; i++) out[i] = condition[i] != 0 ? a[i] : b[i];                                    \
    } else if (strides[0] == size && strides[1] == 1 && strides[2] == size && strides[3] == 0) {                            \
      const T y = *b;                                                                                                       \
      RSI_LOOP for (int64_t i = 0; i < n; i++) out[i] = condition[i] != 0 ? a[i] : y;                                       \
    } else {                                                                                                                \
      rsi_row_blocks(where_##S, 4, (const size_t[]){sizeof(T), 1, sizeof(T), sizeof(T)}, n, data, strides, arg);            \
    }                                                                                                                       \
  }
WHERE(uint8_t, 1)
WHERE(uint16_t, 2)
WHERE(uint32_t, 4)
WHERE(uint64_t, 8)

/* Whole numbers are never NaN and always finite. */
#define CONSTANT(NAME, T, value) RSI_ROW_UNARY(NAME, T, uint8_t, ((void)x, value))
CONSTANT(never_8, uint64_t, 0)
CONSTANT(never_4, uint32_t, 0)
CONSTANT(never_1, uint8_t, 0)
CONSTANT(always_8, uint64_t, 1)
CONSTANT(always_4, uint32_t, 1)
CONSTANT(always_1, uint8_t, 1)

/* ---- the table ------------------------------------------------------------------------------------------------------- */

#define FLOATS(NAME)  [RS_F32] = NAME##_f32, [RS_F64] = NAME##_f64
#define SIGNED(NAME)  FLOATS(NAME), [RS_I64] = NAME##_i64, [RS_I32] = NAME##_i32
#define NUMBERS(NAME) SIGNED(NAME), [RS_U8] = NAME##_u8
#define ALL(NAME)     NUMBERS(NAME), [RS_BOOL] = NAME##_u8
#define WHOLE(NAME)   [RS_I64] = NAME##_8, [RS_I32] = NAME##_4, [RS_U8] = NAME##_1, [RS_BOOL] = NAME##_1
#define INTS(NAME)    [RS_I64] = NAME##_i64, [RS_I32] = NAME##_i32, [RS_U8] = NAME##_u8

const rsi_k_elementwise RSI_ISA(rsi_k_elementwise) = {
  .unary = {
    [RSI_U_NEG] = {SIGNED(neg)}, [RSI_U_ABS] = {SIGNED(abs)}, [RSI_U_SQUARE] = {NUMBERS(square)},
    [RSI_U_SIGN] = {NUMBERS(sign)}, [RSI_U_RELU] = {SIGNED(relu)}, [RSI_U_CLAMP] = {NUMBERS(clamp)},
    [RSI_U_SQRT] = {FLOATS(sqrt)}, [RSI_U_RSQRT] = {FLOATS(rsqrt)}, [RSI_U_RECIPROCAL] = {FLOATS(reciprocal)},
    [RSI_U_FLOOR] = {FLOATS(floor)}, [RSI_U_CEIL] = {FLOATS(ceil)}, [RSI_U_ROUND] = {FLOATS(round)},
    [RSI_U_EXP] = {FLOATS(exp)}, [RSI_U_EXPM1] = {FLOATS(expm1)}, [RSI_U_LOG] = {FLOATS(log)},
    [RSI_U_LOG1P] = {FLOATS(log1p)}, [RSI_U_SIN] = {FLOATS(sin)}, [RSI_U_COS] = {FLOATS(cos)}, [RSI_U_ERF] = {FLOATS(erf)},
    [RSI_U_TANH] = {FLOATS(tanh)}, [RSI_U_SIGMOID] = {FLOATS(sigmoid)}, [RSI_U_GELU] = {FLOATS(gelu)},
    [RSI_U_GELU_TANH] = {FLOATS(gelu_tanh)}, [RSI_U_NOT] = {ALL(not)},
    [RSI_U_ISNAN] = {FLOATS(isnan), WHOLE(never)}, [RSI_U_ISFINITE] = {FLOATS(isfinite), WHOLE(always)},
  },
  .binary = {
    [RSI_B_ADD] = {NUMBERS(add)}, [RSI_B_ADD_SCALED] = {NUMBERS(add_scaled)}, [RSI_B_SUB] = {NUMBERS(sub)},
    [RSI_B_MUL] = {NUMBERS(mul)}, [RSI_B_DIV] = {FLOATS(div), INTS(div)}, [RSI_B_POW] = {NUMBERS(pow)},
    [RSI_B_MAXIMUM] = {NUMBERS(maximum)}, [RSI_B_MINIMUM] = {NUMBERS(minimum)},
    [RSI_B_EQ] = {ALL(eq)}, [RSI_B_NE] = {ALL(ne)}, [RSI_B_LT] = {ALL(lt)}, [RSI_B_LE] = {ALL(le)}, [RSI_B_GT] = {ALL(gt)},
    [RSI_B_GE] = {ALL(ge)}, [RSI_B_AND] = {ALL(and)}, [RSI_B_OR] = {ALL(or)},
    [RSI_B_TANH_BACKWARD] = {FLOATS(tanh_backward)}, [RSI_B_SIGMOID_BACKWARD] = {FLOATS(sigmoid_backward)},
    [RSI_B_RELU_BACKWARD] = {FLOATS(relu_backward)}, [RSI_B_GELU_BACKWARD] = {FLOATS(gelu_backward)},
    [RSI_B_GELU_TANH_BACKWARD] = {FLOATS(gelu_tanh_backward)}, [RSI_B_CLAMP_BACKWARD] = {FLOATS(clamp_backward)},
  },
  .where = {where_1, where_2, where_4, where_8},
  .cast = &RSI_ISA(rsi_k_cast),
  .random = &RSI_ISA(rsi_k_random),
};
