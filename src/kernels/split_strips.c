/* Split products of strips, 32 by 32 of c at a time. The sums of one place go to c while the tiles are at work on the next. */
#include "kernels/split_strips.h"
#include "kernels/split_tiles.h"

#if RSI_ISA_LEVEL == 2

enum { CHUNK = RSI_SPLIT_CHUNK / RSI_DEEP };    /* runs whose sums stay in the tiles */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

RSI_TILES static void pack_rows(int64_t m, int64_t n, const float *x, int64_t ld, uint16_t *to, int64_t step) {
  __m512 low[RSI_SIDE], high[RSI_SIDE];
  for (; m > 0; m -= RSI_SIDE, x += RSI_SIDE * ld, to += step) {
    rsi_load16(x, ld, 1, m, n, low);
    rsi_load16(x + RSI_SIDE, ld, 1, m, n - RSI_SIDE, high);
    rsi_put_run(low, high, to);
  }
}

RSI_TILES static void pack_columns(int64_t n, int64_t k, const float *b, int64_t deep, int64_t side, uint16_t *to) {
  __m512 low[RSI_SIDE], high[RSI_SIDE];
  for (; k > 0; k -= RSI_DEEP, b += RSI_DEEP * deep, to += RSI_RUN) {
    rsi_load16(b, deep, side, k, n, low);
    rsi_load16(b + RSI_SIDE * deep, deep, side, k - RSI_SIDE, n, high);
    rsi_put_run(low, high, to);
  }
}

/* The sums of a chunk of k for rows i.. and columns j.. of c, as tiles [down][across]. */
typedef struct place {
  float  *sums;
  int64_t i, j;
  int     down, across;
  bool    add;
} place;

/* c (+)= the sums; whether one is odd. */
RSI_TILES static __mmask16 put(const place *w, int64_t m, int64_t n, float *c, int64_t ldc) {
  __mmask16 odd = 0;
  for (int h = 0; h < w->down; h++)
    for (int q = 0; q < w->across; q++) {
      const int64_t row = w->i + h * RSI_SIDE, column = w->j + q * RSI_SIDE, count = smaller(RSI_SIDE, m - row);
      const __mmask16 mask = rsi_first_of(n - column);
      const float *from = w->sums + (h * w->across + q) * RSI_SIDE * RSI_SIDE;
      float *to = c + row * ldc + column;
      for (int64_t i = 0; i < count; i++, from += RSI_SIDE, to += ldc) {
        __m512 v = _mm512_load_ps(from);
        odd |= rsi_odd(v);
        if (w->add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to));
        _mm512_mask_storeu_ps(to, mask, v);
      }
    }
  return odd;
}

RSI_TILES static bool product(int64_t m, int64_t n, int64_t runs, const uint16_t *a, const uint16_t *b, float *c, int64_t ldc,
                              const rsi_soon *soon, int count) {
  _Alignas(64) float sums[2][4 * RSI_SIDE * RSI_SIDE];
  const int64_t strip = runs * RSI_RUN;
  rsi_asking q = rsi_ask_begin(soon, count, (m + 31) / 32 * ((n + 31) / 32) * runs * RSI_BETWEEN);
  __mmask16 odd = 0;
  place last = {0};
  int turn = 0;
  rsi_tiles_begin();
  for (int64_t r = 0; r < runs; r += CHUNK) {
    const int64_t chunk = smaller(CHUNK, runs - r);
    for (int64_t j = 0; j < n; j += 2 * RSI_SIDE)
      for (int64_t i = 0; i < m; i += 2 * RSI_SIDE) {
        const place w = {sums[turn ^= 1], i, j, m - i > RSI_SIDE ? 2 : 1, n - j > RSI_SIDE ? 2 : 1, r > 0};
        const uint16_t *const at = a + i / RSI_SIDE * strip + r * RSI_RUN, *const by = b + j / RSI_SIDE * strip + r * RSI_RUN;
        const rsi_split_runs rows = {{at, at + strip}, RSI_RUN}, columns = {{by, by + strip}, RSI_RUN};
        if (w.down == 2 && w.across == 2) rsi_split_multiply(2, 2, chunk, &rows, &columns, rsi_ask, &q, w.sums);
        else if (w.down == 2) rsi_split_multiply(2, 1, chunk, &rows, &columns, rsi_ask, &q, w.sums);
        else if (w.across == 2) rsi_split_multiply(1, 2, chunk, &rows, &columns, rsi_ask, &q, w.sums);
        else rsi_split_multiply(1, 1, chunk, &rows, &columns, rsi_ask, &q, w.sums);
        odd |= put(&last, m, n, c, ldc);
        last = w;
      }
  }
  odd |= put(&last, m, n, c, ldc);
  _tile_release();
  return odd == 0;
}

const rsi_k_split_strips RSI_ISA(rsi_k_split_strips) = {pack_rows, pack_columns, product};
#else
const rsi_k_split_strips RSI_ISA(rsi_k_split_strips) = {NULL, NULL, NULL};
#endif
