/* A register of floats, for loops over block images whose block is one: it comes and goes unaligned; NaN passes through a clamp. */
#ifndef RSI_FLOAT_VEC_H
#define RSI_FLOAT_VEC_H

#include "base/base.h"
#include "kernels/isa.h"
#ifdef __SSE2__
#include <immintrin.h>
#endif

#define REAL float
#define BITS int32_t
#define N(name) name##_lanes
#include "kernels/vector.h"
#undef N
#undef REAL
#undef BITS

typedef vec_lanes vec;
enum { L = RSI_LANES };
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p) { return *(const uvec_lanes *)p; }
INLINE void store(float *p, vec v) { *(uvec_lanes *)p = v; }

/* v between low and high, but NaN stays NaN. */
INLINE vec clamp(vec v, vec low, vec high) {
#if !defined(__SSE2__)
  const mask_lanes under = v < low, over = v > high;
  v = (vec)(((mask_lanes)low & under) | ((mask_lanes)v & ~under));
  return (vec)(((mask_lanes)high & over) | ((mask_lanes)v & ~over));
#elif RSI_ISA_LEVEL == 2
  return (vec)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)v));
#elif RSI_ISA_LEVEL == 1
  return (vec)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)v));
#else
  return (vec)_mm_min_ps((__m128)high, _mm_max_ps((__m128)low, (__m128)v));
#endif
}

#endif
