/*
** The memory plan: every temporary gets a place in one block, the arena, so that two that live at the same time never overlap.
** Largest first, each at the lowest place that is free while it lives. What an element-wise instruction makes takes the place of
** its first input (or of the one that the op names) when that one dies there. What the prologue makes lies in a block of its own, which outlives the runs.
*/
#include "program/internal.h"
#include <stdlib.h>
#include <string.h>

enum { FOREVER = 1 << 30 };

/* Values that share one place. */
typedef struct lot {
  int64_t bytes, place;
  int     first, last;
  bool    prologue;
} lot;

static int64_t bytes_of(const rsi_value *v) {
  int64_t n = rsi_dtype_size[v->desc.dtype];
  for (int i = 0; i < v->desc.ndim; i++) n *= v->desc.shape[i];
  return (n + RSI_ALIGN - 1) / RSI_ALIGN * RSI_ALIGN;
}

static void touch(rs_program *p, int id, int k) {
  if (id < 0) return;
  rsi_value *const v = &p->values[rsi_base_of(p, id)];
  if (v->first < 0) v->first = k;
  v->last = k;
}

static void lifetimes(rs_program *p) {
  for (int i = 0; i < p->nvalues; i++) {
    rsi_value *const v = &p->values[i];
    v->first = v->last = -1;
    v->place = -1;
    v->kept = false;
  }
  for (int i = 0; i < p->noutputs; i++) {
    rsi_value *const v = &p->values[rsi_base_of(p, p->outputs[i])];
    v->kept = v->kind == RSI_V_TEMP;
  }
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const i = &p->instrs[k];
    if (!i->kernel) continue;
    for (int a = 0; a < i->nin + i->nout; a++) touch(p, i->ids[a], k);
  }
}

static bool planned(const rsi_value *v) { return v->kind == RSI_V_TEMP && !v->kept && v->first >= 0; }

/* The input whose place output 0 of instruction k may take, as a value; -1: none. */
static int takes_over(const rs_program *p, const rsi_instr *i, int k) {
  const int which = i->op->traits & RSI_T_ELEMENTWISE ? 0 : i->op->over - 1;
  if (i->inplace || which < 0 || which >= i->nin || i->ids[which] < 0) return -1;
  const int in = i->ids[which], out = i->ids[i->nin];
  const rsi_value *const a = &p->values[in], *const b = &p->values[out];
  if (a->base != in || b->base != out || !planned(a) || !planned(b) || a->last != k || b->first != k) return -1;
  if (a->first < p->nprologue || bytes_of(a) != bytes_of(b) || a->desc.dtype != b->desc.dtype || a->desc.ndim != b->desc.ndim) return -1;
  for (int d = 0; d < a->desc.ndim; d++)
    if (a->desc.shape[d] != b->desc.shape[d] || (a->desc.shape[d] != 1 && a->strides[d] != b->strides[d])) return -1;
  for (int n = 0; n < i->nin; n++)
    if (n != which && i->ids[n] >= 0 && rsi_base_of(p, i->ids[n]) == in) return -1;
  return in;
}

static int by_size(const void *a, const void *b) {
  const lot *const x = *(lot *const *)a, *const y = *(lot *const *)b;
  if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
  return x->first != y->first ? (x->first < y->first ? -1 : 1) : 0;
}

/* Places each lot of `list` (largest first); returns the bytes that all need together. `done` is kept in order of place. */
static int64_t place_all(lot **list, lot **done, int n) {
  int64_t most = 0;
  int placed = 0;
  for (int i = 0; i < n; i++) {
    lot *const l = list[i];
    int64_t at = 0;
    for (int j = 0; j < placed; j++) {
      const lot *const d = done[j];
      if (d->last < l->first || d->first > l->last) continue;
      if (d->place >= at + l->bytes) break;
      if (d->place + d->bytes > at) at = d->place + d->bytes;
    }
    l->place = at;
    int j = placed++;
    for (; j > 0 && done[j - 1]->place > at; j--) done[j] = done[j - 1];
    done[j] = l;
    if (at + l->bytes > most) most = at + l->bytes;
  }
  return most;
}

static int make_lots(rs_program *p, lot *lots, int *lot_of) {
  int n = 0;
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const i = &p->instrs[k];
    if (!i->kernel) continue;
    for (int j = 0; j < i->nout; j++) {
      const int id = rsi_base_of(p, i->ids[i->nin + j]);
      const rsi_value *const v = &p->values[id];
      if (!planned(v) || lot_of[id] >= 0) continue;
      const int in = j == 0 ? takes_over(p, i, k) : -1;
      if (in >= 0) {
        lot_of[id] = lot_of[in];
        lots[lot_of[id]].last = v->last;
        continue;
      }
      const bool early = k < p->nprologue;
      lots[n] = (lot){.bytes = bytes_of(v), .first = v->first, .last = early && v->last >= p->nprologue ? FOREVER : v->last, .prologue = early};
      lot_of[id] = n++;
    }
  }
  return n;
}

rs_status rsi_plan(rs_program *p) {
  void *block;
  lifetimes(p);
  const size_t n = (size_t)p->nvalues, bytes = n * (sizeof(lot) + 2 * sizeof(lot *) + sizeof(int)) + 1;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  lot *const lots = block;
  lot **const list = (lot **)(lots + n), **const done = list + n;
  int *const lot_of = (int *)(done + n);
  memset(lot_of, -1, n * sizeof(int));
  const int count = make_lots(p, lots, lot_of);
  for (int early = 0; early < 2; early++) {
    int m = 0;
    for (int i = 0; i < count; i++)
      if (lots[i].prologue == (early != 0)) list[m++] = &lots[i];
    if (m > 1) qsort(list, (size_t)m, sizeof *list, by_size);
    const int64_t all = place_all(list, done, m);
    if (early) p->prologue_bytes = all;
    else p->arena_bytes = all;
  }
  for (int i = 0; i < p->nvalues; i++)
    if (lot_of[i] >= 0) p->values[i].place = lots[lot_of[i]].place;
  rsi_free(p->heap, block, bytes);
  return RS_OK;
}
