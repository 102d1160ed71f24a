/*
** The operand with fewer strips stays, a part of it at a time, and the other passes by; a task is one part of the first beside a share of
** the second, of one product of the batch. Each task packs what it needs into memory of its lane; what stays is found packed there by the
** lane's next task when that has the same part of the same operand. How many shares there are depends on the threads, but no sum does.
*/
#include "ops/split_product.h"
#include "base/lanes.h"

/* EACH: tasks for a thread, about. LEAST_PASS: strips that pass by in one. LANE_NS: work that is worth another thread. */
enum { TASK_NS = 50000, LANE_NS = 5000, EACH = 3, LEAST_PASS = 8 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }
static int64_t whole(int64_t n, int64_t unit) { return parts(n, unit) * unit; }

/* Nanoseconds on one thread, measured: products, sums into c, and packing; by FMA: products, and packing that is in their rate. */
static double split_ns(int64_t m, int64_t n, int64_t k) {
  const double mt = (double)whole(m, RSI_SPLIT_SIDE), nt = (double)whole(n, RSI_SPLIT_SIDE), kt = (double)whole(k, RSI_SPLIT_DEEP);
  return 0.0066 * mt * nt * kt + 0.35 * (mt + nt) * kt + 0.15 * mt * nt * (double)parts(k, RSI_SPLIT_CHUNK) + 300;
}

static double fma_ns(int64_t m, int64_t n, int64_t k) { return 0.0125 * (double)m * (double)n * (double)k + 100; }

bool rsi_split_pays(const rsi_exec *x, int64_t m, int64_t n, int64_t k) {
  return m >= 8 && n >= 8 && k >= 16 && rsi_splits(x) && split_ns(m, n, k) < fma_ns(m, n, k);
}

typedef struct job {
  const rsi_k_split *k;
  const rsi_split_product *p;
  const rsi_split_batch *batch;
  rsi_split_plan t;
  int64_t rows, columns;           /* strips of a and of b */
  int64_t share, shares, tasks;    /* strips that pass by in a task; tasks of one part and product */
  int64_t lanes;
  size_t  each;                    /* bytes of a lane: a note, then room */
} job;

/* What lies packed in a lane: strips from `strip` on of the operand that begins at `from`. NULL: nothing that another task can use. */
typedef struct note { _Alignas(64) const float *from; int64_t strip; } note;

/* n cut into parts of at most `most`, as equal as pairs allow. */
static int64_t part_of(int64_t n, int64_t most) { return n <= most ? n : whole(parts(n, parts(n, most)), 2); }

static void cut(job *j, const rsi_exec *x, int64_t count, int64_t m, int64_t n, int64_t k) {
  j->k = x->k->split;
  j->rows = parts(m, RSI_SPLIT_SIDE), j->columns = parts(n, RSI_SPLIT_SIDE);
  j->t.rows = j->rows <= j->columns;
  const int64_t stay = j->t.rows ? j->rows : j->columns, pass = j->t.rows ? j->columns : j->rows;
  const int64_t runs = parts(k, RSI_SPLIT_DEEP);
  j->t.runs = parts(runs, parts(runs, smaller(RSI_SPLIT_CHUNK / RSI_SPLIT_DEEP, larger(12, RSI_SPLIT_STAY / stay))));
  j->t.strips = part_of(stay, RSI_SPLIT_STAY / j->t.runs / 2 * 2);
  const int64_t stays = parts(stay, j->t.strips);
  const double ns = split_ns(m, n, k);
  const int threads = rsi_pool_threads(x->pool);
  const int64_t many = threads > 1 ? parts(EACH * threads, stays * count) : 1;
  const int64_t wanted = smaller(many, (int64_t)(ns / (double)stays / TASK_NS));
  j->share = whole(parts(pass, larger(1, smaller(wanted, pass / LEAST_PASS))), 2);
  j->shares = parts(pass, j->share);
  j->tasks = stays * count * j->shares;
  j->lanes = rsi_lane_count(threads, smaller(j->tasks, larger(1, (int64_t)(ns * (double)count / LANE_NS))));
  j->each = sizeof(note) + rsi_lane_round(rsi_split_room(&j->t));
}

size_t rsi_split_scratch(const rsi_exec *x, int64_t count, int64_t m, int64_t n, int64_t k) {
  job j;
  if (count == 0 || m == 0 || n == 0) return 0;
  cut(&j, x, count, m, n, k);
  return (size_t)j.lanes * j.each;
}

/* Product i of the batch. `end` is where its end is put. */
static rsi_split_product product_of(const job *j, int64_t i, rsi_gemm_end *end) {
  const rsi_split_batch *const batch = j->batch;
  rsi_split_product s = *j->p;
  s.c += i * s.m * s.ldc;
  if (s.end != NULL) {
    *end = *s.end;
    if (end->residual) end->residual = (const float *)end->residual + i * s.m * end->stride;
    s.end = end;
  }
  for (int64_t d = batch->ndim - 1; d >= 0; i /= batch->shape[d--]) {
    s.a.from += i % batch->shape[d] * batch->a_steps[d];
    s.b.from += i % batch->shape[d] * batch->b_steps[d];
  }
  return s;
}

/* Tasks that follow each other have the same part, of one product after the other. */
static void run_task(void *arg, int64_t task, void *scratch) {
  const job *const j = arg;
  note *const lies = scratch;
  void *const room = lies + 1;
  rsi_gemm_end end;
  const int64_t stay = j->t.rows ? j->rows : j->columns, pass = j->t.rows ? j->columns : j->rows, of_part = j->shares * j->batch->count;
  const int64_t s0 = task / of_part * j->t.strips, s1 = smaller(s0 + j->t.strips, stay);
  const int64_t p0 = task % j->shares * j->share, p1 = smaller(p0 + j->share, pass);
  const rsi_split_product s = product_of(j, task % of_part / j->shares, &end);
  const float *const from = j->t.rows ? s.a.from : s.b.from;
  const bool packed = lies->from == from && lies->strip == s0;
  if (j->t.rows) j->k->block(&s, &j->t, packed, s0, s1, p0, p1, room);
  else j->k->block(&s, &j->t, packed, p0, p1, s0, s1, room);
  if (j->t.runs * RSI_SPLIT_DEEP >= s.k) *lies = (note){from, s0};     /* in one chunk, so all of it is there still */
}

void rsi_split_run(const rsi_exec *x, const rsi_split_product *p, const rsi_split_batch *batch, void *scratch) {
  job j = {.p = p, .batch = batch};
  if (batch->count == 0 || p->m == 0 || p->n == 0) return;
  cut(&j, x, batch->count, p->m, p->n, p->k);
  for (int64_t i = 0; i < j.lanes; i++) *(note *)((char *)scratch + (size_t)i * j.each) = (note){NULL, 0};
  rsi_lanes_run(x->pool, j.lanes, j.tasks, run_task, &j, scratch, j.each);
}
