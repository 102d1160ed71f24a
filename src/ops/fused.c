/*
** fused and fused_many: steps of element-wise ops on tiles that stay in the nearest cache, for programs. Each step calls the row
** function of the op that it stands for, so the bits are those of the ops one by one; what is saved is the way of each
** intermediate value to memory and back. `fused` has one result, which its last step makes, so it may take the place of an input.
**
** A tile is at most TILE elements of one row of the loop nest over all operands. Operands of a step are base + at * advance, where
** advance is 0 for slots and numbers. All results have the shape that the inputs broadcast to.
*/
#include "ops/fused.h"
#include "ops/pointwise.h"
#include <math.h>
#include <string.h>

enum { TILE = 1024, TILE_BYTES = 4096, PLACES = 32 };

#define FUSED_ATTRS(F, T)                                                                                                   \
  F(T, INTS, steps, 0, 0, RSI_BIG, NULL, "the first steps, see ops/fused.h")                                                \
  F(T, INTS, more, 0, 0, RSI_BIG, NULL, "steps after the eighth")                                                           \
  F(T, FLOAT, c0, 0, -INFINITY, INFINITY, NULL, "numbers that the steps use")                                               \
  F(T, FLOAT, c1, 0, -INFINITY, INFINITY, NULL, "")                                                                         \
  F(T, FLOAT, c2, 0, -INFINITY, INFINITY, NULL, "")                                                                         \
  F(T, FLOAT, c3, 0, -INFINITY, INFINITY, NULL, "")                                                                         \
  F(T, FLOAT, c4, 0, -INFINITY, INFINITY, NULL, "")                                                                         \
  F(T, FLOAT, c5, 0, -INFINITY, INFINITY, NULL, "")                                                                         \
  F(T, FLOAT, c6, 0, -INFINITY, INFINITY, NULL, "")                                                                         \
  F(T, FLOAT, c7, 0, -INFINITY, INFINITY, NULL, "")
RSI_ATTRS(fused, FUSED_ATTRS)

/* ---- the steps, decoded ------------------------------------------------------------------------------------------------ */

/* size: bytes from one element to the next of what is in a slot, 0 of a number; place: where operand k is, the result first. */
typedef struct step {
  rsi_row_fn  row;
  const void *arg;
  uint8_t     n, place[4], size[4];
} step;

typedef struct job {
  step        steps[RSI_F_STEPS];
  int         nsteps, nin, nout;
  uint8_t     dtype[PLACES];            /* of what lies in each place now; RS_DTYPES: nothing */
  rsi_element numbers[RSI_F_NUMBERS];
  int64_t     tile;
  double      work;
  rsi_nest    nest;
} job;

static const float unary_work[RSI_UNARIES] = {
  [RSI_U_EXP] = 0.3f, [RSI_U_EXPM1] = 0.3f, [RSI_U_LOG] = 0.4f, [RSI_U_LOG1P] = 0.4f, [RSI_U_SIN] = 0.5f, [RSI_U_COS] = 0.5f,
  [RSI_U_ERF] = 0.7f, [RSI_U_TANH] = 0.5f, [RSI_U_SIGMOID] = 0.4f, [RSI_U_GELU] = 0.7f, [RSI_U_GELU_TANH] = 0.7f};

static double work_of(const rsi_fused_step *s) {
  if (s->family == RSI_F_UNARY && unary_work[s->index] > 0) return (double)unary_work[s->index];
  if (s->family == RSI_F_BINARY)
    return s->index == RSI_B_POW ? 4.0 : s->index == RSI_B_GELU_BACKWARD || s->index == RSI_B_GELU_TANH_BACKWARD ? 0.8 : 0.06;
  return s->family == RSI_F_FORWARD || s->family == RSI_F_BACKWARD ? 0.3 : 0.06;
}

/* Are a step's numbers within the tables? */
static bool in_range(const rsi_fused_step *s) {
  static const int sizes[] = {RSI_UNARIES, RSI_BINARIES, RSI_ACTIVATIONS, RSI_ACTIVATIONS, 1, RS_DTYPES};
  return s->family <= RSI_F_CAST && s->index < sizes[s->family] && s->to >= RSI_F_RESULT && s->to < RSI_F_NUMBER &&
         (s->arg == RSI_F_NONE || s->arg < RSI_F_NUMBERS);
}

static rsi_row_fn row_of(const rsi_kernels *k, const rsi_fused_step *s, int dtype) {
  switch ((rsi_fused_family)s->family) {
  case RSI_F_UNARY: return k->elementwise->unary[s->index][dtype];
  case RSI_F_BINARY: return k->elementwise->binary[s->index][dtype];
  case RSI_F_FORWARD: return dtype <= RS_F64 ? k->activation->forward[s->index][dtype] : NULL;
  case RSI_F_BACKWARD: return dtype <= RS_F64 ? k->activation->backward[s->index][dtype] : NULL;
  case RSI_F_WHERE: return k->elementwise->where[rsi_size_index(dtype)];
  default: return k->elementwise->cast->cast[dtype][s->index];
  }
}

/* The dtype that a step makes of operands of `dtype`. */
static int made(const rsi_fused_step *s, int dtype) {
  if (s->family == RSI_F_UNARY) return s->index >= RSI_U_NOT ? RS_BOOL : dtype;
  if (s->family == RSI_F_BINARY) return s->index >= RSI_B_EQ && s->index <= RSI_B_OR ? RS_BOOL : dtype;
  return s->family == RSI_F_CAST ? s->index : dtype;
}

/* The dtype of a step's operands (of where: of the last two); -1 when they do not go together. A number takes that of the other. */
static int operand_dtype(const job *j, const rsi_fused_step *s) {
  const int n = rsi_fused_operands(s->family);
  int dtype = -1;
  for (int i = s->family == RSI_F_WHERE; i < n; i++) {
    if (s->from[i] >= RSI_F_NUMBER) continue;
    if (dtype >= 0 && dtype != j->dtype[s->from[i]]) return -1;
    dtype = j->dtype[s->from[i]];
  }
  return dtype;
}

static rs_status decode_step(const rsi_call *c, job *j, int i, int64_t code) {
  const fused_attrs *const a = RSI_ATTR(c, fused);
  const rsi_fused_step s = rsi_fused_unpack(code);
  step *const to = &j->steps[i];
  RSI_CHECK(in_range(&s), RS_ERR_ARG, "step %d is none", i);
  to->n = (uint8_t)(1 + rsi_fused_operands(s.family));
  to->arg = s.arg == RSI_F_NONE ? NULL : &a->c0 + s.arg;
  for (int k = 0; k + 1 < to->n; k++) {
    const int from = s.from[k];
    RSI_CHECK(from < RSI_F_NUMBER ? j->dtype[from] < RS_DTYPES : from < RSI_F_NUMBER + RSI_F_NUMBERS, RS_ERR_ARG,
              "step %d reads what is not there", i);
    to->place[k + 1] = (uint8_t)from;
    to->size[k + 1] = from < RSI_F_NUMBER ? rsi_dtype_size[j->dtype[from]] : 0;
  }
  const int dtype = operand_dtype(j, &s);
  RSI_CHECK(dtype >= 0 && (s.family != RSI_F_WHERE || (s.from[0] < RSI_F_NUMBER && j->dtype[s.from[0]] == RS_BOOL)), RS_ERR_DTYPE,
            "step %d has operands of several dtypes", i);
  to->row = row_of(c->x->k, &s, dtype);
  RSI_CHECK(to->row, RS_ERR_DTYPE, "step %d has no loop for %s", i, rs_dtype_name(dtype));
  for (int k = 0; k + 1 < to->n; k++)
    if (s.from[k] >= RSI_F_NUMBER) j->numbers[s.from[k] - RSI_F_NUMBER] = rsi_element_of(c->x, (&a->c0)[s.from[k] - RSI_F_NUMBER], dtype);
  j->dtype[s.to] = (uint8_t)made(&s, dtype);
  to->place[0] = (uint8_t)s.to;
  to->size[0] = rsi_dtype_size[j->dtype[s.to]];
  if (to->size[0] > TILE_BYTES / TILE) j->tile = TILE_BYTES / 8;
  j->work += dtype == RS_F64 ? 2.0 * work_of(&s) : work_of(&s);
  return RS_OK;
}

static rs_status decode(const rsi_call *c, job *j) {
  const fused_attrs *const a = RSI_ATTR(c, fused);
  RSI_CHECK(c->nin > 0 && c->nin <= RSI_F_INPUTS, RS_ERR_ARG, "%d inputs were given, at most %d are possible", c->nin, RSI_F_INPUTS);
  RSI_CHECK(a->steps.n > 0 && a->steps.n <= 8 && a->more.n >= 0 && a->more.n <= 8 && (a->more.n == 0 || a->steps.n == 8), RS_ERR_ARG,
            "there are no steps, or the first eight are not full");
  j->nsteps = (int)(a->steps.n + a->more.n);
  j->nin = c->nin;
  j->tile = TILE;
  j->work = 0.1 * (double)(c->nin + 1);
  memset(j->dtype, RS_DTYPES, sizeof j->dtype);
  for (int i = 0; i < c->nin; i++) {
    RSI_CHECK(c->in[i], RS_ERR_ARG, "input %d is missing", i);
    j->dtype[RSI_F_INPUT + i] = c->in[i]->dtype;
  }
  for (int i = 0; i < j->nsteps; i++) RSI_TRY(decode_step(c, j, i, i < 8 ? a->steps.v[i] : a->more.v[i - 8]));
  j->nout = 0;
  while (j->nout < RS_MAX_OUTPUTS && j->dtype[RSI_F_RESULT + j->nout] < RS_DTYPES) j->nout++;
  return RS_OK;
}

/* ---- running ------------------------------------------------------------------------------------------------------------ */

/* One row: operands of the nest are the results, then the inputs. */
static void run_row(int64_t n, char *const *data, const int64_t *strides, const void *arg) {
  const job *const j = arg;
  _Alignas(64) char slots[RSI_F_SLOTS][TILE_BYTES];
  char *base[PLACES], *at[4];
  int64_t stride[RSI_F_SLOT], steps[4];
  for (int k = 0; k < j->nout; k++) base[RSI_F_RESULT + k] = data[k], stride[RSI_F_RESULT + k] = strides[k];
  for (int k = 0; k < j->nin; k++) base[RSI_F_INPUT + k] = data[j->nout + k], stride[RSI_F_INPUT + k] = strides[j->nout + k];
  for (int k = 0; k < RSI_F_SLOTS; k++) base[RSI_F_SLOT + k] = slots[k];
  for (int k = 0; k < RSI_F_NUMBERS; k++) base[RSI_F_NUMBER + k] = (char *)(uintptr_t)j->numbers[k].bytes;
  for (int64_t from = 0; from < n; from += j->tile) {
    const int64_t count = n - from < j->tile ? n - from : j->tile;
    for (const step *s = j->steps; s < j->steps + j->nsteps; s++) {
      for (int k = 0; k < s->n; k++) {
        const int place = s->place[k];
        const bool moves = place < RSI_F_SLOT;
        steps[k] = moves ? stride[place] : s->size[k];
        at[k] = moves ? base[place] + from * stride[place] : base[place];
      }
      s->row(count, at, steps, s->arg);
    }
  }
}

static void run_range(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  rsi_nest_run(&j->nest, first, last, run_row, j);
}

static rs_status fused_run(const rsi_call *c) {
  job j;
  rs_tensor *operands[RSI_MAX_OPERANDS];
  RSI_TRY(decode(c, &j));
  if (c->out[0]->numel == 0) return RS_OK;
  for (int k = 0; k < j.nout; k++) operands[k] = c->out[k];
  for (int k = 0; k < j.nin; k++) operands[j.nout + k] = c->in[k];
  rsi_nest_make(&j.nest, operands, j.nout + j.nin);
  rsi_parallel(c->x, j.nest.numel, j.work, run_range, &j);
  return RS_OK;
}

/* ---- the ops ------------------------------------------------------------------------------------------------------------ */

static rs_status fused_infer(rsi_call *c) {
  job j;
  RSI_TRY(decode(c, &j));
  RSI_CHECK(j.nout > 0 && j.nout <= c->op->nout, RS_ERR_ARG, "the steps make %d results", j.nout);
  RSI_CHECK(c->op->nout > 1 || j.steps[j.nsteps - 1].place[0] == RSI_F_RESULT, RS_ERR_ARG, "the last step must make the result");
  rsi_desc_of(c->in[0], &c->desc[0]);
  for (int i = 1; i < c->nin; i++) {
    const rsi_desc d = c->desc[0];
    RSI_TRY(rsi_broadcast(d.ndim, d.shape, c->in[i]->ndim, c->in[i]->shape, &c->desc[0].ndim, c->desc[0].shape));
  }
  for (int k = c->op->nout - 1; k >= 0; k--) {
    if (k < j.nout) c->desc[k] = c->desc[0], c->desc[k].dtype = j.dtype[RSI_F_RESULT + k];
    else c->desc[k] = (rsi_desc){.dtype = RS_F32, .ndim = 1, .shape = {0}};
  }
  return RS_OK;
}

/* Steps of the samples: P(family, index, to, a, b, c, arg) */
#define P(FAMILY, INDEX, TO, A, B, C, ARG)                                                                                  \
  ((int64_t)(FAMILY) | (int64_t)(INDEX) << 4 | (int64_t)(TO) << 12 | (int64_t)(A) << 17 | (int64_t)(B) << 22 |   \
   (int64_t)(C) << 27 | (int64_t)(ARG) << 32)
#define IN(i)   (RSI_F_INPUT + (i))
#define OUT(i)  (RSI_F_RESULT + (i))
#define SLOT(i) (RSI_F_SLOT + (i))
#define NUM(i)  (RSI_F_NUMBER + (i))
#define NO      RSI_F_NONE

/* exp(a) * b - 0.5, clamped */
static const fused_attrs clamped = {
  .steps = {4, {P(RSI_F_UNARY, RSI_U_EXP, SLOT(0), IN(0), NO, NO, NO), P(RSI_F_BINARY, RSI_B_MUL, SLOT(1), SLOT(0), IN(1), NO, NO),
                P(RSI_F_BINARY, RSI_B_SUB, SLOT(0), SLOT(1), NUM(0), NO, NO), P(RSI_F_UNARY, RSI_U_CLAMP, OUT(0), SLOT(0), NO, NO, 1)}},
  .c0 = 0.5, .c1 = -0.4, .c2 = 0.9};
/* a where a > 0.1, else silu(b); nine steps, as f32 and back */
static const fused_attrs chosen = {
  .steps = {8, {P(RSI_F_BINARY, RSI_B_GT, SLOT(0), IN(0), NUM(0), NO, NO), P(RSI_F_FORWARD, RSI_A_SILU, SLOT(1), IN(1), NO, NO, NO),
                P(RSI_F_WHERE, 0, SLOT(2), SLOT(0), IN(0), SLOT(1), NO), P(RSI_F_CAST, RS_F64, SLOT(3), SLOT(2), NO, NO, NO),
                P(RSI_F_UNARY, RSI_U_NEG, SLOT(3), SLOT(3), NO, NO, NO), P(RSI_F_CAST, RS_F32, SLOT(1), SLOT(3), NO, NO, NO),
                P(RSI_F_UNARY, RSI_U_SQUARE, SLOT(2), SLOT(1), NO, NO, NO),
                P(RSI_F_BACKWARD, RSI_A_ELU, SLOT(2), SLOT(2), SLOT(1), NO, 1)}},
  .more = {1, {P(RSI_F_BINARY, RSI_B_ADD_SCALED, OUT(0), SLOT(1), SLOT(2), NO, 4)}},
  .c0 = 0.1, .c1 = 1.5, .c2 = 1.0, .c3 = 0.7, .c4 = -2.0};
/* s = a + b, t = relu(s), and t * s */
static const fused_attrs three = {
  .steps = {3, {P(RSI_F_BINARY, RSI_B_ADD, OUT(0), IN(0), IN(1), NO, NO), P(RSI_F_UNARY, RSI_U_RELU, OUT(1), OUT(0), NO, NO, NO),
                P(RSI_F_BINARY, RSI_B_MUL, OUT(2), OUT(1), OUT(0), NO, NO)}}};

static const rsi_kernel fused_kernels[] = {{"tiles", RSI_PORTABLE, RSI_ANY, NULL, NULL, fused_run}, {0}};
#define SAMPLES(ATTRS)                                                                                                      \
  {"f2x3,f2x3", ATTRS, 0, 1}, {"f7x33,f33", ATTRS, 0, 1}, {"f7x33,f7x1", ATTRS, 0, 1}, {"f3x1500,f3x1500", ATTRS, 0, 1},      \
  {"f1500,f", ATTRS, 0, 1}, {"f0x3,f0x3", ATTRS, 0, 1}, {"f,f", ATTRS, 0, 1}
static const rsi_sample fused_samples[] = {SAMPLES(&clamped), SAMPLES(&chosen), {0}};
static const rsi_sample fused_many_samples[] = {SAMPLES(&three), {0}};

#define FUSED(NAME, OUTPUTS, SAMPLE_LIST)                                                                                   \
  const rs_op rsi_op_##NAME = {                                                                                             \
    .name = #NAME, .doc = "Element-wise steps on tiles that stay in the cache; see ops/fused.h.", .inputs = "tensors...",    \
    .nin_min = 1, .nin_max = RSI_VARIADIC, .nout = OUTPUTS, .traits = RSI_T_INTERNAL | RSI_T_STRIDED, .dtypes = RSI_ANY,     \
    RSI_USES_ATTRS(fused), .infer = fused_infer, .kernels = fused_kernels, .samples = SAMPLE_LIST,                           \
  }
FUSED(fused, 1, fused_samples);
FUSED(fused_many, RS_MAX_OUTPUTS, fused_many_samples);
