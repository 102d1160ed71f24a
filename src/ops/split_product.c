/*
** The operand with fewer strips stays, a part of it at a time, and the other passes by; a task is one part of the first beside a share of
** the second. Each task packs what it needs into memory of its lane. How many shares there are depends on the threads, but no sum does.
*/
#include "ops/split_product.h"
#include "base/lanes.h"

enum { TASK_NS = 50000, EACH = 3, LEAST_PASS = 8 };     /* EACH: tasks for a thread, about; strips that pass by in one */

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
  rsi_split_plan t;
  int64_t rows, columns;           /* strips of a and of b */
  int64_t share, shares, tasks;    /* strips that pass by in a task; tasks of one part */
} job;

/* n cut into parts of at most `most`, as equal as pairs allow. */
static int64_t part_of(int64_t n, int64_t most) { return n <= most ? n : whole(parts(n, parts(n, most)), 2); }

static void cut(job *j, const rsi_exec *x, int64_t m, int64_t n, int64_t k) {
  j->k = x->k->split;
  j->rows = parts(m, RSI_SPLIT_SIDE), j->columns = parts(n, RSI_SPLIT_SIDE);
  j->t.rows = j->rows <= j->columns;
  const int64_t stay = j->t.rows ? j->rows : j->columns, pass = j->t.rows ? j->columns : j->rows;
  const int64_t runs = parts(k, RSI_SPLIT_DEEP);
  j->t.runs = parts(runs, parts(runs, smaller(RSI_SPLIT_CHUNK / RSI_SPLIT_DEEP, larger(12, RSI_SPLIT_STAY / stay))));
  j->t.strips = part_of(stay, RSI_SPLIT_STAY / j->t.runs / 2 * 2);
  const int64_t stays = parts(stay, j->t.strips);
  const int threads = rsi_pool_threads(x->pool);
  const int64_t many = threads > 1 ? parts(EACH * threads, stays) : 1;
  const int64_t wanted = smaller(many, (int64_t)(split_ns(m, n, k) / (double)stays / TASK_NS));
  j->share = whole(parts(pass, larger(1, smaller(wanted, pass / LEAST_PASS))), 2);
  j->shares = parts(pass, j->share);
  j->tasks = stays * j->shares;
}

static int64_t lanes_of(const rsi_exec *x, const job *j) { return rsi_lane_count(rsi_pool_threads(x->pool), j->tasks); }

size_t rsi_split_scratch(const rsi_exec *x, int64_t m, int64_t n, int64_t k) {
  job j;
  if (m == 0 || n == 0) return 0;
  cut(&j, x, m, n, k);
  return (size_t)lanes_of(x, &j) * rsi_lane_round(rsi_split_room(&j.t));
}

static void run_task(void *arg, int64_t task, void *room) {
  const job *const j = arg;
  const int64_t stay = j->t.rows ? j->rows : j->columns, pass = j->t.rows ? j->columns : j->rows;
  const int64_t s0 = task / j->shares * j->t.strips, s1 = smaller(s0 + j->t.strips, stay);
  const int64_t p0 = task % j->shares * j->share, p1 = smaller(p0 + j->share, pass);
  if (j->t.rows) j->k->block(j->p, &j->t, s0, s1, p0, p1, room);
  else j->k->block(j->p, &j->t, p0, p1, s0, s1, room);
}

void rsi_split_run(const rsi_exec *x, const rsi_split_product *p, void *scratch) {
  job j = {.p = p};
  if (p->m == 0 || p->n == 0) return;
  cut(&j, x, p->m, p->n, p->k);
  rsi_lanes_run(x->pool, lanes_of(x, &j), j.tasks, run_task, &j, scratch, rsi_lane_round(rsi_split_room(&j.t)));
}
