/*
** Folding: a convolution followed by a batch norm with given statistics, as in evaluation, is a convolution with other weights:
**   weight' = weight * s, bias' = bias_n + (bias_c - mean) s,  s = weight_n / sqrt(var + eps) for each filter.
** The arithmetic on weights is emitted as ordinary instructions over bindings, so it moves into the prologue and follows later
** changes of the weights.
*/
#include "program/fuse.h"

enum { X, WEIGHT, BIAS, MEAN, VAR };

/* Is i a batch norm whose factor and shift for each channel do not change between runs, and of which only y is read? */
static bool constant_norm(const rs_program *p, const rsi_facts *f, const bool *fixed, const rsi_instr *i) {
  if (i->op != &rsi_op_batch_norm || rsi_attr_int(i, "training") || i->marks) return false;
  if (f->uses[i->ids[i->nin + 1]] || f->uses[i->ids[i->nin + 2]]) return false;
  for (int a = WEIGHT; a <= VAR; a++)
    if (i->ids[a] >= 0 && !fixed[rsi_base_of(p, i->ids[a])]) return false;
  return i->ids[MEAN] >= 0 && i->ids[VAR] >= 0;
}

/* The convolution that makes the input of the norm at `at`, if nothing else reads it and its weights are fixed; else -1. */
static int conv_before(const rs_program *p, const rsi_facts *f, const bool *fixed, int at) {
  const int x = p->instrs[at].ids[X], k = f->def[x];
  if (k < 0 || f->uses[x] != 1 || rsi_is_outside(p, x) || f->written[rsi_base_of(p, x)] || !rsi_may_move(p, k, at, x)) return -1;
  const rsi_instr *const conv = &p->instrs[k];
  if (conv->op != &rsi_op_conv2d || !fixed[rsi_base_of(p, conv->ids[1])]) return -1;
  return conv->ids[2] < 0 || fixed[rsi_base_of(p, conv->ids[2])] ? k : -1;
}

static bool emit2(rsi_edit *e, int op, int a, int b, int *out) {
  const int in[2] = {a, b};
  *out = -1;
  return rsi_edit_emit(e, op, NULL, 2, in, 1, out);
}

/* s and bias' of a norm whose input has the bias `bias` (-1: none). */
static bool factors(rsi_edit *e, const rsi_instr *norm, int bias, int *s, int *shift) {
  rsi_attr_set add;
  int t = -1, zero = -1;
  rsi_attrs_of(RS_OP_add, &add);
  rsi_attrs_float(&add, "scalar", rsi_attr_float(norm, "eps"));
  const int var[2] = {norm->ids[VAR], -1};
  *s = -1;
  if (!rsi_edit_emit(e, RS_OP_add, add.bytes, 2, var, 1, &t) || !rsi_edit_emit(e, RS_OP_rsqrt, NULL, 1, &t, 1, s)) return false;
  if (norm->ids[WEIGHT] >= 0) {
    if (!emit2(e, RS_OP_mul, *s, norm->ids[WEIGHT], &t)) return false;
    *s = t;
  }
  if (bias >= 0) {
    if (!emit2(e, RS_OP_sub, bias, norm->ids[MEAN], &zero)) return false;
  } else if (!rsi_edit_emit(e, RS_OP_neg, NULL, 1, &norm->ids[MEAN], 1, &zero)) return false;
  if (!emit2(e, RS_OP_mul, zero, *s, shift)) return false;
  if (norm->ids[BIAS] >= 0) {
    if (!emit2(e, RS_OP_add, *shift, norm->ids[BIAS], &t)) return false;
    *shift = t;
  }
  return true;
}

static bool fold(rsi_edit *e, const rsi_instr *conv, const rsi_instr *norm) {
  rs_program *const p = e->p;
  const int64_t filters = p->values[conv->ids[1]].desc.shape[0], column[4] = {filters, 1, 1, 1};
  rsi_attr_set shape;
  int s, shift, wide = -1, weight, y = norm->ids[norm->nin];
  if (!factors(e, norm, conv->ids[2], &s, &shift)) return false;
  rsi_attrs_of(RS_OP_reshape, &shape);
  rsi_attrs_sizes(&shape, "shape", 4, column);
  if (!rsi_edit_emit(e, RS_OP_reshape, shape.bytes, 1, &s, 1, &wide) || !emit2(e, RS_OP_mul, conv->ids[1], wide, &weight)) return false;
  const int in[3] = {conv->ids[0], weight, shift};
  return rsi_edit_emit(e, RS_OP_conv2d, conv->attrs, 3, in, 1, &y);
}

rs_status rsi_pass_fold(rs_program *p) {
  rsi_facts f;
  rsi_edit e;
  void *block;
  const size_t bytes = (size_t)p->nvalues + sizeof(int) * (size_t)p->ninstrs + 1;
  RSI_TRY(rsi_facts_make(p, &f));
  rs_status status = rsi_alloc(p->heap, bytes, &block);
  if (status == RS_OK) {
    int *const conv = block;             /* of a norm: the convolution before it, or -1; of that convolution: -2 */
    bool *const fixed = (bool *)(conv + p->ninstrs);
    rsi_fixed(p, &f, fixed);
    for (int k = 0; k < p->ninstrs; k++) {
      conv[k] = constant_norm(p, &f, fixed, &p->instrs[k]) ? conv_before(p, &f, fixed, k) : -1;
      if (conv[k] >= 0) conv[conv[k]] = -2;
    }
    status = rsi_edit_begin(p, &e);
    if (status == RS_OK) {
      for (int k = 0; k < e.nold; k++) {
        if (conv[k] == -2) continue;
        if (conv[k] >= 0 && fold(&e, &e.old[conv[k]], &e.old[k])) continue;
        if (conv[k] >= 0) rsi_edit_keep(&e, conv[k]);
        rsi_edit_keep(&e, k);
      }
      status = rsi_edit_end(&e);
    }
    rsi_free(p->heap, block, bytes);
  }
  rsi_facts_free(p, &f);
  return status;
}
