/*
** Elementary functions that a compiler turns into vector code: no branches (both sides are computed, then one selected), no
** calls, no tables. So a loop over rsi_exp_f32 becomes SIMD code in every instruction set, and its scalar tail gives the same
** function. Errors are below 2.3 ulp over all floats (gelu: 7, in its left tail), also where the compiler contracts a product and a sum;
** infinities, NaN, denormals and overflow are as in C, but for what is made of rsi_exp_down_f32 (sigmoid, tanh, gelu, erf): its
** results below 2^-126 are 0. Polynomials are weighted minimax fits made for this file. The f64 forms call libm.
**
** A trick used throughout: adding 1.5 * 2^23 to a float leaves its nearest integer in the low bits of the sum.
*/
#ifndef RSI_VMATH_H
#define RSI_VMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t rsi_bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

static inline float rsi_of_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

#define RSI_V_MAGIC 12582912.0f            /* 1.5 * 2^23 */
#define RSI_V_LN2_HI 0.693359375f          /* 10 bits: its product with an exponent is exact */
#define RSI_V_LN2_LO (-2.12194440e-4f)

/* a b - c, the product exact where the instruction set has it; elsewhere callers give operands whose product is exact. */
static inline float rsi_v_fused(float a, float b, float c) {
#ifdef __FMA__
  return __builtin_fmaf(a, b, -c);
#else
  return a * b - c;
#endif
}

/* 2^k for k in -126..127. */
static inline float rsi_v_pow2(int32_t k) { return rsi_of_bits((uint32_t)(k + 127) << 23); }

/* ---- exponentials ---------------------------------------------------------------------------------------------------- */

/* exp(x + lo) where lo is far smaller than x. x = k ln 2 + r, |r| <= ln 2 / 2; two factors for 2^k reach the denormals. */
static inline float rsi_v_exp_parts(float x, float lo) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  const float t = x * 1.44269504f + RSI_V_MAGIC, n = t - RSI_V_MAGIC;
  const int32_t k = (int32_t)(rsi_bits_of(t) - rsi_bits_of(RSI_V_MAGIC)), half = k >> 1;
  const float r = ((x - n * RSI_V_LN2_HI) - n * RSI_V_LN2_LO) + lo;
  float p = 0.00138131424f;
  p = p * r + 0.00836941904f;
  p = p * r + 0.0416684568f;
  p = p * r + 0.166665148f;
  p = p * r + 0.499999931f;
  return (1.0f + (r + r * r * p)) * rsi_v_pow2(half) * rsi_v_pow2(k - half);
}

static inline float rsi_exp_f32(float x) { return rsi_v_exp_parts(x, 0.0f); }

/*
** exp(x) of an x that is not positive, and 0 where that would be denormal: half the work of the whole range. The integer that
** the magic number leaves is the exponent of 2^k already, bias and all.
*/
#define RSI_V_MAGIC_127 12583039.0f        /* RSI_V_MAGIC + 127 */
#define RSI_V_EXP_LEAST (-87.3365402f)     /* ln 2^-126, rounded towards 0 */

/* exp(r) 2^(n) where t = n + RSI_V_MAGIC_127 */
static inline float rsi_v_exp_scaled(float r, float t) {
  float p = 0.00138131424f;
  p = p * r + 0.00836941904f;
  p = p * r + 0.0416684568f;
  p = p * r + 0.166665148f;
  p = p * r + 0.499999931f;
  p = p * r + 1.0f;
  return (p * r + 1.0f) * rsi_of_bits(rsi_bits_of(t) << 23);
}

static inline float rsi_exp_down_f32(float x) {
  const float t = x * 1.44269504f + RSI_V_MAGIC_127, n = t - RSI_V_MAGIC_127;
  const float y = rsi_v_exp_scaled((x - n * RSI_V_LN2_HI) - n * RSI_V_LN2_LO, t);
  return x < RSI_V_EXP_LEAST ? 0.0f : y;
}

/* 2^k (1 + p) - 1 with p = exp(r) - 1, computed at half size so that 2^k does not overflow before the result does. */
static inline float rsi_expm1_f32(float x) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -18.0f ? -18.0f : x;
  const float t = x * 1.44269504f + RSI_V_MAGIC, n = t - RSI_V_MAGIC;
  const int32_t k = (int32_t)(rsi_bits_of(t) - rsi_bits_of(RSI_V_MAGIC));
  const float r = (x - n * RSI_V_LN2_HI) - n * RSI_V_LN2_LO, s = rsi_v_pow2(k - 1);
  float p = 0.000198459573f;
  p = p * r + 0.00139416529f;
  p = p * r + 0.00833339164f;
  p = p * r + 0.0416663487f;
  p = p * r + 0.166666664f;
  p = p * r + 0.500000005f;
  p = r + r * r * p;
  return 2.0f * (s * p + (s - 0.5f));
}

/* exp(-|x|) never overflows, and z / (1 + z) keeps the small values of the left tail. */
static inline float rsi_sigmoid_f32(float x) {
  const float z = rsi_exp_down_f32(-fabsf(x));
  return (x >= 0.0f ? 1.0f : z) / (1.0f + z);
}

static inline float rsi_tanh_f32(float x) {
  const float a = fabsf(x), z = x * x;
  float p = -0.00551516718f;
  p = p * z + 0.0204694235f;
  p = p * z - 0.0536880245f;
  p = p * z + 0.133308304f;
  p = p * z - 0.333332598f;
  const float e = rsi_exp_down_f32(-2.0f * a), near = x + x * z * p, far = (1.0f - e) / (1.0f + e);
  return a < 0.625f ? near : copysignf(far, x);
}

/* ---- logarithms ------------------------------------------------------------------------------------------------------ */

/* log((1 + f) 2^e), sqrt(1/2) - 1 <= f < sqrt(2) - 1 */
static inline float rsi_v_log_parts(float f, float e) {
  const float z = f * f;
  float p = 0.0674660133f;
  p = p * f - 0.116756413f;
  p = p * f + 0.118881746f;
  p = p * f - 0.124055914f;
  p = p * f + 0.142195509f;
  p = p * f - 0.166679957f;
  p = p * f + 0.200021187f;
  p = p * f - 0.250000096f;
  p = p * f + 0.333333126f;
  p = f * z * p + e * RSI_V_LN2_LO;
  return (f + (p - 0.5f * z)) + e * RSI_V_LN2_HI;
}

#define RSI_V_SQRT_HALF 0x3F3504F3u        /* bits of sqrt(1/2) */

static inline float rsi_log_f32(float x) {
  const float tiny = x < 1.17549435e-38f ? 8388608.0f : 1.0f;   /* 2^23 makes denormals normal */
  const uint32_t u = rsi_bits_of(x * tiny);
  const int32_t k = (int32_t)(u - RSI_V_SQRT_HALF) >> 23;
  const float e = (float)k - (tiny > 1.0f ? 23.0f : 0.0f);
  float y = rsi_v_log_parts(rsi_of_bits(u - ((uint32_t)k << 23)) - 1.0f, e);
  y = x == INFINITY ? x : y;
  y = x == 0.0f ? -INFINITY : y;
  return x >= 0.0f ? y : NAN;
}

/* u = 1 + x is rounded; c is what the rounding took away. */
static inline float rsi_log1p_f32(float x) {
  const float u = 1.0f + x, b = u - 1.0f, c = (1.0f - (u - b)) + (x - b);
  const int32_t k = (int32_t)(rsi_bits_of(u) - RSI_V_SQRT_HALF) >> 23;
  const float scale = k > 64 ? 0.0f : rsi_v_pow2(-k), m = rsi_of_bits(rsi_bits_of(u) - ((uint32_t)k << 23));
  float y = rsi_v_log_parts((m - 1.0f) + c * scale, (float)k);
  y = x == INFINITY ? x : y;
  y = x == -1.0f ? -INFINITY : y;
  return x >= -1.0f ? y : NAN;
}

/* ---- the error function and the normal distribution ------------------------------------------------------------------ */

/* exp(a^2 / 2) P(X > a) of a standard normal X, 0 <= a <= 13.3: a polynomial in (a - 3) / (a + 3) */
static inline float rsi_v_mills(float a) {
  const float s = (a - 3.0f) / (a + 3.0f);
  float p = 5.4150885e-05f;
  p = p * s + 0.000116037438f;
  p = p * s - 0.000339911348f;
  p = p * s - 0.000984182814f;
  p = p * s + 0.00290470268f;
  p = p * s + 0.00613218313f;
  p = p * s - 0.0462133139f;
  p = p * s + 0.123225018f;
  p = p * s - 0.206402615f;
  return p * s + 0.121513948f;
}

/*
** exp(-a^2 / 2), 0 <= a <= 13.2. The tails keep their relative accuracy only if the square does: one fused operation takes the
** exponent's whole part from the exact square, or the square is made in two parts, of which h * h is exact (h has 12 bits).
*/
static inline float rsi_v_bell(float a) {
#ifdef __FMA__
  const float half = -0.5f * a, t = rsi_v_fused(half * 1.44269504f, a, -RSI_V_MAGIC_127), n = t - RSI_V_MAGIC_127;
  return rsi_v_exp_scaled(rsi_v_fused(half, a, n * RSI_V_LN2_HI) - n * RSI_V_LN2_LO, t);
#else
  const float h = rsi_of_bits(rsi_bits_of(a) & 0xFFFFF000u), x = -0.5f * (h * h), lo = -0.5f * ((a - h) * (a + h));
  const float t = (x + lo) * 1.44269504f + RSI_V_MAGIC_127, n = t - RSI_V_MAGIC_127;
  return rsi_v_exp_scaled(((x - n * RSI_V_LN2_HI) + lo) - n * RSI_V_LN2_LO, t);
#endif
}

static inline float rsi_erf_f32(float x) {
  const float a = fabsf(x) > 4.0f ? 4.0f : fabsf(x), z = a * a;
  float p = 7.85402632e-05f;
  p = p * z - 0.000801024766f;
  p = p * z + 0.0051883345f;
  p = p * z - 0.0268538161f;
  p = p * z + 0.112835853f;
  p = p * z - 0.376126258f;
  p = p * z + 0.128379167f;
  const float far = 1.0f - 2.0f * rsi_exp_down_f32(-z) * rsi_v_mills(a * 1.41421356f);
  return a < 1.0f ? x + x * p : copysignf(far, x);
}

/* |x| where the normal distribution is worth computing, and P(X > |x|); sets *bell to exp(-x^2 / 2). Beyond, both are 0. */
static inline float rsi_v_tail(float x, float *a, float *bell) {
  const float b = fabsf(x) > 13.2f ? 13.2f : fabsf(x), e = rsi_v_bell(b);
  *a = b;
  *bell = fabsf(x) > 13.19f ? 0.0f : e;
  return *bell * rsi_v_mills(b);
}

/* x P(X <= x) = max(x, 0) - |x| P(X > |x|) */
static inline float rsi_gelu_f32(float x) {
  float a, bell;
  const float tail = rsi_v_tail(x, &a, &bell);
  return (x > 0.0f ? x : 0.0f) - a * tail;
}

/* Its derivative P(X <= x) + x density(x) */
static inline float rsi_gelu_slope_f32(float x) {
  float a, bell;
  const float tail = rsi_v_tail(x, &a, &bell), left = tail - a * (bell * 0.398942280f);
  return x > 0.0f ? 1.0f - left : left;
}

/*
** The tanh form: x (1 + tanh(u)) / 2 = x sigmoid(v), v = 2 sqrt(2 / pi) (x + 0.044715 x^3). v goes through f64, because an
** error in it grows with its size in the tail. Returns exp(-|v|).
*/
static inline float rsi_v_gelu_tanh_exp(float x) {
  const double d = (double)(fabsf(x) > 14.8f ? 14.8f : fabsf(x)), v = -1.59576912160573071176 * d * (1.0 + 0.044715 * d * d);
  const float hi = (float)v;
  return rsi_v_exp_parts(hi, (float)(v - (double)hi));
}

static inline float rsi_gelu_tanh_f32(float x) {
  const float z = rsi_v_gelu_tanh_exp(x);
  return x * (x >= 0.0f ? 1.0f : z) / (1.0f + z);
}

/* s + x s (1 - s) v', where s (1 - s) = z / (1 + z)^2 */
static inline float rsi_gelu_tanh_slope_f32(float x) {
  const float z = rsi_v_gelu_tanh_exp(x), d = 1.0f / (1.0f + z), s = (x >= 0.0f ? 1.0f : z) * d;
  const float c = fabsf(x) > 14.8f ? 0.0f : x;   /* z is 0 there */
  return s + c * z * d * d * (1.59576912f + 0.214064449f * c * c);
}

/* ---- circular functions ---------------------------------------------------------------------------------------------- */

#define RSI_V_TRIG_MAX 1000000.0f          /* the reduction below holds up to here; callers take libm for larger ones */

/* sin(x + quarter * pi / 2) for |x| <= RSI_V_TRIG_MAX. pi / 2 in two parts, the first of 33 bits. */
static inline float rsi_v_sine(float x, uint64_t quarter) {
  const double magic = 6755399441055744.0, d = (double)x, t = d * 0.63661977236758134308 + magic, n = t - magic;
  uint64_t q;
  memcpy(&q, &t, sizeof q);
  const uint32_t turn = (uint32_t)(q + quarter);
  const float r = (float)((d - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11), z = r * r;
  float s = -0.000195146326f;
  s = s * z + 0.00833215606f;
  s = s * z - 0.166666545f;
  s = r + r * z * s;
  float c = 2.44324122e-05f;
  c = c * z - 0.00138873099f;
  c = c * z + 0.0416666456f;
  c = 1.0f + (z * z * c - 0.5f * z);
  const float y = (turn & 1u) != 0 ? c : s;
  return (turn & 2u) != 0 ? -y : y;
}

static inline float rsi_v_sin(float x) { return rsi_v_sine(x, 0); }
static inline float rsi_v_cos(float x) { return rsi_v_sine(x, 1); }

/* ---- f64 ------------------------------------------------------------------------------------------------------------- */

static inline double rsi_exp_f64(double x) { return exp(x); }
static inline double rsi_expm1_f64(double x) { return expm1(x); }
static inline double rsi_log_f64(double x) { return log(x); }
static inline double rsi_log1p_f64(double x) { return log1p(x); }
static inline double rsi_tanh_f64(double x) { return tanh(x); }
static inline double rsi_erf_f64(double x) { return erf(x); }

static inline double rsi_sigmoid_f64(double x) {
  const double z = exp(-fabs(x));
  return (x >= 0.0 ? 1.0 : z) / (1.0 + z);
}

static inline double rsi_gelu_f64(double x) { return 0.5 * x * erfc(-x * 0.70710678118654752440); }
static inline double rsi_gelu_slope_f64(double x) {
  return 0.5 * erfc(-x * 0.70710678118654752440) + x * 0.39894228040143267794 * exp(-0.5 * x * x);
}

static inline double rsi_gelu_tanh_f64(double x) {
  return x * rsi_sigmoid_f64(1.59576912160573071176 * x * (1.0 + 0.044715 * x * x));
}

static inline double rsi_gelu_tanh_slope_f64(double x) {
  const double c = fabs(x) > 40.0 ? copysign(40.0, x) : x, v = 1.59576912160573071176 * c * (1.0 + 0.044715 * c * c);
  return rsi_sigmoid_f64(v)
         + c * rsi_sigmoid_f64(v) * rsi_sigmoid_f64(-v) * 1.59576912160573071176 * (1.0 + 0.134145 * c * c);
}

#endif
