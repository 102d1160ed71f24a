/*
** Winograd's F(4x4, 3x3) by split products, a part at a time: make_points, multiply, put_results.
** Measured and left out: the transforms beside the products, a few instructions at a time. Where all lies in the first-level cache that
** hides them; but here the tiles wait for the second level, and both together took longer.
*/
#include "kernels/winograd_split.h"
#include "kernels/split_tiles.h"
#include "kernels/winograd_loops.h"

#if RSI_ISA_LEVEL == 2

typedef rsi_winograd_split form;
enum { POINTS = RSI_WINOGRAD_POINTS, PART = RSI_WINOGRAD_PART, AT_ONCE = RSI_WINOGRAD_AT_ONCE, RING = 8 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- images to points ------------------------------------------------------------------------------------------------- */

/*
** Like rsi_split, but a part is what a number begins with, not its rounding, which takes half the instructions. The parts of u are rounded,
** so what is left out of the products has either sign and is below 2^-22 of them.
*/
RSI_TILES_IN void cut(vec x, vec y, uint16_t *to) {
  const __m512i high = _mm512_set1_epi32((int)0xFFFF0000u);
  __m512 a = (__m512)x, b = (__m512)y;
  for (int p = 0; p < RSI_PARTS; p++, to += RSI_TILE) {
    const __m512i i = _mm512_castps_si512(a), j = _mm512_castps_si512(b), low = _mm512_srli_epi32(i, 16);
    if (p == RSI_PARTS - 1) {
      _mm512_store_si512(to, _mm512_or_si512(low, j));
      break;
    }
    const __m512i j0 = _mm512_and_si512(j, high);
    _mm512_store_si512(to, _mm512_or_si512(low, j0));
    a = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_and_si512(i, high)));
    b = _mm512_sub_ps(b, _mm512_castsi512_ps(j0));
  }
}

/* Rows y.. of a plane; outside the image NULL. */
typedef struct six { const float *row[6]; } six;

static six six_rows(const rsi_winograd *s, const float *plane, int64_t y) {
  six l;
  for (int64_t i = 0; i < 6; i++, y++) l.row[i] = y >= 0 && y < s->h ? plane + y * s->w * L : NULL;
  return l;
}

/* Columns j.. of pixels to their place in the ring. */
RSI_TILES_IN void put_columns(const rsi_winograd *s, const six *l, int64_t j, int64_t count, float *ring) {
  static const float zeros[RSI_LANES];
  for (; count > 0; count--, j++) {
    const int64_t at = j - s->before_w;
    float *const to = ring + j % RING * 6 * L;
    vec x[6], out[6];
    if (at < 0 || at >= s->w) {
      for (int i = 0; i < 6; i++) store(to + i * L, (vec){0});
      continue;
    }
    for (int i = 0; i < 6; i++) x[i] = load(l->row[i] == NULL ? zeros : l->row[i] + at * L);
    to_points(x[0], x[1], x[2], x[3], x[4], x[5], out);
    for (int i = 0; i < 6; i++) store(to + i * L, out[i]);
  }
}

/* Row i of the points of the tile that begins at column `from` of the ring, 0 or 4. */
INLINE void ring_row(const float *ring, int64_t from, int64_t i, vec to[6]) {
  const float *const p = ring + (from * 6 + i) * L, *const q = ring + ((4 - from) * 6 + i) * L;
  to_points(load(p), load(p + 6 * L), load(p + 12 * L), load(p + 18 * L), load(q), load(q + 6 * L), to);
}

/*
** The points of tiles first.. to v. Tiles that stand side by side share two columns of pixels, so columns are transformed one by one into a
** ring, and then the rows of each tile.
*/
RSI_TILES static void make_points(const form *z, int64_t first, int64_t count, uint16_t *v) {
  _Alignas(64) float ring[2][RING * 6 * L];
  const rsi_winograd *const s = &z->s;
  const int64_t plane = s->h * s->w * L, step = rsi_winograd_v_step(z), last = first + count;
  int64_t n, row, column;
  for (int64_t r = 0; r < z->runs; r++) {
    const bool both = 2 * r + 1 < s->groups_in;
    if (!both) memset(ring[1], 0, sizeof ring[1]);
    for (int64_t t = first, end; t < last; t = end) {
      end = t + run_at(s, t, last, &n, &row, &column);
      const float *const x = s->x + (n * s->groups_in + 2 * r) * plane;
      const six l0 = six_rows(s, x, 4 * row - s->before_h), l1 = six_rows(s, both ? x + plane : x, 4 * row - s->before_h);
      for (int64_t i = t, j = 4 * column; i < end; i++, j += 4) {
        const int64_t from = i == t ? j : j + 2, new = i == t ? 6 : 4;
        put_columns(s, &l0, from, new, ring[0]);
        if (both) put_columns(s, &l1, from, new, ring[1]);
        uint16_t *to = v + ((i - first) / z->rows * z->runs + r) * RSI_RUN + (i - first) % z->rows * RSI_DEEP;
        for (int64_t q = 0; q < 6; q++) {
          vec a[6], b[6];
          ring_row(ring[0], j % RING, q, a);
          ring_row(ring[1], j % RING, q, b);
#pragma GCC unroll 6
          for (int p = 0; p < 6; p++, to += step) cut(a[p], b[p], to);
        }
      }
    }
  }
}

/* ---- products ---------------------------------------------------------------------------------------------------------- */

/* Tiles 0 to 5 have as many rows as a strip. */
#define ROWS(r) {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {r, r, r, r, r, r, 16, 16}}
static const rsi_tile_config config[RSI_SIDE] = {ROWS(1), ROWS(2),  ROWS(3),  ROWS(4),  ROWS(5),  ROWS(6),  ROWS(7),  ROWS(8),
                                                 ROWS(9), ROWS(10), ROWS(11), ROWS(12), ROWS(13), ROWS(14), ROWS(15), ROWS(16)};
#undef ROWS

/* Points of filters that will be multiplied next, of which `lines` are asked for at a time. */
typedef struct asking { const char *u, *end; int64_t lines; } asking;

RSI_TILES_IN void ask(void *arg) {
  asking *const q = arg;
  for (int64_t i = 0; i < q->lines && q->u < q->end; i++, q->u += 64) _mm_prefetch(q->u, _MM_HINT_T1);
}

/* m: [across][..][rows][16] = the products of `down` strips of v and `across` groups of u */
RSI_TILES_IN void chain(int down, int across, int64_t runs, const uint16_t *a, const uint16_t *b, float *m, int64_t lower, int64_t right,
                        asking *q) {
  const uint16_t *a1 = a + runs * RSI_RUN, *b1 = b + runs * RSI_RUN;
  rsi_split_begin(down, across);
  for (int64_t r = 0; r < runs; r++, a += RSI_RUN, a1 += RSI_RUN, b += RSI_RUN, b1 += RSI_RUN)
    rsi_split_run(RSI_PARTS, down, across, a, a1, RSI_TILE, b, b1, RSI_TILE, ask, q);
  _tile_stored(0, m, 64);
  if (across > 1) _tile_stored(1, m + right, 64);
  if (down > 1) _tile_stored(2, m + lower, 64);
  if (down > 1 && across > 1) _tile_stored(3, m + lower + right, 64);
}

/* m = the products of the `strips` strips of v and groups group.. */
RSI_TILES static void multiply(const form *z, int64_t strips, int64_t group, int64_t groups, const uint16_t *v, float *m) {
  const int64_t lower = z->rows * L, right = z->strips * lower, strip = z->runs * RSI_RUN;
  const int64_t v_step = rsi_winograd_v_step(z), m_step = rsi_winograd_m_step(z), u_step = rsi_winograd_u_step(z->s.groups_out, z->runs);
  const int64_t times = (groups + 1) / 2 * ((strips + 1) / 2) * z->runs * RSI_BETWEEN, lines = groups * strip * 2 / 64;
  asking q = {.lines = z->far ? (lines + times - 1) / times : 0};
  const uint16_t *u = z->u + group * strip;
  _tile_loadconfig(&config[z->rows - 1]);
  for (int p = 0; p < POINTS; p++, u += u_step, v += v_step, m += m_step) {
    q.u = (const char *)(u + u_step), q.end = p + 1 < POINTS ? q.u + lines * 64 : q.u;
    for (int64_t g = 0; g < groups; g += 2)
      for (int64_t t = 0; t < strips; t += 2) {
        const uint16_t *const a = v + t * strip, *const b = u + g * strip;
        float *const to = m + g * right + t * lower;
        if (t + 1 < strips && g + 1 < groups) chain(2, 2, z->runs, a, b, to, lower, right, &q);
        else if (t + 1 < strips) chain(2, 1, z->runs, a, b, to, lower, right, &q);
        else if (g + 1 < groups) chain(1, 2, z->runs, a, b, to, lower, right, &q);
        else chain(1, 1, z->runs, a, b, to, lower, right, &q);
      }
  }
  _tile_release();
}

/* ---- once more, by FMA -------------------------------------------------------------------------------------------------- */

/* panel: [channels][9][16] */
static void make_panel(const form *z, int64_t group, float *panel) {
  const rsi_winograd_filters *const f = &z->f;
  for (int64_t c = 0; c < f->in; c++)
    for (int64_t t = 0; t < 9; t++, panel += L)
      for (int64_t o = 0; o < L; o++) {
        const int64_t at = group * L + o;
        panel[o] = at < f->out ? f->w[at * f->out_step + c * f->in_step + (f->flipped ? 8 - t : t)] : 0.0f;
      }
}

static void again_pixel(const form *z, int64_t n, int64_t i, int64_t j, int64_t group, const float *panel) {
  const rsi_winograd *const s = &z->s;
  const int64_t pixels = s->h * s->w;
  const float *const x = s->x + n * s->groups_in * pixels * L;
  vec sum[4] = {{0}, {0}, {0}, {0}};
  for (int64_t t = 0; t < 9; t++) {
    const int64_t y0 = i + t / 3 - s->before_h, x0 = j + t % 3 - s->before_w;
    if (y0 < 0 || y0 >= s->h || x0 < 0 || x0 >= s->w) continue;
    for (int64_t c = 0; c < z->f.in; c++)
      sum[c % 4] += all_lanes(x[(c / L * pixels + y0 * s->w + x0) * L + c % L]) * load(panel + (c * 9 + t) * L);
  }
  put(s, (sum[0] + sum[1]) + (sum[2] + sum[3]), s->bias != NULL ? load(s->bias + group * L) : (vec){0},
      (((n * s->groups_out + group) * s->oh + i) * s->ow + j) * L);
}

/* Group `group` of the tiles that `odd` names. panel: [channels][9][16] */
static void again(const form *z, int64_t first, uint64_t odd, int64_t group, float *panel) {
  const rsi_winograd *const s = &z->s;
  int64_t n, row, column;
  make_panel(z, group, panel);
  for (int64_t k = 0; k < PART; k++) {
    if (!(odd >> k & 1)) continue;
    run_at(s, first + k, first + k + 1, &n, &row, &column);
    for (int64_t y = 4 * row; y < smaller(4 * row + 4, s->oh); y++)
      for (int64_t x = 4 * column; x < smaller(4 * column + 4, s->ow); x++) again_pixel(z, n, y, x, group, panel);
  }
}

/* ---- points to images -------------------------------------------------------------------------------------------------- */

/* As rsi_odd, of all sums of a tile together: whether one is not finite, or below 2^-90 but not zero. */
RSI_TILES_IN bool is_odd(vec sum[4][4]) {
  __m512i most = _mm512_setzero_si512(), least = _mm512_set1_epi32(-1);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {                 /* without the sign; less 1, so that zero is the largest */
    const __m512i bits = _mm512_slli_epi32((__m512i)sum[i / 4][i % 4], 1);
    most = _mm512_max_epu32(most, bits), least = _mm512_min_epu32(least, _mm512_sub_epi32(bits, _mm512_set1_epi32(1)));
  }
  return (_mm512_cmpge_epu32_mask(most, _mm512_set1_epi32((int)(255u << 24))) |
          _mm512_cmplt_epu32_mask(least, _mm512_set1_epi32((37 << 24) - 1))) != 0;
}

/* Group `group` of tiles first.., at m; the tiles whose sums are odd, of which nothing is stored. */
RSI_TILES static uint64_t put_results(const form *z, int64_t first, int64_t count, int64_t group, const float *m) {
  const rsi_winograd *const s = &z->s;
  const vec bias = s->bias != NULL ? load(s->bias + group * L) : (vec){0};
  const int64_t step = rsi_winograd_m_step(z), last = first + count;
  uint64_t odd = 0;
  int64_t n, row, column;
  for (int64_t t = first, end; t < last; t = end) {
    end = t + run_at(s, t, last, &n, &row, &column);
    const int64_t rows = smaller(s->oh - 4 * row, 4), plane = ((n * s->groups_out + group) * s->oh + 4 * row) * s->ow * L;
    for (int64_t i = t, x = 4 * column; i < end; i++, x += 4, m += L) {
      vec sum[4][4];
      tile_sums(m, step, sum);
      if (__builtin_expect(is_odd(sum), 0)) odd |= (uint64_t)1 << (i - first);
      else if (rows == 4 && s->ow - x >= 4) tile_end(s, sum, bias, plane + x * L, 4, 4);
      else tile_end(s, sum, bias, plane + x * L, rows, smaller(s->ow - x, 4));
    }
  }
  return odd;
}

RSI_TILES static void task(const form *z, const rsi_winograd_task *t) {
  const int64_t each = z->strips * z->rows * L;
  for (int64_t first = t->first, count; first < t->end; first += count) {
    count = smaller(z->part, t->end - first);
    make_points(z, first, count, t->v);
    for (int64_t g = t->group, groups; g < t->group + t->groups; g += groups) {
      uint64_t odd[AT_ONCE], any = 0;
      groups = smaller(z->at_once, t->group + t->groups - g);
      multiply(z, (count + z->rows - 1) / z->rows, g, groups, t->v, t->m);
      for (int64_t i = 0; i < groups; i++) any |= odd[i] = put_results(z, first, count, g + i, t->m + i * each);
      for (int64_t i = 0; i < groups && any != 0; i++)
        if (odd[i] != 0) again(z, first, odd[i], g + i, t->m);
    }
  }
}

/* ---- weights ------------------------------------------------------------------------------------------------------------- */

enum { LINES = RSI_DEEP * 9 };

/* lines: [32 channels][9 taps][16 results], zeros where there is no channel or result */
RSI_TILES static void gather_lines(const rsi_winograd_filters *f, int64_t group, int64_t run, float lines[LINES][RSI_SIDE]) {
  const int64_t filled = smaller(RSI_SIDE, f->out - group * RSI_SIDE), channels = smaller(RSI_DEEP, f->in - run * RSI_DEEP);
  const float *const from = f->w + group * RSI_SIDE * f->out_step + run * RSI_DEEP * f->in_step;
  __m512 v[RSI_SIDE];
  for (int64_t i = channels * 9; i < LINES; i++) _mm512_store_ps(lines[i], _mm512_setzero_ps());
  if (f->in_step == 9) {           /* the channels and taps of a result lie side by side */
    for (int64_t i = 0; i < channels * 9; i += RSI_SIDE) {
      const int64_t left = smaller(RSI_SIDE, channels * 9 - i);
      rsi_load16(from + i, f->out_step, 1, filled, left, v);
      rsi_transpose16(v);
      for (int64_t q = 0; q < left; q++) _mm512_store_ps(lines[i + q], v[q]);
    }
    return;
  }
  for (int64_t c = 0; c < channels; c++) {
    rsi_load16(from + c * f->in_step, f->out_step, 1, filled, 9, v);
    rsi_transpose16(v);
    for (int64_t q = 0; q < 9; q++) _mm512_store_ps(lines[c * 9 + q], v[q]);
  }
}

/* Row by row of points, so that few places are written at a time, each along its lines: the processor foresees that. */
RSI_TILES static void filters(const rsi_winograd_filters *f, int64_t group, int64_t run, uint16_t *u) {
  _Alignas(64) float lines[LINES][RSI_SIDE];
  vec half[RSI_DEEP][3][6];
  const int64_t runs = (f->in + RSI_DEEP - 1) / RSI_DEEP, groups = (f->out + RSI_SIDE - 1) / RSI_SIDE;
  const int64_t step = rsi_winograd_u_step(groups, runs);
  gather_lines(f, group, run, lines);
  for (int64_t c = 0; c < RSI_DEEP; c++) {
    vec tap[9];
    for (int t = 0; t < 9; t++) tap[t] = load(lines[c * 9 + (f->flipped ? 8 - t : t)]);
    for (int k = 0; k < 3; k++) taps_to_points(tap[k], tap[3 + k], tap[6 + k], half[c][k]);
  }
  u += (group * runs + run) * RSI_RUN;
  for (int i = 0; i < 6; i++, u += 6 * step)
    for (int64_t c = 0; c < RSI_SIDE; c++) {
      const vec(*const h)[6] = half[c], (*const g)[6] = half[c + RSI_SIDE];
      vec a[6], b[6];
      taps_to_points(h[0][i], h[1][i], h[2][i], a);
      taps_to_points(g[0][i], g[1][i], g[2][i], b);
      for (int q = 0; q < 6; q++) {
        __m512i part[RSI_PARTS];
        rsi_split((__m512)a[q], (__m512)b[q], part);
        for (int p = 0; p < RSI_PARTS; p++) _mm512_store_si512(u + q * step + p * RSI_TILE + c * RSI_DEEP, part[p]);
      }
    }
}

const rsi_k_winograd_split RSI_ISA(rsi_k_winograd_split) = {.filters = filters, .task = task};
#else
const rsi_k_winograd_split RSI_ISA(rsi_k_winograd_split) = {NULL, NULL};
#endif
