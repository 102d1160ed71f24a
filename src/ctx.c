/* Contexts: creation, settings, statistics. */
#include "ctx.h"
#include "backend/backend.h"
#include "program/program.h"
#include <stdlib.h>
#include <string.h>

static const char *const backend_names[RSI_BACKENDS] = {"portable", "blas", "onednn"};

rs_status rs_ctx_create(const rs_ctx_options *options, rs_ctx **out) {
  const rs_ctx_options none = {0};
  rsi_heap *heap;
  void *block;
  if (!options) options = &none;
  *out = NULL;
  RSI_TRY(rsi_heap_create(options->allocator, options->budget, &heap));
  rs_status status = rsi_alloc(heap, sizeof(rs_ctx), &block);
  if (status != RS_OK) {
    rsi_heap_close(heap);
    return status;
  }
  rs_ctx *const ctx = block;
  memset(ctx, 0, sizeof *ctx);
  atomic_init(&ctx->refs, 1);
  ctx->x.heap = heap;
  ctx->x.rng = &ctx->rng;
  ctx->grad_enabled = 1;
  ctx->backends = ~0u;
  ctx->last_kernel = "";
  rsi_rng_seed(&ctx->rng, 0);
  status = rs_set_isa(ctx, options->isa ? options->isa : "best");
  if (status == RS_OK) status = rs_set_num_threads(ctx, options->threads > 0 ? options->threads : 1);
  if (status == RS_OK && rsi_onednn_available()) status = rsi_onednn_create(&ctx->x.onednn);
  if (status != RS_OK) {
    rs_ctx_release(ctx);
    return status;
  }
  *out = ctx;
  return RS_OK;
}

void rsi_ctx_retain(rs_ctx *ctx) { atomic_fetch_add_explicit(&ctx->refs, 1, memory_order_relaxed); }

void rs_ctx_release(rs_ctx *ctx) {
  if (!ctx || atomic_fetch_sub_explicit(&ctx->refs, 1, memory_order_acq_rel) != 1) return;
  rsi_heap *const heap = ctx->x.heap;
  rs_trace_abort(ctx);
  rsi_pool_destroy(ctx->x.pool);
  if (ctx->x.onednn) rsi_onednn_destroy(ctx->x.onednn);
  rsi_free(heap, ctx, sizeof *ctx);
  rsi_heap_close(heap);
}

const rs_stats *rs_ctx_stats(const rs_ctx *ctx) { return rsi_heap_stats(ctx->x.heap); }
void rs_reset_peak(rs_ctx *ctx) { rsi_heap_reset_peak(ctx->x.heap); }
void rs_trim(rs_ctx *ctx) { rsi_heap_trim(ctx->x.heap); }
void rs_set_budget(rs_ctx *ctx, double bytes) { rsi_heap_set_budget(ctx->x.heap, bytes); }
void rs_fail_allocation(rs_ctx *ctx, double countdown, int sticky) { rsi_heap_fail_at(ctx->x.heap, countdown, sticky); }

rs_status rs_set_num_threads(rs_ctx *ctx, int threads) {
  rsi_pool *pool = NULL;
  RSI_CHECK(threads >= 1 && threads <= 1024, RS_ERR_ARG, "set_num_threads: %d threads: a number from 1 to 1024 is needed", threads);
  if (threads > 1) RSI_TRY(rsi_pool_create(threads, &pool));
  rsi_pool_destroy(ctx->x.pool);
  ctx->x.pool = pool;
  ctx->threads = threads;
  return RS_OK;
}

int rs_get_num_threads(const rs_ctx *ctx) { return ctx->threads; }

rs_status rs_set_isa(rs_ctx *ctx, const char *name) {
  const rsi_isa_level best = rsi_cpu_best();
  rsi_isa_level level = best;
  if (strcmp(name, "best") != 0) {
    for (level = RSI_ISA_BASELINE; level < RSI_ISA_LEVELS; level++)
      if (strcmp(name, rsi_isa_level_name(level)) == 0) break;
    RSI_CHECK(level < RSI_ISA_LEVELS, RS_ERR_ARG, "set_isa: \"%s\" is not one of baseline, avx2, avx512, best", name);
    RSI_CHECK(level <= best, RS_ERR_UNSUPPORTED, "set_isa: this machine does not support %s (its best is %s)", name,
              rsi_isa_level_name(best));
  }
  ctx->x.k = rsi_kernels_of(level);
  ctx->isa = ctx->x.k->level;
  return RS_OK;
}

const char *rs_get_isa(const rs_ctx *ctx) { return rsi_isa_level_name(ctx->isa); }

rs_status rs_set_backends(rs_ctx *ctx, const char *names) {
  unsigned mask = 1u << RSI_PORTABLE;
  if (strcmp(names, "all") == 0) mask = ~0u;
  else
    for (const char *at = names; *at;) {
      const size_t length = strcspn(at, ",");
      int i = 0;
      while (i < RSI_BACKENDS && (strlen(backend_names[i]) != length || strncmp(backend_names[i], at, length) != 0)) i++;
      RSI_CHECK(i < RSI_BACKENDS, RS_ERR_ARG, "set_backends: \"%.*s\" is not one of all, portable, blas, onednn", (int)length, at);
      mask |= 1u << i;
      at += length + (at[length] == ',');
    }
  ctx->backends = mask;
  return RS_OK;
}

rs_status rs_set_precision(rs_ctx *ctx, const char *name) {
  const bool highest = strcmp(name, "highest") == 0;
  RSI_CHECK(highest || strcmp(name, "default") == 0, RS_ERR_ARG, "set_precision: \"%s\" is not one of default, highest", name);
  ctx->x.exact = highest;
  return RS_OK;
}

const char *rs_get_precision(const rs_ctx *ctx) { return ctx->x.exact ? "highest" : "default"; }

void rs_set_index_base(rs_ctx *ctx, int base) { ctx->x.base = base != 0; }
const char *rs_last_kernel(const rs_ctx *ctx) { return ctx->last_kernel; }

int rs_set_grad_enabled(rs_ctx *ctx, int enabled) {
  const int former = ctx->grad_enabled;
  ctx->grad_enabled = enabled != 0;
  return former;
}

int rs_get_grad_enabled(const rs_ctx *ctx) { return ctx->grad_enabled; }

void rs_seed(rs_ctx *ctx, double seed) {
  uint64_t bits;
  if (seed >= -9007199254740992.0 && seed <= 9007199254740992.0) bits = (uint64_t)(int64_t)seed;
  else memcpy(&bits, &seed, sizeof bits);
  rsi_rng_seed(&ctx->rng, bits);
}

/* Doubles hold 32 bits of the state each, so that Lua can store them exactly. */
void rs_get_rng_state(const rs_ctx *ctx, double state[4]) {
  state[0] = (double)(uint32_t)ctx->rng.key;
  state[1] = (double)(uint32_t)(ctx->rng.key >> 32);
  state[2] = (double)(uint32_t)ctx->rng.counter;
  state[3] = (double)(uint32_t)(ctx->rng.counter >> 32);
}

static uint64_t word_of(double v) { return v >= 0.0 && v <= 4294967295.0 ? (uint64_t)v : 0; }

void rs_set_rng_state(rs_ctx *ctx, const double state[4]) {
  ctx->rng.key = word_of(state[0]) | word_of(state[1]) << 32;
  ctx->rng.counter = word_of(state[2]) | word_of(state[3]) << 32;
}

const char *rs_build_info(void) {
  return "resin"
#if defined(__clang__)
         " clang " __clang_version__
#elif defined(__GNUC__)
         " gcc " __VERSION__
#endif
#ifdef RSI_X86
         ", baseline avx2 avx512"
#else
         ", baseline"
#endif
#ifdef RSI_WITH_BLAS
         ", blas"
#endif
#ifdef RSI_WITH_ONEDNN
         ", onednn"
#endif
      ;
}
