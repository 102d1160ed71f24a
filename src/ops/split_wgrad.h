/* The gradient of a convolution's weight from block images as split products: one way to run a call of conv_block.c, beside oneDNN's. */
#ifndef RSI_SPLIT_WGRAD_H
#define RSI_SPLIT_WGRAD_H

#include "backend/backend.h"

/* Calls of kind RSI_CONV_WEIGHT where it is the fastest way. */
bool   rsi_split_wgrad_accepts(const rsi_exec *x, const rsi_conv_call *k);
size_t rsi_split_wgrad_bytes(const rsi_exec *x, const rsi_conv_call *k);       /* scratch */
/* False: a number was out of the range of split products, and data->w must be computed in another way. */
bool   rsi_split_wgrad_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch);

#endif
