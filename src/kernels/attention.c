/* Loops of attention: attention_loops.h for f32 and for f64. */
#include "kernels/attention.h"
#include "kernels/isa.h"
#include "kernels/attention_amx.h"
#include "kernels/row.h"
#include "kernels/vmath.h"

#define REAL float
#define BITS int32_t
#define N(name) name##_f32
#define EXP rsi_exp_down_f32   /* scores less the largest one, or less their logarithm of the sum */
#define LOG rsi_log_f32
#include "kernels/attention_loops.h"
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
#include "kernels/attention_loops.h"

extern const rsi_k_attention RSI_ISA(rsi_k_attention);
const rsi_k_attention RSI_ISA(rsi_k_attention) = {.of = {&attention_loops_f32, &attention_loops_f64}, .tiles = &RSI_ISA(rsi_attention_tiles)};
