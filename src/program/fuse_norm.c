/*
** Layer norm with the sums beside it becomes layer_norm_sum, its gradient with the ReLU and the sum that follow it
** layer_norm_backward_sum. The sum before a norm is done where the sum stood; what follows a norm is done where that stood.
*/
#include "program/fuse.h"
#include <string.h>

/* A norm with what goes into it; -1: nothing. at: where it is emitted. */
typedef struct group { int norm, before, relu, after, at, residual; } group;

typedef struct norms {
  rs_program *p;
  rsi_facts   f;
  rsi_uses    u;
  int        *role;                    /* [ninstrs] of the instruction where a group is emitted: its number; of its others -2; else -1 */
  group      *groups;
  int         ngroups;
} norms;

static const rsi_instr *at(const norms *n, int k) { return &n->p->instrs[k]; }

static bool contiguous(const norms *n, const rsi_instr *i) {
  for (int a = 0; a < i->nin; a++)
    if (i->ids[a] >= 0 && !rsi_value_is_contiguous(n->p, i->ids[a])) return false;
  return true;
}

/* The sum before the norm: whatever else reads it, it is made there. */
static int sum_before(const norms *n, const rsi_instr *i) {
  const int x = i->ids[0], def = rsi_is_plain(n->p, &n->f, x) ? n->f.def[x] : -1;
  if (def < 0 || n->role[def] != -1) return -1;
  const rsi_instr *const sum = at(n, def);
  if (rsi_addend(n->p, sum, sum->ids[0]) < 0 || !rsi_value_is_contiguous(n->p, sum->ids[0])) return -1;
  return rsi_same_form(n->p, sum->ids[0], x) ? def : -1;
}

static void find_forward(norms *n, int k, group *g) {
  const rsi_instr *const i = at(n, k);
  const int y = i->ids[i->nin], next = rsi_only_reader(n->p, &n->f, &n->u, y);
  if (next > k && n->role[next] == -1) g->residual = rsi_addend(n->p, at(n, next), y);
  if (g->residual >= 0 && rsi_may_move(n->p, k, next, y)) {
    g->after = g->at = next;
    return;
  }
  g->residual = -1;
  g->before = sum_before(n, i);
  if (g->before >= 0 && rsi_may_move(n->p, k, g->before, -1)) g->at = g->before;
  else g->before = -1;
}

static void find_backward(norms *n, int k, group *g) {
  const rsi_instr *const i = at(n, k);
  int value = i->ids[i->nin], next = rsi_only_reader(n->p, &n->f, &n->u, value);
  const rsi_instr *const relu = next > k && n->role[next] == -1 && at(n, next)->op == &rsi_op_relu_backward ? at(n, next) : NULL;
  if (relu && !relu->inplace && relu->ids[0] == value && relu->ids[1] == i->ids[1] && rsi_may_move(n->p, k, next, value)) {
    g->relu = g->at = next;
    value = relu->ids[relu->nin];
    next = rsi_only_reader(n->p, &n->f, &n->u, value);
  }
  if (next <= g->at || n->role[next] != -1) return;
  g->residual = rsi_addend(n->p, at(n, next), value);
  if (g->residual >= 0 && rsi_may_move(n->p, k, next, i->ids[i->nin])) g->after = g->at = next;
  else g->residual = -1;
}

static void find_group(norms *n, int k) {
  const rsi_instr *const i = at(n, k);
  group g = {.norm = k, .before = -1, .relu = -1, .after = -1, .at = k, .residual = -1};
  if (!i->kernel || i->inplace || !contiguous(n, i)) return;
  if (i->op == &rsi_op_layer_norm) find_forward(n, k, &g);
  else if (i->op == &rsi_op_layer_norm_backward) find_backward(n, k, &g);
  if (g.at == k) return;
  n->role[k] = -2;
  if (g.before >= 0) n->role[g.before] = -2;
  if (g.relu >= 0) n->role[g.relu] = -2;
  if (g.after >= 0) n->role[g.after] = -2;
  n->groups[n->ngroups] = g;
  n->role[g.at] = n->ngroups++;
}

static int input(const rsi_instr *i, int a) { return a < i->nin ? i->ids[a] : -1; }

static bool emit(rsi_edit *e, const group *g) {
  const rsi_instr *const i = &e->old[g->norm], *const last = &e->old[g->at];
  const int *const results = i->ids + i->nin;
  rsi_attr_set attrs;
  if (i->op == &rsi_op_layer_norm) {
    const rsi_instr *const sum = g->before >= 0 ? last : NULL;
    const int in[5] = {sum ? sum->ids[0] : i->ids[0], sum ? sum->ids[1] : -1, input(i, 1), input(i, 2), g->residual};
    int out[4] = {sum ? results[0] : last->ids[last->nin], results[1], results[2], sum ? sum->ids[sum->nin] : -1};
    rsi_attrs_of(RS_OP_layer_norm_sum, &attrs);
    rsi_attrs_from(&attrs, i);
    return rsi_edit_emit(e, RS_OP_layer_norm_sum, attrs.bytes, 5, in, 4, out);
  }
  const int in[6] = {i->ids[0], i->ids[1], i->ids[2], i->ids[3], input(i, 4), g->residual};
  int out[3] = {last->ids[last->nin], results[1], results[2]};
  rsi_attrs_of(RS_OP_layer_norm_backward_sum, &attrs);
  rsi_attrs_from(&attrs, i);
  rsi_attrs_int(&attrs, "relu", g->relu >= 0);
  return rsi_edit_emit(e, RS_OP_layer_norm_backward_sum, attrs.bytes, 6, in, 3, out);
}

static void rewrite(const norms *n, rsi_edit *e) {
  for (int k = 0; k < e->nold && e->status == RS_OK; k++) {
    if (n->role[k] == -1) rsi_edit_keep(e, k);
    if (n->role[k] < 0) continue;
    const group *const g = &n->groups[n->role[k]];
    if (emit(e, g)) continue;
    if (g->before >= 0) rsi_edit_keep(e, g->before);
    rsi_edit_keep(e, g->norm);
    if (g->relu >= 0) rsi_edit_keep(e, g->relu);
    if (g->after >= 0) rsi_edit_keep(e, g->after);
  }
}

static rs_status run(rs_program *p, norms *n) {
  rsi_edit e;
  void *block;
  const size_t count = (size_t)p->ninstrs, bytes = count * (sizeof(group) + sizeof(int)) + 1;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  n->groups = block;
  n->role = (int *)(n->groups + count);
  memset(n->role, -1, count * sizeof(int));
  for (int k = p->nprologue; k < p->ninstrs; k++)
    if (n->role[k] == -1) find_group(n, k);
  rs_status status = rsi_edit_begin(p, &e);
  if (status == RS_OK) {
    rewrite(n, &e);
    status = rsi_edit_end(&e);
  }
  rsi_free(p->heap, block, bytes);
  return status;
}

rs_status rsi_pass_norm(rs_program *p) {
  norms n = {.p = p};
  RSI_TRY(rsi_facts_make(p, &n.f));
  rs_status status = rsi_uses_make(p, &n.u);
  if (status == RS_OK) {
    status = run(p, &n);
    rsi_uses_free(p, &n.u);
  }
  rsi_facts_free(p, &n.f);
  return status;
}
