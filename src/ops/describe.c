/* The op table as data, for the Lua binding, the documentation and the tests. */
#include "ops/op.h"
#include <string.h>

#define TAKE_OP(o, number)                                                                                                  \
  RSI_CHECK((number) >= 0 && (number) < RSI_OPS, RS_ERR_ARG, "there is no op number %d", number);                            \
  const rs_op *const o = rsi_ops[number]

int rs_op_count(void) { return RSI_OPS; }

rs_status rs_op_describe(int op, rs_op_info *out) {
  TAKE_OP(o, op);
  memset(out, 0, sizeof *out);
  out->name = o->name;
  out->doc = o->doc;
  out->inputs = o->inputs ? o->inputs : "";
  out->nin_min = o->nin_min;
  out->nin_max = o->nin_max;
  out->nout = o->nout;
  out->nout_public = o->nout_public ? o->nout_public : o->nout;
  out->nattrs = o->nattrs;
  out->attrs_size = o->attrs_size;
  out->has_grad = o->grad != NULL;
  out->traits = o->traits;
  out->dtypes = o->dtypes;
  if (o->samples)
    while (o->samples[out->nsamples].inputs) out->nsamples++;
  if (o->kernels)
    while (o->kernels[out->nkernels].name) out->nkernels++;
  return RS_OK;
}

rs_status rs_op_attr(int op, int index, rs_attr_info *out) {
  TAKE_OP(o, op);
  RSI_CHECK(index >= 0 && index < o->nattrs, RS_ERR_ARG, "%s has no attribute number %d", o->name, index);
  const rsi_attr *const a = &o->attrs[index];
  const bool counts = a->kind == RS_ATTR_DIM || a->kind == RS_ATTR_DIMS || a->kind == RS_ATTR_INDEX;
  const bool list = a->kind == RS_ATTR_DIMS || a->kind == RS_ATTR_SHAPE || a->kind == RS_ATTR_INTS;
  *out = (rs_attr_info){a->name, a->doc, a->kind, list ? RS_MAX_DIMS : 1, a->offset, counts, a->def, a->min, a->max, a->choices};
  return RS_OK;
}

rs_status rs_op_sample(int op, int index, rs_sample_info *out) {
  rs_op_info info;
  TAKE_OP(o, op);
  RSI_TRY(rs_op_describe(op, &info));
  RSI_CHECK(index >= 0 && index < info.nsamples, RS_ERR_ARG, "%s has no sample number %d", o->name, index);
  const rsi_sample *const s = &o->samples[index];
  *out = (rs_sample_info){s->inputs, s->attrs, s->tolerance, s->no_grad};
  return RS_OK;
}

const char *rs_op_kernel(int op, int index, int *backend) {
  rs_op_info info;
  if (rs_op_describe(op, &info) != RS_OK || index < 0 || index >= info.nkernels) return NULL;
  *backend = rsi_ops[op]->kernels[index].backend;
  return rsi_ops[op]->kernels[index].name;
}
