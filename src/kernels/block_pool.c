/*
** Pooling of block images: block_pool_loops.h for f32 and bf16. The channels of a pixel are taken a register (or half of a long
** one) at a time, then one by one, so a loop over a window has its running values in registers.
*/
#include "kernels/block_pool.h"
#include "kernels/bf16.h"
#include "kernels/isa.h"
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))

/* vec_V of V floats, with what is needed of them. exact: stores what came from that type. */
#define VECTORS(V)                                                                                                          \
  typedef float vec_##V __attribute__((vector_size(4 * V)));                                                                \
  typedef float vec_u_##V __attribute__((vector_size(4 * V), aligned(4), may_alias));                                       \
  typedef int32_t ints_##V __attribute__((vector_size(4 * V)));                                                             \
  typedef uint32_t words_##V __attribute__((vector_size(4 * V)));                                                           \
  typedef uint16_t halves_##V __attribute__((vector_size(2 * V)));                                                          \
  typedef uint16_t halves_u_##V __attribute__((vector_size(2 * V), aligned(2), may_alias));                                 \
  typedef uint8_t bytes_##V __attribute__((vector_size(V)));                                                                \
  typedef uint8_t bytes_u_##V __attribute__((vector_size(V), aligned(1), may_alias));                                       \
  INLINE vec_##V load_f32_##V(const float *p) { return *(const vec_u_##V *)p; }                                             \
  INLINE void store_f32_##V(float *p, vec_##V v) { *(vec_u_##V *)p = v; }                                                   \
  INLINE vec_##V load_bf16_##V(const uint16_t *p) {                                                                         \
    return (vec_##V)(__builtin_convertvector(*(const halves_u_##V *)p, words_##V) << 16);                                   \
  }                                                                                                                         \
  INLINE void store_bf16_##V(uint16_t *p, vec_##V v) {                                                                      \
    const words_##V u = (words_##V)v;                                                                                       \
    *(halves_u_##V *)p = __builtin_convertvector((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16, halves_##V);                       \
  }                                                                                                                         \
  INLINE void exact_f32_##V(float *p, vec_##V v) { *(vec_u_##V *)p = v; }                                                   \
  INLINE void exact_bf16_##V(uint16_t *p, vec_##V v) {                                                                      \
    *(halves_u_##V *)p = __builtin_convertvector((words_##V)v >> 16, halves_##V);                                           \
  }                                                                                                                         \
  INLINE ints_##V load_taps_##V(const uint8_t *p) { return __builtin_convertvector(*(const bytes_u_##V *)p, ints_##V); }    \
  INLINE void store_taps_##V(uint8_t *p, ints_##V v) { *(bytes_u_##V *)p = __builtin_convertvector(v, bytes_##V); }         \
  INLINE vec_##V all_##V(float x) { return x - (vec_##V){0}; }                                                              \
  INLINE vec_##V pick_##V(ints_##V mask, vec_##V yes, vec_##V no) {                                                         \
    return (vec_##V)((mask & (ints_##V)yes) | (~mask & (ints_##V)no));                                                      \
  }                                                                                                                         \
  INLINE vec_##V keep_##V(ints_##V mask, vec_##V v) { return (vec_##V)(mask & (ints_##V)v); }
#if RSI_LANES == 16
VECTORS(16)
VECTORS(8)
#define FOR_VECTORS(UNIT) UNIT(16) UNIT(8)
#elif RSI_LANES == 8
VECTORS(8)
#define FOR_VECTORS(UNIT) UNIT(8)
#else
VECTORS(4)
#define FOR_VECTORS(UNIT) UNIT(4)
#endif

/* The windows, along one direction, that hold position `at`: first..last-1. extent: of a window, dilation included. */
typedef struct span { int64_t first, last; } span;
INLINE span windows(int64_t at, int64_t pad, int64_t extent, int64_t stride, int64_t out) {
  const int64_t from = at + pad - extent + 1, last = (at + pad) / stride + 1;
  return (span){from > 0 ? (from + stride - 1) / stride : 0, last < out ? last : out};
}
/* The span of at + 1, from that of at. */
INLINE span next_windows(span s, int64_t at, int64_t pad, int64_t extent, int64_t stride, int64_t out) {
  if (s.last < out && s.last * stride <= at + 1 + pad) s.last++;
  if (s.first * stride + extent <= at + 1 + pad) s.first++;
  return s;
}
/* Taps k of a window at `at` that lie inside: first..last-1. */
INLINE span taps_inside(int64_t at, int64_t k, int64_t dilation, int64_t size) {
  const int64_t first = at < 0 ? (-at + dilation - 1) / dilation : 0;
  const int64_t last = at + (k - 1) * dilation < size ? k : (size - at + dilation - 1) / dilation;
  return (span){first, last};
}

/* A window's size in one direction, cut at the padded image or, unless the border counts, at the image itself. */
INLINE int64_t extent_of(int64_t at, int64_t k, int64_t size, int64_t pad, bool include_pad) {
  const int64_t end = at + k < size + pad ? at + k : size + pad;
  if (include_pad) return end - at;
  return (end < size ? end : size) - (at > 0 ? at : 0);
}

#define T float
#define N(name) name##_f32
#define FROM(x) (x)
#define TO(x) (x)
#include "kernels/block_pool_loops.h"
#undef T
#undef N
#undef FROM
#undef TO

#define T uint16_t
#define N(name) name##_bf16
#define FROM rsi_from_bf16
#define TO rsi_to_bf16
#include "kernels/block_pool_loops.h"

extern const rsi_k_block_pool RSI_ISA(rsi_k_block_pool);
const rsi_k_block_pool RSI_ISA(rsi_k_block_pool) = {
  .f32 = {max_row_f32, max_back_row_f32, avg_row_f32, avg_back_row_f32},
  .bf16 = {max_row_bf16, max_back_row_bf16, avg_row_bf16, avg_back_row_bf16},
};
