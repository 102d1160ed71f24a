/*
** Steps of the optimisers: one call updates all parameters in place.
**
** Inputs: hyper (f64: the numbers, read at every run, so that a program sees them change), steps (i64 [n]: how often each
** parameter was updated; the op counts them up), then groups of n tensors: the parameters, their gradients and the state.
** A gradient may be left out: that parameter, its state and its count stay as they are.
**
** All tensors together are a list of chunks of elements; threads share them out. Elements do not depend on each other, so
** neither does the result on how. Numbers too small to be normal are 0 here: moments of gradients that stay 0 get there.
*/
#include "ops/op.h"
#include "base/denormal.h"
#include <math.h>

enum { HYPER, STEPS, GROUPS, CHUNK = 16384, SMALL = 32768 };   /* SMALL: elements that one thread does alone */

#define SGD_ATTRS(F, T)                                                                                                     \
  F(T, INT, n, 0, 0, RSI_BIG, NULL, "how many parameters there are")                                                        \
  F(T, BOOL, nesterov, 0, 0, 1, NULL, "look ahead along the momentum")                                                      \
  F(T, BOOL, maximize, 0, 0, 1, NULL, "go up the gradient")
RSI_ATTRS(sgd, SGD_ATTRS)

#define ADAM_ATTRS(F, T)                                                                                                    \
  F(T, INT, n, 0, 0, RSI_BIG, NULL, "how many parameters there are")                                                        \
  F(T, BOOL, decoupled, 0, 0, 1, NULL, "weight decay apart from the gradient (AdamW)")                                      \
  F(T, BOOL, maximize, 0, 0, 1, NULL, "go up the gradient")
RSI_ATTRS(adam, ADAM_ATTRS)

/* Both begin with n. */
static int64_t count_of(const rsi_call *c) { return RSI_ATTR(c, sgd)->n; }
static rs_tensor *member(const rsi_call *c, int group, int64_t i) { return c->in[GROUPS + group * count_of(c) + i]; }
static int groups_of(const rsi_call *c) { return count_of(c) > 0 ? (int)((c->nin - GROUPS) / count_of(c)) : 0; }

/* ---- checks ---------------------------------------------------------------------------------------------------------- */

static rs_status check_member(const rs_tensor *t, const rs_tensor *p, const char *what, long long number) {
  RSI_CHECK(t, RS_ERR_ARG, "%s %lld is missing", what, number);
  RSI_CHECK(rsi_same_shape(t, p), RS_ERR_SHAPE, "%s %lld has shape %s but its parameter %s", what, number, rsi_text(t),
            rsi_text(p));
  RSI_CHECK(t->dtype == p->dtype, RS_ERR_DTYPE, "%s %lld is %s but its parameter %s; make a new optimiser after changing the dtype",
            what, number, rs_dtype_name(t->dtype), rs_dtype_name(p->dtype));
  return RS_OK;
}

static rs_status check_inputs(const rsi_call *c, int64_t numbers, const char *names, int least, int most, const char *const *what) {
  const int64_t n = count_of(c);
  const rs_tensor *const hyper = c->in[HYPER], *const steps = c->in[STEPS];
  RSI_CHECK(hyper && hyper->dtype == RS_F64 && hyper->ndim <= 1 && hyper->numel == numbers && rsi_is_contiguous(hyper),
            RS_ERR_ARG, "hyper must be contiguous f64 [%lld]: %s",
            (long long)numbers, names);
  RSI_CHECK(steps && steps->dtype == RS_I64 && steps->numel == n && rsi_is_contiguous(steps), RS_ERR_ARG,
            "steps must be contiguous i64 [%lld], a count for each parameter", (long long)n);
  RSI_CHECK(n == 0 ? c->nin == GROUPS : (c->nin - GROUPS) % n == 0 && groups_of(c) >= least && groups_of(c) <= most, RS_ERR_ARG,
            "%d tensors were given for %lld parameters", c->nin - GROUPS, (long long)n);
  const int groups = groups_of(c);
  for (int64_t i = 0; i < n; i++) {
    const rs_tensor *const p = member(c, 0, i);
    const long long number = (long long)i + rsi_base(c);
    RSI_CHECK(p, RS_ERR_ARG, "parameter %lld is missing", number);
    RSI_CHECK(p->dtype == RS_F32 || p->dtype == RS_F64, RS_ERR_DTYPE, "parameter %lld is %s; only f32 and f64 can be updated",
              number, rs_dtype_name(p->dtype));
    if (!member(c, 1, i)) continue;
    for (int g = 1; g < groups; g++) RSI_TRY(check_member(member(c, g, i), p, what[g], number));
  }
  return RS_OK;
}

/* The counts, and all groups but the gradients, of the parameters that have a gradient. */
static bool step_writes(const rsi_call *c, int i) {
  if (i < GROUPS) return i == STEPS;
  const int64_t at = i - GROUPS, n = count_of(c);
  return at / n != 1 && member(c, 1, at % n) != NULL;
}

/* ---- running --------------------------------------------------------------------------------------------------------- */

/* One parameter with its gradient and state. */
typedef struct slot {
  rs_tensor *t[4];
  int64_t    first, step;       /* number of its first chunk; count of updates, this one included */
  union { rsi_sgd sgd; rsi_adam adam; } with;
} slot;

typedef struct job {
  const rsi_k_optim *k;
  const slot *slots;
  int64_t     count;
  int         groups;
  bool        adam;
} job;

static void update(const job *j, const slot *s, int dtype, char *const *data, int64_t n) {
  if (j->adam) j->k->adam[dtype](data[0], data[1], data[2], data[3], n, &s->with.adam);
  else j->k->sgd[dtype](data[0], data[1], j->groups > 2 ? data[2] : NULL, n, &s->with.sgd);
}

typedef struct strided { const job *j; const slot *s; } strided;

/* A row of a nest: any strides, element by element. */
static void strided_row(int64_t n, char *const *data, const int64_t *strides, const void *arg) {
  const strided *const a = arg;
  char *at[4] = {NULL};
  for (int g = 0; g < a->j->groups; g++) at[g] = data[g];
  for (int64_t i = 0; i < n; i++) {
    update(a->j, a->s, a->s->t[0]->dtype, at, 1);
    for (int g = 0; g < a->j->groups; g++) at[g] += strides[g];
  }
}

static bool is_flat(const job *j, const slot *s) {
  for (int g = 0; g < j->groups; g++)
    if (!rsi_is_contiguous(s->t[g])) return false;
  return true;
}

static void run_slot(const job *j, const slot *s, int64_t first, int64_t last) {
  const int dtype = s->t[0]->dtype;
  char *data[4] = {NULL};
  if (rsi_likely(is_flat(j, s))) {
    for (int g = 0; g < j->groups; g++) data[g] = (char *)s->t[g]->data + (size_t)first * rsi_dtype_size[dtype];
    update(j, s, dtype, data, last - first);
    return;
  }
  const strided arg = {j, s};
  rsi_nest nest;
  rsi_nest_make(&nest, s->t, j->groups);
  rsi_nest_run(&nest, first, last, strided_row, &arg);
}

static void run_chunks(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  int64_t low = 0, high = j->count;   /* the last slot that begins at or before `first` */
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (j->slots[middle].first <= first) low = middle;
    else high = middle;
  }
  const rsi_float_mode mode = rsi_flush_begin();
  for (int64_t chunk = first; chunk < last; chunk++) {
    while (low + 1 < j->count && j->slots[low + 1].first <= chunk) low++;
    const slot *const s = &j->slots[low];
    const int64_t from = (chunk - s->first) * CHUNK, left = s->t[0]->numel - from;
    run_slot(j, s, from, from + (left < CHUNK ? left : CHUNK));
  }
  rsi_flush_end(mode);
}

static int64_t elements(const rsi_call *c) {
  int64_t total = 0;
  for (int64_t i = 0; i < count_of(c); i++) total += member(c, 1, i) ? member(c, 0, i)->numel : 0;
  return total;
}

static size_t step_scratch(const rsi_call *c) { return elements(c) > SMALL ? sizeof(slot) * (size_t)count_of(c) : 0; }

/* Sets s->with; `former`, NULL at first, is another slot that was set by this run. */
typedef void (*prepare_fn)(const rsi_call *c, slot *s, const slot *former);

static rs_status run(const rsi_call *c, bool adam, prepare_fn prepare) {
  int64_t *const steps = c->in[STEPS]->data, n = count_of(c), chunks = 0;
  job j = {.k = c->x->k->optim, .slots = c->scratch, .groups = groups_of(c), .adam = adam};
  slot *const slots = c->scratch, *former = NULL, local[2];
  const rsi_float_mode mode = rsi_flush_begin();
  for (int64_t i = 0; i < n; i++) {
    rs_tensor *const p = member(c, 0, i);
    if (!member(c, 1, i)) continue;
    slot *const s = slots ? &slots[j.count] : &local[former == local];
    for (int g = 0; g < j.groups; g++) s->t[g] = member(c, g, i);
    s->first = chunks;
    s->step = ++steps[i];
    prepare(c, s, former);
    former = s;
    if (p->numel == 0) continue;
    if (!slots) run_slot(&j, s, 0, p->numel);
    else j.count++, chunks += (p->numel + CHUNK - 1) / CHUNK;
  }
  rsi_flush_end(mode);
  if (slots) rsi_parallel(c->x, chunks, 0.7 * CHUNK, run_chunks, &j);
  return RS_OK;
}

/* ---- sgd ------------------------------------------------------------------------------------------------------------- */

enum { SGD_LR, SGD_MOMENTUM, SGD_DAMPENING, SGD_DECAY, SGD_NUMBERS };

static rs_status sgd_infer(rsi_call *c) {
  static const char *const what[] = {"parameter", "gradient", "momentum buffer"};
  return check_inputs(c, SGD_NUMBERS, "lr, momentum, dampening, weight_decay", 2, 3, what);
}

static void sgd_prepare(const rsi_call *c, slot *s, const slot *former) {
  const sgd_attrs *const a = RSI_ATTR(c, sgd);
  const double *const h = c->in[HYPER]->data;
  (void)former;
  s->with.sgd = (rsi_sgd){.lr = h[SGD_LR], .momentum = h[SGD_MOMENTUM], .dampening = h[SGD_DAMPENING],
                          .weight_decay = h[SGD_DECAY], .nesterov = a->nesterov != 0, .maximize = a->maximize != 0,
                          .first = s->step == 1};
}

static rs_status sgd_run(const rsi_call *c) {
  const double momentum = ((const double *)c->in[HYPER]->data)[SGD_MOMENTUM];
  RSI_CHECK(momentum == 0 || groups_of(c) != 2, RS_ERR_ARG, "a momentum of %g needs a buffer for each parameter", momentum);
  return run(c, false, sgd_prepare);
}

static const rsi_kernel sgd_kernels[] = {{"sgd_step", RSI_PORTABLE, RSI_F64, NULL, step_scratch, sgd_run}, {0}};
static const rsi_sample no_samples[] = {{NULL, NULL, 0, 0}};   /* it has no result to compare: tested by itself */

const rs_op rsi_op_sgd_step = {
  .name = "sgd_step",
  .doc = "Updates parameters in place by stochastic gradient descent. Inputs: hyper f64 {lr, momentum, dampening, weight_decay}, "
         "steps i64 [n], n parameters, n gradients (missing: left alone), n momentum buffers (or none). d = g + weight_decay p; "
         "b = momentum b + (1 - dampening) d, d at first; p = p - lr b, with nesterov p - lr (d + momentum b).",
  .inputs = "tensors...", .nin_min = 2, .nin_max = RSI_VARIADIC, .nout = 0,
  .traits = RSI_T_NONDIFF | RSI_T_STRIDED | RSI_T_HALF | RSI_T_NOT_METHOD, .dtypes = RSI_F64, RSI_USES_ATTRS(sgd),
  .infer = sgd_infer, .writes = step_writes, .kernels = sgd_kernels, .samples = no_samples,
};

/* ---- adam ------------------------------------------------------------------------------------------------------------ */

enum { ADAM_LR, ADAM_BETA1, ADAM_BETA2, ADAM_EPS, ADAM_DECAY, ADAM_NUMBERS };

static rs_status adam_infer(rsi_call *c) {
  static const char *const what[] = {"parameter", "gradient", "exp_avg", "exp_avg_sq"};
  return check_inputs(c, ADAM_NUMBERS, "lr, beta1, beta2, eps, weight_decay", 4, 4, what);
}

/* Parameters mostly have the same count, so the powers are mostly known. */
static void adam_prepare(const rsi_call *c, slot *s, const slot *former) {
  const adam_attrs *const a = RSI_ATTR(c, adam);
  const double *const h = c->in[HYPER]->data;
  if (former && former->step == s->step) {
    s->with.adam = former->with.adam;
    return;
  }
  s->with.adam = (rsi_adam){.lr = h[ADAM_LR], .beta1 = h[ADAM_BETA1], .beta2 = h[ADAM_BETA2], .eps = h[ADAM_EPS],
                            .weight_decay = h[ADAM_DECAY], .correction1 = 1.0 - pow(h[ADAM_BETA1], (double)s->step),
                            .correction2 = 1.0 - pow(h[ADAM_BETA2], (double)s->step), .decoupled = a->decoupled != 0,
                            .maximize = a->maximize != 0};
}

static rs_status adam_run(const rsi_call *c) { return run(c, true, adam_prepare); }

static const rsi_kernel adam_kernels[] = {{"adam_step", RSI_PORTABLE, RSI_F64, NULL, step_scratch, adam_run}, {0}};

const rs_op rsi_op_adam_step = {
  .name = "adam_step",
  .doc = "Updates parameters in place by Adam (Kingma, Ba 2015), decoupled: by AdamW (Loshchilov, Hutter 2019). Inputs: hyper f64 "
         "{lr, beta1, beta2, eps, weight_decay}, steps i64 [n], n parameters, n gradients (missing: left alone), n exp_avg, n "
         "exp_avg_sq. With t the count in steps: p = p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps).",
  .inputs = "tensors...", .nin_min = 2, .nin_max = RSI_VARIADIC, .nout = 0,
  .traits = RSI_T_NONDIFF | RSI_T_STRIDED | RSI_T_HALF | RSI_T_NOT_METHOD, .dtypes = RSI_F64, RSI_USES_ATTRS(adam),
  .infer = adam_infer, .writes = step_writes, .kernels = adam_kernels, .samples = no_samples,
};
