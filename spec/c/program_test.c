/* Recording and replay at their edges: arguments of another form, aliases, failures in the middle, contexts that go away. */
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
  ENSURE_NUM(values[0], 21);
  rs_tensor_release(out);
  rs_tensor *same[2] = {both[0], both[0]};
  ENSURE_STATUS(rs_program_run(p, w, same, 2, &out, 1), RS_ERR_ARG);
  ENSURE_HAS(rs_last_error(), "share memory");
  rs_tensor_release(both[0]), rs_tensor_release(both[1]);
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
  RUN(a_failed_op_spoils_the_recording_cleanly);
  RUN(a_context_may_go_while_it_records);
  RUN(attributes_refuse_what_is_no_number);
  rs_ctx_release(ctx);
  return TEST_RESULT();
}
