/*
** Recording and replay. While a context records, the dispatcher appends every op it runs. A value is what one tensor header
** stands for; a header carries the number of its value and the serial of its recording, so no lookup is needed.
*/
#ifndef RSI_PROGRAM_H
#define RSI_PROGRAM_H

#include "ctx.h"

/* The dispatcher ran `c`; its outputs become new values. kernel NULL: a view of in[0]. In place: out[0] is in[0]. */
rs_status rsi_trace_append(rs_ctx *ctx, const rsi_call *c, const rsi_kernel *kernel, bool inplace);

/* A gradient of a leaf is looked at, or (replaced) dropped or set, while a recording is under way. */
rs_status rsi_trace_leaf(rs_ctx *ctx, rsi_node *node, bool replaced);
/* Is t a value of the recording under way? */
bool      rsi_trace_knows(const rs_ctx *ctx, const rs_tensor *t);

#endif
