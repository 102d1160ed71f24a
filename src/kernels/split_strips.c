/* Split products of strips, 32 by 32 of c at a time. The sums of one place go to c while the tiles are at work on the next. */
#include "kernels/split_strips.h"
#include "kernels/split_tiles.h"

#if RSI_ISA_LEVEL == 2

enum { CHUNK = RSI_SPLIT_CHUNK / RSI_DEEP };    /* runs whose sums stay in the tiles */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

RSI_TILES static void rows(int64_t m, int64_t n, const float *x, int64_t ld, uint16_t *to, int64_t step) {
  __m512 low[RSI_SIDE], high[RSI_SIDE];
  for (; m > 0; m -= RSI_SIDE, x += RSI_SIDE * ld, to += step) {
    rsi_load16(x, ld, 1, m, n, low);
    rsi_load16(x + RSI_SIDE, ld, 1, m, n - RSI_SIDE, high);
    rsi_put_run(low, high, to);
  }
}

RSI_TILES static void columns(int64_t n, int64_t k, const float *b, int64_t deep, int64_t side, uint16_t *to) {
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

/* Where in a list of memory to ask for we are. */
typedef struct asking {
  const rsi_soon *list, *end;
  const char *row, *at;
  int64_t rows, pieces, lines;     /* left */
} asking;

static void start(asking *q) {
  if (q->list == q->end) return;
  q->row = q->at = q->list->at;
  q->rows = q->list->rows, q->pieces = q->list->pieces, q->lines = q->list->lines;
}

static inline __attribute__((always_inline)) void ask(asking *q, int count) {
  for (; count > 0 && q->list < q->end; count--) {
    const rsi_soon *const s = q->list;
    _mm_prefetch(q->at + (s->lines - q->lines) * 64, _MM_HINT_T1);
    if (--q->lines > 0) continue;
    q->lines = s->lines, q->at += s->step;
    if (--q->pieces > 0) continue;
    q->pieces = s->pieces, q->at = q->row += s->ld;
    if (--q->rows > 0) continue;
    q->list++;
    start(q);
  }
}

enum { GROUPS = 6 };               /* of tile products in a run, after each of which `each` lines are asked for */

/* As rsi_split_multiply, for strips. */
RSI_TILES_IN void multiply(int down, int across, int64_t runs, const uint16_t *a0, const uint16_t *b0, int64_t strip, asking *q, int each,
                           float *sums) {
  const bool lower = down > 1, right = across > 1;
  const uint16_t *a1 = lower ? a0 + strip : a0, *b1 = right ? b0 + strip : b0;
  _tile_zero(0);
  if (right) _tile_zero(1);
  if (lower) _tile_zero(2);
  if (lower && right) _tile_zero(3);
  for (int64_t r = 0; r < runs; r++) {
#define LOAD_A(p) { _tile_loadd(4, a0 + (p) * RSI_TILE, 64); if (lower) _tile_loadd(5, a1 + (p) * RSI_TILE, 64); }
#define LOAD_B(p) { _tile_loadd(6, b0 + (p) * RSI_TILE, 64); if (right) _tile_loadd(7, b1 + (p) * RSI_TILE, 64); }
#define TIMES {                                                                                                             \
    _tile_dpbf16ps(0, 4, 6);                                                                                                \
    if (right) _tile_dpbf16ps(1, 4, 7);                                                                                     \
    if (lower) _tile_dpbf16ps(2, 5, 6);                                                                                     \
    if (lower && right) _tile_dpbf16ps(3, 5, 7);                                                                            \
    ask(q, each);                                                                                                           \
  }
    LOAD_A(2) LOAD_B(0) TIMES
    LOAD_A(1) TIMES
    LOAD_B(1) TIMES
    LOAD_A(0) TIMES
    LOAD_B(2) TIMES
    LOAD_B(0) TIMES
#undef LOAD_A
#undef LOAD_B
#undef TIMES
    a0 += RSI_RUN, a1 += RSI_RUN, b0 += RSI_RUN, b1 += RSI_RUN;
  }
  _tile_stored(0, sums, 64);
  if (right) _tile_stored(1, sums + 256, 64);
  if (lower) _tile_stored(2, sums + across * 256, 64);
  if (lower && right) _tile_stored(3, sums + 768, 64);
}

RSI_TILES static bool product(int64_t m, int64_t n, int64_t runs, const uint16_t *a, const uint16_t *b, float *c, int64_t ldc,
                              const rsi_soon *soon, int count) {
  _Alignas(64) float sums[2][4 * RSI_SIDE * RSI_SIDE];
  const int64_t strip = runs * RSI_RUN, groups = (m + 31) / 32 * ((n + 31) / 32) * runs * GROUPS;
  asking q = {.list = soon, .end = soon + count};
  int64_t lines = 0;
  for (int i = 0; i < count; i++) lines += soon[i].rows * soon[i].pieces * soon[i].lines;
  const int each = (int)((lines + groups - 1) / groups);
  start(&q);
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
        if (w.down == 2 && w.across == 2) multiply(2, 2, chunk, at, by, strip, &q, each, w.sums);
        else if (w.down == 2) multiply(2, 1, chunk, at, by, strip, &q, each, w.sums);
        else if (w.across == 2) multiply(1, 2, chunk, at, by, strip, &q, each, w.sums);
        else multiply(1, 1, chunk, at, by, strip, &q, each, w.sums);
        odd |= put(&last, m, n, c, ldc);
        last = w;
      }
  }
  odd |= put(&last, m, n, c, ldc);
  _tile_release();
  return odd == 0;
}

const rsi_k_split_strips RSI_ISA(rsi_k_split_strips) = {rows, columns, product};
#else
const rsi_k_split_strips RSI_ISA(rsi_k_split_strips) = {NULL, NULL, NULL};
#endif
