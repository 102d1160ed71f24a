/* Checks of block images, and how work on their channels is shared out (block_image.h). */
#include "ops/block_image.h"
#include <string.h>

/* ---- checks ---------------------------------------------------------------------------------------------------------- */

rs_status rsi_block_check(const rs_tensor *t, const char *name, int64_t channels) {
  RSI_CHECK(t->ndim == 5 || t->ndim == 4, RS_ERR_SHAPE, "%s must be a block image [N, G, H, W, b], got %s", name, rsi_text(t));
  const int64_t block = rsi_block_of(t);
  RSI_CHECK(block > 0, RS_ERR_SHAPE, "%s %s has blocks of no channel", name, rsi_text(t));
  RSI_CHECK(channels == 0 || t->shape[1] == (channels + block - 1) / block, RS_ERR_SHAPE,
            "%s %s does not hold %lld channels in blocks of %lld", name, rsi_text(t), (long long)channels, (long long)block);
  RSI_CHECK(t->dtype == RS_F32 || t->dtype == RS_BF16, RS_ERR_DTYPE, "%s is %s, but block images are f32 or bf16; keep it in f32", name,
            rs_dtype_name(t->dtype));
  return RS_OK;
}

rs_status rsi_block_check_like(const rs_tensor *t, const char *name, const rs_tensor *x) {
  if (!t) return RS_OK;
  RSI_CHECK(rsi_same_shape(t, x), RS_ERR_SHAPE, "%s %s must have the shape %s", name, rsi_text(t), rsi_text(x));
  RSI_CHECK(t->dtype == x->dtype, RS_ERR_DTYPE, "%s is %s but the image is %s", name, rs_dtype_name(t->dtype), rs_dtype_name(x->dtype));
  return RS_OK;
}

rs_status rsi_block_check_vector(const rs_tensor *t, const char *name, int64_t channels) {
  if (!t) return RS_OK;
  RSI_CHECK(t->ndim == 1 && t->shape[0] == channels, RS_ERR_SHAPE, "%s %s must have shape [%lld]", name, rsi_text(t),
            (long long)channels);
  RSI_CHECK(t->dtype == RS_F32, RS_ERR_DTYPE, "%s is %s; keep it in f32", name, rs_dtype_name(t->dtype));
  return RS_OK;
}

/* ---- the plan -------------------------------------------------------------------------------------------------------- */

enum {
  COLUMNS = 64,        /* columns that are aimed at */
  CHUNK   = 4096,      /* elements of a chunk: f32 sums stay exact enough, and a second look finds them in the first cache */
  ROWS    = 32,        /* but at least so many rows, or moving sums to double would cost more than taking them */
  TASK    = 4          /* chunks of a task */
};

/* The fewest copies of a block that fill whole vectors of 16 and come near COLUMNS; 1 for a block that is wide or odd. */
static int64_t columns_of(int64_t block) {
  int64_t copies = 1;
  while (block * copies % 16 != 0) copies++;
  while (block * copies * 2 <= COLUMNS) copies *= 2;
  return block * copies <= RSI_BLOCK_COLUMNS ? block * copies : block;
}

void rsi_block_plan_make(const rs_tensor *x, rsi_block_plan *p) {
  memset(p, 0, sizeof *p);
  p->n = x->shape[0], p->groups = x->shape[1], p->block = rsi_block_of(x);
  p->plane = x->shape[2] * x->shape[3] * p->block;
  if (p->groups == 1) p->plane *= p->n, p->n = p->n > 0;
  p->width = columns_of(p->block);
  p->strips = (p->width + RSI_BLOCK_COLUMNS - 1) / RSI_BLOCK_COLUMNS;
  const int64_t chunk = p->width * ROWS > CHUNK ? p->width * ROWS : CHUNK;
  p->pieces = p->plane > 0 ? (p->plane + chunk - 1) / chunk : 0;
  p->piece = p->pieces > 0 ? ((p->plane + p->pieces - 1) / p->pieces + p->width - 1) / p->width * p->width : 0;
  if (p->pieces > 0) p->pieces = (p->plane + p->piece - 1) / p->piece;
  p->gather = p->pieces == 1 ? chunk / p->plane : 1;
  p->chunks = p->pieces == 1 ? (p->n + p->gather - 1) / p->gather : p->n * p->pieces;
  p->parts = (p->chunks + TASK - 1) / TASK;
}

/* ---- sums ------------------------------------------------------------------------------------------------------------ */

typedef struct sum_job {
  const rsi_block_plan *p;
  rsi_block_sum_fn fn;
  const void *arg;
  double     *to;               /* [parts][groups][slots][block] */
  int         slots;
} sum_job;

size_t rsi_block_sums_bytes(const rsi_block_plan *p, int slots) {
  const int64_t parts = p->parts > 0 ? p->parts : 1;
  return ((size_t)(parts * p->groups * p->block) * (size_t)slots * sizeof(double) + 63) & ~(size_t)63;
}

static void sum_chunk(const sum_job *job, int64_t group, int64_t chunk, int64_t column, int64_t width, double *sums,
                      float *memory, bool begin) {
  const rsi_block_plan *const p = job->p;
  const int64_t n = p->pieces == 1 ? chunk * p->gather : chunk / p->pieces;
  const int64_t first = p->pieces == 1 ? 0 : chunk % p->pieces * p->piece;
  const int64_t rest = p->plane - first, length = rest < p->piece ? rest : p->piece;
  const rsi_columns columns = {.pieces = p->n - n < p->gather ? p->n - n : p->gather, .step = p->groups * p->plane,
                               .rows = length / p->width, .stride = p->width, .width = width, .rest = length % p->width};
  job->fn(job->arg, group, (n * p->groups + group) * p->plane + first + column, column, &columns, sums, memory, begin);
}

static void sum_tasks(void *arg, int64_t first, int64_t last) {
  const sum_job *const job = arg;
  const rsi_block_plan *const p = job->p;
  double sums[2 * RSI_BLOCK_COLUMNS];
  float memory[RSI_BLOCK_COLUMNS];
  for (int64_t task = first; task < last; task++) {
    const int64_t strip = task % p->strips, place = task / p->strips, group = place % p->groups, part = place / p->groups;
    const int64_t column = strip * RSI_BLOCK_COLUMNS;
    const int64_t width = p->width - column < RSI_BLOCK_COLUMNS ? p->width - column : RSI_BLOCK_COLUMNS;
    memset(sums, 0, (size_t)(job->slots * width) * sizeof(double));
    for (int64_t chunk = part * TASK; chunk < (part + 1) * TASK && chunk < p->chunks; chunk++)
      sum_chunk(job, group, chunk, column, width, sums, memory, chunk == part * TASK);
    const int64_t block = p->block < width ? p->block : width;    /* columns from here on are copies of the first */
    for (int slot = 0; slot < job->slots; slot++) {
      double *const to = job->to + (place * job->slots + slot) * p->block + column;
      const double *const from = sums + slot * width;
      memcpy(to, from, (size_t)block * sizeof(double));
      for (int64_t copy = block; copy < width; copy += block)
        for (int64_t j = 0; j < block; j++) to[j] += from[copy + j];
    }
  }
}

void rsi_block_sums(const rsi_exec *x, const rsi_block_plan *p, int slots, double work, rsi_block_sum_fn fn, const void *arg,
                    double *to) {
  sum_job job = {p, fn, arg, to, slots};
  const int64_t values = p->groups * slots * p->block, tasks = p->parts * p->groups * p->strips;
  if (tasks == 0) memset(to, 0, (size_t)values * sizeof(double));
  if (tasks == 0) return;
  rsi_parallel(x, tasks, work * (double)(p->n * p->groups * p->plane) / (double)tasks + 50.0, sum_tasks, &job);
  for (int64_t part = 1; part < p->parts; part++) {
    const double *const more = to + part * values;
    for (int64_t i = 0; i < values; i++) to[i] += more[i];
  }
}

/* ---- sweeps ---------------------------------------------------------------------------------------------------------- */

typedef struct sweep_job { const rsi_block_plan *p; rsi_block_piece_fn fn; const void *arg; int64_t count; } sweep_job;

static void sweep_range(void *arg, int64_t first, int64_t last) {
  const sweep_job *const job = arg;
  const rsi_block_plan *const p = job->p;
  for (int64_t i = first; i < last; i++) {
    const int64_t item = job->count - 1 - i, plane = item / p->pieces, begin = item % p->pieces * p->piece, rest = p->plane - begin;
    job->fn(job->arg, plane % p->groups, plane * p->plane + begin, rest < p->piece ? rest : p->piece);
  }
}

void rsi_block_sweep(const rsi_exec *x, const rsi_block_plan *p, double work, rsi_block_piece_fn fn, const void *arg) {
  sweep_job job = {p, fn, arg, p->n * p->groups * p->pieces};
  if (job.count > 0) rsi_parallel(x, job.count, work * (double)(p->n * p->groups * p->plane) / (double)job.count + 10.0, sweep_range, &job);
}
