/*
** f32 products by the bf16 tiles of AMX: what every kernel of that kind is made of.
**
** An f32 is the sum of three bf16, each the rounding of what the ones before it leave: x = x0 + x1 + x2, |x1| <= |x| / 2^8,
** |x2| <= |x| / 2^17. Of the nine products of the parts of x and y the six x0 y0, x0 y1, x1 y0, x0 y2, x1 y1, x2 y0 are taken; the rest
** is below |x y| / 2^24. A product of two bf16 is exact in f32, so what is left of the error are the roundings of the sum, as in a loop
** of f32. Measured against f64 (normal and uniform data, k = 64 to 4096): half the error of a plain loop of FMA.
** A number that is not finite or rounds beyond the largest bf16 gives NaN wherever it takes part, and parts below 2^-126 are
** zero; `odd` of the sums tells, and then the caller computes that result by FMA.
**
** Everything is made of tiles of 16 rows of 64 bytes. A run is 32 steps of k. Of the steps of a run, i and i + 16 stand side by side
** as the two halves of unit i, in a and in b.
**   a: [3 parts][16 rows][16 units]; the rows of a part may lie at any distance, the parts too.
**   b: [3 parts][16 units][16 columns], each 32 bits, without gaps: RSI_RUN elements.
*/
#ifndef RSI_K_SPLIT_TILES_H
#define RSI_K_SPLIT_TILES_H

#include "base/base.h"
#include "kernels/isa.h"
#include "kernels/split_gemm.h"

enum { RSI_SIDE = 16, RSI_DEEP = 32, RSI_TILE = 512, RSI_PARTS = 3, RSI_RUN = RSI_PARTS * RSI_TILE };   /* elements */

#if RSI_ISA_LEVEL == 2
#include "kernels/tiles.h"
#include <immintrin.h>
#include <string.h>

#define RSI_TILES __attribute__((target("amx-tile,amx-bf16,avx512bf16")))
#define RSI_TILES_IN RSI_TILES static inline __attribute__((always_inline))

/* ---- splitting ------------------------------------------------------------------------------------------------------- */

/*
** x and y become 16 units (x_i low, y_i high) of each part. Rounded by integers, since the instructions for it take twice as long: what is
** not finite, or not once it is rounded, leaves a NaN in one of the parts; what the first two parts leave has 8 bits.
*/
RSI_TILES_IN void rsi_split(__m512 x, __m512 y, __m512i part[RSI_PARTS]) {
  const __m512i high = _mm512_set1_epi32((int)0xFFFF0000u), half = _mm512_set1_epi32(0x8000);
  for (int p = 0; p < RSI_PARTS - 1; p++) {
    const __m512i a = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), high);
    const __m512i b = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(y), half), high);
    part[p] = _mm512_or_si512(_mm512_srli_epi32(a, 16), b);
    x = _mm512_sub_ps(x, _mm512_castsi512_ps(a));
    y = _mm512_sub_ps(y, _mm512_castsi512_ps(b));
  }
  const __m512i last = _mm512_and_si512(_mm512_castps_si512(y), high);
  part[RSI_PARTS - 1] = _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(x), 16), last);
}

/* v: [16][16] = its transpose */
RSI_TILES_IN void rsi_transpose16(__m512 v[RSI_SIDE]) {
  __m512i u[RSI_SIDE];
  for (int i = 0; i < RSI_SIDE; i++) u[i] = _mm512_castps_si512(v[i]);
  rsi_transpose_units(u);
  for (int i = 0; i < RSI_SIDE; i++) v[i] = _mm512_castsi512_ps(u[i]);
}

RSI_TILES_IN __mmask16 rsi_first_of(int64_t n) { return (__mmask16)(n >= 16 ? 0xFFFFu : n <= 0 ? 0 : (1u << n) - 1u); }

/* v: [16][16] = the rows x columns that exist of a matrix with strides rs and cs; zeros elsewhere. */
RSI_TILES_IN void rsi_load16(const float *from, int64_t rs, int64_t cs, int64_t rows, int64_t columns, __m512 v[RSI_SIDE]) {
  if (cs == 1) {
    const __mmask16 mask = rsi_first_of(columns);
    for (int i = 0; i < 16; i++) v[i] = i < rows ? _mm512_maskz_loadu_ps(mask, from + i * rs) : _mm512_setzero_ps();
    return;
  }
  if (rs == 1) {
    const __mmask16 mask = rsi_first_of(rows);
    for (int i = 0; i < 16; i++) v[i] = i < columns ? _mm512_maskz_loadu_ps(mask, from + i * cs) : _mm512_setzero_ps();
    rsi_transpose16(v);
    return;
  }
  for (int i = 0; i < 16; i++) {
    float line[16] = {0};
    for (int64_t q = 0; i < rows && q < columns && q < 16; q++) line[q] = from[i * rs + q * cs];
    v[i] = _mm512_loadu_ps(line);
  }
}

/* 16 rows of units of x and y, as a run of a or of b wants them. */
RSI_TILES_IN void rsi_put_run(const __m512 x[RSI_SIDE], const __m512 y[RSI_SIDE], uint16_t *to) {
  for (int i = 0; i < RSI_SIDE; i++) {
    __m512i part[RSI_PARTS];
    rsi_split(x[i], y[i], part);
    for (int p = 0; p < RSI_PARTS; p++) _mm512_storeu_si512(to + p * RSI_TILE + i * RSI_DEEP, part[p]);
  }
}

/* ---- products -------------------------------------------------------------------------------------------------------- */

/* What is done between the products of tiles, which take some 100 cycles each: RSI_BETWEEN times in a run. NULL: nothing. */
typedef void (*rsi_between_fn)(void *arg);
enum { RSI_BETWEEN = 6 };

/* The sums of `down` tiles of rows by `across` of columns, 1 or 2 of each, are in tiles 0 to 3. */
RSI_TILES_IN void rsi_split_begin(int down, int across) {
  _tile_zero(0);
  if (across > 1) _tile_zero(1);
  if (down > 1) _tile_zero(2);
  if (down > 1 && across > 1) _tile_zero(3);
}

/* sums: [down][across][16][16], the second row of tiles `lower` floats after the first */
RSI_TILES_IN void rsi_split_end(int down, int across, float *sums, int64_t lower) {
  _tile_stored(0, sums, 64);
  if (across > 1) _tile_stored(1, sums + 256, 64);
  if (down > 1) _tile_stored(2, sums + lower, 64);
  if (down > 1 && across > 1) _tile_stored(3, sums + lower + 256, 64);
}

/*
** The products of a run: tiles a0 and a1, b0 and b1, whose parts lie a_part and b_part elements apart; with `parts` 1 the operands
** are bf16 and there is one product. The small products come first. Each pair of a's and b's parts shares a part with the pair before it,
** so a run of 2 x 2 loads 14 tiles for 24 products.
*/
RSI_TILES_IN void rsi_split_run(int parts, int down, int across, const uint16_t *a0, const uint16_t *a1, int64_t a_part, const uint16_t *b0,
                                const uint16_t *b1, int64_t b_part, rsi_between_fn between, void *arg) {
  const bool lower = down > 1, right = across > 1;
#define LOAD_A(p) { _tile_loadd(4, a0 + (p) * a_part, 64); if (lower) _tile_loadd(5, a1 + (p) * a_part, 64); }
#define LOAD_B(p) { _tile_loadd(6, b0 + (p) * b_part, 64); if (right) _tile_loadd(7, b1 + (p) * b_part, 64); }
#define TIMES {                                                                                                             \
    _tile_dpbf16ps(0, 4, 6);                                                                                                \
    if (right) _tile_dpbf16ps(1, 4, 7);                                                                                     \
    if (lower) _tile_dpbf16ps(2, 5, 6);                                                                                     \
    if (lower && right) _tile_dpbf16ps(3, 5, 7);                                                                            \
    if (between) between(arg);                                                                                              \
  }
  if (parts == 1) {
    LOAD_A(0) LOAD_B(0) TIMES
    return;
  }
  rsi_stay_awake();
  LOAD_A(2) LOAD_B(0) TIMES
  LOAD_A(1) TIMES
  LOAD_B(1) TIMES
  LOAD_A(0) TIMES
  LOAD_B(2) TIMES
  LOAD_B(0) TIMES
#undef LOAD_A
#undef LOAD_B
#undef TIMES
}

/* Where the runs of an operand lie, without gaps between its parts: run r of tile h begins at at[h] + r * step. */
typedef struct rsi_split_runs { const uint16_t *at[2]; int64_t step; } rsi_split_runs;

/* sums: [down][across][16][16] = a x b over `runs` runs */
RSI_TILES_IN void rsi_split_multiply(int down, int across, int64_t runs, const rsi_split_runs *a, const rsi_split_runs *b,
                                     rsi_between_fn between, void *arg, float *sums) {
  const uint16_t *a0 = a->at[0], *a1 = a->at[1], *b0 = b->at[0], *b1 = b->at[1];
  rsi_split_begin(down, across);
  for (int64_t r = 0; r < runs; r++, a0 += a->step, a1 += a->step, b0 += b->step, b1 += b->step)
    rsi_split_run(RSI_PARTS, down, across, a0, a1, RSI_TILE, b0, b1, RSI_TILE, between, arg);
  rsi_split_end(down, across, sums, across * 256);
}

/* ---- asking for memory ------------------------------------------------------------------------------------------------ */

/* Where in a list of it we are, and how many lines are asked for at a time. */
typedef struct rsi_asking {
  const rsi_soon *list, *end;
  const char *row, *at;
  int64_t rows, pieces, lines;     /* left */
  int64_t each;
} rsi_asking;

static inline void rsi_ask_from(rsi_asking *q) {
  while (q->list < q->end && (q->list->rows <= 0 || q->list->pieces <= 0 || q->list->lines <= 0)) q->list++;
  if (q->list == q->end) return;
  q->row = q->at = q->list->at;
  q->rows = q->list->rows, q->pieces = q->list->pieces, q->lines = q->list->lines;
}

/* Asks for `count` parts, spread over `times` calls of rsi_ask. */
static inline rsi_asking rsi_ask_begin(const rsi_soon *list, int count, int64_t times) {
  rsi_asking q = {.list = list, .end = list + count};
  int64_t lines = 0;
  for (int i = 0; i < count; i++) lines += list[i].rows * list[i].pieces * list[i].lines;
  q.each = times > 0 ? (lines + times - 1) / times : 0;
  rsi_ask_from(&q);
  return q;
}

static inline __attribute__((always_inline)) void rsi_ask(void *asking) {
  rsi_asking *const q = asking;
  for (int64_t count = q->each; count > 0 && q->list < q->end; count--) {
    const rsi_soon *const s = q->list;
    _mm_prefetch(q->at + (s->lines - q->lines) * 64, _MM_HINT_T1);
    if (--q->lines > 0) continue;
    q->lines = s->lines, q->at += s->step;
    if (--q->pieces > 0) continue;
    q->pieces = s->pieces, q->at = q->row += s->ld;
    if (--q->rows > 0) continue;
    q->list++;
    rsi_ask_from(q);
  }
}

/*
** Whether a sum among these may be wrong because a number was out of the range of the split: it is not finite, or so small that the
** parts of what it was made of may have vanished (below 2^-90, but not zero).
*/
RSI_TILES_IN __mmask16 rsi_odd(__m512 sum) {
  const __m512i bits = _mm512_and_si512(_mm512_castps_si512(sum), _mm512_set1_epi32(0x7FFFFFFF));
  /* 1 <= bits < 2^-90, or bits >= infinity: outside [2^-90, infinity), and not 0 */
  const __m512i low = _mm512_set1_epi32(37 << 23), range = _mm512_set1_epi32((255 - 37) << 23);
  return _mm512_test_epi32_mask(bits, bits) & _mm512_cmpge_epu32_mask(_mm512_sub_epi32(bits, low), range);
}

#endif
#endif
