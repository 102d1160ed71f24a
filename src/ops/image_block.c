/*
** image_block: a block image (ops/conv_block.h) in another block form or dtype; and what the ops on block images share of it.
*/
#include "backend/backend.h"
#include "ops/conv_block.h"
#include <string.h>

#define IMAGE_ATTRS(F, T)                                                                                                   \
  F(T, INT, channels, 1, 1, INT32_MAX, NULL, "channels of the image")                                                       \
  F(T, INT, from, 1, 1, INT32_MAX, NULL, "block of x")                                                                      \
  F(T, INT, block, 1, 1, INT32_MAX, NULL, "block of the result")                                                            \
  F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "dtype of the result")
RSI_ATTRS(image_block, IMAGE_ATTRS)

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

rsi_desc rsi_image_desc(int dtype, int64_t n, int64_t channels, int64_t h, int64_t w, int64_t block) {
  return (rsi_desc){.dtype = dtype, .ndim = 5, .shape = {n, divide_up(channels, block), h, w, block}};
}

/* t must be a block image of `channels` channels; a plain one may have four dimensions. */
rs_status rsi_check_image(const rs_tensor *t, const char *name, int64_t channels, int64_t block) {
  const int64_t blocks = divide_up(channels, block);
  const bool fits = t->ndim == 5 ? t->shape[4] == block && t->shape[1] == blocks : t->ndim == 4 && block == 1 && t->shape[1] == channels;
  RSI_CHECK(fits, RS_ERR_SHAPE, "%s must be a block image [N, %lld, H, W, %lld] (%lld channels), got %s", name, (long long)blocks,
            (long long)block, (long long)channels, rsi_text(t));
  return RS_OK;
}

rs_status rsi_check_float(int dtype, const char *name) {
  RSI_CHECK(dtype == RS_F32 || rsi_is_half(dtype), RS_ERR_DTYPE, "%s is %s, but must be f32, bf16 or f16", name, rs_dtype_name(dtype));
  return RS_OK;
}

typedef struct move {
  rsi_row_fn cast;
  const char *from;
  char       *to;
  size_t      from_item, to_item;
  int64_t     n, channels, pixels, from_block, to_block;
} move;

/* Blocks [n, G of the result] of a change of form. */
static void move_blocks(void *arg, int64_t first, int64_t last) {
  const move *const m = arg;
  const int64_t from_blocks = divide_up(m->channels, m->from_block), to_blocks = divide_up(m->channels, m->to_block);
  const int64_t strides[2] = {m->to_block * (int64_t)m->to_item, m->from_block * (int64_t)m->from_item};
  for (int64_t i = first; i < last; i++) {
    char *const to = m->to + (size_t)(i * m->pixels * m->to_block) * m->to_item;
    const int64_t n = i / to_blocks, c0 = i % to_blocks * m->to_block;
    if (c0 + m->to_block > m->channels) memset(to, 0, (size_t)(m->pixels * m->to_block) * m->to_item);
    for (int64_t j = 0; j < m->to_block && c0 + j < m->channels; j++) {
      const int64_t c = c0 + j, at = (n * from_blocks + c / m->from_block) * m->pixels * m->from_block + c % m->from_block;
      char *const data[2] = {to + (size_t)j * m->to_item, (char *)(uintptr_t)m->from + (size_t)at * m->from_item};
      m->cast(m->pixels, data, strides, NULL);
    }
  }
}

static void change_form(const rsi_exec *x, move m, int from_dtype, int to_dtype) {
  m.cast = x->k->elementwise->cast->cast[from_dtype][to_dtype];
  m.from_item = rsi_dtype_size[from_dtype], m.to_item = rsi_dtype_size[to_dtype];
  const int64_t items = m.n * divide_up(m.channels, m.to_block);
  if (items > 0) rsi_parallel(x, items, (double)(m.pixels * m.to_block), move_blocks, &m);
}

void rsi_image_to_plain(const rsi_exec *x, const rs_tensor *t, int64_t channels, int64_t block, float *to) {
  change_form(x, (move){.from = t->data, .to = (char *)to, .n = t->shape[0], .channels = channels,
                        .pixels = t->shape[2] * t->shape[3], .from_block = block, .to_block = 1}, t->dtype, RS_F32);
}

void rsi_plain_to_image(const rsi_exec *x, const float *from, int64_t channels, int64_t block, rs_tensor *t) {
  change_form(x, (move){.from = (const char *)from, .to = t->data, .n = t->shape[0], .channels = channels,
                        .pixels = t->shape[2] * t->shape[3], .from_block = 1, .to_block = block}, RS_F32, t->dtype);
}

/* ---- the op -------------------------------------------------------------------------------------------------------------- */

static rs_status image_block_infer(rsi_call *c) {
  const image_block_attrs *const a = RSI_ATTR(c, image_block);
  const rs_tensor *const x = c->in[0];
  RSI_TRY(rsi_check_image(x, "input", a->channels, a->from));
  RSI_TRY(rsi_check_float((int)a->dtype, "dtype"));
  c->desc[0] = rsi_image_desc((int)a->dtype, x->shape[0], a->channels, x->shape[2], x->shape[3], a->block);
  return RS_OK;
}

static rs_status image_block_run(const rsi_call *c) {
  const image_block_attrs *const a = RSI_ATTR(c, image_block);
  const rs_tensor *const x = c->in[0];
  change_form(c->x, (move){.from = x->data, .to = c->out[0]->data, .n = x->shape[0], .channels = a->channels,
                           .pixels = x->shape[2] * x->shape[3], .from_block = a->from, .to_block = a->block},
              x->dtype, c->out[0]->dtype);
  return RS_OK;
}

static rsi_conv_call image_call(const rsi_call *c) {
  const image_block_attrs *const a = RSI_ATTR(c, image_block);
  const int64_t *const x = c->in[0]->shape;
  return (rsi_conv_call){.kind = RSI_CONV_IMAGE, .s = {.n = 1, .c = a->channels, .h = x[2], .w = x[3], .o = a->channels},
                         .x_block = a->from, .x_dtype = c->in[0]->dtype, .y_block = a->block, .y_dtype = a->dtype};
}

static bool image_block_fast(const rsi_call *c) {
  if (c->x->onednn == NULL || c->in[0]->numel == 0) return false;
  const rsi_conv_call k = image_call(c);
  return rsi_onednn_conv_accepts(c->x->onednn, &k);
}

static rs_status image_block_fast_run(const rsi_call *c) {
  const rsi_conv_call k = image_call(c);
  return rsi_onednn_image_run(c->x, &k, c->in[0]->shape[0], c->in[0]->data, c->out[0]->data);
}

static const image_block_attrs to16 = {20, 1, 16, RS_F32}, to1 = {20, 16, 1, RS_F32}, to_last = {20, 16, 20, RS_F32},
                               to8 = {20, 20, 8, RS_F32}, to_bf16 = {5, 1, 5, RS_BF16};
static const rsi_sample image_block_samples[] = {
  {"f2x20x5x6x1", &to16, 0, 1}, {"f2x2x5x6x16", &to1, 0, 1}, {"f2x2x5x6x16", &to_last, 0, 1}, {"f1x1x3x3x20", &to8, 0, 1},
  {"f2x5x4x4", &to_bf16, 0, 1}, {"f0x20x5x6x1", &to16, 0, 1}, {NULL, NULL, 0, 0}};

#define ITEMS (RSI_F32 | RSI_HALF)
static const rsi_kernel image_block_kernels[] = {
  {"onednn", RSI_ONEDNN, ITEMS, image_block_fast, NULL, image_block_fast_run}, {"rows", RSI_PORTABLE, ITEMS, NULL, NULL, image_block_run}, {NULL, 0, 0, NULL, NULL, NULL}};

const rs_op rsi_op_image_block = {
  .name = "image_block", .doc = "A block image in another block form or dtype.", .inputs = "x",
  .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_HALF, .dtypes = ITEMS,
  RSI_USES_ATTRS(image_block), .infer = image_block_infer, .kernels = image_block_kernels, .samples = image_block_samples,
};
