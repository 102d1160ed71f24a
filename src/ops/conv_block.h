/* What the ops of conv_block.c share with the passes that make them. */
#ifndef RSI_CONV_BLOCK_H
#define RSI_CONV_BLOCK_H

#include "ops/op.h"

/*
** The block in which this machine convolves images of so many channels fastest in f32 or bf16: 16 or 8, `channels` (NHWC), or 0
** where the plain layout is as good or the dtype is not computed fast. An image of at most 4 channels that is only read by a
** first convolution is best left plain in f32.
*/
int64_t rsi_conv_block_size(const rsi_exec *x, int dtype, int64_t channels);

/* The first bytes of a packed weight. */
typedef struct rsi_conv_pack_head {
  uint64_t magic, layout;        /* layout: a mark of the one that its maker chose */
  uint64_t unused[6];
} rsi_conv_pack_head;

#define RSI_CONV_PACK_PLAIN    0x6e69616c706b6370u
#define RSI_CONV_PACK_ONEDNN   0x6e6e642e706b6370u
#define RSI_CONV_PACK_WINOGRAD 0x6f6e69772e6b6370u
#define RSI_CONV_PACK_EACH     0x686361652e6b6370u   /* one filter for each channel */
#define RSI_CONV_PACK_SPLIT    0x746c70732e6b6370u

#endif
