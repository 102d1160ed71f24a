/*
** Recomputation: what one cheap op makes of a value that lives on anyway is not kept from forward to backward, but made again where
** it is read next. GELU's result, say, beside the value that GELU's gradient needs.
*/
#include "program/internal.h"

enum { LARGE = 1 << 20 };      /* bytes that are worth making again */

/* Element-wise with one input of the same size and no choice of its own. */
static bool cheap(const rs_program *p, const rsi_facts *f, const rsi_instr *i) {
  if (!i->kernel || i->inplace || i->nout != 1 || !(i->op->traits & RSI_T_ELEMENTWISE) || (i->op->traits & RSI_T_RANDOM)) return false;
  if (i->op == &rsi_op_copy || i->op == &rsi_op_cast || i->ids[0] < 0 || i->writes[0]) return false;
  for (int a = 1; a < i->nin; a++)
    if (i->ids[a] >= 0) return false;
  const int out = i->ids[i->nin];
  if (rsi_is_outside(p, out) || f->written[rsi_base_of(p, out)] || f->written[rsi_base_of(p, i->ids[0])]) return false;
  double bytes = (double)rsi_dtype_size[p->values[out].desc.dtype];
  for (int d = 0; d < p->values[out].desc.ndim; d++) bytes *= (double)p->values[out].desc.shape[d];
  return bytes >= LARGE;
}

/* The last reader before the longest rest of value `base` (views included) that is at least a quarter of the program; -1. */
static int long_rest(const rs_program *p, int base, int from) {
  int before = from, at = -1, longest = p->ninstrs / 4;
  for (int k = from + 1; k < p->ninstrs; k++) {
    const rsi_instr *const i = &p->instrs[k];
    bool reads = false;
    for (int a = 0; a < i->nin && i->kernel; a++) reads |= i->ids[a] >= 0 && rsi_base_of(p, i->ids[a]) == base;
    if (!reads) continue;
    if (k - before > longest) at = before, longest = k - before;
    before = k;
  }
  return at;
}

static int last_reader(const rs_program *p, int base) {
  for (int k = p->ninstrs - 1; k >= 0; k--)
    for (int a = 0; a < p->instrs[k].nin && p->instrs[k].kernel; a++)
      if (p->instrs[k].ids[a] >= 0 && rsi_base_of(p, p->instrs[k].ids[a]) == base) return k;
  return -1;
}

/* What one instruction makes is made again for its readers after instruction `after`. */
typedef struct repeat {
  rsi_instr was;               /* its arrays stay valid while the edit lasts */
  int       after;
  bool      done;
} repeat;

/* Only whole values are followed: a view that was taken early keeps the early value. */
static rs_status rewrite(rs_program *p, repeat *list, int n) {
  rsi_edit e;
  RSI_TRY(rsi_edit_begin(p, &e));
  for (int k = 0; k < e.nold && e.status == RS_OK; k++) {
    const rsi_instr *const i = &e.old[k];
    for (int a = 0; a < i->nin; a++)
      for (int m = 0; m < n; m++) {
        repeat *const r = &list[m];
        const int id = r->was.ids[r->was.nin];
        int out = -1;
        if (r->done || k <= r->after || i->ids[a] != id) continue;
        r->done = true;
        if (rsi_edit_emit(&e, rsi_number_of(r->was.op), r->was.attrs, r->was.nin, r->was.ids, 1, &out)) rsi_edit_set(&e, id, out);
      }
    rsi_edit_keep(&e, k);
  }
  return rsi_edit_end(&e);
}

rs_status rsi_pass_remat(rs_program *p) {
  rsi_facts f;
  void *block;
  int count = 0;
  const size_t bytes = sizeof(repeat) * (size_t)p->ninstrs + 1;
  RSI_TRY(rsi_facts_make(p, &f));
  rs_status status = rsi_alloc(p->heap, bytes, &block);
  if (status == RS_OK) {
    repeat *const list = block;
    for (int k = 0; k < p->ninstrs; k++) {
      const rsi_instr *const i = &p->instrs[k];
      if (!cheap(p, &f, i)) continue;
      const int out = i->ids[i->nin], rest = long_rest(p, out, k);
      if (rest >= 0 && last_reader(p, rsi_base_of(p, i->ids[0])) >= last_reader(p, out)) list[count++] = (repeat){.was = *i, .after = rest};
    }
    if (count > 0) status = rewrite(p, list, count);
    rsi_free(p->heap, block, bytes);
  }
  rsi_facts_free(p, &f);
  return status;
}
