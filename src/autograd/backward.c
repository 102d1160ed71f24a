/*
** Backward: one walk over the graph in reverse order of execution. The order is a depth-first postorder kept in links of the
** nodes themselves, so the walk allocates nothing. Leaves are not part of the order: a gradient that reaches one is added to
** it at once. So rs_grad may run in several threads over shared parameters; rs_backward writes their gradients and may not.
** A node of the host's (rs_host) suspends the walk: the host computes its gradients, which may be a backward of its own, and resumes.
** While a rule runs, `rsi_grad` owns every tensor it makes; the first failure sticks and later helpers do nothing.
*/
#include "autograd/autograd.h"
#include "program/program.h"
#include "ctx.h"
#include <string.h>

enum { FEW_TEMPS = 24, PLAIN_LIMIT = 4096 };   /* PLAIN_LIMIT: elements that are not worth a second thread */

typedef struct target { rsi_node *node; int index; rs_tensor *grad; } target;

struct rsi_grad {
  rs_ctx    *ctx;
  rsi_node  *node;
  rs_status  status;
  bool       create_graph;
  bool       taken;            /* a node took over a tensor of this rule */
  target    *targets;          /* of rs_grad; NULL: leaves accumulate */
  int        ntargets;
  int        ntemps, capacity;
  rs_tensor **temps;           /* few, or a block of the heap */
  rs_tensor *few[FEW_TEMPS];
};

/* ---- accumulation ---------------------------------------------------------------------------------------------------- */

/* Nobody else can see this tensor, so it may be written in place. */
static bool exclusive(const rs_tensor *t) {
  return atomic_load_explicit(&t->refs, memory_order_relaxed) == 1 && !(t->flags & RSI_VIEW) && rsi_is_contiguous(t) &&
         atomic_load_explicit(&t->storage->refs, memory_order_relaxed) == 1;
}

/* Both can be added row by row without looking further: the usual case, worth a way around the dispatcher. */
static bool plain_pair(const rs_ctx *ctx, const rs_tensor *a, const rs_tensor *b) {
  return !ctx->trace && !ctx->profile.events && a->dtype == b->dtype && a->dtype <= RS_F64 && rsi_is_contiguous(a) && rsi_is_contiguous(b) &&
         a->numel == b->numel && a->numel <= PLAIN_LIMIT;
}

static rs_status add_into(rs_ctx *ctx, rs_tensor **slot, rs_tensor *t, bool in_place) {
  rs_tensor *const in[2] = {*slot, t};
  if (in_place && plain_pair(ctx, *slot, t)) {
    const int64_t size = (int64_t)rsi_item_size(t), strides[3] = {size, size, size};
    char *const data[3] = {(*slot)->data, (*slot)->data, t->data};
    ctx->x.k->elementwise->binary[RSI_B_ADD][t->dtype](t->numel, data, strides, NULL);
    rsi_wrote(*slot, "backward");
    return RS_OK;
  }
  if (in_place) return rs_call_inplace(ctx, RS_OP_add, in, 2, NULL);
  rs_tensor *sum;
  RSI_TRY(rsi_run(ctx, RS_OP_add, in, 2, NULL, &sum));
  rs_tensor_release(*slot);
  *slot = sum;
  return RS_OK;
}

/* Adds t to the gradient that a leaf shows. That tensor is the leaf's own, so later ones are added in place. */
static rs_status accumulate_leaf(rsi_grad *g, rsi_node *leaf, rs_tensor *t) {
  rs_tensor **const slot = &leaf->kept[0];
  if (rsi_unlikely(g->ctx->trace != NULL)) RSI_TRY(rsi_trace_leaf(g->ctx, leaf, false));
  if (*slot) return add_into(g->ctx, slot, t, !g->create_graph && !(*slot)->node);
  return rsi_run(g->ctx, RS_OP_copy, &t, 1, NULL, slot);
}

static rs_status capture(rsi_grad *g, rsi_node *n, int index, rs_tensor *t) {
  for (int i = 0; i < g->ntargets; i++) {
    target *const to = &g->targets[i];
    if (to->node != n || to->index != index) continue;
    if (to->grad) RSI_TRY(add_into(g->ctx, &to->grad, t, false));
    else RSI_TRY(rsi_tensor_share(t, &to->grad));
  }
  return RS_OK;
}

static rs_status deliver(rsi_grad *g, rsi_node *n, int index, rs_tensor *t) {
  if (n->flags & RSI_N_LEAF) return g->targets ? capture(g, n, index, t) : accumulate_leaf(g, n, t);
  rs_tensor **const slot = &n->grad[index];
  if (*slot) return add_into(g->ctx, slot, t, !g->create_graph && exclusive(*slot));
  return rsi_tensor_share(t, slot);
}

/* ---- what rules use -------------------------------------------------------------------------------------------------- */

static void temps_init(rsi_grad *g) {
  g->temps = g->few;
  g->capacity = FEW_TEMPS;
  g->ntemps = 0;
}

static void temps_release(rsi_grad *g) {
  for (int i = 0; i < g->ntemps; i++) rs_tensor_release(g->temps[i]);
  if (g->temps != g->few) rsi_free(g->ctx->x.heap, g->temps, sizeof(rs_tensor *) * (size_t)g->capacity);
  temps_init(g);
}

/* The rule owns t until its end; a rule over many inputs (cat) makes many. */
static rs_tensor *own(rsi_grad *g, rs_tensor *t) {
  if (rsi_unlikely(g->ntemps == g->capacity)) {
    void *bigger;
    const rs_status status = rsi_alloc(g->ctx->x.heap, 2 * sizeof(rs_tensor *) * (size_t)g->capacity, &bigger);
    if (status != RS_OK) {
      g->status = status;
      rs_tensor_release(t);
      return NULL;
    }
    memcpy(bigger, g->temps, sizeof(rs_tensor *) * (size_t)g->ntemps);
    if (g->temps != g->few) rsi_free(g->ctx->x.heap, g->temps, sizeof(rs_tensor *) * (size_t)g->capacity);
    g->temps = bigger;
    g->capacity *= 2;
  }
  return g->temps[g->ntemps++] = t;
}

bool rsi_needs(const rsi_grad *g, int i) { return i < g->node->nin && g->node->edges[i].node != NULL; }
bool rsi_has_gout(const rsi_grad *g, int j) { return g->node->grad[j] != NULL; }
const void *rsi_attrs(const rsi_grad *g) { return g->node->attrs; }
int rsi_nin(const rsi_grad *g) { return g->node->nin; }
bool rsi_has_in(const rsi_grad *g, int i) { return i < g->node->nin && g->node->edges[i].given; }

void rsi_grad_fail(rsi_grad *g, rs_status status) {
  if (g->status == RS_OK) g->status = status;
}

rs_tensor *rsi_gout(rsi_grad *g, int j) {
  if (g->node->grad[j] || g->status != RS_OK) return g->node->grad[j];
  return rsi_b_full(g, &g->node->outs[j], 0.0);
}

static rs_tensor *saved(rsi_grad *g, int slot) {
  for (int i = 0; i < g->node->nsaved; i++)
    if (g->node->saved[i].slot == slot) return g->node->saved[i].present ? &g->node->saved[i].tensor : NULL;
  return NULL;
}

rs_tensor *rsi_in(rsi_grad *g, int i) { return saved(g, i); }
rs_tensor *rsi_out(rsi_grad *g, int j) { return saved(g, 8 + j); }

const rsi_desc *rsi_in_desc(rsi_grad *g, int i) {
  static _Thread_local rsi_desc ring[4];
  static _Thread_local unsigned turn;
  const rsi_edge *const e = &g->node->edges[i];
  rsi_desc *const d = &ring[turn++ % 4];
  d->dtype = e->dtype;
  d->ndim = e->ndim;
  for (int k = 0; k < e->ndim; k++) d->shape[k] = e->shape[k];
  return d;
}

rs_tensor *rsi_emit(rsi_grad *g, int op, const void *attrs, int nin, rs_tensor *const *in, int nout, rs_tensor **outs) {
  rs_tensor *made[RS_MAX_OUTPUTS] = {NULL};
  for (int j = 0; j < nout; j++) outs[j] = NULL;
  if (g->status != RS_OK) return NULL;
  g->status = rsi_run(g->ctx, op, in, nin, attrs, made);
  if (g->status != RS_OK) return NULL;
  for (int j = 0; j < rsi_ops[op]->nout; j++) {
    rs_tensor *const t = own(g, made[j]);
    if (j < nout) outs[j] = t;
  }
  if (g->status != RS_OK) return NULL;
  return nout > 0 ? outs[0] : NULL;
}

/* The first output of an op; ops of one output, nearly all, take the short way. */
static rs_tensor *emit_first(rsi_grad *g, int op, const void *attrs, int nin, rs_tensor *const *in) {
  rs_tensor *out;
  if (rsi_unlikely(rsi_ops[op]->nout != 1)) return rsi_emit(g, op, attrs, nin, in, 1, &out);
  if (g->status != RS_OK) return NULL;
  g->status = rsi_run(g->ctx, op, in, nin, attrs, &out);
  return g->status == RS_OK ? own(g, out) : NULL;
}

rs_tensor *rsi_emit1(rsi_grad *g, int op, const void *attrs, rs_tensor *a) {
  rs_tensor *const in[1] = {a};
  return a ? emit_first(g, op, attrs, 1, in) : NULL;
}

rs_tensor *rsi_emit2(rsi_grad *g, int op, const void *attrs, rs_tensor *a, rs_tensor *b) {
  rs_tensor *const in[2] = {a, b};
  return a || b ? emit_first(g, op, attrs, 2, in) : NULL;
}

rs_tensor *rsi_emit3(rsi_grad *g, int op, const void *attrs, rs_tensor *a, rs_tensor *b, rs_tensor *c) {
  rs_tensor *const in[3] = {a, b, c};
  return a || b || c ? emit_first(g, op, attrs, 3, in) : NULL;
}

static bool matches(const rsi_edge *e, const rs_tensor *t) {
  if (e->ndim != t->ndim) return false;
  for (int i = 0; i < t->ndim; i++)
    if (e->shape[i] != t->shape[i]) return false;
  return true;
}

/* A tensor that the rule made and nobody else holds becomes the first gradient that arrives at a node, without a copy. */
static bool take_over(rsi_grad *g, rsi_node *n, int index, rs_tensor *t) {
  const bool leaf = (n->flags & RSI_N_LEAF) != 0;
  rs_tensor **const slot = leaf ? &n->kept[0] : &n->grad[index];
  if (*slot || g->create_graph || (leaf && g->targets) || !exclusive(t)) return false;
  if (leaf && rsi_unlikely(g->ctx->trace != NULL) && rsi_trace_leaf(g->ctx, n, false) != RS_OK) return false;
  for (int i = g->ntemps - 1; i >= 0; i--) {
    if (g->temps[i] != t) continue;
    *slot = t;
    g->temps[i] = NULL;
    g->taken = true;
    return true;
  }
  return false;
}

/* Was t taken over by a node earlier in this rule? */
static bool was_taken(const rsi_grad *g, const rs_tensor *t) {
  if (!g->taken || (t->flags & RSI_EMBEDDED)) return false;
  for (int i = 0; i < g->ntemps; i++)
    if (g->temps[i] == t) return false;
  for (int j = 0; j < g->node->nout; j++)
    if (g->node->grad[j] == t) return false;
  return true;
}

void rsi_give(rsi_grad *g, int i, rs_tensor *t) {
  const rsi_edge *const e = &g->node->edges[i];
  if (g->status != RS_OK || !t || !e->node) return;
  if (!matches(e, t)) t = rsi_b_sum_to(g, t, rsi_in_desc(g, i));
  if (t && t->dtype != e->dtype) t = rsi_b_cast(g, t, e->dtype);
  if (t && was_taken(g, t)) t = rsi_emit1(g, RS_OP_copy, NULL, t);
  if (!t || g->status != RS_OK || take_over(g, e->node, e->out_index, t)) return;
  g->status = deliver(g, e->node, e->out_index, t);
}

/* ---- the walk -------------------------------------------------------------------------------------------------------- */

/* Links the nodes that `root` depends on, leaves excepted, in reverse order of execution. `busy`: it met one of a suspended walk. */
static rsi_node *order_nodes(rsi_node *root, bool *busy) {
  static _Atomic uint64_t passes;
  const uint64_t pass = atomic_fetch_add_explicit(&passes, 1, memory_order_relaxed) + 1;
  rsi_node *ordered = NULL, *at = root;
  *busy = (root->flags & RSI_N_BUSY) != 0;
  if (*busy) return NULL;
  root->visit = pass;
  root->parent = NULL;
  root->step = 0;
  while (at) {
    if (at->step < at->nin) {
      rsi_node *const to = at->edges[at->step++].node;
      if (!to || (to->flags & RSI_N_LEAF)) continue;
      if (rsi_unlikely(to->flags & RSI_N_BUSY)) {
        *busy = true;
        continue;
      }
      if (to->visit == pass) continue;
      to->visit = pass;
      to->parent = at;
      to->step = 0;
      at = to;
    } else {
      at->next = ordered;
      ordered = at;
      at = at->parent;
    }
  }
  return ordered;
}

static const char *slot_name(const rsi_saved *s) { return s->slot < 8 ? "an input" : "its result"; }

static rs_status check_saved(const rsi_node *n) {
  RSI_CHECK(!(n->flags & RSI_N_RELEASED), RS_ERR_GRAD,
            "backward: the graph behind %s was freed by an earlier backward; pass retain_graph to the first one", n->op->name);
  for (int i = 0; i < n->nsaved; i++) {
    const rsi_saved *const s = &n->saved[i];
    if (!s->present) continue;
    RSI_CHECK(s->tensor.storage->version == s->version, RS_ERR_VERSION,
              "backward: %s needs %s of shape %s as it was (version %u), but it was overwritten in place by %s (now version %u); "
              "use the out-of-place form or clone it first",
              n->op->name, slot_name(s), rsi_text(&s->tensor), s->version, rsi_last_writer(s->tensor.storage),
              s->tensor.storage->version);
  }
  return RS_OK;
}

/* While a rule is recorded itself, saved tensors stand for the tensors they were copied from. */
static void stand_in(rsi_node *n, bool on) {
  for (int i = 0; i < n->nsaved; i++) {
    rsi_saved *const s = &n->saved[i];
    if (!s->present) continue;
    const bool input = s->slot < 8;
    s->tensor.node = !on ? NULL : input ? n->edges[s->slot].node : n;
    s->tensor.out_index = input ? n->edges[s->slot].out_index : (uint8_t)(s->slot - 8);
  }
}

static rs_status run_rule(rsi_grad *g) {
  rsi_node *const n = g->node;
  RSI_TRY(check_saved(n));
  RSI_CHECK(n->op->grad, RS_ERR_GRAD, "backward: the derivative of %s is not defined%s", n->op->name,
            n->op->traits & RSI_T_INTERNAL ? " (a second derivative was asked for)" : "");
  g->taken = false;
  if (rsi_unlikely(g->create_graph)) stand_in(n, true);
  n->op->grad(g);
  temps_release(g);
  if (rsi_unlikely(g->create_graph)) stand_in(n, false);
  return g->status;
}

static void release_saved(rsi_node *n) {
  for (int i = 0; i < n->nsaved; i++) {
    if (!n->saved[i].present) continue;
    n->saved[i].present = 0;
    rsi_storage_release(n->saved[i].tensor.storage);
  }
  n->flags |= RSI_N_RELEASED;
}

static rs_status finish_node(rsi_grad *g, rsi_node *n) {
  for (int j = 0; j < n->nout; j++) {
    rs_tensor *const t = n->grad[j];
    if (!t) continue;
    if (g->targets) RSI_TRY(capture(g, n, j, t));
    else if (n->flags & RSI_N_KEEP) {
      if (n->kept[j]) RSI_TRY(add_into(g->ctx, &n->kept[j], t, false));
      else n->kept[j] = rs_tensor_retain(t);
    }
  }
  return RS_OK;
}

static void grad_init(rsi_grad *g, rs_ctx *ctx) {
  g->ctx = ctx;
  g->node = NULL;
  g->status = RS_OK;
  g->create_graph = g->taken = false;
  g->targets = NULL;
  g->ntargets = 0;
  temps_init(g);
}

static rs_status seed(rs_ctx *ctx, rs_tensor *root, rs_tensor *grad, rs_tensor **out) {
  if (grad) {
    RSI_CHECK(rsi_same_shape(root, grad), RS_ERR_SHAPE, "backward: the gradient has shape %s but the tensor %s", rsi_text(grad),
              rsi_text(root));
    RSI_CHECK(grad->dtype == root->dtype, RS_ERR_DTYPE, "backward: the gradient has dtype %s but the tensor %s",
              rs_dtype_name(grad->dtype), rs_dtype_name(root->dtype));
    return rsi_tensor_share(grad, out);
  }
  RSI_CHECK(root->numel == 1, RS_ERR_SHAPE,
            "backward: a tensor of shape %s needs a gradient to start from; only one with a single element starts from 1 "
            "(sum or mean it first)",
            rsi_text(root));
  rsi_grad g;              /* its one tensor is handed to the caller, so it is not released here */
  rsi_desc desc;
  grad_init(&g, ctx);
  rsi_desc_of(root, &desc);
  *out = rsi_b_full(&g, &desc, 1.0);
  return g.status;
}

/* One backward pass. It lies on the stack, and on the heap while it is suspended at a node of the host's. */
struct rs_walk {
  rsi_grad  g;
  rsi_node *first, *at;       /* where it started; the next node */
  bool      retain;
  rs_status status;
};

static void drop_grads(rsi_node *n) {
  for (int j = 0; j < n->nout; j++) {
    rs_tensor_release(n->grad[j]);
    n->grad[j] = NULL;
  }
}

static void mark_busy(rsi_node *n, bool busy) {
  for (; n; n = n->next) n->flags = (uint8_t)(busy ? n->flags | RSI_N_BUSY : n->flags & ~RSI_N_BUSY);
}

static rs_status check_host(const rs_walk *w) {
  RSI_CHECK(!w->g.targets && !w->g.create_graph, RS_ERR_GRAD,
            "backward: the graph goes through a %s, which only a plain backward can (not grad, and not with create_graph)",
            w->g.node->op->name);
  return check_saved(w->g.node);
}

/* Runs the rules up to the next node of the host's (RS_HOST, w->at is that node) or to the end. */
static rs_status go_on(rs_walk *w) {
  rsi_grad *const g = &w->g;
  for (; w->at; w->at = w->at->next) {
    rsi_node *const n = w->at;
    bool reached = false;
    for (int j = 0; j < n->nout; j++) reached |= n->grad[j] != NULL;
    if (w->status == RS_OK && reached) {
      g->node = n;
      w->status = finish_node(g, n);
      if (w->status == RS_OK && rsi_unlikely(n->op == &rsi_host_op)) {
        w->status = check_host(w);
        if (w->status == RS_OK) return RS_HOST;
      } else if (w->status == RS_OK) w->status = run_rule(g);
      if (w->status == RS_OK && !w->retain) release_saved(n);
    }
    drop_grads(n);
  }
  rsi_node_release(w->first);
  return w->status;
}

/* Moves a walk to the heap and leaves it with the context, for rs_suspended_walk. */
static rs_status suspend(rs_ctx *ctx, rs_walk *w) {
  void *block;
  const rs_status status = rsi_alloc(ctx->x.heap, sizeof *w, &block);
  if (status != RS_OK) {
    w->status = status;      /* goes on without rules, to let go of everything */
    return go_on(w);
  }
  rs_walk *const kept = block;
  *kept = *w;
  temps_init(&kept->g);
  mark_busy(kept->at, true);
  ctx->suspended = kept;
  return RS_HOST;
}

static rs_status start_walk(rs_ctx *ctx, rs_walk *w, rs_tensor *root, rs_tensor *grad) {
  rsi_node *const first = root->node;
  bool busy;
  if (first->flags & RSI_N_LEAF) return deliver(&w->g, first, root->out_index, grad);
  w->first = rsi_node_retain(first);
  w->at = order_nodes(first, &busy);
  w->status = RS_OK;
  if (busy)
    w->status = rsi_fail(RS_ERR_GRAD,
                         "backward: the graph reaches into a backward that is under way; a checkpointed function must take every "
                         "tensor that needs a gradient as an argument (parameters excepted)");
  else w->status = deliver(&w->g, first, root->out_index, grad);
  const rs_status status = go_on(w);
  return status == RS_HOST ? suspend(ctx, w) : status;
}

static rs_status differentiate(rs_ctx *ctx, rs_tensor *root, rs_tensor *grad, int flags, target *targets, int n) {
  RSI_CHECK(root, RS_ERR_ARG, "backward: no tensor was given");
  RSI_CHECK(root->node, RS_ERR_GRAD,
            "backward: this tensor does not depend on anything that requires a gradient (set requires_grad on a leaf, and do "
            "not compute it under no_grad)");
  RSI_CHECK(!grad || !(grad->flags & RSI_PHANTOM) || ctx->trace || ctx->paused, RS_ERR_STATE,
            "backward: the gradient was made while a program was recorded, so it has no values");
  rs_walk w;
  rs_tensor *start = NULL;
  grad_init(&w.g, ctx);
  w.g.create_graph = (flags & RS_CREATE_GRAPH) != 0;
  w.g.targets = targets;
  w.g.ntargets = n;
  w.retain = (flags & (RS_RETAIN_GRAPH | RS_CREATE_GRAPH)) != 0;
  const int former = rs_set_grad_enabled(ctx, 0);
  rs_status status = seed(ctx, root, grad, &start);
  rs_set_grad_enabled(ctx, w.g.create_graph);
  if (status == RS_OK) status = start_walk(ctx, &w, root, start);
  rs_tensor_release(start);
  rs_set_grad_enabled(ctx, former);
  return status;
}

/* ---- nodes of the host ------------------------------------------------------------------------------------------------ */

rs_walk *rs_suspended_walk(rs_ctx *ctx) {
  rs_walk *const w = ctx->suspended;
  ctx->suspended = NULL;
  return w;
}

rs_status rs_walk_state(rs_walk *w, rs_tensor **token, rs_tensor **grad) {
  RSI_TRY(rsi_tensor_share(&w->at->saved[0].tensor, token));
  return rsi_tensor_share(w->at->grad[0], grad);
}

rs_status rs_walk_resume(rs_walk *w, rs_tensor *const *grads, int n) {
  rs_ctx *const ctx = w->g.ctx;
  rsi_node *const host = w->at;
  const int former = rs_set_grad_enabled(ctx, 0);
  mark_busy(host, false);
  w->g.node = host;
  for (int i = 0; i < n && i < host->nin; i++)
    if (grads[i]) rsi_give(&w->g, i, grads[i]);
  temps_release(&w->g);
  w->g.taken = false;
  w->status = w->g.status;
  if (w->status == RS_OK && !w->retain) release_saved(host);
  drop_grads(host);
  w->at = host->next;
  const rs_status status = go_on(w);
  if (status == RS_HOST) {
    mark_busy(w->at, true);
    ctx->suspended = w;
  } else rsi_free(ctx->x.heap, w, sizeof *w);
  rs_set_grad_enabled(ctx, former);
  return status;
}

void rs_walk_cancel(rs_walk *w) {
  rs_ctx *const ctx = w->g.ctx;
  mark_busy(w->at, false);
  w->status = RS_ERR_STATE;
  (void)go_on(w);
  rsi_free(ctx->x.heap, w, sizeof *w);
}

rs_status rs_backward(rs_ctx *ctx, rs_tensor *root, rs_tensor *grad, int flags) {
  return differentiate(ctx, root, grad, flags, NULL, 0);
}

rs_status rs_grad(rs_ctx *ctx, rs_tensor *root, rs_tensor *grad, rs_tensor *const *inputs, int n, int flags, rs_tensor **out) {
  void *block;
  if (n <= 0) return rsi_fail(RS_ERR_ARG, "grad: no inputs were given");
  const size_t bytes = sizeof(target) * (size_t)n;
  RSI_TRY(rsi_alloc(ctx->x.heap, bytes, &block));
  target *const targets = block;
  rs_status status = RS_OK;
  for (int i = 0; i < n; i++) {
    out[i] = NULL;
    targets[i] = (target){inputs[i] ? inputs[i]->node : NULL, inputs[i] ? inputs[i]->out_index : 0, NULL};
    if (!targets[i].node && status == RS_OK)
      status = rsi_fail(RS_ERR_GRAD, "grad: input %d requires no gradient", i + ctx->x.base);
  }
  if (status == RS_OK) status = differentiate(ctx, root, grad, flags, targets, n);
  for (int i = 0; i < n && status == RS_OK; i++)
    if (!targets[i].grad && !(flags & RS_ALLOW_UNUSED))
      status = rsi_fail(RS_ERR_GRAD, "grad: the result does not depend on input %d (allow_unused returns nothing for it)",
                        i + ctx->x.base);
  for (int i = 0; i < n; i++) {
    if (status == RS_OK) out[i] = targets[i].grad;
    else rs_tensor_release(targets[i].grad);
  }
  rsi_free(ctx->x.heap, block, bytes);
  return status;
}
