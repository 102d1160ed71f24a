/*
** Profiling: while a context has a buffer, each kernel that it runs, from the dispatcher or from a program, is timed and noted
** there. The buffer belongs to the caller; when it is full, events are counted and dropped. Nothing is allocated.
** Off, it costs one branch per op and one per run of a program.
*/
#ifndef RSI_PROFILE_H
#define RSI_PROFILE_H

#include "ctx.h"

/* Runs the kernel and notes it. program NULL: the dispatcher's; otherwise its instruction number `index`. */
rs_status rsi_profile_run(rs_ctx *ctx, const rsi_call *c, const rsi_kernel *kernel, const rs_program *program, int index);

#endif
