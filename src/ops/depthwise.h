/* Convolutions of block images with one filter for each channel, by our own loops: one way to run a call of conv_block.c. */
#ifndef RSI_DEPTHWISE_H
#define RSI_DEPTHWISE_H

#include "backend/backend.h"

/* Forward calls, and data gradients of stride 1 (then data->y is read, data->x written, data->bias is [c]). */
bool      rsi_depthwise_accepts(const rsi_exec *x, const rsi_conv_call *k);
size_t    rsi_depthwise_bytes(const rsi_exec *x, const rsi_conv_call *k);       /* scratch */
void      rsi_depthwise_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch);

/* Filters for a call with packed set, and a mark of their layout. */
size_t    rsi_depthwise_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout);
void      rsi_depthwise_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch);

#endif
