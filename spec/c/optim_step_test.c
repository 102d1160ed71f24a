/*
** sgd_step and adam_step: they have no result, so no sample of the op table covers them. Every step is compared with the
** formulas written out element by element in double.
*/
#include "resin.h"
#include "resin_ops.h"
#include "test.h"
#include <stdlib.h>

enum { N = 4, STEPS = 4, MOST = 70001 };

static rs_ctx *ctx;
static const int sizes[N] = {MOST, 33, 1, 0};

typedef struct reference { double p[MOST], m[MOST], v[MOST]; int64_t step; } reference;
typedef struct state {
  rs_tensor *hyper, *steps, *p[N], *g[N], *m[N], *v[N];
} state;

static reference ref[N];
static double values[MOST];

static double noise(int i, int k) { return (double)((i * 7919 + k * 104729) % 2001 - 1000) / 1000.0; }

static rs_tensor *fresh(int dtype, int n, int k) {
  const int64_t shape[1] = {n};
  rs_tensor *t = NULL;
  for (int i = 0; i < n; i++) values[i] = k < 0 ? 0 : noise(i, k);
  if (rs_tensor_empty(ctx, dtype, 1, shape, &t) != RS_OK || rs_tensor_write(ctx, t, values) != RS_OK) abort();
  return t;
}

static void state_make(state *s, int dtype, int nhyper, const double *hyper) {
  s->hyper = fresh(RS_F64, nhyper, -1);
  rs_tensor_write(ctx, s->hyper, hyper);
  s->steps = fresh(RS_I64, N, -1);
  for (int i = 0; i < N; i++) {
    s->p[i] = fresh(dtype, sizes[i], i), s->m[i] = fresh(dtype, sizes[i], -1), s->v[i] = fresh(dtype, sizes[i], -1);
    for (int e = 0; e < sizes[i]; e++) ref[i].p[e] = noise(e, i), ref[i].m[e] = ref[i].v[e] = 0;
    ref[i].step = 0;
  }
}

static void state_release(state *s) {
  rs_tensor_release(s->hyper), rs_tensor_release(s->steps);
  for (int i = 0; i < N; i++) rs_tensor_release(s->p[i]), rs_tensor_release(s->m[i]), rs_tensor_release(s->v[i]);
}

/* Parameter 1 has no gradient in step 1. */
static int is_missing(int step, int i) { return step == 1 && i == 1; }

static rs_status take(const state *s, int op, const void *attrs, int dtype, int step, int groups) {
  rs_tensor *in[2 + 4 * N] = {s->hyper, s->steps}, *none[1];
  for (int i = 0; i < N; i++) {
    in[2 + i] = s->p[i];
    in[2 + N + i] = is_missing(step, i) ? NULL : fresh(dtype, sizes[i], 50 + 10 * step + i);
    in[2 + 2 * N + i] = s->m[i], in[2 + 3 * N + i] = s->v[i];
  }
  const rs_status status = rs_call(ctx, op, in, 2 + groups * N, attrs, none);
  for (int i = 0; i < N; i++) rs_tensor_release(in[2 + N + i]);
  return status;
}

/* The largest difference between the parameters and the reference, relative to 1. */
static double distance(const state *s) {
  double most = 0;
  for (int i = 0; i < N; i++) {
    if (rs_tensor_read(ctx, s->p[i], values) != RS_OK) return HUGE_VAL;
    for (int e = 0; e < sizes[i]; e++) most = fmax(most, fabs(values[e] - ref[i].p[e]));
  }
  return most;
}

static void sgd_reference(int step, const double *h, int nesterov, int maximize) {
  for (int i = 0; i < N; i++) {
    if (is_missing(step, i)) continue;
    reference *const r = &ref[i];
    r->step++;
    for (int e = 0; e < sizes[i]; e++) {
      const double g = (maximize ? -1 : 1) * noise(e, 50 + 10 * step + i) + h[3] * r->p[e];
      r->m[e] = r->step == 1 ? g : h[1] * r->m[e] + (1 - h[2]) * g;
      r->p[e] -= h[0] * (h[1] <= 0 ? g : nesterov ? g + h[1] * r->m[e] : r->m[e]);
    }
  }
}

static void adam_reference(int step, const double *h, int decoupled, int maximize) {
  for (int i = 0; i < N; i++) {
    if (is_missing(step, i)) continue;
    reference *const r = &ref[i];
    const double t = (double)++r->step;
    for (int e = 0; e < sizes[i]; e++) {
      const double g = (maximize ? -1 : 1) * noise(e, 50 + 10 * step + i) + (decoupled ? 0 : h[4] * r->p[e]);
      if (decoupled) r->p[e] *= 1 - h[0] * h[4];
      r->m[e] = h[1] * r->m[e] + (1 - h[1]) * g;
      r->v[e] = h[2] * r->v[e] + (1 - h[2]) * g * g;
      r->p[e] -= h[0] * (r->m[e] / (1 - pow(h[1], t))) / (sqrt(r->v[e] / (1 - pow(h[2], t))) + h[3]);
    }
  }
}

static void sgd_follows_its_formula(void) {
  static const double hyper[][4] = {{0.1, 0, 0, 0}, {0.1, 0, 0, 0.05}, {0.1, 0.9, 0, 0.05}, {0.1, 0.9, 0.3, 0}};
  for (int dtype = RS_F32; dtype <= RS_F64; dtype++)
    for (int k = 0; k < 4; k++)
      for (int variant = 0; variant < 3; variant++) {
        const rs_sgd_step_attrs attrs = {.n = N, .nesterov = variant == 1 && k == 2, .maximize = variant == 2};
        state s;
        state_make(&s, dtype, 4, hyper[k]);
        for (int step = 0; step < STEPS; step++) {
          ENSURE_OK(take(&s, RS_OP_sgd_step, &attrs, dtype, step, hyper[k][1] > 0 ? 3 : 2));
          sgd_reference(step, hyper[k], (int)attrs.nesterov, (int)attrs.maximize);
        }
        ENSURE_NEAR(distance(&s), 0, dtype == RS_F32 ? 2e-6 : 1e-14);
        state_release(&s);
      }
}

static void adam_follows_its_formula(void) {
  static const double hyper[][5] = {{0.01, 0.9, 0.999, 1e-8, 0}, {0.01, 0.8, 0.95, 1e-4, 0.1}};
  for (int dtype = RS_F32; dtype <= RS_F64; dtype++)
    for (int k = 0; k < 2; k++)
      for (int variant = 0; variant < 3; variant++) {
        const rs_adam_step_attrs attrs = {.n = N, .decoupled = variant == 1, .maximize = variant == 2};
        state s;
        state_make(&s, dtype, 5, hyper[k]);
        for (int step = 0; step < STEPS; step++) {
          ENSURE_OK(take(&s, RS_OP_adam_step, &attrs, dtype, step, 4));
          adam_reference(step, hyper[k], (int)attrs.decoupled, (int)attrs.maximize);
        }
        ENSURE_NEAR(distance(&s), 0, dtype == RS_F32 ? 2e-5 : 1e-12);
        ENSURE_OK(rs_tensor_read(ctx, s.steps, values));
        ENSURE_NUM(values[0], STEPS);
        ENSURE_NUM(values[1], STEPS - 1);
        state_release(&s);
      }
}

static void threads_do_not_matter(void) {
  static const double hyper[5] = {0.01, 0.9, 0.999, 1e-8, 0.1};
  const rs_adam_step_attrs attrs = {.n = N};
  state s[2];
  for (int t = 0; t < 2; t++) {
    ENSURE_OK(rs_set_num_threads(ctx, 1 + 2 * t));
    state_make(&s[t], RS_F32, 5, hyper);
    for (int step = 0; step < STEPS; step++) ENSURE_OK(take(&s[t], RS_OP_adam_step, &attrs, RS_F32, step, 4));
  }
  ENSURE_OK(rs_set_num_threads(ctx, 1));
  for (int i = 0; i < N; i++)
    ENSURE(sizes[i] == 0 ||
           memcmp(rs_tensor_data(s[0].p[i]), rs_tensor_data(s[1].p[i]), sizeof(float) * (size_t)sizes[i]) == 0);
  state_release(&s[0]), state_release(&s[1]);
}

/* A parameter, its gradient and its buffer in different orders of memory. */
static void strides_are_followed(void) {
  const int64_t shape[2] = {3, 5};
  const rs_list turned = {2, {1, 0}};
  const rs_permute_attrs permute = {turned};
  const rs_sgd_step_attrs attrs = {.n = 1};
  const double hyper[4] = {0.5, 0.5, 0, 0};
  rs_tensor *base, *p, *none[1], *h = fresh(RS_F64, 4, -1), *steps = fresh(RS_I64, 1, -1), *g, *b;
  const int64_t other[2] = {5, 3};
  double before[15], grad[15], after[15];
  rs_tensor_write(ctx, h, hyper);
  for (int i = 0; i < 15; i++) before[i] = i, grad[i] = 100 - i * i;
  ENSURE_OK(rs_tensor_empty(ctx, RS_F64, 2, other, &base));
  ENSURE_OK(rs_tensor_write(ctx, base, before));
  ENSURE_OK(rs_permute(ctx, base, &permute, &p));   /* [3, 5], columns first */
  ENSURE_OK(rs_tensor_empty(ctx, RS_F64, 2, shape, &g));
  ENSURE_OK(rs_tensor_write(ctx, g, grad));
  ENSURE_OK(rs_tensor_empty(ctx, RS_F64, 2, shape, &b));   /* its content is replaced in the first step */
  rs_tensor *const in[5] = {h, steps, p, g, b};
  ENSURE_OK(rs_call(ctx, RS_OP_sgd_step, in, 5, &attrs, none));
  ENSURE_OK(rs_tensor_read(ctx, base, after));
  for (int r = 0; r < 5; r++)
    for (int c = 0; c < 3; c++) ENSURE_NUM(after[r * 3 + c], before[r * 3 + c] - 0.5 * grad[c * 5 + r]);
  rs_tensor *const all[6] = {base, p, h, steps, g, b};
  for (int i = 0; i < 6; i++) rs_tensor_release(all[i]);
}

static void mistakes_are_named(void) {
  const rs_sgd_step_attrs one = {.n = 1};
  const double momentum[4] = {0.1, 0.9, 0, 0};
  rs_tensor *h = fresh(RS_F64, 4, -1), *steps = fresh(RS_I64, 1, -1), *p = fresh(RS_F32, 3, 0), *g = fresh(RS_F32, 4, 0), *none[1];
  rs_tensor *in[5] = {h, steps, p, g, NULL};
  ENSURE_STATUS(rs_call(ctx, RS_OP_sgd_step, in, 4, &one, none), RS_ERR_SHAPE);
  ENSURE_HAS(rs_last_error(), "gradient 0 has shape [4] but its parameter [3]");
  in[3] = p;
  ENSURE_STATUS(rs_call(ctx, RS_OP_sgd_step, in, 3, &one, none), RS_ERR_ARG);
  ENSURE_STATUS(rs_call(ctx, RS_OP_sgd_step, in, 5, &one, none), RS_ERR_ARG);
  ENSURE_HAS(rs_last_error(), "momentum buffer 0 is missing");
  rs_tensor_write(ctx, h, momentum);
  ENSURE_STATUS(rs_call(ctx, RS_OP_sgd_step, in, 4, &one, none), RS_ERR_ARG);
  ENSURE_HAS(rs_last_error(), "a momentum of 0.9 needs a buffer for each parameter");
  rs_tensor_release(h), rs_tensor_release(steps), rs_tensor_release(p), rs_tensor_release(g);
}

int main(void) {
  if (rs_ctx_create(NULL, &ctx) != RS_OK) return 1;
  RUN(sgd_follows_its_formula);
  RUN(adam_follows_its_formula);
  RUN(threads_do_not_matter);
  RUN(strides_are_followed);
  RUN(mistakes_are_named);
  rs_ctx_release(ctx);
  return TEST_RESULT();
}
