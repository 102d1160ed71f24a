/*
** bf16 products by AMX. Two tiles of a and two of b give four tiles of c, 32 by 32, which stay in the tile registers over a run of
** DEEP columns of a; the panel of that run lies in L1 while the rows of a block pass by. Between two runs the sums wait in `sums`.
**
** Packing turns pairs of 16-bit elements along k into 32-bit units: where k is the fast dimension they are units already, else two
** rows are interleaved. What remains is moving units, which 16 by 16 transposes do.
*/
#include "kernels/gemm_amx.h"
#include "kernels/gemm.h"

#if RSI_ISA_LEVEL == 2
#include "kernels/bf16.h"
#include "kernels/row.h"
#include "kernels/tiles.h"
#include <immintrin.h>

#define AMX __attribute__((target("amx-tile,amx-bf16")))
#define ALWAYS static inline __attribute__((always_inline))

enum { ROWS = RSI_AMX_ROWS, RUN = RSI_AMX_DEEP, DEEP = 512, SIDE = RSI_PANEL, PANEL_ROW = 2 * RSI_PANEL };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- tiles ----------------------------------------------------------------------------------------------------------- */

/*
** s: [32 or 16 rows, 32] (+)= a x b over `runs` runs of 32. a0, a1: blocks of 16 rows; b: 16 rows of PANEL_ROW elements for each
** run. One block when a1 is NULL.
*/
AMX static void multiply(int64_t runs, const uint16_t *a0, int64_t row0, int64_t run0, const uint16_t *a1, int64_t row1, int64_t run1,
                         const uint16_t *b, bool more, float *s) {
  const int64_t line = SIDE * 4;
  float *const low = s + ROWS * SIDE;
  if (more) {
    _tile_loadd(0, s, line);
    _tile_loadd(1, s + 16, line);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  if (a1 == NULL) {
    for (int64_t r = 0; r < runs; r++, b += ROWS * PANEL_ROW) {
      _tile_loadd(4, a0 + r * run0, row0 * 2);
      _tile_loadd(6, b, PANEL_ROW * 2);
      _tile_loadd(7, b + 32, PANEL_ROW * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
  } else {
    if (more) {
      _tile_loadd(2, low, line);
      _tile_loadd(3, low + 16, line);
    } else {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t r = 0; r < runs; r++, b += ROWS * PANEL_ROW) {
      _tile_loadd(4, a0 + r * run0, row0 * 2);
      _tile_loadd(6, b, PANEL_ROW * 2);
      _tile_loadd(7, b + 32, PANEL_ROW * 2);
      _tile_loadd(5, a1 + r * run1, row1 * 2);
      if (r % 4 == 0) rsi_stay_awake();
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(2, low, line);
    _tile_stored(3, low + 16, line);
  }
  _tile_stored(0, s, line);
  _tile_stored(1, s + 16, line);
}

/* A row of sums, [n], as it goes into c. */
static void put_row(const rsi_amx *j, int64_t n, const float *bias, bool relu, const float *residual, const uint16_t *half, float *s, void *c) {
  if (bias != NULL) RSI_LOOP for (int64_t q = 0; q < n; q++) s[q] += bias[q];
  if (relu) RSI_LOOP for (int64_t q = 0; q < n; q++) s[q] = s[q] < 0 ? 0 : s[q];
  if (residual != NULL) RSI_LOOP for (int64_t q = 0; q < n; q++) s[q] += residual[q];
  if (half != NULL) RSI_LOOP for (int64_t q = 0; q < n; q++) s[q] += rsi_from_bf16(half[q]);
  if (j->c_bf16) RSI_LOOP for (int64_t q = 0; q < n; q++) ((uint16_t *)c)[q] = rsi_to_bf16(s[q]);
  else if (j->beta) RSI_LOOP for (int64_t q = 0; q < n; q++) ((float *)c)[q] += s[q];
  else RSI_LOOP for (int64_t q = 0; q < n; q++) ((float *)c)[q] = s[q];
}

ALWAYS __m256i to_bf16(__m512 x) {
  const __m512i u = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), _mm512_and_epi32(_mm512_srli_epi32(u, 16), one));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000)), 16));
}
ALWAYS __m512 of_bf16(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)), 16));
}

/* The same for m rows of a whole panel: s: [m, 32], the result at c, which has rows of ldc elements. bias NULL: none. */
static void put_whole(const rsi_amx *j, int64_t m, const float *bias, bool relu, const void *residual, const float *s, void *c) {
  const __m512 zero = _mm512_setzero_ps(), low = relu ? zero : _mm512_set1_ps(-__builtin_inff());
  const __m512 b0 = bias ? _mm512_loadu_ps(bias) : zero, b1 = bias ? _mm512_loadu_ps(bias + 16) : zero;
  const int64_t stride = j->end.stride;
  for (int64_t i = 0; i < m; i++, s += SIDE) {
    __m512 x = _mm512_add_ps(_mm512_load_ps(s), b0), y = _mm512_add_ps(_mm512_load_ps(s + 16), b1);
    x = _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, low, _CMP_LT_OQ), zero);
    y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(y, low, _CMP_LT_OQ), zero);
    if (residual && j->residual_bf16) {
      const uint16_t *const r = (const uint16_t *)residual + i * stride;
      x = _mm512_add_ps(x, of_bf16(r));
      y = _mm512_add_ps(y, of_bf16(r + 16));
    } else if (residual) {
      const float *const r = (const float *)residual + i * stride;
      x = _mm512_add_ps(x, _mm512_loadu_ps(r));
      y = _mm512_add_ps(y, _mm512_loadu_ps(r + 16));
    }
    if (j->c_bf16) {
      uint16_t *const to = (uint16_t *)c + i * j->ldc;
      _mm512_storeu_si512(to, _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(x)), to_bf16(y), 1));
    } else {
      float *const to = (float *)c + i * j->ldc;
      _mm512_storeu_ps(to, j->beta ? _mm512_add_ps(x, _mm512_loadu_ps(to)) : x);
      _mm512_storeu_ps(to + 16, j->beta ? _mm512_add_ps(y, _mm512_loadu_ps(to + 16)) : y);
    }
  }
}

/* The finished sums s: [m, n] of the part of c at (row, column) go where they belong. */
static void put(const rsi_amx *j, int64_t row, int64_t column, int64_t m, int64_t n, float *s) {
  const rsi_act act = j->end.act;
  const bool plain = act == RSI_ACT_NONE || act == RSI_ACT_RELU, relu = act == RSI_ACT_RELU;
  const size_t item = j->c_bf16 ? 2 : 4, other = j->residual_bf16 ? 2 : 4;
  if (!plain) {
    const rsi_gemm_end first = {.act = act, .bias = j->end.bias};
    RSI_ISA(rsi_gemm_end_f32)(&first, row, column, m, n, s, SIDE);
  }
  const float *const bias = plain && j->end.bias ? (const float *)j->end.bias + column : NULL;
  const char *residual = j->end.residual;
  if (residual) residual += (size_t)(row * j->end.stride + column) * other;
  char *c = (char *)j->c + (size_t)(row * j->ldc + column) * item;
  if (n == SIDE) {
    put_whole(j, m, bias, relu, residual, s, c);
    return;
  }
  for (int64_t i = 0; i < m; i++, s += SIDE, c += (size_t)j->ldc * item) {
    const void *const r = residual ? residual + (size_t)(i * j->end.stride) * other : NULL;
    put_row(j, n, bias, relu, j->residual_bf16 ? NULL : r, j->residual_bf16 ? r : NULL, s, c);
  }
}

/* What was summed and is not yet in c: it goes there while the tiles are at work on the next part. */
typedef struct waiting { float *s; int64_t row, column, m, n; } waiting;

/* Asks for the lines of c: [m, n] at (row, column), which will be written. */
static void ask_c(const rsi_amx *j, int64_t row, int64_t column, int64_t m, int64_t n) {
  const size_t item = j->c_bf16 ? 2 : 4;
  const char *c = (const char *)j->c + (size_t)(row * j->ldc + column) * item;
  for (int64_t i = 0; i < m; i++, c += (size_t)j->ldc * item)
    for (size_t at = 0; at < (size_t)n * item; at += 64) __builtin_prefetch(c + at, 1, 2);
}

/* Asks for `runs` runs of blocks i and i + 1 of a. */
static void ask_a(const rsi_amx *j, int64_t i, int64_t end, int64_t r, int64_t runs) {
  for (int64_t b = i; b < smaller(i + 2, end); b++)
    for (int64_t p = r; p < r + runs; p++)
      for (int64_t q = 0; q < ROWS; q++) __builtin_prefetch(j->a + b * j->a_block + p * j->a_run + q * j->a_row, 0, 2);
}

AMX static void block(const rsi_amx *j, int64_t row, int64_t rows, int64_t first, int64_t last) {
  _Alignas(64) float sums[(RSI_AMX_BLOCK + 2 * ROWS) * SIDE];
  rsi_tiles_begin();
  const int64_t size = rsi_panel_size(j->k, true), runs = (j->k + RUN - 1) / RUN, blocks = (j->m + ROWS - 1) / ROWS;
  const int64_t begin = row / ROWS, end = begin + (rows + ROWS - 1) / ROWS, most = smaller(end * ROWS, j->m);
  int64_t turn = 0;
  waiting last_one = {NULL, 0, 0, 0, 0};
  for (int64_t p = first; p < last; p++) {
    const uint16_t *const panel = j->b + p * size;
    for (int64_t r = 0; r == 0 || r < runs; r += DEEP / RUN) {
      const int64_t some = smaller(DEEP / RUN, runs - r);
      for (int64_t i = begin; i < end; i += 2) {
        /* A place for each pair of blocks; two in turn where that is enough. Never that of the sums that are waiting. */
        const int64_t place = some >= runs ? turn++ & 1 : end - begin <= 2 ? p & 1 : (i - begin) / 2;
        float *const s = sums + place * 2 * ROWS * SIDE;
        const uint16_t *a[2] = {NULL, NULL};
        int64_t line[2] = {j->a_row, j->a_row}, run[2] = {j->a_run, j->a_run};
        for (int h = 0; h < 2 && i + h < end; h++) {
          a[h] = j->a + (i + h) * j->a_block;
          if (i + h == blocks - 1 && j->a_last != NULL) a[h] = j->a_last, line[h] = RUN, run[h] = ROWS * RUN;
          a[h] += r * run[h];
        }
        if (p == first && i + 2 < end) ask_a(j, i + 2, j->a_last ? smaller(end, blocks - 1) : end, r, some);
        if (r + some >= runs) ask_c(j, i * ROWS, p * SIDE, smaller(2 * ROWS, most - i * ROWS), smaller(SIDE, j->n - p * SIDE));
        multiply(some, a[0], line[0], run[0], a[1], line[1], run[1], panel + r * ROWS * PANEL_ROW, r > 0, s);
        if (last_one.s != NULL) put(j, last_one.row, last_one.column, last_one.m, last_one.n, last_one.s);
        last_one.s = NULL;
        if (r + some >= runs)
          last_one = (waiting){s, i * ROWS, p * SIDE, smaller(2 * ROWS, most - i * ROWS), smaller(SIDE, j->n - p * SIDE)};
      }
    }
  }
  if (last_one.s != NULL) put(j, last_one.row, last_one.column, last_one.m, last_one.n, last_one.s);
  _tile_release();
}

/* ---- packing --------------------------------------------------------------------------------------------------------- */

/* to: [16 rows `line` units apart] = the transpose of v: 16 rows of 16 units */
ALWAYS void put_transposed(__m512i *v, uint32_t *to, int64_t line) {
  rsi_transpose_units(v);
  for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * line, v[i]);
}

ALWAYS __mmask32 first_of(int64_t n) { return n >= 32 ? 0xFFFFFFFFu : n <= 0 ? 0 : (1u << n) - 1u; }
ALWAYS __mmask16 first16_of(int64_t n) { return (__mmask16)(n >= 16 ? 0xFFFFu : n <= 0 ? 0 : (1u << n) - 1u); }

/* 16 vectors of units: vector i holds elements [i * stride, 32) of which `n` exist, for i < lines. k is the fast dimension. */
ALWAYS void load_units(const uint16_t *from, int64_t stride, int64_t lines, int64_t n, __m512i *v) {
  const __mmask32 mask = first_of(n);
  for (int i = 0; i < 16; i++) v[i] = i < lines ? _mm512_maskz_loadu_epi16(mask, from + i * stride) : _mm512_setzero_si512();
}

/* The same from two rows at a time: vector i holds rows 2i and 2i + 1 interleaved, 16 elements of which n exist; `deep` rows exist. */
ALWAYS void load_pairs(const uint16_t *from, int64_t stride, int64_t deep, int64_t n, __m512i *v) {
  const __mmask16 mask = first16_of(n);
  for (int i = 0; i < 16; i++) {
    const __m512i x = 2 * i < deep ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + 2 * i * stride)) : _mm512_setzero_si512();
    const __m512i y = 2 * i + 1 < deep ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + (2 * i + 1) * stride))
                                       : _mm512_setzero_si512();
    v[i] = _mm512_or_si512(x, _mm512_slli_epi32(y, 16));
  }
}

static void pack_a(int64_t first, int64_t last, int64_t m, int64_t k, const uint16_t *a, int64_t ars, int64_t acs, uint16_t *to) {
  const int64_t runs = (k + RUN - 1) / RUN;
  __m512i v[16];
  for (int64_t r = 0; r < runs; r++)
    for (int64_t i = first; i < last; i++) {
      uint16_t *const t = to + (i * runs + r) * ROWS * RUN;
      const uint16_t *const from = a + i * ROWS * ars + r * RUN * acs;
      const int64_t rows = smaller(ROWS, m - i * ROWS), deep = smaller(RUN, k - r * RUN);
      if (acs == 1) {
        load_units(from, ars, rows, deep, v);
        for (int q = 0; q < 16; q++) _mm512_storeu_si512(t + q * RUN, v[q]);
      } else if (ars == 1) {
        load_pairs(from, acs, deep, rows, v);
        put_transposed(v, (uint32_t *)(void *)t, 16);
      } else {
        memset(t, 0, ROWS * RUN * sizeof *t);
        for (int64_t q = 0; q < rows; q++)
          for (int64_t p = 0; p < deep; p++) t[q * RUN + p] = from[q * ars + p * acs];
      }
    }
}

static void pack_b(int64_t first, int64_t last, int64_t n, int64_t k, const uint16_t *b, int64_t brs, int64_t bcs, uint16_t *to) {
  const int64_t runs = (k + RUN - 1) / RUN, size = rsi_panel_size(k, true);
  __m512i v[16];
  for (int64_t r = 0; r < runs; r++)
    for (int64_t i = 2 * first; i < 2 * last; i++) {        /* halves of panels: 16 columns */
      uint16_t *const t = to + i / 2 * size + r * ROWS * PANEL_ROW + i % 2 * 32;
      const uint16_t *const from = b + i * 16 * bcs + r * RUN * brs;
      const int64_t columns = smaller(16, n - i * 16), deep = smaller(RUN, k - r * RUN);
      if (brs == 1 && bcs != 1) {
        load_units(from, bcs, columns, deep, v);
        put_transposed(v, (uint32_t *)(void *)t, RSI_PANEL);
      } else if (bcs == 1) {
        load_pairs(from, brs, deep, columns, v);
        for (int q = 0; q < 16; q++) _mm512_storeu_si512(t + q * PANEL_ROW, v[q]);
      } else {
        for (int64_t q = 0; q < 16; q++)
          for (int64_t p = 0; p < RUN; p++)
            t[p / 2 * PANEL_ROW + 2 * q + p % 2] = q < columns && p < deep ? from[q * bcs + p * brs] : 0;
      }
    }
}

const rsi_k_amx RSI_ISA(rsi_k_amx) = {.block = block, .pack_a = pack_a, .pack_b = pack_b};
#else
const rsi_k_amx RSI_ISA(rsi_k_amx) = {NULL, NULL, NULL};
#endif
