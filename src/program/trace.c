/*
** Recording. The dispatcher reports each call; here its tensors become numbered values and the call an instruction. A value is
** an argument, a binding (a tensor that existed before: a parameter), a temporary, or a view of another value.
*/
#include "program/internal.h"
#include <string.h>

enum { FIRST_CAPACITY = 64 };

rs_status rsi_grow(rsi_heap *heap, void **array, int count, int *capacity, size_t item) {
  void *bigger;
  if (count < *capacity) return RS_OK;
  const int wanted = *capacity ? 2 * *capacity : FIRST_CAPACITY;
  RSI_TRY(rsi_alloc(heap, item * (size_t)wanted, &bigger));
  if (*array) {
    memcpy(bigger, *array, item * (size_t)count);
    rsi_free(heap, *array, item * (size_t)*capacity);
  }
  *array = bigger;
  *capacity = wanted;
  return RS_OK;
}

static rs_status new_value(rsi_trace *t, rs_tensor *tensor, int kind, int *id) {
  rs_program *const p = t->program;
  RSI_TRY(rsi_grow(p->heap, (void **)&p->values, p->nvalues, &p->values_capacity, sizeof(rsi_value)));
  rsi_value *const v = &p->values[p->nvalues];
  memset(v, 0, sizeof *v);
  v->kind = (uint8_t)kind;
  v->base = p->nvalues;
  v->place = v->first = v->last = -1;
  v->wants = tensor->node != NULL;
  rsi_desc_of(tensor, &v->desc);
  memcpy(v->strides, tensor->strides, sizeof v->strides);
  tensor->trace_id = (uint32_t)p->nvalues;
  tensor->trace_serial = t->serial;
  *id = p->nvalues++;
  return RS_OK;
}

/* The number of a tensor that is read; one that the recording has not met is bound as it is. */
static rs_status value_of(rsi_trace *t, rs_tensor *tensor, int *id) {
  if (!tensor) {
    *id = -1;
    return RS_OK;
  }
  if (tensor->trace_serial == t->serial) {
    *id = (int)tensor->trace_id;
    return RS_OK;
  }
  RSI_CHECK(!(tensor->flags & RSI_PHANTOM), RS_ERR_STATE,
            "compile: a tensor of shape %s was made while another program was recorded, so it has no values", rsi_text(tensor));
  RSI_TRY(new_value(t, tensor, RSI_V_BOUND, id));
  t->program->values[*id].data = tensor->data;
  return rsi_tensor_share(tensor, &t->program->values[*id].bound);
}

static rs_status add_ids(rsi_trace *t, const rsi_call *c, rsi_instr *instr) {
  rs_program *const p = t->program;
  for (int i = 0; i < c->nin; i++) {
    RSI_TRY(value_of(t, c->in[i], &instr->ids[i]));
    instr->writes[i] = c->in[i] && ((instr->inplace && i == 0) || (c->op->writes && c->op->writes(c, i)));
    if (!instr->writes[i]) continue;
    p->writes_inputs |= p->values[rsi_base_of(p, instr->ids[i])].kind == RSI_V_ARG;
  }
  for (int j = 0; j < c->nout; j++) {
    int *const id = &instr->ids[c->nin + j];
    if (instr->inplace) {
      *id = instr->ids[0];
      continue;
    }
    RSI_TRY(new_value(t, c->out[j], instr->kernel ? RSI_V_TEMP : RSI_V_VIEW, id));
    if (instr->kernel) continue;
    rsi_value *const v = &p->values[*id];
    const rsi_value *const of = &p->values[instr->ids[0]];
    v->base = of->base;
    v->delta = (char *)c->out[j]->data - (char *)c->in[0]->data;
    v->offset = of->offset + v->delta;
  }
  return RS_OK;
}

static rs_status append(rsi_trace *t, const rsi_call *c, const rsi_kernel *kernel, bool inplace) {
  rsi_instr *instr;
  RSI_TRY(rsi_instr_new(t->program, c->op, c->nin, c->nout, c->attrs, &instr));
  instr->kernel = kernel;
  instr->inplace = inplace;
  memcpy(instr->desc, c->desc, sizeof instr->desc);
  return add_ids(t, c, instr);
}

rs_status rsi_trace_append(rs_ctx *ctx, const rsi_call *c, const rsi_kernel *kernel, bool inplace) {
  rsi_trace *const t = ctx->trace;
  if (t->status == RS_OK) t->status = append(t, c, kernel, inplace);
  return t->status;
}

/* ---- leaves ---------------------------------------------------------------------------------------------------------- */

/* The first look at a leaf's gradient tells what a run has to find there. */
static rs_status note_leaf(rsi_trace *t, rsi_node *node, bool replaced) {
  rs_program *const p = t->program;
  for (int i = 0; i < p->nleaves; i++)
    if (p->leaves[i].node == node) return RS_OK;
  RSI_TRY(rsi_grow(p->heap, (void **)&p->leaves, p->nleaves, &p->leaves_capacity, sizeof(rsi_leaf)));
  rsi_leaf *const leaf = &p->leaves[p->nleaves++];
  rs_tensor *const grad = node->kept[0];
  *leaf = (rsi_leaf){.node = rsi_node_retain(node), .before = replaced ? RSI_GRAD_ANY : grad ? RSI_GRAD_THIS : RSI_GRAD_NONE};
  if (leaf->before == RSI_GRAD_THIS) leaf->expected = rs_tensor_retain(grad);
  if (grad) leaf->former = rs_tensor_retain(grad);
  return RS_OK;
}

rs_status rsi_trace_leaf(rs_ctx *ctx, rsi_node *node, bool replaced) {
  rsi_trace *const t = ctx->trace;
  if (!(node->flags & RSI_N_LEAF)) return RS_OK;
  if (t->status == RS_OK) t->status = note_leaf(t, node, replaced);
  return t->status;
}

/* A gradient that the recording made becomes a tensor with memory, which runs write into. */
static rs_status settle_leaf(rsi_trace *t, rsi_leaf *leaf) {
  rs_tensor *const grad = leaf->node->kept[0];
  if (!grad) return RS_OK;
  leaf->after = rs_tensor_retain(grad);
  if (grad->trace_serial != t->serial) return RS_OK;
  rsi_value *const v = &t->program->values[grad->trace_id];
  RSI_CHECK(v->kind == RSI_V_TEMP || v->kind == RSI_V_BOUND, RS_ERR_UNSUPPORTED,
            "compile: a gradient of shape %s is an input or a view of another tensor; clone it first", rsi_text(grad));
  if (v->kind == RSI_V_TEMP) {
    RSI_TRY(rsi_tensor_new(t->program->heap, &v->desc, &v->bound));
    memset(v->bound->data, 0, v->bound->storage->bytes);
    v->kind = RSI_V_BOUND;
    v->data = v->bound->data;
  }
  rs_tensor_release(leaf->after);
  leaf->after = rs_tensor_retain(v->bound);
  return RS_OK;
}

/* The recording computed nothing, so leaves have the gradients that they had before it. */
static void restore_leaf(rsi_leaf *leaf) {
  rs_tensor *const grad = leaf->node->kept[0];
  leaf->node->kept[0] = leaf->former;
  leaf->former = NULL;
  rs_tensor_release(grad);
}

/* ---- begin and end --------------------------------------------------------------------------------------------------- */

static rs_status trace_new(rs_ctx *ctx, rsi_trace **out) {
  static _Atomic uint64_t serials;
  void *block;
  RSI_TRY(rsi_alloc(ctx->x.heap, sizeof(rsi_trace), &block));
  rsi_trace *const t = block;
  const rs_status status = rsi_alloc(ctx->x.heap, sizeof(rs_program), &block);
  if (status != RS_OK) {
    rsi_free(ctx->x.heap, t, sizeof *t);
    return status;
  }
  t->program = block;
  memset(t->program, 0, sizeof(rs_program));
  atomic_init(&t->program->refs, 1);
  t->program->heap = ctx->x.heap;
  t->program->exact = ctx->x.exact;
  t->program->grads = ctx->grad_enabled != 0;
  t->status = RS_OK;
  t->serial = atomic_fetch_add_explicit(&serials, 1, memory_order_relaxed) + 1;
  *out = t;
  return RS_OK;
}

rs_status rs_trace_begin(rs_ctx *ctx, rs_tensor *const *inputs, int n) {
  RSI_CHECK(!ctx->trace && !ctx->paused, RS_ERR_STATE, "compile: a recording is under way already");
  rsi_trace *t;
  RSI_TRY(trace_new(ctx, &t));
  ctx->trace = t;
  t->program->ninputs = n;
  for (int i = 0; i < n; i++) {
    int id;
    rs_status status = RS_OK;
    if (!rsi_is_contiguous(inputs[i])) status = rsi_fail(RS_ERR_STATE, "compile: input %d must be contiguous", i + ctx->x.base);
    else if (inputs[i]->trace_serial == t->serial)
      status = rsi_fail(RS_ERR_ARG, "compile: input %d is the same tensor as an earlier one", i + ctx->x.base);
    else status = new_value(t, inputs[i], RSI_V_ARG, &id);
    if (status != RS_OK) {
      rs_trace_abort(ctx);
      return status;
    }
  }
  return RS_OK;
}

void rs_trace_abort(rs_ctx *ctx) {
  rs_trace_pause(ctx, 0);
  rsi_trace *const t = ctx->trace;
  if (!t) return;
  ctx->trace = NULL;
  for (int i = 0; i < t->program->nleaves; i++) restore_leaf(&t->program->leaves[i]);
  rsi_heap *const heap = t->program->heap;
  rs_program *const p = t->program;
  rsi_free(heap, t, sizeof *t);
  rs_program_release(p);
}

rs_status rs_trace_end(rs_ctx *ctx, rs_tensor *const *outputs, int n, rs_program **out) {
  RSI_CHECK(ctx->trace, RS_ERR_STATE, "compile: no recording is under way");
  rsi_trace *const t = ctx->trace;
  rs_program *const p = t->program;
  void *block;
  rs_status status = t->status;
  if (status != RS_OK) rsi_fail(status, "compile: an op could not be recorded, so the recording has a hole; record again");
  else status = rsi_alloc(p->heap, sizeof(int) * (size_t)(n ? n : 1), &block);
  if (status == RS_OK) {
    p->outputs = block;
    p->noutputs = n;
    for (int i = 0; i < n && status == RS_OK; i++) status = value_of(t, outputs[i], &p->outputs[i]);
    for (int i = 0; i < p->nleaves && status == RS_OK; i++) status = settle_leaf(t, &p->leaves[i]);
    for (int i = 0; i < n && status == RS_OK; i++) {
      rsi_value *const v = &p->values[rsi_base_of(p, p->outputs[i])];
      v->kept = v->kind == RSI_V_TEMP;
    }
    for (int k = 0; k < p->ninstrs; k++) rsi_instr_mark(p, &p->instrs[k]);
    if (status == RS_OK) status = rsi_plan(p);
  }
  if (status != RS_OK) {
    rs_trace_abort(ctx);
    return status;
  }
  ctx->trace = NULL;
  for (int i = 0; i < p->nleaves; i++) restore_leaf(&p->leaves[i]);
  rsi_free(p->heap, t, sizeof *t);
  rsi_ctx_retain(ctx);
  p->ctx = ctx;
  *out = p;
  return RS_OK;
}

int rs_trace_pause(rs_ctx *ctx, int paused) {
  const int former = ctx->paused != NULL;
  if (paused && ctx->trace) {
    ctx->paused = ctx->trace;
    ctx->trace = NULL;
  } else if (!paused && ctx->paused) {
    ctx->trace = ctx->paused;
    ctx->paused = NULL;
  }
  return former;
}

int rs_tensor_was_recorded(const rs_tensor *t) { return t->trace_serial != 0; }

int rs_is_tracing(const rs_ctx *ctx) { return ctx->trace != NULL; }

bool rsi_trace_knows(const rs_ctx *ctx, const rs_tensor *t) { return ctx->trace && t->trace_serial == ctx->trace->serial; }
