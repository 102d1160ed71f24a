/*
** Products of matrices by split tiles, 32 by 32 of c at a time. The sums of one place go to c while the tiles are at work on the next.
*/
#include "kernels/split_gemm.h"
#include "kernels/gemm.h"
#include "kernels/split_tiles.h"

#if RSI_ISA_LEVEL == 2

enum { AHEAD = 128 };      /* of k: what is packed soon is asked for */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* One run of a strip; `left` of k and `wide` of the strip exist. */
RSI_TILES static void pack_run(const rsi_split_matrix *m, bool columns, const float *from, int64_t wide, int64_t left, uint16_t *to) {
  const int64_t half = RSI_DEEP / 2, deep = m->deep, side = m->side;
  __m512 x[RSI_SIDE], y[RSI_SIDE];
  if (columns ? side == 1 : deep == 1) {            /* rows of tiles as they lie; line by line, so that all stays in registers */
    const float *const low = from + half * deep;
    const int64_t line = columns ? deep : side, rows = columns ? left : wide, lower = columns ? left - half : wide;
    const __mmask16 mask = rsi_first_of(columns ? wide : left), mask_low = rsi_first_of(columns ? wide : left - half);
    for (int64_t i = 0; i < RSI_SIDE; i++, to += RSI_DEEP) {
      __m512i part[RSI_PARTS];
      rsi_split(_mm512_maskz_loadu_ps(i < rows ? mask : 0, from + i * line), _mm512_maskz_loadu_ps(i < lower ? mask_low : 0, low + i * line), part);
      for (int p = 0; p < RSI_PARTS; p++) _mm512_store_si512(to + p * RSI_TILE, part[p]);
    }
    return;
  }
  if (columns) {
    rsi_load16(from, deep, side, left, wide, x);
    rsi_load16(from + half * deep, deep, side, left - half, wide, y);
  } else {
    rsi_load16(from, side, deep, wide, left, x);
    rsi_load16(from + half * deep, side, deep, wide, left - half, y);
  }
  rsi_put_run(x, y, to);
}

/* Asks for a run of `lines` lines of 16 elements `stride` apart, `vectors` lines wide. */
static void ask_for(const float *from, int64_t lines, int64_t stride, int64_t vectors) {
  for (int64_t q = 0; q < lines; q++)
    for (int64_t v = 0; v < vectors; v++) _mm_prefetch((const char *)(from + q * stride + v * RSI_SIDE), _MM_HINT_T1);
}

/* Strips i.. of a matrix [n, k], runs r.. of it; of b when `columns`. Memory is read along its lines, as far as the strips allow. */
RSI_TILES static void pack(const rsi_split_matrix *m, bool columns, int64_t i, int64_t strips, int64_t n, int64_t k, int64_t r, int64_t runs,
                           uint16_t *to) {
  const int64_t step = runs * RSI_RUN, left = k - r * RSI_DEEP;
  if (m->deep == 1) {
    for (int64_t s = 0; s < strips; s++) {
      const float *const from = rsi_split_strip(m, i + s) + r * RSI_DEEP;
      const int64_t wide = smaller(RSI_SIDE, n - (i + s) * RSI_SIDE);
      for (int64_t q = 0; q < runs; q++) {
        if (left - q * RSI_DEEP > AHEAD + RSI_DEEP) ask_for(from + q * RSI_DEEP + AHEAD, wide, m->side, 2);
        pack_run(m, columns, from + q * RSI_DEEP, wide, left - q * RSI_DEEP, to + s * step + q * RSI_RUN);
      }
    }
    return;
  }
  for (int64_t q = 0; q < runs; q++) {
    const int64_t at = (r + q) * RSI_DEEP * m->deep, rest = left - q * RSI_DEEP;
    if (rest > 2 * RSI_DEEP) ask_for(rsi_split_strip(m, i) + at + RSI_DEEP * m->deep, RSI_DEEP, m->deep, strips);
    for (int64_t s = 0; s < strips; s++)
      pack_run(m, columns, rsi_split_strip(m, i + s) + at, smaller(RSI_SIDE, n - (i + s) * RSI_SIDE), rest, to + s * step + q * RSI_RUN);
  }
}

/* Sums of a chunk of k that are not yet in c: tiles [down][across]. */
typedef struct place {
  float  *sums;
  int64_t i, j, r, runs;           /* first strips; first run, and how many */
  int     down, across;
} place;

/* The same sums by FMA, 16 by 16 and 16 of k at a time. */
RSI_TILES static void again(const rsi_split_product *s, const place *w) {
  const int64_t first = w->r * RSI_DEEP, end = smaller(first + w->runs * RSI_DEEP, s->k);
  for (int t = 0; t < w->down * w->across; t++) {
    const int64_t i = w->i + t / w->across, j = w->j + t % w->across;
    const int64_t rows = smaller(RSI_SIDE, s->m - i * RSI_SIDE), columns = smaller(RSI_SIDE, s->n - j * RSI_SIDE);
    const float *const a = rsi_split_strip(&s->a, i), *const b = rsi_split_strip(&s->b, j);
    __m512 sum[RSI_SIDE], x[RSI_SIDE], y[RSI_SIDE];
    for (int q = 0; q < RSI_SIDE; q++) sum[q] = _mm512_setzero_ps();
    for (int64_t p = first; p < end; p += RSI_SIDE) {
      const int64_t depth = smaller(RSI_SIDE, end - p);
      float line[RSI_SIDE][RSI_SIDE];
      rsi_load16(a + p * s->a.deep, s->a.side, s->a.deep, rows, depth, x);
      rsi_load16(b + p * s->b.deep, s->b.deep, s->b.side, depth, columns, y);
      for (int q = 0; q < RSI_SIDE; q++) _mm512_storeu_ps(line[q], x[q]);
      for (int q = 0; q < rows; q++)
        for (int64_t d = 0; d < depth; d++) sum[q] = _mm512_fmadd_ps(_mm512_set1_ps(line[q][d]), y[d], sum[q]);
    }
    for (int q = 0; q < RSI_SIDE; q++) _mm512_store_ps(w->sums + (t * RSI_SIDE + q) * RSI_SIDE, sum[q]);
  }
}

RSI_TILES static bool is_odd(const place *w) {
  __mmask16 odd = 0;
  for (int i = 0; i < w->down * w->across * RSI_SIDE; i++) odd |= rsi_odd(_mm512_load_ps(w->sums + i * RSI_SIDE));
  return odd != 0;
}

RSI_TILES static void put(const rsi_split_product *s, place *w) {
  if (w->sums == NULL) return;
  if (__builtin_expect(is_odd(w), 0)) again(s, w);
  const bool add = s->beta || w->r > 0;
  for (int h = 0; h < w->down; h++) {
    const int64_t row = (w->i + h) * RSI_SIDE, rows = smaller(RSI_SIDE, s->m - row);
    for (int q = 0; q < w->across; q++) {
      const int64_t column = (w->j + q) * RSI_SIDE;
      const __mmask16 mask = rsi_first_of(s->n - column);
      const float *from = w->sums + (h * w->across + q) * RSI_SIDE * RSI_SIDE;
      float *to = s->c + row * s->ldc + column;
      for (int64_t i = 0; i < rows; i++, from += RSI_SIDE, to += s->ldc) {
        __m512 v = _mm512_load_ps(from);
        if (add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to));
        _mm512_mask_storeu_ps(to, mask, v);
      }
    }
  }
  if (s->end != NULL && (w->r + w->runs) * RSI_DEEP >= s->k) {
    const int64_t row = w->i * RSI_SIDE, column = w->j * RSI_SIDE;
    RSI_ISA(rsi_gemm_end_f32)(s->end, s->row + row, s->column + column, smaller(w->down * RSI_SIDE, s->m - row),
                              smaller(w->across * RSI_SIDE, s->n - column), s->c + row * s->ldc + column, s->ldc);
  }
  w->sums = NULL;
}

/* The lines of c where the sums will go. */
static rsi_soon place_of(const rsi_split_product *s, const place *w) {
  return (rsi_soon){(const char *)(s->c + w->i * RSI_SIDE * s->ldc + w->j * RSI_SIDE), smaller(w->down * RSI_SIDE, s->m - w->i * RSI_SIDE),
                    s->ldc * (int64_t)sizeof(float), 1, 0, w->across};
}

/* a, b: the packed strips of this chunk, `step` elements apart. */
RSI_TILES static void multiply(const place *w, const uint16_t *a, const uint16_t *b, int64_t step, const rsi_soon *soon) {
  const rsi_split_runs rows = {{a, a + step}, RSI_RUN}, columns = {{b, b + step}, RSI_RUN};
  rsi_asking q = rsi_ask_begin(soon, 1, w->runs * RSI_BETWEEN);
  if (w->down == 2 && w->across == 2) rsi_split_multiply(2, 2, w->runs, &rows, &columns, rsi_ask, &q, w->sums);
  else if (w->down == 2) rsi_split_multiply(2, 1, w->runs, &rows, &columns, rsi_ask, &q, w->sums);
  else if (w->across == 2) rsi_split_multiply(1, 2, w->runs, &rows, &columns, rsi_ask, &q, w->sums);
  else rsi_split_multiply(1, 1, w->runs, &rows, &columns, rsi_ask, &q, w->sums);
}

RSI_TILES static void block(const rsi_split_product *s, const rsi_split_plan *t, bool packed, int64_t i0, int64_t i1, int64_t j0,
                            int64_t j1, void *room) {
  _Alignas(64) float sums[2][4 * RSI_SIDE * RSI_SIDE];
  const bool rows = t->rows;
  const int64_t all = (s->k + RSI_DEEP - 1) / RSI_DEEP;
  const int64_t stay0 = rows ? i0 : j0, stay1 = rows ? i1 : j1, pass0 = rows ? j0 : i0, pass1 = rows ? j1 : i1;
  const rsi_split_matrix *const stay = rows ? &s->a : &s->b, *const pass = rows ? &s->b : &s->a;
  const int64_t n_stay = rows ? s->m : s->n, n_pass = rows ? s->n : s->m;
  uint16_t *const here = room;
  place last = {0};
  int turn = 0;
  rsi_tiles_begin();
  for (int64_t r = 0; r < all; r += t->runs) {
    const int64_t runs = smaller(t->runs, all - r), step = runs * RSI_RUN;
    uint16_t *const passing = here + (stay1 - stay0) * step;
    for (int64_t i = stay0; i < stay1 && !packed; i += RSI_SPLIT_PASS)
      pack(stay, !rows, i, smaller(RSI_SPLIT_PASS, stay1 - i), n_stay, s->k, r, runs, here + (i - stay0) * step);
    for (int64_t group = pass0; group < pass1; group += RSI_SPLIT_PASS) {
      const int64_t end = smaller(group + RSI_SPLIT_PASS, pass1);
      pack(pass, rows, group, end - group, n_pass, s->k, r, runs, passing);
      for (int64_t i = stay0; i < stay1; i += 2)
        for (int64_t j = group; j < end; j += 2) {
          const int two_stay = i + 1 < stay1 ? 2 : 1, two_pass = j + 1 < end ? 2 : 1;
          const uint16_t *const at = here + (i - stay0) * step, *const by = passing + (j - group) * step;
          place w = {sums[turn ^= 1], rows ? i : j, rows ? j : i, r, runs, rows ? two_stay : two_pass, rows ? two_pass : two_stay};
          const rsi_soon to = place_of(s, &w);
          multiply(&w, rows ? at : by, rows ? by : at, step, &to);
          put(s, &last);
          last = w;
        }
    }
  }
  put(s, &last);
  _tile_release();
}

const rsi_k_split RSI_ISA(rsi_k_split) = {.block = block};
#else
const rsi_k_split RSI_ISA(rsi_k_split) = {NULL};
#endif
