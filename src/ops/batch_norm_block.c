/*
** Batch norm of images in block form, for programs (block_image.h): one sweep over x for the statistics, one that writes
** y = act((x - mean) scale + shift + residual); backward one sweep for the two sums and one that writes the gradient. Images are
** f32 or bf16, whatever belongs to channels is f32, sums over an image are doubles.
**
** Columns see tables with a number for each of them, group after group: [G][width]. Channels from C on have zeros there, so they
** stay zeros.
*/
#include "kernels/bf16.h"
#include "ops/block_image.h"
#include <math.h>
#include <string.h>

/* ---- attributes and shapes ------------------------------------------------------------------------------------------- */

#define ACT_ATTR(F, T) F(T, ENUM, act, 0, 0, 2, "none,relu,relu6", "what is applied at the end")
#define BATCH_NORM_BLOCK_ATTRS(F, T)                                                                                        \
  F(T, INT, channels, 1, 1, INT32_MAX, NULL, "channels of the image")                                                       \
  F(T, BOOL, training, 1, 0, 1, NULL, "use the statistics of this batch and update the running ones")                      \
  F(T, FLOAT, momentum, 0.1, 0, 1, NULL, "share of the new statistics in the running ones")                                 \
  F(T, FLOAT, eps, 1e-5, 0, RSI_BIG, NULL, "added to the variance")                                                         \
  ACT_ATTR(F, T)
#define BATCH_NORM_BLOCK_BACKWARD_ATTRS(F, T)                                                                               \
  F(T, INT, channels, 1, 1, INT32_MAX, NULL, "channels of the image")                                                       \
  F(T, BOOL, training, 1, 0, 1, NULL, "the statistics came from this batch")                                                \
  ACT_ATTR(F, T)                                                                                                            \
  F(T, BOOL, residual, 0, 0, 1, NULL, "the gradient of the residual is wanted")
RSI_ATTRS(batch_norm_block, BATCH_NORM_BLOCK_ATTRS)
RSI_ATTRS(batch_norm_block_backward, BATCH_NORM_BLOCK_BACKWARD_ATTRS)

enum { X, WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR, RESIDUAL };
enum { B_G, B_X, B_Y, B_MEAN, B_RSTD, B_WEIGHT, B_BIAS, B_MORE };
enum { NONE, RELU, RELU6 };

static int64_t values_of(const rs_tensor *x) {       /* of one channel */
  return x->shape[0] * x->shape[2] * x->shape[3];
}

static rs_status batch_norm_block_infer(rsi_call *c) {
  static const char *const names[] = {"input", "weight", "bias", "running_mean", "running_var"};
  const batch_norm_block_attrs *const a = c->attrs;
  const rs_tensor *const x = c->in[X];
  RSI_TRY(rsi_block_check(x, names[X], a->channels));
  RSI_TRY(rsi_block_check_like(c->in[RESIDUAL], "residual", x));
  for (int i = WEIGHT; i <= RUNNING_VAR; i++) RSI_TRY(rsi_block_check_vector(c->in[i], names[i], a->channels));
  RSI_CHECK(!c->in[RUNNING_MEAN] == !c->in[RUNNING_VAR], RS_ERR_ARG,
            "running_mean and running_var go together; give both or neither");
  RSI_CHECK(a->training || c->in[RUNNING_MEAN], RS_ERR_ARG, "without training it needs running_mean and running_var");
  RSI_CHECK(!a->training || values_of(x) != 1, RS_ERR_SHAPE,
            "input %s has one value per channel, whose variance is unknown; train on more values, or set training to false",
            rsi_text(x));
  rsi_desc_of(x, &c->desc[0]);
  c->desc[1] = (rsi_desc){.dtype = RS_F32, .ndim = 1, .shape = {a->channels}};
  c->desc[2] = c->desc[1];
  return RS_OK;
}

static bool batch_norm_block_writes(const rsi_call *c, int i) {
  return RSI_ATTR(c, batch_norm_block)->training && (i == RUNNING_MEAN || i == RUNNING_VAR);
}

static rs_status batch_norm_block_backward_infer(rsi_call *c) {
  const batch_norm_block_backward_attrs *const a = c->attrs;
  const rs_tensor *const x = c->in[B_X];
  RSI_TRY(rsi_block_check(x, "input", a->channels));
  RSI_TRY(rsi_block_check_like(c->in[B_G], "gradient", x));
  RSI_TRY(rsi_block_check_like(c->in[B_Y], "result", x));
  RSI_CHECK(c->in[B_MEAN] && c->in[B_RSTD], RS_ERR_ARG, "mean and rstd are missing");
  RSI_TRY(rsi_block_check_vector(c->in[B_MEAN], "mean", a->channels));
  RSI_TRY(rsi_block_check_vector(c->in[B_RSTD], "rstd", a->channels));
  RSI_TRY(rsi_block_check_vector(c->in[B_WEIGHT], "weight", a->channels));
  RSI_TRY(rsi_block_check_vector(c->in[B_BIAS], "bias", a->channels));
  RSI_TRY(rsi_block_check_like(c->in[B_MORE], "more", x));
  RSI_CHECK(!c->in[B_MORE] || a->residual, RS_ERR_ARG, "the sum of two gradients is kept in the residual's; set residual");
  RSI_CHECK(!a->residual || a->act == NONE || c->in[B_Y], RS_ERR_ARG, "with a residual the activation can only be seen in y; give it");
  rsi_desc_of(x, &c->desc[0]);
  c->desc[1] = (rsi_desc){.dtype = RS_F32, .ndim = 1, .shape = {a->channels}};
  c->desc[2] = c->desc[1];
  if (a->residual) c->desc[3] = c->desc[0];
  else c->desc[3] = (rsi_desc){.dtype = x->dtype, .ndim = 1};
  return RS_OK;
}

/* ---- what both directions share -------------------------------------------------------------------------------------- */

typedef struct norm {
  rsi_block_plan    plan;
  rsi_block_factors f;            /* of group 0; those of others lie plan.width further each */
  const rsi_block_norm_loops *k;
  const char *x, *g, *y, *more;   /* y: the result, or the residual in forward */
  char       *out, *masked;
  const float *origin;
  size_t      item;
  int64_t     channels;
  double      work;               /* ns for an element and each stream */
} norm;

static void norm_make(const rsi_call *c, const rs_tensor *x, int64_t channels, norm *n) {
  memset(n, 0, sizeof *n);
  rsi_block_plan_make(x, &n->plan);
  n->k = x->dtype == RS_F32 ? &c->x->k->block_norm->f32 : &c->x->k->block_norm->bf16;
  n->x = x->data, n->item = rsi_item_size(x), n->channels = channels;
  n->work = x->dtype == RS_F32 ? 0.1 : 0.07;
}

static size_t table_bytes(const rsi_block_plan *p) { return ((size_t)(p->groups * p->width) * sizeof(float) + 63) & ~(size_t)63; }

/* A table for columns from one number for each of the channels, [C]. */
static void spread(const norm *n, const float *from, float *to) {
  const rsi_block_plan *const p = &n->plan;
  for (int64_t g = 0; g < p->groups; g++, to += p->width) {
    const int64_t rest = n->channels - g * p->block, filled = rest < p->block ? rest : p->block;
    for (int64_t j = 0; j < filled; j++) to[j] = rsi_plain_nan(from[g * p->block + j]);
    for (int64_t j = filled; j < p->block; j++) to[j] = 0;
    for (int64_t j = p->block; j < p->width; j++) to[j] = to[j - p->block];
  }
}

/* The factors of a group, from column `column` on. */
static rsi_block_factors factors(const norm *n, int64_t group, int64_t column) {
  const int64_t at = group * n->plan.width + column;
  rsi_block_factors f = n->f;
#define MOVE(name) f.name = f.name ? f.name + at : NULL
  MOVE(mean), MOVE(scale), MOVE(shift), MOVE(a), MOVE(b), MOVE(c);
#undef MOVE
  return f;
}

static inline float value_or(const rs_tensor *t, int64_t i, float otherwise) { return t ? ((const float *)t->data)[i] : otherwise; }

/* From here on a float becomes 6 in bf16, and a y that was rounded would say that the activation cut it off. */
static const float BF16_BELOW_6 = 5.984375f;
static const float LOWEST[] = {-INFINITY, 0, 0}, HIGHEST[] = {INFINITY, INFINITY, 6};

/* ---- forward --------------------------------------------------------------------------------------------------------- */

/* Scratch: numbers of channels [C] (one at a time), tables of mean or origin, scale and shift, then the sums. */
static size_t channel_bytes(int64_t channels) { return ((size_t)channels * sizeof(float) + 63) & ~(size_t)63; }

static size_t batch_norm_block_scratch(const rsi_call *c) {
  const batch_norm_block_attrs *const a = c->attrs;
  rsi_block_plan plan;
  rsi_block_plan_make(c->in[X], &plan);
  return channel_bytes(a->channels) + 3 * table_bytes(&plan) + (a->training ? rsi_block_sums_bytes(&plan, 2) : 0);
}

static void moments_of(const void *arg, int64_t group, int64_t at, int64_t column, const rsi_columns *columns, double *sums,
                       float *memory, bool first) {
  const norm *const n = arg;
  const float *const origin = n->origin + group * n->plan.width + column;
  if (first) memcpy(memory, origin, (size_t)columns->width * sizeof(float));
  n->k->moments(n->x + (size_t)at * n->item, columns, origin, memory, sums);
}

/*
** sums: [G][2][b], of x - origin and its square, with the first pixel as origin: a channel of one value then has variance 0, and
** doubles lose nothing that f32 could have held.
*/
static void statistics(const rsi_call *c, norm *n, float *values, float *table, double *sums) {
  const rsi_block_plan *const p = &n->plan;
  const rs_tensor *const x = c->in[X];
  const int64_t plane = x->shape[2] * x->shape[3] * p->block, item = (int64_t)n->item;
  const rsi_row_fn cast = c->x->k->elementwise->cast->cast[x->dtype][RS_F32];
  for (int64_t g = 0; g * p->block < n->channels; g++) {
    const int64_t rest = n->channels - g * p->block;
    char *const data[2] = {(char *)(values + g * p->block), (char *)(uintptr_t)n->x + (size_t)(g * plane) * n->item};
    cast(rest < p->block ? rest : p->block, data, (const int64_t[]){sizeof(float), item}, NULL);
  }
  spread(n, values, table);
  n->origin = table;
  rsi_block_sums(c->x, p, 2, 2 * n->work, moments_of, n, sums);
}

/* Moves the running statistics towards those of this batch; the variance there is the unbiased one. */
static void update_running(const rsi_call *c, int64_t channel, double count, double mean, double variance) {
  const double momentum = RSI_ATTR(c, batch_norm_block)->momentum;
  if (!c->in[RUNNING_MEAN]) return;
  float *const rm = (float *)c->in[RUNNING_MEAN]->data + channel, *const rv = (float *)c->in[RUNNING_VAR]->data + channel;
  *rm = (float)((1.0 - momentum) * (double)*rm + momentum * mean);
  *rv = (float)((1.0 - momentum) * (double)*rv + momentum * variance * (count / (count - 1.0)));
}

/* mean and rstd, both [C] and f32: what the sweeps of both directions start from. */
static void norms_of(const rsi_call *c, const norm *n, const float *origin, const double *sums) {
  const batch_norm_block_attrs *const a = c->attrs;
  const int64_t block = n->plan.block;
  const double count = (double)values_of(c->in[X]);
  float *const mean = c->out[1]->data, *const rstd = c->out[2]->data;
  for (int64_t i = 0; i < n->channels; i++) {
    double m = 0, var = 0;
    if (!a->training) {
      m = (double)value_or(c->in[RUNNING_MEAN], i, 0), var = (double)value_or(c->in[RUNNING_VAR], i, 0);
    } else if (count > 0) {
      const double *const sum = sums + i / block * 2 * block + i % block;
      const double shift = sum[0] / count;
      m = (double)origin[i] + shift, var = sum[block] / count - shift * shift;
      var = var < 0 ? 0 : var;
      update_running(c, i, count, m, var);
    }
    mean[i] = (float)m, rstd[i] = (float)(1.0 / sqrt(var + a->eps));
  }
}

static void apply_piece(const void *arg, int64_t group, int64_t at, int64_t count) {
  const norm *const n = arg;
  const rsi_block_factors f = factors(n, group, 0);
  const size_t byte = (size_t)at * n->item;
  n->k->apply(n->out + byte, n->x + byte, n->y ? n->y + byte : NULL, count, n->plan.width, &f);
}

/* scale = rstd weight, in the same way wherever it is needed */
static void scales(const rs_tensor *rstd, const rs_tensor *weight, int64_t channels, float *to) {
  for (int64_t i = 0; i < channels; i++) to[i] = value_or(rstd, i, 0) * value_or(weight, i, 1);
}

static rs_status batch_norm_block_run(const rsi_call *c) {
  const batch_norm_block_attrs *const a = c->attrs;
  norm n;
  norm_make(c, c->in[X], a->channels, &n);
  const size_t bytes = table_bytes(&n.plan);
  float *const values = c->scratch;
  char *const tables = (char *)c->scratch + channel_bytes(n.channels);
  float *const mean = (void *)tables, *const scale = (void *)(tables + bytes), *const shift = (void *)(tables + 2 * bytes);
  double *const sums = (void *)(tables + 3 * bytes);
  if (a->training && values_of(c->in[X]) > 0) statistics(c, &n, values, mean, sums);
  norms_of(c, &n, values, sums);
  spread(&n, c->out[1]->data, mean);
  scales(c->out[2], c->in[WEIGHT], n.channels, values);
  spread(&n, values, scale);
  for (int64_t i = 0; i < n.channels; i++) values[i] = value_or(c->in[BIAS], i, 0);
  spread(&n, values, shift);
  n.f = (rsi_block_factors){.mean = mean, .scale = scale, .shift = shift, .low = LOWEST[a->act], .high = HIGHEST[a->act]};
  n.out = c->out[0]->data;
  n.y = c->in[RESIDUAL] ? c->in[RESIDUAL]->data : NULL;
  rsi_block_sweep(c->x, &n.plan, (n.y ? 3 : 2) * n.work, apply_piece, &n);
  return RS_OK;
}

/* ---- backward -------------------------------------------------------------------------------------------------------- */

/*
** With M values in a channel, g (the sum of two, when there is `more`) masked by the activation, and xc = x - mean:
**   gbias = sum(g),  gweight = rstd sum(g xc),
**   gx = rstd weight (g - sum(g) / M - xc rstd^2 sum(g xc) / M),  or rstd weight g when the statistics were given.
** When the masked g is wanted, the first sweep writes it and the second reads that.
*/
static size_t batch_norm_block_backward_scratch(const rsi_call *c) {
  rsi_block_plan plan;
  rsi_block_plan_make(c->in[B_X], &plan);
  return channel_bytes(RSI_ATTR(c, batch_norm_block_backward)->channels) + 6 * table_bytes(&plan) + rsi_block_sums_bytes(&plan, 2);
}

static void grad_sums_of(const void *arg, int64_t group, int64_t at, int64_t column, const rsi_columns *columns, double *sums,
                         float *memory, bool first) {
  const norm *const n = arg;
  (void)memory, (void)first;
  const rsi_block_factors f = factors(n, group, column);
  const size_t byte = (size_t)at * n->item;
  n->k->grad_sums(n->g + byte, n->more ? n->more + byte : NULL, n->x + byte, n->y ? n->y + byte : NULL,
                  n->masked ? n->masked + byte : NULL, columns, &f, sums);
}

static void grad_piece(const void *arg, int64_t group, int64_t at, int64_t count) {
  const norm *const n = arg;
  const rsi_block_factors f = factors(n, group, 0);
  const size_t byte = (size_t)at * n->item;
  n->k->grad(n->out + byte, n->g + byte, n->x + byte, n->y ? n->y + byte : NULL, count, n->plan.width, &f);
}

/* gweight and gbias, and the tables of a, b and c: gx = a g + b xc + c */
static void backward_factors(const rsi_call *c, const norm *n, const double *sums, float *values, float *const table[3]) {
  const batch_norm_block_backward_attrs *const a = c->attrs;
  const int64_t block = n->plan.block;
  const double count = (double)values_of(c->in[B_X]);
  float *const gweight = c->out[1]->data, *const gbias = c->out[2]->data;
  for (int k = 0; k < 3; k++) {
    for (int64_t i = 0; i < n->channels; i++) {
      const double *const sum = sums + i / block * 2 * block + i % block;
      const double r = (double)value_or(c->in[B_RSTD], i, 0), rw = r * (double)value_or(c->in[B_WEIGHT], i, 1);
      if (k == 0) gweight[i] = (float)(r * sum[block]), gbias[i] = (float)sum[0], values[i] = (float)rw;
      else if (!a->training || count == 0) values[i] = 0;
      else values[i] = (float)(k == 1 ? -rw * r * r * sum[block] / count : -rw * sum[0] / count);
    }
    spread(n, values, table[k]);
  }
}

static rs_status batch_norm_block_backward_run(const rsi_call *c) {
  const batch_norm_block_backward_attrs *const a = c->attrs;
  norm n;
  norm_make(c, c->in[B_X], a->channels, &n);
  const size_t bytes = table_bytes(&n.plan);
  float *const values = c->scratch, *table[6];
  char *const tables = (char *)c->scratch + channel_bytes(n.channels);
  for (int i = 0; i < 6; i++) table[i] = (void *)(tables + (size_t)i * bytes);
  double *const sums = (void *)(tables + 6 * bytes);
  n.g = c->in[B_G]->data;
  n.more = c->in[B_MORE] ? c->in[B_MORE]->data : NULL;
  n.out = c->out[0]->data;
  n.masked = a->residual ? c->out[3]->data : NULL;
  n.f = (rsi_block_factors){.mean = table[0], .low = LOWEST[a->act], .high = HIGHEST[a->act]};
  spread(&n, c->in[B_MEAN]->data, table[0]);
  if (a->act != NONE && c->in[B_Y]) {
    n.y = c->in[B_Y]->data;
    n.f.mask = RSI_BY_Y;
  } else if (a->act != NONE) {
    scales(c->in[B_RSTD], c->in[B_WEIGHT], n.channels, values);
    spread(&n, values, table[4]);
    for (int64_t i = 0; i < n.channels; i++) values[i] = value_or(c->in[B_BIAS], i, 0);
    spread(&n, values, table[5]);
    n.f.scale = table[4], n.f.shift = table[5];
    n.f.mask = RSI_BY_X;
    if (a->act == RELU6 && c->in[B_X]->dtype == RS_BF16) n.f.high = BF16_BELOW_6;
  }
  rsi_block_sums(c->x, &n.plan, 2, (double)(2 + (n.y != NULL) + (n.more != NULL) + a->residual) * n.work, grad_sums_of, &n, sums);
  backward_factors(c, &n, sums, values, table + 1);
  n.f.a = table[1], n.f.b = table[2], n.f.c = table[3];
  if (n.masked) {
    n.g = n.masked, n.y = NULL;
    n.f.mask = RSI_BY_NONE;
  }
  rsi_block_sweep(c->x, &n.plan, (n.y ? 4 : 3) * n.work, grad_piece, &n);
  return RS_OK;
}

/* ---- the ops --------------------------------------------------------------------------------------------------------- */

static const batch_norm_block_attrs train3 = {3, 1, 0.3, 1e-3, RELU}, eval3 = {3, 0, 0.1, 1e-5, NONE}, train20 = {20, 1, 0.1, 1e-5, RELU6};
static const batch_norm_block_attrs train33 = {33, 1, 0.1, 1e-5, NONE}, train5 = {5, 1, 0.1, 1e-5, NONE}, train600 = {600, 1, 0.1, 1e-5, RELU};
static const rsi_sample batch_norm_block_samples[] = {
  {"f2x3x5x7x1,f3,f3,f3,f3@0.5:2,f2x3x5x7x1", &train3, 0, 1},
  {"f4x3x5x7,f3,f3,f3,f3@0.5:2", &eval3, 0, 1},
  {"f3x2x9x8x16,f20,f20", &train20, 0, 1},
  {"f2x5x6x6x8,-,-,-,-,f2x5x6x6x8", &train33, 0, 1},
  {"f5x1x3x3x5", &train5, 0, 1},
  {"f2x1x5x5x600,f600", &train600, 0, 1},
  {"f0x3x5x7x1,f3,f3,f3,f3@0.5:2", &train3, 0, 1},
  {NULL, NULL, 0, 0},
};

static const batch_norm_block_backward_attrs back3 = {3, 1, RELU, 1}, back_eval = {3, 0, NONE, 0}, back20 = {20, 1, RELU6, 0},
                                             back33 = {33, 1, NONE, 1}, back5 = {5, 1, NONE, 0}, back600 = {600, 1, RELU, 0};
static const rsi_sample batch_norm_block_backward_samples[] = {
  {"f2x3x5x7x1,f2x3x5x7x1,f2x3x5x7x1,f3,f3@0.5:2,f3", &back3, 0, 1},
  {"f4x3x5x7,f4x3x5x7,-,f3,f3@0.5:2,f3", &back_eval, 0, 1},
  {"f3x2x9x8x16,f3x2x9x8x16,-,f20,f20@0.5:2,f20,f20", &back20, 0, 1},
  {"f2x5x6x6x8,f2x5x6x6x8,-,f33,f33@0.5:2", &back33, 0, 1},
  {"f2x5x6x6x8,f2x5x6x6x8,-,f33,f33@0.5:2,f33,-,f2x5x6x6x8", &back33, 0, 1},
  {"f2x3x5x7x1,f2x3x5x7x1,f2x3x5x7x1,f3,f3@0.5:2,f3,-,f2x3x5x7x1", &back3, 0, 1},
  {"f5x1x3x3x5,f5x1x3x3x5,-,f5,f5@0.5:2", &back5, 0, 1},
  {"f2x1x5x5x600,f2x1x5x5x600,f2x1x5x5x600,f600,f600@0.5:2,f600", &back600, 0, 1},
  {"f0x3x5x7x1,f0x3x5x7x1,f0x3x5x7x1,f3,f3@0.5:2", &back3, 0, 1},
  {NULL, NULL, 0, 0},
};

static const rsi_kernel batch_norm_block_kernels[] = {
  {"batch_norm_block", RSI_PORTABLE, RSI_F32 | RSI_HALF, NULL, batch_norm_block_scratch, batch_norm_block_run},
  {0},
};
static const rsi_kernel batch_norm_block_backward_kernels[] = {
  {"batch_norm_block_backward", RSI_PORTABLE, RSI_F32 | RSI_HALF, NULL, batch_norm_block_backward_scratch, batch_norm_block_backward_run},
  {0},
};

const rs_op rsi_op_batch_norm_block = {
  .name = "batch_norm_block",
  .doc = "act(batch_norm(x) + residual) of an image in block form.",
  .inputs = "x,weight?,bias?,running_mean?,running_var?,residual?", .nin_min = 1, .nin_max = 6, .nout = 3,
  .traits = RSI_T_INTERNAL | RSI_T_HALF, .dtypes = RSI_F32 | RSI_HALF, RSI_USES_ATTRS(batch_norm_block),
  .infer = batch_norm_block_infer, .writes = batch_norm_block_writes,
  .kernels = batch_norm_block_kernels, .samples = batch_norm_block_samples,
};

const rs_op rsi_op_batch_norm_block_backward = {
  .name = "batch_norm_block_backward",
  .doc = "Gradients of batch_norm_block for x, weight, bias and residual. What the activation let pass is seen in y or, where there "
         "was no residual and y is left out, computed from x, weight and bias. more: another gradient, added to g first.",
  .inputs = "g,x,y?,mean,rstd,weight?,bias?,more?", .nin_min = 2, .nin_max = 8, .nout = 4,
  .traits = RSI_T_INTERNAL | RSI_T_HALF, .dtypes = RSI_F32 | RSI_HALF, RSI_USES_ATTRS(batch_norm_block_backward),
  .infer = batch_norm_block_backward_infer,
  .kernels = batch_norm_block_backward_kernels, .samples = batch_norm_block_backward_samples,
};
