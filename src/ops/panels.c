/*
** A product with a matrix that was packed into panels (kernels/gemm.h), on as many threads as it pays for. The result is cut into
** blocks of rows and of panels, by its shape alone.
*/
#include "ops/product.h"

enum { ROWS = 96, ROW_UNIT = 24, ITEM_NS = 20000, ITEMS = 64 };   /* least rows of a block and their unit; its least work; most blocks */
enum { ROW_NS = 5000 };                                           /* least work of a block of one row */

typedef struct job {
  const rsi_k_gemm *gemm;
  int64_t m, n, k, lda, ldc;
  const float *a;
  const void *b;
  bool    bf16;
  float  *c;
  const rsi_gemm_end *end;
  int64_t block_m, block_n, across;
} job;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* Returns the nanoseconds of a block. Rows first, since each block reads the panels of its columns; one row is bound by reading. */
static double cut(job *j, rsi_isa_level level) {
  const double weight = (double)j->n * (double)j->k;
  const double step = level == RSI_ISA_AVX512 ? 0.006 : level == RSI_ISA_AVX2 ? 0.012 : 0.04;
  const double read = weight * (j->bf16 ? 0.08 : 0.15), compute = step * weight * (double)j->m, total = read > compute ? read : compute;
  const double least = j->m == 1 ? ROW_NS : ITEM_NS;
  const int64_t most = larger(1, smaller(ITEMS, (int64_t)(total / least))), panels = rsi_panels(j->n);
  const int64_t down = j->m < 2 * ROWS ? 1 : smaller(most, j->m / ROWS), across = larger(1, smaller(most / down, panels));
  j->block_m = down > 1 ? parts(parts(j->m, down), ROW_UNIT) * ROW_UNIT : j->m;
  j->block_n = parts(panels, across) * RSI_PANEL;
  j->across = parts(j->n, j->block_n);
  if (j->m == 1) return 2.0 * ITEM_NS;      /* enough for each block to be handed out on its own */
  return total / (double)(j->across * parts(j->m, j->block_m));
}

static void run(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++) {
    const int64_t row = i / j->across * j->block_m, column = i % j->across * j->block_n;
    const int64_t m = smaller(j->block_m, j->m - row), n = smaller(j->block_n, j->n - column);
    const float *const a = j->a + row * j->lda;
    float *const c = j->c + row * j->ldc + column;
    const int64_t at = column / RSI_PANEL * rsi_panel_size(j->k, j->bf16);
    if (j->bf16) j->gemm->panels_bf16(m, n, j->k, a, j->lda, (const uint16_t *)j->b + at, c, j->ldc, j->end, row, column);
    else j->gemm->panels(m, n, j->k, a, j->lda, (const float *)j->b + at, c, j->ldc, j->end, row, column);
  }
}

void rsi_product_panels(const rsi_exec *x, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const void *b, bool bf16,
                        float *c, int64_t ldc, const rsi_gemm_end *end) {
  job j = {.gemm = x->k->gemm, .m = m, .n = n, .k = k, .lda = lda, .ldc = ldc, .a = a, .b = b, .bf16 = bf16, .c = c};
  if (m == 0 || n == 0) return;
  if (end->act != RSI_ACT_NONE || end->bias || end->residual) j.end = end;
  const double work = cut(&j, x->k->level);
  rsi_parallel(x, j.across * parts(m, j.block_m), work, run, &j);
}
