/*
** An affine map with what follows it: y = act(x weight^T + bias) + residual; and the packing of a weight for many such calls.
**
** A packed weight is a u8 tensor in the panels of kernels/gemm.h, f32 or bf16. All leading dimensions of x are rows. What is not
** of the dtype that is computed in (f32; f64 when x is) is converted into scratch memory first, the result last.
*/
#include "ops/half.h"
#include "ops/product.h"
#include "base/lanes.h"

enum { X, WEIGHT, BIAS, RESIDUAL, OPERANDS };

#define LINEAR_ACT_ATTRS(F, T)                                                                                              \
  F(T, ENUM, act, RSI_ACT_NONE, 0, RSI_ACT_LAST, RSI_ACT_CHOICES, "what is applied to the sum")                             \
  F(T, DTYPE, dtype, -1, -1, RS_DTYPES - 1, NULL, "the dtype of the result; not given: that of x")                          \
  F(T, INT, out_features, 0, 0, RSI_BIG, NULL, "rows of a packed weight")                                                   \
  F(T, INT, in_features, 0, 0, RSI_BIG, NULL, "columns of a packed weight")                                                 \
  F(T, DTYPE, weight_dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "what a packed weight holds: f32 or bf16")
RSI_ATTRS(linear_act, LINEAR_ACT_ATTRS)

#define LINEAR_PACK_ATTRS(F, T) F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "what the packed weight holds: f32 or bf16")
RSI_ATTRS(linear_pack, LINEAR_PACK_ATTRS)

static bool packs_into(int64_t dtype) { return dtype == RS_F32 || dtype == RS_BF16; }
static int64_t packed_bytes(int64_t n, int64_t k, int64_t dtype) {
  return rsi_panels(n) * rsi_panel_size(k, dtype == RS_BF16) * (dtype == RS_BF16 ? 2 : 4);
}

/* ---- the call ---------------------------------------------------------------------------------------------------------- */

/* What a call computes, and where each part lies in scratch memory. */
typedef struct task {
  const rsi_exec *x;
  int     dtype;                     /* computed in */
  bool    packed, bf16;              /* the weight */
  bool    half;                      /* x and the weight are bf16: rsi_half_product */
  int64_t m, n, k;
  size_t  at[OPERANDS], out, bytes;  /* offsets of converted operands and of the result before it is converted */
  bool    convert[OPERANDS], narrow; /* which there are */
  const void *in[OPERANDS];
  void   *y;
  rsi_gemm_end end;
} task;

static rsi_half half_of(const task *t, const rsi_call *c) {
  return (rsi_half){.m = t->m, .n = t->n, .k = t->k, .a = t->in[X], .b = t->in[WEIGHT], .ars = t->k, .acs = 1, .brs = 1, .bcs = t->k,
                    .packed = t->packed, .c = t->y, .ldc = t->n, .c_bf16 = c->desc[0].dtype == RS_BF16, .end = t->end,
                    .residual_bf16 = c->in[RESIDUAL] && c->in[RESIDUAL]->dtype == RS_BF16};
}

static void make_task(task *t, const rsi_call *c) {
  const linear_act_attrs *const a = RSI_ATTR(c, linear_act);
  const rs_tensor *const x = c->in[X], *const w = c->in[WEIGHT];
  const rsi_desc *const y = &c->desc[0];
  *t = (task){.x = c->x, .dtype = x->dtype == RS_F64 ? RS_F64 : RS_F32, .packed = w->dtype == RS_U8,
              .bf16 = a->weight_dtype == RS_BF16};
  t->n = y->shape[y->ndim - 1];
  t->k = x->shape[x->ndim - 1];
  t->m = 1;
  for (int i = 0; i < y->ndim - 1; i++) t->m *= y->shape[i];
  t->end.act = (rsi_act)a->act;
  t->end.stride = t->n;
  const size_t item = rsi_dtype_size[t->dtype];
  t->half = x->dtype == RS_BF16 && (y->dtype == RS_BF16 || y->dtype == RS_F32) && (t->packed ? t->bf16 : w->dtype == RS_BF16);
  if (t->half) {
    const rsi_half h = half_of(t, c);
    t->bytes = rsi_lane_round(rsi_half_scratch(c->x, &h));
  } else if (!t->packed) t->bytes = rsi_lane_round(rsi_product_scratch(c->x, t->dtype, t->m, t->n, t->k));
  for (int i = 0; i < OPERANDS; i++) {
    if (!c->in[i] || c->in[i]->dtype == t->dtype || (i == WEIGHT && t->packed)) continue;
    if (t->half && (i == X || i == WEIGHT || c->in[i]->dtype == (i == RESIDUAL ? RS_BF16 : RS_F32))) continue;
    t->convert[i] = true;
    t->at[i] = t->bytes;
    t->bytes += rsi_lane_round((size_t)c->in[i]->numel * item);
  }
  t->narrow = y->dtype != t->dtype && !t->half;
  t->out = t->bytes;
  if (t->narrow) t->bytes += rsi_lane_round((size_t)(t->m * t->n) * item);
}

typedef struct conversion { rsi_row_fn row; char *to; const char *from; int64_t to_size, from_size; } conversion;

static void convert_range(void *arg, int64_t first, int64_t last) {
  const conversion *const v = arg;
  char *const data[2] = {v->to + first * v->to_size, (char *)(uintptr_t)v->from + first * v->from_size};
  const int64_t strides[2] = {v->to_size, v->from_size};
  v->row(last - first, data, strides, NULL);
}

static void convert(const rsi_exec *x, int64_t n, int from_dtype, const void *from, int to_dtype, void *to) {
  conversion v = {x->k->elementwise->cast->cast[from_dtype][to_dtype], to, from, (int64_t)rsi_dtype_size[to_dtype],
                  (int64_t)rsi_dtype_size[from_dtype]};
  rsi_parallel(x, n, 0.15, convert_range, &v);
}

/* ---- linear_act --------------------------------------------------------------------------------------------------------- */

static size_t linear_act_scratch(const rsi_call *c) {
  task t;
  make_task(&t, c);
  return t.m == 0 || t.n == 0 ? 0 : t.bytes;
}

static rs_status linear_act_run(const rsi_call *c) {
  task t;
  make_task(&t, c);
  if (t.m == 0 || t.n == 0) return RS_OK;
  char *const scratch = c->scratch;
  for (int i = 0; i < OPERANDS; i++) {
    if (!c->in[i]) continue;
    t.in[i] = c->in[i]->data;
    if (!t.convert[i]) continue;
    convert(c->x, c->in[i]->numel, c->in[i]->dtype, t.in[i], t.dtype, scratch + t.at[i]);
    t.in[i] = scratch + t.at[i];
  }
  t.end.bias = t.in[BIAS];
  t.end.residual = t.in[RESIDUAL];
  t.y = t.narrow ? scratch + t.out : c->out[0]->data;
  if (t.half) {
    const rsi_half h = half_of(&t, c);
    rsi_half_product(c->x, &h, scratch);
  } else if (t.packed) rsi_product_panels(c->x, t.m, t.n, t.k, t.in[X], t.k, t.in[WEIGHT], t.bf16, t.y, t.n, &t.end);
  else rsi_product_end(c->x, t.dtype, t.m, t.n, t.k, t.in[X], t.k, 1, t.in[WEIGHT], 1, t.k, 0, t.y, t.n, &t.end, scratch);
  if (t.narrow) convert(c->x, t.m * t.n, t.dtype, t.y, c->out[0]->dtype, c->out[0]->data);
  return RS_OK;
}

static rs_status check_operand(const rs_tensor *t, const char *name, const rs_tensor *x) {
  RSI_CHECK(!t || (rsi_is_float(t->dtype) && (t->dtype == RS_F64) == (x->dtype == RS_F64)), RS_ERR_DTYPE,
            "%s is %s but the input is %s; cast one of them", name, rs_dtype_name(t->dtype), rs_dtype_name(x->dtype));
  return RS_OK;
}

static rs_status weight_size(const rsi_call *c, int64_t *n, int64_t *k) {
  const linear_act_attrs *const a = RSI_ATTR(c, linear_act);
  const rs_tensor *const x = c->in[X], *const w = c->in[WEIGHT];
  if (w->dtype != RS_U8) {
    RSI_CHECK(w->ndim == 2, RS_ERR_SHAPE, "weight %s must have two dimensions [out, in]", rsi_text(w));
    *n = w->shape[0];
    *k = w->shape[1];
    return check_operand(w, "weight", x);
  }
  RSI_CHECK(x->dtype != RS_F64, RS_ERR_DTYPE, "a packed weight holds f32 or bf16, but the input is f64");
  RSI_CHECK(packs_into(a->weight_dtype), RS_ERR_DTYPE, "weight_dtype is %s, but a packed weight holds f32 or bf16",
            rs_dtype_name((int)a->weight_dtype));
  *n = a->out_features;
  *k = a->in_features;
  RSI_CHECK(w->ndim == 1 && *n <= INT32_MAX && *k <= INT32_MAX && w->shape[0] == packed_bytes(*n, *k, a->weight_dtype), RS_ERR_SHAPE,
            "weight %s is not what linear_pack makes of a %s weight [%lld, %lld]", rsi_text(w), rs_dtype_name((int)a->weight_dtype),
            (long long)*n, (long long)*k);
  return RS_OK;
}

static rs_status linear_act_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[X], *const bias = c->in[BIAS], *const residual = c->in[RESIDUAL];
  const int64_t dtype = RSI_ATTR(c, linear_act)->dtype;
  rsi_desc *const d = &c->desc[0];
  int64_t n = 0, k = 0;
  RSI_CHECK(x->ndim > 0, RS_ERR_SHAPE, "the input has no dimensions, but the last one must hold the features");
  RSI_TRY(weight_size(c, &n, &k));
  RSI_CHECK(x->shape[x->ndim - 1] == k, RS_ERR_SHAPE, "input %s has %lld features but the weight [%lld, %lld] expects %lld",
            rsi_text(x), (long long)x->shape[x->ndim - 1], (long long)n, (long long)k, (long long)k);
  RSI_TRY(check_operand(bias, "bias", x));
  RSI_CHECK(!bias || (bias->ndim == 1 && bias->shape[0] == n), RS_ERR_SHAPE, "bias %s must have shape [%lld], one number for each feature",
            rsi_text(bias), (long long)n);
  rsi_desc_of(x, d);
  d->shape[x->ndim - 1] = n;
  if (dtype >= 0) d->dtype = (int)dtype;
  RSI_CHECK(rsi_is_float(d->dtype) && (d->dtype == RS_F64) == (x->dtype == RS_F64), RS_ERR_DTYPE, "the result cannot be %s when x is %s",
            rs_dtype_name(d->dtype), rs_dtype_name(x->dtype));
  RSI_TRY(check_operand(residual, "residual", x));
  if (!residual) return RS_OK;
  bool same = residual->ndim == d->ndim;
  for (int i = 0; same && i < d->ndim; i++) same = residual->shape[i] == d->shape[i];
  RSI_CHECK(same, RS_ERR_SHAPE, "residual %s must have the shape of the result, %s", rsi_text(residual), rsi_shape_text(d->ndim, d->shape));
  return RS_OK;
}

static const linear_act_attrs relu = {.act = RSI_ACT_RELU, .dtype = -1}, gelu = {.act = RSI_ACT_GELU, .dtype = -1},
                              gelu_tanh = {.act = RSI_ACT_GELU_TANH, .dtype = -1}, tanh_ = {.act = RSI_ACT_TANH, .dtype = -1},
                              sigmoid = {.act = RSI_ACT_SIGMOID, .dtype = -1}, silu = {.act = RSI_ACT_SILU, .dtype = -1};
static const rsi_kernel linear_act_kernels[] = {
  {"tiled", RSI_PORTABLE, RSI_FLOATS | RSI_HALF, NULL, linear_act_scratch, linear_act_run}, {NULL, 0, 0, NULL, NULL, NULL}};
static const rsi_sample linear_act_samples[] = {
  {"f5x7,f3x7,f3,f5x3", NULL, 0, 1}, {"f5x7,f3x7", &relu, 0, 1}, {"f2x3x7,f35x7,f35,f2x3x35", &gelu, 0, 1},
  {"f7,f33x7,f33", &gelu_tanh, 0, 1}, {"f1x20,f17x20,f17", &tanh_, 0, 1}, {"f8x64,f64x64,-,f8x64", &sigmoid, 0, 1},
  {"f33x300,f70x300,f70,f33x70", &silu, 0, 1}, {"f200x90,f270x90,f270,f200x270", &gelu, 0, 1}, {"f4x0,f3x0,f3", &relu, 0, 1},
  {"f0x7,f3x7,f3", NULL, 0, 1}, {"f4x7,f0x7,f0", NULL, 0, 1}, {NULL, NULL, 0, 0}};

const rs_op rsi_op_linear_act = {
  .name = "linear_act", .doc = "out = act(x weight^T + bias) + residual, with weight [out, in] or as linear_pack makes it.",
  .inputs = "x,weight,bias?,residual?", .nin_min = 2, .nin_max = 4, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_HALF,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(linear_act), .infer = linear_act_infer, .kernels = linear_act_kernels,
  .samples = linear_act_samples};

/* ---- linear_pack -------------------------------------------------------------------------------------------------------- */

static rs_status linear_pack_infer(rsi_call *c) {
  const rs_tensor *const w = c->in[0];
  const int64_t dtype = RSI_ATTR(c, linear_pack)->dtype;
  RSI_CHECK(w->ndim == 2, RS_ERR_SHAPE, "weight %s must have two dimensions [out, in]", rsi_text(w));
  RSI_CHECK(packs_into(dtype), RS_ERR_DTYPE, "dtype is %s, but a packed weight holds f32 or bf16", rs_dtype_name((int)dtype));
  c->desc[0] = (rsi_desc){.dtype = RS_U8, .ndim = 1, .shape = {packed_bytes(w->shape[0], w->shape[1], dtype)}};
  return RS_OK;
}

static void pack_range(void *arg, int64_t first, int64_t last) {
  const rsi_call *const c = arg;
  const rs_tensor *const w = c->in[0];
  c->x->k->gemm->pack_panels(first, last, w->shape[0], w->shape[1], w->data, w->strides[1], w->strides[0],
                             RSI_ATTR(c, linear_pack)->dtype == RS_BF16, c->out[0]->data);
}

static rs_status linear_pack_run(const rsi_call *c) {
  rsi_parallel(c->x, rsi_panels(c->in[0]->shape[0]), 0.3 * (double)rsi_panel_size(c->in[0]->shape[1], false), pack_range,
               (void *)(uintptr_t)c);
  return RS_OK;
}

static const linear_pack_attrs to_bf16 = {RS_BF16};
static const rsi_kernel linear_pack_kernels[] = {{"panels", RSI_PORTABLE, RSI_F32, NULL, NULL, linear_pack_run}, {NULL, 0, 0, NULL, NULL, NULL}};
static const rsi_sample linear_pack_samples[] = {
  {"f5x7", NULL, 0, 1}, {"f64x33", NULL, 0, 1}, {"f70x9", &to_bf16, 0, 1}, {"f32x40", &to_bf16, 0, 1}, {"f0x3", NULL, 0, 1},
  {"f3x0", &to_bf16, 0, 1}, {NULL, NULL, 0, 0}};

const rs_op rsi_op_linear_pack = {
  .name = "linear_pack", .doc = "A weight [out, in] in the order in which linear_act reads it, as bytes.", .inputs = "weight", .nin_min = 1,
  .nin_max = 1, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_NONDIFF | RSI_T_STRIDED, .dtypes = RSI_F32 | RSI_HALF,
  RSI_USES_ATTRS(linear_pack), .infer = linear_pack_infer, .kernels = linear_pack_kernels, .samples = linear_pack_samples};
