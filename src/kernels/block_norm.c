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

enum { L = 4 * RSI_LANES / 4, STRIP = 64, WIDE = 4 };
typedef vec_lanes vec;
typedef mask_lanes mask;
typedef uint32_t words __attribute__((vector_size(4 * RSI_LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * RSI_LANES)));
typedef uint16_t halves_u __attribute__((vector_size(2 * RSI_LANES), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* Exact for values that came from bf16. */
INLINE vec widen(const uint16_t *p) {
  const halves h = *(const halves_u *)p;
  return (vec)(__builtin_convertvector(h, words) << 16);
}
INLINE void narrow_exact(uint16_t *p, vec v) { *(halves_u *)p = __builtin_convertvector((words)v >> 16, halves); }
INLINE vec same(const float *p) { return *(const uvec_lanes *)p; }
INLINE void store_same(float *p, vec v) { *(uvec_lanes *)p = v; }

#define T float
#define N(name) name##_f32
#define LOAD same
#define STORE_EXACT store_same
#define FROM(x) (x)
#define TO(x) (x)
#include "kernels/block_norm_loops.h"
#undef T
#undef N
#undef LOAD
#undef STORE_EXACT
#undef FROM
#undef TO

#define T uint16_t
#define N(name) name##_bf16
#define LOAD widen
#define STORE_EXACT narrow_exact
#define FROM rsi_from_bf16
#define TO rsi_to_bf16
#include "kernels/block_norm_loops.h"

extern const rsi_k_block_norm RSI_ISA(rsi_k_block_norm);
const rsi_k_block_norm RSI_ISA(rsi_k_block_norm) = {
  .f32 = {sums_f32, moments_f32, grad_sums_f32, apply_f32, grad_f32},
  .bf16 = {sums_bf16, moments_bf16, grad_sums_bf16, apply_bf16, grad_bf16},
};
