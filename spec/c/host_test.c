/* Nodes whose gradient the host computes: y = x*x + host(x), where the host says that its part has the gradient 3·g. */
#include "resin.h"
#include "resin_ops.h"
#include "test.h"

static rs_ctx *ctx;

static rs_tensor *scalar(double value, int requires_grad) {
  rs_tensor *t = NULL;
  if (rs_tensor_empty(ctx, RS_F64, 0, NULL, &t) != RS_OK) return NULL;
  rs_tensor_write(ctx, t, &value);
  rs_tensor_set_requires_grad(ctx, t, requires_grad);
  return t;
}

typedef struct graph { rs_tensor *x, *token, *part, *square, *y; } graph;

/* y = x*x + part, part depends on x through a node of the host's. */
static int build(graph *g, double x) {
  g->x = scalar(x, 1);
  g->token = scalar(7, 0);
  g->part = scalar(3 * x, 0);
  return g->x && g->token && g->part && rs_host(ctx, g->part, &g->x, 1, g->token) == RS_OK &&
         rs_mul(ctx, g->x, g->x, NULL, &g->square) == RS_OK && rs_add(ctx, g->square, g->part, NULL, &g->y) == RS_OK;
}

static void drop(graph *g) {
  rs_tensor_release(g->x), rs_tensor_release(g->token), rs_tensor_release(g->part);
  rs_tensor_release(g->square), rs_tensor_release(g->y);
}

static double gradient(rs_tensor *x) {
  rs_tensor *g = NULL;
  double out = -1;
  rs_tensor_grad(ctx, x, &g);
  if (g) rs_tensor_item(ctx, g, &out);
  rs_tensor_release(g);
  return out;
}

/* Hands in 3 times the gradient that arrived. */
static rs_status answer(rs_walk *walk) {
  rs_tensor *token = NULL, *grad = NULL, *own = NULL;
  double value = 0;
  rs_status status = rs_walk_state(walk, &token, &grad);
  if (status == RS_OK) status = rs_tensor_item(ctx, grad, &value);
  if (status == RS_OK) own = scalar(3 * value, 0);
  status = rs_walk_resume(walk, &own, 1);
  rs_tensor_release(token), rs_tensor_release(grad), rs_tensor_release(own);
  return status;
}

static void waits_for_the_host_and_goes_on(void) {
  const double before = rs_ctx_stats(ctx)->live_bytes;
  graph g;
  ENSURE(build(&g, 5));
  ENSURE(rs_tensor_is_shared(g.token));
  ENSURE_STATUS(rs_backward(ctx, g.y, NULL, 0), RS_HOST);
  rs_walk *const walk = rs_suspended_walk(ctx);
  ENSURE(walk != NULL);
  ENSURE(rs_suspended_walk(ctx) == NULL);
  ENSURE_STATUS(rs_backward(ctx, g.y, NULL, 0), RS_ERR_GRAD);      /* it would reach into the one that waits */
  ENSURE_HAS(rs_last_error(), "a backward that is under way");
  ENSURE_OK(answer(walk));
  ENSURE_NUM(gradient(g.x), 13);
  ENSURE(!rs_tensor_is_shared(g.token));                            /* the node let go of it */
  drop(&g);
  ENSURE_NUM(rs_ctx_stats(ctx)->live_bytes, before);
}

static void can_be_cancelled(void) {
  const double before = rs_ctx_stats(ctx)->live_bytes;
  graph g;
  ENSURE(build(&g, 5));
  ENSURE_STATUS(rs_backward(ctx, g.y, NULL, RS_RETAIN_GRAPH), RS_HOST);
  rs_walk_cancel(rs_suspended_walk(ctx));
  rs_tensor_set_grad(ctx, g.x, NULL);
  ENSURE_STATUS(rs_backward(ctx, g.y, NULL, 0), RS_HOST);
  ENSURE_OK(answer(rs_suspended_walk(ctx)));
  ENSURE_NUM(gradient(g.x), 13);
  drop(&g);
  ENSURE_NUM(rs_ctx_stats(ctx)->live_bytes, before);
}

static void may_give_no_gradient(void) {
  const double before = rs_ctx_stats(ctx)->live_bytes;
  graph g;
  ENSURE(build(&g, 5));
  ENSURE_STATUS(rs_backward(ctx, g.y, NULL, RS_RETAIN_GRAPH), RS_HOST);
  rs_tensor *none = NULL;
  ENSURE_OK(rs_walk_resume(rs_suspended_walk(ctx), &none, 1));
  ENSURE_NUM(gradient(g.x), 10);
  drop(&g);
  ENSURE_NUM(rs_ctx_stats(ctx)->live_bytes, before);
}

static void is_refused_where_it_cannot_be(void) {
  graph g;
  rs_tensor *out = NULL;
  ENSURE(build(&g, 5));
  ENSURE_STATUS(rs_grad(ctx, g.y, NULL, &g.x, 1, 0, &out), RS_ERR_GRAD);
  ENSURE_HAS(rs_last_error(), "which only a plain backward can");
  ENSURE_STATUS(rs_backward(ctx, g.y, NULL, RS_CREATE_GRAPH), RS_ERR_GRAD);
  ENSURE_STATUS(rs_host(ctx, g.y, &g.x, 1, g.token), RS_ERR_GRAD);
  drop(&g);
}

static void may_follow_each_other(void) {
  const double before = rs_ctx_stats(ctx)->live_bytes;
  graph g;
  ENSURE(build(&g, 2));
  rs_tensor *second = scalar(9, 0), *token = scalar(8, 0);
  ENSURE_OK(rs_host(ctx, second, &g.y, 1, token));
  ENSURE_STATUS(rs_backward(ctx, second, NULL, 0), RS_HOST);
  ENSURE_STATUS(answer(rs_suspended_walk(ctx)), RS_HOST);
  ENSURE_OK(answer(rs_suspended_walk(ctx)));
  ENSURE_NUM(gradient(g.x), 3 * 4 + 9);
  rs_tensor_release(second), rs_tensor_release(token);
  drop(&g);
  ENSURE_NUM(rs_ctx_stats(ctx)->live_bytes, before);
}

int main(void) {
  if (rs_ctx_create(NULL, &ctx) != RS_OK) return 1;
  RUN(waits_for_the_host_and_goes_on);
  RUN(can_be_cancelled);
  RUN(may_give_no_gradient);
  RUN(is_refused_where_it_cannot_be);
  RUN(may_follow_each_other);
  rs_ctx_release(ctx);
  return TEST_RESULT();
}
