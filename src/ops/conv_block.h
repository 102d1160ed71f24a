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

/* image_block.c: a block image's form; t must be one of `channels` channels (a plain one may have four dimensions); f32, bf16 or f16. */
rsi_desc  rsi_image_desc(int dtype, int64_t n, int64_t channels, int64_t h, int64_t w, int64_t block);
rs_status rsi_check_image(const rs_tensor *t, const char *name, int64_t channels, int64_t block);
rs_status rsi_check_float(int dtype, const char *name);
/* Between a block image and plain f32, [N, C, H, W]. */
void      rsi_image_to_plain(const rsi_exec *x, const rs_tensor *t, int64_t channels, int64_t block, float *to);
void      rsi_plain_to_image(const rsi_exec *x, const float *from, int64_t channels, int64_t block, rs_tensor *t);

/* The first bytes of a packed weight. */
typedef struct rsi_conv_pack_head {
  uint64_t magic, layout;        /* layout: a mark of the one that its maker chose */
  uint64_t unused[6];
} rsi_conv_pack_head;

#define RSI_CONV_PACK_PLAIN    0x6e69616c706b6370u
#define RSI_CONV_PACK_ONEDNN   0x6e6e642e706b6370u
#define RSI_CONV_PACK_WINOGRAD 0x6f6e69772e6b6370u
#define RSI_CONV_PACK_WINOGRAD_SPLIT 0x70736e69772e6370u
#define RSI_CONV_PACK_EACH     0x686361652e6b6370u   /* one filter for each channel */
#define RSI_CONV_PACK_POINT    0x746e6f702e6b6370u   /* 1x1, by FMA */
#define RSI_CONV_PACK_FIRST    0x747372662e6b6370u   /* of a plain image, by FMA */
#define RSI_CONV_PACK_SPLIT    0x746c70732e6b6370u

#endif
