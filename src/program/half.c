/*
** bf16: in a program that asks for it, large products read their operands in bf16 and sum in f32; results stay f32. Operands are
** narrowed where they are made, below the views that products read through, so each is narrowed once; weights that stand still are
** narrowed, and packed, in the prologue. Convolutions are the layout pass' business.
*/
#include "program/fuse.h"
#include <string.h>

enum { WORTH = 1 << 18 };      /* multiplications of a product that pay for narrowing its operands */

typedef struct half {
  rs_program *p;
  rsi_edit    e;
  rsi_facts   f;
  rsi_instr  *was;             /* [nold] the instructions as they were, also those that were kept (moved) already */
  int        *narrow;          /* [nmap] the bf16 twin of a value; -1 */
  int        *when;            /* [nmap] the instruction for which that was made */
  int         k;               /* the instruction at hand */
  const bool *fixed;           /* [nmap] of bases */
} half;

/* `out`: the value that it defines, -1: a new one */
static int cast(half *h, int id, int dtype, int out) {
  rsi_attr_set a;
  rsi_attrs_of(RS_OP_cast, &a);
  rsi_attrs_int(&a, "dtype", dtype);
  return rsi_edit_emit(&h->e, RS_OP_cast, a.bytes, 1, &id, 1, &out) ? out : -1;
}

static int cast_to(half *h, int id) { return cast(h, id, RS_BF16, -1); }

/* The value of the old program in bf16. */
static int narrowed(half *h, int id) {
  if (h->p->values[id].desc.dtype == RS_BF16) return rsi_edit_id(&h->e, id);
  const bool written = h->f.written[rsi_base_of(h->p, id)];
  if (h->narrow[id] >= 0 && !(written && rsi_written_between(h->p, h->was, id, h->when[id], h->k))) return h->narrow[id];
  h->when[id] = h->k;
  if (written) return h->narrow[id] = cast_to(h, id);
  const int k = h->f.def[id];
  int out = -1;
  if (k >= 0 && (!h->was[k].kernel || (h->was[k].op == &rsi_op_copy && !h->was[k].inplace))) {
    const rsi_instr *const move = &h->was[k];      /* a view or a copy */
    const int of = narrowed(h, move->ids[0]);
    if (of >= 0 && !rsi_edit_emit(&h->e, rsi_number_of(move->op), move->attrs, 1, &of, 1, &out)) out = -1;
  }
  if (out < 0) out = cast_to(h, id);
  h->narrow[id] = out;
  return out;
}

static double elements(const rsi_desc *d, int from, int to) {
  double n = 1;
  for (int i = from; i < to; i++) n *= (double)d->shape[i];
  return n;
}

static bool product(half *h, const rsi_instr *i) {
  const rsi_desc a = h->p->values[i->ids[0]].desc, b = h->p->values[i->ids[1]].desc;
  if (a.dtype != RS_F32 || b.dtype != RS_F32 || a.ndim < 2 || b.ndim < 2) return false;
  if (elements(&a, 0, a.ndim) * (double)b.shape[b.ndim - 1] < WORTH) return false;
  rsi_attr_set at;
  const bool adds = i->op == &rsi_op_matmul_acc;
  const int op = adds ? RS_OP_matmul_acc : RS_OP_matmul;
  int in[3] = {narrowed(h, i->ids[0]), narrowed(h, i->ids[1]), adds ? rsi_edit_id(&h->e, i->ids[2]) : -1}, out = adds ? -1 : i->ids[i->nin];
  rsi_attrs_of(op, &at);
  rsi_attrs_from(&at, i);
  rsi_attrs_int(&at, "dtype", RS_F32);
  return in[0] >= 0 && in[1] >= 0 && rsi_edit_emit(&h->e, op, at.bytes, adds ? 3 : 2, in, adds ? 0 : 1, &out);
}

/* The weight of a linear map: packed when it stands still, else narrowed. */
static int weight_of(half *h, int w, bool *packed) {
  const int k = h->f.def[w];
  const int plain = k >= 0 && h->was[k].op == &rsi_op_linear_pack ? h->was[k].ids[0] : w;
  *packed = h->fixed[rsi_base_of(h->p, plain)];
  if (!*packed) return narrowed(h, plain);
  if (h->narrow[w] >= 0) return h->narrow[w];
  rsi_attr_set a;
  int out = -1;
  const int from = rsi_edit_id(&h->e, plain);
  rsi_attrs_of(RS_OP_linear_pack, &a);
  rsi_attrs_int(&a, "dtype", RS_BF16);
  if (!rsi_edit_emit(&h->e, RS_OP_linear_pack, a.bytes, 1, &from, 1, &out)) return -1;
  return h->narrow[w] = out;
}

static bool linear(half *h, const rsi_instr *i) {
  const int x = i->ids[0], out = i->ids[i->nin];
  const rsi_desc dx = h->p->values[x].desc, dy = h->p->values[out].desc;
  if (dx.dtype != RS_F32 || dy.dtype != RS_F32 || elements(&dx, 0, dx.ndim) * (double)dy.shape[dy.ndim - 1] < WORTH) return false;
  rsi_attr_set a;
  bool packed;
  int in[4] = {-1, weight_of(h, i->ids[1], &packed), i->nin > 2 ? rsi_edit_id(&h->e, i->ids[2]) : -1, i->nin > 3 ? rsi_edit_id(&h->e, i->ids[3]) : -1};
  int y = out;
  if (in[1] < 0) return false;
  in[0] = narrowed(h, x);
  rs_tensor t;
  if (in[0] < 0) return false;
  rsi_phantom(h->p, in[0], &t);
  if (!rsi_is_contiguous(&t)) {
    const int strided = in[0];
    in[0] = -1;
    if (!rsi_edit_emit(&h->e, RS_OP_copy, NULL, 1, &strided, 1, &in[0])) return false;
  }
  rsi_attrs_of(RS_OP_linear_act, &a);
  rsi_attrs_from(&a, i);
  rsi_attrs_int(&a, "dtype", RS_F32);
  if (packed) {
    rsi_attrs_int(&a, "out_features", dy.shape[dy.ndim - 1]);
    rsi_attrs_int(&a, "in_features", dx.shape[dx.ndim - 1]);
    rsi_attrs_int(&a, "weight_dtype", RS_BF16);
  }
  return rsi_edit_emit(&h->e, RS_OP_linear_act, a.bytes, 4, in, 1, &y);
}

/*
** Attention that its kernel takes in bf16: its result is bf16 and is widened for those who want f32; lse and the gradients are f32.
** Where the kernel does not, the casts stay without reader and go.
*/
static bool attention(half *h, const rsi_instr *i) {
  const bool back = i->op == &rsi_op_attention_backward;
  const int first = back ? 1 : 0, plain = back ? 5 : 3, mask = back ? 7 : 3;
  int in[8], out[4] = {-1, -1, -1, -1};
  if (h->p->values[i->ids[first]].desc.dtype != RS_F32 || (i->nin > mask && i->ids[mask] >= 0)) return false;
  for (int a = 0; a < i->nin; a++) in[a] = i->ids[a] >= 0 && a >= plain ? rsi_edit_id(&h->e, i->ids[a]) : -1;
  for (int a = 0; a < plain; a++)
    if ((in[a] = narrowed(h, i->ids[a])) < 0) return false;
  for (int j = back ? 0 : 1; j < i->nout; j++) out[j] = i->ids[i->nin + j];
  rsi_attr_set a;
  rsi_attrs_of(rsi_number_of(i->op), &a);
  rsi_attrs_from(&a, i);
  rsi_attrs_int(&a, "dtype", RS_F32);
  if (!rsi_edit_emit(&h->e, rsi_number_of(i->op), a.bytes, i->nin, in, i->nout, out)) return false;
  if (back) return true;
  const int wide = i->ids[i->nin];
  h->narrow[wide] = out[0];
  return cast(h, out[0], RS_F32, wide) >= 0;
}

static bool lower(half *h, const rsi_instr *i) {
  if (i->op == &rsi_op_scaled_dot_product_attention || i->op == &rsi_op_attention_backward) return attention(h, i);
  if (i->op == &rsi_op_matmul || i->op == &rsi_op_matmul_acc) return product(h, i);
  return (i->op == &rsi_op_linear || i->op == &rsi_op_linear_act) && linear(h, i);
}

rs_status rsi_pass_half(rs_program *p) {
  half h = {.p = p};
  void *block;
  if (!p->half) return RS_OK;
  RSI_TRY(rsi_facts_make(p, &h.f));
  const size_t n = (size_t)p->nvalues, m = (size_t)p->ninstrs, bytes = m * sizeof(rsi_instr) + n * (2 * sizeof(int) + 1) + 1;
  rs_status status = rsi_alloc(p->heap, bytes, &block);
  if (status == RS_OK) {
    h.was = block;
    h.narrow = (int *)(h.was + m);
    memcpy(h.was, p->instrs, m * sizeof(rsi_instr));
    h.when = h.narrow + n;
    bool *const fixed = (bool *)(h.when + n);
    memset(h.narrow, -1, n * sizeof(int));
    rsi_fixed(p, &h.f, fixed);
    h.fixed = fixed;
    status = rsi_edit_begin(p, &h.e);
    if (status == RS_OK) {
      for (int k = 0; k < h.e.nold && h.e.status == RS_OK; k++) {
        h.k = k;
        if (!lower(&h, &h.e.old[k])) rsi_edit_keep(&h.e, k);
      }
      status = rsi_edit_end(&h.e);
    }
    rsi_free(p->heap, block, bytes);
  }
  rsi_facts_free(p, &h.f);
  return status;
}
