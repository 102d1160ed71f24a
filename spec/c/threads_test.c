/*
** Several threads at once: one program and its parameters with a workspace and a context each (a million runs too), eager training on shared
** parameters read only, tensors released by another thread than the one that made them, and results that do not depend on
** the number of threads of a context.
*/
#include "resin.h"
#include "resin_ops.h"
#include "test.h"
#include <pthread.h>
#include <string.h>

enum { THREADS = 8, RUNS = 200, IN = 24, HIDDEN = 40, BATCH = 5 };

static rs_ctx *ctx;
static rs_tensor *weight1, *bias1, *weight2;

static rs_tensor *random_tensor(rs_ctx *c, int ndim, int64_t a, int64_t b) {
  rs_normal_attrs at;
  rs_tensor *t = NULL;
  rs_normal_defaults(&at);
  at.shape = (rs_list){ndim, {a, b}};
  return rs_normal(c, &at, &t) == RS_OK ? t : NULL;
}

/* relu(x W1 + b1) W2 */
static rs_status network(rs_ctx *c, rs_tensor *x, rs_tensor **out) {
  rs_tensor *h = NULL, *r = NULL;
  rs_status status = rs_linear(c, x, weight1, bias1, &h);
  if (status == RS_OK) status = rs_relu(c, h, &r);
  if (status == RS_OK) status = rs_linear(c, r, weight2, NULL, out);
  rs_tensor_release(h), rs_tensor_release(r);
  return status;
}

typedef struct job {
  const rs_program *program;
  unsigned          seed;
  int               wrong, failed;
  rs_tensor        *made;
} job;

static void fill(double *values, int n, unsigned *seed) {
  for (int i = 0; i < n; i++) {
    *seed = *seed * 1664525u + 1013904223u;
    values[i] = (double)(*seed >> 8) / 16777216.0 - 0.5;
  }
}

static void *run_program(void *arg) {
  job *const j = arg;
  rs_ctx *mine;
  rs_workspace *w = NULL;
  const int64_t shape[2] = {BATCH, IN};
  rs_tensor *x = NULL;
  double in[BATCH * IN], got[BATCH * HIDDEN], want[BATCH * HIDDEN];
  if (rs_ctx_create(NULL, &mine) != RS_OK || rs_workspace_create(mine, j->program, &w) != RS_OK ||
      rs_tensor_empty(mine, RS_F32, 2, shape, &x) != RS_OK) {
    j->failed = 1;
    return NULL;
  }
  for (int r = 0; r < RUNS; r++) {
    rs_tensor *y = NULL, *expected = NULL;
    fill(in, BATCH * IN, &j->seed);
    if (rs_tensor_write(mine, x, in) != RS_OK || rs_program_run(j->program, w, &x, 1, &y, 1) != RS_OK ||
        network(mine, x, &expected) != RS_OK) j->failed = 1;
    else {
      rs_tensor_read(mine, y, got);
      rs_tensor_read(mine, expected, want);
      if (memcmp(got, want, sizeof(double) * BATCH * 4) != 0) j->wrong++;
    }
    rs_tensor_release(y), rs_tensor_release(expected);
  }
  j->made = x;              /* released by the main thread, after its context is gone */
  rs_workspace_release(w);
  rs_ctx_release(mine);
  return NULL;
}

static void *train(void *arg) {
  job *const j = arg;
  rs_ctx *mine;
  if (rs_ctx_create(NULL, &mine) != RS_OK) {
    j->failed = 1;
    return NULL;
  }
  rs_tensor *own = random_tensor(mine, 2, 4, IN);
  if (!own || rs_tensor_set_requires_grad(mine, own, 1) != RS_OK) j->failed = 1;
  for (int r = 0; r < RUNS && !j->failed; r++) {
    rs_tensor *y = NULL, *loss = NULL, *grad = NULL;
    if (network(mine, own, &y) != RS_OK || rs_sum(mine, y, NULL, &loss) != RS_OK || rs_backward(mine, loss, NULL, 0) != RS_OK ||
        rs_tensor_grad(mine, own, &grad) != RS_OK || !grad) j->failed = 1;
    rs_tensor_release(y), rs_tensor_release(loss), rs_tensor_release(grad);
    rs_zero_grads(mine, &own, 1);
  }
  j->made = own;
  rs_ctx_release(mine);
  return NULL;
}

static void run_all(void *(*body)(void *), const rs_program *program) {
  pthread_t threads[THREADS];
  job jobs[THREADS];
  memset(jobs, 0, sizeof jobs);
  for (int i = 0; i < THREADS; i++) {
    jobs[i].program = program;
    jobs[i].seed = (unsigned)i + 1;
    ENSURE(pthread_create(&threads[i], NULL, body, &jobs[i]) == 0);
  }
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < THREADS; i++) {
    rs_tensor_release(jobs[i].made);
    ENSURE(!jobs[i].failed);
    ENSURE_NUM(jobs[i].wrong, 0);
  }
}

static void threads_share_a_program(void) {
  rs_program *program = NULL;
  rs_tensor *y = NULL, *x = random_tensor(ctx, 2, BATCH, IN);
  ENSURE_OK(rs_trace_begin(ctx, &x, 1));
  ENSURE_OK(network(ctx, x, &y));
  ENSURE_OK(rs_trace_end(ctx, &y, 1, &program));
  ENSURE_NUM(rs_program_length(program), 3);
  run_all(run_program, program);
  rs_program_release(program);
  rs_tensor_release(x), rs_tensor_release(y);
}

/* ---- a million runs ---------------------------------------------------------------------------------------------------- */

enum { TIMES = 500000, KINDS = 8, FEW = 4 };      /* runs of each of two threads; inputs that take turns; numbers of an input */

static rs_tensor *small_weight, *small_bias;

/* relu(x W + b) (W + W): the last factor is made in the prologue. */
static rs_status small_network(rs_ctx *c, rs_tensor *x, rs_tensor **out) {
  rs_tensor *h = NULL, *r = NULL, *w = NULL;
  rs_status status = rs_linear(c, x, small_weight, small_bias, &h);
  if (status == RS_OK) status = rs_relu(c, h, &r);
  if (status == RS_OK) status = rs_add(c, small_weight, small_weight, NULL, &w);
  if (status == RS_OK) status = rs_linear(c, r, w, NULL, out);
  rs_tensor_release(h), rs_tensor_release(r), rs_tensor_release(w);
  return status;
}

typedef struct many {
  const rs_program *program;
  unsigned          seed;
  int               wrong, failed;
} many;

static rs_status prepare_inputs(many *m, rs_ctx *mine, rs_tensor **in, float want[][FEW]) {
  const int64_t shape[2] = {1, FEW};
  double values[FEW];
  for (int i = 0; i < KINDS; i++) {
    rs_tensor *y = NULL;
    fill(values, FEW, &m->seed);
    rs_status status = rs_tensor_empty(mine, RS_F32, 2, shape, &in[i]);
    if (status == RS_OK) status = rs_tensor_write(mine, in[i], values);
    if (status == RS_OK) status = small_network(mine, in[i], &y);
    if (status != RS_OK) return status;
    memcpy(want[i], rs_tensor_data(y), FEW * sizeof(float));
    rs_tensor_release(y);
  }
  return RS_OK;
}

static void *run_many(void *arg) {
  many *const m = arg;
  rs_ctx *mine;
  rs_workspace *w = NULL;
  rs_tensor *in[KINDS] = {NULL}, *y = NULL;
  float want[KINDS][FEW];
  if (rs_ctx_create(NULL, &mine) != RS_OK || rs_workspace_create(mine, m->program, &w) != RS_OK ||
      prepare_inputs(m, mine, in, want) != RS_OK) {
    m->failed = 1;
    return NULL;
  }
  const double before = rs_ctx_stats(mine)->allocations;
  for (int r = 0; r < TIMES && !m->failed; r++) {
    const int k = r % KINDS;
    if (rs_program_run(m->program, w, &in[k], 1, &y, 1) != RS_OK) m->failed = 1;
    else {
      const float *const got = rs_tensor_data(y);
      for (int i = 0; i < FEW; i++) m->wrong += !(got[i] >= want[k][i] - 1e-5f && got[i] <= want[k][i] + 1e-5f);
      rs_tensor_release(y);
    }
  }
  m->failed |= rs_ctx_stats(mine)->allocations > before;
  for (int i = 0; i < KINDS; i++) rs_tensor_release(in[i]);
  rs_workspace_release(w);
  rs_ctx_release(mine);
  return NULL;
}

static void two_threads_run_a_program_a_million_times(void) {
  rs_program *program = NULL;
  rs_tensor *y = NULL, *x = random_tensor(ctx, 2, 1, FEW);
  pthread_t threads[2];
  many m[2];
  small_weight = random_tensor(ctx, 2, FEW, FEW);
  small_bias = random_tensor(ctx, 1, FEW, 0);
  ENSURE_OK(rs_trace_begin(ctx, &x, 1));
  ENSURE_OK(small_network(ctx, x, &y));
  ENSURE_OK(rs_trace_end(ctx, &y, 1, &program));
  ENSURE_OK(rs_program_optimize(program, ~0u, RS_F32));
  rs_tensor_release(x), rs_tensor_release(y);
  for (int i = 0; i < 2; i++) {
    m[i] = (many){.program = program, .seed = (unsigned)(100 + i)};
    ENSURE(pthread_create(&threads[i], NULL, run_many, &m[i]) == 0);
  }
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < 2; i++) {
    ENSURE(!m[i].failed);
    ENSURE_NUM(m[i].wrong, 0);
  }
  rs_program_release(program);
  rs_tensor_release(small_weight), rs_tensor_release(small_bias);
}

static void threads_train_beside_each_other(void) { run_all(train, NULL); }

static void results_do_not_depend_on_the_number_of_threads(void) {
  rs_tensor *a = random_tensor(ctx, 2, 301, 257), *b = random_tensor(ctx, 2, 257, 199);
  static double first[301 * 199], other[301 * 199];
  for (int threads = 1; threads <= 4; threads++) {
    rs_tensor *c = NULL, *d = NULL, *e = NULL;
    double *const into = threads == 1 ? first : other;
    ENSURE_OK(rs_set_num_threads(ctx, threads));
    ENSURE_OK(rs_matmul(ctx, a, b, NULL, &c));
    ENSURE_OK(rs_tanh(ctx, c, &d));
    ENSURE_OK(rs_softmax(ctx, d, NULL, &e));
    ENSURE_OK(rs_tensor_read(ctx, e, into));
    ENSURE(memcmp(first, into, sizeof first) == 0);
    rs_tensor_release(c), rs_tensor_release(d), rs_tensor_release(e);
  }
  ENSURE_OK(rs_set_num_threads(ctx, 1));
  rs_tensor_release(a), rs_tensor_release(b);
}

static double blocks_at_first;

static void nothing_is_left(void) { ENSURE_NUM(rs_ctx_stats(ctx)->live_blocks, blocks_at_first); }

int main(void) {
  if (rs_ctx_create(NULL, &ctx) != RS_OK) return 1;
  blocks_at_first = rs_ctx_stats(ctx)->live_blocks;
  rs_seed(ctx, 7);
  weight1 = random_tensor(ctx, 2, HIDDEN, IN);
  bias1 = random_tensor(ctx, 1, HIDDEN, 0);
  weight2 = random_tensor(ctx, 2, 4, HIDDEN);
  RUN(threads_share_a_program);
  RUN(two_threads_run_a_program_a_million_times);
  RUN(threads_train_beside_each_other);
  RUN(results_do_not_depend_on_the_number_of_threads);
  rs_tensor_release(weight1), rs_tensor_release(bias1), rs_tensor_release(weight2);
  RUN(nothing_is_left);
  rs_ctx_release(ctx);
  return TEST_RESULT();
}
