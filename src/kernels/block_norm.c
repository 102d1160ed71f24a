/* Sums by channel, batch norm and its gradient on block images: block_norm_loops.h for f32 and for bf16. */
#include "kernels/block_norm.h"
#include "kernels/bf16.h"
#include "kernels/isa.h"
#include "kernels/row.h"

#define REAL float
#define BITS int32_t
#define N(name) name##_lanes
#include "kernels/vector.h"
#undef N
#undef REAL
#undef BITS

enum { L = RSI_LANES, STRIP = 64, WIDE = 4 };   /* WIDE: vectors of columns summed together, even */
typedef vec_lanes vec;
typedef mask_lanes mask;
typedef uint32_t words __attribute__((vector_size(4 * RSI_LANES)));
typedef uint32_t words_u __attribute__((vector_size(4 * RSI_LANES), aligned(2), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * RSI_LANES)));
typedef uint16_t halves_u __attribute__((vector_size(2 * RSI_LANES), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))

/*
** Two vectors at a time, in the order that costs least. f32: one after the other. bf16: the elements with even and with odd numbers,
** which are the lower and upper halves of words; what belongs to columns is brought into that order before, sums are brought back.
*/
INLINE vec load_f32(const float *p) { return *(const uvec_lanes *)p; }
INLINE void store_f32(float *p, vec v) { *(uvec_lanes *)p = v; }
INLINE void load_pair_f32(const float *p, vec pair[2]) { pair[0] = load_f32(p), pair[1] = load_f32(p + L); }
INLINE void store_pair_f32(float *p, const vec pair[2]) { store_f32(p, pair[0]), store_f32(p + L, pair[1]); }
INLINE vec rounded_f32(vec v) { return v; }
#define table_pair_f32 load_pair_f32
#define untable_pair_f32 store_pair_f32

INLINE vec load_bf16(const uint16_t *p) { return (vec)(__builtin_convertvector(*(const halves_u *)p, words) << 16); }
INLINE void store_bf16(uint16_t *p, vec v) { *(halves_u *)p = __builtin_convertvector((words)v >> 16, halves); }   /* exact ones */
INLINE vec rounded_bf16(vec v) {
  const words u = (words)v;
  return (vec)((u + 0x7FFFu + ((u >> 16) & 1u)) & 0xFFFF0000u);
}
INLINE void load_pair_bf16(const uint16_t *p, vec pair[2]) {
  const words w = *(const words_u *)p;
  pair[0] = (vec)(w << 16), pair[1] = (vec)(w & 0xFFFF0000u);
}
INLINE void store_pair_bf16(uint16_t *p, const vec pair[2]) { *(words_u *)p = ((words)pair[0] >> 16) | (words)pair[1]; }
#if RSI_LANES == 16
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif RSI_LANES == 8
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#else
#define EVENS 0, 2, 4, 6
#define ODDS 1, 3, 5, 7
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#endif
INLINE void table_pair_bf16(const float *p, vec pair[2]) {
  const vec a = load_f32(p), b = load_f32(p + L);
  pair[0] = __builtin_shufflevector(a, b, EVENS), pair[1] = __builtin_shufflevector(a, b, ODDS);
}
INLINE void untable_pair_bf16(float *p, const vec pair[2]) {
  store_f32(p, __builtin_shufflevector(pair[0], pair[1], LOWER));
  store_f32(p + L, __builtin_shufflevector(pair[0], pair[1], UPPER));
}

#define T float
#define N(name) name##_f32
#define FROM(x) (x)
#define TO(x) (x)
#include "kernels/block_norm_loops.h"
#undef T
#undef N
#undef FROM
#undef TO

#define T uint16_t
#define N(name) name##_bf16
#define FROM rsi_from_bf16
#define TO rsi_to_bf16
#include "kernels/block_norm_loops.h"

extern const rsi_k_block_norm RSI_ISA(rsi_k_block_norm);
const rsi_k_block_norm RSI_ISA(rsi_k_block_norm) = {
  .f32 = {sums_f32, moments_f32, grad_sums_f32, apply_f32, grad_f32},
  .bf16 = {sums_bf16, moments_bf16, grad_sums_bf16, apply_bf16, grad_bf16},
};
