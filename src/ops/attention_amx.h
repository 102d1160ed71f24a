/*
** Attention whose operands are bf16, by AMX (attention_amx.c): further kernels of the two ops of attention.c. They take calls without
** mask and dropout that are large enough; others find no kernel for bf16 and are made in f32.
*/
#ifndef RSI_ATTENTION_AMX_H
#define RSI_ATTENTION_AMX_H

#include "ops/op.h"

/* What the ops' inputs are, in their order. */
enum { RSI_ATTENTION_Q, RSI_ATTENTION_K, RSI_ATTENTION_V, RSI_ATTENTION_MASK };
enum {
  RSI_ATTENTION_BACK_G, RSI_ATTENTION_BACK_Q, RSI_ATTENTION_BACK_K, RSI_ATTENTION_BACK_V, RSI_ATTENTION_BACK_O, RSI_ATTENTION_BACK_LSE,
  RSI_ATTENTION_BACK_STATE, RSI_ATTENTION_BACK_MASK
};

#define RSI_ATTENTION_ATTRS(F, T)                                                                                           \
  F(T, FLOAT, dropout_p, 0, 0, 1, NULL, "probability that a weight becomes zero")                                           \
  F(T, BOOL, is_causal, 0, 0, 1, NULL, "row i takes columns up to i only")                                                  \
  F(T, FLOAT, scale, 0, -RSI_BIG, RSI_BIG, NULL, "factor of the products; 0: 1 / sqrt(size of the last dimension)")

bool      rsi_attention_amx_accepts(const rsi_call *c);
size_t    rsi_attention_amx_scratch(const rsi_call *c);
rs_status rsi_attention_amx_run(const rsi_call *c);
bool      rsi_attention_amx_back_accepts(const rsi_call *c);
size_t    rsi_attention_amx_back_scratch(const rsi_call *c);
rs_status rsi_attention_amx_back_run(const rsi_call *c);

#endif
