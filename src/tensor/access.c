/*
** What a user does to one tensor: making it, and reading and writing its elements as doubles in row-major order, the slow and
** general way that printing, tests and `item` use.
*/
#include "ctx.h"
#include "autograd/autograd.h"
#include "program/program.h"
#include <string.h>

rs_status rs_tensor_empty(rs_ctx *ctx, int dtype, int ndim, const int64_t *shape, rs_tensor **out) {
  rsi_desc desc = {.dtype = dtype, .ndim = ndim};
  *out = NULL;
  RSI_CHECK(dtype >= 0 && dtype < RS_DTYPES, RS_ERR_DTYPE, "empty: there is no dtype number %d", dtype);
  RSI_CHECK(ndim >= 0 && ndim <= RS_MAX_DIMS, RS_ERR_SHAPE, "empty: %d dimensions; a tensor has at most %d", ndim, RS_MAX_DIMS);
  for (int i = 0; i < ndim; i++) desc.shape[i] = shape[i];
  const rs_status status = rsi_tensor_new(ctx->x.heap, &desc, out);
  return status == RS_OK ? RS_OK : rsi_fail_prefix(status, "empty");
}

static float from_bf16(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

static double from_f16(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double sign = h >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? (double)__builtin_nanf("") : sign * (double)__builtin_inff();
  if (exponent == 0) return sign * mantissa * 0x1p-24;
  return sign * (1024 + mantissa) * (exponent >= 25 ? (double)(1 << (exponent - 25)) : 1.0 / (double)(1 << (25 - exponent)));
}

static uint16_t to_bf16(double v) {
  const float f = (float)v;
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static uint16_t to_f16(double v) {
  const float f = (float)v;
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {                       /* subnormal: the value in units of 2^-24, to nearest even */
    const double unit = (double)f * 0x1p24;
    return (uint16_t)(sign | (uint32_t)__builtin_rint(unit < 0 ? -unit : unit));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

static double load_any(int dtype, const void *p) {
  switch (dtype) {
    case RS_F32: return (double)*(const float *)p;
    case RS_F64: return *(const double *)p;
    case RS_BF16: return (double)from_bf16(*(const uint16_t *)p);
    case RS_F16: return from_f16(*(const uint16_t *)p);
    case RS_I64: return (double)*(const int64_t *)p;
    case RS_I32: return (double)*(const int32_t *)p;
    case RS_U8: return (double)*(const uint8_t *)p;
    default: return *(const uint8_t *)p != 0 ? 1.0 : 0.0;
  }
}

/* One NaN for all: a Lua whose values are tagged NaNs would take some of the others for something else, nil for example. */
static double load(int dtype, const void *p) {
  const double v = load_any(dtype, p);
  return __builtin_isnan(v) ? __builtin_nan("") : v;
}

static int64_t to_integer(double v, int64_t low, int64_t high) {
  if (!(v > (double)low)) return low;
  return v >= (double)high ? high : (int64_t)v;
}

static void store(int dtype, void *p, double v) {
  switch (dtype) {
    case RS_F32: *(float *)p = (float)v; break;
    case RS_F64: *(double *)p = v; break;
    case RS_BF16: *(uint16_t *)p = to_bf16(v); break;
    case RS_F16: *(uint16_t *)p = to_f16(v); break;
    case RS_I64: *(int64_t *)p = to_integer(v, INT64_MIN, INT64_MAX); break;
    case RS_I32: *(int32_t *)p = (int32_t)to_integer(v, INT32_MIN, INT32_MAX); break;
    case RS_U8: *(uint8_t *)p = (uint8_t)to_integer(v, 0, 255); break;
    default: *(uint8_t *)p = v != 0.0; break;
  }
}

typedef struct walk { int dtype; double *out; const double *in; } walk;

static void read_row(int64_t n, char *const *data, const int64_t *strides, const void *arg) {
  walk *const w = (walk *)(uintptr_t)arg;
  for (int64_t i = 0; i < n; i++) *w->out++ = load(w->dtype, data[0] + i * strides[0]);
}

static void write_row(int64_t n, char *const *data, const int64_t *strides, const void *arg) {
  walk *const w = (walk *)(uintptr_t)arg;
  for (int64_t i = 0; i < n; i++) store(w->dtype, data[0] + i * strides[0], *w->in++);
}

static rs_status refuse_while_recording(const rs_ctx *ctx, const char *what) {
  RSI_CHECK(!ctx->trace, RS_ERR_STATE,
            "%s: a value cannot be read or written from outside while a program is recorded: it would be frozen into it; let the "
            "recorded function return the tensor and look at that", what);
  return RS_OK;
}

static rs_status check_values(const rs_tensor *t, const char *what) {
  RSI_CHECK(!(t->flags & RSI_PHANTOM), RS_ERR_STATE,
            "%s: this tensor was made while a program was recorded, so it has a shape but no values; only what the recorded function "
            "returns has values", what);
  return RS_OK;
}

rs_status rs_tensor_item(rs_ctx *ctx, const rs_tensor *t, double *out) {
  RSI_TRY(refuse_while_recording(ctx, "item"));
  RSI_TRY(check_values(t, "item"));
  RSI_CHECK(t->numel == 1, RS_ERR_SHAPE, "item: a tensor of shape %s has %lld elements; only one with a single element is a number",
            rsi_text(t), (long long)t->numel);
  *out = load(t->dtype, t->data);
  return RS_OK;
}

rs_status rs_tensor_read(rs_ctx *ctx, const rs_tensor *t, double *out) {
  rsi_nest nest;
  walk w = {t->dtype, out, NULL};
  rs_tensor *const operand = (rs_tensor *)(uintptr_t)t;
  RSI_TRY(refuse_while_recording(ctx, "reading values (print, totable)"));
  RSI_TRY(check_values(t, "read"));
  rsi_nest_make(&nest, &operand, 1);
  rsi_nest_run(&nest, 0, t->numel, read_row, &w);
  return RS_OK;
}

rs_status rs_tensor_write(rs_ctx *ctx, rs_tensor *t, const double *values) {
  rsi_nest nest;
  walk w = {t->dtype, NULL, values};
  if (rsi_trace_knows(ctx, t)) RSI_TRY(refuse_while_recording(ctx, "write"));      /* a new tensor becomes a constant */
  RSI_TRY(check_values(t, "write"));
  RSI_CHECK(!ctx->grad_enabled || !t->node, RS_ERR_GRAD,
            "write: a tensor that requires a gradient is written under no_grad only");
  RSI_CHECK(!rsi_overlaps_itself(t), RS_ERR_STATE, "write: an expanded tensor cannot be written; clone it first");
  rsi_nest_make(&nest, &t, 1);
  rsi_nest_run(&nest, 0, t->numel, write_row, &w);
  rsi_wrote(t, "write");
  return RS_OK;
}

rs_status rs_tensor_set_data(rs_ctx *ctx, rs_tensor *t, rs_tensor *source) {
  RSI_TRY(refuse_while_recording(ctx, "set_data"));
  RSI_TRY(check_values(source, "set_data"));
  RSI_CHECK(!t->node || rsi_node_is_leaf(t->node), RS_ERR_GRAD, "set_data: only a leaf can take other data");
  RSI_CHECK(!t->node || rsi_is_float(source->dtype), RS_ERR_DTYPE, "set_data: %s data for a tensor that requires a gradient",
            rs_dtype_name(source->dtype));
  rsi_node *const former = t->node;      /* a graph made with the old data keeps the old leaf */
  if (former) {
    t->node = NULL;
    const rs_status status = rs_tensor_set_requires_grad(ctx, t, 1);
    if (status != RS_OK) {
      t->node = former;
      return status;
    }
    rsi_node_release(former);
  }
  rsi_tensor_move(t, source->storage);
  t->data = source->data;
  t->dtype = source->dtype;
  t->ndim = source->ndim;
  t->numel = source->numel;
  t->flags = (uint8_t)((t->flags & RSI_WITH_STORAGE) | (source->flags & RSI_CONTIGUOUS) | RSI_VIEW);
  t->view_version = source->storage->version;
  memcpy(t->shape, source->shape, sizeof t->shape);
  memcpy(t->strides, source->strides, sizeof t->strides);
  return RS_OK;
}
