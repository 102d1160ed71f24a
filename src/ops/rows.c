/*
** How element-wise kernels run: operands that are contiguous and of the result's shape, or that hold one value, need no loop
** nest and are one row; anything else goes through rsi_nest. And how work is shared out: into chunks whose size follows from
** the work alone, so that results do not depend on the number of threads. Small work wakes nobody: what is worth sharing at all is
** offered to threads that are awake from a job just before.
** Here are also the shape rules that most ops use.
*/
#include "ops/op.h"
#include <string.h>

/* Work of a chunk; chunks are multiples of UNIT items where that is possible. And of a job that is worth offering, and its chunks. */
enum { CHUNK_NS = 16000, UNIT = 64, OFFER_NS = 5000, OFFERED = 4 };

/* ---- sharing out ------------------------------------------------------------------------------------------------------ */

typedef struct range_job { rsi_range_fn fn; void *arg; int64_t count, size; } range_job;

static void range_chunk(void *arg, int64_t chunk) {
  const range_job *const job = arg;
  const int64_t first = chunk * job->size, rest = job->count - first;
  job->fn(job->arg, first, first + (rest < job->size ? rest : job->size));
}

void rsi_parallel(const rsi_exec *x, int64_t count, double work, rsi_range_fn fn, void *arg) {
  if (count <= 0) return;
  double chunks = (double)count * work / CHUNK_NS;
  if (count == 1 || (double)count * work < OFFER_NS) {
    fn(arg, 0, count);
    return;
  }
  const bool small = chunks < 2.0;
  if (small) chunks = OFFERED;
  int64_t size = chunks < (double)count ? (int64_t)((double)count / chunks) : 1;
  if (size > UNIT) size = (size + UNIT - 1) / UNIT * UNIT;
  range_job job = {fn, arg, count, size};
  (small ? rsi_pool_offer : rsi_pool_run)(x->pool, (count - 1) / size + 1, range_chunk, &job);
}

/* ---- rows ------------------------------------------------------------------------------------------------------------ */

typedef struct flat_job {
  rsi_row_fn  row;
  const void *arg;
  int         operands;
  char       *data[RSI_MAX_OPERANDS];
  int64_t     strides[RSI_MAX_OPERANDS];
} flat_job;

static void flat_range(void *arg, int64_t first, int64_t last) {
  const flat_job *const job = arg;
  char *data[RSI_MAX_OPERANDS];
  for (int k = 0; k < job->operands; k++) data[k] = job->data[k] + first * job->strides[k];
  job->row(last - first, data, job->strides, job->arg);
}

typedef struct nest_job {
  rsi_nest    nest;
  rsi_row_fn  row;
  const void *arg;
  int         fast;      /* level along which a transposed operand is contiguous */
  int64_t     strips;    /* pieces of STRIP rows of that level */
} nest_job;

static void nest_range(void *arg, int64_t first, int64_t last) {
  const nest_job *const job = arg;
  rsi_nest_run(&job->nest, first, last, job->row, job->arg);
}

/*
** A transposed operand would touch a new cache line at each step of a row. So rows of the level along which it is contiguous
** are taken STRIP at a time and cut into pieces of SPAN elements: its lines are used up while they are in the cache.
*/
enum { STRIP = 32, SPAN = 16, TILED_FROM = 4096 };

static void tile_range(void *arg, int64_t first, int64_t last) {
  const nest_job *const job = arg;
  const rsi_nest *const nest = &job->nest;
  const int inner = nest->ndim - 1, fast = job->fast;
  int64_t strides[RSI_MAX_OPERANDS];
  for (int k = 0; k < nest->n; k++) strides[k] = nest->strides[k][inner];
  for (int64_t item = first; item < last; item++) {
    char *corner[RSI_MAX_OPERANDS], *data[RSI_MAX_OPERANDS];
    const int64_t top = item % job->strips * STRIP, rows = nest->shape[fast] - top < STRIP ? nest->shape[fast] - top : STRIP;
    for (int k = 0; k < nest->n; k++) corner[k] = nest->data[k] + top * nest->strides[k][fast];
    int64_t rest = item / job->strips;
    for (int d = inner - 1; d >= 0; d--) {
      if (d == fast) continue;
      for (int k = 0; k < nest->n; k++) corner[k] += rest % nest->shape[d] * nest->strides[k][d];
      rest /= nest->shape[d];
    }
    for (int64_t at = 0; at < nest->shape[inner]; at += SPAN) {
      const int64_t count = nest->shape[inner] - at < SPAN ? nest->shape[inner] - at : SPAN;
      for (int64_t r = 0; r < rows; r++) {
        for (int k = 0; k < nest->n; k++) data[k] = corner[k] + r * nest->strides[k][fast] + at * strides[k];
        job->row(count, data, strides, job->arg);
      }
    }
  }
}

/* Does an input run along another level than the innermost? */
static bool find_transposed(nest_job *job, rs_tensor *const *operands) {
  const rsi_nest *const nest = &job->nest;
  const int inner = nest->ndim - 1;
  if (nest->numel < TILED_FROM || inner < 1 || nest->shape[inner] < STRIP) return false;
  for (int k = 1; k < nest->n; k++) {
    if (operands[k]->ndim < 2) continue;
    const int64_t size = (int64_t)rsi_item_size(operands[k]), stride = nest->strides[k][inner];
    if (stride == size || stride == 0) continue;
    for (job->fast = inner - 1; job->fast >= 0; job->fast--)
      if (nest->strides[k][job->fast] == size) return true;
  }
  return false;
}

static __attribute__((noinline)) void run_nest(const rsi_call *c, rsi_row_fn row, const void *arg, double work,
                                               const void *const *missing) {
  rs_tensor value[RSI_MAX_OPERANDS], *operands[RSI_MAX_OPERANDS];
  nest_job job = {.row = row, .arg = arg};
  int n = 0;
  operands[n++] = c->out[0];
  for (int i = 0; i < c->nin; i++) {
    if (c->in[i]) operands[n++] = c->in[i];
    else if (missing && missing[i]) {   /* a 0-d operand */
      value[i].ndim = 0;
      value[i].data = (void *)(uintptr_t)missing[i];
      operands[n++] = &value[i];
    }
  }
  rsi_nest_make(&job.nest, operands, n);
  if (find_transposed(&job, operands)) {
    const int64_t length = job.nest.shape[job.fast];
    job.strips = (length + STRIP - 1) / STRIP;
    const int64_t items = job.nest.numel / (length * job.nest.shape[job.nest.ndim - 1]) * job.strips;
    rsi_parallel(c->x, items, (work + 1.0) * (double)job.nest.numel / (double)items, tile_range, &job);
  } else rsi_parallel(c->x, job.nest.numel, work, nest_range, &job);
}

rs_status rsi_run_rows_with(const rsi_call *c, rsi_row_fn row, const void *arg, double work, const void *const *missing) {
  flat_job job;
  const rs_tensor *const out = c->out[0];
  const int64_t numel = out->numel;
  bool flat = rsi_is_contiguous(out);
  int n = 1;
  job.data[0] = out->data;
  job.strides[0] = (int64_t)rsi_item_size(out);
  for (int i = 0; i < c->nin; i++) {
    const rs_tensor *const t = c->in[i];
    if (t) {
      /* A contiguous operand that broadcasts to as many elements as it has differs in dimensions of size 1 only. */
      const bool whole = t->numel == numel && rsi_is_contiguous(t);
      flat &= whole || t->numel == 1;
      job.data[n] = t->data;
      job.strides[n++] = whole ? (int64_t)rsi_item_size(t) : 0;
    } else if (missing && missing[i]) {
      job.data[n] = (char *)(uintptr_t)missing[i];
      job.strides[n++] = 0;
    }
  }
  if (rsi_unlikely(numel == 0)) return RS_OK;
  if (rsi_unlikely(!flat)) {
    run_nest(c, row, arg, work, missing);
    return RS_OK;
  }
  if (rsi_likely((double)numel * work < 2.0 * CHUNK_NS)) {
    row(numel, job.data, job.strides, arg);
    return RS_OK;
  }
  job.row = row;
  job.arg = arg;
  job.operands = n;
  rsi_parallel(c->x, numel, work, flat_range, &job);
  return RS_OK;
}

rs_status rsi_run_rows(const rsi_call *c, rsi_row_fn row, const void *arg, double work) {
  return rsi_run_rows_with(c, row, arg, work, NULL);
}

/* ---- shapes ---------------------------------------------------------------------------------------------------------- */

rs_status rsi_infer_same(rsi_call *c) {
  rsi_desc_of(c->in[0], &c->desc[0]);
  return RS_OK;
}

static bool has_shape(const rs_tensor *t, const rsi_desc *d) {
  if (t->ndim != d->ndim) return false;
  for (int i = 0; i < d->ndim; i++)
    if (t->shape[i] != d->shape[i]) return false;
  return true;
}

rs_status rsi_infer_broadcast(rsi_call *c) {
  rsi_desc *const out = &c->desc[0];
  const rs_tensor *first = NULL;
  for (int i = 0; i < c->nin; i++) {
    const rs_tensor *const t = c->in[i];
    if (!t) continue;
    if (!first) {
      first = t;
      rsi_desc_of(t, out);
      continue;
    }
    RSI_CHECK(t->dtype == first->dtype, RS_ERR_DTYPE, "inputs of dtype %s and %s do not go together; cast one of them",
              rs_dtype_name(first->dtype), rs_dtype_name(t->dtype));
    if (rsi_likely(has_shape(t, out))) continue;
    const int ndim = out->ndim;
    int64_t shape[RS_MAX_DIMS];
    memcpy(shape, out->shape, sizeof shape);
    RSI_TRY(rsi_broadcast(ndim, shape, t->ndim, t->shape, &out->ndim, out->shape));
  }
  RSI_CHECK(first, RS_ERR_ARG, "at least one input must be a tensor");
  return RS_OK;
}

rs_status rsi_infer_broadcast_bool(rsi_call *c) {
  RSI_TRY(rsi_infer_broadcast(c));
  c->desc[0].dtype = RS_BOOL;
  return RS_OK;
}
