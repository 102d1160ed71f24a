/*
** Random fills. Element i of the result, in row-major order, is made from word i % 4 of block i / 4 of the generator, so
** results depend neither on threads nor on how the work is cut. Kernels that need more than 32 bits for an element (f64,
** integers) take a second run of as many blocks for the low bits; f32 and f64 agree in their first 24 bits.
*/
#include "ops/pointwise.h"
#include <math.h>

enum { GROUP = 1024 };   /* elements made at a time: a multiple of 4 */

/* ---- making groups in parallel ---------------------------------------------------------------------------------------- */

typedef struct random_job random_job;
/* Makes n values (of dtype `made`) from their words; low is NULL unless a second run was asked for. */
typedef void (*random_make)(const random_job *job, int64_t n, const uint32_t *words, const uint32_t *low, void *out);

struct random_job {
  const rsi_exec *x;
  random_make     make;
  rsi_row_fn      cast;                  /* from `made` to the dtype of the result */
  char           *out;
  int64_t         numel, size;           /* size: bytes of an element of the result */
  uint64_t        key, first, low;       /* numbers of the first blocks */
  bool            wide;
  int             made;
  double          a, b, most;            /* parameters of the distribution; the largest result */
  int64_t         from;
  uint64_t        range;
};

static void make_groups(void *arg, int64_t first, int64_t last) {
  const random_job *const job = arg;
  const rsi_k_random *const k = job->x->k->elementwise->random;
  _Alignas(64) uint32_t words[GROUP], low[GROUP];
  _Alignas(64) uint64_t values[GROUP];
  for (int64_t group = first; group < last; group++) {
    const int64_t at = group * GROUP, n = job->numel - at < GROUP ? job->numel - at : GROUP, blocks = (n + 3) / 4;
    k->words(job->key, job->first + (uint64_t)(at / 4), blocks, words);
    if (job->wide) k->words(job->key, job->low + (uint64_t)(at / 4), blocks, low);
    job->make(job, n, words, job->wide ? low : NULL, values);
    char *const data[2] = {job->out + at * job->size, (char *)values};
    job->cast(n, data, (const int64_t[]){job->size, rsi_dtype_size[job->made]}, NULL);
  }
}

static uint64_t blocks_of(int64_t numel) { return ((uint64_t)numel + 3) / 4; }

static rs_status run_random(const rsi_call *c, random_job *job, double work) {
  rs_tensor *const out = c->out[0];
  rsi_rng *const rng = c->x->rng;
  job->x = c->x;
  job->cast = c->x->k->elementwise->cast->cast[job->made][out->dtype];
  job->out = out->data;
  job->numel = out->numel;
  job->size = (int64_t)rsi_item_size(out);
  job->key = rng->key;
  job->first = rsi_rng_take(rng, blocks_of(out->numel));
  if (job->wide) job->low = rsi_rng_take(rng, blocks_of(out->numel));
  rsi_parallel(c->x, (out->numel + GROUP - 1) / GROUP, work * GROUP, make_groups, job);
  return RS_OK;
}

static rs_status want_float(int64_t dtype) {
  RSI_CHECK(rsi_is_float((int)dtype), RS_ERR_DTYPE, "dtype must be a float type, got %s", rs_dtype_name((int)dtype));
  return RS_OK;
}

/* 53 bits as a fraction of [0, 1) */
static double fraction_f64(uint32_t word, uint32_t low) { return (double)((uint64_t)word << 21 | low >> 11) * 0x1p-53; }

#define RANDOM(NAME, DOC, SAMPLES)                                                                                          \
  static const rsi_kernel NAME##_kernels[] = {{"philox", RSI_PORTABLE, RSI_ANY, NULL, NULL, NAME##_run}, {0}};              \
  const rs_op rsi_op_##NAME = {                                                                                             \
    .name = #NAME, .doc = DOC, .inputs = "", .nin_min = 0, .nin_max = 0, .nout = 1,                                         \
    .traits = RSI_T_NONDIFF | RSI_T_HALF | RSI_T_NOT_METHOD | RSI_T_RANDOM | NAME##_TRAITS, .dtypes = RSI_ANY,              \
    RSI_USES_ATTRS(NAME), .infer = NAME##_infer, .kernels = NAME##_kernels, .samples = SAMPLES,                    \
  }
enum { uniform_TRAITS = 0, normal_TRAITS = 0, bernoulli_TRAITS = 0, randint_TRAITS = 0, randperm_TRAITS = RSI_T_INDEXED };

/* ---- uniform --------------------------------------------------------------------------------------------------------- */

#define UNIFORM_ATTRS(F, T)                                                                     \
  F(T, SHAPE, shape, 0, 0, RSI_BIG, NULL, "the shape; none gives a 0-d tensor")                  \
  F(T, FLOAT, low, 0, -1e300, 1e300, NULL, "the lower bound, included")                          \
  F(T, FLOAT, high, 1, -1e300, 1e300, NULL, "the upper bound, not included")                     \
  F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "a float dtype")
RSI_ATTRS(uniform, UNIFORM_ATTRS)

static rs_status uniform_infer(rsi_call *c) {
  const uniform_attrs *const a = RSI_ATTR(c, uniform);
  RSI_TRY(want_float(a->dtype));
  RSI_CHECK(a->low <= a->high, RS_ERR_ARG, "low is %g, above high, %g", a->low, a->high);
  return rsi_take_shape(c, &a->shape, a->dtype, &c->desc[0]);
}

static void uniform_f32(const random_job *job, int64_t n, const uint32_t *words, const uint32_t *low, void *out) {
  float *const v = out;
  const float a = (float)job->a, width = (float)job->b - a, most = (float)job->most;
  (void)low;
  job->x->k->elementwise->random->fraction_f32(n, words, v);
  for (int64_t i = 0; i < n; i++) {
    const float y = a + width * v[i];
    v[i] = y > most ? most : y;
  }
}

static void uniform_f64(const random_job *job, int64_t n, const uint32_t *words, const uint32_t *low, void *out) {
  double *const v = out;
  const double width = job->b - job->a, most = job->most;
  for (int64_t i = 0; i < n; i++) {
    const double y = job->a + width * fraction_f64(words[i], low[i]);
    v[i] = y > most ? most : y;
  }
}

/*
** Rounding could reach the upper bound: such values become the largest one of the dtype below it (a half has few of them, so
** it is found by stepping down from the bound).
*/
static double largest_below(const rsi_exec *x, double low, double high, int dtype) {
  if (!(low < high)) return low;
  if (dtype == RS_F64) return nextafter(high, low);
  if (dtype == RS_F32) {
    const float h = (float)high, below = nextafterf(h, (float)low);
    return (double)h < high ? (double)h : (double)below;
  }
  rsi_element e = rsi_element_of(x, high, dtype);
  float value;
  char *const data[2] = {(char *)&value, e.bytes};
  for (;;) {
    x->k->elementwise->cast->cast[dtype][RS_F32](1, data, (const int64_t[]){4, 2}, NULL);
    if ((double)value < high) return (double)value > low ? (double)value : low;
    e.half = (e.half & 0x7FFF) == 0 ? 0x8001 : (uint16_t)((e.half & 0x8000) == 0 ? e.half - 1 : e.half + 1);
  }
}

static rs_status uniform_run(const rsi_call *c) {
  const uniform_attrs *const a = RSI_ATTR(c, uniform);
  const bool wide = a->dtype == RS_F64;
  random_job job = {.make = wide ? uniform_f64 : uniform_f32, .made = wide ? RS_F64 : RS_F32, .wide = wide, .a = a->low,
                    .b = a->high, .most = largest_below(c->x, a->low, a->high, (int)a->dtype)};
  return run_random(c, &job, wide ? 3.0 : 0.6);
}

static const uniform_attrs uniform_matrix = {{2, {7, 33}}, 0, 1, RS_F32}, uniform_range = {{1, {33}}, -2, 3, RS_F64},
                           uniform_scalar = {{0, {0}}, 0, 1, RS_F32}, uniform_empty = {{2, {0, 3}}, 0, 1, RS_F32},
                           uniform_half = {{1, {33}}, 0, 1, RS_BF16};
static const rsi_sample uniform_samples[] = {{"", &uniform_matrix, 0, 1}, {"", &uniform_range, 0, 1}, {"", &uniform_scalar, 0, 1},
                                             {"", &uniform_empty, 0, 1}, {"", &uniform_half, 0, 1}, {0}};
RANDOM(uniform, "Independent values from [low, high), 24 bits of chance in f32 and 53 in f64.", uniform_samples);

/* ---- normal ---------------------------------------------------------------------------------------------------------- */

#define NORMAL_ATTRS(F, T)                                                                      \
  F(T, SHAPE, shape, 0, 0, RSI_BIG, NULL, "the shape; none gives a 0-d tensor")                  \
  F(T, FLOAT, mean, 0, -1e300, 1e300, NULL, "the mean")                                          \
  F(T, FLOAT, std, 1, 0, 1e300, NULL, "the standard deviation")                                  \
  F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "a float dtype")
RSI_ATTRS(normal, NORMAL_ATTRS)

static rs_status normal_infer(rsi_call *c) {
  const normal_attrs *const a = RSI_ATTR(c, normal);
  RSI_TRY(want_float(a->dtype));
  return rsi_take_shape(c, &a->shape, a->dtype, &c->desc[0]);
}

static void normal_f32(const random_job *job, int64_t n, const uint32_t *words, const uint32_t *low, void *out) {
  float *const v = out;
  const float mean = (float)job->a, deviation = (float)job->b;
  (void)low;
  job->x->k->elementwise->random->normal_f32(n + (n & 1), words, v);
  for (int64_t i = 0; i < n; i++) v[i] = mean + deviation * v[i];
}

/* Box and Muller as in f32: the radius from an even word, the angle from the next one, a signed part of a turn. */
static void normal_f64(const random_job *job, int64_t n, const uint32_t *words, const uint32_t *low, void *out) {
  double *const v = out;
  for (int64_t i = 0; i < n; i += 2) {
    const double u = fraction_f64(words[i], low[i]) + 0x1p-53, turn = fraction_f64(words[i + 1], low[i + 1]);
    const double angle = (turn < 0.5 ? turn : turn - 1.0) * 6.28318530717958647693, radius = sqrt(-2.0 * log(u));
    v[i] = job->a + job->b * (radius * cos(angle));
    v[i + 1] = job->a + job->b * (radius * sin(angle));   /* n odd: there is room for one more */
  }
}

static rs_status normal_run(const rsi_call *c) {
  const normal_attrs *const a = RSI_ATTR(c, normal);
  const bool wide = a->dtype == RS_F64;
  random_job job = {.make = wide ? normal_f64 : normal_f32, .made = wide ? RS_F64 : RS_F32, .wide = wide,
                    .a = a->mean, .b = a->std};
  return run_random(c, &job, wide ? 30.0 : 1.0);
}

static const normal_attrs normal_matrix = {{2, {7, 33}}, 0, 1, RS_F32}, normal_moved = {{1, {33}}, 5, 0.5, RS_F64},
                          normal_scalar = {{0, {0}}, 0, 1, RS_F32}, normal_empty = {{2, {0, 3}}, 0, 1, RS_F32},
                          normal_half = {{1, {33}}, 0, 1, RS_F16};
static const rsi_sample normal_samples[] = {{"", &normal_matrix, 0, 1}, {"", &normal_moved, 0, 1}, {"", &normal_scalar, 0, 1},
                                            {"", &normal_empty, 0, 1}, {"", &normal_half, 0, 1}, {0}};
RANDOM(normal, "Independent values from the normal distribution (Box and Muller 1958).", normal_samples);

/* ---- bernoulli ------------------------------------------------------------------------------------------------------- */

#define BERNOULLI_ATTRS(F, T)                                                                   \
  F(T, SHAPE, shape, 0, 0, RSI_BIG, NULL, "the shape; none gives a 0-d tensor")                  \
  F(T, FLOAT, p, 0.5, 0, 1, NULL, "the probability of a one")                                    \
  F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "the dtype")
RSI_ATTRS(bernoulli, BERNOULLI_ATTRS)

static rs_status bernoulli_infer(rsi_call *c) {
  const bernoulli_attrs *const a = RSI_ATTR(c, bernoulli);
  RSI_CHECK(a->p >= 0.0, RS_ERR_ARG, "p is not a number");
  return rsi_take_shape(c, &a->shape, a->dtype, &c->desc[0]);
}

static void bernoulli_u8(const random_job *job, int64_t n, const uint32_t *words, const uint32_t *low, void *out) {
  uint8_t *const v = out;
  const uint64_t below = (uint64_t)(job->a * 4294967296.0);
  (void)low;
  for (int64_t i = 0; i < n; i++) v[i] = words[i] < below;
}

static rs_status bernoulli_run(const rsi_call *c) {
  random_job job = {.make = bernoulli_u8, .made = RS_U8, .a = RSI_ATTR(c, bernoulli)->p};
  return run_random(c, &job, 0.6);
}

static const bernoulli_attrs bernoulli_matrix = {{2, {7, 33}}, 0.25, RS_F32}, bernoulli_mask = {{1, {33}}, 0.5, RS_BOOL},
                             bernoulli_empty = {{1, {0}}, 0.5, RS_F32}, bernoulli_scalar = {{0, {0}}, 1, RS_F64};
static const rsi_sample bernoulli_samples[] = {{"", &bernoulli_matrix, 0, 1}, {"", &bernoulli_mask, 0, 1},
                                               {"", &bernoulli_empty, 0, 1}, {"", &bernoulli_scalar, 0, 1}, {0}};
RANDOM(bernoulli, "Ones with probability p, zeros otherwise.", bernoulli_samples);

/* ---- integers -------------------------------------------------------------------------------------------------------- */

/* The high 64 bits of a product. */
static uint64_t product_high(uint64_t a, uint64_t b) {
  const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
  const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), cross = a0 * b1 + (uint32_t)middle;
  return a1 * b1 + (middle >> 32) + (cross >> 32);
}

#define RANDINT_ATTRS(F, T)                                                                     \
  F(T, INT, low, 1, -RSI_BIG, RSI_BIG, NULL, "the smallest value")                               \
  F(T, INT, high, 1, -RSI_BIG, RSI_BIG, NULL, "the largest value, itself included")              \
  F(T, SHAPE, shape, 0, 0, RSI_BIG, NULL, "the shape; none gives a 0-d tensor")                  \
  F(T, DTYPE, dtype, RS_I64, 0, RS_DTYPES - 1, NULL, "the dtype")
RSI_ATTRS(randint, RANDINT_ATTRS)

static rs_status randint_infer(rsi_call *c) {
  const randint_attrs *const a = RSI_ATTR(c, randint);
  RSI_CHECK(a->low <= a->high, RS_ERR_ARG, "low is %lld, above high, %lld", (long long)a->low, (long long)a->high);
  RSI_TRY(rsi_check_element((double)a->low, (int)a->dtype, "low"));
  RSI_TRY(rsi_check_element((double)a->high, (int)a->dtype, "high"));
  return rsi_take_shape(c, &a->shape, a->dtype, &c->desc[0]);
}

/* 64 random bits times the number of values: the high half is the value, with a bias below range / 2^64. */
static void randint_i64(const random_job *job, int64_t n, const uint32_t *words, const uint32_t *low, void *out) {
  int64_t *const v = out;
  for (int64_t i = 0; i < n; i++)
    v[i] = (int64_t)((uint64_t)job->from + product_high((uint64_t)words[i] << 32 | low[i], job->range));
}

static rs_status randint_run(const rsi_call *c) {
  const randint_attrs *const a = RSI_ATTR(c, randint);
  random_job job = {.make = randint_i64, .made = RS_I64, .wide = true, .from = a->low, .range = (uint64_t)(a->high - a->low) + 1};
  return run_random(c, &job, 2.5);
}

static const randint_attrs randint_dice = {1, 6, {2, {7, 33}}, RS_I64}, randint_byte = {0, 255, {1, {33}}, RS_U8},
                           randint_signed = {-5, 5, {1, {7}}, RS_F32}, randint_empty = {1, 2, {1, {0}}, RS_I32},
                           randint_one = {3, 3, {0, {0}}, RS_I32};
static const rsi_sample randint_samples[] = {{"", &randint_dice, 0, 1}, {"", &randint_byte, 0, 1}, {"", &randint_signed, 0, 1},
                                             {"", &randint_empty, 0, 1}, {"", &randint_one, 0, 1}, {0}};
RANDOM(randint, "Independent whole numbers from low to high, both included.", randint_samples);

/* ---- randperm -------------------------------------------------------------------------------------------------------- */

#define RANDPERM_ATTRS(F, T)                                                                    \
  F(T, INT, n, 0, 0, RSI_BIG, NULL, "how many")                                                  \
  F(T, DTYPE, dtype, RS_I64, 0, RS_DTYPES - 1, NULL, "i64 or i32")
RSI_ATTRS(randperm, RANDPERM_ATTRS)

static rs_status randperm_infer(rsi_call *c) {
  const randperm_attrs *const a = RSI_ATTR(c, randperm);
  RSI_CHECK(a->dtype == RS_I64 || a->dtype == RS_I32, RS_ERR_DTYPE, "dtype must be i64 or i32, got %s",
            rs_dtype_name((int)a->dtype));
  RSI_CHECK(a->dtype == RS_I64 || a->n < INT32_MAX, RS_ERR_ARG, "%lld values do not fit in i32", (long long)a->n);
  c->desc[0].dtype = (int)a->dtype;
  c->desc[0].ndim = 1;
  c->desc[0].shape[0] = a->n;
  return RS_OK;
}

/* Fisher and Yates: place i - 1 changes with one of the places 0..i-1; two words choose it. */
#define SHUFFLE(T, S)                                                                                                       \
  static void shuffle_##S(const rsi_exec *x, uint64_t first, int64_t n, T *v) {                                             \
    _Alignas(64) uint32_t words[GROUP];                                                                                     \
    for (int64_t i = 0; i < n; i++) v[i] = (T)(i + x->base);                                                                \
    for (int64_t done = 0; done < n; done += GROUP / 2) {                                                                   \
      const int64_t count = n - done < GROUP / 2 ? n - done : GROUP / 2;                                                    \
      x->k->elementwise->random->words(x->rng->key, first + (uint64_t)(done / 2), (count + 1) / 2, words);                  \
      for (int64_t k = 0; k < count; k++) {                                                                                 \
        const int64_t i = n - done - k;                                                                                     \
        const int64_t j = (int64_t)product_high((uint64_t)words[2 * k] << 32 | words[2 * k + 1], (uint64_t)i);              \
        const T t = v[i - 1];                                                                                               \
        v[i - 1] = v[j];                                                                                                    \
        v[j] = t;                                                                                                           \
      }                                                                                                                     \
    }                                                                                                                       \
  }
SHUFFLE(int64_t, i64)
SHUFFLE(int32_t, i32)


static rs_status randperm_run(const rsi_call *c) {
  const rs_tensor *const out = c->out[0];
  const uint64_t first = rsi_rng_take(c->x->rng, (uint64_t)(c->out[0]->numel + 1) / 2);
  if (out->dtype == RS_I64) shuffle_i64(c->x, first, out->numel, out->data);
  else shuffle_i32(c->x, first, out->numel, out->data);
  return RS_OK;
}

static const randperm_attrs randperm_odd = {33, RS_I64}, randperm_none = {0, RS_I64}, randperm_i32 = {1000, RS_I32};
static const rsi_sample randperm_samples[] = {{"", &randperm_odd, 0, 1}, {"", &randperm_none, 0, 1},
                                              {"", &randperm_i32, 0, 1}, {0}};
RANDOM(randperm, "The indices of n places in random order.", randperm_samples);
