/* Loops of softmax, layer norm, batch norm and dropout: norm_loops.h for f32 and for f64. */
#include "kernels/norm.h"
#include "kernels/isa.h"
#include "kernels/vmath.h"
#include <math.h>

enum {
  BLOCK   = 4096,   /* elements that are summed in the element type */
  ROWS    = 64,     /* the same for the rows of a column */
  STRETCH = 512     /* elements of a row whose exponentials are kept for a moment */
};

#define REAL float
#define BITS int32_t
#define N(name) name##_f32
#define EXP rsi_exp_f32
#define LOG rsi_log_f32
#include "kernels/norm_loops.h"
#undef REAL
#undef BITS
#undef N
#undef EXP
#undef LOG
#define REAL double
#define BITS int64_t
#define N(name) name##_f64
#define EXP rsi_exp_f64
#define LOG rsi_log_f64
#include "kernels/norm_loops.h"
#undef REAL
#undef BITS
#undef N
#undef EXP
#undef LOG

extern const rsi_k_norm RSI_ISA(rsi_k_norm);
const rsi_k_norm RSI_ISA(rsi_k_norm) = {.of = {&loops_f32, &loops_f64}};
