/*
** The gradient of filters in bf16 as a product over unfolded rows, for small images: oneDNN's own primitive is slow there (its sums
** over pixels are short), its product is not. NHWC images are matrices, g: [pixels, o] and x unfolded: [pixels, taps * c], and
** the gradient is g transposed times unfolded x. A slice computes some channels: it unfolds their part of x for some images at a
** time, adds the products, and lays the sum out as filters at the end.
** Of an entry that is `unfolded`, piece[0] is for `images` images, piece[last] for the rest; op[Y] is g: [o, pixels], op[X] unfolded x,
** op[W] the sum, [o, taps, channels], and where it goes. size and slices count channels.
*/
#include "backend/onednn.h"

#ifdef RSI_WITH_ONEDNN

#include "base/lanes.h"
#include <string.h>

/* Columns of the product and pixels at a time that keep its operands in the second-level cache; outputs of a small image. */
enum { COLUMNS = 576, PIXELS = 1024, SMALL_IMAGE = 256, CHANNELS = 16, LEAST_COLUMNS = 64 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Channels of a slice; 0: this is not for unfolding. */
static int64_t slice_channels(const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const int64_t taps = s->kh * s->kw;
  if (k->kind != RSI_CONV_WEIGHT || k->x_dtype != RS_BF16 || k->y_dtype != RS_BF16 || s->groups != 1 || k->x_block != s->c ||
      k->y_block != s->o || s->oh * s->ow > SMALL_IMAGE || s->o < CHANNELS || s->n * s->oh * s->ow < LEAST_COLUMNS)
    return 0;
  int64_t size = least(COLUMNS / taps, s->c / 2) / CHANNELS * CHANNELS;
  while (size > 0 && s->c % size != 0) size -= CHANNELS;
  return size * taps >= LEAST_COLUMNS ? size : 0;
}

/* The product for `images` images. */
static dnnl_status_t make_product(rsi_onednn *t, const entry *e, dnnl_primitive_attr_t attr, int64_t images, piece *p) {
  const rsi_conv_shape *const s = &e->key.s;
  const int64_t taps = s->kh * s->kw, pixels = images * s->oh * s->ow, columns = taps * e->size;
  const dnnl_dims_t g = {s->o, pixels}, g_strides = {1, s->o}, x = {pixels, columns}, x_strides = {columns, 1};
  const dnnl_dims_t sum = {s->o, columns}, sum_strides = {columns, 1};
  const dnnl_dims_t w = {s->o, taps, e->size}, from = {columns, e->size, 1}, to = {s->c * taps, 1, taps};
  md dst;
  memset(&dst, 0, sizeof dst);
  dnnl_primitive_desc_t desc = NULL;
  p->s = *s, p->s.n = images;
  p->op[X].present = p->op[X].same = p->op[Y].present = p->op[Y].same = p->op[W].present = true;
  DNNL_TRY(md_strided(&p->op[Y].used, 2, g, dnnl_bf16, g_strides));
  DNNL_TRY(md_strided(&p->op[X].used, 2, x, dnnl_bf16, x_strides));
  DNNL_TRY(md_strided(&p->op[W].used, 3, w, dnnl_f32, from));
  DNNL_TRY(md_strided(&p->op[W].given, 3, w, dnnl_f32, to));
  DNNL_TRY(md_strided(&p->bias, 2, sum, dnnl_f32, sum_strides));        /* the sum as a matrix */
  p->with_bias = true;
  p->op[X].bytes = rsi_lane_round(dnnl_memory_desc_get_size(ref(&p->op[X].used)));
  p->op[W].bytes = rsi_lane_round(dnnl_memory_desc_get_size(ref(&p->op[W].used)));
#if DNNL_VERSION_MAJOR >= 3
  DNNL_TRY(dnnl_matmul_primitive_desc_create(&desc, t->engine, p->op[Y].used, p->op[X].used, NULL, p->bias, attr));
#else
  dnnl_matmul_desc_t d;
  DNNL_TRY(dnnl_matmul_desc_init(&d, &p->op[Y].used, &p->op[X].used, NULL, &p->bias));
  DNNL_TRY(dnnl_primitive_desc_create(&desc, &d, attr, t->engine, NULL));
#endif
  dnnl_status_t status = rsi_onednn_is_slow(desc) ? dnnl_unimplemented : rsi_onednn_primitive(desc, &p->conv, &p->pad, &p->pad_bytes);
  dnnl_primitive_desc_destroy(desc);
  return status == dnnl_success ? rsi_onednn_reorder(t, &p->op[W], true) : status;
}

static dnnl_status_t make_pieces(rsi_onednn *t, entry *e, int64_t size) {
  const rsi_conv_shape *const s = &e->key.s;
  dnnl_primitive_attr_t attr = NULL;
  dnnl_post_ops_t ops = NULL;
  e->size = size, e->slices = s->c / size, e->shared = -1, e->cut = BY_CHANNEL;
  e->images = least(s->n, PIXELS / (s->oh * s->ow));
  e->middle = e->last = 0;
  dnnl_status_t status = dnnl_post_ops_create(&ops);
#if DNNL_VERSION_MAJOR >= 3
  if (status == dnnl_success) status = dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
#else
  if (status == dnnl_success) status = dnnl_post_ops_append_sum(ops, 1.0f);
#endif
  if (status == dnnl_success) status = dnnl_primitive_attr_create(&attr);
  if (status == dnnl_success) status = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
  if (status == dnnl_success) status = dnnl_primitive_attr_set_post_ops(attr, ops);
  if (status == dnnl_success) status = make_product(t, e, attr, e->images, &e->piece[0]);
  if (status == dnnl_success && s->n % e->images != 0) {
    e->last = 1;
    status = make_product(t, e, attr, s->n % e->images, &e->piece[1]);
  }
  if (attr) dnnl_primitive_attr_destroy(attr);
  if (ops) dnnl_post_ops_destroy(ops);
  e->lane_bytes = 0;
  for (int i = 0; i <= e->last; i++) {
    const piece *const p = &e->piece[i];
    const size_t bytes = e->piece[0].op[X].bytes + p->op[W].bytes + rsi_lane_round(p->pad_bytes > p->op[W].reorder_pad ? p->pad_bytes : p->op[W].reorder_pad);
    if (bytes > e->lane_bytes) e->lane_bytes = bytes;
  }
  return status;
}

dnnl_status_t rsi_onednn_unfold_make(rsi_onednn *t, entry *e) {
  const int64_t size = slice_channels(&e->key);
  if (size == 0) return dnnl_unimplemented;
  const dnnl_status_t status = make_pieces(t, e, size);
  e->unfolded = status == dnnl_success;
  return status;
}

/* to: [images * oh * ow, taps, size] = channels c0.. of the pixels that each tap reads. x: [images, h, w, c] */
static void unfold(const rsi_conv_shape *s, int64_t images, int64_t c0, int64_t size, const uint16_t *x, uint16_t *to) {
  const size_t bytes = (size_t)size * sizeof *to;
  for (int64_t n = 0; n < images; n++, x += s->h * s->w * s->c)
    for (int64_t i = 0; i < s->oh; i++)
      for (int64_t j = 0; j < s->ow; j++)
        for (int64_t a = 0; a < s->kh; a++)
          for (int64_t b = 0; b < s->kw; b++, to += size) {
            const int64_t row = i * s->sh - s->ph + a * s->dh, column = j * s->sw - s->pw + b * s->dw;
            if (row < 0 || row >= s->h || column < 0 || column >= s->w) memset(to, 0, bytes);
            else memcpy(to, x + (row * s->w + column) * s->c + c0, bytes);
          }
}

/* Adds the product of some images to the sum. */
static dnnl_status_t add_product(const rsi_onednn *t, const piece *p, arguments *a, char *g, char *x, char *sum, char *pad) {
  dnnl_exec_arg_t args[4] = {{DNNL_ARG_SRC, a->used[Y]}, {DNNL_ARG_WEIGHTS, a->used[X]}, {DNNL_ARG_DST, a->bias}};
  int n = 3;
  DNNL_TRY(dnnl_memory_set_data_handle(a->used[Y], g));
  DNNL_TRY(dnnl_memory_set_data_handle(a->used[X], x));
  DNNL_TRY(dnnl_memory_set_data_handle(a->bias, sum));
  if (p->pad_bytes > 0) {
    DNNL_TRY(dnnl_memory_set_data_handle(a->pad, pad));
    args[n++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, a->pad};
  }
  return dnnl_primitive_execute(p->conv, t->stream, n, args);
}

static dnnl_status_t lay_out(const rsi_onednn *t, const piece *p, arguments *a, char *sum, char *weight, char *pad) {
  dnnl_exec_arg_t args[3] = {{DNNL_ARG_FROM, a->used[W]}, {DNNL_ARG_TO, a->given[W]}};
  int n = 2;
  DNNL_TRY(dnnl_memory_set_data_handle(a->used[W], sum));
  DNNL_TRY(dnnl_memory_set_data_handle(a->given[W], weight));
  if (p->op[W].reorder_pad > 0) {
    DNNL_TRY(dnnl_memory_set_data_handle(a->reorder_pad[W], pad));
    args[n++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, a->reorder_pad[W]};
  }
  return dnnl_primitive_execute(p->op[W].reorder, t->stream, n, args);
}

dnnl_status_t rsi_onednn_unfold_slice(rsi_onednn *t, entry *e, int64_t task, const char *x, char *w, const char *g, char *scratch) {
  const rsi_conv_shape *const s = &e->key.s;
  char *const rows = scratch, *const sum = rows + e->piece[0].op[X].bytes, *const pad = sum + e->piece[0].op[W].bytes;
  dnnl_status_t status = dnnl_success;
  memset(sum, 0, e->piece[0].op[W].bytes);
  for (int64_t n = 0; n < s->n && status == dnnl_success; n += e->images) {
    const int64_t images = least(e->images, s->n - n);
    piece *const p = &e->piece[images == e->images ? 0 : e->last];
    arguments *a;
    unfold(s, images, task * e->size, e->size, (const uint16_t *)(const void *)x + n * s->h * s->w * s->c, (uint16_t *)(void *)rows);
    DNNL_TRY(rsi_onednn_arguments(t, p, &a));
    status = add_product(t, p, a, (char *)(uintptr_t)g + (size_t)(n * s->oh * s->ow * s->o) * sizeof(uint16_t), rows, sum, pad);
    if (status == dnnl_success && n + images == s->n)
      status = lay_out(t, p, a, sum, w + (size_t)(task * e->size * s->kh * s->kw) * sizeof(float), pad);
    rsi_onednn_arguments_back(t, p, a);
  }
  return status;
}

#endif
