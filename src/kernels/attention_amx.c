/*
** Attention on AMX. A product computes 32 by 32 of the result in four tiles, from two tiles of each operand. Transposing moves
** 32-bit units (two elements that stand together along k) in blocks of 16 by 16.
*/
#include "kernels/isa.h"
#include "kernels/attention_amx.h"

#if RSI_ISA_LEVEL == 2
#include "kernels/bf16.h"
#include "kernels/row.h"
#include "kernels/tiles.h"
#include "kernels/vmath.h"
#include <immintrin.h>

#define AMX __attribute__((target("amx-tile,amx-bf16")))
#define ALWAYS static inline __attribute__((always_inline))

enum { SIDE = RSI_TILE_SIDE, UNIT_ROW = 2 * SIDE, AHEAD = 12 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- products -------------------------------------------------------------------------------------------------------- */

AMX static void open_tiles(void) { rsi_tiles_begin(); }

AMX static void close_tiles(void) { _tile_release(); }

AMX static void product(int64_t m, int64_t n, int64_t k, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t panel, bool more, float *c,
                        int64_t ldc) {
  const int64_t line = ldc * 4;
  for (int64_t j = 0; j < n; j += SIDE, b += panel)
    for (int64_t i = 0; i < m; i += SIDE) {
      float *const top = c + i * ldc + j, *const low = top + 16 * ldc;
      const uint16_t *const a0 = a + i * lda, *const a1 = a0 + 16 * lda;
      if (more) {
        _tile_loadd(0, top, line);
        _tile_loadd(1, top + 16, line);
        _tile_loadd(2, low, line);
        _tile_loadd(3, low + 16, line);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int64_t p = 0; p < k; p += SIDE) {
        _tile_loadd(4, a0 + p, lda * 2);
        _tile_loadd(6, b + p * SIDE, UNIT_ROW * 2);
        _tile_loadd(7, b + p * SIDE + 32, UNIT_ROW * 2);
        _tile_loadd(5, a1 + p, lda * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, top, line);
      _tile_stored(1, top + 16, line);
      _tile_stored(2, low, line);
      _tile_stored(3, low + 16, line);
    }
}

/* ---- forms ----------------------------------------------------------------------------------------------------------- */

/* Asks for a row that is read soon: rows lie apart, so nobody else does. */
static void ask(const void *row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)row + at, 0, 3);
}

static void read(int64_t rows, int64_t n, const void *from, bool bf16, int64_t rs, int64_t cs, int64_t high, int64_t wide, uint16_t *to,
                 int64_t ld) {
  const int64_t item = bf16 ? 2 : 4;
  for (int64_t i = 0; i < rows; i++, to += ld) {
    if (i + AHEAD < rows && cs == 1) ask((const char *)from + (i + AHEAD) * rs * item, n * item);
    if (bf16) {
      const uint16_t *const x = (const uint16_t *)from + i * rs;
      if (cs == 1) memcpy(to, x, (size_t)n * sizeof *to);
      else for (int64_t j = 0; j < n; j++) to[j] = x[j * cs];
    } else {
      const float *const x = (const float *)from + i * rs;
      if (cs == 1) RSI_LOOP for (int64_t j = 0; j < n; j++) to[j] = rsi_to_bf16(x[j]);
      else for (int64_t j = 0; j < n; j++) to[j] = rsi_to_bf16(x[j * cs]);
    }
    if (n < wide) memset(to + n, 0, (size_t)(wide - n) * sizeof *to);
  }
  for (int64_t i = rows; i < high; i++, to += ld) memset(to, 0, (size_t)wide * sizeof *to);
}

/* 16 columns of two rows as units */
ALWAYS __m512i interleaved(const uint16_t *x, const uint16_t *y) {
  const __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)x));
  const __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)y));
  return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

static void pairs(int64_t rows, int64_t n, const uint16_t *x, int64_t ld, uint16_t *to, int64_t panel) {
  for (int64_t j = 0; j < n; j += SIDE, to += panel)
    for (int64_t i = 0; i < rows; i += 2) {
      const uint16_t *const a = x + i * ld + j, *const b = a + ld;
      _mm512_storeu_si512(to + i * SIDE, interleaved(a, b));
      _mm512_storeu_si512(to + i * SIDE + 32, interleaved(a + 16, b + 16));
    }
}

static void turned_pairs(int64_t rows, int64_t n, const uint16_t *x, int64_t ld, uint16_t *to, int64_t panel) {
  __m512i v[16];
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t j = 0; j < n; j += SIDE) {
      uint16_t *const t = to + i / SIDE * panel + i % SIDE * 2 + j * SIDE;
      for (int r = 0; r < 16; r++) v[r] = _mm512_loadu_si512(x + (i + r) * ld + j);
      rsi_transpose_units(v);
      for (int r = 0; r < 16; r++) _mm512_storeu_si512(t + r * UNIT_ROW, v[r]);
    }
}

static void turned(int64_t rows, int64_t n, const uint16_t *x, int64_t ld, uint16_t *to, int64_t ldt) {
  __m512i v[16];
  for (int64_t i = 0; i < rows; i += SIDE)
    for (int64_t j = 0; j < n; j += 16) {
      for (int r = 0; r < 16; r++) v[r] = interleaved(x + (i + 2 * r) * ld + j, x + (i + 2 * r + 1) * ld + j);
      rsi_transpose_units(v);
      for (int r = 0; r < 16; r++) _mm512_storeu_si512(to + (j + r) * ldt + i, v[r]);
    }
}

/* ---- rows of scores --------------------------------------------------------------------------------------------------- */

static int64_t taking_part(const rsi_tile_block *b, int64_t row) {
  const int64_t m = b->visible >= b->n ? b->n : b->visible + row;
  return m < 0 ? 0 : smaller(m, b->n);
}

/* Zeros in w from column m of row i on, and below the last row. */
static void blank(const rsi_tile_block *b, int64_t i, int64_t m, uint16_t *w) {
  memset(w + m, 0, (size_t)(b->wide - m) * sizeof *w);
  for (int64_t r = b->rows; i == b->rows - 1 && r < b->high; r++) memset(w + (r - i) * b->ld, 0, (size_t)b->wide * sizeof *w);
}

static float largest(const float *s, int64_t n) {
  __m512 m = _mm512_set1_ps(-INFINITY);
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) m = _mm512_max_ps(_mm512_loadu_ps(s + j), m);      /* a NaN in s is ignored here */
  if (j < n) {
    const __mmask16 left = (__mmask16)((1u << (n - j)) - 1u);
    m = _mm512_mask_max_ps(m, left, _mm512_maskz_loadu_ps(left, s + j), m);
  }
  return _mm512_reduce_max_ps(m);
}

/* As rsi_to_bf16; a NaN keeps its upper half, which is one for what processors make. */
ALWAYS __m256i to_bf16(__m512 x) {
  const __m512i u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd), 16));
}

/* s: [n] becomes exp(scale s - low); in w it is rounded. Returns the sum. */
static float exponentials(int64_t n, float *s, float scale, float low, uint16_t *w) {
  __m512 sum = _mm512_setzero_ps();
  RSI_LOOP for (int64_t j = 0; j < n; j++) s[j] = rsi_exp_down_f32(s[j] * scale - low);
  for (int64_t j = 0; j < n; j += 16) {
    const __mmask16 there = (__mmask16)(n - j >= 16 ? 0xFFFFu : (1u << (n - j)) - 1u);
    const __m512 e = _mm512_maskz_loadu_ps(there, s + j);
    sum = _mm512_add_ps(sum, e);
    _mm256_mask_storeu_epi16(w + j, there, to_bf16(e));
  }
  return _mm512_reduce_add_ps(sum);
}

static void weights(const rsi_tile_block *b, float *s, float *max, float *sum, float *factor, uint16_t *w) {
  for (int64_t i = 0; i < b->rows; i++, s += b->ld, w += b->ld) {
    const int64_t m = taking_part(b, i);
    const float here = m > 0 ? b->scale * largest(s, m) : -INFINITY, top = here > max[i] ? here : max[i];
    const float anchor = top > -INFINITY ? top : 0;      /* nothing to see so far: all weights are exp(-inf) = 0 */
    factor[i] = rsi_exp_down_f32(max[i] - anchor);
    max[i] = top;
    sum[i] = sum[i] * factor[i] + exponentials(m, s, b->scale, anchor, w);
    blank(b, i, m, w);
  }
}

static void probabilities(const rsi_tile_block *b, float *s, const float *lse, uint16_t *w) {
  for (int64_t i = 0; i < b->rows; i++, s += b->ld, w += b->ld) {
    const int64_t m = lse[i] == -INFINITY ? 0 : taking_part(b, i);
    exponentials(m, s, b->scale, lse[i], w);
    blank(b, i, m, w);
  }
}

static void grad(const rsi_tile_block *b, const uint16_t *w, const float *s, const float *delta, uint16_t *d) {
  for (int64_t i = 0; i < b->rows; i++, w += b->ld, s += b->ld, d += b->ld) {
    const float e = delta[i];
    const int64_t m = taking_part(b, i);
    for (int64_t j = 0; j < m; j += 16) {
      const __mmask16 there = (__mmask16)(m - j >= 16 ? 0xFFFFu : (1u << (m - j)) - 1u);
      const __m512i p = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, w + j)), 16);
      const __m512 x = _mm512_sub_ps(_mm512_maskz_loadu_ps(there, s + j), _mm512_set1_ps(e));
      _mm256_mask_storeu_epi16(d + j, there, to_bf16(_mm512_mul_ps(_mm512_castsi512_ps(p), x)));
    }
    blank(b, i, m, d);
  }
}

static void dots(int64_t rows, int64_t n, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t ldb, float *out) {
  for (int64_t i = 0; i < rows; i++, a += lda, b += ldb) {
    float lanes[16] = {0}, sum = 0;
    for (int64_t j = 0; j < n; j += 16)      /* n is a multiple of 32 */
      RSI_LOOP for (int l = 0; l < 16; l++) lanes[l] += rsi_from_bf16(a[j + l]) * rsi_from_bf16(b[j + l]);
    for (int l = 0; l < 16; l++) sum += lanes[l];
    out[i] = sum;
  }
}

static void write(int64_t rows, int64_t n, const float *x, int64_t ld, float scale, const float *factor, void *to, bool bf16) {
  for (int64_t i = 0; i < rows; i++, x += ld) {
    const float f = factor ? scale * factor[i] : scale;
    if (bf16) {
      uint16_t *const y = (uint16_t *)to + i * n;
      RSI_LOOP for (int64_t j = 0; j < n; j++) y[j] = rsi_to_bf16(rsi_plain_nan(x[j] * f));
    } else {
      float *const y = (float *)to + i * n;
      RSI_LOOP for (int64_t j = 0; j < n; j++) y[j] = x[j] * f;
    }
  }
}

const rsi_attention_tiles RSI_ISA(rsi_attention_tiles) = {
  .read = read, .pairs = pairs, .turned_pairs = turned_pairs, .turned = turned, .open = open_tiles, .product = product, .close = close_tiles,
  .weights = weights, .probabilities = probabilities, .grad = grad, .dots = dots, .write = write};
#else
const rsi_attention_tiles RSI_ISA(rsi_attention_tiles) = {.read = NULL};
#endif
