/*
** Recording and replay at their edges: arguments of another form, aliases, failures in the middle, contexts that go away; runs in
** steps, bindings that changed, the prologue, memory that programs share.
*/
#include "resin.h"
#include "resin_ops.h"
#include "test.h"
#include <string.h>

static rs_ctx *ctx;

static rs_tensor *make(int dtype, int ndim, int64_t a, int64_t b, double first) {
  const int64_t shape[2] = {a, b};
  rs_tensor *t = NULL;
  double values[64];
  if (rs_tensor_empty(ctx, dtype, ndim, shape, &t) != RS_OK) return NULL;
  for (int i = 0; i < 64; i++) values[i] = first + i;
  rs_tensor_write(ctx, t, values);
  return t;
}

/* A program of x + x, or of x.add_(y). */
static rs_program *record_double(rs_tensor *x) {
  rs_tensor *y = NULL;
  rs_program *p = NULL;
  if (rs_trace_begin(ctx, &x, 1) == RS_OK && rs_add(ctx, x, x, NULL, &y) == RS_OK) rs_trace_end(ctx, &y, 1, &p);
  rs_tensor_release(y);
  return p;
}

static void arguments_must_have_the_recorded_form(void) {
  rs_tensor *x = make(RS_F32, 2, 3, 4, 0), *y = NULL;
  rs_program *p = record_double(x);
  rs_workspace *w = NULL;
  ENSURE(p != NULL);
  ENSURE_OK(rs_workspace_create(ctx, p, &w));
  rs_tensor *others[4] = {make(RS_F64, 2, 3, 4, 0), make(RS_F32, 2, 4, 3, 0), make(RS_F32, 1, 12, 0, 0), make(RS_F64, 2, 0, 3, 0)};
  for (int i = 0; i < 4; i++) {
    ENSURE_STATUS(rs_program_run(p, w, &others[i], 1, &y, 1), RS_ERR_SHAPE);
    ENSURE_HAS(rs_last_error(), "record again");
    rs_tensor_release(others[i]);
  }
  double out[12];
  ENSURE_OK(rs_program_run(p, w, &x, 1, &y, 1));
  ENSURE_OK(rs_tensor_read(ctx, y, out));
  ENSURE_NUM(out[11], 22);
  rs_tensor_release(y), rs_tensor_release(x);
  rs_workspace_release(w), rs_program_release(p);
}

static void a_program_that_writes_its_input_refuses_aliases(void) {
  rs_tensor *both[2] = {make(RS_F32, 1, 4, 0, 1), make(RS_F32, 1, 4, 0, 10)}, *out = NULL;
  rs_program *p = NULL;
  rs_workspace *w = NULL;
  double values[4];
  ENSURE_OK(rs_trace_begin(ctx, both, 2));
  ENSURE_OK(rs_call_inplace(ctx, RS_OP_add, both, 2, NULL));
  ENSURE_OK(rs_trace_end(ctx, both, 1, &p));
  ENSURE_OK(rs_workspace_create(ctx, p, &w));
  ENSURE_OK(rs_program_run(p, w, both, 2, &out, 1));
  ENSURE_OK(rs_tensor_read(ctx, both[0], values));
  ENSURE_NUM(values[0], 11);          /* recording computed nothing */
  rs_tensor_release(out);
  rs_tensor *same[2] = {both[0], both[0]};
  ENSURE_STATUS(rs_program_run(p, w, same, 2, &out, 1), RS_ERR_ARG);
  ENSURE_HAS(rs_last_error(), "share memory");
  rs_tensor_release(both[0]), rs_tensor_release(both[1]);
  rs_workspace_release(w), rs_program_release(p);
}

static void a_run_refuses_what_its_last_run_left(void) {
  rs_tensor *x = make(RS_F32, 1, 4, 0, 1), *y = NULL, *z = NULL, *view = NULL, *copy = NULL;
  rs_program *p = record_double(x);
  rs_workspace *w = NULL, *other = NULL;
  double values[4];
  ENSURE(p != NULL);
  ENSURE_OK(rs_workspace_create(ctx, p, &w));
  ENSURE_OK(rs_program_run(p, w, &x, 1, &y, 1));
  ENSURE_STATUS(rs_program_run(p, w, &y, 1, &z, 1), RS_ERR_ARG);
  ENSURE_HAS(rs_last_error(), "input 0 is result 0");
  ENSURE_HAS(rs_last_error(), "rs_program_call");
  ENSURE_STATUS(rs_program_call(p, w, &y, 1, &z, 1), RS_ERR_ARG);
  ENSURE_STATUS(rs_program_begin(p, w, &y, 1), RS_ERR_ARG);
  ENSURE_OK(rs_tensor_detach(ctx, y, &view));
  ENSURE_STATUS(rs_program_run(p, w, &view, 1, &z, 1), RS_ERR_ARG);
  ENSURE_OK(rs_tensor_read(ctx, y, values));      /* nothing ran */
  ENSURE_NUM(values[3], 8);
  ENSURE_OK(rs_workspace_create_beside(ctx, p, w, &other));
  ENSURE_OK(rs_program_run(p, other, &y, 1, &z, 1));
  ENSURE_OK(rs_tensor_read(ctx, z, values));
  ENSURE_NUM(values[3], 16);
  rs_tensor_release(z);
  ENSURE_OK(rs_copy(ctx, y, &copy));
  ENSURE_OK(rs_program_run(p, w, &copy, 1, &z, 1));
  ENSURE_OK(rs_tensor_read(ctx, z, values));
  ENSURE_NUM(values[3], 16);
  rs_tensor_release(y), rs_tensor_release(z), rs_tensor_release(view), rs_tensor_release(copy);
  ENSURE_OK(rs_program_call(p, w, &x, 1, &y, 1)); /* the caller's: may come back */
  for (int i = 0; i < 3; i++) {
    ENSURE_OK(rs_program_call(p, w, &y, 1, &z, 1));
    rs_tensor_release(y), y = z;
  }
  ENSURE_OK(rs_tensor_read(ctx, y, values));
  ENSURE_NUM(values[0], 16);
  rs_tensor_release(x), rs_tensor_release(y);
  rs_workspace_release(w), rs_workspace_release(other), rs_program_release(p);
}

/* Of a tensor that was made while a program was recorded there is only the form: whoever wants its values is refused. */
static void what_has_no_values_is_refused(void) {
  rs_tensor *x = make(RS_F32, 1, 4, 0, 1), *kept = NULL, *y = NULL, *leaf = make(RS_F32, 1, 4, 0, 1), *loss = NULL, *z = NULL;
  rs_program *p = NULL;
  rs_workspace *w = NULL;
  double values[4] = {0};
  const char *const names[1] = {"kept"};
  ENSURE_OK(rs_trace_begin(ctx, &x, 1));
  ENSURE_OK(rs_add(ctx, x, x, NULL, &kept));
  ENSURE_OK(rs_add(ctx, kept, x, NULL, &y));
  ENSURE_OK(rs_trace_end(ctx, &y, 1, &p));
  ENSURE_OK(rs_workspace_create(ctx, p, &w));
  ENSURE(rs_tensor_data(kept) == NULL);
  ENSURE_STATUS(rs_tensor_item(ctx, kept, values), RS_ERR_STATE);
  ENSURE_STATUS(rs_tensor_read(ctx, kept, values), RS_ERR_STATE);
  ENSURE_STATUS(rs_tensor_write(ctx, kept, values), RS_ERR_STATE);
  ENSURE_STATUS(rs_tensor_set_data(ctx, leaf, kept), RS_ERR_STATE);
  ENSURE_STATUS(rs_file_save(ctx, "/nowhere/kept", names, &kept, 1, NULL, NULL, 0), RS_ERR_STATE);
  ENSURE_HAS(rs_last_error(), "\"kept\"");
  ENSURE_HAS(rs_last_error(), "no values");
  ENSURE_STATUS(rs_program_run(p, w, &kept, 1, &z, 1), RS_ERR_STATE);
  ENSURE_STATUS(rs_program_begin(p, w, &kept, 1), RS_ERR_STATE);
  ENSURE_STATUS(rs_add(ctx, kept, x, NULL, &z), RS_ERR_STATE);
  ENSURE_OK(rs_tensor_set_requires_grad(ctx, leaf, 1));
  ENSURE_STATUS(rs_tensor_set_grad(ctx, leaf, kept), RS_ERR_STATE);
  ENSURE_OK(rs_add(ctx, leaf, leaf, NULL, &loss));
  ENSURE_STATUS(rs_backward(ctx, loss, kept, 0), RS_ERR_STATE);
  ENSURE_STATUS(rs_grad(ctx, loss, kept, &leaf, 1, 0, &z), RS_ERR_STATE);
  rs_tensor_release(loss), rs_tensor_release(leaf), rs_tensor_release(kept), rs_tensor_release(y), rs_tensor_release(x);
  rs_workspace_release(w), rs_program_release(p);
}

static void a_failed_op_spoils_the_recording_cleanly(void) {
  rs_tensor *x = make(RS_F32, 2, 3, 4, 0);
  const double before = rs_ctx_stats(ctx)->live_blocks;
  for (int k = 1; k < 40; k++) {
    rs_tensor *y = NULL;
    rs_program *p = NULL;
    rs_fail_allocation(ctx, k, 0);
    rs_status status = rs_trace_begin(ctx, &x, 1);
    if (status == RS_OK) status = rs_add(ctx, x, x, NULL, &y);
    const rs_status ended = rs_trace_end(ctx, &y, y ? 1 : 0, &p);
    rs_fail_allocation(ctx, 0, 0);
    if (status == RS_OK && ended == RS_OK) {
      rs_workspace *w = NULL;
      ENSURE_OK(rs_workspace_create(ctx, p, &w));
      rs_workspace_release(w);
    }
    rs_tensor_release(y);
    rs_program_release(p);
    ENSURE(!rs_is_tracing(ctx));
    ENSURE_NUM(rs_ctx_stats(ctx)->live_blocks, before);
  }
  rs_tensor_release(x);
}

static void a_context_may_go_while_it_records(void) {
  rs_ctx *other;
  rs_tensor *x = NULL, *y = NULL;
  const int64_t shape[1] = {4};
  ENSURE_OK(rs_ctx_create(NULL, &other));
  ENSURE_OK(rs_tensor_empty(other, RS_F32, 1, shape, &x));
  ENSURE_OK(rs_trace_begin(other, &x, 1));
  ENSURE_OK(rs_add(other, x, x, NULL, &y));
  rs_ctx_release(other);
  rs_tensor_release(x), rs_tensor_release(y);     /* a leak would be reported by the sanitizer's run */
}

/* ---- runs in steps, guards, prologue, shared memory ------------------------------------------------------------------- */

static rs_tensor *weight;

/* y = (x * w + x) * (w * 2): the last factor depends on the binding w alone. */
static rs_program *record_chain(rs_tensor *x, bool optimised) {
  rs_tensor *t[5] = {NULL};
  rs_program *p = NULL;
  if (rs_trace_begin(ctx, &x, 1) == RS_OK && rs_mul(ctx, x, weight, NULL, &t[0]) == RS_OK && rs_add(ctx, t[0], x, NULL, &t[1]) == RS_OK &&
      rs_add(ctx, weight, weight, NULL, &t[2]) == RS_OK && rs_mul(ctx, t[1], t[2], NULL, &t[3]) == RS_OK)
    rs_trace_end(ctx, &t[3], 1, &p);
  for (int i = 0; i < 5; i++) rs_tensor_release(t[i]);
  if (p && optimised && rs_program_optimize(p, ~0u, RS_F32) != RS_OK) {
    rs_program_release(p);
    return NULL;
  }
  return p;
}

static double chain_of(double x, double w) { return (x * w + x) * 2 * w; }

static double first_of(rs_tensor *t) {
  double values[64];
  return rs_tensor_read(ctx, t, values) == RS_OK ? values[0] : (double)NAN;
}

static void set_weight(double first) {
  const double values[4] = {first, first + 1, first + 2, first + 3};
  rs_tensor_write(ctx, weight, values);
}

static void a_run_may_go_in_steps(void) {
  rs_tensor *x = make(RS_F32, 1, 4, 0, 3), *y = NULL;
  rs_workspace *w = NULL;
  weight = make(RS_F32, 1, 4, 0, 2);
  rs_program *p = record_chain(x, false);
  ENSURE(p != NULL);
  ENSURE_OK(rs_workspace_create(ctx, p, &w));
  ENSURE_STATUS(rs_program_step(p, w, 1), RS_ERR_STATE);
  ENSURE_HAS(rs_last_error(), "no run in steps is under way");
  ENSURE_STATUS(rs_program_finish(p, w, &y, 1), RS_ERR_STATE);
  ENSURE_OK(rs_program_begin(p, w, &x, 1));
  ENSURE_STATUS(rs_program_run(p, w, &x, 1, &y, 1), RS_ERR_STATE);
  ENSURE_HAS(rs_last_error(), "finish or cancel it first");
  ENSURE_STATUS(rs_program_begin(p, w, &x, 1), RS_ERR_STATE);
  ENSURE_STATUS(rs_program_finish(p, w, &y, 1), RS_ERR_STATE);
  ENSURE_HAS(rs_last_error(), "not at its end yet");
  int steps = 1;
  rs_tensor_release(x);                /* the run holds it */
  while (rs_program_step(p, w, 1e-3) == RS_MORE) steps++;
  ENSURE_NUM(steps, 4);                /* at least one instruction each, and never more with so small a budget */
  ENSURE_OK(rs_program_finish(p, w, &y, 1));
  ENSURE_NUM(first_of(y), chain_of(3, 2));
  rs_tensor_release(y);
  x = make(RS_F32, 1, 4, 0, 5);
  ENSURE_OK(rs_program_begin(p, w, &x, 1));
  ENSURE_STATUS(rs_program_step(p, w, 1e-3), RS_MORE);
  rs_program_cancel(p, w);
  rs_program_cancel(p, w);
  ENSURE_STATUS(rs_program_step(p, w, 0), RS_ERR_STATE);
  ENSURE_OK(rs_program_run(p, w, &x, 1, &y, 1));
  ENSURE_NUM(first_of(y), chain_of(5, 2));
  rs_tensor_release(y);
  ENSURE_OK(rs_program_begin(p, w, &x, 1));
  ENSURE_OK(rs_set_num_threads(ctx, 2));
  ENSURE_STATUS(rs_program_step(p, w, 0), RS_ERR_STATE);
  ENSURE_HAS(rs_last_error(), "begin again");
  ENSURE_OK(rs_set_num_threads(ctx, 1));
  ENSURE_OK(rs_program_begin(p, w, &x, 1));       /* and goes while a run is under way */
  rs_workspace_release(w), rs_program_release(p);
  rs_tensor_release(x), rs_tensor_release(weight);
}

static void the_prologue_follows_its_bindings(void) {
  rs_tensor *x = make(RS_F32, 1, 4, 0, 3), *y = NULL;
  rs_workspace *w = NULL;
  rs_program_info info;
  weight = make(RS_F32, 1, 4, 0, 2);
  rs_program *p = record_chain(x, true);
  ENSURE(p != NULL);
  rs_program_describe(p, &info);
  ENSURE(info.prologue >= 1);
  ENSURE_STATUS(rs_workspace_create(ctx, p, &w), RS_OK);
  ENSURE_STATUS(rs_program_optimize(p, ~0u, RS_F32), RS_ERR_STATE);
  for (int i = 0; i < 4; i++) {
    set_weight(i + 1);
    for (int again = 0; again < 2; again++) {
      ENSURE_OK(rs_program_run(p, w, &x, 1, &y, 1));
      ENSURE_NUM(first_of(y), chain_of(3, i + 1));
      rs_tensor_release(y);
    }
  }
  float *const raw = rs_tensor_data(weight);
  raw[0] = 10;
  rs_workspace_refresh(w);
  ENSURE_OK(rs_program_run(p, w, &x, 1, &y, 1));
  ENSURE_NUM(first_of(y), chain_of(3, 10));
  rs_tensor_release(y);
  rs_workspace_release(w), rs_program_release(p);
  rs_tensor_release(x), rs_tensor_release(weight);
}

static void a_binding_must_be_as_it_was(void) {
  rs_tensor *x = make(RS_F32, 1, 4, 0, 3), *other = make(RS_F32, 1, 4, 0, 1), *wide = make(RS_F64, 1, 4, 0, 1), *y = NULL;
  rs_tensor *one = make(RS_F32, 1, 1, 0, 1);
  rs_workspace *w = NULL;
  weight = make(RS_F32, 1, 4, 0, 2);
  rs_program *p = record_chain(x, false);
  ENSURE(p != NULL);
  ENSURE_OK(rs_workspace_create(ctx, p, &w));
  ENSURE(rs_program_reads(p, weight) && !rs_program_reads(p, x) && !rs_program_reads(p, other));
  ENSURE(rs_tensor_was_recorded(weight) && !rs_tensor_was_recorded(other));
  rs_tensor *const wrong[3] = {other, wide, one};
  static const char *const text[3] = {"given other memory", "is f64 [4], but was recorded as f32 [4]", "is f32 [1], but was recorded as f32 [4]"};
  for (int i = 0; i < 3; i++) {
    rs_tensor *former = make(RS_F32, 1, 4, 0, 2);
    ENSURE_OK(rs_tensor_set_data(ctx, weight, wrong[i]));
    ENSURE(rs_program_run(p, w, &x, 1, &y, 1) != RS_OK);
    ENSURE_HAS(rs_last_error(), text[i]);
    ENSURE_HAS(rs_last_error(), "record again");
    rs_tensor_release(former);
  }
  ENSURE_OK(rs_tensor_set_data(ctx, weight, other));
  rs_workspace_release(w), rs_program_release(p);
  rs_tensor_release(x), rs_tensor_release(other), rs_tensor_release(wide), rs_tensor_release(one), rs_tensor_release(weight);
}

static void workspaces_share_an_arena(void) {
  rs_tensor *x[3] = {make(RS_F32, 1, 4, 0, 3), make(RS_F32, 2, 4, 4, 1), make(RS_F32, 2, 16, 4, 2)}, *y = NULL;
  rs_program *p[3];
  rs_workspace *w[3] = {NULL};
  weight = make(RS_F32, 1, 4, 0, 2);
  for (int i = 0; i < 3; i++) {
    p[i] = record_chain(x[i], false);
    ENSURE(p[i] != NULL);
    ENSURE_OK(rs_workspace_create_beside(ctx, p[i], i ? w[i - 1] : NULL, &w[i]));
  }
  for (int round = 0; round < 6; round++) {
    const int i = round % 3;
    ENSURE_OK(rs_program_run(p[i], w[i], &x[i], 1, &y, 1));
    ENSURE_NUM(first_of(y), chain_of(i == 0 ? 3 : i, 2));
    rs_tensor_release(y);
  }
  ENSURE_OK(rs_program_begin(p[0], w[0], &x[0], 1));
  ENSURE_STATUS(rs_program_step(p[0], w[0], 1e-3), RS_MORE);
  ENSURE_STATUS(rs_program_run(p[1], w[1], &x[1], 1, &y, 1), RS_ERR_STATE);
  ENSURE_HAS(rs_last_error(), "shares its memory");
  rs_workspace *more = NULL;
  ENSURE_STATUS(rs_workspace_create_beside(ctx, p[2], w[2], &more), RS_ERR_STATE);
  rs_workspace_release(w[2]);          /* any of them may go */
  ENSURE_OK(rs_program_step(p[0], w[0], 0));
  ENSURE_OK(rs_program_finish(p[0], w[0], &y, 1));
  ENSURE_NUM(first_of(y), chain_of(3, 2));
  rs_tensor_release(y);
  rs_workspace_release(w[0]);
  ENSURE_OK(rs_program_run(p[1], w[1], &x[1], 1, &y, 1));
  ENSURE_NUM(first_of(y), chain_of(1, 2));
  rs_tensor_release(y);
  rs_workspace_release(w[1]);
  for (int i = 0; i < 3; i++) rs_program_release(p[i]), rs_tensor_release(x[i]);
  rs_tensor_release(weight);
}

static void a_run_allocates_nothing(void) {
  const double sevens[4] = {7, 7, 7, 7};
  rs_tensor *x = make(RS_F32, 1, 4, 0, 3), *y = NULL, *z = NULL;
  rs_workspace *w = NULL;
  weight = make(RS_F32, 1, 4, 0, 2);
  rs_program *p = record_chain(x, true);
  ENSURE(p != NULL);
  ENSURE_OK(rs_workspace_create(ctx, p, &w));
  ENSURE_OK(rs_program_run(p, w, &x, 1, &y, 1));
  const double before = rs_ctx_stats(ctx)->allocations;
  for (int i = 0; i < 1000; i++) {
    ENSURE_OK(rs_program_run(p, w, &x, 1, &z, 1));
    ENSURE(z == y);                    /* the workspace's own, overwritten by each run */
    rs_tensor_release(z);
  }
  ENSURE_NUM(rs_ctx_stats(ctx)->allocations, before);
  ENSURE_OK(rs_program_call(p, w, &x, 1, &z, 1));
  ENSURE(z == y);                      /* given away: ours now */
  ENSURE_OK(rs_tensor_write(ctx, z, sevens));
  rs_tensor_release(z);
  ENSURE_OK(rs_program_run(p, w, &x, 1, &z, 1));
  ENSURE(z != y && !rs_tensor_same_storage(z, y));
  ENSURE_NUM(first_of(y), 7);
  ENSURE_NUM(first_of(z), chain_of(3, 2));
  rs_tensor_release(y), rs_tensor_release(z), rs_tensor_release(x), rs_tensor_release(weight);
  rs_workspace_release(w), rs_program_release(p);
}

/* A kernel that asks for no scratch memory must get none: an optimiser's step of few elements goes another way then. */
static void scratch_is_given_where_it_was_asked_for(void) {
  enum { N = 40 };
  rs_tensor *in[2 + 2 * N], *none = NULL;
  rs_sgd_step_attrs at;
  rs_program *p = NULL;
  rs_workspace *w = NULL;
  const double hyper[4] = {0.5, 0, 0, 0};
  rs_sgd_step_defaults(&at);
  at.n = N;
  in[0] = make(RS_F64, 1, 4, 0, 0);
  ENSURE_OK(rs_tensor_write(ctx, in[0], hyper));
  in[1] = make(RS_I64, 1, N, 0, 0);
  for (int i = 0; i < 2 * N; i++) in[2 + i] = make(RS_F32, 1, 1, 0, i < N ? 10 : 1);
  const double blocks = rs_ctx_stats(ctx)->live_blocks;
  ENSURE_OK(rs_trace_begin(ctx, NULL, 0));
  ENSURE_OK(rs_call(ctx, RS_OP_sgd_step, in, 2 + 2 * N, &at, &none));
  ENSURE_OK(rs_trace_end(ctx, NULL, 0, &p));
  ENSURE_OK(rs_workspace_create(ctx, p, &w));
  for (int i = 0; i < 3; i++) ENSURE_OK(rs_program_run(p, w, NULL, 0, NULL, 0));
  ENSURE_NUM(first_of(in[2 + N - 1]), 10 - 3 * 0.5);
  rs_workspace_release(w), rs_program_release(p);
  ENSURE_NUM(rs_ctx_stats(ctx)->live_blocks, blocks);
  for (int i = 0; i < 2 + 2 * N; i++) rs_tensor_release(in[i]);
}

static void profiling_notes_what_runs(void) {
  enum { MOST = 6 };
  rs_profile_event events[MOST];
  double dropped = -1;
  rs_tensor *x = make(RS_F32, 1, 4, 0, 3), *y = NULL;
  rs_workspace *w = NULL;
  weight = make(RS_F32, 1, 4, 0, 2);
  rs_program *p = record_chain(x, false);
  ENSURE(p != NULL);
  ENSURE_OK(rs_workspace_create(ctx, p, &w));
  ENSURE_STATUS(rs_profile_begin(ctx, events, 0), RS_ERR_ARG);
  ENSURE_OK(rs_profile_begin(ctx, events, MOST));
  ENSURE_STATUS(rs_profile_begin(ctx, events, MOST), RS_ERR_STATE);
  ENSURE_OK(rs_program_run(p, w, &x, 1, &y, 1));
  rs_tensor_release(y);
  ENSURE_OK(rs_neg(ctx, x, &y));
  rs_tensor_release(y);
  ENSURE_OK(rs_program_run(p, w, &x, 1, &y, 1));
  rs_tensor_release(y);
  ENSURE_NUM(rs_profile_end(ctx, &dropped), MOST);
  ENSURE_NUM(dropped, 3);
  ENSURE_NUM(rs_profile_end(ctx, &dropped), 0);
  static const char *const names[5] = {"mul", "add", "add", "mul", "neg"};
  for (int i = 0; i < 5; i++) {
    ENSURE_TEXT(events[i].op, names[i]);
    ENSURE(events[i].program == (i < 4 ? p : NULL));
    ENSURE(events[i].seconds >= 0 && (i == 0 || events[i].start >= events[i - 1].start + events[i - 1].seconds));
    ENSURE_NUM(events[i].instruction, i < 4 ? i : 0);
  }
  ENSURE_NUM(events[0].bytes, 3 * 16);
  ENSURE_NUM(events[4].bytes, 2 * 16);
  rs_workspace_release(w), rs_program_release(p);
  rs_tensor_release(x), rs_tensor_release(weight);
}

static void attributes_refuse_what_is_no_number(void) {
  rs_dropout_attrs at;
  rs_tensor *x = make(RS_F32, 1, 4, 0, 0), *y = NULL;
  rs_dropout_defaults(&at);
  at.p = (double)NAN;
  ENSURE_STATUS(rs_dropout(ctx, x, &at, &y, NULL), RS_ERR_ARG);
  rs_tensor_release(x);
}

int main(void) {
  if (rs_ctx_create(NULL, &ctx) != RS_OK) return 1;
  RUN(arguments_must_have_the_recorded_form);
  RUN(a_program_that_writes_its_input_refuses_aliases);
  RUN(a_run_refuses_what_its_last_run_left);
  RUN(what_has_no_values_is_refused);
  RUN(a_failed_op_spoils_the_recording_cleanly);
  RUN(a_context_may_go_while_it_records);
  RUN(a_run_may_go_in_steps);
  RUN(the_prologue_follows_its_bindings);
  RUN(a_binding_must_be_as_it_was);
  RUN(workspaces_share_an_arena);
  RUN(a_run_allocates_nothing);
  RUN(scratch_is_given_where_it_was_asked_for);
  RUN(profiling_notes_what_runs);
  RUN(attributes_refuse_what_is_no_number);
  rs_ctx_release(ctx);
  return TEST_RESULT();
}
