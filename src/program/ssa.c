/*
** Single assignment: what an instruction writes in place into a temporary that is nobody's view becomes a value of its own, so
** that other passes need not think about order. The memory plan gives the place back.
*/
#include "program/internal.h"
#include <string.h>

rs_status rsi_pass_ssa(rs_program *p) {
  rsi_edit e;
  void *block;
  const size_t bytes = (size_t)p->nvalues + 1;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  bool *const seen = block;            /* of a base: a view of it exists */
  memset(seen, 0, bytes);
  for (int i = 0; i < p->nvalues; i++)
    if (p->values[i].base != i) seen[p->values[i].base] = true;
  rs_status status = rsi_edit_begin(p, &e);
  for (int k = 0; status == RS_OK && k < e.nold && e.status == RS_OK; k++) {
    rsi_instr *const i = &e.old[k];
    const int target = i->nin > 0 ? i->ids[0] : -1;
    bool split = i->inplace && i->nout == 1 && p->values[target].kind == RSI_V_TEMP && !seen[target];
    for (int a = 1; a < i->nin; a++) split &= !i->writes[a];
    if (!split) {
      rsi_edit_keep(&e, k);
      continue;
    }
    int out = -1, number = 0;
    while (rsi_ops[number] != i->op) number++;
    if (rsi_edit_emit(&e, number, i->attrs, i->nin, i->ids, 1, &out)) rsi_edit_set(&e, target, out);
    else rsi_edit_keep(&e, k);
  }
  if (status == RS_OK) status = rsi_edit_end(&e);
  rsi_free(p->heap, block, bytes);
  return status;
}
