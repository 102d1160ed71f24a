/*
** Which instructions on images join: convolution or batch norm, then perhaps the sum with a residual, then perhaps ReLU; and in
** backward ReLU's mask with the batch norm behind it. Only values that nobody else reads may vanish.
*/
#include "program/images.h"
#include <string.h>

/* The one instruction that reads each value; -1: none, -2: several (or a result, or what is seen outside). */
static void find_readers(const rs_program *p, int *reader) {
  for (int i = 0; i < p->nvalues; i++) reader[i] = -1;
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const i = &p->instrs[k];
    for (int a = 0; a < i->nin; a++)
      if (i->ids[a] >= 0) reader[i->ids[a]] = reader[i->ids[a]] == -1 ? k : -2;
  }
  for (int i = 0; i < p->noutputs; i++) reader[p->outputs[i]] = -2;
}

static bool same_form(const rs_program *p, int a, int b) {
  const rsi_value *const x = &p->values[a], *const y = &p->values[b];
  if (x->desc.dtype != y->desc.dtype || x->desc.ndim != y->desc.ndim) return false;
  for (int d = 0; d < x->desc.ndim; d++)
    if (x->desc.shape[d] != y->desc.shape[d]) return false;
  return true;
}

static bool is_image(const rs_program *p, int id) {
  return id >= 0 && p->values[id].desc.ndim == 4 && p->values[id].desc.dtype == RS_F32;
}

static int act_of(const rsi_instr *i) {
  if (i->inplace) return RSI_CONV_NO_ACT;
  if (i->op == &rsi_op_relu) return RSI_CONV_RELU;
  if (i->op != &rsi_op_hardtanh) return RSI_CONV_NO_ACT;
  const double low = rsi_attr_float(i, "min_val"), high = rsi_attr_float(i, "max_val");
  return low >= 0 && low <= 0 && high >= 6 && high <= 6 ? RSI_CONV_RELU6 : RSI_CONV_NO_ACT;
}

/* The other operand of a plain sum of two equal forms; -1. */
static int other_term(const rs_program *p, const rsi_instr *i, int id) {
  if (i->op != &rsi_op_add || i->inplace || i->ids[0] < 0 || i->ids[1] < 0 || i->ids[0] == i->ids[1]) return -1;
  const double alpha = rsi_attr_float(i, "alpha");
  if (alpha < 1 || alpha > 1 || !same_form(p, i->ids[0], i->ids[1])) return -1;
  return i->ids[0] == id ? i->ids[1] : i->ids[0];
}

/* One number for each channel of image `id`, added to it: the bias of a transposed convolution. -1: it is something else. */
static int bias_term(const rs_program *p, const rsi_instr *i, int id) {
  if (i->op != &rsi_op_add || i->inplace || i->ids[0] != id || i->ids[1] < 0) return -1;
  const double alpha = rsi_attr_float(i, "alpha");
  const rsi_desc *const x = &p->values[id].desc, *const b = &p->values[i->ids[1]].desc;
  const bool fits = b->dtype == x->dtype && b->ndim == 4 && b->shape[0] == 1 && b->shape[1] == x->shape[1] && b->shape[2] == 1 && b->shape[3] == 1;
  return alpha < 1 || alpha > 1 || !fits ? -1 : i->ids[1];
}

/* A transposed convolution and its bias. */
static void transposed_chain(const rs_program *p, const int *reader, rsi_role *roles, int head) {
  const rsi_instr *const h = &p->instrs[head];
  const int id = h->ids[h->nin], next = rsi_is_outside(p, id) ? -2 : reader[id];
  const int bias = next >= 0 && roles[next].kind == RSI_ROLE_NONE ? bias_term(p, &p->instrs[next], id) : -1;
  if (bias < 0 || !rsi_may_move(p, head, next, id)) return;
  roles[head].kind = RSI_ROLE_JOINED;
  roles[next] = (rsi_role){.kind = RSI_ROLE_END, .head = head, .residual = bias};
}

static void forward_chain(const rs_program *p, const int *reader, rsi_role *roles, int head) {
  const rsi_instr *const h = &p->instrs[head];
  const int y = h->ids[h->nin];
  int id = y, end = head, residual = -1, act = RSI_CONV_NO_ACT;
  int next = rsi_is_outside(p, id) ? -2 : reader[id];
  if (next >= 0 && roles[next].kind == RSI_ROLE_NONE) {
    const int other = other_term(p, &p->instrs[next], id);
    if (other >= 0 && rsi_may_move(p, head, next, y)) {
      residual = other;
      roles[end].kind = RSI_ROLE_JOINED;
      end = next;
      id = p->instrs[next].ids[p->instrs[next].nin];
      next = rsi_is_outside(p, id) ? -2 : reader[id];
    }
  }
  const bool acts = next >= 0 && roles[next].kind == RSI_ROLE_NONE && act_of(&p->instrs[next]) != RSI_CONV_NO_ACT;
  if (acts && rsi_may_move(p, head, next, y) && (end == head || rsi_may_move(p, end, next, id))) {
    act = act_of(&p->instrs[next]);
    roles[end].kind = RSI_ROLE_JOINED;
    end = next;
  }
  roles[end] = (rsi_role){.kind = RSI_ROLE_END, .act = (uint8_t)act, .head = head, .residual = residual};
}

/* relu_backward at k, whose result a batch norm's backward reads. */
static void backward_mask(const rs_program *p, const rsi_facts *f, const int *reader, rsi_role *roles, int k) {
  const int id = p->instrs[k].ids[p->instrs[k].nin];
  int found = -1, readers = 0;
  if (rsi_is_outside(p, id)) return;
  for (int n = k + 1; n < p->ninstrs; n++) {
    const rsi_instr *const i = &p->instrs[n];
    for (int a = 0; a < i->nin; a++) {
      if (i->ids[a] != id) continue;
      readers++;
      if (a == 0 && found < 0 && i->op == &rsi_op_batch_norm_backward && roles[n].kind == RSI_ROLE_NONE) found = n;
    }
  }
  if (found < 0 || !rsi_may_move(p, found, k, -1)) return;
  roles[found].kind = RSI_ROLE_JOINED;
  roles[k] = (rsi_role){.kind = RSI_ROLE_MASK, .act = RSI_CONV_RELU, .shared = readers > 1, .head = found, .residual = -1, .sum = -1};
  const int g = p->instrs[k].ids[0], sum = f->def[g];
  if (sum < 0 || rsi_is_outside(p, g) || reader[g] != k || roles[sum].kind != RSI_ROLE_NONE) return;
  if (other_term(p, &p->instrs[sum], p->instrs[sum].ids[0]) < 0 || !rsi_may_move(p, sum, k, g)) return;
  roles[sum].kind = RSI_ROLE_JOINED;
  roles[k].sum = sum;
}

rs_status rsi_image_roles(const rs_program *p, const rsi_facts *f, rsi_role *roles) {
  void *block;
  RSI_TRY(rsi_alloc(p->heap, sizeof(int) * (size_t)p->nvalues + 1, &block));
  int *const reader = block;
  memset(roles, 0, sizeof *roles * (size_t)p->ninstrs);
  find_readers(p, reader);
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const i = &p->instrs[k];
    const bool heads = i->op == &rsi_op_conv2d || i->op == &rsi_op_batch_norm;
    if (heads && roles[k].kind == RSI_ROLE_NONE && is_image(p, i->ids[0])) forward_chain(p, reader, roles, k);
    if (i->op == &rsi_op_conv2d_backward_data && roles[k].kind == RSI_ROLE_NONE && is_image(p, i->ids[0])) transposed_chain(p, reader, roles, k);
    if (i->op == &rsi_op_relu_backward && is_image(p, i->ids[0])) backward_mask(p, f, reader, roles, k);
  }
  rsi_free(p->heap, block, sizeof(int) * (size_t)p->nvalues + 1);
  return RS_OK;
}
