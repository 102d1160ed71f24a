/* 1x1 convolutions of block images by FMA, by our own loops: one way to run a call of conv_block.c. */
#ifndef RSI_CONV_POINT_H
#define RSI_CONV_POINT_H

#include "backend/backend.h"

/* Forward calls. */
bool      rsi_conv_point_accepts(const rsi_exec *x, const rsi_conv_call *k);
size_t    rsi_conv_point_bytes(const rsi_exec *x, const rsi_conv_call *k);      /* scratch */
void      rsi_conv_point_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch);

/* Weights for a call with packed set, and a mark of their layout. */
size_t    rsi_conv_point_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout);
void      rsi_conv_point_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch);

#endif
