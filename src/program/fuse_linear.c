/*
** A linear map with the activation and the sum that follow it becomes linear_act, a product with a sum matmul_add: the sum and the
** activation are done while a block of the product lies in the cache. A product that is added in place to a gradient becomes
** matmul_acc. A weight that does not change between runs is packed once.
*/
#include "program/fuse.h"
#include "kernels/gemm_end.h"
#include <string.h>

enum { PACKED_ROWS = 8 };              /* with fewer rows reading the weight is all there is to do, as it lies or packed; bf16 halves it */

typedef struct linear {
  rs_program *p;
  rsi_facts   f;
  rsi_uses    u;
  bool       *fixed;                   /* [nvalues] */
  int        *tail;                    /* [ninstrs] of the first instruction of a group: the plan; of its others: -2; else -1 */
  struct group *groups;
  int         ngroups;
} linear;

/* first: the product; act and sum: what follows it, -1: nothing; at: where the whole is emitted. grows: the sum is in place. */
typedef struct group { int first, act, sum, at, residual; rsi_act which; bool pack, grows; } group;

static const struct { const rs_op *op; rsi_act act; } acts[] = {
  {&rsi_op_relu, RSI_ACT_RELU}, {&rsi_op_gelu, RSI_ACT_GELU}, {&rsi_op_tanh, RSI_ACT_TANH}, {&rsi_op_sigmoid, RSI_ACT_SIGMOID},
  {&rsi_op_silu, RSI_ACT_SILU}};

static rsi_act act_of(const rsi_instr *i) {
  for (size_t n = 0; n < sizeof acts / sizeof *acts; n++)
    if (acts[n].op == i->op && !i->inplace)
      return acts[n].act == RSI_ACT_GELU && rsi_attr_int(i, "approximate") ? RSI_ACT_GELU_TANH : acts[n].act;
  return RSI_ACT_NONE;
}

static int result_of(const rsi_instr *i) { return i->ids[i->nin]; }

/* Is instruction k the sum of a matrix and value `id`, in place? Then the matrix, else -1. */
static int grown(const linear *l, int k, int id) {
  const rsi_instr *const i = &l->p->instrs[k];
  if (i->op != &rsi_op_add || !i->inplace || i->nin < 2 || i->ids[1] != id || i->ids[0] == id) return -1;
  if (rsi_attr_float(i, "alpha") != 1.0) return -1;
  return rsi_same_form(l->p, i->ids[0], id) && rsi_value_is_contiguous(l->p, i->ids[0]) ? i->ids[0] : -1;
}

static bool is_linear(const linear *l, const rsi_instr *i) {
  if (i->op != &rsi_op_linear || i->inplace) return false;
  for (int a = 0; a < i->nin; a++)
    if (i->ids[a] >= 0 && !rsi_value_is_contiguous(l->p, i->ids[a])) return false;
  return true;
}

/* A product with one matrix; whether its rows suit is asked when it is emitted. */
static bool is_product(const linear *l, const rsi_instr *i) {
  const rsi_value *const v = l->p->values;
  return i->op == &rsi_op_matmul && v[i->ids[0]].desc.ndim >= 2 && v[i->ids[1]].desc.ndim == 2;
}

/* Is it worth it to keep a packed copy of the weight? */
static bool wants_packed(const linear *l, const rsi_instr *i) {
  const rs_program *const p = l->p;
  const rsi_desc *const x = &p->values[i->ids[0]].desc;
  const int64_t rows = x->ndim > 0 && x->shape[x->ndim - 1] > 0 ? rsi_value_numel(p, i->ids[0]) / x->shape[x->ndim - 1] : 0;
  return l->fixed[rsi_base_of(p, i->ids[1])] && p->values[i->ids[1]].desc.dtype == RS_F32 && (p->half || rows >= PACKED_ROWS);
}

static void find_group(linear *l, int k) {
  const rs_program *const p = l->p;
  const rsi_instr *const i = &p->instrs[k];
  const bool map = is_linear(l, i);
  group g = {.first = k, .act = -1, .sum = -1, .at = k, .residual = -1};
  int value = i->kernel ? result_of(i) : -1, next;
  if (!map && !(i->kernel && is_product(l, i))) return;
  next = map ? rsi_only_reader(p, &l->f, &l->u, value) : -1;
  if (next > k && l->tail[next] == -1 && act_of(&p->instrs[next]) != RSI_ACT_NONE && rsi_may_move(p, k, next, value)) {
    g.which = act_of(&p->instrs[next]);
    g.act = g.at = next;
    value = result_of(&p->instrs[next]);
  }
  next = rsi_only_reader(p, &l->f, &l->u, value);
  if (next > g.at && l->tail[next] == -1 && rsi_may_move(p, k, next, result_of(i))) {
    g.residual = rsi_addend(p, &p->instrs[next], value);
    if (g.residual < 0 && !map && p->values[i->ids[0]].desc.ndim == 2) {
      g.residual = grown(l, next, value);
      g.grows = g.residual >= 0;
    }
    if (g.residual >= 0) g.sum = g.at = next;
  }
  g.pack = map && wants_packed(l, i);
  if (g.at == k && !g.pack) return;
  l->groups[l->ngroups] = g;
  l->tail[k] = -2;
  if (g.act >= 0) l->tail[g.act] = -2;
  if (g.sum >= 0) l->tail[g.sum] = -2;
  l->tail[g.at] = l->ngroups++;
}

static bool emit_linear(const linear *l, rsi_edit *e, const group *g) {
  const rsi_instr *const i = &e->old[g->first];
  rsi_attr_set attrs;
  int in[4] = {i->ids[0], i->ids[1], i->nin > 2 ? i->ids[2] : -1, g->residual}, out = result_of(&e->old[g->at]);
  rsi_attrs_of(RS_OP_linear_act, &attrs);
  rsi_attrs_int(&attrs, "act", g->which);
  if (g->pack) {
    const rsi_desc w = e->p->values[in[1]].desc;
    const int dtype = l->p->half ? RS_BF16 : RS_F32;
    rsi_attr_set pack;
    int packed = -1;
    rsi_attrs_of(RS_OP_linear_pack, &pack);
    rsi_attrs_int(&pack, "dtype", dtype);
    if (rsi_edit_emit(e, RS_OP_linear_pack, pack.bytes, 1, &in[1], 1, &packed)) {
      rsi_attr_set with = attrs;
      rsi_attrs_int(&with, "out_features", w.shape[0]);
      rsi_attrs_int(&with, "in_features", w.shape[1]);
      rsi_attrs_int(&with, "weight_dtype", dtype);
      const int operands[4] = {in[0], packed, in[2], in[3]};
      if (rsi_edit_emit(e, RS_OP_linear_act, with.bytes, 4, operands, 1, &out)) return true;
    }
  }
  return g->at != g->first && rsi_edit_emit(e, RS_OP_linear_act, attrs.bytes, 4, in, 1, &out);
}

static bool emit_product(rsi_edit *e, const group *g) {
  const rsi_instr *const i = &e->old[g->first];
  const int in[3] = {i->ids[0], i->ids[1], g->residual};
  int out = result_of(&e->old[g->at]);
  if (g->grows) {
    const int base = rsi_base_of(e->p, in[2]);
    return base != rsi_base_of(e->p, in[0]) && base != rsi_base_of(e->p, in[1]) && rsi_edit_emit(e, RS_OP_matmul_acc, NULL, 3, in, 0, NULL);
  }
  return rsi_edit_emit(e, RS_OP_matmul_add, NULL, 3, in, 1, &out);
}

static void rewrite(const linear *l, rsi_edit *e) {
  for (int k = 0; k < e->nold && e->status == RS_OK; k++) {
    if (l->tail[k] == -1) rsi_edit_keep(e, k);
    if (l->tail[k] < 0) continue;
    const group *const g = &l->groups[l->tail[k]];
    if (e->old[g->first].op == &rsi_op_linear ? emit_linear(l, e, g) : emit_product(e, g)) continue;
    rsi_edit_keep(e, g->first);
    if (g->act >= 0) rsi_edit_keep(e, g->act);
    if (g->sum >= 0) rsi_edit_keep(e, g->sum);
  }
}

static rs_status run(rs_program *p, linear *l) {
  rsi_edit e;
  void *block;
  const size_t n = (size_t)p->ninstrs, bytes = n * (sizeof(group) + sizeof(int)) + (size_t)p->nvalues + 1;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  l->groups = block;
  l->tail = (int *)(l->groups + n);
  l->fixed = (bool *)(l->tail + n);
  memset(l->tail, -1, n * sizeof(int));
  rsi_fixed(p, &l->f, l->fixed);
  for (int k = 0; k < p->ninstrs; k++)
    if (l->tail[k] == -1) find_group(l, k);
  rs_status status = rsi_edit_begin(p, &e);
  if (status == RS_OK) {
    rewrite(l, &e);
    status = rsi_edit_end(&e);
  }
  rsi_free(p->heap, block, bytes);
  return status;
}

rs_status rsi_pass_linear(rs_program *p) {
  linear l = {.p = p};
  RSI_TRY(rsi_facts_make(p, &l.f));
  rs_status status = rsi_uses_make(p, &l.u);
  if (status == RS_OK) {
    status = run(p, &l);
    rsi_uses_free(p, &l.u);
  }
  rsi_facts_free(p, &l.f);
  return status;
}
