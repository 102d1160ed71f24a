/*
** A matrix product and a sum in one sweep, for programs: out = a b + residual. It accumulates gradients of weights and joins the
** gradient that came around a layer to the one that came through it. The bits are those of matmul and add.
** The kernel reads a and b by their strides, and programs make use of it; the dispatcher, which would have to copy a strided residual,
** gives contiguous ones.
*/
#include "ops/product.h"

enum { A, B, RESIDUAL };

/* The dimensions before the last as rows: their number and stride. False when no single stride steps through them. */
static bool rows_of(const rs_tensor *t, int64_t *rows, int64_t *stride) {
  *rows = 1;
  *stride = 0;
  for (int i = t->ndim - 2; i >= 0; i--) {
    if (t->shape[i] == 1) continue;
    if (*rows == 1) *stride = t->strides[i];
    else if (t->strides[i] != *rows * *stride) return false;
    *rows *= t->shape[i];
  }
  return true;
}

static rs_status matmul_add_infer(rsi_call *c) {
  const rs_tensor *const a = c->in[A], *const b = c->in[B], *const r = c->in[RESIDUAL];
  rsi_desc *const d = &c->desc[0];
  int64_t rows, stride;
  RSI_CHECK(a->ndim >= 2 && b->ndim == 2 && a->shape[a->ndim - 1] == b->shape[0], RS_ERR_SHAPE, "inputs %s and %s do not fit",
            rsi_text(a), rsi_text(b));
  RSI_CHECK(a->dtype == b->dtype && a->dtype == r->dtype, RS_ERR_DTYPE, "the inputs are %s, %s and %s; cast them to one dtype",
            rs_dtype_name(a->dtype), rs_dtype_name(b->dtype), rs_dtype_name(r->dtype));
  RSI_CHECK(rows_of(a, &rows, &stride), RS_ERR_UNSUPPORTED, "the rows of the first input do not lie at equal distances");
  rsi_desc_of(a, d);
  d->shape[d->ndim - 1] = b->shape[1];
  bool same = r->ndim == d->ndim && rsi_is_contiguous(r);
  for (int i = 0; same && i < d->ndim; i++) same = r->shape[i] == d->shape[i];
  RSI_CHECK(same, RS_ERR_SHAPE, "residual %s must be contiguous and of the shape of the result, %s", rsi_text(r),
            rsi_shape_text(d->ndim, d->shape));
  return RS_OK;
}

static size_t matmul_add_scratch(const rsi_call *c) {
  int64_t rows, stride;
  rows_of(c->in[A], &rows, &stride);
  return rsi_product_scratch(c->x, c->in[A]->dtype, rows, c->in[B]->shape[1], c->in[B]->shape[0]);
}

static rs_status matmul_add_run(const rsi_call *c) {
  const rs_tensor *const a = c->in[A], *const b = c->in[B];
  const int64_t n = b->shape[1], k = b->shape[0];
  const rsi_gemm_end end = {.act = RSI_ACT_NONE, .residual = c->in[RESIDUAL]->data, .stride = n};
  int64_t rows, stride;
  rows_of(a, &rows, &stride);
  rsi_product_end(c->x, a->dtype, rows, n, k, a->data, stride, k == 1 ? 1 : a->strides[a->ndim - 1], b->data, b->strides[0],
                  b->strides[1], 0, c->out[0]->data, n, &end, c->scratch);
  return RS_OK;
}

static const rsi_kernel matmul_add_kernels[] = {
  {"tiled", RSI_PORTABLE, RSI_FLOATS, NULL, matmul_add_scratch, matmul_add_run}, {0}};
static const rsi_sample matmul_add_samples[] = {
  {"f5x7,f7x3,f5x3", NULL, 0, 1}, {"f2x3x7,f7x33,f2x3x33", NULL, 0, 1}, {"f64x8,f8x64,f64x64", NULL, 0, 1}, {"f1x9,f9x1,f1x1", NULL, 0, 1},
  {"f0x7,f7x3,f0x3", NULL, 0, 1}, {"f4x0,f0x3,f4x3", NULL, 0, 1}, {"f200x90,f90x270,f200x270", NULL, 0, 1}, {0}};

const rs_op rsi_op_matmul_add = {
  .name = "matmul_add", .doc = "out = a b + residual for a matrix b; the leading dimensions of a are rows.", .inputs = "a,b,residual",
  .nin_min = 3, .nin_max = 3, .nout = 1, .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS,
  .infer = matmul_add_infer, .kernels = matmul_add_kernels, .samples = matmul_add_samples,
};
