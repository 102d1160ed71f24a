/*
** The way of every op: arguments are checked and brought to a common form (dtype, contiguity), shapes inferred, results
** allocated, the first kernel that accepts is run, the call is recorded on the tape and in a recording under way.
** Casts and copies are ops of their own and go the same way, so gradients and recordings see them.
*/
#include "ctx.h"
#include "autograd/autograd.h"
#include "program/program.h"
#include "profile.h"
#include <string.h>

enum { FEW_INPUTS = 16 };

#define LEAF_IN_PLACE                                                                                                       \
  "a leaf that requires a gradient cannot be changed in place; do it under no_grad, or use the out-of-place form"

const rs_op *const rsi_ops[RSI_OPS] = {
#define RS_OP(name) &rsi_op_##name,
#include "ops/ops.def"
#undef RS_OP
};

int rsi_base(const rsi_call *c) { return c->x->base; }

/* ---- inputs ---------------------------------------------------------------------------------------------------------- */

/* The dtype that several inputs meet in: floats beat integers, wider beats narrower, bf16 with f16 gives f32. */
static int promote(int a, int b) {
  static const uint8_t rank[RS_DTYPES] = {[RS_BOOL] = 0, [RS_U8] = 1, [RS_I32] = 2, [RS_I64] = 3, [RS_F16] = 4, [RS_BF16] = 4,
                                          [RS_F32] = 5, [RS_F64] = 6};
  if (a == b) return a;
  if (rank[a] == rank[b]) return RS_F32;
  return rank[a] > rank[b] ? a : b;
}

/* An input may be replaced twice, by a cast and by a copy. */
typedef struct inputs {
  rs_tensor **in, **made;            /* made: casts and copies to release; both in few, or in a block of the heap */
  int        nin, nmade;
  size_t     block;
  rs_tensor *few[3 * FEW_INPUTS];
} inputs;

static rs_status replace(rs_ctx *ctx, inputs *a, int i, int op, const void *attrs) {
  rs_tensor *out;
  RSI_TRY(rsi_run(ctx, op, &a->in[i], 1, attrs, &out));
  a->made[a->nmade++] = a->in[i] = out;
  return RS_OK;
}

static rs_status cast_input(rs_ctx *ctx, inputs *a, int i, int dtype) {
  const struct { int64_t dtype; } attrs = {dtype};
  return a->in[i]->dtype == dtype ? RS_OK : replace(ctx, a, i, RS_OP_cast, &attrs);
}

static void inputs_release(rs_ctx *ctx, inputs *a) {
  for (int i = 0; i < a->nmade; i++) rs_tensor_release(a->made[i]);
  if (a->in != a->few) rsi_free(ctx->x.heap, a->in, a->block);
}

static rs_status check_count(const rs_op *op, rs_tensor *const *in, int nin) {
  RSI_CHECK(nin >= op->nin_min && (nin <= op->nin_max || op->nin_max == RSI_VARIADIC), RS_ERR_ARG,
            "%d inputs were given, but it takes %s %d (%s)", nin,
            op->nin_max == op->nin_min ? "just" : nin < op->nin_min ? "at least" : "at most",
            nin < op->nin_min ? op->nin_min : op->nin_max, op->inputs);
  for (int i = 0; i < op->nin_min; i++)
    RSI_CHECK(in[i] || op->nin_max == RSI_VARIADIC, RS_ERR_ARG, "input %d (of %s) is missing", i + 1, op->inputs);
  return RS_OK;
}

static rs_status inputs_take(rs_ctx *ctx, const rs_op *op, rs_tensor *const *in, int nin, inputs *a) {
  a->nmade = 0;
  a->nin = op->nin_max == RSI_VARIADIC ? nin : op->nin_max;
  a->in = a->few;
  if (rsi_unlikely(a->nin > FEW_INPUTS)) {
    void *block;
    a->block = 3 * sizeof(rs_tensor *) * (size_t)a->nin;
    RSI_TRY(rsi_alloc(ctx->x.heap, a->block, &block));
    a->in = block;
  }
  a->made = a->in + a->nin;
  for (int i = 0; i < nin; i++) a->in[i] = in[i];
  for (int i = nin; i < a->nin; i++) a->in[i] = NULL;
  return RS_OK;
}

/* What one look at the inputs tells. */
typedef struct facts {
  rs_tensor *lead;       /* the first input that was given */
  unsigned   dtypes;     /* bit per dtype among them */
  bool       grad;       /* one of them wants a gradient */
  bool       strided;    /* one of them is not contiguous */
  bool       views;      /* one of them is a view */
  bool       phantom;    /* one of them was made while a program was recorded */
} facts;

static facts look(const inputs *a) {
  facts f = {0};
  for (int i = a->nin - 1; i >= 0; i--) {
    rs_tensor *const t = a->in[i];
    if (!t) continue;
    f.lead = t;
    f.dtypes |= 1u << t->dtype;
    f.grad |= t->node != NULL;
    f.strided |= !(t->flags & RSI_CONTIGUOUS);
    f.views |= (t->flags & RSI_VIEW) != 0;
    f.phantom |= (t->flags & RSI_PHANTOM) != 0;
  }
  return f;
}

/* Casts to the common dtype; in place the first input's dtype stands and must be able to hold the others. */
static rs_status unify_dtypes(rs_ctx *ctx, inputs *a, bool inplace) {
  int common = -1;
  for (int i = 0; i < a->nin; i++)
    if (a->in[i]) common = common < 0 ? a->in[i]->dtype : promote(common, a->in[i]->dtype);
  if (inplace) {
    RSI_CHECK(rsi_is_float(a->in[0]->dtype) || common == a->in[0]->dtype, RS_ERR_DTYPE,
              "the result would be %s, which cannot be stored in place in a %s tensor", rs_dtype_name(common),
              rs_dtype_name(a->in[0]->dtype));
    common = a->in[0]->dtype;
  }
  for (int i = 0; i < a->nin; i++)
    if (a->in[i]) RSI_TRY(cast_input(ctx, a, i, common));
  return RS_OK;
}

/* ---- bf16 and f16: computed in f32 ------------------------------------------------------------------------------------- */

static int half_of(const inputs *a) {
  int i = 0;
  while (!a->in[i] || !rsi_is_half(a->in[i]->dtype)) i++;
  return a->in[i]->dtype;
}

static rs_status dispatch(rs_ctx *ctx, const rs_op *op, inputs *a, const void *attrs, rs_tensor **out, bool inplace);

static rs_status cast_outputs(rs_ctx *ctx, const rs_op *op, int half, rs_tensor **out) {
  const struct { int64_t dtype; } attrs = {half};
  rs_status status = RS_OK;
  for (int j = 0; j < op->nout; j++) {
    rs_tensor *const wide = out[j], *narrow;
    if (status != RS_OK || wide->dtype != RS_F32) continue;
    status = rsi_run(ctx, RS_OP_cast, &wide, 1, &attrs, &narrow);
    if (status != RS_OK) continue;
    out[j] = narrow;
    rs_tensor_release(wide);
  }
  if (status != RS_OK)
    for (int j = 0; j < op->nout; j++) rs_tensor_release(out[j]);
  return status;
}

static rs_status run_in_f32(rs_ctx *ctx, const rs_op *op, int half, inputs *a, const void *attrs, rs_tensor **out, bool inplace) {
  rs_tensor *const target = a->in[0];
  rs_tensor *result[RS_MAX_OUTPUTS] = {NULL};
  for (int i = 0; i < a->nin; i++) {
    if (!a->in[i] || !rsi_is_half(a->in[i]->dtype)) continue;
    const rsi_call c = {.op = op, .x = &ctx->x, .ctx = ctx, .nin = a->nin, .in = a->in, .attrs = (void *)(uintptr_t)attrs};
    RSI_CHECK(!op->writes || !op->writes(&c, i), RS_ERR_DTYPE,
              "input %d is written in place and must not be %s; keep it in f32", i + 1, rs_dtype_name(half));
    RSI_TRY(cast_input(ctx, a, i, RS_F32));
  }
  if (inplace) {
    RSI_CHECK(op->traits & RSI_T_ELEMENTWISE, RS_ERR_UNSUPPORTED, "it has no in-place form");
    RSI_CHECK(!ctx->grad_enabled || !target->node || !rsi_node_is_leaf(target->node), RS_ERR_GRAD, LEAF_IN_PLACE);
  }
  RSI_TRY(dispatch(ctx, op, a, attrs, result, false));
  if (!inplace) {
    RSI_TRY(cast_outputs(ctx, op, half, result));
    for (int j = 0; j < op->nout; j++) out[j] = result[j];
    return RS_OK;
  }
  const struct { int64_t dtype; } narrow = {target->dtype};
  rs_tensor *pair[2] = {target, NULL};
  rs_status status = rsi_run(ctx, RS_OP_cast, &result[0], 1, &narrow, &pair[1]);
  if (status == RS_OK) status = rs_call_inplace(ctx, RS_OP_assign, pair, 2, NULL);
  rs_tensor_release(pair[1]);
  for (int j = 0; j < op->nout; j++) rs_tensor_release(result[j]);
  return status;
}

/* ---- running --------------------------------------------------------------------------------------------------------- */

static const rsi_kernel *choose(const rs_ctx *ctx, const rsi_call *c, int dtype) {
  for (const rsi_kernel *k = c->op->kernels; k->name; k++)
    if ((k->dtypes >> dtype & 1u) && rsi_backend_allowed(ctx, k->backend) && (!k->accepts || k->accepts(c))) return k;
  return NULL;
}

static rs_status run_now(rs_ctx *ctx, rsi_call *c, const rsi_kernel *k) {
  return rsi_likely(!ctx->profile.events) ? k->run(c) : rsi_profile_run(ctx, c, k, NULL, 0);
}

static rs_status run_kernel(rs_ctx *ctx, rsi_call *c, const rsi_kernel *k) {
  const size_t scratch = k->scratch ? k->scratch(c) : 0;
  ctx->last_kernel = k->name;
  if (rsi_likely(scratch == 0)) return run_now(ctx, c, k);
  RSI_TRY(rsi_alloc(ctx->x.heap, scratch, &c->scratch));
  const rs_status status = run_now(ctx, c, k);
  rsi_free(ctx->x.heap, c->scratch, scratch);
  c->scratch = NULL;
  return status;
}

static rs_status make_view(rs_ctx *ctx, rsi_call *c, inputs *a) {
  int64_t offset = 0, strides[RS_MAX_DIMS];
  rs_status status = c->op->view(c, &offset, strides);
  if (status == RS_ERR_STATE) {
    RSI_TRY(replace(ctx, a, 0, RS_OP_copy, NULL));
    status = c->op->view(c, &offset, strides);
  }
  RSI_TRY(status);
  return rsi_tensor_view(a->in[0], offset, c->desc[0].ndim, c->desc[0].shape, strides, &c->out[0]);
}

static bool same_sizes(int n, const int64_t *a, const int64_t *b) {
  for (int i = 0; i < n; i++)
    if (a[i] != b[i]) return false;
  return true;
}

static rs_status check_inplace(const rs_ctx *ctx, const rsi_call *c, bool recorded) {
  const rs_tensor *const t = c->in[0];
  RSI_CHECK(c->op->traits & RSI_T_ELEMENTWISE, RS_ERR_UNSUPPORTED, "it has no in-place form");
  RSI_CHECK(c->desc[0].ndim == t->ndim && same_sizes(t->ndim, c->desc[0].shape, t->shape), RS_ERR_SHAPE,
            "the result has shape %s, which cannot be stored in place in a tensor of shape %s",
            rsi_shape_text(c->desc[0].ndim, c->desc[0].shape), rsi_text(t));
  RSI_CHECK(c->desc[0].dtype == t->dtype, RS_ERR_DTYPE, "the result is %s, which cannot be stored in place in a %s tensor",
            rs_dtype_name(c->desc[0].dtype), rs_dtype_name(t->dtype));
  RSI_CHECK(!rsi_overlaps_itself(t), RS_ERR_STATE, "an expanded tensor cannot be written in place; clone it first");
  if (!ctx->grad_enabled) return RS_OK;
  RSI_CHECK(!t->node || !rsi_node_is_leaf(t->node), RS_ERR_GRAD,
            LEAF_IN_PLACE);
  if (!recorded) return RS_OK;
  RSI_CHECK(!(t->flags & RSI_VIEW), RS_ERR_GRAD,
            "a view cannot be changed in place while gradients are recorded; clone it, or do it under no_grad");
  RSI_CHECK(!(rsi_saved_mask(c->op, c->in, c->nin) & RSI_KEEP_IN(0)), RS_ERR_GRAD,
            "its gradient needs the value that it would overwrite; use the out-of-place form");
  return RS_OK;
}

/*
** A kernel may read an in-place operand only at the element it writes: any other overlap gets a copy, and so does an alias
** whose value the gradient rule will want as it was.
*/
static rs_status separate_overlap(rs_ctx *ctx, inputs *a, uint32_t kept) {
  for (int i = 1; i < a->nin; i++) {
    rs_tensor *const t = a->in[i];
    if (!t || t->storage != a->in[0]->storage) continue;
    const bool same = t->data == a->in[0]->data && rsi_same_shape(t, a->in[0]) &&
                      same_sizes(t->ndim, t->strides, a->in[0]->strides);
    if (!same || (kept & RSI_KEEP_IN(i))) RSI_TRY(replace(ctx, a, i, RS_OP_copy, NULL));
  }
  return RS_OK;
}

/*
** A view shows its base as it was when the view was taken; a later write to the base is not on its tape. A view without a
** gradient is stale once a write that has one reached its base.
*/
static rs_status check_stale_views(const inputs *a) {
  for (int i = 0; i < a->nin; i++) {
    const rs_tensor *const t = a->in[i];
    if (!t || (t->flags & (RSI_VIEW | RSI_DETACHED)) != RSI_VIEW || (t->node && rsi_node_is_leaf(t->node))) continue;
    RSI_CHECK(t->node ? t->view_version == t->storage->version : t->view_version >= t->storage->recorded, RS_ERR_VERSION,
              "input %d is a view whose base was overwritten in place by %s after the view was taken; take the view again", i + 1,
              rsi_last_writer(t->storage));
  }
  return RS_OK;
}

/* An input that a kernel writes (running statistics, parameters) must not be part of what the gradient is taken of. */
static rs_status check_writes(const rs_ctx *ctx, const rsi_call *c) {
  if (!ctx->grad_enabled || (c->op->traits & RSI_T_NONDIFF)) return RS_OK;
  for (int i = 0; i < c->nin; i++)
    RSI_CHECK(!c->in[i] || !c->in[i]->node || !c->op->writes(c, i), RS_ERR_GRAD,
              "input %d is written in place and must not require a gradient", i + 1);
  return RS_OK;
}

static void mark_writes(const rsi_call *c) {
  for (int i = 0; i < c->nin; i++)
    if (c->in[i] && c->op->writes(c, i)) rsi_wrote(c->in[i], c->op->name);
}

static rs_status make_contiguous(rs_ctx *ctx, const rs_op *op, inputs *a, const rsi_call *c) {
  for (int i = 0; i < a->nin; i++) {
    if (!a->in[i] || rsi_is_contiguous(a->in[i])) continue;
    RSI_CHECK(!op->writes || !op->writes(c, i), RS_ERR_STATE, "input %d is written in place and must be contiguous", i + 1);
    RSI_TRY(replace(ctx, a, i, RS_OP_copy, NULL));
  }
  return RS_OK;
}

static void default_attrs(const rs_op *op, void *attrs) {
  for (int i = 0; i < op->nattrs; i++) {
    const rsi_attr *const at = &op->attrs[i];
    char *const field = (char *)attrs + at->offset;
    if (at->kind == RS_ATTR_FLOAT) *(double *)(void *)field = at->def;
    else if (at->kind == RS_ATTR_DIMS || at->kind == RS_ATTR_SHAPE || at->kind == RS_ATTR_INTS) memset(field, 0, sizeof(rs_list));
    else *(int64_t *)(void *)field = (int64_t)at->def;
  }
}

static rs_status check_attrs(const rs_op *op, const void *attrs) {
  for (int i = 0; i < op->nattrs; i++) {
    const rsi_attr *const at = &op->attrs[i];
    const char *const field = (const char *)attrs + at->offset;
    if (at->kind == RS_ATTR_FLOAT) {
      const double v = *(const double *)(const void *)field;
      const bool any = __builtin_isinf(at->min) && __builtin_isinf(at->max);   /* then NaN is a value like others */
      RSI_CHECK(any || (v >= at->min && v <= at->max), RS_ERR_ARG, "%s is %g, but must lie in [%g, %g]", at->name, v, at->min, at->max);
    } else if (at->kind == RS_ATTR_DIMS || at->kind == RS_ATTR_SHAPE || at->kind == RS_ATTR_INTS) {
      const rs_list *const list = (const rs_list *)(const void *)field;
      RSI_CHECK(list->n >= 0 && list->n <= RS_MAX_DIMS, RS_ERR_ARG, "%s has %lld values, at most %d are possible", at->name,
                (long long)list->n, RS_MAX_DIMS);
    } else if (at->kind == RS_ATTR_INT || at->kind == RS_ATTR_ENUM || at->kind == RS_ATTR_DTYPE) {
      const int64_t v = *(const int64_t *)(const void *)field;
      RSI_CHECK((double)v >= at->min && (double)v <= at->max, RS_ERR_ARG, "%s is %lld, but must lie in [%.0f, %.0f]", at->name,
                (long long)v, at->min, at->max);
    }
  }
  return RS_OK;
}

static void release_outputs(const rs_op *op, rs_tensor **out, bool inplace) {
  for (int j = 0; j < op->nout && !inplace; j++) {
    rs_tensor_release(out[j]);
    out[j] = NULL;
  }
}

/* Allocates the results, runs a kernel or makes a view, and records. On failure the results are gone. */
static rs_status execute(rs_ctx *ctx, rsi_call *c, inputs *a, const rs_tensor *lead, bool inplace, bool recorded) {
  const rs_op *const op = c->op;
  const rsi_kernel *kernel = NULL;
  if (op->traits & RSI_T_VIEW) RSI_TRY(make_view(ctx, c, a));
  else {
    const int dtype = lead ? lead->dtype : c->desc[0].dtype;
    kernel = choose(ctx, c, dtype);
    RSI_CHECK(kernel, RS_ERR_DTYPE, "%s is not supported%s", rs_dtype_name(dtype),
              ctx->backends == ~0u ? "" : " by the backends that are allowed");
    const bool dry = ctx->trace != NULL;        /* what is recorded is not computed */
    for (int j = 0; j < op->nout && !inplace; j++)
      RSI_TRY((rsi_unlikely(dry) ? rsi_tensor_phantom : rsi_tensor_new)(ctx->x.heap, &c->desc[j], &c->out[j]));
    if (inplace) c->out[0] = c->in[0];
    if (op->writes) RSI_TRY(check_writes(ctx, c));
    if (rsi_likely(!dry)) RSI_TRY(run_kernel(ctx, c, kernel));
    if (inplace) rsi_wrote(c->in[0], op->name);
    if (op->writes) mark_writes(c);
  }
  if (rsi_unlikely(ctx->trace != NULL)) RSI_TRY(rsi_trace_append(ctx, c, kernel, inplace));
  return recorded ? rsi_record(c, inplace) : RS_OK;
}

void rsi_op_attrs(const rs_op *op, const void *attrs, void *copy) {
  if (attrs) memcpy(copy, attrs, (size_t)op->attrs_size);
  else default_attrs(op, copy);
}

/* A private copy of the attributes, or the defaults. */
static rs_status take_attrs(const rs_op *op, const void *attrs, void *copy) {
  if (!attrs) {
    default_attrs(op, copy);
    return RS_OK;
  }
  memcpy(copy, attrs, (size_t)op->attrs_size);
  return check_attrs(op, copy);
}

static rs_status dispatch(rs_ctx *ctx, const rs_op *op, inputs *a, const void *attrs, rs_tensor **out, bool inplace) {
  _Alignas(16) char attr_copy[RSI_MAX_ATTR_BYTES];
  if (op->attrs_size) RSI_TRY(take_attrs(op, attrs, attr_copy));
  facts f = look(a);
  if (f.lead) {
    RSI_CHECK(!f.phantom || ctx->trace, RS_ERR_STATE,
              "an input was made while a program was recorded, so it has a shape but no values; only what the recorded function "
              "returns has values (state that is to last must be made before)");
    if (rsi_unlikely((f.dtypes & (f.dtypes - 1)) != 0) && (op->traits & RSI_T_PROMOTE)) {
      RSI_TRY(unify_dtypes(ctx, a, inplace));
      f = look(a);
    }
    if (rsi_unlikely((f.dtypes & RSI_HALF) != 0) && !(op->traits & (RSI_T_HALF | RSI_T_VIEW)) &&
        !((op->traits & RSI_T_BF16) && f.dtypes == 1u << RS_BF16))
      return run_in_f32(ctx, op, half_of(a), a, attr_copy, out, inplace);
    RSI_CHECK(op->dtypes >> f.lead->dtype & 1u, RS_ERR_DTYPE, "a %s tensor of shape %s is not accepted; cast it first (t:to(\"f32\"))",
              rs_dtype_name(f.lead->dtype), rsi_text(f.lead));
  }
  rsi_call c;
  c.op = op;
  c.x = &ctx->x;
  c.ctx = ctx;
  c.nin = a->nin;
  c.nout = op->nout;
  c.in = a->in;
  c.out = out;
  c.attrs = attr_copy;
  c.scratch = NULL;
  if (rsi_unlikely(f.strided) && !(op->traits & (RSI_T_ELEMENTWISE | RSI_T_VIEW | RSI_T_STRIDED))) {
    RSI_TRY(make_contiguous(ctx, op, a, &c));
    f = look(a);
  }
  if (op->infer) RSI_TRY(op->infer(&c));
  const bool recorded = f.grad && ctx->grad_enabled && !(op->traits & RSI_T_NONDIFF);
  if (rsi_unlikely(f.views) && ctx->grad_enabled && !(op->traits & RSI_T_NONDIFF)) RSI_TRY(check_stale_views(a));
  if (inplace) {
    RSI_TRY(check_inplace(ctx, &c, recorded));
    RSI_TRY(separate_overlap(ctx, a, recorded ? rsi_saved_mask(op, a->in, a->nin) : 0));
  }
  const rs_status status = execute(ctx, &c, a, f.lead, inplace, recorded);
  if (rsi_unlikely(status != RS_OK)) release_outputs(op, out, inplace);
  return status;
}

static rs_status call(rs_ctx *ctx, int number, rs_tensor *const *in, int nin, const void *attrs, rs_tensor **out, bool inplace) {
  RSI_CHECK(number >= 0 && number < RSI_OPS, RS_ERR_ARG, "there is no op number %d", number);
  const rs_op *const op = rsi_ops[number];
  inputs a;
  for (int j = 0; j < op->nout; j++) out[j] = NULL;
  rs_status status = check_count(op, in, nin);
  if (rsi_likely(status == RS_OK)) {
    status = inputs_take(ctx, op, in, nin, &a);
    if (rsi_likely(status == RS_OK)) {
      status = dispatch(ctx, op, &a, attrs, out, inplace);
      if (rsi_unlikely(a.nmade || a.in != a.few)) inputs_release(ctx, &a);
    }
  }
  return rsi_likely(status == RS_OK) ? RS_OK : rsi_fail_prefix(status, op->name);
}

rs_status rsi_run(rs_ctx *ctx, int op, rs_tensor *const *in, int nin, const void *attrs, rs_tensor **out) {
  return call(ctx, op, in, nin, attrs, out, false);
}

rs_status rs_call(rs_ctx *ctx, int op, rs_tensor *const *in, int nin, const void *attrs, rs_tensor **out) {
  return call(ctx, op, in, nin, attrs, out, false);
}

rs_status rs_call_inplace(rs_ctx *ctx, int op, rs_tensor *const *in, int nin, const void *attrs) {
  rs_tensor *out[RS_MAX_OUTPUTS];
  RSI_CHECK(nin > 0 && in[0], RS_ERR_ARG, "%s: an in-place op needs a tensor to write to",
            op >= 0 && op < RSI_OPS ? rsi_ops[op]->name : "?");
  return call(ctx, op, in, nin, attrs, out, true);
}

rs_status rsi_dim(rs_ctx *ctx, int64_t dim, int ndim, int64_t *out) {
  const int base = ctx ? ctx->x.base : 0;
  RSI_CHECK(ndim > 0, RS_ERR_INDEX, "dimension %lld does not exist: the tensor is a single number (0-d)", (long long)(dim < 0 ? dim : dim + base));
  RSI_CHECK(dim >= -ndim && dim < ndim, RS_ERR_INDEX, "dimension %lld does not exist: the tensor has %d (%d to %d, or -1 for the last)",
            (long long)(dim < 0 ? dim : dim + base), ndim, base, ndim - 1 + base);
  *out = dim < 0 ? dim + ndim : dim;
  return RS_OK;
}
