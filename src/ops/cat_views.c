/*
** Tensors behind each other like cat, but read as they lie, with any strides; for programs, where the gradients of the parts of a
** tensor come back as views. With merge, dimensions dim and dim + 1 of each part are one dimension of the result.
*/
#include "ops/op.h"

#define CAT_VIEWS_ATTRS(F, T)                                                                                                \
  F(T, INT, dim, 0, 0, 7, NULL, "the dimension along which the parts follow each other")                                     \
  F(T, BOOL, merge, 0, 0, 1, NULL, "it and the next dimension of a part are one in the result")            \
  F(T, DTYPE, dtype, -1, -1, RS_DTYPES - 1, NULL, "of the result: bf16 for f32 parts; not given: that of the parts")
RSI_ATTRS(cat_views, CAT_VIEWS_ATTRS)

static rs_status cat_views_infer(rsi_call *c) {
  const cat_views_attrs *const a = RSI_ATTR(c, cat_views);
  const int dim = (int)a->dim, merge = a->merge != 0;
  rsi_desc *const d = &c->desc[0];
  for (int i = 0; i < c->nin; i++) {
    const rs_tensor *const t = c->in[i];
    RSI_CHECK(t && t->ndim == c->in[0]->ndim && t->dtype == c->in[0]->dtype && dim + merge < t->ndim, RS_ERR_SHAPE,
              "part %d is missing or does not fit the first", i);
    if (i == 0) {
      rsi_desc_of(t, d);
      d->shape[dim] = 0;
    }
    for (int k = 0; k < t->ndim; k++)
      RSI_CHECK(k == dim || t->shape[k] == c->in[0]->shape[k], RS_ERR_SHAPE, "part %d %s does not fit the first, %s", i, rsi_text(t),
                rsi_text(c->in[0]));
    d->shape[dim] += t->shape[dim];
  }
  if (a->dtype >= 0) {
    RSI_CHECK(a->dtype == d->dtype || (d->dtype == RS_F32 && a->dtype == RS_BF16), RS_ERR_DTYPE, "parts of %s cannot become %s",
              rs_dtype_name(d->dtype), rs_dtype_name((int)a->dtype));
    d->dtype = (int)a->dtype;
  }
  if (!merge) return RS_OK;
  d->shape[dim] *= d->shape[dim + 1];
  for (int k = dim + 1; k + 1 < d->ndim; k++) d->shape[k] = d->shape[k + 1];
  d->ndim--;
  return RS_OK;
}

typedef struct job { rsi_nest nest; rsi_row_fn row; } job;

static void run_range(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  rsi_nest_run(&j->nest, first, last, j->row, NULL);
}

static rs_status cat_views_run(const rsi_call *c) {
  const cat_views_attrs *const a = RSI_ATTR(c, cat_views);
  const int dim = (int)a->dim;
  const rs_tensor *const out = c->out[0];
  const size_t item = rsi_item_size(out);
  char *to = out->data;
  if (out->numel == 0) return RS_OK;
  for (int i = 0; i < c->nin; i++) {
    rs_tensor *const part = c->in[i];
    rs_tensor there = {.dtype = out->dtype, .ndim = part->ndim, .numel = part->numel, .data = to};   /* the part's place in the result */
    int64_t stride = 1;
    for (int k = part->ndim - 1; k >= 0; k--) {
      there.shape[k] = part->shape[k];
      there.strides[k] = stride;
      stride *= k == dim ? (a->merge ? out->shape[dim] / part->shape[dim + 1] : out->shape[dim]) : part->shape[k];
    }
    if (part->numel == 0) continue;
    to += (size_t)(part->shape[dim] * there.strides[dim]) * item;
    const rsi_k_cast *const k = c->x->k->elementwise->cast;
    job j = {.row = part->dtype == out->dtype ? k->copy[rsi_size_index(out->dtype)] : k->cast[part->dtype][out->dtype]};
    rs_tensor *const operands[2] = {&there, part};
    rsi_nest_make(&j.nest, operands, 2);
    rsi_parallel(c->x, j.nest.numel, 0.3, run_range, &j);
  }
  return RS_OK;
}

static const cat_views_attrs along_1 = {1, 0, -1}, merged_1 = {1, 1, -1}, merged_0 = {0, 1, -1};
static const rsi_kernel cat_views_kernels[] = {{"rows", RSI_PORTABLE, RSI_ANY, NULL, NULL, cat_views_run}, {0}};
static const rsi_sample cat_views_samples[] = {
  {"f2x3,f2x1,f2x0", &along_1, 0, 1}, {"f7,f4", NULL, 0, 1}, {"f2x3x5,f2x2x5", &merged_1, 0, 1}, 
  {"f2x4x3x33,f2x1x3x33,f2x4x3x33", &merged_1, 0, 1},
  {"f3x7,f1x7", &merged_0, 0, 1}, {"f0x3,f0x2", &along_1, 0, 1}, {"f9x64x40,f9x70x40", &along_1, 0, 1}, {0}};

const rs_op rsi_op_cat_views = {
  .name = "cat_views", .doc = "Parts behind each other along a dimension, read as they lie.", .inputs = "tensors...", .nin_min = 1,
  .nin_max = RSI_VARIADIC, .nout = 1, .traits = RSI_T_INTERNAL | RSI_T_STRIDED, .dtypes = RSI_ANY, RSI_USES_ATTRS(cat_views),
  .infer = cat_views_infer, .kernels = cat_views_kernels, .samples = cat_views_samples,
};
