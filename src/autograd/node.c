/* Nodes: making them from a finished call, and letting go of them without recursion however long the chain is. */
#include "autograd/autograd.h"
#include "program/program.h"
#include "ctx.h"
#include <string.h>

bool rsi_node_is_leaf(const rsi_node *n) { return (n->flags & RSI_N_LEAF) != 0; }

/* ---- release --------------------------------------------------------------------------------------------------------- */

static void push(rsi_node *n, rsi_node **pending) {
  if (n && rsi_ref_drop(&n->refs)) {
    n->next = *pending;
    *pending = n;
  }
}

/* Releases a tensor; its node joins the list instead of being released in a deeper call. */
static void drop_tensor(rs_tensor *t, rsi_node **pending) {
  if (!t || !rsi_ref_drop(&t->refs)) return;
  push(t->node, pending);
  rsi_storage *const storage = t->storage;
  rsi_header_free(t);
  rsi_storage_release(storage);
}

void rsi_node_release(rsi_node *n) {
  rsi_node *pending = NULL;
  push(n, &pending);
  while (pending) {
    rsi_node *const dead = pending;
    pending = dead->next;
    for (int i = 0; i < dead->nsaved; i++)
      if (dead->saved[i].present) rsi_storage_release(dead->saved[i].tensor.storage);
    for (int j = 0; j < dead->nout; j++) {
      drop_tensor(dead->grad[j], &pending);
      drop_tensor(dead->kept[j], &pending);
    }
    for (int i = 0; i < dead->nin; i++) push(dead->edges[i].node, &pending);
    rsi_free(dead->heap, dead, dead->block);
  }
}

/* ---- creation -------------------------------------------------------------------------------------------------------- */

typedef struct layout { size_t at; } layout;

static size_t place(layout *l, size_t bytes) {
  const size_t at = l->at;
  l->at = (at + bytes + 15) & ~(size_t)15;
  return at;
}

/* `sizes` receives room for the shapes of the inputs. */
static rs_status node_new(rsi_heap *heap, const rs_op *op, int nin, int nout, int nsaved, int shapes, int64_t **sizes,
                          rsi_node **out) {
  layout l = {0};
  void *block;
  place(&l, sizeof(rsi_node));
  const size_t edges = place(&l, sizeof(rsi_edge) * (size_t)nin);
  const size_t saved = place(&l, sizeof(rsi_saved) * (size_t)nsaved);
  const size_t attrs = place(&l, op ? (size_t)op->attrs_size : 0);
  const size_t grads = place(&l, 2 * sizeof(rs_tensor *) * (size_t)nout);
  const size_t outs = place(&l, nout > 1 ? sizeof(rsi_desc) * (size_t)nout : 0);
  const size_t room = place(&l, sizeof(int64_t) * (size_t)shapes);
  RSI_TRY(rsi_alloc(heap, l.at, &block));
  rsi_node *const n = block;
  char *const base = block;
  atomic_init(&n->refs, 1);
  n->nout = (uint8_t)nout;
  n->nsaved = (uint8_t)nsaved;
  n->flags = 0;
  n->nin = nin;
  n->op = op;
  n->heap = heap;
  n->block = l.at;
  n->edges = (void *)(base + edges);
  n->saved = (void *)(base + saved);
  n->attrs = base + attrs;
  n->grad = (void *)(base + grads);
  n->kept = n->grad + nout;
  n->outs = nout > 1 ? (void *)(base + outs) : NULL;
  n->visit = 0;
  if (sizes) *sizes = (void *)(base + room);
  for (int j = 0; j < 2 * nout; j++) n->grad[j] = NULL;
  *out = n;
  return RS_OK;
}

uint32_t rsi_saved_mask(const rs_op *op, rs_tensor *const *in, int nin) {
  uint32_t mask = 0;
  for (int i = 0; i < nin && i < RSI_FEW; i++)
    if (in[i] && in[i]->node) mask |= op->saves[i];
  return mask;
}

static void save(rsi_saved *s, rs_tensor *t, int slot) {
  s->slot = (uint8_t)slot;
  s->present = t != NULL;
  if (!t) return;
  rsi_tensor_embed(&s->tensor, t);
  s->version = t->storage->version;
}

rs_status rsi_record(const rsi_call *c, bool inplace) {
  const uint32_t mask = rsi_saved_mask(c->op, c->in, c->nin);
  int shapes = 0;
  rsi_node *n;
  for (int i = 0; i < c->nin; i++)
    if (c->in[i]) shapes += c->in[i]->ndim;
  int64_t *shape;
  RSI_TRY(node_new(c->x->heap, c->op, c->nin, c->nout, __builtin_popcount(mask), shapes, &shape, &n));
  for (int i = 0; i < c->nin; i++) {
    const rs_tensor *const t = c->in[i];
    rsi_edge *const e = &n->edges[i];
    e->given = t != NULL;
    e->node = NULL;
    if (!t) continue;
    e->dtype = t->dtype;
    e->ndim = t->ndim;
    e->shape = shape;
    for (int d = 0; d < t->ndim; d++) *shape++ = t->shape[d];
    if (t->node) {
      e->node = rsi_node_retain(t->node);
      e->out_index = t->out_index;
    }
  }
  int at = 0;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int slot = __builtin_ctz(rest);
    save(&n->saved[at++], slot < 8 ? (slot < c->nin ? c->in[slot] : NULL) : c->out[slot - 8], slot);
  }
  if (c->op->attrs_size) memcpy(n->attrs, c->attrs, (size_t)c->op->attrs_size);
  const int shown = c->op->nout_public ? c->op->nout_public : c->nout;
  for (int j = 0; j < c->nout; j++) {
    rs_tensor *const t = c->out[j];
    if (n->outs) rsi_desc_of(t, &n->outs[j]);
    if (!rsi_is_float(t->dtype) || j >= shown) continue;      /* internal outputs are constants to the user */
    rsi_node *const former = t->node;
    t->node = rsi_node_retain(n);
    t->out_index = (uint8_t)j;
    if (former) rsi_node_release(former);
    if (inplace) t->view_version = t->storage->recorded = t->storage->version;
  }
  rsi_node_release(n);
  return RS_OK;
}

/* ---- nodes of the host ------------------------------------------------------------------------------------------------ */

const rs_op rsi_host_op = {.name = "checkpoint", .nout = 1};

rs_status rs_host(rs_ctx *ctx, rs_tensor *value, rs_tensor *const *inputs, int n, rs_tensor *token) {
  int shapes = 0;
  int64_t *shape;
  rsi_node *node;
  RSI_CHECK(!ctx->trace, RS_ERR_STATE, "checkpoint: it cannot be part of a recording");
  RSI_CHECK(!value->node, RS_ERR_GRAD, "checkpoint: the value was not computed under no_grad");
  RSI_CHECK(rsi_is_float(value->dtype), RS_ERR_DTYPE, "checkpoint: a %s tensor has no gradient", rs_dtype_name(value->dtype));
  for (int i = 0; i < n; i++) shapes += inputs[i]->ndim;
  RSI_TRY(node_new(ctx->x.heap, &rsi_host_op, n, 1, 1, shapes, &shape, &node));
  for (int i = 0; i < n; i++) {
    const rs_tensor *const t = inputs[i];
    rsi_edge *const e = &node->edges[i];
    *e = (rsi_edge){t->node ? rsi_node_retain(t->node) : NULL, shape, t->out_index, t->dtype, t->ndim, 1};
    for (int d = 0; d < t->ndim; d++) *shape++ = t->shape[d];
  }
  save(&node->saved[0], token, 0);
  value->node = node;
  value->out_index = 0;
  return RS_OK;
}

int rs_tensor_is_shared(const rs_tensor *t) { return atomic_load_explicit(&t->storage->refs, memory_order_acquire) > 1; }

/* ---- what users ask of one tensor ------------------------------------------------------------------------------------- */

int rs_tensor_requires_grad(const rs_tensor *t) { return t->node != NULL; }

rs_status rs_tensor_set_requires_grad(rs_ctx *ctx, rs_tensor *t, int on) {
  if ((t->node != NULL) == (on != 0)) return RS_OK;
  if (!on) {
    RSI_CHECK(rsi_node_is_leaf(t->node), RS_ERR_GRAD,
              "requires_grad: this tensor was computed from others; only leaves can stop wanting a gradient (use detach)");
    rsi_node_release(t->node);
    t->node = NULL;
    return RS_OK;
  }
  RSI_CHECK(rsi_is_float(t->dtype), RS_ERR_DTYPE, "requires_grad: a %s tensor has no gradient; only f32, f64, bf16 and f16 have",
            rs_dtype_name(t->dtype));
  rsi_node *n;
  RSI_TRY(node_new(ctx->x.heap, NULL, 0, 1, 0, 0, NULL, &n));
  n->flags = RSI_N_LEAF;
  t->node = n;
  t->out_index = 0;
  return RS_OK;
}

rs_status rs_tensor_retain_grad(rs_ctx *ctx, rs_tensor *t) {
  (void)ctx;
  RSI_CHECK(t->node, RS_ERR_GRAD, "retain_grad: this tensor needs no gradient");
  t->node->flags |= RSI_N_KEEP;
  return RS_OK;
}

rs_status rs_tensor_grad(rs_ctx *ctx, rs_tensor *t, rs_tensor **out) {
  *out = NULL;
  if (rsi_unlikely(ctx->trace != NULL) && t->node) RSI_TRY(rsi_trace_leaf(ctx, t->node, false));
  rs_tensor *const g = t->node ? t->node->kept[t->out_index] : NULL;
  *out = g ? rs_tensor_retain(g) : NULL;
  return RS_OK;
}

rs_status rs_tensor_set_grad(rs_ctx *ctx, rs_tensor *t, rs_tensor *grad) {
  if (!grad && !t->node) return RS_OK;
  RSI_CHECK(t->node, RS_ERR_GRAD, "grad: this tensor needs no gradient (set requires_grad first)");
  if (grad) {
    RSI_CHECK(rsi_same_shape(t, grad), RS_ERR_SHAPE, "grad: a gradient of shape %s for a tensor of shape %s", rsi_text(grad),
              rsi_text(t));
    RSI_CHECK(grad->dtype == t->dtype, RS_ERR_DTYPE, "grad: a gradient of dtype %s for a tensor of dtype %s",
              rs_dtype_name(grad->dtype), rs_dtype_name(t->dtype));
    RSI_CHECK(!(grad->flags & RSI_PHANTOM) || ctx->trace || ctx->paused, RS_ERR_STATE,
              "grad: the gradient was made while a program was recorded, so it has no values");
  }
  if (rsi_unlikely(ctx->trace != NULL)) RSI_TRY(rsi_trace_leaf(ctx, t->node, true));
  if (grad) rs_tensor_retain(grad);
  rs_tensor_release(t->node->kept[t->out_index]);
  t->node->kept[t->out_index] = grad;
  return RS_OK;
}

double rs_zero_grads(rs_ctx *ctx, rs_tensor *const *tensors, int n) {
  int dropped = 0;
  for (int i = 0; i < n; i++) {
    const rs_tensor *const t = tensors[i];
    if (t && t->node && rsi_unlikely(ctx->trace != NULL)) (void)rsi_trace_leaf(ctx, t->node, true);   /* a failure spoils the recording */
    if (!t || !t->node || !t->node->kept[t->out_index]) continue;
    rs_tensor_release(t->node->kept[t->out_index]);
    t->node->kept[t->out_index] = NULL;
    dropped++;
  }
  return dropped;
}

rs_status rs_tensor_detach(rs_ctx *ctx, rs_tensor *t, rs_tensor **out) {
  (void)ctx;
  RSI_TRY(rsi_tensor_alias(t, out));
  (*out)->flags |= RSI_DETACHED;
  return RS_OK;
}
