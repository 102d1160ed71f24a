/*
** Clean-up: instructions whose results nobody sees are dropped, repeated ones done once, copies that nobody tells apart from
** their source left out. What draws random numbers stays: the sequence is part of what a program does.
*/
#include "program/internal.h"
#include <string.h>

/* May the instruction be left out when its results are available elsewhere? */
static bool pure(const rs_program *p, const rsi_facts *f, const rsi_instr *i) {
  if (i->inplace || i->marks || (i->op->traits & RSI_T_RANDOM)) return false;
  for (int k = 0; k < i->nin; k++) {
    if (i->writes[k]) return false;
    if (i->kernel && i->ids[k] >= 0 && f->written[rsi_base_of(p, i->ids[k])]) return false;
  }
  for (int j = 0; j < i->nout; j++) {
    const int id = i->ids[i->nin + j];
    if (i->kernel && (p->values[id].kind != RSI_V_TEMP || f->written[id])) return false;
  }
  return true;
}

/* ---- repeated instructions -------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t v) { return (h ^ v) * 0x9E3779B97F4A7C15u ^ h >> 29; }

static uint64_t hash_of(const rsi_instr *i) {
  uint64_t h = mix(1469598103934665603u, (uint64_t)(uintptr_t)i->op);
  for (int k = 0; k < i->nin; k++) h = mix(h, (uint64_t)(uint32_t)i->ids[k]);
  const unsigned char *const a = i->attrs;
  for (int k = 0; k < i->op->attrs_size; k++) h = mix(h, a[k]);
  return h;
}

static bool same(const rsi_instr *a, const rsi_instr *b) {
  return a->op == b->op && a->nin == b->nin && memcmp(a->ids, b->ids, sizeof(int) * (size_t)a->nin) == 0 &&
         (a->op->attrs_size == 0 || memcmp(a->attrs, b->attrs, (size_t)a->op->attrs_size) == 0);
}

/* A copy of a value that is never written, into one that is never written. */
static bool idle_copy(const rs_program *p, const rsi_facts *f, const rsi_instr *i) {
  if (i->op != &rsi_op_copy || rsi_is_outside(p, i->ids[1]) || f->written[rsi_base_of(p, i->ids[0])]) return false;
  const rsi_value *const from = &p->values[i->ids[0]], *const to = &p->values[i->ids[1]];
  for (int d = 0; d < to->desc.ndim; d++)
    if (to->desc.shape[d] != 1 && from->strides[d] != to->strides[d]) return false;
  return true;
}

static rs_status once(rs_program *p, const rsi_facts *f) {
  rsi_edit e;
  void *block;
  size_t slots = 64;
  while (slots < 2 * (size_t)p->ninstrs) slots *= 2;
  RSI_TRY(rsi_alloc(p->heap, slots * sizeof(int), &block));
  int *const table = block;            /* number of a new instruction + 1 */
  memset(table, 0, slots * sizeof(int));
  rs_status status = rsi_edit_begin(p, &e);
  for (int k = 0; status == RS_OK && k < e.nold && e.status == RS_OK; k++) {
    rsi_instr *const i = &e.old[k];
    for (int a = 0; a < i->nin; a++) i->ids[a] = rsi_edit_id(&e, i->ids[a]);
    if (!pure(p, f, i)) {
      rsi_edit_keep(&e, k);
      continue;
    }
    if (idle_copy(p, f, i)) {
      rsi_edit_map(&e, i->ids[1], i->ids[0]);
      continue;
    }
    size_t at = (size_t)hash_of(i) & (slots - 1);
    while (table[at] && !same(&p->instrs[table[at] - 1], i)) at = (at + 1) & (slots - 1);
    if (table[at]) {
      const rsi_instr *const first = &p->instrs[table[at] - 1];
      for (int j = 0; j < i->nout; j++) rsi_edit_map(&e, i->ids[i->nin + j], first->ids[first->nin + j]);
      continue;
    }
    rsi_edit_keep(&e, k);
    if (e.status == RS_OK) table[at] = p->ninstrs;
  }
  if (status == RS_OK) status = rsi_edit_end(&e);
  rsi_free(p->heap, block, slots * sizeof(int));
  return status;
}

/* ---- dead instructions ------------------------------------------------------------------------------------------------ */

static bool needed(const rs_program *p, const bool *live, const bool *used, const rsi_instr *i) {
  if (i->marks || (i->op->traits & RSI_T_RANDOM)) return true;
  if (!i->kernel) return used[i->ids[i->nin]];
  for (int k = 0; k < i->nin; k++)
    if (i->writes[k] && live[rsi_base_of(p, i->ids[k])]) return true;
  for (int j = 0; j < i->nout && !i->inplace; j++) {
    const int id = i->ids[i->nin + j];
    if (live[rsi_base_of(p, id)] || p->values[rsi_base_of(p, id)].kind != RSI_V_TEMP) return true;
  }
  return false;
}

static rs_status drop_dead(rs_program *p) {
  rsi_edit e;
  void *block;
  const size_t n = (size_t)p->nvalues, bytes = 2 * n + (size_t)p->ninstrs + 1;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  memset(block, 0, bytes);
  bool *const live = block, *const used = live + n, *const alive = used + n;   /* of bases; of values; of instructions */
  for (int i = 0; i < p->noutputs; i++) live[rsi_base_of(p, p->outputs[i])] = used[p->outputs[i]] = true;
  for (int k = p->ninstrs - 1; k >= 0; k--) {
    const rsi_instr *const i = &p->instrs[k];
    if (!needed(p, live, used, i)) continue;
    alive[k] = true;
    for (int a = 0; a < i->nin; a++)
      if (i->ids[a] >= 0) live[rsi_base_of(p, i->ids[a])] = used[i->ids[a]] = true;
  }
  rs_status status = rsi_edit_begin(p, &e);
  if (status == RS_OK) {
    for (int k = 0; k < e.nold; k++)
      if (alive[k]) rsi_edit_keep(&e, k);
    status = rsi_edit_end(&e);
  }
  rsi_free(p->heap, block, bytes);
  return status;
}

rs_status rsi_pass_clean(rs_program *p) {
  rsi_facts f;
  RSI_TRY(rsi_facts_make(p, &f));
  const rs_status status = once(p, &f);
  rsi_facts_free(p, &f);
  RSI_TRY(status);
  return drop_dead(p);
}
