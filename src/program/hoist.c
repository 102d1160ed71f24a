/*
** The prologue: instructions that depend on bindings alone (folded weights, packed weights, constants) move to the front. A
** workspace runs them once, and again when one of the bindings that they read was written.
*/
#include "program/internal.h"
#include <string.h>

static bool fixed(const rs_program *p, const rsi_facts *f, const bool *early, const rsi_instr *i) {
  if (i->inplace || i->marks || (i->op->traits & RSI_T_RANDOM)) return false;
  for (int k = 0; k < i->nin; k++) {
    const int id = i->ids[k], base = id < 0 ? -1 : rsi_base_of(p, id);
    if (id < 0) continue;
    if (i->writes[k] || f->written[base]) return false;
    if (p->values[base].kind != RSI_V_BOUND && !early[base]) return false;
  }
  for (int j = 0; j < i->nout; j++) {
    const int base = rsi_base_of(p, i->ids[i->nin + j]);
    if (i->kernel && (rsi_is_outside(p, base) || f->written[base])) return false;
  }
  return true;
}

rs_status rsi_pass_hoist(rs_program *p) {
  rsi_facts f;
  rsi_edit e;
  void *block;
  const size_t bytes = (size_t)p->nvalues + (size_t)p->ninstrs + 1;
  RSI_TRY(rsi_facts_make(p, &f));
  rs_status status = rsi_alloc(p->heap, bytes, &block);
  if (status == RS_OK) {
    memset(block, 0, bytes);
    bool *const early = block, *const moves = early + p->nvalues;    /* of bases; of instructions */
    for (int k = 0; k < p->ninstrs; k++) {
      const rsi_instr *const i = &p->instrs[k];
      moves[k] = fixed(p, &f, early, i);
      for (int j = 0; j < i->nout && moves[k]; j++) early[rsi_base_of(p, i->ids[i->nin + j])] = true;
    }
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
