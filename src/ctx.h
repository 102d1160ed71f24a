/*
** A context: everything that changes while ops run, apart from the tensors. One thread at a time.
*/
#ifndef RSI_CTX_H
#define RSI_CTX_H

#include "ops/op.h"

typedef struct rsi_trace rsi_trace;

/* The buffer that a host lent for profiling; events NULL: none. */
typedef struct rsi_profile {
  rs_profile_event *events;
  size_t            count, capacity, dropped;
} rsi_profile;

struct rs_ctx {
  rsi_exec       x;             /* what kernels see; x.rng points at rng */
  rsi_rng        rng;
  _Atomic int    refs;          /* the owner and the workspaces made from it */
  int            grad_enabled;
  unsigned       backends;      /* bit per rsi_backend that may be used */
  rsi_isa_level  isa;
  int            threads;
  rsi_trace     *trace;         /* the recording in progress, or NULL */
  rsi_trace     *paused;        /* the same while it is paused */
  struct rs_walk *suspended;    /* a backward that just stopped at a node of the host's */
  const char    *last_kernel;
  rsi_profile    profile;
};

static inline bool rsi_backend_allowed(const rs_ctx *ctx, int backend) { return (ctx->backends >> backend) & 1u; }
void rsi_ctx_retain(rs_ctx *ctx);

#endif
