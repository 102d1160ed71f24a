/*
** Matrix products: matmul and linear.
**
** Both come down to one plan: `batch` products [m, k] x [k, n] whose operands are read by strides, so a transposed or expanded
** tensor needs no copy. Leading dimensions of the first operand join its rows wherever the second does not change with them;
** then a batch against one matrix is one product. The result is contiguous.
**
** Work is shared out by cutting the result into blocks of rows and columns, never along k, and the cut follows from the shape
** alone. So an element is summed in one order, whatever the number of threads.
*/
#include "ops/half.h"
#include "ops/product.h"
#include "ops/split_product.h"
#include "backend/backend.h"
#include "base/lanes.h"
#include <string.h>

enum {
  BLOCK_ROWS = 96, BLOCK_COLUMNS = 128,   /* least sides of a block (multiples of every tile) */
  GROUPS = 16,                            /* parts of one call; each has scratch of its own */
  BLOCK_NS = 60000,                       /* work that is worth a block of its own */
  ROW_COLUMNS = 64, ROW_NS = 10000        /* the same of one row */
};

typedef struct plan {
  const void *a, *b;
  rsi_gemm_end end;                       /* of a product; what is NULL or none in it costs nothing */
  const void *bias;                       /* [n] with a stride of its own, put into the result first; or NULL */
  bool    biased;                         /* there is one, here or in `end`; its data may not be there yet */
  void   *out;                            /* [batch, m, n], rows ldc elements apart */
  int     dtype, beta;                    /* beta: added to what is there */
  int64_t ldc, bias_stride;
  int64_t batch, m, n, k;
  int64_t ars, acs, brs, bcs;             /* strides, in elements, within one product */
  int     ndim;                           /* dimensions of the batch that are left, with the strides of both operands */
  int64_t shape[RS_MAX_DIMS], as[RS_MAX_DIMS], bs[RS_MAX_DIMS];
  int64_t block_m, block_n, across, items, groups;   /* blocks along n; blocks in all; what is handed to threads */
  double  work;                           /* nanoseconds of a group, about */
} plan;

/* ---- the plan -------------------------------------------------------------------------------------------------------- */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

static void add_batch(plan *p, int64_t size, int64_t as, int64_t bs) {
  if (size == 1) return;
  p->shape[p->ndim] = size;
  p->as[p->ndim] = as;
  p->bs[p->ndim++] = bs;
}

static void operands_of_matmul(plan *p, const rsi_call *c) {
  const rs_tensor *const a = c->in[0], *const b = c->in[1];
  const int na = a->ndim, nb = b->ndim, ba = na > 2 ? na - 2 : 0, bb = nb > 2 ? nb - 2 : 0, nd = ba > bb ? ba : bb;
  p->a = a->data;
  p->b = b->data;
  p->k = a->shape[na - 1];
  p->acs = a->strides[na - 1];
  p->m = na > 1 ? a->shape[na - 2] : 1;
  p->ars = na > 1 ? a->strides[na - 2] : 0;
  p->n = nb > 1 ? b->shape[nb - 1] : 1;
  p->bcs = nb > 1 ? b->strides[nb - 1] : 1;
  p->brs = b->strides[nb > 1 ? nb - 2 : 0];
  for (int i = 0; i < nd; i++) {
    const int ia = i - nd + ba, ib = i - nd + bb;
    const bool in_a = ia >= 0 && a->shape[ia] != 1, in_b = ib >= 0 && b->shape[ib] != 1;
    add_batch(p, in_a ? a->shape[ia] : in_b ? b->shape[ib] : 1, in_a ? a->strides[ia] : 0, in_b ? b->strides[ib] : 0);
  }
}

static void operands_of_linear(plan *p, const rsi_call *c) {
  const rs_tensor *const x = c->in[0], *const w = c->in[1];
  const int nx = x->ndim;
  p->a = x->data;
  p->b = w->data;
  p->biased = c->in[2] != NULL;
  if (c->in[2] && c->in[2]->strides[0] == 1) p->end.bias = c->in[2]->data;
  else if (c->in[2]) p->bias = c->in[2]->data, p->bias_stride = c->in[2]->strides[0];
  p->k = x->shape[nx - 1];
  p->acs = x->strides[nx - 1];
  p->m = nx > 1 ? x->shape[nx - 2] : 1;
  p->ars = nx > 1 ? x->strides[nx - 2] : 0;
  p->n = w->shape[0];
  p->bcs = w->strides[0];
  p->brs = w->strides[1];
  for (int i = 0; i < nx - 2; i++) add_batch(p, x->shape[i], x->strides[i], 0);
}

/* One row is bound by reading b, from where it is not in the near caches; each core reads as fast as one alone. */
static bool cut_row(plan *p) {
  const double ns = 0.15 * (double)p->n * (double)p->k * (p->dtype == RS_F64 ? 2.0 : 1.0);
  if (p->m != 1 || p->batch != 1 || ns < 2.0 * ROW_NS) return false;
  const int64_t across = larger(1, smaller(smaller((int64_t)(ns / ROW_NS), GROUPS), p->n / ROW_COLUMNS));
  p->block_m = 1;
  p->block_n = parts(parts(p->n, across), ROW_COLUMNS) * ROW_COLUMNS;
  p->items = p->groups = p->across = parts(p->n, p->block_n);
  p->work = 2.0 * ROW_NS;                 /* enough for each block to be handed out on its own */
  return true;
}

/* Cuts the result into blocks, and the blocks into groups. */
static void cut(plan *p, const rsi_exec *x) {
  if (cut_row(p)) return;
  const double step = x->k->level == RSI_ISA_AVX512 ? 0.008 : x->k->level == RSI_ISA_AVX2 ? 0.016 : 0.045;
  const double m = (double)p->m, n = (double)p->n, k = (double)p->k, wide = p->dtype == RS_F64 ? 2.0 : 1.0;
  const double ns = wide * (step * m * n * k + 0.03 * (m * k + k * n + m * n));   /* arithmetic and memory */
  const double worth = ns / BLOCK_NS;
  int64_t down = 1, across = 1;
  if (p->batch < GROUPS && worth >= 2.0) {
    const int64_t most = smaller(worth < GROUPS ? (int64_t)worth : GROUPS, parts(GROUPS, p->batch));
    across = larger(1, smaller(most, p->n / BLOCK_COLUMNS));
    down = larger(1, smaller(most / across, p->m / BLOCK_ROWS));
  }
  p->block_n = across > 1 ? parts(parts(p->n, across), BLOCK_COLUMNS) * BLOCK_COLUMNS : p->n;
  p->block_m = down > 1 ? parts(parts(p->m, down), BLOCK_ROWS) * BLOCK_ROWS : p->m;
  p->across = parts(p->n, p->block_n);
  p->items = p->batch * p->across * parts(p->m, p->block_m);
  const double total = ns * (double)p->batch;
  p->groups = total < 0.5 * BLOCK_NS ? 1 : smaller(p->items, GROUPS);
  p->work = total / (double)p->groups;
}

/* False when the result is empty: then there is nothing to do. */
static bool make_plan(plan *p, const rsi_call *c) {
  *p = (plan){.dtype = c->in[0]->dtype, .batch = 1};
  if (c->op == &rsi_op_linear) operands_of_linear(p, c);
  else operands_of_matmul(p, c);
  if (p->m == 1) p->ars = 0;
  if (p->k == 1) p->acs = 1;
  while (p->ndim > 0) {
    const int last = p->ndim - 1;
    if (p->bs[last] != 0 || (p->m != 1 && p->as[last] != p->m * p->ars)) break;
    if (p->m == 1) p->ars = p->as[last];
    p->m *= p->shape[last];
    p->ndim = last;
  }
  for (int i = 0; i < p->ndim; i++) p->batch *= p->shape[i];
  if (p->batch == 0 || p->m == 0 || p->n == 0) return false;
  p->ldc = p->n;
  cut(p, c->x);
  return true;
}

/* ---- running it ------------------------------------------------------------------------------------------------------ */

typedef struct job {
  const plan     *p;
  const rsi_exec *x;
  bool            blas;
  char           *scratch;
  size_t          bytes;     /* of scratch, for a group */
} job;

/* The stride that BLAS calls lda; false when neither rows nor columns lie together. */
static bool leading(int64_t rows, int64_t columns, int64_t rs, int64_t cs, bool *transposed, int64_t *ld) {
  if ((cs == 1 || columns == 1) && (rs >= larger(columns, 1) || rows == 1)) {
    *transposed = false;
    *ld = rows == 1 ? larger(columns, 1) : rs;
    return true;
  }
  *transposed = true;
  *ld = columns == 1 ? larger(rows, 1) : cs;
  return (rs == 1 || rows == 1) && (cs >= larger(rows, 1) || columns == 1);
}

static bool has_end(const rsi_gemm_end *end) { return end->act != RSI_ACT_NONE || end->bias || end->residual; }

/* c: [m, n] (+)= a x b for one block, by whom the job says. */
#define MULTIPLY(name, T, ours, blas_gemm)                                                                                  \
  static void name(const job *j, int64_t m, int64_t n, const T *a, const T *b, int beta, T *c, const rsi_gemm_end *end,     \
                   void *scratch) {                                                                                         \
    const plan *const p = j->p;                                                                                             \
    bool ta, tb;                                                                                                            \
    int64_t lda, ldb;                                                                                                       \
    if (!j->blas || p->k == 0) {                                                                                            \
      j->x->k->gemm->ours(m, n, p->k, a, p->ars, p->acs, b, p->brs, p->bcs, beta, c, p->ldc, end, scratch);                 \
      return;                                                                                                               \
    }                                                                                                                       \
    leading(p->m, p->k, p->ars, p->acs, &ta, &lda);                                                                         \
    leading(p->k, p->n, p->brs, p->bcs, &tb, &ldb);                                                                         \
    blas_gemm(ta, tb, m, n, p->k, a, lda, b, ldb, beta, c, p->ldc);                                                         \
    if (end) j->x->k->gemm->name##_end(end, 0, 0, m, n, c, p->ldc);                                                         \
  }                                                                                                                         \
  static void name##_bias(const plan *p, int64_t m, int64_t n, int64_t first, T *c) {                                       \
    const int64_t s = p->bias_stride;                                                                                       \
    const T *const bias = (const T *)p->bias + first * s;                                                                   \
    for (int64_t i = 0; i < m; i++)                                                                                         \
      if (s == 1) memcpy(c + i * p->ldc, bias, sizeof(T) * (size_t)n);                                                      \
      else                                                                                                                  \
        for (int64_t q = 0; q < n; q++) c[i * p->ldc + q] = bias[q * s];                                                    \
  }                                                                                                                         \
  static void name##_block(const job *j, int64_t a, int64_t b, int64_t c, int64_t m, int64_t n, int64_t first,              \
                           void *scratch) {                                                                                 \
    const plan *const p = j->p;                                                                                             \
    T *const to = (T *)p->out + c;                                                                                          \
    rsi_gemm_end end = p->end;                                                                                              \
    if (end.bias) end.bias = (const T *)end.bias + first;                                                                   \
    if (end.residual) end.residual = (const T *)end.residual + (c / p->ldc * end.stride + c % p->ldc);                      \
    if (p->bias) name##_bias(p, m, n, first, to);                                                                           \
    name(j, m, n, (const T *)p->a + a, (const T *)p->b + b, p->beta || p->bias, to, has_end(&end) ? &end : NULL, scratch);  \
  }
MULTIPLY(f32, float, sgemm_end, rsi_blas_sgemm)
MULTIPLY(f64, double, dgemm_end, rsi_blas_dgemm)

static void run_item(const job *j, int64_t item, void *scratch) {
  const plan *const p = j->p;
  const int64_t column = item % p->across * p->block_n, rest = item / p->across, down = parts(p->m, p->block_m);
  const int64_t row = rest % down * p->block_m, product = rest / down;
  int64_t a = row * p->ars, b = column * p->bcs;
  for (int64_t i = p->ndim - 1, q = product; i >= 0; q /= p->shape[i--]) {
    a += q % p->shape[i] * p->as[i];
    b += q % p->shape[i] * p->bs[i];
  }
  const int64_t at = (product * p->m + row) * p->ldc + column;
  const int64_t m = smaller(p->block_m, p->m - row), n = smaller(p->block_n, p->n - column);
  if (p->dtype == RS_F32) f32_block(j, a, b, at, m, n, column, scratch);
  else f64_block(j, a, b, at, m, n, column, scratch);
}

static void run_groups(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  const plan *const p = j->p;
  for (int64_t g = first; g < last; g++) {
    char *const scratch = j->bytes ? j->scratch + (size_t)g * j->bytes : NULL;
    for (int64_t i = p->items * g / p->groups; i < p->items * (g + 1) / p->groups; i++) run_item(j, i, scratch);
  }
}

static size_t group_scratch(const plan *p, const rsi_exec *x) {
  return (x->k->gemm->scratch(p->block_m, p->block_n, p->k, rsi_dtype_size[p->dtype]) + 63) / 64 * 64;
}

/* ---- by split tiles ---- */

static bool by_split(const rsi_exec *x, const plan *p) { return p->dtype == RS_F32 && rsi_split_pays(x, p->m, p->n, p->k); }

static void run_split(const rsi_exec *x, const plan *p, void *scratch) {
  const rsi_split_batch batch = {p->batch, p->ndim, p->shape, p->as, p->bs};
  const rsi_split_product s = {.m = p->m, .n = p->n, .k = p->k, .a = {p->a, p->ars, p->acs, 0}, .b = {p->b, p->bcs, p->brs, 0},
                               .c = p->out, .ldc = p->ldc, .beta = p->beta || p->bias, .end = has_end(&p->end) ? &p->end : NULL};
  if (p->bias) f32_bias(p, p->batch * p->m, p->n, 0, s.c);
  rsi_split_run(x, &s, &batch, scratch);
}

static size_t plan_scratch(const rsi_exec *x, const plan *p) {
  return by_split(x, p) ? rsi_split_scratch(x, p->batch, p->m, p->n, p->k) : (size_t)p->groups * group_scratch(p, x);
}

static void run_plan(const rsi_exec *x, const plan *p, bool blas, void *scratch) {
  if (!blas && by_split(x, p)) {
    run_split(x, p, scratch);
    return;
  }
  job j = {p, x, blas, scratch, blas ? 0 : group_scratch(p, x)};
  if (p->groups == 1) run_groups(&j, 0, 1);
  else rsi_parallel(x, p->groups, p->work, run_groups, &j);
}

static rs_status run(const rsi_call *c, bool blas) {
  plan p;
  if (!make_plan(&p, c)) return RS_OK;
  p.out = c->out[0]->data;
  run_plan(c->x, &p, blas, c->scratch);
  return RS_OK;
}

/* ---- bf16: one product after the other, each shared out ---- */

static rsi_half half_of(const plan *p, bool narrow) {
  return (rsi_half){.m = p->m, .n = p->n, .k = p->k, .ars = p->ars, .acs = p->acs, .brs = p->brs, .bcs = p->bcs, .ldc = p->ldc,
                    .c_bf16 = narrow, .beta = p->beta};
}

/* A bias is turned into f32 in front of the scratch memory of the product. */
static size_t bias_bytes(const plan *p) { return p->biased ? rsi_lane_round((size_t)p->n * sizeof(float)) : 0; }

static void run_half(const rsi_exec *x, const plan *p, bool narrow, void *scratch) {
  rsi_half h = half_of(p, narrow);
  if (bias_bytes(p) > 0) {
    char *const data[2] = {scratch, (char *)(uintptr_t)(p->bias ? p->bias : p->end.bias)};
    const int64_t strides[2] = {sizeof(float), 2 * (p->bias ? p->bias_stride : 1)};
    x->k->elementwise->cast->cast[RS_BF16][RS_F32](p->n, data, strides, NULL);
    h.end.bias = scratch;
  }
  for (int64_t product = 0; product < p->batch; product++) {
    int64_t a = 0, b = 0;
    for (int64_t i = p->ndim - 1, q = product; i >= 0; q /= p->shape[i--]) {
      a += q % p->shape[i] * p->as[i];
      b += q % p->shape[i] * p->bs[i];
    }
    h.a = (const uint16_t *)p->a + a;
    h.b = (const uint16_t *)p->b + b;
    h.c = (char *)p->out + (size_t)(product * p->m * p->ldc) * (narrow ? 2 : 4);
    rsi_half_product(x, &h, (char *)scratch + bias_bytes(p));
  }
}

static size_t tiled_scratch(const rsi_call *c) {
  plan p;
  if (!make_plan(&p, c)) return 0;
  if (p.dtype != RS_BF16) return plan_scratch(c->x, &p);
  const rsi_half h = half_of(&p, c->desc[0].dtype == RS_BF16);
  return bias_bytes(&p) + rsi_half_scratch(c->x, &h);
}

static rs_status tiled_run(const rsi_call *c) {
  plan p;
  if (c->in[0]->dtype != RS_BF16) return run(c, false);
  if (!make_plan(&p, c)) return RS_OK;
  p.out = c->out[0]->data;
  run_half(c->x, &p, c->desc[0].dtype == RS_BF16, c->scratch);
  return RS_OK;
}

/*
** On AVX2 and AVX-512 our loops were measured to be as fast as OpenBLAS or faster at every size; so it serves machines that
** they were not written for, from the size on at which its cost per call no longer shows.
*/
static bool blas_accepts(const rsi_call *c) {
  plan p;
  bool ta, tb;
  int64_t lda, ldb;
  if (c->x->k->level != RSI_ISA_BASELINE || !make_plan(&p, c)) return false;
  if ((double)p.m * (double)p.n * (double)p.k < 32768.0) return false;
  return leading(p.m, p.k, p.ars, p.acs, &ta, &lda) && leading(p.k, p.n, p.brs, p.bcs, &tb, &ldb) &&
         rsi_blas_fits(p.m, p.n, p.k, lda, ldb, p.n) && rsi_blas_available();
}

static rs_status blas_run(const rsi_call *c) { return run(c, true); }

/* ---- inside other ops ------------------------------------------------------------------------------------------------ */

size_t rsi_product_scratch(const rsi_exec *x, int dtype, int64_t m, int64_t n, int64_t k) {
  plan p = {.dtype = dtype, .batch = 1, .m = m, .n = n, .k = k};
  if (m == 0 || n == 0) return 0;
  cut(&p, x);
  return plan_scratch(x, &p);
}

void rsi_product_end(const rsi_exec *x, int dtype, int64_t m, int64_t n, int64_t k, const void *a, int64_t ars, int64_t acs,
                     const void *b, int64_t brs, int64_t bcs, int beta, void *c, int64_t ldc, const rsi_gemm_end *end,
                     void *scratch) {
  plan p = {.end = *end, .a = a, .b = b, .out = c, .dtype = dtype, .beta = beta, .ldc = ldc, .batch = 1, .m = m, .n = n, .k = k,
            .ars = ars, .acs = acs, .brs = brs, .bcs = bcs};
  if (m == 0 || n == 0) return;
  cut(&p, x);
  run_plan(x, &p, false, scratch);
}

void rsi_product(const rsi_exec *x, int dtype, int64_t m, int64_t n, int64_t k, const void *a, int64_t ars, int64_t acs,
                 const void *b, int64_t brs, int64_t bcs, int beta, void *c, int64_t ldc, void *scratch) {
  const rsi_gemm_end none = {0};
  rsi_product_end(x, dtype, m, n, k, a, ars, acs, b, brs, bcs, beta, c, ldc, &none, scratch);
}

static plan batch_plan(const rsi_exec *x, int dtype, rsi_batch batch, int64_t m, int64_t n, int64_t k) {
  plan p = {.dtype = dtype, .batch = batch.count, .m = m, .n = n, .k = k, .ldc = n};
  add_batch(&p, batch.count, batch.a_step, batch.b_step);
  cut(&p, x);
  return p;
}

size_t rsi_product_batch_scratch(const rsi_exec *x, int dtype, rsi_batch batch, int64_t m, int64_t n, int64_t k) {
  if (batch.count == 0 || m == 0 || n == 0) return 0;
  const plan p = batch_plan(x, dtype, batch, m, n, k);
  return plan_scratch(x, &p);
}

void rsi_product_batch(const rsi_exec *x, int dtype, rsi_batch batch, int64_t m, int64_t n, int64_t k, const void *a, int64_t ars,
                       int64_t acs, const void *b, int64_t brs, int64_t bcs, int beta, void *c, int64_t ldc, void *scratch) {
  if (batch.count == 0 || m == 0 || n == 0) return;
  plan p = batch_plan(x, dtype, batch, m, n, k);
  p.a = a, p.b = b, p.out = c, p.ldc = ldc, p.beta = beta;
  p.ars = ars, p.acs = acs, p.brs = brs, p.bcs = bcs;
  run_plan(x, &p, false, scratch);
}

static const rsi_kernel kernels[] = {
  {"openblas", RSI_BLAS, RSI_FLOATS, blas_accepts, NULL, blas_run},
  {"tiled", RSI_PORTABLE, RSI_FLOATS | 1u << RS_BF16, NULL, tiled_scratch, tiled_run},
  {NULL, 0, 0, NULL, NULL, NULL}};

static rs_status same_dtype(const rs_tensor *a, const rs_tensor *b, const char *what, const char *other) {
  RSI_CHECK(a->dtype == b->dtype, RS_ERR_DTYPE, "%s is %s but %s is %s; cast one of them", what, rs_dtype_name(a->dtype), other,
            rs_dtype_name(b->dtype));
  return RS_OK;
}

/* ---- matmul ---------------------------------------------------------------------------------------------------------- */

#define MATMUL_ATTRS(F, T)                                                                                                  \
  F(T, DTYPE, dtype, -1, -1, RS_DTYPES - 1, NULL, "the dtype of the result; not given: that of a; f32 for bf16 inputs loses nothing")
RSI_ATTRS(matmul, MATMUL_ATTRS)

static rs_status matmul_infer(rsi_call *c) {
  const rs_tensor *const a = c->in[0], *const b = c->in[1];
  rsi_desc *const d = &c->desc[0];
  const int na = a->ndim, nb = b->ndim;
  RSI_CHECK(na > 0 && nb > 0, RS_ERR_SHAPE, "the inputs %s and %s must have at least one dimension; multiply by a number with mul",
            rsi_text(a), rsi_text(b));
  RSI_TRY(same_dtype(a, b, "the first input", "the second"));
  const int64_t rows = b->shape[nb > 1 ? nb - 2 : 0];
  RSI_CHECK(a->shape[na - 1] == rows, RS_ERR_SHAPE, "inputs %s and %s do not fit: the first has %lld columns, the second %lld rows",
            rsi_text(a), rsi_text(b), (long long)a->shape[na - 1], (long long)rows);
  const int ba = na > 2 ? na - 2 : 0, bb = nb > 2 ? nb - 2 : 0;
  if (rsi_broadcast(ba, a->shape, bb, b->shape, &d->ndim, d->shape) != RS_OK)
    return rsi_fail(RS_ERR_SHAPE, "the leading dimensions of %s and %s (%s and %s) neither are equal nor can be repeated",
                    rsi_text(a), rsi_text(b), rsi_shape_text(ba, a->shape), rsi_shape_text(bb, b->shape));
  if (na > 1) d->shape[d->ndim++] = a->shape[na - 2];
  if (nb > 1) d->shape[d->ndim++] = b->shape[nb - 1];
  const int64_t dtype = RSI_ATTR(c, matmul)->dtype;
  RSI_CHECK(dtype < 0 || dtype == a->dtype || (a->dtype == RS_BF16 && dtype == RS_F32), RS_ERR_DTYPE,
            "the result of %s inputs cannot be %s; cast it", rs_dtype_name(a->dtype), rs_dtype_name((int)dtype));
  d->dtype = dtype < 0 ? a->dtype : (int)dtype;
  return RS_OK;
}

/* The shape of input i with a vector as a row (i = 0) or a column (i = 1). */
static void as_matrix(rsi_grad *g, int i, rsi_desc *out) {
  *out = *rsi_in_desc(g, i);
  if (out->ndim != 1) return;
  out->ndim = 2;
  out->shape[1 - i] = out->shape[0];
  out->shape[i] = 1;
}

/* t as [rows, columns of the last dimension]. */
static rs_tensor *as_rows(rsi_grad *g, rs_tensor *t, const rsi_desc *like, int64_t columns) {
  int64_t shape[2] = {1, columns};
  for (int i = 0; i < like->ndim - 1; i++) shape[0] *= like->shape[i];
  return rsi_b_reshape(g, t, 2, shape);
}

static rs_tensor *product(rsi_grad *g, rs_tensor *a, rs_tensor *b) { return rsi_emit2(g, RS_OP_matmul, NULL, a, b); }

/* out = a x b: the gradient of a is gout x b^T, of b a^T x gout. A vector becomes a matrix first, and rsi_give sums repeats. */
static void matmul_grad(rsi_grad *g) {
  rsi_desc a, b, out;
  as_matrix(g, 0, &a);
  as_matrix(g, 1, &b);
  const int va = rsi_in_desc(g, 0)->ndim == 1, vb = rsi_in_desc(g, 1)->ndim == 1;
  const rsi_desc *const longer = a.ndim > b.ndim ? &a : &b;
  rs_tensor *gout = rsi_gout(g, 0);
  if (!gout) return;
  /* The result's shape with the dimensions that vectors dropped. */
  out = (rsi_desc){.ndim = longer->ndim};
  for (int i = 0; i < out.ndim - 2; i++) out.shape[i] = gout->shape[i];
  out.shape[out.ndim - 2] = a.shape[a.ndim - 2];
  out.shape[out.ndim - 1] = b.shape[b.ndim - 1];
  if (va || vb) gout = rsi_b_reshape(g, gout, out.ndim, out.shape);
  if (rsi_needs(g, 0)) {
    rs_tensor *t = rsi_in(g, 1);
    if (vb) t = rsi_b_reshape(g, t, 2, b.shape);
    t = product(g, gout, rsi_b_transpose(g, t, -2, -1));
    if (va && !vb && b.ndim == 2) t = rsi_b_reshape(g, t, 1, rsi_in_desc(g, 0)->shape);
    rsi_give(g, 0, t);
  }
  if (rsi_needs(g, 1)) {
    rs_tensor *t = rsi_in(g, 0), *u = gout;
    if (va) t = rsi_b_reshape(g, t, 2, a.shape);
    if (b.ndim == 2 && a.ndim > 2) {   /* one matrix against a batch: one product over all rows */
      t = as_rows(g, t, &a, a.shape[a.ndim - 1]);
      u = as_rows(g, u, &out, b.shape[1]);
    }
    t = product(g, rsi_b_transpose(g, t, -2, -1), u);
    if (vb) t = rsi_b_reshape(g, t, 1, rsi_in_desc(g, 1)->shape);
    rsi_give(g, 1, t);
  }
}

static const rsi_sample matmul_samples[] = {
  {.inputs = "f5x7,f7x3"}, {.inputs = "f33x7,f7x33"}, {.inputs = "f1x20,f20x17"}, {.inputs = "f19x23,f23x1"},
  {.inputs = "f7,f7"}, {.inputs = "f7,f7x5"}, {.inputs = "f5x7,f7"}, {.inputs = "f3x5x7,f7"}, {.inputs = "f7,f3x7x5"},
  {.inputs = "f3x4x5,f3x5x2"}, {.inputs = "f3x4x5,f5x6"}, {.inputs = "f4x5,f3x5x6"}, {.inputs = "f2x1x3x4,f5x4x3"},
  {.inputs = "f2x3x1x4,f3x4x2"}, {.inputs = "f0x3,f3x4"}, {.inputs = "f3x0,f0x4"}, {.inputs = "f3x4,f4x0"},
  {.inputs = "f0x2x3,f3x4"}, {.inputs = "f0,f0"}, {.inputs = "f1x1,f1x1"}, {.inputs = "f5x1,f1x9"},
  {.inputs = "f70x65,f65x70", .no_grad = 1}, {.inputs = "f9x600,f600x40", .tolerance = 2e-5, .no_grad = 1},
  {.inputs = "f300x40,f40x300", .no_grad = 1}, {.inputs = "f2x150x130,f130x290", .no_grad = 1}, {.inputs = NULL}};

const rs_op rsi_op_matmul = {
  .name = "matmul",
  .doc = "Matrix product: out[..., i, j] = sum over p of a[..., i, p] * b[..., p, j]; leading dimensions broadcast, a vector is "
         "a row on the left and a column on the right and loses that dimension in the result.",
  .inputs = "a,b", .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_STRIDED | RSI_T_BF16, .dtypes = RSI_FLOATS | RSI_HALF,
  RSI_USES_ATTRS(matmul),
  .infer = matmul_infer, .grad = matmul_grad, .saves = {RSI_KEEP_IN(1), RSI_KEEP_IN(0)}, .kernels = kernels,
  .samples = matmul_samples};

/* ---- linear ---------------------------------------------------------------------------------------------------------- */

static rs_status linear_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0], *const w = c->in[1], *const b = c->in[2];
  RSI_CHECK(x->ndim > 0, RS_ERR_SHAPE, "the input has no dimensions, but the last one must hold the features");
  RSI_CHECK(w->ndim == 2, RS_ERR_SHAPE, "weight %s must have two dimensions [out, in]", rsi_text(w));
  RSI_TRY(same_dtype(x, w, "the input", "weight"));
  RSI_CHECK(x->shape[x->ndim - 1] == w->shape[1], RS_ERR_SHAPE, "input %s has %lld features but weight %s expects %lld",
            rsi_text(x), (long long)x->shape[x->ndim - 1], rsi_text(w), (long long)w->shape[1]);
  if (b) {
    RSI_TRY(same_dtype(x, b, "the input", "bias"));
    RSI_CHECK(b->ndim == 1 && b->shape[0] == w->shape[0], RS_ERR_SHAPE, "bias %s must have shape [%lld], as weight %s has as many rows",
              rsi_text(b), (long long)w->shape[0], rsi_text(w));
  }
  rsi_desc_of(x, &c->desc[0]);
  c->desc[0].shape[x->ndim - 1] = w->shape[0];
  return RS_OK;
}

/* y = x w^T + bias: gx = gy w, gw = gy^T x over all rows, gbias the sum of gy over them (done by rsi_give). */
static void linear_grad(rsi_grad *g) {
  const rsi_desc *const x = rsi_in_desc(g, 0), *const w = rsi_in_desc(g, 1);
  rs_tensor *const gy = rsi_gout(g, 0);
  if (rsi_needs(g, 0)) rsi_give(g, 0, product(g, gy, rsi_in(g, 1)));
  if (rsi_needs(g, 1)) {
    rs_tensor *const rows = as_rows(g, gy, x, w->shape[0]);
    rsi_give(g, 1, product(g, rsi_b_transpose(g, rows, 0, 1), as_rows(g, rsi_in(g, 0), x, w->shape[1])));
  }
  if (rsi_needs(g, 2)) rsi_give(g, 2, gy);
}

static const rsi_sample linear_samples[] = {
  {.inputs = "f5x7,f3x7,f3"}, {.inputs = "f5x7,f3x7"}, {.inputs = "f5x7,f3x7,-"}, {.inputs = "f7,f33x7,f33"}, {.inputs = "f2x3x7,f5x7,f5"},
  {.inputs = "f1x20,f17x20,f17"}, {.inputs = "f3x33,f1x33,f1"}, {.inputs = "f0x7,f3x7,f3"}, {.inputs = "f2x0x7,f3x7,f3"},
  {.inputs = "f4x0,f3x0,f3"}, {.inputs = "f4x7,f0x7,f0"}, {.inputs = "f8x64,f64x64,f64", .no_grad = 1},
  {.inputs = "f33x300,f70x300,f70", .no_grad = 1}, {.inputs = "f200x90,f270x90,f270", .no_grad = 1}, {.inputs = NULL}};

const rs_op rsi_op_linear = {
  .name = "linear", .doc = "Affine map of the last dimension: out = x weight^T + bias, with weight [out, in] and bias [out].",
  .inputs = "x,weight,bias?", .nin_min = 2, .nin_max = 3, .nout = 1, .traits = RSI_T_STRIDED | RSI_T_BF16,
  .dtypes = RSI_FLOATS | RSI_HALF, .infer = linear_infer, .grad = linear_grad, .saves = {RSI_KEEP_IN(1), RSI_KEEP_IN(0)}, .kernels = kernels,
  .samples = linear_samples};

/* ---- matmul_acc ------------------------------------------------------------------------------------------------------ */

/* The gradient of a weight that is used more than once grows where it lies. */
static rs_status matmul_acc_infer(rsi_call *c) {
  const rs_tensor *const a = c->in[0], *const b = c->in[1], *const to = c->in[2];
  RSI_CHECK(a->ndim == 2 && b->ndim == 2 && to->ndim == 2 && a->shape[1] == b->shape[0] && to->shape[0] == a->shape[0] &&
            to->shape[1] == b->shape[1], RS_ERR_SHAPE, "%s x %s cannot be added to %s", rsi_text(a), rsi_text(b), rsi_text(to));
  RSI_TRY(same_dtype(a, b, "the first input", "the second"));
  RSI_CHECK(to->dtype == a->dtype ? a->dtype != RS_BF16 : a->dtype == RS_BF16 && to->dtype == RS_F32, RS_ERR_DTYPE,
            "a product of %s cannot be added to %s", rs_dtype_name(a->dtype), rs_dtype_name(to->dtype));
  RSI_CHECK(rsi_is_contiguous(to), RS_ERR_STATE, "input 3 is written in place and must be contiguous");
  RSI_CHECK(!to->storage || (to->storage != a->storage && to->storage != b->storage), RS_ERR_STATE,
            "input 3 is written in place and must not share memory with the others");
  return RS_OK;
}

static bool matmul_acc_writes(const rsi_call *c, int i) {
  (void)c;
  return i == 2;
}

static bool plan_acc(plan *p, const rsi_call *c) {
  *p = (plan){.dtype = c->in[0]->dtype, .batch = 1, .beta = 1};
  operands_of_matmul(p, c);
  if (p->m == 0 || p->n == 0 || p->k == 0) return false;
  p->ldc = p->n;
  p->out = c->in[2]->data;
  cut(p, c->x);
  return true;
}

static size_t matmul_acc_scratch(const rsi_call *c) {
  plan p;
  if (!plan_acc(&p, c)) return 0;
  const rsi_half h = half_of(&p, false);
  return p.dtype == RS_BF16 ? rsi_half_scratch(c->x, &h) : (size_t)p.groups * group_scratch(&p, c->x);
}

static rs_status matmul_acc_run(const rsi_call *c) {
  plan p;
  if (!plan_acc(&p, c)) return RS_OK;
  if (p.dtype == RS_BF16) run_half(c->x, &p, false, c->scratch);
  else run_plan(c->x, &p, false, c->scratch);
  return RS_OK;
}

static const rsi_kernel matmul_acc_kernels[] = {
  {"tiled", RSI_PORTABLE, RSI_FLOATS | 1u << RS_BF16, NULL, matmul_acc_scratch, matmul_acc_run}, {NULL, 0, 0, NULL, NULL, NULL}};
static const rsi_sample no_samples[] = {{.inputs = NULL}};

const rs_op rsi_op_matmul_acc = {
  .name = "matmul_acc", .doc = "Adds the product of two matrices to c in place; a and b may be bf16 when c is f32.", .inputs = "a,b,c",
  .nin_min = 3, .nin_max = 3, .nout = 0, .traits = RSI_T_INTERNAL | RSI_T_NONDIFF | RSI_T_STRIDED | RSI_T_HALF,
  .dtypes = RSI_FLOATS | 1u << RS_BF16, .infer = matmul_acc_infer, .writes = matmul_acc_writes, .kernels = matmul_acc_kernels,
  .samples = no_samples};
