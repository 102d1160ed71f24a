/*
** Running. A workspace holds a tensor for every value (bindings: the bound tensor itself) and a prepared call for every
** instruction, so a run is one indirect call per instruction and allocates nothing.
** Temporaries are headers over the arena, which several workspaces of one thread may share (it is as large as the largest needs);
** a workspace that finds the arena moved points its headers anew.
** Invariants: tensors[id] of an argument, or of a view of one, borrows the storage of the caller's tensor while a run lasts.
** A result has a tensor of its own. rs_program_call and rs_program_finish give it away (NULL here until the next run begins and
** makes another); one that the prologue made is needed again and is copied.
*/
#include "program/internal.h"
#include "profile.h"
#include <string.h>

typedef struct arena {
  int32_t     refs;
  rsi_heap   *heap;
  rsi_storage storage;          /* what the headers of temporaries point at; never freed through it */
  char       *base;
  size_t      bytes;
  const rs_workspace *stepping; /* whose run in steps is under way: what lies here is needed */
} arena;

struct rs_workspace {
  const rs_program *program;
  rs_ctx           *ctx;
  size_t            bytes;        /* of this block */
  arena            *arena;
  char             *arena_base;   /* where the headers point */
  char             *fixed;        /* what the prologue made */
  size_t            fixed_bytes;
  bool              ready;        /* the prologue has run, for the versions in `seen` */
  const rsi_kernels *k;
  int               threads;
  int               at;           /* the next instruction of a run under way; -1: none */
  int               nlent, nbound, nwatched, nresults, nviews, napart;
  bool              gave;         /* results were given away */
  size_t            scratch_at;   /* offset in the arena */
  rs_tensor       **tensors;      /* [nvalues] */
  rs_tensor        *headers;      /* [nvalues] of temporaries and views */
  rsi_call         *calls;        /* [ninstrs] */
  rs_tensor       **operands;     /* inputs and outputs of all calls */
  rs_tensor       **held;         /* [ninputs] of a run in steps, one reference each */
  int              *lent, *bound, *watched;   /* values that lie in arguments; bindings; bindings that the prologue reads */
  int              *results, *views;          /* values that a call gives away; views of them */
  int              *apart;                    /* bindings in whose memory no argument may lie: one of the two is written */
  uint32_t         *seen;         /* [nwatched] versions */
};

void rs_program_release(rs_program *p) {
  if (!p || atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1) return;
  rsi_heap *const heap = p->heap;
  rs_ctx *const ctx = p->ctx;
  for (int i = 0; i < p->nvalues; i++) rs_tensor_release(p->values[i].bound);
  for (int i = 0; i < p->ninstrs; i++) rsi_instr_free(p, &p->instrs[i]);
  for (int i = 0; i < p->nleaves; i++) {
    rs_tensor_release(p->leaves[i].expected);
    rs_tensor_release(p->leaves[i].after);
    rsi_node_release(p->leaves[i].node);
  }
  if (p->outputs) rsi_free(heap, p->outputs, sizeof(int) * (size_t)(p->noutputs ? p->noutputs : 1));
  rsi_free(heap, p->values, sizeof(rsi_value) * (size_t)p->values_capacity);
  rsi_free(heap, p->instrs, sizeof(rsi_instr) * (size_t)p->instrs_capacity);
  rsi_free(heap, p->leaves, sizeof(rsi_leaf) * (size_t)p->leaves_capacity);
  rsi_free(heap, p, sizeof *p);
  rs_ctx_release(ctx);
}

/* ---- workspace ------------------------------------------------------------------------------------------------------- */

static bool borrows(const rs_program *p, int id) { return p->values[rsi_base_of(p, id)].kind == RSI_V_ARG; }

/* A header in the workspace's block, without data yet. */
static rs_tensor *header(rs_workspace *w, int id) {
  rs_tensor *const t = &w->headers[id];
  rsi_phantom(w->program, id, t);
  return t;
}

static rs_status make_tensor(rs_workspace *w, int id) {
  const rs_program *const p = w->program;
  const rsi_value *const v = &p->values[id];
  if (v->kind == RSI_V_BOUND) {
    w->tensors[id] = rs_tensor_retain(v->bound);
    return RS_OK;
  }
  if (v->kind == RSI_V_TEMP && v->kept) return rsi_tensor_new(w->ctx->x.heap, &v->desc, &w->tensors[id]);
  w->tensors[id] = header(w, id);
  return RS_OK;
}

/* What the instructions read and write, in the order of their ids. */
static void list_operands(rs_workspace *w) {
  const rs_program *const p = w->program;
  rs_tensor **at = w->operands;
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const instr = &p->instrs[k];
    for (int i = 0; i < instr->nin + instr->nout; i++, at++) *at = instr->ids[i] < 0 ? NULL : w->tensors[instr->ids[i]];
  }
}

static void prepare_calls(rs_workspace *w) {
  const rs_program *const p = w->program;
  rs_tensor **at = w->operands;
  list_operands(w);
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
    c->out = at + instr->nin;
    at += instr->nin + instr->nout;
  }
}

static bool is_given(const rs_program *p, int id) {
  const rsi_value *const v = &p->values[id];
  return v->kind == RSI_V_TEMP && v->kept && v->first >= p->nprologue;
}

/* Bindings that an argument must not share memory with: those that are written; all, where an argument is written. */
static void list_apart(rs_workspace *w) {
  const rs_program *const p = w->program;
  for (int b = 0; b < w->nbound && p->writes_inputs; b++) w->apart[w->napart++] = w->bound[b];
  if (p->writes_inputs || p->ninputs == 0) return;
  for (int k = 0; k < p->ninstrs; k++) {
    const rsi_instr *const instr = &p->instrs[k];
    for (int a = 0; a < instr->nin + instr->nout; a++) {
      if (instr->ids[a] < 0 || !(a < instr->nin ? instr->writes[a] : instr->kernel != NULL)) continue;
      const int base = rsi_base_of(p, instr->ids[a]);
      bool known = p->values[base].kind != RSI_V_BOUND;
      for (int i = 0; i < w->napart && !known; i++) known = w->apart[i] == base;
      if (!known) w->apart[w->napart++] = base;
    }
  }
}

static void list_values(rs_workspace *w) {
  const rs_program *const p = w->program;
  for (int id = 0; id < p->nvalues; id++) {
    if (borrows(p, id)) w->lent[w->nlent++] = id;
    if (is_given(p, id)) w->results[w->nresults++] = id;
    else if (is_given(p, rsi_base_of(p, id))) w->views[w->nviews++] = id;
    if (p->values[id].kind == RSI_V_BOUND) w->bound[w->nbound++] = id;
  }
  for (int b = 0; b < w->nbound; b++) {
    const int id = w->bound[b];
    bool read = false;
    for (int k = 0; k < p->nprologue && !read; k++)
      for (int a = 0; a < p->instrs[k].nin; a++) read |= p->instrs[k].ids[a] >= 0 && rsi_base_of(p, p->instrs[k].ids[a]) == id;
    if (read) w->watched[w->nwatched++] = id;
  }
  list_apart(w);
}

/* Bytes of scratch memory of instruction k; a kernel that needs none gets NULL, as from the dispatcher. */
static size_t scratch_of(const rs_workspace *w, int k) {
  const rsi_kernel *const kernel = w->program->instrs[k].kernel;
  return kernel && kernel->scratch ? kernel->scratch(&w->calls[k]) : 0;
}

static void point_view(rs_workspace *w, int id) {
  const rsi_value *const v = &w->program->values[id];
  w->tensors[id]->storage = w->tensors[v->base]->storage;
  w->tensors[id]->data = (char *)w->tensors[v->base]->data + v->offset;
}

/* Headers whose data lies in the arena, in the prologue's block, or in another value's tensor. */
static void point(rs_workspace *w) {
  const rs_program *const p = w->program;
  for (int id = 0; id < p->nvalues; id++) {
    const rsi_value *const v = &p->values[id], *const b = &p->values[v->base];
    rs_tensor *const t = w->tensors[id];
    if (t != &w->headers[id] || b->kind == RSI_V_ARG) continue;
    if (b->kind == RSI_V_TEMP && !b->kept) {
      t->storage = &w->arena->storage;
      t->data = b->place < 0 ? NULL : (b->first < p->nprologue ? w->fixed : w->arena->base) + b->place + v->offset;
    } else point_view(w, id);
  }
  w->arena_base = w->arena->base;
  for (int k = 0; k < p->ninstrs; k++) w->calls[k].scratch = scratch_of(w, k) > 0 ? w->arena->base + w->scratch_at : NULL;
}

/* The arena must hold the plan and the most scratch memory that a kernel needs with these loops and this many threads. */
static rs_status fit(rs_workspace *w) {
  const rs_program *const p = w->program;
  arena *const a = w->arena;
  size_t most = 0;
  for (int k = 0; k < p->ninstrs; k++) {
    const size_t bytes = scratch_of(w, k);
    if (bytes > most) most = bytes;
  }
  w->scratch_at = ((size_t)p->arena_bytes + RSI_ALIGN - 1) / RSI_ALIGN * RSI_ALIGN;
  const size_t wanted = w->scratch_at + most + RSI_ALIGN;
  if (wanted > a->bytes) {
    void *block;
    RSI_TRY(rsi_alloc(a->heap, wanted, &block));
    rsi_free(a->heap, a->base, a->bytes);
    a->base = block;
    a->bytes = wanted;
    a->storage.data = block;
    a->storage.bytes = wanted;
  }
  w->k = w->ctx->x.k;
  w->threads = w->ctx->threads;
  point(w);
  return RS_OK;
}

static rs_status arena_new(rsi_heap *heap, arena **out) {
  void *block;
  RSI_TRY(rsi_alloc(heap, sizeof(arena), &block));
  arena *const a = block;
  memset(a, 0, sizeof *a);
  a->refs = 1;
  a->heap = heap;
  atomic_init(&a->storage.refs, 1 << 30);
  a->storage.heap = heap;
  *out = a;
  return RS_OK;
}

static void arena_release(arena *a) {
  if (!a || --a->refs > 0) return;
  rsi_heap *const heap = a->heap;
  rsi_free(heap, a->base, a->bytes);
  rsi_free(heap, a, sizeof *a);
}

static void drop_held(rs_workspace *w) {
  for (int i = 0; i < w->program->ninputs; i++) {
    rs_tensor_release(w->held[i]);
    w->held[i] = NULL;
  }
  w->at = -1;
  if (w->arena && w->arena->stepping == w) w->arena->stepping = NULL;
}

static size_t take(size_t *at, size_t bytes) {
  const size_t here = *at;
  *at += (bytes + 15) / 16 * 16;
  return here;
}

static rs_status fill(rs_workspace *w, rs_workspace *beside) {
  const rs_program *const p = w->program;
  void *block;
  if (beside) w->arena = beside->arena, w->arena->refs++;
  else RSI_TRY(arena_new(w->ctx->x.heap, &w->arena));
  for (int id = 0; id < p->nvalues; id++) RSI_TRY(make_tensor(w, id));
  if (p->prologue_bytes) {
    RSI_TRY(rsi_alloc(w->ctx->x.heap, (size_t)p->prologue_bytes, &block));
    w->fixed = block;
    w->fixed_bytes = (size_t)p->prologue_bytes;
  }
  list_values(w);
  prepare_calls(w);
  return fit(w);
}

rs_status rs_workspace_create_beside(rs_ctx *ctx, const rs_program *program, rs_workspace *beside, rs_workspace **out) {
  rs_program *const p = (rs_program *)(uintptr_t)program;
  size_t operands = 0, at = 0;
  void *block;
  *out = NULL;
  RSI_CHECK(!beside || beside->ctx == ctx, RS_ERR_ARG, "workspace: one context's workspaces share memory; the other belongs to another");
  RSI_CHECK(!beside || !beside->arena->stepping, RS_ERR_STATE,
            "workspace: a run in steps is under way in the memory that is to be shared; finish or cancel it first");
  RSI_CHECK(!p->spoiled, RS_ERR_STATE, "workspace: rewriting the program failed half-way; record again");
  atomic_store_explicit(&p->used, true, memory_order_relaxed);
  for (int k = 0; k < p->ninstrs; k++) operands += (size_t)(p->instrs[k].nin + p->instrs[k].nout);
  const size_t n = (size_t)p->nvalues;
  take(&at, sizeof(rs_workspace));
  const size_t calls = take(&at, sizeof(rsi_call) * (size_t)p->ninstrs), tensors = take(&at, sizeof(rs_tensor *) * n);
  const size_t headers = take(&at, sizeof(rs_tensor) * n), ops = take(&at, sizeof(rs_tensor *) * operands);
  const size_t held = take(&at, sizeof(rs_tensor *) * (size_t)p->ninputs), lists = take(&at, 6 * sizeof(int) * n);
  const size_t seen = take(&at, sizeof(uint32_t) * n);
  RSI_TRY(rsi_alloc(ctx->x.heap, at, &block));
  memset(block, 0, at);
  char *const start = block;
  rs_workspace *const w = block;
  w->program = p;
  w->ctx = ctx;
  w->bytes = at;
  w->at = -1;
  w->calls = (void *)(start + calls);
  w->tensors = (void *)(start + tensors);
  w->headers = (void *)(start + headers);
  w->operands = (void *)(start + ops);
  w->held = (void *)(start + held);
  w->lent = (void *)(start + lists);
  w->bound = w->lent + n;
  w->watched = w->bound + n;
  w->results = w->watched + n;
  w->views = w->results + n;
  w->apart = w->views + n;
  w->seen = (void *)(start + seen);
  rsi_ctx_retain(ctx);
  atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
  const rs_status status = fill(w, beside);
  if (status != RS_OK) {
    rs_workspace_release(w);
    return status;
  }
  *out = w;
  return RS_OK;
}

rs_status rs_workspace_create(rs_ctx *ctx, const rs_program *p, rs_workspace **out) {
  return rs_workspace_create_beside(ctx, p, NULL, out);
}

void rs_workspace_release(rs_workspace *w) {
  if (!w) return;
  rs_ctx *const ctx = w->ctx;
  rs_program *const p = (rs_program *)(uintptr_t)w->program;
  drop_held(w);
  for (int id = 0; id < p->nvalues; id++)
    if (w->tensors[id] != &w->headers[id]) rs_tensor_release(w->tensors[id]);
  arena_release(w->arena);
  rsi_free(ctx->x.heap, w->fixed, w->fixed_bytes);
  rsi_free(ctx->x.heap, w, w->bytes);
  rs_program_release(p);
  rs_ctx_release(ctx);
}

double rs_workspace_bytes(const rs_workspace *w) {
  return (double)(w->bytes + w->fixed_bytes + w->arena->bytes);
}

/* ---- before a run ---------------------------------------------------------------------------------------------------- */

static bool has_form(const rsi_value *v, const rs_tensor *t) {
  if (t->dtype != v->desc.dtype || t->ndim != v->desc.ndim) return false;
  for (int i = 0; i < t->ndim; i++)
    if (t->shape[i] != v->desc.shape[i] || (t->numel != 0 && t->shape[i] != 1 && t->strides[i] != v->strides[i])) return false;
  return true;
}

/* The place of a binding among the bindings. */
static int rank_of(const rs_workspace *w, int id) {
  int b = 0;
  while (b < w->nbound && w->bound[b] != id) b++;
  return b;
}

static rs_status wrong_form(const rsi_value *v, const rs_tensor *t, const char *what, int number) {
  bool strides = t->dtype == v->desc.dtype && t->ndim == v->desc.ndim;
  for (int i = 0; i < t->ndim && strides; i++) strides = t->shape[i] == v->desc.shape[i];
  return rsi_fail(RS_ERR_SHAPE,
                  "program: %s %d is %s %s, but was recorded as %s %s%s; record again", what, number, rs_dtype_name(t->dtype), rsi_text(t),
                  rs_dtype_name(v->desc.dtype), rsi_shape_text(v->desc.ndim, v->desc.shape),
                  strides ? " with other strides" : "");
}

/* Arguments were apart, and apart from bindings, when they were recorded; what a program writes it must not meet as another value. */
static rs_status check_apart(const rs_workspace *w, rs_tensor *const *inputs, int base) {
  const rs_program *const p = w->program;
  for (int i = 0; i < p->ninputs; i++)
    for (int b = 0; b < w->napart; b++)
      if (rsi_unlikely(inputs[i]->storage == p->values[w->apart[b]].bound->storage))
        return rsi_fail(RS_ERR_ARG,
                        "program: input %d shares memory with bound tensor %d, and the program writes to one of them; pass a clone",
                        i + base, rank_of(w, w->apart[b]) + base);
  if (!p->writes_inputs) return RS_OK;
  for (int i = 0; i < p->ninputs; i++)
    for (int j = 0; j < i; j++)
      RSI_CHECK(inputs[i]->storage != inputs[j]->storage, RS_ERR_ARG,
                "program: inputs %d and %d share memory, and the program writes to an input; pass a clone", j + base, i + base);
  return RS_OK;
}

/* A result that a run left in the workspace is written by the next one, maybe before it is read. After a call there is none. */
static rs_status check_results(const rs_workspace *w, rs_tensor *const *inputs) {
  const rs_program *const p = w->program;
  for (int j = 0; j < p->noutputs; j++) {
    const int id = rsi_base_of(p, p->outputs[j]);
    const rs_tensor *const t = w->tensors[id];
    if (!t || p->values[id].kind != RSI_V_TEMP) continue;
    for (int i = 0; i < p->ninputs; i++)
      RSI_CHECK(inputs[i]->storage != t->storage, RS_ERR_ARG, "program: input %d is result %d of this workspace's last run, which the next run "
                "overwrites; clone it, or use rs_program_call, whose results are the caller's", i + w->ctx->x.base, j + w->ctx->x.base);
  }
  return RS_OK;
}

static rs_status check_bound(const rs_workspace *w) {
  for (int b = 0; b < w->nbound; b++) {
    const rsi_value *const v = &w->program->values[w->bound[b]];
    const rs_tensor *const t = v->bound;
    const bool same = has_form(v, t);
    if (rsi_likely(same && t->data == v->data)) continue;
    if (!same) return wrong_form(v, t, "bound tensor", b + w->ctx->x.base);
    return rsi_fail(RS_ERR_STATE, "program: bound tensor %d, %s %s, was given other memory since it was recorded; record again",
                    b + w->ctx->x.base, rs_dtype_name(t->dtype), rsi_text(t));
  }
  return RS_OK;
}

static bool leaf_fits(const rsi_leaf *leaf) {
  const rs_tensor *const now = leaf->node->kept[0];
  return leaf->before == RSI_GRAD_ANY || now == (leaf->before == RSI_GRAD_THIS ? leaf->expected : NULL);
}

static bool leaves_fit(const rs_program *p) {
  for (int i = 0; i < p->nleaves; i++)
    if (rsi_unlikely(!leaf_fits(&p->leaves[i]))) return false;
  return true;
}

/* Who wanted a gradient when it was recorded still does, and nobody else. */
static bool wants_fit(const rs_program *p, rs_tensor *const *inputs) {
  if (!p->grads) return true;
  for (int i = 0; i < p->nvalues; i++) {
    const rsi_value *const v = &p->values[i];
    const rs_tensor *const t = v->kind == RSI_V_BOUND ? v->bound : v->kind == RSI_V_ARG ? inputs[i] : NULL;
    if (t && v->wants != (t->node != NULL)) return false;
  }
  return true;
}

int rs_program_writes_inputs(const rs_program *p) { return p->writes_inputs; }

int rs_program_fits(const rs_program *p, rs_tensor *const *inputs, int nin) {
  if (nin != p->ninputs || !leaves_fit(p) || !wants_fit(p, inputs)) return 0;
  for (int i = 0; i < nin; i++)
    if (!has_form(&p->values[i], inputs[i])) return 0;
  return 1;
}

/* Runs the instructions first..last-1 until `end` (seconds; 0: no limit). Returns where it stopped through `at`. */
static rs_status run_range(rs_workspace *w, int *at, int last, double end) {
  const rs_program *const p = w->program;
  const bool profiled = w->ctx->profile.events != NULL;
  for (int k = *at; k < last; k++) {
    const rsi_instr *const instr = &p->instrs[k];
    if (!instr->kernel) continue;
    if (rsi_unlikely(end > 0 && k > *at && rs_time() >= end)) {
      *at = k;
      return RS_OK;
    }
    const rsi_call *const c = &w->calls[k];
    const rs_status status = rsi_likely(!profiled) ? instr->kernel->run(c) : rsi_profile_run(w->ctx, c, instr->kernel, p, k);
    if (rsi_unlikely(status != RS_OK)) return rsi_fail_prefix(status, instr->op->name);
    if (rsi_unlikely(instr->marks))
      for (int a = 0; a < c->nin; a++)
        if (instr->writes[a]) rsi_wrote(c->in[a], instr->op->name);
  }
  *at = last;
  return RS_OK;
}

/* What the prologue read is as it was when it ran; or it runs again. */
static rs_status refresh(rs_workspace *w) {
  bool same = w->ready;
  for (int i = 0; i < w->nwatched; i++) {
    const uint32_t version = w->tensors[w->watched[i]]->storage->version;
    same &= w->seen[i] == version;
    w->seen[i] = version;
  }
  if (rsi_likely(same)) return RS_OK;
  int at = 0;
  w->ready = false;
  RSI_TRY(run_range(w, &at, w->program->nprologue, 0));
  w->ready = true;
  return RS_OK;
}

void rs_workspace_refresh(rs_workspace *w) { w->ready = false; }

/* New tensors for the results that were given away. */
static rs_status renew(rs_workspace *w) {
  for (int i = 0; i < w->nresults; i++) {
    const int id = w->results[i];
    if (!w->tensors[id]) RSI_TRY(rsi_tensor_new(w->ctx->x.heap, &w->program->values[id].desc, &w->tensors[id]));
  }
  list_operands(w);
  for (int i = 0; i < w->nviews; i++) point_view(w, w->views[i]);
  w->gave = false;
  return RS_OK;
}

static rs_status begin(rs_workspace *w, rs_tensor *const *inputs) {
  const rs_program *const p = w->program;
  const int base = w->ctx->x.base;
  RSI_CHECK(!w->arena->stepping, RS_ERR_STATE, "program: a run in steps is under way in %s; finish or cancel it first",
            w->arena->stepping == w ? "this workspace" : "a workspace that shares its memory with this one");
  for (int i = 0; i < p->ninputs; i++)
    if (rsi_unlikely(inputs[i]->flags & RSI_PHANTOM))
      return rsi_fail(RS_ERR_STATE, "program: input %d was made while a program was recorded, so it has no values", i + base);
    else if (rsi_unlikely(!has_form(&p->values[i], inputs[i]))) return wrong_form(&p->values[i], inputs[i], "input", i + base);
  if (p->writes_inputs || w->napart) RSI_TRY(check_apart(w, inputs, base));
  RSI_TRY(check_results(w, inputs));
  RSI_CHECK(p->exact == w->ctx->x.exact, RS_ERR_STATE, "program: the precision was changed since it was recorded; record again");
  RSI_TRY(check_bound(w));
  RSI_CHECK(wants_fit(p, inputs), RS_ERR_STATE, "program: other tensors want gradients than when it was recorded; record again");
  RSI_CHECK(leaves_fit(p), RS_ERR_STATE,
            "program: gradients are not as they were when it was recorded (set, dropped or replaced since); record again");
  if (w->gave) RSI_TRY(renew(w));
  if (rsi_unlikely(w->k != w->ctx->x.k || w->threads != w->ctx->threads)) RSI_TRY(fit(w));
  if (rsi_unlikely(w->arena_base != w->arena->base)) point(w);
  for (int i = 0; i < w->nlent; i++) {
    const int id = w->lent[i];
    const rsi_value *const v = &p->values[id];
    w->tensors[id]->storage = inputs[v->base]->storage;
    w->tensors[id]->data = (char *)inputs[v->base]->data + v->offset;
  }
  return p->nprologue ? refresh(w) : RS_OK;
}

/* ---- after a run ----------------------------------------------------------------------------------------------------- */

static void settle_leaves(const rs_program *p) {
  for (int i = 0; i < p->nleaves; i++) {
    rs_tensor **const slot = &p->leaves[i].node->kept[0];
    if (rsi_likely(*slot == p->leaves[i].after)) continue;
    rs_tensor *const former = *slot;
    *slot = p->leaves[i].after ? rs_tensor_retain(p->leaves[i].after) : NULL;
    rs_tensor_release(former);
  }
}

static rs_status give_output(rs_workspace *w, int id, rs_tensor *const *inputs, rs_tensor **out) {
  const rsi_value *const v = &w->program->values[id];
  if (v->kind == RSI_V_ARG) *out = rs_tensor_retain(inputs[id]);
  else if (w->tensors[id] != &w->headers[id]) *out = rs_tensor_retain(w->tensors[id]);
  else {
    const rs_tensor *const of = borrows(w->program, id) ? inputs[v->base] : w->tensors[v->base];
    RSI_TRY(rsi_tensor_view(of, 0, v->desc.ndim, v->desc.shape, v->strides, out));
    (*out)->data = (char *)of->data + v->offset;
  }
  return RS_OK;
}

static void drop_outputs(rs_tensor **outputs, int nout) {
  for (int i = 0; i < nout; i++) {
    rs_tensor_release(outputs[i]);
    outputs[i] = NULL;
  }
}

static rs_status finish(rs_workspace *w, rs_tensor *const *inputs, rs_tensor **outputs, int nout) {
  const rs_program *const p = w->program;
  settle_leaves(p);
  rs_status status = RS_OK;
  for (int i = 0; i < nout; i++) outputs[i] = NULL;
  for (int i = 0; i < nout && status == RS_OK; i++) status = give_output(w, p->outputs[i], inputs, &outputs[i]);
  if (status != RS_OK) drop_outputs(outputs, nout);
  return status;
}

/* ---- public ---------------------------------------------------------------------------------------------------------- */

static rs_status check_call(const rs_program *p, const rs_workspace *w, int nin, int nout) {
  RSI_CHECK(w->program == p, RS_ERR_ARG, "program: the workspace belongs to another program");
  RSI_CHECK(nin == p->ninputs && nout == p->noutputs, RS_ERR_ARG, "program: %d inputs and %d outputs were given, it has %d and %d",
            nin, nout, p->ninputs, p->noutputs);
  return RS_OK;
}

rs_status rs_program_run(const rs_program *p, rs_workspace *w, rs_tensor *const *inputs, int nin, rs_tensor **outputs, int nout) {
  RSI_TRY(check_call(p, w, nin, nout));
  RSI_TRY(begin(w, inputs));
  int at = p->nprologue;
  RSI_TRY(run_range(w, &at, p->ninstrs, 0));
  return finish(w, inputs, outputs, nout);
}

/*
** The workspace's own tensors become the caller's, each once: a second result in the same memory is copied. An argument or a
** binding is given itself, as when the function runs eagerly.
*/
static rs_status give_away(rs_workspace *w, rs_tensor **outputs, int nout) {
  const rs_program *const p = w->program;
  for (int i = 0; i < nout; i++) {
    const int base = rsi_base_of(p, p->outputs[i]);
    if (p->values[base].kind != RSI_V_TEMP) continue;
    bool first = is_given(p, base);
    for (int j = 0; j < i && first; j++) first = rsi_base_of(p, p->outputs[j]) != base;
    if (first) continue;
    rs_tensor *const in[1] = {outputs[i]};
    rs_tensor *copy;
    const rs_status status = rsi_run(w->ctx, RS_OP_copy, in, 1, NULL, &copy);
    if (status != RS_OK) {
      drop_outputs(outputs, nout);
      return status;
    }
    rs_tensor_release(outputs[i]);
    outputs[i] = copy;
  }
  for (int i = 0; i < w->nresults; i++) {
    rs_tensor_release(w->tensors[w->results[i]]);
    w->tensors[w->results[i]] = NULL;
  }
  w->gave = w->nresults > 0;
  return RS_OK;
}

rs_status rs_program_call(const rs_program *p, rs_workspace *w, rs_tensor *const *inputs, int nin, rs_tensor **outputs, int nout) {
  RSI_TRY(rs_program_run(p, w, inputs, nin, outputs, nout));
  return give_away(w, outputs, nout);
}

rs_status rs_program_begin(const rs_program *p, rs_workspace *w, rs_tensor *const *inputs, int nin) {
  RSI_TRY(check_call(p, w, nin, p->noutputs));
  RSI_TRY(begin(w, inputs));
  for (int i = 0; i < nin; i++) w->held[i] = rs_tensor_retain(inputs[i]);
  w->at = p->nprologue;
  w->arena->stepping = w;
  return RS_OK;
}

rs_status rs_program_step(const rs_program *p, rs_workspace *w, double budget_us) {
  RSI_TRY(check_call(p, w, p->ninputs, p->noutputs));
  RSI_CHECK(w->at >= 0, RS_ERR_STATE, "program: no run in steps is under way; begin one first");
  if (rsi_unlikely(w->k != w->ctx->x.k || w->threads != w->ctx->threads)) {
    drop_held(w);
    return rsi_fail(RS_ERR_STATE, "program: threads or instruction set were changed during a run in steps; begin again");
  }
  const rs_status status = run_range(w, &w->at, p->ninstrs, budget_us > 0 ? rs_time() + budget_us * 1e-6 : 0);
  if (status != RS_OK) {
    drop_held(w);
    return status;
  }
  return w->at < p->ninstrs ? RS_MORE : RS_OK;
}

rs_status rs_program_finish(const rs_program *p, rs_workspace *w, rs_tensor **outputs, int nout) {
  RSI_TRY(check_call(p, w, p->ninputs, nout));
  RSI_CHECK(w->at == p->ninstrs, RS_ERR_STATE, "program: %s", w->at < 0 ? "no run in steps is under way" : "the run is not at its end yet");
  rs_status status = finish(w, w->held, outputs, nout);
  if (status == RS_OK) status = give_away(w, outputs, nout);
  drop_held(w);
  return status;
}

void rs_program_cancel(const rs_program *p, rs_workspace *w) {
  if (w->program == p) drop_held(w);
}
