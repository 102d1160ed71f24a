/*
** Convolution and pooling loops: conv_loops.h once for f32 and once for f64.
** The loops go over the taps of the window outside and over the outputs of a plane or a row inside, so that the inner loop has
** no condition: `span` gives the outputs for which a tap lies inside the image.
*/
#include "kernels/conv.h"
#include "kernels/isa.h"
#include <string.h>

/* Outputs first..last-1 of `count` are those for which the input position j * stride + at lies in 0..size-1. */
static inline void span(int64_t at, int64_t stride, int64_t size, int64_t count, int64_t *first, int64_t *last) {
  int64_t a = at >= 0 ? 0 : (-at + stride - 1) / stride;
  int64_t b = at >= size ? 0 : (size - 1 - at) / stride + 1;
  if (b > count) b = count;
  if (a > b) a = b;
  *first = a, *last = b;
}

static inline int64_t bin_start(int64_t i, int64_t in, int64_t out) { return i * in / out; }
static inline int64_t bin_end(int64_t i, int64_t in, int64_t out) { return ((i + 1) * in + out - 1) / out; }

typedef int32_t ints __attribute__((vector_size(8 * sizeof(int32_t))));
typedef int32_t ints_u __attribute__((vector_size(8 * sizeof(int32_t)), aligned(sizeof(int32_t)), may_alias));

#define REAL float
#define F(name) name##_f32
#include "kernels/conv_loops.h"
#undef REAL
#undef F

#define REAL double
#define F(name) name##_f64
#include "kernels/conv_loops.h"
#undef REAL
#undef F

#define TABLE(F)                                                                                                            \
  {.im2col = F(im2col), .col2im = F(col2im), .fill_rows = F(fill_rows), .add_rows = F(add_rows),                            \
   .depthwise = F(depthwise), .depthwise_data = F(depthwise_data), .depthwise_weight = F(depthwise_weight),                 \
   .max_pool = F(max_pool), .max_scatter = F(max_scatter), .max_gather = F(max_gather), .avg_pool = F(avg_pool),            \
   .avg_pool_back = F(avg_pool_back), .adaptive = F(adaptive), .adaptive_back = F(adaptive_back)}
#define F32(name) name##_f32
#define F64(name) name##_f64

extern const rsi_k_conv RSI_ISA(rsi_k_conv);
const rsi_k_conv RSI_ISA(rsi_k_conv) = {.f32 = TABLE(F32), .f64 = TABLE(F64)};
