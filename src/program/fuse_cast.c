/* A cast to a wider float type and back again is what it was made of; so is a cast that changes nothing. */
#include "program/fuse.h"

/* Does every number of dtype `a` exist in dtype `b`? */
static bool holds_all(int a, int b) {
  return a == b || (b == RS_F64 && (a == RS_F32 || rsi_is_half(a))) || (b == RS_F32 && rsi_is_half(a));
}

/* The value that instruction k gives back, -1: none. */
static int given_back(const rs_program *p, const rsi_facts *f, const rsi_uses *u, int k) {
  const rsi_instr *const i = &p->instrs[k];
  if (i->op != &rsi_op_cast || i->inplace || !i->kernel) return -1;
  const int out = i->ids[1], dtype = p->values[out].desc.dtype;
  int from = i->ids[0];
  if (!rsi_is_plain(p, f, out) || u->result[out]) return -1;
  if (p->values[from].desc.dtype != dtype) {
    const int def = rsi_is_plain(p, f, from) ? f->def[from] : -1;
    if (def < 0 || p->instrs[def].op != &rsi_op_cast) return -1;
    const int wide = p->values[from].desc.dtype;
    from = p->instrs[def].ids[0];
    if (p->values[from].desc.dtype != dtype || !holds_all(dtype, wide)) return -1;
  }
  return f->written[rsi_base_of(p, from)] || !rsi_value_is_contiguous(p, from) || !rsi_value_is_contiguous(p, out) ? -1 : from;
}

static rs_status rewrite(rs_program *p, const rsi_facts *f, const rsi_uses *u) {
  rsi_edit e;
  void *block;
  const size_t bytes = sizeof(int) * (size_t)p->ninstrs + 1;
  bool any = false;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  int *const from = block;
  for (int k = 0; k < p->ninstrs; k++) any |= (from[k] = given_back(p, f, u, k)) >= 0;
  rs_status status = any ? rsi_edit_begin(p, &e) : RS_OK;
  if (any && status == RS_OK) {
    for (int k = 0; k < e.nold && e.status == RS_OK; k++) {
      if (from[k] >= 0) rsi_edit_map(&e, e.old[k].ids[1], from[k]);
      else rsi_edit_keep(&e, k);
    }
    status = rsi_edit_end(&e);
  }
  rsi_free(p->heap, block, bytes);
  return status == RS_OK && any ? rsi_pass_clean(p) : status;
}

rs_status rsi_pass_casts(rs_program *p) {
  rsi_facts f;
  rsi_uses u;
  RSI_TRY(rsi_facts_make(p, &f));
  rs_status status = rsi_uses_make(p, &u);
  if (status == RS_OK) {
    status = rewrite(p, &f, &u);
    rsi_uses_free(p, &u);
  }
  rsi_facts_free(p, &f);
  return status;
}
