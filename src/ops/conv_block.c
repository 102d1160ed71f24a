/*
** Convolutions of block images, for programs: between convolutions an image stays in the layout that they want.
** Block form b of a logical image [N, C, H, W]: a contiguous tensor [N, G, H, W, b], G = ceil(C / b), channel c = g * b + j.
** b = 1 is the plain layout, b = C is NHWC, 16 or 8 is what vector registers want. Channels from C on hold zeros, and every op
** here keeps them so. Images are f32 or bf16; weights, biases and gradients of weights are plain f32.
**
** A portable kernel brings its operands to plain f32, calls the plain op and brings the result back; the shape rules, too, are
** those of the plain op. So each op here is described by a call of a plain one (`plain`), which lies on the stack.
**
** A packed weight (conv2d_pack) is a u8 row: a head that says who made it and for what, then the weight as its maker wants it.
*/
#include "backend/backend.h"
#include "base/lanes.h"
#include "ops/conv_block.h"
#include "ops/conv_first.h"
#include "ops/conv_point.h"
#include "ops/depthwise.h"
#include "ops/op.h"
#include "ops/split_conv.h"
#include "ops/split_wgrad.h"
#include "ops/winograd.h"
#include <string.h>

/* ---- attributes ------------------------------------------------------------------------------------------------------ */

#define FORM_ATTRS(F, T)                                                                                                    \
  F(T, INTS, stride, 1, 1, RSI_BIG, NULL, "as in conv2d")                                                                   \
  F(T, INTS, padding, 0, 0, RSI_BIG, NULL, "as in conv2d")                                                                  \
  F(T, INTS, dilation, 1, 1, RSI_BIG, NULL, "as in conv2d")                                                                 \
  F(T, INT, groups, 1, 1, INT32_MAX, NULL, "as in conv2d")                                                                  \
  F(T, INT, channels, 1, 1, INT32_MAX, NULL, "channels of x")                                                               \
  F(T, INT, block_in, 1, 1, INT32_MAX, NULL, "block of x or of its gradient")                                               \
  F(T, INT, block_out, 1, 1, INT32_MAX, NULL, "block of the result or of its gradient")                                     \
  F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "dtype of what is computed")
#define ACT_ATTR(F, T) F(T, ENUM, act, 0, 0, 2, "none,relu,relu6", "what is applied at the end")
#define SIZE_ATTR(F, T, name, what) F(T, SHAPE, name, 0, 0, RSI_BIG, NULL, what)
#define BLOCK_ATTRS(F, T) FORM_ATTRS(F, T) ACT_ATTR(F, T) SIZE_ATTR(F, T, weight_size, "shape of the weight; needed when it is packed")
#define PACK_ATTRS(F, T)                                                                                                    \
  FORM_ATTRS(F, T) ACT_ATTR(F, T) SIZE_ATTR(F, T, input_size, "[N, C, H, W]")                                               \
  F(T, DTYPE, input_dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "dtype of x")
#define DATA_ATTRS(F, T) FORM_ATTRS(F, T) SIZE_ATTR(F, T, input_size, "[N, C, H, W]")
#define WEIGHT_ATTRS(F, T) FORM_ATTRS(F, T) SIZE_ATTR(F, T, weight_size, "[O, C / groups, kh, kw]")
RSI_ATTRS(conv2d_block, BLOCK_ATTRS)
RSI_ATTRS(conv2d_pack, PACK_ATTRS)
RSI_ATTRS(conv2d_block_data, DATA_ATTRS)
RSI_ATTRS(conv2d_block_weight, WEIGHT_ATTRS)

typedef struct form_attrs { FORM_ATTRS(RSI_FIELD, ) } form_attrs;      /* what all of them begin with */

static const form_attrs *forms(const rsi_call *c) { return c->attrs; }

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- the plain call -------------------------------------------------------------------------------------------------- */

/* Of the plain ops: conv2d takes the first four, its gradients have a size. */
typedef struct plain_attrs { rs_list stride, padding, dilation; int64_t groups; rs_list size; } plain_attrs;

typedef struct plain {
  rsi_conv_kind kind;
  plain_attrs attrs;
  rs_tensor a, b, bias, y;       /* headers without storages; a and b as in rsi_onednn_conv_run */
  rs_tensor *in[3], *out[1];
  rsi_call  call;
  rsi_conv_shape s;              /* after describe() */
} plain;

static void set_header(rs_tensor *t, int ndim, const int64_t *shape) {
  memset(t, 0, sizeof *t);
  t->dtype = RS_F32, t->ndim = (uint8_t)ndim, t->flags = RSI_CONTIGUOUS, t->numel = 1;
  for (int i = 0; i < ndim; i++) t->shape[i] = shape[i], t->numel *= shape[i];
}

static void set_image(rs_tensor *t, const rs_tensor *image, int64_t channels) {
  set_header(t, 4, (const int64_t[]){image->shape[0], channels, image->shape[2], image->shape[3]});
}

/* Starts the plain call of the given kind; the caller sets a and b. */
static void plain_begin(const rsi_call *c, rsi_conv_kind kind, plain *p) {
  static const rs_op *const ops[] = {&rsi_op_conv2d, &rsi_op_conv2d_backward_data, &rsi_op_conv2d_backward_weight};
  const form_attrs *const f = forms(c);
  memset(p, 0, sizeof *p);
  p->kind = kind;
  p->attrs = (plain_attrs){f->stride, f->padding, f->dilation, f->groups, {0, {0}}};
  p->in[0] = &p->a, p->in[1] = &p->b, p->out[0] = &p->y;
  p->call = (rsi_call){.op = ops[kind], .x = c->x, .ctx = c->ctx, .nin = kind == RSI_CONV_FORWARD ? 3 : 2, .nout = 1, .in = p->in,
                       .out = p->out, .attrs = &p->attrs};
}

/* Checks the shapes by the plain op's rule and fills y and s. */
static rs_status plain_infer(plain *p) {
  RSI_TRY(p->call.op->infer(&p->call));
  set_header(&p->y, p->call.desc[0].ndim, p->call.desc[0].shape);
  const rs_tensor *const x = p->kind == RSI_CONV_DATA ? &p->y : &p->a, *const w = p->kind == RSI_CONV_WEIGHT ? &p->y : &p->b;
  const rs_tensor *const y = p->kind == RSI_CONV_FORWARD ? &p->y : p->kind == RSI_CONV_DATA ? &p->a : &p->b;
  const plain_attrs *const a = &p->attrs;
  p->s = (rsi_conv_shape){.n = x->shape[0], .c = x->shape[1], .h = x->shape[2], .w = x->shape[3], .o = w->shape[0], .kh = w->shape[2],
                          .kw = w->shape[3], .oh = y->shape[2], .ow = y->shape[3], .groups = a->groups,
                          .sh = rsi_at(&a->stride, 0, 1), .sw = rsi_at(&a->stride, 1, 1), .ph = rsi_at(&a->padding, 0, 0),
                          .pw = rsi_at(&a->padding, 1, 0), .dh = rsi_at(&a->dilation, 0, 1), .dw = rsi_at(&a->dilation, 1, 1)};
  return RS_OK;
}

static bool is_packed(const rs_tensor *w) { return w->dtype == RS_U8; }

static rs_status describe_forward(const rsi_call *c, plain *p) {
  const form_attrs *const f = forms(c);
  const rs_tensor *const w = c->in[1], *const bias = c->in[2];
  plain_begin(c, RSI_CONV_FORWARD, p);
  set_image(&p->a, c->in[0], f->channels);
  if (is_packed(w)) {
    const rs_list *const size = &RSI_ATTR(c, conv2d_block)->weight_size;
    RSI_CHECK(size->n == 4, RS_ERR_ARG, "a packed weight needs weight_size, [O, C / groups, kh, kw]");
    set_header(&p->b, 4, size->v);
  } else set_header(&p->b, w->ndim, w->shape);
  if (bias != NULL) set_header(&p->bias, bias->ndim, bias->shape), p->in[2] = &p->bias;
  return plain_infer(p);
}

static rs_status describe_data(const rsi_call *c, plain *p) {
  const int64_t filters = c->in[1]->shape[0];
  plain_begin(c, RSI_CONV_DATA, p);
  p->attrs.size = RSI_ATTR(c, conv2d_block_data)->input_size;
  set_image(&p->a, c->in[0], filters);
  set_header(&p->b, c->in[1]->ndim, c->in[1]->shape);
  return plain_infer(p);
}

static rs_status describe_weight(const rsi_call *c, plain *p) {
  plain_begin(c, RSI_CONV_WEIGHT, p);
  p->attrs.size = RSI_ATTR(c, conv2d_block_weight)->weight_size;
  set_image(&p->a, c->in[0], forms(c)->channels);
  set_image(&p->b, c->in[1], p->attrs.size.v[0]);
  return plain_infer(p);
}

static rs_status describe_pack(const rsi_call *c, plain *p) {
  plain_begin(c, RSI_CONV_FORWARD, p);
  const rs_list *const size = &RSI_ATTR(c, conv2d_pack)->input_size;
  RSI_CHECK(size->n == 4, RS_ERR_ARG, "input_size must have 4 values, got %s", rsi_shape_text((int)size->n, size->v));
  set_header(&p->a, 4, size->v);
  set_header(&p->b, c->in[0]->ndim, c->in[0]->shape);
  return plain_infer(p);
}

/* ---- shapes ---------------------------------------------------------------------------------------------------------- */

static rs_status conv2d_block_infer(rsi_call *c) {
  const form_attrs *const f = forms(c);
  const rs_tensor *const x = c->in[0], *const residual = c->in[3];
  plain p;
  RSI_TRY(rsi_check_image(x, "input", f->channels, f->block_in));
  RSI_TRY(rsi_check_float((int)f->dtype, "dtype"));
  if (!is_packed(c->in[1])) RSI_TRY(rsi_check_float(c->in[1]->dtype, "weight"));
  if (c->in[2]) RSI_TRY(rsi_check_float(c->in[2]->dtype, "bias"));
  RSI_TRY(describe_forward(c, &p));
  c->desc[0] = rsi_image_desc((int)f->dtype, p.s.n, p.s.o, p.s.oh, p.s.ow, f->block_out);
  if (residual == NULL) return RS_OK;
  RSI_TRY(rsi_check_image(residual, "residual", p.s.o, f->block_out));
  RSI_TRY(rsi_check_float(residual->dtype, "residual"));
  RSI_CHECK(residual->shape[0] == p.s.n && residual->shape[2] == p.s.oh && residual->shape[3] == p.s.ow, RS_ERR_SHAPE,
            "residual has shape %s, but the result has %s", rsi_text(residual), rsi_shape_text(5, c->desc[0].shape));
  return RS_OK;
}

static rs_status conv2d_block_data_infer(rsi_call *c) {
  const form_attrs *const f = forms(c);
  const rs_tensor *const w = c->in[1], *const bias = c->in[2];
  plain p;
  RSI_CHECK(w->ndim == 4, RS_ERR_SHAPE, "weight must have 4 dimensions, [O, C / groups, kh, kw], got %s", rsi_text(w));
  RSI_TRY(rsi_check_image(c->in[0], "gradient", w->shape[0], f->block_out));
  RSI_TRY(rsi_check_float((int)f->dtype, "dtype"));
  RSI_TRY(rsi_check_float(w->dtype, "weight"));
  RSI_TRY(describe_data(c, &p));
  if (bias != NULL) {
    RSI_CHECK(bias->ndim == 1 && bias->shape[0] == p.s.c, RS_ERR_SHAPE, "bias must be [%lld], got %s", (long long)p.s.c, rsi_text(bias));
    RSI_TRY(rsi_check_float(bias->dtype, "bias"));
  }
  c->desc[0] = rsi_image_desc((int)f->dtype, p.s.n, p.s.c, p.s.h, p.s.w, f->block_in);
  return RS_OK;
}

static rs_status conv2d_block_weight_infer(rsi_call *c) {
  const form_attrs *const f = forms(c);
  const rs_list *const size = &RSI_ATTR(c, conv2d_block_weight)->weight_size;
  plain p;
  RSI_CHECK(size->n == 4, RS_ERR_ARG, "weight_size must have 4 values, got %s", rsi_shape_text((int)size->n, size->v));
  RSI_TRY(rsi_check_image(c->in[0], "input", f->channels, f->block_in));
  RSI_TRY(rsi_check_image(c->in[1], "gradient", size->v[0], f->block_out));
  RSI_TRY(rsi_check_float(c->in[1]->dtype, "gradient"));
  RSI_CHECK(f->dtype == RS_F32, RS_ERR_DTYPE, "the gradient of a weight is f32");
  RSI_TRY(describe_weight(c, &p));
  c->desc[0] = p.call.desc[0];
  return RS_OK;
}

/* ---- portable kernels ------------------------------------------------------------------------------------------------ */

static size_t floats(const rs_tensor *t) { return rsi_lane_round((size_t)t->numel * sizeof(float)); }

/* The plain op's portable kernel for this call. */
static const rsi_kernel *plain_kernel(const plain *p) {
  const rsi_kernel *k = p->call.op->kernels;
  while (k->backend != RSI_PORTABLE || (k->accepts && !k->accepts(&p->call))) k++;
  return k;
}

static size_t plain_inner(const plain *p) {
  const rsi_kernel *const k = plain_kernel(p);
  return k->scratch ? k->scratch(&p->call) : 0;
}

/* a, b, y, bias and one more like y */
static size_t plain_scratch(const plain *p) {
  return floats(&p->a) + floats(&p->b) + 2 * floats(&p->y) + rsi_lane_round((size_t)p->y.shape[1] * sizeof(float)) + plain_inner(p);
}

static char *place(rs_tensor *t, char *at) {
  t->data = at;
  return at + floats(t);
}

static rs_status plain_run(plain *p, char *inner) {
  const rsi_kernel *const k = plain_kernel(p);
  p->call.scratch = inner;
  return k->run(&p->call);
}

/* n numbers of any float dtype */
static void widen(const rsi_exec *x, const rs_tensor *t, const void *from, float *to) {
  char *const data[2] = {(char *)to, (char *)(uintptr_t)from};
  if (t->numel > 0) x->k->elementwise->cast->cast[t->dtype][RS_F32](t->numel, data, (const int64_t[]){4, rsi_dtype_size[t->dtype]}, NULL);
}

static float activate(float v, int64_t act) {
  if (act == RSI_CONV_NO_ACT) return v;
  if (v < 0) v = 0;
  return act == RSI_CONV_RELU6 && v > 6 ? 6 : v;
}

static size_t conv2d_block_scratch(const rsi_call *c) {
  plain p;
  return describe_forward(c, &p) == RS_OK ? plain_scratch(&p) : 0;
}

static bool made_by(const rs_tensor *pack, uint64_t maker) {
  return pack->data != NULL && ((const rsi_conv_pack_head *)pack->data)->magic == maker;
}

static bool portable_accepts(const rsi_call *c) {
  return !is_packed(c->in[1]) || c->in[1]->data == NULL || made_by(c->in[1], RSI_CONV_PACK_PLAIN);
}

static rs_status conv2d_block_run(const rsi_call *c) {
  const form_attrs *const f = forms(c);
  const rs_tensor *const w = c->in[1], *const bias = c->in[2], *const residual = c->in[3];
  plain p;
  RSI_TRY(describe_forward(c, &p));
  char *at = place(&p.y, place(&p.b, place(&p.a, c->scratch)));
  float *const y = p.y.data, *const more = (float *)(void *)at;
  at += floats(&p.y);
  rsi_image_to_plain(c->x, c->in[0], f->channels, f->block_in, p.a.data);
  if (is_packed(w)) {
    RSI_CHECK(made_by(w, RSI_CONV_PACK_PLAIN), RS_ERR_UNSUPPORTED, "the weight was packed for another kernel; pack it again");
    p.b.data = (char *)w->data + sizeof(rsi_conv_pack_head);
  } else widen(c->x, w, w->data, p.b.data);
  if (bias != NULL) widen(c->x, bias, bias->data, place(&p.bias, at) == NULL ? NULL : p.bias.data);
  at += rsi_lane_round((size_t)p.s.o * sizeof(float));
  RSI_TRY(plain_run(&p, at));
  if (residual != NULL) {
    rsi_image_to_plain(c->x, residual, p.s.o, f->block_out, more);
    for (int64_t i = 0; i < p.y.numel; i++) y[i] += more[i];
  }
  const int64_t act = RSI_ATTR(c, conv2d_block)->act;
  if (act != RSI_CONV_NO_ACT)
    for (int64_t i = 0; i < p.y.numel; i++) y[i] = activate(y[i], act);
  rsi_plain_to_image(c->x, y, p.s.o, f->block_out, c->out[0]);
  return RS_OK;
}

static size_t conv2d_block_data_scratch(const rsi_call *c) {
  plain p;
  return describe_data(c, &p) == RS_OK ? plain_scratch(&p) : 0;
}

static rs_status conv2d_block_data_run(const rsi_call *c) {
  const form_attrs *const f = forms(c);
  const rs_tensor *const bias = c->in[2];
  plain p;
  RSI_TRY(describe_data(c, &p));
  char *at = place(&p.y, place(&p.b, place(&p.a, c->scratch)));
  float *const x = p.y.data, *const more = (float *)(void *)at;
  at += rsi_lane_round((size_t)p.s.c * sizeof(float));
  rsi_image_to_plain(c->x, c->in[0], p.s.o, f->block_out, p.a.data);
  widen(c->x, c->in[1], c->in[1]->data, p.b.data);
  RSI_TRY(plain_run(&p, at));
  if (bias != NULL) {
    const int64_t pixels = p.s.h * p.s.w;
    widen(c->x, bias, bias->data, more);
    for (int64_t i = 0; i < p.s.n * p.s.c; i++)
      for (int64_t k = 0; k < pixels; k++) x[i * pixels + k] += more[i % p.s.c];
  }
  rsi_plain_to_image(c->x, x, p.s.c, f->block_in, c->out[0]);
  return RS_OK;
}

static size_t conv2d_block_weight_scratch(const rsi_call *c) {
  plain p;
  return describe_weight(c, &p) == RS_OK ? plain_scratch(&p) : 0;
}

static rs_status conv2d_block_weight_run(const rsi_call *c) {
  const form_attrs *const f = forms(c);
  plain p;
  RSI_TRY(describe_weight(c, &p));
  char *const inner = place(&p.b, place(&p.a, c->scratch));
  p.y.data = c->out[0]->data;
  rsi_image_to_plain(c->x, c->in[0], p.s.c, f->block_in, p.a.data);
  rsi_image_to_plain(c->x, c->in[1], p.s.o, f->block_out, p.b.data);
  return plain_run(&p, inner);
}

/* ---- packed weights -------------------------------------------------------------------------------------------------- */

static rs_status conv2d_pack_run(const rsi_call *c) {
  rsi_conv_pack_head head = {.magic = RSI_CONV_PACK_PLAIN};
  char *const to = c->out[0]->data;
  memset(to, 0, (size_t)c->out[0]->numel);
  memcpy(to, &head, sizeof head);
  widen(c->x, c->in[0], c->in[0]->data, (float *)(void *)(to + sizeof head));
  return RS_OK;
}

/* ---- oneDNN ---------------------------------------------------------------------------------------------------------- */

/* The call in oneDNN's terms; false when it has no such form. */
static bool fast_call(const rsi_call *c, const plain *p, rsi_conv_call *k) {
  const form_attrs *const f = forms(c);
  const int out = (int)f->dtype, a = c->in[0]->dtype;
  *k = (rsi_conv_call){.kind = p->kind, .s = p->s, .x_block = f->block_in, .y_block = f->block_out, .exact = c->x->exact};
  k->x_dtype = p->kind == RSI_CONV_DATA ? out : a;
  k->y_dtype = p->kind == RSI_CONV_FORWARD ? out : p->kind == RSI_CONV_DATA ? a : c->in[1]->dtype;
  return c->x->onednn != NULL;
}

static bool is_f32(const rs_tensor *t) { return t == NULL || t->dtype == RS_F32; }

/* A residual is read from where it is only if that does not ask for another layout of packed weights. */
static int64_t residual_mode(const rsi_call *c, rsi_conv_call k) {
  uint64_t bare = 0, apart = 0;
  if (c->in[3] == NULL) return RSI_CONV_NO_RESIDUAL;
  if (c->out != NULL && c->out[0] != NULL && c->out[0]->data == c->in[3]->data) return RSI_CONV_IN_PLACE;
  if (!k.packed) return RSI_CONV_APART;
  k.residual = RSI_CONV_NO_RESIDUAL;
  rsi_onednn_pack_bytes(c->x->onednn, &k, &bare);
  k.residual = RSI_CONV_APART;
  rsi_onednn_pack_bytes(c->x->onednn, &k, &apart);
  return bare == apart ? RSI_CONV_APART : RSI_CONV_COPIED;
}

static bool forward_call(const rsi_call *c, plain *p, rsi_conv_call *k) {
  const rs_tensor *const w = c->in[1], *const residual = c->in[3];
  if (describe_forward(c, p) != RS_OK || !fast_call(c, p, k)) return false;
  k->packed = is_packed(w), k->bias = k->packed || c->in[2] != NULL, k->act = RSI_ATTR(c, conv2d_block)->act;
  if (!(k->packed || is_f32(w)) || !is_f32(c->in[2]) || (residual != NULL && residual->dtype != forms(c)->dtype)) return false;
  k->residual = residual_mode(c, *k);
  return true;
}

/* A pack in the terms that are common with oneDNN; our own forms need no oneDNN. */
static bool own_pack(const rsi_call *c, plain *p, rsi_conv_call *k) {
  if (describe_pack(c, p) != RS_OK) return false;
  fast_call(c, p, k);
  k->x_dtype = RSI_ATTR(c, conv2d_pack)->input_dtype, k->packed = k->bias = 1, k->act = RSI_ATTR(c, conv2d_pack)->act;
  return is_f32(c->in[0]);
}

static bool pack_call(const rsi_call *c, plain *p, rsi_conv_call *k) { return own_pack(c, p, k) && c->x->onednn != NULL; }

static bool data_call(const rsi_call *c, plain *p, rsi_conv_call *k) {
  return describe_data(c, p) == RS_OK && fast_call(c, p, k) && is_f32(c->in[1]) && is_f32(c->in[2]);
}

static bool weight_call(const rsi_call *c, plain *p, rsi_conv_call *k) { return describe_weight(c, p) == RS_OK && fast_call(c, p, k); }

static rs_status run_fast(const rsi_call *c, const rsi_conv_call *k, const rsi_conv_data *data) {
  return rsi_onednn_conv_run(c->x, k, data, c->scratch);
}

/* A pack was made by this maker for this very layout, of so many bytes. */
static rs_status unpack(const rsi_call *c, uint64_t maker, uint64_t layout, size_t bytes, char **weight) {
  rsi_conv_pack_head head;
  memcpy(&head, c->in[1]->data, sizeof head);
  RSI_CHECK(head.magic == maker && head.layout == layout && (size_t)c->in[1]->numel >= sizeof head + bytes, RS_ERR_STATE,
            "the weight was packed for another convolution; pack it with the attributes of this one");
  *weight = (char *)c->in[1]->data + sizeof head;
  return RS_OK;
}

/* Nobody else packed the weight; what has no data yet was packed by nobody. */
static bool unclaimed(const rs_tensor *w, uint64_t maker) { return !is_packed(w) || w->data == NULL || made_by(w, maker); }

static bool conv2d_block_fast(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  if (!forward_call(c, &p, &k)) return false;
  return unclaimed(c->in[1], RSI_CONV_PACK_ONEDNN) && rsi_onednn_conv_accepts(c->x->onednn, &k);
}

static rs_status conv2d_block_fast_run(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  RSI_CHECK(forward_call(c, &p, &k), RS_ERR_UNSUPPORTED, "this was prepared for oneDNN, which is not there");
  char *w = c->in[1]->data;
  if (k.packed) {
    uint64_t layout = 0;
    const size_t bytes = rsi_onednn_pack_bytes(c->x->onednn, &k, &layout);
    RSI_TRY(unpack(c, RSI_CONV_PACK_ONEDNN, layout, bytes, &w));
  }
  return run_fast(c, &k, &(rsi_conv_data){.x = c->in[0]->data, .w = w, .y = c->out[0]->data, .bias = c->in[2] ? c->in[2]->data : NULL,
                                          .residual = c->in[3] ? c->in[3]->data : NULL});
}

typedef struct shift { char *x; const float *bias; int64_t channels, block, pixels; bool bf16; } shift;

static float from_bf16(uint16_t v) {
  const uint32_t bits = (uint32_t)v << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

/* To nearest even; a NaN stays one. */
static uint16_t to_bf16_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  if (f != f) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Adds bias to blocks [n, G] of x. */
static void shift_blocks(void *arg, int64_t first, int64_t last) {
  const shift *const s = arg;
  const int64_t blocks = divide_up(s->channels, s->block);
  for (int64_t i = first; i < last; i++) {
    const int64_t c0 = i % blocks * s->block, count = c0 + s->block <= s->channels ? s->block : s->channels - c0;
    const float *const bias = s->bias + c0;
    float *const x = (float *)(void *)s->x + i * s->pixels * s->block;
    uint16_t *const h = (uint16_t *)(void *)s->x + i * s->pixels * s->block;
    for (int64_t k = 0; k < s->pixels; k++)
      for (int64_t j = 0; j < count; j++) {
        if (s->bf16) h[k * s->block + j] = to_bf16_bits(from_bf16(h[k * s->block + j]) + bias[j]);
        else x[k * s->block + j] += bias[j];
      }
  }
}

static bool conv2d_block_data_fast(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  return data_call(c, &p, &k) && rsi_onednn_conv_accepts(c->x->onednn, &k);
}

static rs_status conv2d_block_data_fast_run(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  RSI_CHECK(data_call(c, &p, &k), RS_ERR_UNSUPPORTED, "this was prepared for oneDNN, which is not there");
  RSI_TRY(run_fast(c, &k, &(rsi_conv_data){.x = c->out[0]->data, .w = c->in[1]->data, .y = c->in[0]->data}));
  if (c->in[2] == NULL) return RS_OK;
  shift s = {c->out[0]->data, c->in[2]->data, p.s.c, k.x_block, p.s.h * p.s.w, k.x_dtype == RS_BF16};
  rsi_parallel(c->x, p.s.n * divide_up(p.s.c, k.x_block), 0.2 * (double)(s.pixels * s.block), shift_blocks, &s);
  return RS_OK;
}

static bool conv2d_block_weight_fast(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  return weight_call(c, &p, &k) && rsi_onednn_conv_accepts(c->x->onednn, &k);
}

static rs_status conv2d_block_weight_fast_run(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  RSI_CHECK(weight_call(c, &p, &k), RS_ERR_UNSUPPORTED, "this was prepared for oneDNN, which is not there");
  return run_fast(c, &k, &(rsi_conv_data){.x = c->in[0]->data, .w = c->out[0]->data, .y = c->in[1]->data});
}

#define FAST_SCRATCH(name, call)                                                                                            \
  static size_t name##_fast_scratch(const rsi_call *c) {                                                                    \
    plain p;                                                                                                                \
    rsi_conv_call k;                                                                                                        \
    return call(c, &p, &k) ? rsi_onednn_conv_scratch(c->x->onednn, &k, rsi_pool_threads(c->x->pool)) : 0;                   \
  }
FAST_SCRATCH(conv2d_block, forward_call)
FAST_SCRATCH(conv2d_block_data, data_call)
FAST_SCRATCH(conv2d_block_weight, weight_call)

static bool conv2d_pack_fast(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  return pack_call(c, &p, &k) && rsi_onednn_conv_accepts(c->x->onednn, &k);
}

static rs_status conv2d_pack_fast_run(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  rsi_conv_pack_head head = {.magic = RSI_CONV_PACK_ONEDNN};
  char *const to = c->out[0]->data;
  RSI_CHECK(pack_call(c, &p, &k), RS_ERR_UNSUPPORTED, "this was prepared for oneDNN, which is not there");
  const size_t bytes = rsi_onednn_pack_bytes(c->x->onednn, &k, &head.layout);
  RSI_CHECK(bytes > 0 && sizeof head + bytes <= (size_t)c->out[0]->numel, RS_ERR_STATE, "the pack does not fit");
  memset(to, 0, (size_t)c->out[0]->numel);
  memcpy(to, &head, sizeof head);
  return rsi_onednn_pack_run(c->x, &k, c->in[0]->data, to + sizeof head);
}

/* A way of our own to convolve block images. pack_scratch NULL: none. */
typedef struct own_form {
  uint64_t maker;
  bool   (*accepts)(const rsi_exec *x, const rsi_conv_call *k);
  size_t (*bytes)(const rsi_exec *x, const rsi_conv_call *k);
  void   (*run)(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch);
  size_t (*pack_bytes)(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout);
  size_t (*pack_scratch)(const rsi_exec *x, const rsi_conv_call *k);
  void   (*pack_run)(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch);
} own_form;

static const own_form
  winograd = {RSI_CONV_PACK_WINOGRAD, rsi_winograd_accepts, rsi_winograd_bytes, rsi_winograd_run, rsi_winograd_pack_bytes, NULL,
              rsi_winograd_pack_run},
  winograd_split = {RSI_CONV_PACK_WINOGRAD_SPLIT, rsi_winograd_split_accepts, rsi_winograd_split_bytes, rsi_winograd_split_run,
                    rsi_winograd_split_pack_bytes, NULL, rsi_winograd_split_pack_run},
  split = {RSI_CONV_PACK_SPLIT, rsi_split_conv_accepts, rsi_split_conv_bytes, rsi_split_conv_run, rsi_split_conv_pack_bytes,
           rsi_split_conv_pack_scratch, rsi_split_conv_pack_run},
  depthwise = {RSI_CONV_PACK_EACH, rsi_depthwise_accepts, rsi_depthwise_bytes, rsi_depthwise_run, rsi_depthwise_pack_bytes, NULL,
               rsi_depthwise_pack_run},
  point = {RSI_CONV_PACK_POINT, rsi_conv_point_accepts, rsi_conv_point_bytes, rsi_conv_point_run, rsi_conv_point_pack_bytes, NULL,
           rsi_conv_point_pack_run},
  first = {RSI_CONV_PACK_FIRST, rsi_conv_first_accepts, rsi_conv_first_bytes, rsi_conv_first_run, rsi_conv_first_pack_bytes, NULL,
           rsi_conv_first_pack_run};

/* Room for any maker's form. */
static size_t pack_size(const rsi_call *c, plain *p) {
  static const own_form *const own[] = {&winograd_split, &winograd, &point, &split, &depthwise, &first};
  rsi_conv_call k;
  uint64_t layout;
  size_t most = floats(&p->b);
  const size_t onednn = pack_call(c, p, &k) ? rsi_onednn_pack_bytes(c->x->onednn, &k, &layout) : 0;
  if (onednn > most) most = onednn;
  for (size_t i = 0; own_pack(c, p, &k) && i < sizeof own / sizeof *own; i++) {
    const size_t bytes = own[i]->accepts(c->x, &k) ? own[i]->pack_bytes(c->x, &k, &layout) : 0;
    if (bytes > most) most = bytes;
  }
  return sizeof(rsi_conv_pack_head) + most;
}

static rs_status conv2d_pack_infer(rsi_call *c) {
  plain p;
  RSI_TRY(rsi_check_float((int)forms(c)->dtype, "dtype"));
  RSI_TRY(rsi_check_float((int)RSI_ATTR(c, conv2d_pack)->input_dtype, "input_dtype"));
  RSI_TRY(describe_pack(c, &p));
  c->desc[0] = (rsi_desc){.dtype = RS_U8, .ndim = 1, .shape = {(int64_t)pack_size(c, &p)}};
  return RS_OK;
}

/* ---- our own forms ---------------------------------------------------------------------------------------------------------- */

/* The call in the terms that are common with oneDNN, but it needs no oneDNN. */
static bool own_forward(const rsi_call *c, plain *p, rsi_conv_call *k) {
  if (describe_forward(c, p) != RS_OK) return false;
  fast_call(c, p, k);
  k->packed = is_packed(c->in[1]), k->act = RSI_ATTR(c, conv2d_block)->act;
  const rs_tensor *const residual = c->in[3];
  return (k->packed || is_f32(c->in[1])) && is_f32(c->in[2]) && (residual == NULL || residual->dtype == forms(c)->dtype);
}

static bool own_data(const rsi_call *c, plain *p, rsi_conv_call *k) {
  if (describe_data(c, p) != RS_OK) return false;
  fast_call(c, p, k);
  return is_f32(c->in[1]) && is_f32(c->in[2]);
}

static bool own_block(const rsi_call *c, const own_form *f) {
  plain p;
  rsi_conv_call k;
  return own_forward(c, &p, &k) && f->accepts(c->x, &k) && unclaimed(c->in[1], f->maker);
}

static bool own_block_data(const rsi_call *c, const own_form *f) {
  plain p;
  rsi_conv_call k;
  return own_data(c, &p, &k) && f->accepts(c->x, &k);
}

static bool own_block_pack(const rsi_call *c, const own_form *f) {
  plain p;
  rsi_conv_call k;
  return own_pack(c, &p, &k) && f->accepts(c->x, &k);
}

static size_t own_block_scratch(const rsi_call *c, const own_form *f) {
  plain p;
  rsi_conv_call k;
  return own_forward(c, &p, &k) ? f->bytes(c->x, &k) : 0;
}

static size_t own_block_data_scratch(const rsi_call *c, const own_form *f) {
  plain p;
  rsi_conv_call k;
  return own_data(c, &p, &k) ? f->bytes(c->x, &k) : 0;
}

static size_t own_block_pack_scratch(const rsi_call *c, const own_form *f) {
  plain p;
  rsi_conv_call k;
  return f->pack_scratch != NULL && own_pack(c, &p, &k) ? f->pack_scratch(c->x, &k) : 0;
}

static const char other_machine[] = "this was prepared for another precision or instruction set";

static rs_status own_block_run(const rsi_call *c, const own_form *f) {
  plain p;
  rsi_conv_call k;
  RSI_CHECK(own_forward(c, &p, &k) && f->accepts(c->x, &k), RS_ERR_UNSUPPORTED, "%s", other_machine);
  char *w = c->in[1]->data;
  if (k.packed) {
    uint64_t layout = 0;
    const size_t bytes = f->pack_bytes(c->x, &k, &layout);
    RSI_TRY(unpack(c, f->maker, layout, bytes, &w));
  }
  f->run(c->x, &k, &(rsi_conv_data){.x = c->in[0]->data, .w = w, .y = c->out[0]->data, .bias = c->in[2] ? c->in[2]->data : NULL,
                                    .residual = c->in[3] ? c->in[3]->data : NULL}, c->scratch);
  return RS_OK;
}

static rs_status own_block_data_run(const rsi_call *c, const own_form *f) {
  plain p;
  rsi_conv_call k;
  RSI_CHECK(own_data(c, &p, &k) && f->accepts(c->x, &k), RS_ERR_UNSUPPORTED, "%s", other_machine);
  f->run(c->x, &k, &(rsi_conv_data){.x = c->out[0]->data, .w = c->in[1]->data, .y = c->in[0]->data,
                                    .bias = c->in[2] ? c->in[2]->data : NULL}, c->scratch);
  return RS_OK;
}

static rs_status own_block_pack_run(const rsi_call *c, const own_form *f) {
  plain p;
  rsi_conv_call k;
  rsi_conv_pack_head head = {.magic = f->maker};
  char *const to = c->out[0]->data;
  RSI_CHECK(own_pack(c, &p, &k) && f->accepts(c->x, &k), RS_ERR_UNSUPPORTED, "%s", other_machine);
  const size_t bytes = f->pack_bytes(c->x, &k, &head.layout), all = (size_t)c->out[0]->numel;
  RSI_CHECK(sizeof head + bytes <= all, RS_ERR_STATE, "the pack does not fit");
  memset(to, 0, all);
  memcpy(to, &head, sizeof head);
  f->pack_run(c->x, &k, c->in[0]->data, to + sizeof head, c->scratch);
  return RS_OK;
}

/* The kernels of one form that has forward calls only; of one that has both. */
#define OWN_FORWARD(form)                                                                                                   \
  static bool form##_block(const rsi_call *c) { return own_block(c, &form); }                                               \
  static bool form##_block_pack(const rsi_call *c) { return own_block_pack(c, &form); }                                     \
  static size_t form##_block_scratch(const rsi_call *c) { return own_block_scratch(c, &form); }                             \
  static size_t form##_block_pack_scratch(const rsi_call *c) { return own_block_pack_scratch(c, &form); }                   \
  static rs_status form##_block_run(const rsi_call *c) { return own_block_run(c, &form); }                                  \
  static rs_status form##_block_pack_run(const rsi_call *c) { return own_block_pack_run(c, &form); }
#define OWN_FORM(form)                                                                                                      \
  OWN_FORWARD(form)                                                                                                         \
  static bool form##_block_data(const rsi_call *c) { return own_block_data(c, &form); }                                     \
  static size_t form##_block_data_scratch(const rsi_call *c) { return own_block_data_scratch(c, &form); }                   \
  static rs_status form##_block_data_run(const rsi_call *c) { return own_block_data_run(c, &form); }
OWN_FORM(winograd_split)
OWN_FORM(winograd)
OWN_FORM(split)
OWN_FORM(depthwise)
OWN_FORWARD(point)
OWN_FORWARD(first)

/* ---- split products ---------------------------------------------------------------------------------------------------- */

static bool conv2d_block_weight_split(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  if (describe_weight(c, &p) != RS_OK) return false;
  fast_call(c, &p, &k);
  return rsi_split_wgrad_accepts(c->x, &k);
}

/* The call that computes the gradient when a number is out of their range: direct sums, in which an infinity stays one. */
static rsi_call again(const rsi_call *c, rsi_exec *x) {
  rsi_call direct = *c;
  *x = *c->x, x->exact = true, direct.x = x;
  return direct;
}

static size_t conv2d_block_weight_split_scratch(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  rsi_exec x;
  const rsi_call direct = again(c, &x);
  if (describe_weight(c, &p) != RS_OK) return 0;
  fast_call(c, &p, &k);
  const size_t own = rsi_split_wgrad_bytes(c->x, &k);
  const size_t more = conv2d_block_weight_fast(&direct) ? conv2d_block_weight_fast_scratch(&direct) : conv2d_block_weight_scratch(&direct);
  return own > more ? own : more;
}

static rs_status conv2d_block_weight_split_run(const rsi_call *c) {
  plain p;
  rsi_conv_call k;
  rsi_exec x;
  RSI_TRY(describe_weight(c, &p));
  fast_call(c, &p, &k);
  if (rsi_split_wgrad_run(c->x, &k, &(rsi_conv_data){.x = c->in[0]->data, .w = c->out[0]->data, .y = c->in[1]->data}, c->scratch)) return RS_OK;
  const rsi_call direct = again(c, &x);
  return conv2d_block_weight_fast(&direct) ? conv2d_block_weight_fast_run(&direct) : conv2d_block_weight_run(&direct);
}

int64_t rsi_conv_block_size(const rsi_exec *x, int dtype, int64_t channels) {
  return x->onednn != NULL ? rsi_onednn_block(dtype, channels) : 0;
}

/* ---- samples --------------------------------------------------------------------------------------------------------- */

#define PAIR(a, b) {2, {a, b}}
#define ONE(a) {1, {a}}
#define FORM(stride_, padding_, dilation_, groups_, channels_, in_, out_)                                                   \
  .stride = stride_, .padding = padding_, .dilation = dilation_, .groups = groups_, .channels = channels_, .block_in = in_, \
  .block_out = out_
#define SAME3(channels_, in_, out_) FORM(ONE(1), ONE(1), ONE(1), 1, channels_, in_, out_)
#define HALF3(channels_, in_, out_) FORM(ONE(2), ONE(1), ONE(1), 1, channels_, in_, out_)
#define POINT(channels_, in_, out_) FORM(ONE(1), ONE(0), ONE(1), 1, channels_, in_, out_)
#define EACH3(channels_, in_, out_) FORM(ONE(1), ONE(1), ONE(1), channels_, channels_, in_, out_)

static const conv2d_block_attrs
  f_same = {SAME3(32, 16, 16)}, f_relu = {SAME3(32, 16, 16), .act = 1}, f_relu6 = {HALF3(32, 16, 16), .act = 2},
  f_stem = {HALF3(3, 1, 16), .act = 1}, f_first = {SAME3(2, 1, 8), .act = 2}, f_first4 = {HALF3(3, 1, 4)},
  f_point = {POINT(32, 16, 16), .act = 1}, f_last = {POINT(20, 20, 7)},
  f_odd = {FORM(PAIR(2, 1), PAIR(1, 2), PAIR(1, 2), 2, 4, 1, 6)}, f_each = {EACH3(32, 16, 16), .act = 2},
  f_point8 = {POINT(24, 8, 8), .act = 2}, f_point4 = {POINT(6, 4, 4)}, f_split = {HALF3(104, 16, 16), .act = 2},
  f_deep = {POINT(184, 16, 16), .act = 1},
  f_each1 = {FORM(ONE(1), ONE(0), ONE(1), 8, 8, 4, 4)}, f_each2 = {FORM(ONE(2), ONE(1), ONE(1), 48, 48, 16, 16), .act = 1},
  f_each3 = {FORM(ONE(1), PAIR(2, 1), ONE(1), 16, 16, 8, 8)}, f_each5 = {FORM(ONE(1), ONE(2), ONE(1), 16, 16, 16, 16), .act = 2},
  f_each6 = {FORM(ONE(2), ONE(2), ONE(1), 12, 12, 8, 8)}, f_each7 = {FORM(ONE(1), ONE(2), ONE(2), 32, 32, 16, 16)},
  f_each8 = {FORM(ONE(2), ONE(0), ONE(1), 8, 8, 8, 8)}, f_each9 = {FORM(ONE(2), ONE(1), ONE(1), 8, 8, 4, 4)},
  f_eight = {SAME3(16, 8, 8)}, f_four = {SAME3(8, 4, 4)}, f_wino = {SAME3(64, 16, 16), .act = 1}, f_tail = {SAME3(24, 16, 16), .act = 1};
static const rsi_sample conv2d_block_samples[] = {
  {"f2x2x8x8x16,f32x32x3x3", &f_same, 2e-5, 1},
  {"f2x2x8x8x16,f32x32x3x3,f32,f2x2x8x8x16", &f_relu, 2e-5, 1},
  {"f2x2x9x8x16,f32x32x3x3,f32,f2x2x5x4x16", &f_relu6, 2e-5, 1},
  {"f1x3x17x16x1,f32x3x3x3,f32", &f_stem, 2e-5, 1},
  {"f2x3x27x31x1,f48x3x3x3,f48,f2x3x14x16x16", &f_stem, 2e-5, 1},
  {"f1x2x5x17x1,f16x2x3x3,f16", &f_first, 2e-5, 1},
  {"f1x3x5x14x1,f8x3x3x3", &f_first4, 2e-5, 1},
  {"f1x2x7x7x16,f48x32x1x1,-,f1x3x7x7x16", &f_point, 2e-5, 1},
  {"f2x2x23x23x16,f40x32x1x1,f40", &f_point, 2e-5, 1},
  {"f2x3x23x23x8,f20x24x1x1,f20", &f_point8, 2e-5, 1},
  {"f1x2x31x34x4,f12x6x1x1,f12", &f_point4, 2e-5, 1},
  {"f2x1x5x5x20,f7x20x1x1,f7", &f_last, 2e-5, 1},
  {"f2x4x7x7,f6x2x3x2,f6", &f_odd, 2e-5, 1},
  {"f2x2x9x9x16,f32x1x3x3,f32", &f_each, 2e-5, 1},
  {"f2x7x17x31x16,f96x104x3x3,f96,f2x6x9x16x16", &f_split, 2e-5, 1},
  {"f3x12x9x11x16,f152x184x1x1,f152", &f_deep, 2e-5, 1},
  {"f1x2x7x9x4,f8x1x3x3", &f_each1, 2e-5, 1},
  {"f2x3x15x32x16,f48x1x3x3,f48,f2x3x8x16x16", &f_each2, 2e-5, 1},
  {"f1x2x3x17x8,f16x1x3x3,f16,f1x2x5x17x8", &f_each3, 2e-5, 1},
  {"f2x1x19x18x16,f16x1x5x5,f16", &f_each5, 2e-5, 1},
  {"f1x2x4x21x8,f12x1x5x5,f12", &f_each6, 2e-5, 1},
  {"f1x2x8x8x16,f32x1x3x3", &f_each7, 2e-5, 1},
  {"f1x1x16x3x8,f8x1x3x3,f8", &f_each8, 2e-5, 1},
  {"f1x2x8x11x4,f8x1x3x3", &f_each9, 2e-5, 1},
  {"f2x2x40x64x16,f32x1x3x3,f32", &f_each, 2e-5, 1},
  {"f2x2x8x8x8,f16x16x3x3", &f_eight, 2e-5, 1},
  {"f2x2x8x8x4,f8x8x3x3", &f_four, 2e-5, 1},
  {"f2x2x8x8x16,f40x24x3x3,f40", &f_tail, 2e-5, 1},
  {"f2x4x32x32x16,f64x64x3x3,f64,f2x4x32x32x16", &f_wino, 2e-4, 1},
  {"f0x2x8x8x16,f32x32x3x3", &f_same, 0, 1},
  {NULL, NULL, 0, 0}};

static const conv2d_pack_attrs pack_same = {SAME3(32, 16, 16), .input_size = {4, {1, 32, 8, 8}}},
                               pack_four = {SAME3(8, 4, 4), .input_size = {4, {2, 8, 8, 8}}},
                               pack_each = {EACH3(20, 16, 16), .input_size = {4, {1, 20, 8, 8}}},
                               pack_each4 = {EACH3(6, 4, 4), .input_size = {4, {1, 6, 8, 8}}};
static const conv2d_pack_attrs pack_split = {HALF3(100, 16, 16), .input_size = {4, {3, 100, 9, 11}}},
                               pack_point = {POINT(24, 16, 16), .input_size = {4, {1, 24, 9, 9}}},
                               pack_wino = {SAME3(64, 16, 16), .input_size = {4, {1, 64, 16, 15}}},
                               pack_first = {HALF3(3, 1, 16), .input_size = {4, {1, 3, 32, 32}}},
                               pack_point4 = {POINT(6, 4, 4), .input_size = {4, {1, 6, 9, 9}}},
                               pack_first4 = {HALF3(3, 1, 4), .input_size = {4, {1, 3, 32, 32}}};
static const rsi_sample conv2d_pack_samples[] = {{"f20x1x3x3", &pack_each, 0, 1}, {"f6x1x3x3", &pack_each4, 0, 1},
                                                  {"f152x100x3x3", &pack_split, 0, 1}, {"f60x64x3x3", &pack_wino, 0, 1},
                                                  {"f20x24x1x1", &pack_point, 0, 1}, {"f6x6x1x1", &pack_point4, 0, 1},
                                                  {"f20x3x3x3", &pack_first, 0, 1}, {"f4x3x3x3", &pack_first4, 0, 1},
                                                  {"f32x32x3x3", &pack_same, 0, 1}, {"f8x8x3x3", &pack_four, 0, 1}, {NULL, NULL, 0, 0}};

static const conv2d_block_data_attrs
  d_same = {SAME3(32, 16, 16), .input_size = {4, {2, 32, 8, 8}}}, d_half = {HALF3(32, 16, 16), .input_size = {4, {2, 32, 9, 8}}},
  d_point = {POINT(32, 16, 16), .input_size = {4, {1, 32, 7, 7}}}, d_each = {EACH3(32, 16, 16), .input_size = {4, {2, 32, 9, 9}}},
  d_each0 = {FORM(ONE(1), ONE(0), ONE(1), 8, 8, 8, 8), .input_size = {4, {1, 8, 9, 12}}},
  d_each2 = {FORM(ONE(2), ONE(1), ONE(1), 24, 24, 16, 16), .input_size = {4, {1, 24, 9, 12}}},
  d_each5 = {FORM(ONE(1), PAIR(1, 2), ONE(1), 20, 20, 16, 16), .input_size = {4, {2, 20, 9, 12}}},
  d_each4 = {FORM(ONE(1), ONE(1), ONE(1), 8, 8, 4, 4), .input_size = {4, {1, 8, 5, 6}}},
  d_odd = {FORM(PAIR(2, 1), PAIR(1, 2), PAIR(1, 2), 2, 4, 1, 6), .input_size = {4, {2, 4, 7, 7}}},
  d_up = {FORM(ONE(2), ONE(0), ONE(1), 1, 16, 16, 16), .input_size = {4, {2, 16, 8, 8}}},
  d_wino = {SAME3(64, 16, 16), .input_size = {4, {2, 64, 32, 32}}},
  d_split = {HALF3(72, 16, 16), .input_size = {4, {2, 72, 18, 13}}}, d_images = {HALF3(48, 16, 16), .input_size = {4, {17, 48, 5, 6}}},
  d_four = {SAME3(8, 4, 4), .input_size = {4, {2, 8, 8, 8}}};
static const rsi_sample conv2d_block_data_samples[] = {
  {"f2x2x8x8x16,f32x32x3x3", &d_same, 2e-5, 1},     {"f2x2x5x4x16,f32x32x3x3", &d_half, 2e-5, 1},
  {"f1x3x7x7x16,f48x32x1x1", &d_point, 2e-5, 1},    {"f2x2x9x9x16,f32x1x3x3", &d_each, 2e-5, 1},
  {"f2x1x4x9x6,f6x2x3x2,f4", &d_odd, 2e-5, 1},      {"f2x2x4x4x16,f32x16x2x2,f16", &d_up, 2e-5, 1},
  {"f2x4x32x32x16,f64x64x3x3", &d_wino, 2e-4, 1},   {"f2x2x8x8x4,f8x8x3x3", &d_four, 2e-5, 1},
  {"f1x1x7x10x8,f8x1x3x3", &d_each0, 2e-5, 1},      {"f1x2x5x6x16,f24x1x3x3", &d_each2, 2e-5, 1},
  {"f2x2x7x12x16,f20x1x5x5,f20", &d_each5, 2e-5, 1}, {"f1x2x5x6x4,f8x1x3x3", &d_each4, 2e-5, 1},
  {"f2x7x9x7x16,f100x72x3x3", &d_split, 2e-5, 1},   {"f17x6x3x3x16,f96x48x3x3,f48", &d_images, 2e-5, 1},
  {NULL, NULL, 0, 0}};

static const conv2d_block_weight_attrs
  w_same = {SAME3(32, 16, 16), .weight_size = {4, {32, 32, 3, 3}}}, w_half = {HALF3(32, 16, 16), .weight_size = {4, {32, 32, 3, 3}}},
  w_stem = {HALF3(3, 1, 16), .weight_size = {4, {32, 3, 3, 3}}}, w_point = {POINT(32, 16, 16), .weight_size = {4, {48, 32, 1, 1}}},
  w_each = {EACH3(32, 16, 16), .weight_size = {4, {32, 1, 3, 3}}},
  w_odd = {FORM(PAIR(2, 1), PAIR(1, 2), PAIR(1, 2), 2, 4, 1, 6), .weight_size = {4, {6, 2, 3, 2}}},
  w_wino = {SAME3(64, 16, 16), .weight_size = {4, {64, 64, 3, 3}}}, w_many = {HALF3(60, 16, 16), .weight_size = {4, {88, 60, 3, 3}}},
  w_few = {FORM(ONE(2), ONE(0), ONE(1), 1, 64, 16, 16), .weight_size = {4, {96, 64, 2, 2}}},
  w_last = {SAME3(72, 72, 56), .weight_size = {4, {56, 72, 3, 3}}},
  w_last_point = {FORM(ONE(2), ONE(0), ONE(1), 1, 64, 64, 96), .weight_size = {4, {96, 64, 1, 1}}};
static const rsi_sample conv2d_block_weight_samples[] = {
  {"f2x2x8x8x16,f2x2x8x8x16", &w_same, 2e-5, 1},  {"f2x2x9x8x16,f2x2x5x4x16", &w_half, 2e-5, 1},
  {"f1x3x17x16x1,f1x2x9x8x16", &w_stem, 2e-5, 1}, {"f1x2x7x7x16,f1x3x7x7x16", &w_point, 2e-5, 1},
  {"f2x2x9x9x16,f2x2x9x9x16", &w_each, 2e-5, 1},  {"f2x4x7x7,f2x1x4x9x6", &w_odd, 2e-5, 1},
  {"f2x4x32x32x16,f2x4x32x32x16", &w_wino, 2e-4, 1}, {"f0x2x8x8x16,f0x2x8x8x16", &w_same, 0, 1},
  {"f31x4x5x4x16,f31x6x3x2x16", &w_many, 2e-5, 1}, {"f7x4x9x8x16,f7x6x4x4x16", &w_few, 2e-5, 1},
  {"f7x1x6x8x72,f7x1x6x8x56", &w_last, 2e-5, 1}, {"f8x1x9x9x64,f8x1x5x5x96", &w_last_point, 2e-5, 1},
  {NULL, NULL, 0, 0}};

/* ---- ops ------------------------------------------------------------------------------------------------------------- */

#define ITEMS (RSI_F32 | RSI_HALF)
#define END {NULL, 0, 0, NULL, NULL, NULL}
static const rsi_kernel conv2d_block_kernels[] = {
  {"depthwise", RSI_PORTABLE, RSI_F32, depthwise_block, depthwise_block_scratch, depthwise_block_run},
  {"winograd_split", RSI_PORTABLE, RSI_F32, winograd_split_block, winograd_split_block_scratch, winograd_split_block_run},
  {"winograd", RSI_PORTABLE, RSI_F32, winograd_block, winograd_block_scratch, winograd_block_run},
  {"first", RSI_PORTABLE, RSI_F32, first_block, first_block_scratch, first_block_run},
  {"point", RSI_PORTABLE, RSI_F32, point_block, point_block_scratch, point_block_run},
  {"split", RSI_PORTABLE, RSI_F32 | 1u << RS_BF16, split_block, split_block_scratch, split_block_run},
  {"onednn", RSI_ONEDNN, ITEMS, conv2d_block_fast, conv2d_block_fast_scratch, conv2d_block_fast_run},
  {"plain", RSI_PORTABLE, ITEMS, portable_accepts, conv2d_block_scratch, conv2d_block_run}, END};
static const rsi_kernel conv2d_pack_kernels[] = {
  {"depthwise", RSI_PORTABLE, RSI_F32, depthwise_block_pack, depthwise_block_pack_scratch, depthwise_block_pack_run},
  {"winograd_split", RSI_PORTABLE, RSI_F32, winograd_split_block_pack, winograd_split_block_pack_scratch, winograd_split_block_pack_run},
  {"winograd", RSI_PORTABLE, RSI_F32, winograd_block_pack, winograd_block_pack_scratch, winograd_block_pack_run},
  {"first", RSI_PORTABLE, RSI_F32, first_block_pack, first_block_pack_scratch, first_block_pack_run},
  {"point", RSI_PORTABLE, RSI_F32, point_block_pack, point_block_pack_scratch, point_block_pack_run},
  {"split", RSI_PORTABLE, RSI_F32, split_block_pack, split_block_pack_scratch, split_block_pack_run},
  {"onednn", RSI_ONEDNN, ITEMS, conv2d_pack_fast, NULL, conv2d_pack_fast_run},
  {"plain", RSI_PORTABLE, ITEMS, NULL, NULL, conv2d_pack_run}, END};
static const rsi_kernel conv2d_block_data_kernels[] = {
  {"depthwise", RSI_PORTABLE, RSI_F32, depthwise_block_data, depthwise_block_data_scratch, depthwise_block_data_run},
  {"winograd_split", RSI_PORTABLE, RSI_F32, winograd_split_block_data, winograd_split_block_data_scratch, winograd_split_block_data_run},
  {"winograd", RSI_PORTABLE, RSI_F32, winograd_block_data, winograd_block_data_scratch, winograd_block_data_run},
  {"split", RSI_PORTABLE, RSI_F32 | 1u << RS_BF16, split_block_data, split_block_data_scratch, split_block_data_run},
  {"onednn", RSI_ONEDNN, ITEMS, conv2d_block_data_fast, conv2d_block_data_fast_scratch, conv2d_block_data_fast_run},
  {"plain", RSI_PORTABLE, ITEMS, NULL, conv2d_block_data_scratch, conv2d_block_data_run}, END};
static const rsi_kernel conv2d_block_weight_kernels[] = {
  {"split", RSI_PORTABLE, RSI_F32 | 1u << RS_BF16, conv2d_block_weight_split, conv2d_block_weight_split_scratch, conv2d_block_weight_split_run},
  {"onednn", RSI_ONEDNN, ITEMS, conv2d_block_weight_fast, conv2d_block_weight_fast_scratch, conv2d_block_weight_fast_run},
  {"plain", RSI_PORTABLE, ITEMS, NULL, conv2d_block_weight_scratch, conv2d_block_weight_run}, END};

const rs_op rsi_op_conv2d_block = {
  .name = "conv2d_block", .doc = "act(conv2d(x, weight, bias) + residual) on block images.", .inputs = "x,weight,bias?,residual?",
  .nin_min = 2, .nin_max = 4, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_HALF, .dtypes = ITEMS,
  RSI_USES_ATTRS(conv2d_block), .infer = conv2d_block_infer, .kernels = conv2d_block_kernels, .samples = conv2d_block_samples,
};

const rs_op rsi_op_conv2d_pack = {
  .name = "conv2d_pack", .doc = "The weight of a conv2d_block of the same attributes as bytes, in the form that is fastest for inference.",
  .inputs = "weight", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_HALF, .dtypes = ITEMS,
  RSI_USES_ATTRS(conv2d_pack), .infer = conv2d_pack_infer, .kernels = conv2d_pack_kernels, .samples = conv2d_pack_samples,
};

const rs_op rsi_op_conv2d_block_data = {
  .name = "conv2d_block_data", .doc = "Gradient of conv2d_block's convolution with respect to x, plus bias when there is one (then "
                                      "it is the transposed convolution).",
  .inputs = "grad,weight,bias?", .nin_min = 2, .nin_max = 3, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_HALF, .dtypes = ITEMS,
  RSI_USES_ATTRS(conv2d_block_data), .infer = conv2d_block_data_infer, .kernels = conv2d_block_data_kernels,
  .samples = conv2d_block_data_samples,
};

const rs_op rsi_op_conv2d_block_weight = {
  .name = "conv2d_block_weight", .doc = "Gradient of conv2d_block's convolution with respect to weight, plain f32.", .inputs = "x,grad",
  .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_HALF, .dtypes = ITEMS,
  RSI_USES_ATTRS(conv2d_block_weight), .infer = conv2d_block_weight_infer, .kernels = conv2d_block_weight_kernels,
  .samples = conv2d_block_weight_samples,
};
