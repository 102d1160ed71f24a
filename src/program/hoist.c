/*
** The prologue: instructions that depend on bindings alone (folded weights, packed weights, constants) move to the front. A
** workspace runs them once, and again when one of the bindings that they read was written.
*/
#include "program/internal.h"

static bool is_fixed(const rs_program *p, const rsi_facts *f, const bool *fixed, const rsi_instr *i) {
  if (i->inplace || i->marks || (i->op->traits & RSI_T_RANDOM)) return false;
  for (int k = 0; k < i->nin; k++)
    if (i->ids[k] >= 0 && (i->writes[k] || !fixed[rsi_base_of(p, i->ids[k])])) return false;
  for (int j = 0; j < i->nout; j++) {
    const int base = rsi_base_of(p, i->ids[i->nin + j]);
    if (i->kernel && (rsi_is_outside(p, base) || f->written[base])) return false;
  }
  return true;
}

static void find(const rs_program *p, const rsi_facts *f, bool *fixed, bool *moves) {
  for (int id = 0; id < p->nvalues; id++) fixed[id] = p->values[id].kind == RSI_V_BOUND && !f->written[id];
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const i = &p->instrs[k];
    const bool moving = is_fixed(p, f, fixed, i);
    if (moves) moves[k] = moving;
    for (int j = 0; j < i->nout && moving; j++) fixed[rsi_base_of(p, i->ids[i->nin + j])] = true;
  }
}

void rsi_fixed(const rs_program *p, const rsi_facts *f, bool *fixed) { find(p, f, fixed, NULL); }

rs_status rsi_pass_hoist(rs_program *p) {
  rsi_facts f;
  rsi_edit e;
  void *block;
  const size_t bytes = (size_t)p->nvalues + (size_t)p->ninstrs + 1;
  RSI_TRY(rsi_facts_make(p, &f));
  rs_status status = rsi_alloc(p->heap, bytes, &block);
  if (status == RS_OK) {
    bool *const fixed = block, *const moves = fixed + p->nvalues;    /* of bases; of instructions */
    find(p, &f, fixed, moves);
    status = rsi_edit_begin(p, &e);
    if (status == RS_OK) {
      for (int k = 0; k < e.nold; k++)
        if (moves[k]) rsi_edit_keep(&e, k);
      p->nprologue = p->ninstrs;
      for (int k = 0; k < e.nold; k++)
        if (!moves[k]) rsi_edit_keep(&e, k);
      status = rsi_edit_end(&e);
    }
    rsi_free(p->heap, block, bytes);
  }
  rsi_facts_free(p, &f);
  return status;
}
