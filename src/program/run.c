/*
** Replay. A workspace holds a tensor for every value (bindings: the bound tensor itself) and a prepared call for every
** instruction, so a run is one indirect call per instruction and allocates nothing.
** Invariant: tensors[id] of an argument, or of a view of one, borrows the storage of the caller's tensor during a run only.
*/
#include "program/internal.h"
#include <string.h>

struct rs_workspace {
  const rs_program *program;
  rs_ctx           *ctx;
  size_t            bytes;        /* of this block */
  void             *scratch;      /* the most that a kernel needs with these loops and this many threads */
  size_t            scratch_bytes;
  const rsi_kernels *k;
  int               threads;
  rs_tensor       **tensors;      /* [nvalues] */
  rsi_call         *calls;        /* [ninstrs] */
  rs_tensor       **operands;     /* inputs and outputs of all calls */
};

void rs_program_release(rs_program *p) {
  if (!p || atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1) return;
  rsi_heap *const heap = p->heap;
  rs_ctx *const ctx = p->ctx;
  for (int i = 0; i < p->nvalues; i++) rs_tensor_release(p->values[i].bound);
  for (int i = 0; i < p->ninstrs; i++) {
    rsi_instr *const instr = &p->instrs[i];
    if (instr->ids) rsi_free(heap, instr->ids, instr->ids_bytes + (instr->ids_bytes == 0));
    if (instr->attrs) rsi_free(heap, instr->attrs, (size_t)instr->op->attrs_size);
  }
  if (p->outputs) rsi_free(heap, p->outputs, sizeof(int) * (size_t)(p->noutputs ? p->noutputs : 1));
  rsi_free(heap, p->values, sizeof(rsi_value) * (size_t)p->values_capacity);
  rsi_free(heap, p->instrs, sizeof(rsi_instr) * (size_t)p->instrs_capacity);
  rsi_free(heap, p, sizeof *p);
  rs_ctx_release(ctx);
}

int rs_program_length(const rs_program *p) { return p->ninstrs; }

/* ---- workspace ------------------------------------------------------------------------------------------------------- */

static bool borrows(const rs_program *p, int id) { return p->values[p->values[id].base].kind == RSI_V_ARG; }

/* A header without a storage of its own; a run lends it one. */
static rs_status lent_tensor(rsi_heap *heap, const rsi_value *v, rs_tensor **out) {
  void *block;
  RSI_TRY(rsi_alloc(heap, sizeof(rs_tensor), &block));
  rs_tensor *const t = block;
  memset(t, 0, sizeof *t);
  atomic_init(&t->refs, 1);
  t->dtype = (uint8_t)v->desc.dtype;
  t->ndim = (uint8_t)v->desc.ndim;
  t->numel = 1;
  for (int i = 0; i < t->ndim; i++) t->numel *= t->shape[i] = v->desc.shape[i];
  memcpy(t->strides, v->strides, sizeof t->strides);
  rsi_tensor_update_flags(t);
  *out = t;
  return RS_OK;
}

static rs_status make_tensor(rs_workspace *w, int id) {
  const rs_program *const p = w->program;
  const rsi_value *const v = &p->values[id];
  rsi_heap *const heap = w->ctx->x.heap;
  if (borrows(p, id)) return lent_tensor(heap, v, &w->tensors[id]);
  if (v->kind == RSI_V_BOUND) w->tensors[id] = rs_tensor_retain(v->bound);
  else if (v->kind == RSI_V_TEMP) return rsi_tensor_new(heap, &v->desc, &w->tensors[id]);
  else {
    const rs_tensor *const base = w->tensors[v->base];
    RSI_TRY(rsi_tensor_view(base, 0, v->desc.ndim, v->desc.shape, v->strides, &w->tensors[id]));
    w->tensors[id]->data = (char *)base->data + v->offset;
  }
  return RS_OK;
}

static void prepare_calls(rs_workspace *w) {
  const rs_program *const p = w->program;
  rs_tensor **at = w->operands;
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const instr = &p->instrs[k];
    rsi_call *const c = &w->calls[k];
    c->op = instr->op;
    c->x = &w->ctx->x;
    c->ctx = NULL;
    c->nin = instr->nin;
    c->nout = instr->nout;
    c->attrs = instr->attrs;
    c->scratch = NULL;
    memcpy(c->desc, instr->desc, sizeof c->desc);
    c->in = at;
    for (int i = 0; i < instr->nin + instr->nout; i++)
      at[i] = instr->ids[i] < 0 ? NULL : w->tensors[instr->ids[i]];
    c->out = at + instr->nin;
    at += instr->nin + instr->nout;
  }
}

/* Kernels may need other scratch memory when the context's threads or instruction set were changed. */
static rs_status fit_scratch(rs_workspace *w) {
  const rs_program *const p = w->program;
  rsi_heap *const heap = w->ctx->x.heap;
  size_t most = 0;
  void *block = NULL;
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_kernel *const kernel = p->instrs[k].kernel;
    const size_t bytes = kernel && kernel->scratch ? kernel->scratch(&w->calls[k]) : 0;
    if (bytes > most) most = bytes;
  }
  if (most) RSI_TRY(rsi_alloc(heap, most, &block));
  if (w->scratch) rsi_free(heap, w->scratch, w->scratch_bytes);
  w->scratch = block;
  w->scratch_bytes = most;
  w->k = w->ctx->x.k;
  w->threads = w->ctx->threads;
  for (int k = 0; k < p->ninstrs; k++) w->calls[k].scratch = block;
  return RS_OK;
}

rs_status rs_workspace_create(rs_ctx *ctx, const rs_program *p, rs_workspace **out) {
  size_t operands = 0;
  void *block;
  for (int k = 0; k < p->ninstrs; k++) operands += (size_t)(p->instrs[k].nin + p->instrs[k].nout);
  const size_t calls = sizeof(rs_workspace), tensors = calls + sizeof(rsi_call) * (size_t)p->ninstrs;
  const size_t ops = tensors + sizeof(rs_tensor *) * (size_t)p->nvalues, bytes = ops + sizeof(rs_tensor *) * operands;
  RSI_TRY(rsi_alloc(ctx->x.heap, bytes, &block));
  memset(block, 0, bytes);
  rs_workspace *const w = block;
  w->program = p;
  w->ctx = ctx;
  w->bytes = bytes;
  w->calls = (void *)((char *)block + calls);
  w->tensors = (void *)((char *)block + tensors);
  w->operands = (void *)((char *)block + ops);
  rsi_ctx_retain(ctx);
  atomic_fetch_add_explicit(&((rs_program *)(uintptr_t)p)->refs, 1, memory_order_relaxed);
  rs_status status = RS_OK;
  for (int id = 0; id < p->nvalues && status == RS_OK; id++) status = make_tensor(w, id);
  if (status == RS_OK) {
    prepare_calls(w);
    status = fit_scratch(w);
  }
  if (status != RS_OK) {
    rs_workspace_release(w);
    return status;
  }
  *out = w;
  return RS_OK;
}

void rs_workspace_release(rs_workspace *w) {
  if (!w) return;
  rs_ctx *const ctx = w->ctx;
  rs_program *const p = (rs_program *)(uintptr_t)w->program;
  for (int id = 0; id < p->nvalues; id++) {
    if (!w->tensors[id]) continue;
    if (borrows(p, id)) rsi_free(ctx->x.heap, w->tensors[id], sizeof(rs_tensor));
    else rs_tensor_release(w->tensors[id]);
  }
  if (w->scratch) rsi_free(ctx->x.heap, w->scratch, w->scratch_bytes);
  rsi_free(ctx->x.heap, w, w->bytes);
  rs_program_release(p);
  rs_ctx_release(ctx);
}

/* ---- run ------------------------------------------------------------------------------------------------------------- */

static rs_status check_form(const rs_program *p, int id, const rs_tensor *t, const char *what, int number) {
  const rsi_value *const v = &p->values[id];
  bool same = t->dtype == v->desc.dtype && t->ndim == v->desc.ndim;
  for (int i = 0; same && i < t->ndim; i++)
    same = t->shape[i] == v->desc.shape[i] && (t->numel == 0 || t->shape[i] == 1 || t->strides[i] == v->strides[i]);
  RSI_CHECK(same, RS_ERR_SHAPE,
            "program: %s %d is %s %s, but was recorded as %s %s%s; record again", what, number, rs_dtype_name(t->dtype), rsi_text(t),
            rs_dtype_name(v->desc.dtype), rsi_shape_text(v->desc.ndim, v->desc.shape),
            t->dtype == v->desc.dtype && t->ndim == v->desc.ndim ? " (or has other strides)" : "");
  return RS_OK;
}

/* Arguments were apart when they were recorded; a program that writes one must not meet it as another. */
static rs_status check_apart(const rs_program *p, rs_tensor *const *inputs, int base) {
  for (int i = 0; i < p->ninputs; i++)
    for (int j = 0; j < i; j++)
      RSI_CHECK(inputs[i]->storage != inputs[j]->storage, RS_ERR_ARG,
                "program: inputs %d and %d share memory, and the program writes to an input; pass a clone", j + base, i + base);
  return RS_OK;
}

/* Lends the arguments' storages to their values and to the views of them; follows bindings whose data was moved. */
static rs_status bind(rs_workspace *w, rs_tensor *const *inputs) {
  const rs_program *const p = w->program;
  const int base = w->ctx->x.base;
  for (int i = 0; i < p->ninputs; i++) RSI_TRY(check_form(p, i, inputs[i], "input", i + base));
  if (p->writes_inputs) RSI_TRY(check_apart(p, inputs, base));
  for (int id = 0; id < p->nvalues; id++) {
    const rsi_value *const v = &p->values[id];
    rs_tensor *const t = w->tensors[id];
    if (v->kind == RSI_V_BOUND) RSI_TRY(check_form(p, id, t, "bound tensor", id));
    if (borrows(p, id)) {
      t->storage = inputs[v->base]->storage;
      t->data = (char *)inputs[v->base]->data + v->offset;
    } else if (v->kind == RSI_V_VIEW && p->values[v->base].kind == RSI_V_BOUND) {
      rs_tensor *const of = w->tensors[v->base];
      if (t->storage != of->storage) rsi_tensor_move(t, of->storage);
      t->data = (char *)of->data + v->offset;
    }
  }
  return RS_OK;
}

static rs_status give_output(rs_workspace *w, int id, rs_tensor *const *inputs, rs_tensor **out) {
  const rsi_value *const v = &w->program->values[id];
  if (v->kind == RSI_V_ARG) *out = rs_tensor_retain(inputs[id]);
  else if (!borrows(w->program, id)) *out = rs_tensor_retain(w->tensors[id]);
  else {
    const rs_tensor *const of = inputs[v->base];
    RSI_TRY(rsi_tensor_view(of, 0, v->desc.ndim, v->desc.shape, v->strides, out));
    (*out)->data = (char *)of->data + v->offset;
  }
  return RS_OK;
}

rs_status rs_program_run(const rs_program *p, rs_workspace *w, rs_tensor *const *inputs, int nin, rs_tensor **outputs, int nout) {
  RSI_CHECK(w->program == p, RS_ERR_ARG, "program: the workspace belongs to another program");
  RSI_CHECK(nin == p->ninputs && nout == p->noutputs, RS_ERR_ARG, "program: %d inputs and %d outputs were given, it has %d and %d",
            nin, nout, p->ninputs, p->noutputs);
  RSI_TRY(bind(w, inputs));
  if (rsi_unlikely(w->k != w->ctx->x.k || w->threads != w->ctx->threads)) RSI_TRY(fit_scratch(w));
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const instr = &p->instrs[k];
    const rsi_call *const c = &w->calls[k];
    if (!instr->kernel) continue;
    const rs_status status = instr->kernel->run(c);
    if (rsi_unlikely(status != RS_OK)) return rsi_fail_prefix(status, instr->op->name);
    if (instr->inplace) rsi_wrote(c->out[0], instr->op->name);
    if (instr->op->writes)
      for (int i = 0; i < c->nin; i++)
        if (c->in[i] && instr->op->writes(c, i)) rsi_wrote(c->in[i], instr->op->name);
  }
  for (int i = 0; i < nout; i++) outputs[i] = NULL;
  rs_status status = RS_OK;
  for (int i = 0; i < nout && status == RS_OK; i++) status = give_output(w, p->outputs[i], inputs, &outputs[i]);
  for (int i = 0; i < nout && status != RS_OK; i++) {
    rs_tensor_release(outputs[i]);
    outputs[i] = NULL;
  }
  return status;
}
