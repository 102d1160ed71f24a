/* Convolutions of a plain image of few channels to a block image, by our own loops: one way to run a call of conv_block.c. */
#ifndef RSI_CONV_FIRST_H
#define RSI_CONV_FIRST_H

#include "backend/backend.h"

/* Forward calls. */
bool      rsi_conv_first_accepts(const rsi_exec *x, const rsi_conv_call *k);
size_t    rsi_conv_first_bytes(const rsi_exec *x, const rsi_conv_call *k);      /* scratch */
void      rsi_conv_first_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch);

/* Weights for a call with packed set, and a mark of their layout. */
size_t    rsi_conv_first_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout);
void      rsi_conv_first_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch);

#endif
