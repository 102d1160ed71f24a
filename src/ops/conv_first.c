/*
** Which convolutions of plain images kernels/conv_first.c computes: those of few channels, of which a form that goes along the channels
** gets nothing. A task is some rows of the result; tasks and results depend on the shape only.
*/
#include "ops/conv_first.h"
#include "ops/weight_pairs.h"
#include <math.h>

enum { MOST_CHANNELS = 4, TASK_NS = 6000, MOST_TASKS = 64 };

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t taps(const rsi_conv_call *k) { return k->s.c * k->s.kh * k->s.kw; }

bool rsi_conv_first_accepts(const rsi_exec *x, const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const int64_t L = x->k->conv_first->lanes;
  if (k->kind != RSI_CONV_FORWARD || k->x_dtype != RS_F32 || k->y_dtype != RS_F32 || k->x_block != 1 || k->y_block != L) return false;
  if (s->groups != 1 || s->n == 0 || s->c == 0 || s->c > MOST_CHANNELS || s->o == 0 || s->h == 0 || s->w == 0) return false;
  return s->oh > 0 && s->ow >= x->k->conv_first->wide && s->sw <= 2 && s->dw == 1 && s->kw <= RSI_FIRST_KW &&
         s->c * s->kh <= RSI_FIRST_ROWS;
}

/* ---- weights ------------------------------------------------------------------------------------------------------------- */

static size_t weight_bytes(const rsi_exec *x, const rsi_conv_call *k) { return rsi_pairs_bytes(k->s.o, taps(k), x->k->conv_first->lanes); }

size_t rsi_conv_first_pack_bytes(const rsi_exec *x, const rsi_conv_call *k, uint64_t *layout) {
  *layout = (uint64_t)(x->k->conv_first->lanes << 56 | taps(k) << 28 | k->s.o);
  return weight_bytes(x, k);
}

void rsi_conv_first_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed, void *scratch) {
  (void)scratch;
  rsi_pairs_lay(k->s.o, taps(k), x->k->conv_first->lanes, weight, packed);
}

/* ---- a run --------------------------------------------------------------------------------------------------------------- */

typedef struct first_job { const rsi_k_conv_first *k; rsi_conv_first s; int64_t rows, tasks; } first_job;

static first_job job_of(const rsi_exec *x, const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const int64_t L = x->k->conv_first->lanes;
  first_job j = {.k = x->k->conv_first, .rows = s->n * s->oh};
  j.s = (rsi_conv_first){.channels = s->c, .h = s->h, .w = s->w, .oh = s->oh, .ow = s->ow, .kh = s->kh, .kw = s->kw, .sh = s->sh,
                         .sw = s->sw, .ph = s->ph, .pw = s->pw, .dh = s->dh, .groups = divide_up(s->o, L),
                         .low = k->act == RSI_CONV_NO_ACT ? -INFINITY : 0, .high = k->act == RSI_CONV_RELU6 ? 6 : INFINITY};
  const double ns = 0.18 * (double)(j.rows * s->ow * taps(k) * j.s.groups);         /* measured: a product of a number and a vector */
  const int64_t tasks = ns / TASK_NS < MOST_TASKS ? (int64_t)(ns / TASK_NS) + 1 : MOST_TASKS;
  j.tasks = tasks < j.rows ? tasks : j.rows;
  return j;
}

static size_t strip_bytes(const first_job *j) { return rsi_lane_round((size_t)rsi_first_strip(&j->s, j->k->wide) * sizeof(float)); }

size_t rsi_conv_first_bytes(const rsi_exec *x, const rsi_conv_call *k) {
  const first_job j = job_of(x, k);
  return rsi_pairs_bias_bytes(k->s.o, j.k->lanes) + (k->packed ? 0 : weight_bytes(x, k)) +
         (size_t)rsi_lane_count(rsi_pool_threads(x->pool), j.tasks) * strip_bytes(&j);
}

static void first_task(void *arg, int64_t task, void *strip) {
  const first_job *const j = arg;
  j->k->rows(&j->s, j->rows * task / j->tasks, j->rows * (task + 1) / j->tasks, strip);
}

void rsi_conv_first_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch) {
  first_job j = job_of(x, k);
  const int64_t L = j.k->lanes;
  char *at = (char *)scratch + rsi_pairs_bias_bytes(k->s.o, L);
  j.s.x = data->x, j.s.y = data->y, j.s.u = data->w, j.s.residual = data->residual;
  j.s.bias = rsi_pairs_bias(k->s.o, L, data->bias, scratch);
  if (!k->packed) {
    rsi_pairs_lay(k->s.o, taps(k), L, data->w, (float *)(void *)at);
    j.s.u = (const float *)(void *)at;
    at += weight_bytes(x, k);
  }
  rsi_lanes_run(x->pool, rsi_lane_count(rsi_pool_threads(x->pool), j.tasks), j.tasks, first_task, &j, at, strip_bytes(&j));
}
