/*
** Single assignment: what an instruction writes in place into a temporary becomes a value of its own, so that other passes need
** not think about order. Views of the temporary that are read later are taken again, of the new value. The memory plan gives the
** place back.
*/
#include "program/internal.h"
#include <string.h>

typedef struct ssa {
  rs_program *p;
  rsi_edit    e;
  rsi_instr  *was;             /* [nold] the instructions: a view that was kept must be found again. Their ids are rewritten by then */
  int        *base, *def;      /* [nmap] of the old program; def of views only, -1 */
  int        *of;              /* [nmap] of a view: the old value that it was taken of */
  int        *writes;          /* [nmap] of a base: splits so far */
  int        *seen;            /* [nmap] of a view: splits of its base when it was taken last */
} ssa;

/* Makes a view show what its base holds now. */
static void refresh(ssa *s, int id) {
  if (id < 0 || s->def[id] < 0 || s->seen[id] == s->writes[s->base[id]]) return;
  const rsi_instr *const view = &s->was[s->def[id]];
  int out = -1;
  refresh(s, s->of[id]);
  s->seen[id] = s->writes[s->base[id]];
  if (rsi_edit_emit(&s->e, rsi_number_of(view->op), view->attrs, 1, &s->of[id], 1, &out)) rsi_edit_set(&s->e, id, out);
  else if (s->e.status == RS_OK) s->e.status = rsi_fail(RS_ERR_STATE, "ssa: %s could not be taken again", view->op->name);
}

static bool splits(const ssa *s, const rsi_instr *i) {
  if (!i->inplace || i->nout != 1 || s->base[i->ids[0]] != i->ids[0] || s->p->values[i->ids[0]].kind != RSI_V_TEMP) return false;
  for (int a = 1; a < i->nin; a++)
    if (i->writes[a]) return false;
  return true;
}

static void walk(ssa *s) {
  for (int k = 0; k < s->e.nold && s->e.status == RS_OK; k++) {
    const rsi_instr *const i = &s->e.old[k];
    const int target = i->nin > 0 ? i->ids[0] : -1;
    for (int a = 0; a < i->nin; a++) refresh(s, i->ids[a]);
    if (!i->kernel) {
      s->def[i->ids[i->nin]] = k;
      s->of[i->ids[i->nin]] = target;
      s->seen[i->ids[i->nin]] = s->writes[s->base[i->ids[i->nin]]];
    }
    int out = -1;
    if (splits(s, i) && rsi_edit_emit(&s->e, rsi_number_of(i->op), i->attrs, i->nin, i->ids, 1, &out)) {
      rsi_edit_set(&s->e, target, out);
      s->writes[target]++;
    } else rsi_edit_keep(&s->e, k);
  }
  for (int o = 0; o < s->p->noutputs; o++) refresh(s, s->p->outputs[o]);
}

rs_status rsi_pass_ssa(rs_program *p) {
  ssa s = {.p = p};
  void *block;
  const size_t n = (size_t)p->nvalues, m = (size_t)p->ninstrs, bytes = m * sizeof(rsi_instr) + 5 * n * sizeof(int) + 1;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  memset(block, 0, bytes);
  s.was = block;
  s.base = (int *)(s.was + m);
  s.def = s.base + n, s.writes = s.def + n, s.seen = s.writes + n, s.of = s.seen + n;
  for (size_t i = 0; i < n; i++) s.base[i] = p->values[i].base, s.def[i] = -1;
  if (m) memcpy(s.was, p->instrs, m * sizeof(rsi_instr));
  rs_status status = rsi_edit_begin(p, &s.e);
  if (status == RS_OK) {
    walk(&s);
    status = rsi_edit_end(&s.e);
  }
  rsi_free(p->heap, block, bytes);
  return status;
}
