/* Convolutions of block images by split products on the tiles of AMX (kernels/split_conv.h): one way to run a call of conv_block.c. */
#ifndef RSI_SPLIT_CONV_H
#define RSI_SPLIT_CONV_H

#include "backend/backend.h"

/* Forward calls and data gradients (then data->y is read, data->x written, data->bias is [c]) where it is the fastest way. */
bool      rsi_split_conv_accepts(const rsi_exec *x, const rsi_conv_call *k);
size_t    rsi_split_conv_bytes(const rsi_exec *x, const rsi_conv_call *k);     /* scratch */
void      rsi_split_conv_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch);

/* Split weights for a call with packed set, followed by the weights themselves, and a mark of their layout. */
size_t    rsi_split_conv_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout);
size_t    rsi_split_conv_pack_scratch(const rsi_exec *x, const rsi_conv_call *k);
void      rsi_split_conv_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch);

#endif
