/* What the element-wise families (unary, binary, compare, cast, create) share. */
#ifndef RSI_POINTWISE_H
#define RSI_POINTWISE_H

#include "ops/op.h"

/* One element of any dtype. */
typedef union rsi_element {
  float    f32;
  double   f64;
  int64_t  i64;
  uint16_t half;
  char     bytes[8];
} rsi_element;

/* The number `value` as an element of `dtype`. */
rsi_element rsi_element_of(const rsi_exec *x, double value, int dtype);
/* Fails when an integer dtype cannot hold `value` exactly; `what` names it. */
rs_status rsi_check_element(double value, int dtype, const char *what);
bool      rsi_holds(int dtype, double value);

/* A call of a two-input op whose attributes begin with the number (`scalar`) that stands for a missing input. */
rs_status rsi_run_binary(const rsi_call *c, rsi_binary which, const void *arg, double work);
/* The same for an integer tensor and any number: elements go to f64, the row of f64 makes a result of dtype `made`. */
rs_status rsi_run_binary_wide(const rsi_call *c, rsi_binary which, int made, double work);

/* The result's shape and dtype from attributes; no dimension may be negative. */
rs_status rsi_take_shape(const rsi_call *c, const rs_list *shape, int64_t dtype, rsi_desc *out);

/* condition ? a : b, where a missing a or b stands for 0 */
rs_tensor *rsi_b_where(rsi_grad *g, rs_tensor *condition, rs_tensor *a, rs_tensor *b);
/* a op b, where op is one of RS_OP_eq … RS_OP_ge; b NULL: `scalar` */
rs_tensor *rsi_b_compare(rsi_grad *g, int op, rs_tensor *a, rs_tensor *b, double scalar);

#endif
