/*
** Conversions between all dtypes, and copies by element size.
** Rules: to a float rounds to nearest, ties to even; a float becomes an integer by cutting off its fraction, values outside
** the range become the nearest bound and NaN becomes 0; an integer becomes a smaller one by dropping high bits; anything but 0
** is true. f64 reaches bf16 and f16 through a float whose last bit remembers what was lost ("round to odd"), so it is rounded
** once only; 64-bit integers go through f32.
*/
#include "kernels/elementwise.h"
#include "kernels/isa.h"
#include "kernels/row.h"
#include "kernels/vmath.h"

extern const rsi_k_cast RSI_ISA(rsi_k_cast);

/* ---- bf16 and f16 ---------------------------------------------------------------------------------------------------- */

typedef uint16_t bf16;
typedef uint16_t f16;

static inline float from_bf16(bf16 x) { return rsi_of_bits((uint32_t)x << 16); }

static inline bf16 to_bf16(float x) {
  const uint32_t u = rsi_bits_of(x), rounded = u + 0x7FFFu + ((u >> 16) & 1u);
  return (bf16)((x != x ? u | 0x400000u : rounded) >> 16);
}

/* A product with 2^112 moves the exponent, denormals included; infinities and NaN get the exponent they need. */
static inline float from_f16(f16 x) {
  const uint32_t magnitude = (uint32_t)(x & 0x7FFFu) << 13, sign = (uint32_t)(x & 0x8000u) << 16;
  const uint32_t u = rsi_bits_of(rsi_of_bits(magnitude) * 5.192296858534828e33f);
  return rsi_of_bits(sign | (magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : u));
}

/* Below 2^-14 adding 0.5 rounds to multiples of 2^-24, which are the denormals. */
static inline f16 to_f16(float x) {
  const uint32_t u = rsi_bits_of(x), magnitude = u & 0x7FFFFFFFu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t small = rsi_bits_of(rsi_of_bits(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t large = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const uint32_t h = magnitude < 0x38800000u ? small : magnitude < 0x47800000u ? normal : large;
  return (f16)(h | ((u >> 16) & 0x8000u));
}

/* The nearest float towards zero, with its last bit set when the conversion was not exact. */
static inline float to_odd(double x) {
  const float f = (float)x;
  const double back = (double)f;
  uint32_t u = rsi_bits_of(f);
  u = fabs(back) > fabs(x) ? u - 1u : u;
  return back == x || x != x ? f : rsi_of_bits(u | 1u);
}

/* ---- to integers ----------------------------------------------------------------------------------------------------- */

/* The selection keeps the conversion itself inside the range, so it is defined for every x. */
#define FLOAT_TO_INT(F, T, NAME, LOW, HIGH, LEAST, MOST)                                                                    \
  static inline T NAME(F x) {                                                                                               \
    const T inside = (T)(((x > (LOW)) & (x < (HIGH))) != 0 ? x : (F)0);                                                            \
    return x >= (HIGH) ? (T)(MOST) : x <= (LOW) ? (T)(LEAST) : inside;                                                      \
  }
FLOAT_TO_INT(float, int64_t, f32_to_i64, -9223372036854775808.0f, 9223372036854775808.0f, INT64_MIN, INT64_MAX)
FLOAT_TO_INT(float, int32_t, f32_to_i32, -2147483648.0f, 2147483648.0f, INT32_MIN, INT32_MAX)
FLOAT_TO_INT(float, uint8_t, f32_to_u8, -1.0f, 256.0f, 0, 255)
FLOAT_TO_INT(double, int64_t, f64_to_i64, -9223372036854775808.0, 9223372036854775808.0, INT64_MIN, INT64_MAX)
FLOAT_TO_INT(double, int32_t, f64_to_i32, -2147483649.0, 2147483648.0, INT32_MIN, INT32_MAX)
FLOAT_TO_INT(double, uint8_t, f64_to_u8, -1.0, 256.0, 0, 255)

/* ---- rows: cast_FROM_TO ---------------------------------------------------------------------------------------------- */

#define CAST(FROM, TO, TF, TT, expression) RSI_ROW_UNARY(cast_##FROM##_##TO, TF, TT, expression)

/* WIDE: the float (f32 or f64) that stands for an element */
#define FROM_FLOAT(S, T, W, WIDE)                                                                                           \
  CAST(S, i64, T, int64_t, W##_to_i64(WIDE))                                                                                \
  CAST(S, i32, T, int32_t, W##_to_i32(WIDE))                                                                                \
  CAST(S, u8, T, uint8_t, W##_to_u8(WIDE))                                                                                  \
  CAST(S, bool, T, uint8_t, (WIDE) != 0)
FROM_FLOAT(f32, float, f32, x)
FROM_FLOAT(f64, double, f64, x)
FROM_FLOAT(bf16, bf16, f32, from_bf16(x))
FROM_FLOAT(f16, f16, f32, from_f16(x))
CAST(f32, f64, float, double, x)
CAST(f32, bf16, float, bf16, to_bf16(x))
CAST(f32, f16, float, f16, to_f16(x))
CAST(f64, f32, double, float, x)
CAST(f64, bf16, double, bf16, to_bf16(to_odd(x)))
CAST(f64, f16, double, f16, to_f16(to_odd(x)))
CAST(bf16, f32, bf16, float, from_bf16(x))
CAST(bf16, f64, bf16, double, from_bf16(x))
CAST(bf16, f16, bf16, f16, to_f16(from_bf16(x)))
CAST(f16, f32, f16, float, from_f16(x))
CAST(f16, f64, f16, double, from_f16(x))
CAST(f16, bf16, f16, bf16, to_bf16(from_f16(x)))

#define FROM_INT(S, T)                                                                                                      \
  CAST(S, f32, T, float, x)                                                                                                 \
  CAST(S, f64, T, double, x)                                                                                                \
  CAST(S, bf16, T, bf16, to_bf16((float)x))                                                                                 \
  CAST(S, f16, T, f16, to_f16((float)x))                                                                                    \
  CAST(S, i64, T, int64_t, x)                                                                                               \
  CAST(S, i32, T, int32_t, x)                                                                                               \
  CAST(S, u8, T, uint8_t, x)                                                                                                \
  CAST(S, bool, T, uint8_t, x != 0)
FROM_INT(i64, int64_t)
FROM_INT(i32, int32_t)
FROM_INT(u8, uint8_t)

/* ---- copies ---------------------------------------------------------------------------------------------------------- */

/* A stride of 0 is a fill: of zero bytes mostly. */
#define COPY(T, S)                                                                                                          \
  static void copy_##S(int64_t n, char *const *data, const int64_t *strides, const void *arg) {                             \
    const int64_t size = (int64_t)sizeof(T);                                                                                \
    (void)arg;                                                                                                              \
    if (strides[0] == size && strides[1] == size) {                                                                         \
      memmove(data[0], data[1], (size_t)n * sizeof(T));                                                                     \
    } else if (strides[0] == size && strides[1] == 0) {                                                                     \
      T *const out = (T *)(void *)data[0];                                                                                  \
      const T value = *(const T *)(const void *)data[1];                                                                    \
      if (value == 0) memset(out, 0, (size_t)n * sizeof(T));                                                                \
      else RSI_LOOP for (int64_t i = 0; i < n; i++) out[i] = value;                                                         \
    } else {                                                                                                                \
      rsi_row_move(n, sizeof(T), data[0], strides[0], data[1], strides[1]);                                                 \
    }                                                                                                                       \
  }
COPY(uint8_t, 1)
COPY(uint16_t, 2)
COPY(uint32_t, 4)
COPY(uint64_t, 8)

/* ---- the table ------------------------------------------------------------------------------------------------------- */

#define TO_ALL(S)                                                                                                           \
  {[RS_F32] = cast_##S##_f32, [RS_F64] = cast_##S##_f64, [RS_BF16] = cast_##S##_bf16, [RS_F16] = cast_##S##_f16,            \
   [RS_I64] = cast_##S##_i64, [RS_I32] = cast_##S##_i32, [RS_U8] = cast_##S##_u8, [RS_BOOL] = cast_##S##_bool}
#define cast_f32_f32   copy_4
#define cast_f64_f64   copy_8
#define cast_bf16_bf16 copy_2
#define cast_f16_f16   copy_2

const rsi_k_cast RSI_ISA(rsi_k_cast) = {
  .cast = {
    [RS_F32] = TO_ALL(f32), [RS_F64] = TO_ALL(f64), [RS_BF16] = TO_ALL(bf16), [RS_F16] = TO_ALL(f16), [RS_I64] = TO_ALL(i64),
    [RS_I32] = TO_ALL(i32), [RS_U8] = TO_ALL(u8), [RS_BOOL] = TO_ALL(u8),
  },
  .copy = {copy_1, copy_2, copy_4, copy_8},
};
