/*
** Row functions of the activations: forward(x) and backward(g, x) = g times the derivative at x, by dtype. `arg` points at the
** numbers of the activation, doubles in the order given here.
*/
#ifndef RSI_K_ACTIVATION_H
#define RSI_K_ACTIVATION_H

#include "tensor/tensor.h"

typedef enum rsi_activation {
  RSI_A_SILU,
  RSI_A_ELU,           /* alpha, scale, input_scale */
  RSI_A_LEAKY_RELU,    /* slope */
  RSI_A_HARDTANH,      /* lowest, highest */
  RSI_A_SOFTPLUS,      /* beta, threshold */
  RSI_A_HARDSIGMOID,
  RSI_A_HARDSWISH,
  RSI_A_MISH,
  RSI_ACTIVATIONS
} rsi_activation;

typedef struct rsi_k_activation {
  rsi_row_fn forward[RSI_ACTIVATIONS][2], backward[RSI_ACTIVATIONS][2];   /* [RS_F32], [RS_F64] */
} rsi_k_activation;

#endif
