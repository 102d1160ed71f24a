/* assign: the in-place copy behind t:copy_(source). Moves elements of any dtype; the source broadcasts to the target. */
#include "ops/op.h"
#include <string.h>

static rs_status assign_infer(rsi_call *c) {
  const rs_tensor *const to = c->in[0], *const from = c->in[1];
  int64_t shape[RS_MAX_DIMS];
  int ndim;
  RSI_CHECK(to->dtype == from->dtype, RS_ERR_DTYPE, "a %s tensor cannot take %s values; cast the source first",
            rs_dtype_name(to->dtype), rs_dtype_name(from->dtype));
  RSI_TRY(rsi_broadcast(to->ndim, to->shape, from->ndim, from->shape, &ndim, shape));
  RSI_CHECK(ndim == to->ndim && memcmp(shape, to->shape, sizeof(int64_t) * (size_t)ndim) == 0, RS_ERR_SHAPE,
            "a source of shape %s does not fit into %s", rsi_text(from), rsi_text(to));
  rsi_desc_of(to, &c->desc[0]);
  return RS_OK;
}

#define MOVE(bits)                                                                                                          \
  static void move##bits(int64_t n, char *const *data, const int64_t *strides, const void *arg) {                          \
    (void)arg;                                                                                                              \
    if (strides[0] == bits / 8 && strides[2] == bits / 8) {                                                                 \
      memmove(data[0], data[2], (size_t)n * (bits / 8));                                                                    \
      return;                                                                                                               \
    }                                                                                                                       \
    for (int64_t i = 0; i < n; i++)                                                                                         \
      *(uint##bits##_t *)(void *)(data[0] + i * strides[0]) = *(const uint##bits##_t *)(const void *)(data[2] + i * strides[2]); \
  }
MOVE(8)
MOVE(16)
MOVE(32)
MOVE(64)

static rs_status assign_run(const rsi_call *c) {
  switch (rsi_item_size(c->in[0])) {
    case 1: return rsi_run_rows(c, move8, NULL, 0.3);
    case 2: return rsi_run_rows(c, move16, NULL, 0.3);
    case 4: return rsi_run_rows(c, move32, NULL, 0.3);
    default: return rsi_run_rows(c, move64, NULL, 0.5);
  }
}

static void assign_grad(rsi_grad *g) {
  if (rsi_needs(g, 1)) rsi_give(g, 1, rsi_gout(g, 0));
}

static const rsi_kernel assign_kernels[] = {{"move", RSI_PORTABLE, RSI_ANY, NULL, NULL, assign_run}, {0}};
static const rsi_sample assign_samples[] = {
  {"f2x3,f2x3", NULL, 0, 0}, {"f2x3,f3", NULL, 0, 0}, {"f,f", NULL, 0, 0}, {"f0x3,f0x3", NULL, 0, 0}, {"f4x7,f", NULL, 0, 0}, {0}};

const rs_op rsi_op_assign = {
  .name = "assign", .doc = "The elements of source, repeated to the shape of target; in place it overwrites target.",
  .inputs = "target,source", .nin_min = 2, .nin_max = 2, .nout = 1,
  .traits = RSI_T_ELEMENTWISE | RSI_T_HALF | RSI_T_INTERNAL, .dtypes = RSI_ANY,
  .infer = assign_infer, .grad = assign_grad, .kernels = assign_kernels, .samples = assign_samples,
};
