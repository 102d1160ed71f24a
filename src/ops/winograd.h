/* Convolutions of block images by our own Winograd loops: one way to run a call of conv_block.c, beside oneDNN's. */
#ifndef RSI_WINOGRAD_H
#define RSI_WINOGRAD_H

#include "backend/backend.h"
#include "kernels/winograd.h"

/* Forward calls and data gradients (then data->y is read, data->x written, data->bias is [c]) where it is the fastest way. */
bool      rsi_winograd_accepts(const rsi_exec *x, const rsi_conv_call *k);
size_t    rsi_winograd_bytes(const rsi_exec *x, const rsi_conv_call *k);       /* scratch */
void      rsi_winograd_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch);

/* Transformed weights for a call with packed set, and a mark of their layout. */
size_t    rsi_winograd_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout);
void      rsi_winograd_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch);

/* The same by split products on the tiles of AMX (kernels/winograd_split.h): then the pack ends with the plain weights. */
bool      rsi_winograd_split_accepts(const rsi_exec *x, const rsi_conv_call *k);
size_t    rsi_winograd_split_bytes(const rsi_exec *x, const rsi_conv_call *k);
void      rsi_winograd_split_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch);
size_t    rsi_winograd_split_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout);
void      rsi_winograd_split_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch);

/* For both: whether a call may be computed so at all; its sizes; its weights; x and y and what is done at the end, whose bias is
   copied to `room`, RSI_WINOGRAD_BIAS bytes for each block of filters. */
bool      rsi_winograd_fits(const rsi_exec *x, const rsi_conv_call *k);
void      rsi_winograd_sizes(const rsi_conv_call *k, int64_t lanes, rsi_winograd *s);
rsi_winograd_filters rsi_winograd_weights(const rsi_conv_call *k, const float *w);
void      rsi_winograd_ends(const rsi_conv_call *k, const rsi_conv_data *data, rsi_winograd *s, void *room);
enum { RSI_WINOGRAD_BIAS = 64 };

#endif
