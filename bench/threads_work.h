/*
** The jobs of threads.c, by oneDNN as it comes and by us. Both get images in the same block form (16 channels, or 8) and plain weights,
** which they reorder in each call, so that only the threads differ: oneDNN is asked for the algorithm that it thinks best.
** Nothing here is given back: it all lives as long as the process.
*/
#ifndef BENCH_THREADS_WORK_H
#define BENCH_THREADS_WORK_H

#include "resin.h"
#include "resin_ops.h"
#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One C API out of two. */
#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t form;
#define REF(d) (d)
#define TAG(d, dims, tag) dnnl_memory_desc_create_with_tag(d, 4, dims, dnnl_f32, tag)
#else
typedef const dnnl_memory_desc_t *form;
#define REF(d) (&(d))
#define TAG(d, dims, tag) dnnl_memory_desc_init_by_tag(d, 4, dims, dnnl_f32, tag)
#endif

static void die(const char *what, const char *why) {
  fprintf(stderr, "threads: %s: %s\n", what, why);
  exit(1);
}
#define OURS(expr) do { if ((expr) != RS_OK) die(#expr, rs_last_error()); } while (0)
#define DNNL(expr) do { if ((expr) != dnnl_success) die(#expr, "oneDNN refuses"); } while (0)

typedef struct task { const char *name; int64_t n, c, hw, o, k; } task;    /* k = 0: a product, n x c by c x o; else a convolution */

static const task tasks[] = {{"3×3 convolution, 64 to 64 channels, 32², batch 32", 32, 64, 32, 64, 3},
                             {"1×1 convolution, 256 to 64 channels, 56², batch 1", 1, 256, 56, 64, 1},
                             {"product 64×512×512", 64, 512, 1, 512, 0}};

/* Ours: a program of one instruction. */
typedef struct engine { rs_program *p; rs_workspace *w; rs_tensor *in[2], *y; } engine;

/* oneDNN: a convolution, before it the reorder of its weight. */
typedef struct library {
  const task      *t;
  const float     *x, *w;
  float           *y;
  dnnl_stream_t    stream;
  dnnl_primitive_t conv, reorder;
  dnnl_exec_arg_t  conv_args[3], reorder_args[2];
} library;

static void run_engine(void *arg) {
  engine *const e = arg;
  rs_tensor_release(e->y);
  OURS(rs_program_run(e->p, e->w, e->in, 2, &e->y, 1));
}

static void run_library(void *arg) {
  library *const l = arg;
  const task *const t = l->t;
  if (t->k == 0) {
    DNNL(dnnl_sgemm('N', 'N', t->n, t->o, t->c, 1.0f, l->x, t->c, l->w, t->o, 0.0f, l->y, t->o));
  } else {
    DNNL(dnnl_primitive_execute(l->reorder, l->stream, 2, l->reorder_args));
    DNNL(dnnl_primitive_execute(l->conv, l->stream, 3, l->conv_args));
  }
}

static void make_library(library *l, const task *t, bool wide, const engine *e) {
  *l = (library){.t = t, .x = rs_tensor_data(e->in[0]), .w = rs_tensor_data(e->in[1])};
  l->y = malloc(sizeof(float) * (size_t)(t->n * t->o * t->hw * t->hw));
  if (l->y == NULL) die(t->name, "out of memory");
  if (t->k == 0) return;
  const dnnl_dims_t xs = {t->n, t->c, t->hw, t->hw}, ws = {t->o, t->c, t->k, t->k}, ys = {t->n, t->o, t->hw, t->hw};
  const dnnl_dims_t one = {1, 1}, zero = {0, 0}, pad = {t->k / 2, t->k / 2};
  dnnl_engine_t cpu;
  dnnl_memory_t given, x, w, y;
  dnnl_primitive_desc_t conv, reorder;
  dnnl_memory_desc_t xd, any, plain, yd;
  DNNL(dnnl_engine_create(&cpu, dnnl_cpu, 0));
  DNNL(dnnl_stream_create(&l->stream, cpu, dnnl_stream_default_flags));
  DNNL(TAG(&xd, xs, wide ? dnnl_nChw16c : dnnl_nChw8c));
  DNNL(TAG(&yd, ys, wide ? dnnl_nChw16c : dnnl_nChw8c));
  DNNL(TAG(&any, ws, dnnl_format_tag_any));
  DNNL(TAG(&plain, ws, dnnl_oihw));
#if DNNL_VERSION_MAJOR >= 3
  DNNL(dnnl_convolution_forward_primitive_desc_create(&conv, cpu, dnnl_forward_training, dnnl_convolution_auto, xd, any, NULL, yd, one,
                                                      zero, pad, pad, NULL));
#else
  dnnl_convolution_desc_t desc;
  DNNL(dnnl_dilated_convolution_forward_desc_init(&desc, dnnl_forward_training, dnnl_convolution_auto, &xd, &any, NULL, &yd, one, zero,
                                                  pad, pad));
  DNNL(dnnl_primitive_desc_create(&conv, &desc, NULL, cpu, NULL));
#endif
  const form wanted = dnnl_primitive_desc_query_md(conv, dnnl_query_weights_md, 0);
  DNNL(dnnl_reorder_primitive_desc_create(&reorder, REF(plain), cpu, wanted, cpu, NULL));
  DNNL(dnnl_primitive_create(&l->conv, conv));
  DNNL(dnnl_primitive_create(&l->reorder, reorder));
  DNNL(dnnl_memory_create(&x, REF(xd), cpu, (void *)(uintptr_t)l->x));
  DNNL(dnnl_memory_create(&given, REF(plain), cpu, (void *)(uintptr_t)l->w));
  DNNL(dnnl_memory_create(&w, wanted, cpu, DNNL_MEMORY_ALLOCATE));
  DNNL(dnnl_memory_create(&y, REF(yd), cpu, l->y));
  memcpy(l->reorder_args, (dnnl_exec_arg_t[]){{DNNL_ARG_FROM, given}, {DNNL_ARG_TO, w}}, sizeof l->reorder_args);
  memcpy(l->conv_args, (dnnl_exec_arg_t[]){{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}}, sizeof l->conv_args);
}

static rs_tensor *filled(rs_ctx *ctx, int ndim, const int64_t *shape, uint32_t seed) {
  rs_tensor *t;
  OURS(rs_tensor_empty(ctx, RS_F32, ndim, shape, &t));
  float *const data = rs_tensor_data(t);
  for (int64_t i = 0; i < (int64_t)rs_tensor_numel(t); i++) {
    seed = seed * 1664525u + 1013904223u;
    data[i] = (float)(seed >> 8) * 0x1p-23f - 1.0f;
  }
  return t;
}

static void make_engine(engine *e, const task *t, bool wide, rs_ctx *ctx) {
  const int64_t block = wide ? 16 : 8;
  rs_conv2d_block_attrs a;
  rs_tensor *y;
  rs_conv2d_block_defaults(&a);
  a.padding = (rs_list){2, {t->k / 2, t->k / 2}}, a.channels = t->c, a.block_in = a.block_out = block;
  e->in[0] = t->k == 0 ? filled(ctx, 2, (const int64_t[]){t->n, t->c}, 1)
                       : filled(ctx, 5, (const int64_t[]){t->n, t->c / block, t->hw, t->hw, block}, 1);
  e->in[1] = t->k == 0 ? filled(ctx, 2, (const int64_t[]){t->c, t->o}, 2) : filled(ctx, 4, (const int64_t[]){t->o, t->c, t->k, t->k}, 2);
  OURS(rs_trace_begin(ctx, e->in, 2));
  if (t->k == 0) OURS(rs_matmul(ctx, e->in[0], e->in[1], NULL, &y));
  else OURS(rs_conv2d_block(ctx, e->in[0], e->in[1], NULL, NULL, &a, &y));
  OURS(rs_trace_end(ctx, &y, 1, &e->p));
  rs_tensor_release(y);
  OURS(rs_workspace_create(ctx, e->p, &e->w));
}

static void compare(const task *t, const float *theirs, const rs_tensor *ours) {
  const float *const y = rs_tensor_data(ours);
  double most = 0, off = 0;
  for (int64_t i = 0; i < (int64_t)rs_tensor_numel(ours); i++) {
    most = fmax(most, fabs((double)theirs[i]));
    off = fmax(off, fabs((double)theirs[i] - (double)y[i]));
  }
  if (!(off <= 1e-4 * most)) die(t->name, "the results differ");
}

#endif
