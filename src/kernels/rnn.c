/* Loops of recurrent layers: rnn_loops.h for f32 and for f64. */
#include "kernels/rnn.h"
#include "kernels/isa.h"
#include "kernels/row.h"
#include "kernels/vmath.h"

#define REAL float
#define N(name) name##_f32
#define TANH rsi_tanh_f32
#define SIGMOID rsi_sigmoid_f32
#include "kernels/rnn_loops.h"
#undef REAL
#undef N
#undef TANH
#undef SIGMOID
#define REAL double
#define N(name) name##_f64
#define TANH rsi_tanh_f64
#define SIGMOID rsi_sigmoid_f64
#include "kernels/rnn_loops.h"

extern const rsi_k_rnn RSI_ISA(rsi_k_rnn);
const rsi_k_rnn RSI_ISA(rsi_k_rnn) = {.of = {&rnn_loops_f32, &rnn_loops_f64}};
