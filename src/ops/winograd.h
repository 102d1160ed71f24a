/* Convolutions of block images by our own Winograd loops: one way to run a call of conv_block.c, beside oneDNN's. */
#ifndef RSI_WINOGRAD_H
#define RSI_WINOGRAD_H

#include "backend/backend.h"

/* Forward calls and data gradients (then data->y is read, data->x written, data->bias is [c]) where it is the fastest way. */
bool      rsi_winograd_accepts(const rsi_exec *x, const rsi_conv_call *k);
size_t    rsi_winograd_bytes(const rsi_exec *x, const rsi_conv_call *k);       /* scratch */
void      rsi_winograd_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch);

/* Transformed weights for a call with packed set, and a mark of their layout. */
size_t    rsi_winograd_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout);
void      rsi_winograd_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch);

#endif
