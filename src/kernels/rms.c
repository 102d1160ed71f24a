/* Loops of rms_norm: rms_loops.h for f32 and for f64. */
#include "kernels/rms.h"
#include "kernels/isa.h"
#include <math.h>

enum { BLOCK = 4096 };   /* elements that are summed in the element type */

#define REAL float
#define BITS int32_t
#define N(name) name##_f32
#include "kernels/rms_loops.h"
#undef REAL
#undef BITS
#undef N
#define REAL double
#define BITS int64_t
#define N(name) name##_f64
#include "kernels/rms_loops.h"
#undef REAL
#undef BITS
#undef N

extern const rsi_k_rms RSI_ISA(rsi_k_rms);
const rsi_k_rms RSI_ISA(rsi_k_rms) = {.of = {&rms_loops_f32, &rms_loops_f64}};
