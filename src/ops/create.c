/*
** Tensors from nothing: one value, a sequence, the identity matrix. Values are computed in f64 and converted to the dtype of
** the result, so every dtype is possible; one that cannot hold them is an error.
*/
#include "ops/pointwise.h"
#include <math.h>
#include <string.h>

rs_status rsi_take_shape(const rsi_call *c, const rs_list *shape, int64_t dtype, rsi_desc *out) {
  for (int i = 0; i < (int)shape->n; i++)
    RSI_CHECK(shape->v[i] >= 0, RS_ERR_SHAPE, "dimension %d of shape %s is negative", i + rsi_base(c),
              rsi_shape_text((int)shape->n, shape->v));
  out->dtype = (int)dtype;
  out->ndim = (int)shape->n;
  memcpy(out->shape, shape->v, sizeof(int64_t) * (size_t)shape->n);
  return RS_OK;
}

static rs_status fill(const rsi_call *c, double value) {
  const int dtype = c->out[0]->dtype;
  const rsi_element e = rsi_element_of(c->x, value, dtype);
  rs_tensor *const none = NULL;
  const void *const missing[1] = {&e};
  rsi_call one = {.op = c->op, .x = c->x, .nin = 1, .nout = 1, .in = &none, .out = c->out};
  return rsi_run_rows_with(&one, c->x->k->elementwise->cast->copy[rsi_size_index(dtype)], NULL, 0.1, missing);
}

#define CREATION(NAME, DOC, SAMPLES)                                                                                        \
  static const rsi_kernel NAME##_kernels[] = {{"rows", RSI_PORTABLE, RSI_ANY, NULL, NULL, NAME##_run}, {0}};                \
  const rs_op rsi_op_##NAME = {                                                                                             \
    .name = #NAME, .doc = DOC, .inputs = "", .nin_min = 0, .nin_max = 0, .nout = 1,                                         \
    .traits = RSI_T_NONDIFF | RSI_T_HALF | RSI_T_NOT_METHOD, .dtypes = RSI_ANY, RSI_USES_ATTRS(NAME),                       \
    .infer = NAME##_infer, .kernels = NAME##_kernels, .samples = SAMPLES,                                                   \
  }

/* ---- full ------------------------------------------------------------------------------------------------------------ */

#define FULL_ATTRS(F, T)                                                                       \
  F(T, SHAPE, shape, 0, 0, RSI_BIG, NULL, "the shape; none gives a 0-d tensor")                 \
  F(T, FLOAT, value, 0, -INFINITY, INFINITY, NULL, "the value of every element")               \
  F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "the dtype")
RSI_ATTRS(full, FULL_ATTRS)

static rs_status full_infer(rsi_call *c) {
  const full_attrs *const a = RSI_ATTR(c, full);
  if (a->dtype != RS_BOOL) RSI_TRY(rsi_check_element(a->value, (int)a->dtype, "the value"));
  return rsi_take_shape(c, &a->shape, a->dtype, &c->desc[0]);
}

static rs_status full_run(const rsi_call *c) { return fill(c, RSI_ATTR(c, full)->value); }

rs_tensor *rsi_b_full(rsi_grad *g, const rsi_desc *desc, double value) {
  full_attrs a = {.shape = {.n = desc->ndim}, .value = value, .dtype = desc->dtype};
  rs_tensor *out;
  memcpy(a.shape.v, desc->shape, sizeof(int64_t) * (size_t)desc->ndim);
  return rsi_emit(g, RS_OP_full, &a, 0, NULL, 1, &out);
}

static const full_attrs full_matrix = {{2, {2, 3}}, 1.5, RS_F32}, full_scalar = {{0, {0}}, -2.0, RS_F64},
                        full_empty = {{2, {0, 3}}, 1.0, RS_F32}, full_i64 = {{1, {7}}, 7.0, RS_I64},
                        full_bool = {{1, {33}}, 1.0, RS_BOOL}, full_half = {{2, {7, 33}}, 0.1, RS_F16},
                        full_bf16 = {{1, {5}}, -3.0, RS_BF16}, full_u8 = {{1, {5}}, 200.0, RS_U8};
static const rsi_sample full_samples[] = {{"", &full_matrix, 0, 1}, {"", &full_scalar, 0, 1}, {"", &full_empty, 0, 1},
                                          {"", &full_i64, 0, 1}, {"", &full_bool, 0, 1}, {"", &full_half, 0, 1},
                                          {"", &full_bf16, 0, 1}, {"", &full_u8, 0, 1}, {0}};
CREATION(full, "A tensor whose elements all have one value.", full_samples);

/* ---- arange ---------------------------------------------------------------------------------------------------------- */

#define ARANGE_ATTRS(F, T)                                                                                          \
  F(T, FLOAT, start, 1, -INFINITY, INFINITY, NULL, "the first value")                                               \
  F(T, FLOAT, stop, 1, -INFINITY, INFINITY, NULL, "the last value, itself included when a step falls on it")        \
  F(T, FLOAT, step, 1, -INFINITY, INFINITY, NULL, "the distance between values; may be negative")                   \
  F(T, DTYPE, dtype, -1, -1, RS_DTYPES - 1, NULL, "the dtype; not given: i64 when start and step are whole, else f32")
RSI_ATTRS(arange, ARANGE_ATTRS)

/* A step counts as having reached `stop` when it misses it by less than this part of a step (0 to 0.3 by 0.1 has 4 values). */
#define REACHED 1e-9

static rs_status arange_infer(rsi_call *c) {
  const arange_attrs *const a = RSI_ATTR(c, arange);
  rsi_desc *const out = &c->desc[0];
  RSI_CHECK(isfinite(a->start) && isfinite(a->stop) && isfinite(a->step), RS_ERR_ARG,
            "start %g, stop %g and step %g must be finite", a->start, a->stop, a->step);
  RSI_CHECK(a->step != 0.0, RS_ERR_ARG, "step must not be 0");
  const double steps = floor((a->stop - a->start) / a->step + REACHED);
  RSI_CHECK(steps < RSI_BIG, RS_ERR_ARG, "from %g to %g by %g are too many values", a->start, a->stop, a->step);
  out->dtype = a->dtype >= 0 ? (int)a->dtype : rsi_holds(RS_I64, a->start) && rsi_holds(RS_I64, a->step) ? RS_I64 : RS_F32;
  out->ndim = 1;
  out->shape[0] = steps < 0 ? 0 : (int64_t)steps + 1;
  if (out->shape[0] == 0 || rsi_is_float(out->dtype)) return RS_OK;
  RSI_TRY(rsi_check_element(a->start, out->dtype, "the first value"));
  RSI_TRY(rsi_check_element(a->step, RS_I64, "the step"));
  return rsi_check_element(a->start + steps * a->step, out->dtype, "the last value");
}

typedef struct arange_job { const arange_attrs *a; char *out; int64_t size; rsi_row_fn cast; } arange_job;

static void arange_range(void *arg, int64_t first, int64_t last) {
  const arange_job *const job = arg;
  double values[256];
  for (int64_t at = first; at < last; at += 256) {
    const int64_t count = last - at < 256 ? last - at : 256;
    for (int64_t i = 0; i < count; i++) values[i] = job->a->start + (double)(at + i) * job->a->step;
    char *const data[2] = {job->out + at * job->size, (char *)values};
    job->cast(count, data, (const int64_t[]){job->size, 8}, NULL);
  }
}

static rs_status arange_run(const rsi_call *c) {
  rs_tensor *const out = c->out[0];
  arange_job job = {RSI_ATTR(c, arange), out->data, (int64_t)rsi_item_size(out),
                    c->x->k->elementwise->cast->cast[RS_F64][out->dtype]};
  rsi_parallel(c->x, out->numel, 0.5, arange_range, &job);
  return RS_OK;
}

static const arange_attrs arange_ten = {1, 10, 1, -1}, arange_down = {5, -5, -2.5, RS_F32}, arange_part = {0, 0.3, 0.1, RS_F64},
                          arange_none = {2, 1, 1, -1}, arange_half = {0, 300, 1, RS_BF16}, arange_u8 = {0, 255, 5, RS_U8};
static const rsi_sample arange_samples[] = {{"", &arange_ten, 0, 1}, {"", &arange_down, 0, 1}, {"", &arange_part, 0, 1},
                                            {"", &arange_none, 0, 1}, {"", &arange_half, 0, 1}, {"", &arange_u8, 0, 1},
                                            {"", NULL, 0, 1}, {0}};
CREATION(arange, "The values start, start + step, … up to stop, which is included as in a Lua for loop.", arange_samples);

/* ---- eye ------------------------------------------------------------------------------------------------------------- */

#define EYE_ATTRS(F, T)                                                                \
  F(T, INT, rows, 1, 0, RSI_BIG, NULL, "rows")                                          \
  F(T, INT, columns, -1, -1, RSI_BIG, NULL, "columns; not given: as many as rows")      \
  F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "the dtype")
RSI_ATTRS(eye, EYE_ATTRS)

static rs_status eye_infer(rsi_call *c) {
  const eye_attrs *const a = RSI_ATTR(c, eye);
  c->desc[0].dtype = (int)a->dtype;
  c->desc[0].ndim = 2;
  c->desc[0].shape[0] = a->rows;
  c->desc[0].shape[1] = a->columns < 0 ? a->rows : a->columns;
  return RS_OK;
}

static rs_status eye_run(const rsi_call *c) {
  const rs_tensor *const out = c->out[0];
  const int64_t rows = out->shape[0], columns = out->shape[1], n = rows < columns ? rows : columns;
  const size_t size = rsi_item_size(out);
  const rsi_element one = rsi_element_of(c->x, 1.0, out->dtype);
  RSI_TRY(fill(c, 0.0));
  for (int64_t i = 0; i < n; i++) memcpy((char *)out->data + (size_t)(i * columns + i) * size, one.bytes, size);
  return RS_OK;
}

static const eye_attrs eye_square = {5, -1, RS_F32}, eye_wide = {3, 7, RS_I64}, eye_tall = {7, 2, RS_F16},
                       eye_none = {0, 3, RS_F64};
static const rsi_sample eye_samples[] = {{"", &eye_square, 0, 1}, {"", &eye_wide, 0, 1}, {"", &eye_tall, 0, 1},
                                         {"", &eye_none, 0, 1}, {0}};
CREATION(eye, "A matrix with ones on its diagonal and zeros elsewhere.", eye_samples);
