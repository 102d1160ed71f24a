/* Profiling: see profile.h. */
#include "profile.h"
#include <string.h>

/* Bytes of the elements that t shows; what an expanded dimension repeats counts once. */
static double bytes_of(const rs_tensor *t) {
  double n = (double)rsi_item_size(t);
  for (int i = 0; i < t->ndim; i++)
    if (t->strides[i] != 0 || t->shape[i] == 0) n *= (double)t->shape[i];
  return n;
}

/* What the kernel reads and writes at least once: inputs, outputs, and once more the inputs that it writes. */
static double traffic(const rsi_call *c) {
  double sum = 0;
  for (int i = 0; i < c->nin; i++) {
    if (!c->in[i]) continue;
    const bool written = c->op->writes && c->op->writes(c, i);
    sum += bytes_of(c->in[i]) * (written ? 2 : 1);
  }
  for (int j = 0; j < c->nout; j++)
    if (c->out[j]) sum += bytes_of(c->out[j]);
  return sum;
}

rs_status rsi_profile_run(rs_ctx *ctx, const rsi_call *c, const rsi_kernel *kernel, const rs_program *program, int index) {
  rsi_profile *const p = &ctx->profile;
  const double start = rs_time();
  const rs_status status = kernel->run(c);
  const double end = rs_time();
  if (status != RS_OK) return status;
  if (p->count == p->capacity) {
    p->dropped++;
    return RS_OK;
  }
  p->events[p->count++] = (rs_profile_event){.op = c->op->name, .kernel = kernel->name, .program = program, .instruction = index,
                                             .start = start, .seconds = end - start, .bytes = traffic(c)};
  return RS_OK;
}

rs_status rs_profile_begin(rs_ctx *ctx, rs_profile_event *events, double capacity) {
  RSI_CHECK(!ctx->profile.events, RS_ERR_STATE, "profile: one is under way already in this context");
  RSI_CHECK(events && capacity >= 1, RS_ERR_ARG, "profile: a buffer for at least one event is needed");
  ctx->profile = (rsi_profile){.events = events, .capacity = (size_t)capacity};
  return RS_OK;
}

double rs_profile_end(rs_ctx *ctx, double *dropped) {
  const rsi_profile p = ctx->profile;
  memset(&ctx->profile, 0, sizeof ctx->profile);
  if (dropped) *dropped = (double)p.dropped;
  return (double)p.count;
}
