/*
** Dropout. The mask is never stored: output 1 keeps the two numbers {key, counter} that the words of the mask are a function
** of, and the gradient makes them again. Element i uses word i % 4 of Philox block counter + i / 4.
*/
#include "ops/op.h"
#include <string.h>

#define DROPOUT_ATTRS(F, T)                                                                                                 \
  F(T, FLOAT, p, 0.5, 0, 1, NULL, "probability that an element becomes zero")                                               \
  F(T, BOOL, training, 1, 0, 1, NULL, "false: the input passes as it is")
RSI_ATTRS(dropout, DROPOUT_ATTRS)

#define DROPOUT_BACKWARD_ATTRS(F, T) F(T, FLOAT, p, 0.5, 0, 1, NULL, "probability that an element became zero")
RSI_ATTRS(dropout_backward, DROPOUT_BACKWARD_ATTRS)

enum { GROUP = 1024 };   /* elements whose words are made together */

/* ---- running --------------------------------------------------------------------------------------------------------- */

static bool is_random(double p) { return p > 0 && p < 1; }

typedef struct job {
  const rsi_kernels *k;
  const char *x;
  char       *out;
  size_t      item;
  int         dtype;
  int64_t     n;
  uint64_t    key, counter;
  uint32_t    keep;
  double      scale;
} job;

static void mask_groups(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  uint32_t words[GROUP];
  for (int64_t i = first; i < last; i++) {
    const int64_t n = j->n - i * GROUP < GROUP ? j->n - i * GROUP : GROUP;
    const size_t at = (size_t)(i * GROUP) * j->item;
    j->k->elementwise->random->words(j->key, j->counter + (uint64_t)(i * (GROUP / 4)), (n + 3) / 4, words);
    j->k->norm->of[j->dtype]->dropout(j->out + at, j->x + at, words, n, j->keep, j->scale);
  }
}

/* y = x where the word is below 2^32 (1 - p), divided by 1 - p; else 0 */
static void mask(const rsi_call *c, const rs_tensor *x, double p, uint64_t key, uint64_t counter) {
  rs_tensor *const y = c->out[0];
  const size_t bytes = (size_t)x->numel * rsi_item_size(x);
  const double limit = (1.0 - p) * 4294967296.0;
  if (p == 0) memcpy(y->data, x->data, bytes);
  else if (p == 1) memset(y->data, 0, bytes);
  else {
    job j = {c->x->k, x->data, y->data, rsi_item_size(x), x->dtype, x->numel, key, counter,
             limit < 4294967295.0 ? (uint32_t)limit : UINT32_MAX, 1.0 / (1.0 - p)};
    rsi_parallel(c->x, (x->numel + GROUP - 1) / GROUP, 0.8 * GROUP, mask_groups, &j);
  }
}

static int64_t dropout_draws(const rsi_call *c) {
  const dropout_attrs *const a = RSI_ATTR(c, dropout);
  return a->training && is_random(a->p) ? (c->in[0]->numel + 3) / 4 : 0;
}

static rs_status dropout_run(const rsi_call *c) {
  const dropout_attrs *const a = RSI_ATTR(c, dropout);
  int64_t *const state = c->out[1]->data;
  const uint64_t key = c->x->rng->key, counter = rsi_rng_take(c->x->rng, (uint64_t)dropout_draws(c));
  state[0] = (int64_t)key, state[1] = (int64_t)counter;
  mask(c, c->in[0], a->training ? a->p : 0, key, counter);
  return RS_OK;
}

static rs_status dropout_backward_run(const rsi_call *c) {
  const int64_t *const state = c->in[1]->data;
  mask(c, c->in[0], RSI_ATTR(c, dropout_backward)->p, (uint64_t)state[0], (uint64_t)state[1]);
  return RS_OK;
}

/* ---- the ops --------------------------------------------------------------------------------------------------------- */

static rs_status dropout_infer(rsi_call *c) {
  rsi_desc_of(c->in[0], &c->desc[0]);
  c->desc[1] = (rsi_desc){.dtype = RS_I64, .ndim = 1, .shape = {2}};
  return RS_OK;
}

static rs_status dropout_backward_infer(rsi_call *c) {
  const rs_tensor *const state = c->in[1];
  RSI_CHECK(state->dtype == RS_I64 && state->numel == 2, RS_ERR_ARG, "state is %s %s but must be the i64 [2] that dropout gave",
            rs_dtype_name(state->dtype), rsi_text(state));
  return rsi_infer_same(c);
}

static void dropout_grad(rsi_grad *g) {
  const dropout_attrs *const a = rsi_attrs(g);
  const dropout_backward_attrs back = {a->p};
  rs_tensor *const gy = rsi_gout(g, 0);
  rsi_give(g, 0, a->training && a->p > 0 ? rsi_emit2(g, RS_OP_dropout_backward, &back, gy, rsi_out(g, 1)) : gy);
}

/* Linear in g, with the same mask. */
static void dropout_backward_grad(rsi_grad *g) {
  rsi_give(g, 0, rsi_emit2(g, RS_OP_dropout_backward, rsi_attrs(g), rsi_gout(g, 0), rsi_in(g, 1)));
}

static const rsi_kernel dropout_kernels[] = {{"dropout", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, dropout_run}, {0}};
static const rsi_kernel dropout_backward_kernels[] = {
  {"dropout_backward", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, dropout_backward_run},
  {0},
};

static const dropout_attrs often = {0.9, 1}, never = {0, 1}, always = {1, 1}, evaluating = {0.5, 0};
static const dropout_backward_attrs back_often = {0.9}, back_always = {1}, back_never = {0};

static const rsi_sample dropout_samples[] = {
  {"f7x33", NULL, 0, 0},
  {"f", NULL, 0, 0},
  {"f0x3", NULL, 0, 0},
  {"f2x1100", &often, 0, 0},
  {"f5x7", &never, 0, 0},
  {"f5x7", &always, 0, 0},
  {"f5x7", &evaluating, 0, 0},
  {NULL, NULL, 0, 0},
};
static const rsi_sample dropout_backward_samples[] = {
  {"f7x33,i2@0:1000", NULL, 0, 0},
  {"f,i2@0:1000", NULL, 0, 0},
  {"f0x3,i2@0:1000", NULL, 0, 0},
  {"f2x1100,i2@0:1000", &back_often, 0, 0},
  {"f5x7,i2@0:1000", &back_always, 0, 0},
  {"f5x7,i2@0:1000", &back_never, 0, 0},
  {NULL, NULL, 0, 0},
};

const rs_op rsi_op_dropout = {
  .name = "dropout",
  .doc = "Sets each element to zero with probability p and divides the others by 1 - p, in training only (Srivastava and others "
         "2014). Output 1 (the state of the generator) is for the gradient.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 2, .nout_public = 1,
  .traits = RSI_T_RANDOM, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(dropout),
  .infer = dropout_infer, .grad = dropout_grad, .saves = {RSI_KEEP_OUT(1)},
  .kernels = dropout_kernels, .samples = dropout_samples,
};

const rs_op rsi_op_dropout_backward = {
  .name = "dropout_backward",
  .doc = "Gradient of dropout: the same mask, made again from the state of the generator, on g.",
  .inputs = "g,state", .nin_min = 2, .nin_max = 2, .nout = 1,
  .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(dropout_backward),
  .infer = dropout_backward_infer, .grad = dropout_backward_grad, .saves = {RSI_KEEP_IN(1)},
  .kernels = dropout_backward_kernels, .samples = dropout_backward_samples,
};
