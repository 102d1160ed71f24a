/*
** The gradient of a tensor that was taken apart (query, key and value of one product) is a sum of tensors that are 0 but for their
** part. When the parts cover it, it is those parts behind each other, read where they lie: no zeros, no sums, no copies before.
*/
#include "program/fuse.h"
#include <string.h>

enum { MOST = 8 };

typedef struct tree {
  const rs_program *p;
  rsi_facts f;
  rsi_uses  u;
  bool     *dropped;                   /* [ninstrs] part of a tree, but not its root */
  struct join *joins;
  int       njoins;
} tree;

/* root: the sum; parts in order, each from a narrow_backward instruction. */
typedef struct join { int root, n, leaf[MOST], in[MOST], nodes[MOST], nnodes, dim; bool merge; } join;

static bool is_sum(const rsi_instr *i) {
  return i->op == &rsi_op_add && !i->inplace && i->nin == 2 && i->ids[0] >= 0 && i->ids[1] >= 0 && rsi_attr_float(i, "alpha") == 1.0;
}

/* Collects what value `id` is a sum of; every value inside is read there only. */
static bool collect(const tree *t, join *j, int id, int reader) {
  if (rsi_only_reader(t->p, &t->f, &t->u, id) != reader) return false;
  const int def = t->f.def[id];
  const rsi_instr *const i = &t->p->instrs[def];
  if (t->dropped[def]) return false;
  if (i->op == &rsi_op_narrow_backward) {
    if (j->n == MOST) return false;
    j->leaf[j->n++] = def;
    return true;
  }
  if (!is_sum(i) || j->nnodes == MOST) return false;
  j->nodes[j->nnodes++] = def;
  return collect(t, j, i->ids[0], def) && collect(t, j, i->ids[1], def);
}

static void sort(const tree *t, join *j) {
  for (int a = 1; a < j->n; a++)
    for (int b = a; b > 0; b--) {
      const int x = j->leaf[b - 1], y = j->leaf[b];
      if (rsi_attr_int(&t->p->instrs[x], "start") <= rsi_attr_int(&t->p->instrs[y], "start")) break;
      j->leaf[b - 1] = y, j->leaf[b] = x;
    }
}

/* Do the parts, in order, cover the whole without a gap? */
static bool covers(const tree *t, join *j) {
  const rsi_value *const values = t->p->values;
  const rsi_instr *const first = &t->p->instrs[j->leaf[0]];
  int64_t at = 0;
  j->dim = (int)rsi_attr_int(first, "dim");
  for (int a = 0; a < j->n; a++) {
    const rsi_instr *const i = &t->p->instrs[j->leaf[a]];
    if (rsi_attr_int(i, "dim") != j->dim || rsi_attr_int(i, "start") != at) return false;
    if (!rsi_same_form(t->p, i->ids[i->nin], first->ids[first->nin])) return false;
    at += values[i->ids[0]].desc.shape[j->dim];
    j->in[a] = i->ids[0];
  }
  return at == values[first->ids[first->nin]].desc.shape[j->dim];
}

/*
** When value `id` is a reshaped copy of a view with one dimension more, whose dimensions dim and dim + 1 make dimension dim of
** `id`: that view, else -1.
*/
static int source(const tree *t, int id, int dim) {
  const rs_program *const p = t->p;
  const rsi_value *const v = &p->values[id];
  if (v->kind != RSI_V_VIEW || t->f.def[id] < 0 || !rsi_is_plain(p, &t->f, v->base)) return -1;
  if (p->instrs[t->f.def[v->base]].op != &rsi_op_copy) return -1;
  const rsi_instr *const copy = &p->instrs[t->f.def[v->base]];
  const rsi_value *const from = &p->values[copy->ids[0]];
  if (v->offset != 0 || from->desc.ndim != v->desc.ndim + 1 || rsi_value_numel(p, id) != rsi_value_numel(p, v->base)) return -1;
  if (t->f.written[from->base] || !rsi_value_is_contiguous(p, id) || from->desc.dtype != v->desc.dtype) return -1;
  for (int k = 0; k < from->desc.ndim; k++) {
    if (k == dim || k == dim + 1) continue;
    if (from->desc.shape[k] != v->desc.shape[k < dim ? k : k - 1]) return -1;
  }
  return copy->ids[0];
}

static void look_through(const tree *t, join *j) {
  int in[MOST] = {0};
  for (int a = 0; a < j->n; a++) {
    in[a] = source(t, j->in[a], j->dim);
    if (in[a] < 0 || t->p->values[in[a]].desc.shape[j->dim + 1] != t->p->values[in[0]].desc.shape[j->dim + 1]) return;
  }
  memcpy(j->in, in, sizeof j->in);
  j->merge = true;
}

static void find(tree *t, int k) {
  const rsi_instr *const i = &t->p->instrs[k];
  join j = {.root = k};
  if (!is_sum(i) || t->dropped[k] || !i->kernel || !rsi_is_plain(t->p, &t->f, i->ids[2])) return;
  if (!collect(t, &j, i->ids[0], k) || !collect(t, &j, i->ids[1], k)) return;
  sort(t, &j);
  if (!covers(t, &j)) return;
  look_through(t, &j);
  for (int a = 0; a < j.n; a++)
    if (t->f.written[rsi_base_of(t->p, j.in[a])]) return;
  for (int a = 0; a < j.n; a++) t->dropped[j.leaf[a]] = true;
  for (int a = 0; a < j.nnodes; a++) t->dropped[j.nodes[a]] = true;
  t->joins[t->njoins++] = j;
}

/* Leaves are kept: they are dead once the sum is another, and go with the next clean-up; so nothing is lost when it fails. */
static void rewrite(const tree *t, rsi_edit *e) {
  int next = t->njoins - 1;            /* they were found from behind */
  for (int k = 0; k < e->nold && e->status == RS_OK; k++) {
    const join *const j = next >= 0 ? &t->joins[next] : NULL;
    if (!j || j->root != k) {
      rsi_edit_keep(e, k);
      continue;
    }
    next--;
    rsi_attr_set attrs;
    int out = e->old[k].ids[2];
    rsi_attrs_of(RS_OP_cat_views, &attrs);
    rsi_attrs_int(&attrs, "dim", j->dim);
    rsi_attrs_int(&attrs, "merge", j->merge);
    if (!rsi_edit_emit(e, RS_OP_cat_views, attrs.bytes, j->n, j->in, 1, &out)) rsi_edit_keep(e, k);
  }
}

static rs_status run(rs_program *p, tree *t) {
  rsi_edit e;
  void *block;
  const size_t n = (size_t)p->ninstrs, bytes = n * (sizeof(join) + sizeof(bool)) + 1;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  t->joins = block;
  t->dropped = (bool *)(t->joins + n);
  memset(t->dropped, 0, n);
  for (int k = p->ninstrs - 1; k >= p->nprologue; k--) find(t, k);
  rs_status status = RS_OK;
  if (t->njoins > 0) {
    status = rsi_edit_begin(p, &e);
    if (status == RS_OK) {
      rewrite(t, &e);
      status = rsi_edit_end(&e);
    }
  }
  rsi_free(p->heap, block, bytes);
  return status;
}

rs_status rsi_pass_join(rs_program *p) {
  tree t = {.p = p};
  RSI_TRY(rsi_facts_make(p, &t.f));
  rs_status status = rsi_uses_make(p, &t.u);
  if (status == RS_OK) {
    status = run(p, &t);
    rsi_uses_free(p, &t.u);
  }
  rsi_facts_free(p, &t.f);
  return status == RS_OK && t.njoins > 0 ? rsi_pass_clean(p) : status;
}
