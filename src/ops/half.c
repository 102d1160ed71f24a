/*
** bf16 products: by AMX in two jobs, packing and multiplying; elsewhere in f32.
** Scratch: the packed b, the packed a (or just its last rows, when the others can be read where they lie); without AMX the operands
** and the result in f32.
*/
#include "ops/half.h"
#include "ops/product.h"
#include "base/lanes.h"
#include "kernels/gemm_amx.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

bool rsi_half_native(const rsi_exec *x) { return x->k->level == RSI_ISA_AVX512 && x->k->gemm->amx->block != NULL && rsi_cpu_amx(); }

/* ---- by AMX ---------------------------------------------------------------------------------------------------------- */

enum { NEAR = 2048, BLOCK_NS = 25000 };   /* bytes: rows at a distance that this divides fall on one set of the cache */

/* Blocks of 16 rows of a that are read where they lie; the others are packed. */
static int64_t rows_in_place(const rsi_half *h) {
  if (h->acs != 1 || h->k % RSI_AMX_DEEP != 0 || (h->n > 4 * RSI_PANEL && h->ars * 2 % NEAR == 0)) return 0;
  return h->m / RSI_AMX_ROWS;
}

static size_t bytes_of_b(const rsi_half *h) {
  return h->packed ? 0 : rsi_lane_round((size_t)(rsi_panels(h->n) * rsi_panel_size(h->k, true)) * 2);
}

static int64_t size_of_block(const rsi_half *h) { return parts(h->k, RSI_AMX_DEEP) * RSI_AMX_ROWS * RSI_AMX_DEEP; }

static size_t bytes_of_a(const rsi_half *h) {
  return (size_t)((parts(h->m, RSI_AMX_ROWS) - rows_in_place(h)) * size_of_block(h)) * 2;
}

typedef struct amx_job {
  const rsi_half  *h;
  const rsi_k_amx *k;
  rsi_amx  j;
  uint16_t *a, *b;                  /* packed */
  int64_t  in_place, panels, packs; /* packs: panels and blocks of rows to pack */
  int64_t  group, across;           /* panels of a block of work; blocks side by side */
} amx_job;

/* Work items of packing: the panels of b, then the blocks of a. */
static void pack_range(void *arg, int64_t first, int64_t last) {
  const amx_job *const j = arg;
  const rsi_half *const h = j->h;
  const int64_t of_b = j->b != NULL ? j->panels : 0, end_b = smaller(last, of_b);
  if (first < end_b) j->k->pack_b(first, end_b, h->n, h->k, h->b, h->brs, h->bcs, j->b);
  if (last > of_b)
    j->k->pack_a(larger(first - of_b, 0), last - of_b, h->m - j->in_place * RSI_AMX_ROWS, h->k,
                 h->a + j->in_place * RSI_AMX_ROWS * h->ars, h->ars, h->acs, j->a);
}

static void multiply_range(void *arg, int64_t first, int64_t last) {
  const amx_job *const j = arg;
  for (int64_t i = first; i < last; i++) {
    const int64_t row = i / j->across * RSI_AMX_BLOCK, panel = i % j->across * j->group;
    j->k->block(&j->j, row, smaller(RSI_AMX_BLOCK, j->h->m - row), panel, smaller(panel + j->group, j->panels));
  }
}

static void amx_product(const rsi_exec *x, const rsi_half *h, char *scratch) {
  const int64_t blocks = parts(h->m, RSI_AMX_ROWS), down = parts(h->m, RSI_AMX_BLOCK), k = parts(h->k, RSI_AMX_DEEP) * RSI_AMX_DEEP;
  amx_job j = {.h = h, .k = x->k->gemm->amx, .in_place = rows_in_place(h), .panels = rsi_panels(h->n)};
  if (!h->packed) j.b = (uint16_t *)(void *)scratch;
  j.a = (uint16_t *)(void *)(scratch + bytes_of_b(h));
  j.packs = (h->packed ? 0 : j.panels) + blocks - j.in_place;
  if (j.packs > 0) rsi_parallel(x, j.packs, 0.06 * (double)(k * RSI_PANEL), pack_range, &j);
  j.j = (rsi_amx){.m = h->m, .n = h->n, .k = h->k, .a = h->a, .a_block = RSI_AMX_ROWS * h->ars, .a_row = h->ars, .a_run = RSI_AMX_DEEP,
                  .b = h->packed ? h->b : j.b, .c = h->c, .ldc = h->ldc, .c_bf16 = h->c_bf16, .beta = h->beta, .end = h->end,
                  .residual_bf16 = h->residual_bf16};
  if (j.in_place == 0) {
    j.j.a = j.a;
    j.j.a_block = size_of_block(h);
    j.j.a_row = RSI_AMX_DEEP;
    j.j.a_run = RSI_AMX_ROWS * RSI_AMX_DEEP;
  } else if (j.in_place < blocks) j.j.a_last = j.a;
  const double ns = 0.0008 * (double)smaller(h->m, RSI_AMX_BLOCK) * (double)(j.panels * RSI_PANEL) * (double)k;   /* of a row of blocks */
  j.across = larger(1, smaller(j.panels, (int64_t)(ns / BLOCK_NS)));
  j.group = parts(j.panels, j.across);
  j.across = parts(j.panels, j.group);
  rsi_parallel(x, down * j.across, ns / (double)j.across, multiply_range, &j);
}

/* ---- in f32 ---------------------------------------------------------------------------------------------------------- */

/* Offsets in scratch memory, after what the product needs itself. */
typedef struct widened { size_t a, b, c, residual, bytes; } widened;

static widened widen(const rsi_exec *x, const rsi_half *h) {
  widened w;
  w.a = h->packed ? 0 : rsi_lane_round(rsi_product_scratch(x, RS_F32, h->m, h->n, h->k));
  w.b = w.a + rsi_lane_round((size_t)(h->m * h->k) * sizeof(float));
  w.c = w.b + (h->packed ? 0 : rsi_lane_round((size_t)(h->k * h->n) * sizeof(float)));
  w.residual = w.c + (h->c_bf16 ? rsi_lane_round((size_t)(h->m * h->n) * sizeof(float)) : 0);
  w.bytes = w.residual + (h->residual_bf16 ? rsi_lane_round((size_t)(h->m * h->n) * sizeof(float)) : 0);
  return w;
}

typedef struct move { rsi_row_fn row; char *to; const char *from; int64_t n, to_row, from_row, to_size, from_size; } move;

static void move_rows(void *arg, int64_t first, int64_t last) {
  const move *const v = arg;
  const int64_t strides[2] = {v->to_size, v->from_size};
  for (int64_t i = first; i < last; i++) {
    char *const data[2] = {v->to + i * v->to_row, (char *)(uintptr_t)v->from + i * v->from_row};
    v->row(v->n, data, strides, NULL);
  }
}

/* to: [m, n] f32 = from, with strides in elements; and the way back. */
static void to_f32(const rsi_exec *x, int64_t m, int64_t n, const uint16_t *from, int64_t rs, int64_t cs, float *to) {
  move v = {x->k->elementwise->cast->cast[RS_BF16][RS_F32], (char *)to, (const char *)from, n, n * 4, rs * 2, 4, cs * 2};
  rsi_parallel(x, m, 0.2 * (double)n, move_rows, &v);
}

static void to_bf16(const rsi_exec *x, int64_t m, int64_t n, const float *from, uint16_t *to, int64_t rs) {
  move v = {x->k->elementwise->cast->cast[RS_F32][RS_BF16], (char *)to, (const char *)from, n, rs * 2, n * 4, 2, 4};
  rsi_parallel(x, m, 0.2 * (double)n, move_rows, &v);
}

static void wide_product(const rsi_exec *x, const rsi_half *h, char *scratch) {
  const widened w = widen(x, h);
  float *const a = (float *)(void *)(scratch + w.a), *const b = (float *)(void *)(scratch + w.b);
  float *const c = h->c_bf16 ? (float *)(void *)(scratch + w.c) : h->c, *const residual = (float *)(void *)(scratch + w.residual);
  const int64_t ldc = h->c_bf16 ? h->n : h->ldc;
  rsi_gemm_end end = h->end;
  const bool at = h->ars == 1 && h->acs != 1, bt = h->brs == 1 && h->bcs != 1;      /* transposed: converted as they lie */
  if (at) to_f32(x, h->k, h->m, h->a, h->acs, 1, a);
  else to_f32(x, h->m, h->k, h->a, h->ars, h->acs, a);
  if (h->residual_bf16 && end.residual != NULL) {
    to_f32(x, h->m, h->n, end.residual, end.stride, 1, residual);
    end.residual = residual;
    end.stride = h->n;
  }
  if (h->packed) {
    rsi_product_panels(x, h->m, h->n, h->k, a, h->k, h->b, true, c, ldc, &end);
  } else {
    if (bt) to_f32(x, h->n, h->k, h->b, h->bcs, 1, b);
    else to_f32(x, h->k, h->n, h->b, h->brs, h->bcs, b);
    rsi_product_end(x, RS_F32, h->m, h->n, h->k, a, at ? 1 : h->k, at ? h->m : 1, b, bt ? 1 : h->n, bt ? h->k : 1, h->beta, c, ldc, &end,
                    scratch);
  }
  if (h->c_bf16) to_bf16(x, h->m, h->n, c, h->c, h->ldc);
}

/* ---- the choice ------------------------------------------------------------------------------------------------------ */

/* Few rows with packed weights are bound by reading these, which plain vectors do as well. Tiles have something to sum. */
static bool by_amx(const rsi_exec *x, const rsi_half *h) { return rsi_half_native(x) && (!h->packed || h->m > 4) && h->k > 0; }

size_t rsi_half_scratch(const rsi_exec *x, const rsi_half *h) {
  if (h->m == 0 || h->n == 0) return 0;
  return by_amx(x, h) ? bytes_of_b(h) + bytes_of_a(h) : widen(x, h).bytes;
}

void rsi_half_product(const rsi_exec *x, const rsi_half *h, void *scratch) {
  if (h->m == 0 || h->n == 0) return;
  if (by_amx(x, h)) amx_product(x, h, scratch);
  else wide_product(x, h, scratch);
}
