/*
** Products with a matrix that lies in panels (see gemm.h); included by gemm.c after gemm_body.h, for float.
**
** One row is bound by the memory that the panels come from: each panel is one stream, the columns are the lanes, so nothing is
** summed across lanes, and `runs` sums for each column hide the latency of an addition. More rows take the tiles of gemm_body.h.
** bf16 weights become floats by a shift or a mask, so products and sums are those of floats.
*/
#define PV (RSI_PANEL / LANES)       /* vectors of a row of a panel */
typedef uint32_t NAME(_w) __attribute__((vector_size(VECTOR), aligned(sizeof(T)), may_alias));

/* c: [n] = the sums of the vectors s: [runs, nv]; n <= nv * LANES */
ALWAYS void NAME(put_row)(int nv, int runs, V *s, int64_t n, T *c) {
  UNROLL for (int step = 1; step < runs; step *= 2)
    UNROLL for (int i = 0; i + step * nv < runs * nv; i++)
      if (i / nv % (2 * step) == 0) s[i] += s[i + step * nv];
  UNROLL for (int v = 0; v < nv; v++) {
    const int64_t left = n - v * LANES;
    if (left >= LANES) NAME(store)(c + v * LANES, s[v]);
    else if (left > 0) NAME(store_part)(c + v * LANES, NAME(mask_of)(left), s[v]);
  }
}

/* c: [n] = a: [k] x one panel of floats, of which nv vectors are read */
ALWAYS void NAME(row_panel)(int nv, int runs, int64_t n, int64_t k, const T *a, const T *b, T *c) {
  V s[8];
  int64_t p = 0;
  UNROLL for (int i = 0; i < nv * runs; i++) s[i] = (V){0};
  for (; p + runs <= k; p += runs)
    UNROLL for (int i = 0; i < nv * runs; i++) s[i] += NAME(splat)(a[p + i / nv]) * NAME(load)(b + (p + i / nv) * RSI_PANEL + i % nv * LANES);
  for (; p < k; p++)
    UNROLL for (int v = 0; v < nv; v++) s[v] += NAME(splat)(a[p]) * NAME(load)(b + p * RSI_PANEL + v * LANES);
  NAME(put_row)(nv, runs, s, n, c);
}

/* c: [m, n] for one block of rows and one run of k */
static void NAME(panel_block)(int64_t m, int64_t n, int64_t k, int64_t size, const T *a, int64_t lda, const T *b, int beta, T *c,
                              int64_t ldc, const rsi_gemm_end *end, int64_t row, int64_t column) {
  for (int64_t j = 0; j < n; j += RSI_PANEL, b += size) {
    const int64_t wide = smaller(RSI_PANEL, n - j);
    for (int64_t q = 0; q < wide; q += NR) {
      MASK mask;
      NAME(tile_fn) *const strip = NAME(strip_of)(smaller(NR, wide - q), &mask);
      for (int64_t i = 0; i < m; i += MR)
        strip(smaller(MR, m - i), k, a + i * lda, lda, 1, b + q, RSI_PANEL, mask, beta, c + i * ldc + j + q, ldc);
    }
    if (end != NULL) FINISH(end, row, column + j, m, wide, c + j, ldc);
  }
}

static void NAME(panels)(int64_t m, int64_t n, int64_t k, const T *a, int64_t lda, const T *b, T *c, int64_t ldc,
                         const rsi_gemm_end *end, int64_t row, int64_t column) {
  const int64_t size = k * RSI_PANEL;
  if (m == 1) {
    for (int64_t j = 0; j < n; j += RSI_PANEL, b += size)
      if (n - j > LANES) NAME(row_panel)(PV, 8 / PV, n - j, k, a, b, c + j);
      else NAME(row_panel)(1, 8, n - j, k, a, b, c + j);
    if (end != NULL) FINISH(end, row, column, 1, n, c, ldc);
    return;
  }
  for (int64_t i = 0; i < m; i += MC)
    for (int64_t p = 0; p == 0 || p < k; p += KC) {
      const int64_t depth = smaller(KC, k - p), height = smaller(MC, m - i);
      NAME(panel_block)(height, n, depth, size, a + i * lda + p, lda, b + p * RSI_PANEL, p > 0, c + i * ldc, ldc,
                        p + depth == k ? end : NULL, row + i, column);
    }
}

/* ---- bf16 ------------------------------------------------------------------------------------------------------------ */

/* c: [mr, n] = a: [mr, k] x one panel of bf16; `runs` pairs of rows of the panel at a time */
ALWAYS void NAME(rows_bf16)(int mr, int nv, int runs, int64_t n, int64_t k, const T *a, int64_t lda, const uint16_t *b, T *c,
                            int64_t ldc) {
  V s[4][16];
  int64_t p = 0;
  UNROLL for (int r = 0; r < mr; r++)
    UNROLL for (int i = 0; i < 2 * nv * runs; i++) s[r][i] = (V){0};
#define PAIR(t, odd_too)                                                                                                    \
  UNROLL for (int v = 0; v < nv; v++) {                                                                                     \
    const NAME(_w) w = *(const NAME(_w) *)(const void *)(b + (p + 2 * t) * RSI_PANEL + 2 * v * LANES);                      \
    const V even = (V)(w << 16), odd = (V)(w & 0xFFFF0000u);                                                                \
    UNROLL for (int r = 0; r < mr; r++) {                                                                                   \
      s[r][2 * t * nv + v] += NAME(splat)(a[r * lda + p + 2 * t]) * even;                                                   \
      if (odd_too) s[r][(2 * t + 1) * nv + v] += NAME(splat)(a[r * lda + p + 2 * t + 1]) * odd;                             \
    }                                                                                                                       \
  }
  for (; p + 2 * runs <= k; p += 2 * runs)
    UNROLL for (int t = 0; t < runs; t++) PAIR(t, true)
  for (; p + 2 <= k; p += 2) PAIR(0, true)
  if (p < k) PAIR(0, false)
#undef PAIR
  UNROLL for (int r = 0; r < mr; r++) NAME(put_row)(nv, 2 * runs, s[r], n, c + r * ldc);
}

/* Rows that are done together, and pairs when there is one row: what the registers hold. */
#if RSI_ISA_LEVEL == 2
enum { ROWS_BF16 = 4, PAIRS_BF16 = 2 };
#else
enum { ROWS_BF16 = 1, PAIRS_BF16 = 1 };
#endif

static void NAME(panels_bf16)(int64_t m, int64_t n, int64_t k, const T *a, int64_t lda, const uint16_t *b, T *c, int64_t ldc,
                              const rsi_gemm_end *end, int64_t row, int64_t column) {
  const int64_t size = rsi_panel_size(k, true);
  for (int64_t j = 0; j < n; j += RSI_PANEL, b += size) {
    for (int64_t i = 0, rows; i < m; i += rows) {
      const T *const x = a + i * lda;
      T *const y = c + i * ldc + j;
      rows = smaller(ROWS_BF16, m - i);
      if (rows >= 4) NAME(rows_bf16)(ROWS_BF16, PV, 1, n - j, k, x, lda, b, y, ldc);
      else if (rows >= 2) NAME(rows_bf16)(ROWS_BF16 < 2 ? 1 : 2, PV, 1, n - j, k, x, lda, b, y, ldc);
      else NAME(rows_bf16)(1, PV, PAIRS_BF16, n - j, k, x, lda, b, y, ldc);
      if (rows == 3) rows = 2;
    }
    if (end != NULL && m > 1) FINISH(end, row, column + j, m, smaller(RSI_PANEL, n - j), c + j, ldc);
  }
  if (end != NULL && m == 1) FINISH(end, row, column, 1, n, c, ldc);
}

/* ---- packing --------------------------------------------------------------------------------------------------------- */

static void NAME(pack_panels)(int64_t first, int64_t last, int64_t n, int64_t k, const T *b, int64_t brs, int64_t bcs, bool bf16,
                              void *panels) {
  enum { RUN = 32 };
  T part[RUN * RSI_PANEL];
  for (int64_t j = first; j < last; j++) {
    const T *const from = b + j * RSI_PANEL * bcs;
    const int64_t width = smaller(RSI_PANEL, n - j * RSI_PANEL);
    if (!bf16) {
      T *const to = (T *)panels + j * rsi_panel_size(k, false);
      if (width < RSI_PANEL) memset(to, 0, (size_t)rsi_panel_size(k, false) * sizeof(T));
      NAME(pack_panel)(k, width, RSI_PANEL, from, brs, bcs, to);
      continue;
    }
    uint16_t *to = (uint16_t *)panels + j * rsi_panel_size(k, true);
    for (int64_t p = 0; p < k; p += RUN) {
      const int64_t depth = smaller(RUN, k - p);
      if (depth < RUN || width < RSI_PANEL) memset(part, 0, sizeof part);
      NAME(pack_panel)(depth, width, RSI_PANEL, from + p * brs, brs, bcs, part);
      for (int64_t q = 0; q < RUN; q += 2, to += 2 * RSI_PANEL)
        for (int64_t i = 0; i < RSI_PANEL; i++) {
          to[2 * i] = rsi_to_bf16(part[q * RSI_PANEL + i]);
          to[2 * i + 1] = rsi_to_bf16(part[(q + 1) * RSI_PANEL + i]);
        }
    }
  }
}
#undef PV
