/* The generated C interface: numbers, attribute structs with their defaults, typed functions. */
#include "resin.h"
#include "resin_ops.h"
#include "test.h"

static rs_ctx *ctx;

static rs_tensor *vector(int n, const double *values) {
  const int64_t shape[1] = {n};
  rs_tensor *t = NULL;
  if (rs_tensor_empty(ctx, RS_F32, 1, shape, &t) == RS_OK) rs_tensor_write(ctx, t, values);
  return t;
}

static void calls_typed_functions(void) {
  rs_tensor *a = vector(3, (const double[]){1, 2, 3}), *b = vector(3, (const double[]){4, 5, 6}), *c = NULL, *d = NULL;
  double out[6];
  rs_add_attrs add;
  rs_add_defaults(&add);
  ENSURE_NUM(add.alpha, 1);
  add.alpha = 10;
  ENSURE_OK(rs_add(ctx, a, b, &add, &c));
  ENSURE_OK(rs_tensor_read(ctx, c, out));
  ENSURE_NUM(out[2], 63);
  rs_tensor *const both[2] = {a, c};
  ENSURE_OK(rs_cat(ctx, both, 2, NULL, &d));
  ENSURE_NUM(rs_tensor_numel(d), 6);
  rs_tensor_release(a), rs_tensor_release(b), rs_tensor_release(c), rs_tensor_release(d);
}

static void makes_without_inputs(void) {
  rs_full_attrs full;
  rs_tensor *t = NULL;
  rs_full_defaults(&full);
  full.shape = (rs_list){2, {3, 4}};
  full.value = 2.5;
  ENSURE_OK(rs_full(ctx, &full, &t));
  ENSURE_NUM(rs_tensor_size(t, 1), 4);
  rs_tensor_release(t);
}

static void drops_outputs_that_are_not_wanted(void) {
  const double before = rs_ctx_stats(ctx)->live_bytes;
  rs_tensor *a = vector(3, (const double[]){1, 5, 3}), *values = NULL;
  rs_max_attrs max;
  rs_max_defaults(&max);
  max.dim = 0;
  double out;
  ENSURE_OK(rs_max(ctx, a, &max, &values, NULL));
  ENSURE_OK(rs_tensor_item(ctx, values, &out));
  ENSURE_NUM(out, 5);
  rs_tensor_release(a), rs_tensor_release(values);
  ENSURE_NUM(rs_ctx_stats(ctx)->live_bytes, before);
}

static void numbers_agree_with_the_table(void) {
  rs_op_info info;
  ENSURE_NUM(rs_op_count(), RS_OPS);
  ENSURE_OK(rs_op_describe(RS_OP_softmax, &info));
  ENSURE_TEXT(info.name, "softmax");
  ENSURE_NUM(info.attrs_size, sizeof(rs_softmax_attrs));
  ENSURE_OK(rs_op_describe(RS_OP_max_pool2d, &info));
  ENSURE_NUM(info.nout, 2);
  ENSURE_NUM(info.nout_public, 1);
}

int main(void) {
  if (rs_ctx_create(NULL, &ctx) != RS_OK) return 1;
  RUN(calls_typed_functions);
  RUN(makes_without_inputs);
  RUN(drops_outputs_that_are_not_wanted);
  RUN(numbers_agree_with_the_table);
  rs_ctx_release(ctx);
  return TEST_RESULT();
}
