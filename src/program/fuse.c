/* What the passes share that put several instructions into one. */
#include "program/fuse.h"
#include <string.h>

rs_status rsi_uses_make(const rs_program *p, rsi_uses *u) {
  const size_t n = (size_t)p->nvalues;
  size_t total = 0;
  void *block;
  for (int k = 0; k < p->ninstrs; k++) total += (size_t)p->instrs[k].nin;
  u->block = sizeof(int) * (n + 1 + total) + 2 * n + 1;
  RSI_TRY(rsi_alloc(p->heap, u->block, &block));
  memset(block, 0, u->block);
  u->start = block;
  u->list = u->start + n + 1;
  u->result = (bool *)(u->list + total);
  u->viewed = u->result + n;
  /* Counts, then sums: start[v + 1] is the end of v; filling from behind makes it the beginning, which then moves to start[v]. */
  for (int k = 0; k < p->ninstrs; k++)
    for (int a = 0; a < p->instrs[k].nin; a++)
      if (p->instrs[k].ids[a] >= 0) u->start[p->instrs[k].ids[a] + 1]++;
  for (size_t v = 0; v < n; v++) u->start[v + 1] += u->start[v];
  const int end = u->start[n];
  for (int k = p->ninstrs - 1; k >= 0; k--)
    for (int a = p->instrs[k].nin - 1; a >= 0; a--)
      if (p->instrs[k].ids[a] >= 0) u->list[--u->start[p->instrs[k].ids[a] + 1]] = k;
  memmove(u->start, u->start + 1, sizeof(int) * n);
  u->start[n] = end;
  for (int i = 0; i < p->noutputs; i++) u->result[p->outputs[i]] = true;
  for (int v = 0; v < p->nvalues; v++)
    if (p->values[v].base != v) u->viewed[p->values[v].base] = true;
  return RS_OK;
}

void rsi_uses_free(const rs_program *p, rsi_uses *u) { rsi_free(p->heap, u->start, u->block); }

bool rsi_is_plain(const rs_program *p, const rsi_facts *f, int id) {
  return id >= 0 && p->values[id].kind == RSI_V_TEMP && f->def[id] >= 0 && !f->written[id];
}

int rsi_only_reader(const rs_program *p, const rsi_facts *f, const rsi_uses *u, int id) {
  if (!rsi_is_plain(p, f, id) || u->result[id] || u->viewed[id] || rsi_use_count(u, id) != 1) return -1;
  return u->list[u->start[id]];
}

static bool writes_base(const rs_program *p, const rsi_instr *i, int base) {
  for (int a = 0; a < i->nin; a++)
    if (i->writes[a] && i->ids[a] >= 0 && rsi_base_of(p, i->ids[a]) == base) return true;
  for (int j = 0; j < i->nout; j++)
    if (i->ids[i->nin + j] >= 0 && rsi_base_of(p, i->ids[i->nin + j]) == base) return true;
  return false;
}

bool rsi_written_between(const rs_program *p, const rsi_instr *instrs, int id, int first, int last) {
  const int base = rsi_base_of(p, id);
  for (int k = first; k <= last; k++)
    if (instrs[k].kernel && writes_base(p, &instrs[k], base)) return true;
  return false;
}

static bool reads_base(const rs_program *p, const rsi_instr *i, int base, int pass) {
  for (int a = 0; a < i->nin; a++)
    if (i->ids[a] >= 0 && i->ids[a] != pass && rsi_base_of(p, i->ids[a]) == base) return true;
  return false;
}

bool rsi_may_move(const rs_program *p, int k, int where, int pass) {
  const rsi_instr *const i = &p->instrs[k];
  const int first = where < k ? where + 1 : k + 1, last = where < k ? k - 1 : where;
  for (int m = first; m <= last; m++) {
    const rsi_instr *const by = &p->instrs[m];
    for (int a = 0; a < i->nin; a++) {
      const int id = i->ids[a];
      if (id < 0) continue;
      if (by->kernel ? writes_base(p, by, rsi_base_of(p, id)) : where < k && by->ids[by->nin] == id) return false;
      if (by->kernel && i->writes[a] && reads_base(p, by, rsi_base_of(p, id), pass)) return false;
    }
    if (!by->kernel) continue;
    for (int j = 0; j < i->nout; j++) {
      const int id = i->ids[i->nin + j];
      if (id >= 0 && (reads_base(p, by, rsi_base_of(p, id), pass) || writes_base(p, by, rsi_base_of(p, id)))) return false;
    }
  }
  return true;
}

bool rsi_same_form(const rs_program *p, int a, int b) {
  const rsi_desc *const x = &p->values[a].desc, *const y = &p->values[b].desc;
  return x->dtype == y->dtype && x->ndim == y->ndim && memcmp(x->shape, y->shape, sizeof(int64_t) * (size_t)x->ndim) == 0;
}

bool rsi_value_is_contiguous(const rs_program *p, int id) {
  rs_tensor t;
  rsi_phantom(p, id, &t);
  return rsi_is_contiguous(&t);
}

int64_t rsi_value_numel(const rs_program *p, int id) {
  const rsi_desc *const d = &p->values[id].desc;
  int64_t n = 1;
  for (int i = 0; i < d->ndim; i++) n *= d->shape[i];
  return n;
}

int rsi_addend(const rs_program *p, const rsi_instr *i, int id) {
  if (i->op != &rsi_op_add || i->inplace || i->nin < 2 || i->ids[0] < 0 || i->ids[1] < 0 || rsi_attr_float(i, "alpha") != 1.0) return -1;
  const int other = i->ids[0] == id ? i->ids[1] : i->ids[0];
  return other != id && rsi_same_form(p, other, id) && rsi_value_is_contiguous(p, other) ? other : -1;
}
