/*
** In bf16 programs: a value that is read in bf16 is made in bf16. What a product gives, or what lies behind each other, is not widened
** when its readers are casts to bf16, activations and their gradients, or sums; and a sum reads the bf16 form of a value when somebody
** else does. So large values take half the way to memory. Sums are still f32.
*/
#include "program/fuse.h"
#include <string.h>

enum { LEAST = 1 << 16 };      /* elements of a value that are worth it */

typedef struct narrow {
  rs_program *p;
  rsi_facts   f;
  rsi_uses    u;
  bool       *made;            /* [ninstrs] is the result made in bf16? */
  int        *twin;            /* [ninstrs] of a sum: the instruction whose bf16 result it reads; -1 */
  int        *now;             /* [nvalues] the value in bf16, once it is made; -1 */
} narrow;

static bool is_cast(const narrow *w, const rsi_instr *i) {
  return i->op == &rsi_op_cast && i->kernel && !i->inplace && w->p->values[i->ids[1]].desc.dtype == RS_BF16 &&
         rsi_is_plain(w->p, &w->f, i->ids[1]);
}

static bool is_activation(const rsi_instr *i) {
  static const rs_op *const ops[] = {&rsi_op_gelu, &rsi_op_gelu_backward, &rsi_op_relu, &rsi_op_relu_backward, &rsi_op_silu,
                                     &rsi_op_silu_backward};
  for (size_t n = 0; n < sizeof ops / sizeof *ops; n++)
    if (i->op == ops[n] && i->kernel && !i->inplace) return true;
  return false;
}

/* May the instruction give bf16 instead of f32? */
static bool can_narrow(const narrow *w, const rsi_instr *i) {
  const rsi_value *const v = w->p->values;
  if (!i->kernel || i->inplace || i->nout != 1 || v[i->ids[i->nin]].desc.dtype != RS_F32) return false;
  if (i->op == &rsi_op_cat_views) return true;
  if (i->op == &rsi_op_matmul) return v[i->ids[0]].desc.dtype == RS_BF16 && v[i->ids[1]].desc.dtype == RS_BF16;
  return i->op == &rsi_op_linear_act && v[i->ids[0]].desc.dtype == RS_BF16;
}

/* The first instruction that casts value `id` to bf16; -1. */
static int first_cast(const narrow *w, int id) {
  for (int n = w->u.start[id]; n < w->u.start[id + 1]; n++)
    if (is_cast(w, &w->p->instrs[w->u.list[n]])) return w->u.list[n];
  return -1;
}

static void look_at(narrow *w, int k) {
  const rs_program *const p = w->p;
  const rsi_instr *const i = &p->instrs[k];
  if (!i->kernel || i->nout != 1) return;
  const int id = i->ids[i->nin];
  if (i->inplace || !rsi_is_plain(p, &w->f, id) || w->u.result[id] || p->values[id].desc.dtype != RS_F32 || rsi_value_numel(p, id) < LEAST) return;
  const int cast = first_cast(w, id);
  bool only = cast >= 0;               /* casts and sums alone */
  bool gentle = can_narrow(w, i);
  for (int n = w->u.start[id]; n < w->u.start[id + 1]; n++) {
    const rsi_instr *const r = &p->instrs[w->u.list[n]];
    const bool sums = r->op == &rsi_op_sum && r->kernel;
    only &= is_cast(w, r) || (sums && w->u.list[n] > cast);
    gentle &= is_cast(w, r) || sums || is_activation(r);
  }
  w->made[k] = gentle;
  if (only && !gentle)
    for (int n = w->u.start[id]; n < w->u.start[id + 1]; n++)
      if (p->instrs[w->u.list[n]].op == &rsi_op_sum) w->twin[w->u.list[n]] = cast;
}

static bool make(narrow *w, rsi_edit *e, const rsi_instr *i) {
  rsi_attr_set a;
  int out = -1;
  rsi_attrs_of(rsi_number_of(i->op), &a);
  rsi_attrs_from(&a, i);
  rsi_attrs_int(&a, "dtype", RS_BF16);
  if (!rsi_edit_emit(e, rsi_number_of(i->op), a.bytes, i->nin, i->ids, 1, &out)) return false;
  w->now[i->ids[i->nin]] = out;
  return true;
}

/* A reader of values that are bf16 now. True when it is gone or emitted in another form. */
static bool read(narrow *w, rsi_edit *e, int k) {
  rsi_instr *const i = &e->old[k];
  if (i->op == &rsi_op_sum) {
    const int from = i->ids[0] >= 0 && w->now[i->ids[0]] >= 0 ? w->now[i->ids[0]] : w->twin[k] >= 0 ? w->twin[k] : -1;
    int out = i->ids[i->nin];
    return from >= 0 && rsi_edit_emit(e, RS_OP_sum, i->attrs, 1, &from, 1, &out);
  }
  for (int a = 0; a < i->nin; a++) {
    const int id = i->ids[a];
    if (id < 0 || w->now[id] < 0) continue;
    if (is_cast(w, i)) {
      rsi_edit_map(e, i->ids[1], w->now[id]);
      return true;
    }
    rsi_attr_set cast;
    int wide = -1;
    rsi_attrs_of(RS_OP_cast, &cast);
    rsi_attrs_int(&cast, "dtype", RS_F32);
    if (rsi_edit_emit(e, RS_OP_cast, cast.bytes, 1, &w->now[id], 1, &wide)) rsi_edit_set(e, id, wide);
  }
  return false;
}

static rs_status rewrite(narrow *w) {
  rsi_edit e;
  RSI_TRY(rsi_edit_begin(w->p, &e));
  for (int k = 0; k < e.nold && e.status == RS_OK; k++) {
    rsi_instr *const i = &e.old[k];
    if (w->made[k] && make(w, &e, i)) continue;
    if (i->kernel && read(w, &e, k)) continue;
    rsi_edit_keep(&e, k);
  }
  return rsi_edit_end(&e);
}

static rs_status run(narrow *w) {
  rs_program *const p = w->p;
  void *block;
  const size_t n = (size_t)p->ninstrs, m = (size_t)p->nvalues, bytes = n * (sizeof(int) + 1) + m * sizeof(int) + 1;
  bool any = false;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  w->twin = block;
  w->now = w->twin + n;
  w->made = (bool *)(w->now + m);
  memset(w->twin, -1, n * sizeof(int));
  memset(w->now, -1, m * sizeof(int));
  memset(w->made, 0, n);
  for (int k = p->nprologue; k < p->ninstrs; k++) look_at(w, k);
  for (int k = 0; k < p->ninstrs; k++) {
    if (w->twin[k] >= 0) w->twin[k] = p->instrs[w->twin[k]].ids[1];      /* now the value */
    any |= w->made[k] || w->twin[k] >= 0;
  }
  const rs_status status = any ? rewrite(w) : RS_OK;
  rsi_free(p->heap, block, bytes);
  return status;      /* no clean-up: it would make one f32 value of the casts that readers far apart have each for itself */
}

rs_status rsi_pass_narrow(rs_program *p) {
  narrow w = {.p = p};
  if (!p->half) return RS_OK;
  RSI_TRY(rsi_facts_make(p, &w.f));
  rs_status status = rsi_uses_make(p, &w.u);
  if (status == RS_OK) {
    status = run(&w);
    rsi_uses_free(p, &w.u);
  }
  rsi_facts_free(p, &w.f);
  return status;
}
