/*
** Rewriting a program: what all passes share. See internal.h for what an edit is; a pass never touches arrays of instructions
** itself.
*/
#include "program/internal.h"
#include <string.h>

/* ---- instructions ----------------------------------------------------------------------------------------------------- */

rs_status rsi_instr_new(rs_program *p, const rs_op *op, int nin, int nout, const void *attrs, rsi_instr **out) {
  void *block;
  RSI_TRY(rsi_grow(p->heap, (void **)&p->instrs, p->ninstrs, &p->instrs_capacity, sizeof(rsi_instr)));
  rsi_instr *const i = &p->instrs[p->ninstrs++];
  memset(i, 0, sizeof *i);
  i->op = op;
  i->nin = nin;
  i->nout = nout;
  if (op->attrs_size) {
    RSI_TRY(rsi_alloc(p->heap, (size_t)op->attrs_size, &i->attrs));
    memcpy(i->attrs, attrs, (size_t)op->attrs_size);
  }
  const size_t ids = sizeof(int) * (size_t)(nin + nout), bytes = ids + (size_t)nin;
  i->ids_bytes = bytes ? bytes : 1;
  const rs_status status = rsi_alloc(p->heap, i->ids_bytes, &block);
  if (status != RS_OK) {
    i->ids_bytes = 0;
    i->nin = i->nout = 0;
    return status;
  }
  i->ids = block;
  i->writes = (uint8_t *)block + ids;
  memset(i->ids, -1, ids);
  memset(i->writes, 0, (size_t)nin);
  *out = i;
  return RS_OK;
}

void rsi_instr_free(rs_program *p, rsi_instr *i) {
  if (i->ids) rsi_free(p->heap, i->ids, i->ids_bytes);
  if (i->attrs) rsi_free(p->heap, i->attrs, (size_t)i->op->attrs_size);
  i->ids = NULL;
  i->attrs = NULL;
}

void rsi_instr_mark(const rs_program *p, rsi_instr *i) {
  i->marks = false;
  for (int a = 0; a < i->nin; a++) i->marks |= i->writes[a] && p->values[rsi_base_of(p, i->ids[a])].kind != RSI_V_TEMP;
}

int rsi_number_of(const rs_op *op) {
  int n = 0;
  while (rsi_ops[n] != op) n++;
  return n;
}

/* ---- values ----------------------------------------------------------------------------------------------------------- */

bool rsi_is_outside(const rs_program *p, int id) {
  const rsi_value *const v = &p->values[rsi_base_of(p, id)];
  return v->kind != RSI_V_TEMP || v->kept;
}

void rsi_phantom(const rs_program *p, int id, rs_tensor *out) {
  const rsi_value *const v = &p->values[id];
  memset(out, 0, sizeof *out);
  atomic_init(&out->refs, 1);
  out->dtype = (uint8_t)v->desc.dtype;
  out->ndim = (uint8_t)v->desc.ndim;
  out->numel = 1;
  for (int i = 0; i < v->desc.ndim; i++) out->numel *= out->shape[i] = v->desc.shape[i];
  memcpy(out->strides, v->strides, sizeof out->strides);
  rsi_tensor_update_flags(out);
}

static rs_status new_temp(rs_program *p, const rsi_desc *desc, int *id) {
  RSI_TRY(rsi_grow(p->heap, (void **)&p->values, p->nvalues, &p->values_capacity, sizeof(rsi_value)));
  rsi_value *const v = &p->values[p->nvalues];
  memset(v, 0, sizeof *v);
  v->kind = RSI_V_TEMP;
  v->base = p->nvalues;
  v->place = v->first = v->last = -1;
  v->desc = *desc;
  int64_t stride = 1;
  for (int i = desc->ndim - 1; i >= 0; i--) {
    v->strides[i] = stride;
    stride *= desc->shape[i] > 0 ? desc->shape[i] : 1;
  }
  *id = p->nvalues++;
  return RS_OK;
}

/* ---- facts ------------------------------------------------------------------------------------------------------------ */

rs_status rsi_facts_make(const rs_program *p, rsi_facts *f) {
  const size_t n = (size_t)p->nvalues;
  void *block;
  f->block = n * (2 * sizeof(int) + sizeof(bool)) + 1;
  RSI_TRY(rsi_alloc(p->heap, f->block, &block));
  f->uses = block;
  f->def = f->uses + n;
  f->written = (bool *)(f->def + n);
  memset(f->uses, 0, n * sizeof(int));
  memset(f->def, -1, n * sizeof(int));
  memset(f->written, 0, n * sizeof(bool));
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const i = &p->instrs[k];
    for (int a = 0; a < i->nin; a++) {
      if (i->ids[a] < 0) continue;
      f->uses[i->ids[a]]++;
      if (i->writes[a]) f->written[rsi_base_of(p, i->ids[a])] = true;
    }
    for (int j = 0; j < i->nout && !i->inplace; j++) {
      const int id = i->ids[i->nin + j];
      if (id < 0) continue;
      if (f->def[id] >= 0 || p->values[id].kind == RSI_V_BOUND || p->values[id].kind == RSI_V_ARG) f->written[rsi_base_of(p, id)] = true;
      f->def[id] = k;
    }
  }
  for (int i = 0; i < p->noutputs; i++) f->uses[p->outputs[i]]++;
  return RS_OK;
}

void rsi_facts_free(const rs_program *p, rsi_facts *f) {
  rsi_free(p->heap, f->uses, f->block);
}

/* ---- edits ------------------------------------------------------------------------------------------------------------ */

rs_status rsi_edit_begin(rs_program *p, rsi_edit *e) {
  void *block;
  RSI_TRY(rsi_alloc(p->heap, sizeof(int) * (size_t)p->nvalues + 1, &block));
  *e = (rsi_edit){.p = p, .old = p->instrs, .nold = p->ninstrs, .old_capacity = p->instrs_capacity, .map = block, .nmap = p->nvalues};
  for (int i = 0; i < e->nmap; i++) e->map[i] = i;
  p->instrs = NULL;
  p->ninstrs = p->instrs_capacity = 0;
  return RS_OK;
}

int rsi_edit_id(const rsi_edit *e, int id) {
  while (id >= 0 && id < e->nmap && e->map[id] != id) id = e->map[id];
  return id;
}

void rsi_edit_map(rsi_edit *e, int from, int to) {
  if (rsi_edit_id(e, to) != from) e->map[from] = to;
}

void rsi_edit_set(rsi_edit *e, int value, int to) {
  if (value < e->nmap) e->map[value] = to;
}

/* Value `out` becomes the view of value `in`, whose place and strides may be others than when it was recorded. */
static rs_status take_view(rs_program *p, const rs_op *op, const void *attrs, int in, int out) {
  rs_tensor header, *pointer = &header;
  rsi_phantom(p, in, &header);
  rsi_call c = {.op = op, .x = &p->ctx->x, .ctx = p->ctx, .nin = 1, .nout = 1, .in = &pointer, .attrs = (void *)(uintptr_t)attrs};
  int64_t offset = 0, strides[RS_MAX_DIMS];
  RSI_TRY(op->infer(&c));
  RSI_TRY(op->view(&c, &offset, strides));
  rsi_value *const v = &p->values[out];
  const rsi_value *const of = &p->values[in];
  v->base = of->base;
  v->delta = offset * (int64_t)rsi_dtype_size[of->desc.dtype];
  v->offset = of->offset + v->delta;
  memcpy(v->strides, strides, sizeof v->strides);
  return RS_OK;
}

void rsi_edit_keep(rsi_edit *e, int k) {
  rs_program *const p = e->p;
  rsi_instr *const i = &e->old[k];
  if (e->status != RS_OK) return;
  e->status = rsi_grow(p->heap, (void **)&p->instrs, p->ninstrs, &p->instrs_capacity, sizeof(rsi_instr));
  if (e->status != RS_OK) return;
  for (int a = 0; a < i->nin; a++) i->ids[a] = rsi_edit_id(e, i->ids[a]);
  if (i->inplace) i->ids[i->nin] = i->ids[0];
  if (!i->kernel) e->status = take_view(p, i->op, i->attrs, i->ids[0], i->ids[i->nin]);
  if (e->status != RS_OK) return;
  p->instrs[p->ninstrs++] = *i;
  i->ids = NULL;                       /* moved */
  i->attrs = NULL;
}

/* Like choose() of the dispatcher, for a program's context. */
static const rsi_kernel *kernel_for(const rs_ctx *ctx, const rsi_call *c, int dtype) {
  for (const rsi_kernel *k = c->op->kernels; k->name; k++)
    if ((k->dtypes >> dtype & 1u) && rsi_backend_allowed(ctx, k->backend) && (!k->accepts || k->accepts(c))) return k;
  return NULL;
}

static bool same_form(const rsi_value *v, const rsi_desc *d) {
  if (v->desc.dtype != d->dtype || v->desc.ndim != d->ndim) return false;
  for (int i = 0; i < d->ndim; i++)
    if (v->desc.shape[i] != d->shape[i]) return false;
  return true;
}

static rs_status emit(rsi_edit *e, const rs_op *op, const void *attrs, int nin, const int *in, int nout, int *ids, rs_tensor *phantoms,
                      rs_tensor **pointers) {
  rs_program *const p = e->p;
  rsi_instr *i;
  _Alignas(16) char copy[RSI_MAX_ATTR_BYTES];
  rsi_op_attrs(op, attrs, copy);
  rsi_call c = {.op = op, .x = &p->ctx->x, .ctx = p->ctx, .nin = nin, .nout = op->nout, .in = pointers, .attrs = copy};
  for (int a = 0; a < nin; a++) {
    pointers[a] = NULL;
    if (in[a] < 0) continue;
    rsi_phantom(p, in[a], &phantoms[a]);
    pointers[a] = &phantoms[a];
  }
  if (op->infer) RSI_TRY(op->infer(&c));
  const int dtype = nin > 0 && pointers[0] ? phantoms[0].dtype : c.desc[0].dtype;
  const rsi_kernel *kernel = NULL;
  if (!(op->traits & RSI_T_VIEW)) {
    kernel = kernel_for(p->ctx, &c, dtype);
    RSI_CHECK(kernel, RS_ERR_UNSUPPORTED, "%s: no kernel takes %s", op->name, rs_dtype_name(dtype));
  }
  RSI_TRY(rsi_instr_new(p, op, nin, op->nout, copy, &i));
  i->kernel = kernel;
  memcpy(i->desc, c.desc, sizeof i->desc);
  for (int a = 0; a < nin; a++) {
    i->ids[a] = in[a];
    i->writes[a] = pointers[a] && op->writes && op->writes(&c, a);
  }
  for (int j = 0; j < op->nout; j++) {
    int id = j < nout ? ids[j] : -1;
    if (!kernel) {
      RSI_TRY(new_temp(p, &c.desc[0], &id));
      p->values[id].kind = RSI_V_VIEW;
      RSI_TRY(take_view(p, op, copy, in[0], id));
    } else if (id < 0) RSI_TRY(new_temp(p, &c.desc[j], &id));
    else RSI_CHECK(same_form(&p->values[id], &c.desc[j]), RS_ERR_SHAPE, "%s: result %d has another form than the value it defines", op->name, j);
    i->ids[nin + j] = id;
    if (j < nout) ids[j] = id;
  }
  rsi_instr_mark(p, i);
  return RS_OK;
}

bool rsi_edit_emit(rsi_edit *e, int number, const void *attrs, int nin, const int *in, int nout, int *ids) {
  rs_program *const p = e->p;
  const rs_op *const op = rsi_ops[number];
  void *block;
  const int wide = op->nin_max == RSI_VARIADIC || op->nin_max < nin ? nin : op->nin_max;
  const size_t each = sizeof(rs_tensor) + sizeof(rs_tensor *) + sizeof(int), bytes = each * (size_t)(wide + 1);
  if (e->status != RS_OK) return false;
  e->status = rsi_alloc(p->heap, bytes, &block);
  if (e->status != RS_OK) return false;
  rs_tensor *const phantoms = block;
  rs_tensor **const pointers = (rs_tensor **)(phantoms + wide + 1);
  int *const now = (int *)(pointers + wide + 1);
  for (int a = 0; a < wide; a++) now[a] = a < nin ? rsi_edit_id(e, in[a]) : -1;
  const int before = p->ninstrs;
  const rs_status status = emit(e, op, attrs, wide, now, nout, ids, phantoms, pointers);
  rsi_free(p->heap, block, bytes);
  if (status == RS_OK) return true;
  while (p->ninstrs > before) rsi_instr_free(p, &p->instrs[--p->ninstrs]);
  if (status == RS_ERR_NOMEM) e->status = status;      /* others say that the replacement is not possible here */
  return false;
}

rs_status rsi_edit_end(rsi_edit *e) {
  rs_program *const p = e->p;
  for (int i = 0; i < p->noutputs; i++) {
    const int was = p->outputs[i], now = rsi_edit_id(e, was);
    if (was == now) continue;
    p->outputs[i] = now;
    rsi_value *const base = &p->values[rsi_base_of(p, now)];
    base->kept = base->kind == RSI_V_TEMP;
  }
  for (int k = 0; k < e->nold; k++) rsi_instr_free(p, &e->old[k]);
  if (e->old) rsi_free(p->heap, e->old, sizeof(rsi_instr) * (size_t)e->old_capacity);
  rsi_free(p->heap, e->map, sizeof(int) * (size_t)e->nmap + 1);
  return e->status;
}
