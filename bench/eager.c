/*
** Eager overhead from C: a chain of multiplications of 16 elements with the gradient on, and its backward pass.
** Prints "forward NS" and "backward NS", medians of many repetitions, in nanoseconds per op and per node.
*/
#include "resin.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CHAIN = 100, ROUNDS = 2001 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void must(rs_status status) {
  if (status == RS_OK) return;
  fprintf(stderr, "eager: %s\n", rs_last_error());
  exit(1);
}

static int by_size(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(void) {
  static double forward[ROUNDS], backward[ROUNDS];
  const int64_t shape[1] = {16};
  const double ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  rs_tensor *x, *w, *chain[CHAIN + 1], *start;
  rs_ctx *ctx;
  must(rs_ctx_create(NULL, &ctx));
  must(rs_tensor_empty(ctx, RS_F32, 1, shape, &x));
  must(rs_tensor_empty(ctx, RS_F32, 1, shape, &w));
  must(rs_tensor_empty(ctx, RS_F32, 1, shape, &start));
  must(rs_tensor_write(ctx, x, ones));
  must(rs_tensor_write(ctx, w, ones));
  must(rs_tensor_write(ctx, start, ones));
  must(rs_tensor_set_requires_grad(ctx, w, 1));
  for (int r = 0; r < ROUNDS; r++) {
    const double begin = now();
    chain[0] = x;
    for (int i = 0; i < CHAIN; i++) must(rs_mul(ctx, chain[i], w, NULL, &chain[i + 1]));
    const double middle = now();
    must(rs_backward(ctx, chain[CHAIN], start, 0));
    const double end = now();
    for (int i = 1; i <= CHAIN; i++) rs_tensor_release(chain[i]);
    const double released = now();
    rs_zero_grads(ctx, &w, 1);
    forward[r] = (middle - begin + released - end) / CHAIN;   /* giving an op's tensor and node back belongs to its cost */
    backward[r] = (end - middle) / CHAIN;
  }
  qsort(forward, ROUNDS, sizeof *forward, by_size);
  qsort(backward, ROUNDS, sizeof *backward, by_size);
  printf("forward %.1f\nbackward %.1f\n", forward[ROUNDS / 2], backward[ROUNDS / 2]);
  rs_tensor_release(start);
  rs_tensor_release(w);
  rs_tensor_release(x);
  rs_ctx_release(ctx);
  return 0;
}
