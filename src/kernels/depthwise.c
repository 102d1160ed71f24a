/*
** A tile is WIDE pixels of one or two rows of y; its sums stay in registers. Each pixel of x that it sees is loaded once and added to
** all sums that it belongs to. What lies outside the image is left out.
**
** With a 1x1 convolution before it, rows of x lie in a ring of just as many as a tile sees, with zeros at both ends; each is made when
** the first tile asks for it, PIXELS pixels at a time.
*/
#include "kernels/depthwise.h"
#include "kernels/float_vec.h"

/* Two rows: 14 sums and the 9 filters of 3x3 are in 32 registers, 8 sums in 16. */
enum {
#if RSI_ISA_LEVEL == 2
  WIDE = 7, PIXELS = 14
#else
  WIDE = 4, PIXELS = 8
#endif
};

/* Where a tile is: (row, column) of y, and `count` pixels of it across; x and y are those of its plane. `first`: where the first row of x
** that the tile sees lies; the row behind row `ring` - 1 is row 0. */
typedef struct place { const float *x, *u, *residual; float *y; int64_t first, ring, row, column, count; vec bias, low, high; } place;

/* size, stride, rows and inside are constants where this is called; inside: all pixels of the tile and all that they see exist. */
INLINE void tile(int size, int stride, int rows, bool inside, const rsi_depthwise *s, const place *p) {
  const int64_t top = p->row * stride - s->ph, left = p->column * stride - s->pw;
  const int64_t first = -left, seen = (p->count - 1) * stride + size, last = s->w - left < seen ? s->w - left : seen;
  vec acc[RSI_DEPTHWISE_ROWS][WIDE];
#pragma GCC unroll 2
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 7
    for (int i = 0; i < WIDE; i++) acc[r][i] = p->bias;
#pragma GCC unroll 8
  for (int k = 0; k < (rows - 1) * stride + size; k++) {
    if (!inside && (top + k < 0 || top + k >= s->h)) continue;
    const int64_t at = p->first + k;
    const float *const line = p->x + ((at < p->ring ? at : at - p->ring) * s->w + left) * L;
#pragma GCC unroll 32
    for (int c = 0; c < (WIDE - 1) * stride + size; c++) {
      if (!inside && (c < first || c >= last)) continue;
      const vec v = load(line + c * L);
#pragma GCC unroll 2
      for (int r = 0; r < rows; r++) {
        const int down = k - r * stride;
        if (down < 0 || down >= size) continue;
#pragma GCC unroll 5
        for (int l = c % stride; l < size; l += stride)
          if (l <= c && (c - l) / stride < WIDE) acc[r][(c - l) / stride] += v * load(p->u + (down * size + l) * L);
      }
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < rows; r++) {
    const int64_t at = ((p->row + r) * s->ow + p->column) * L;
#pragma GCC unroll 7
    for (int i = 0; i < WIDE; i++) {
      if (!inside && i >= p->count) break;
      vec v = acc[r][i];
      if (p->residual != NULL) v += load(p->residual + at + i * L);
      store(p->y + at + i * L, clamp(v, p->low, p->high));
    }
  }
}

/* `rows` rows of a plane. */
INLINE void band(int size, int stride, int rows, const rsi_depthwise *s, place p) {
  const int64_t top = p.row * stride - s->ph;
  const bool tall = top >= 0 && top + (rows - 1) * stride + size <= s->h;
  for (p.column = 0; p.column < s->ow; p.column += WIDE) {
    const int64_t left = p.column * stride - s->pw;
    p.count = s->ow - p.column < WIDE ? s->ow - p.column : WIDE;
    if (tall && left >= 0 && left + (WIDE - 1) * stride + size <= s->w && p.count == WIDE) tile(size, stride, rows, true, s, &p);
    else tile(size, stride, rows, false, s, &p);
  }
}

#define BANDS(size, stride)                                                                                                 \
  static void band_##size##_##stride(const rsi_depthwise *s, place p) {                                                     \
    if (p.row + 1 < s->oh) band(size, stride, 2, s, p);                                                                     \
    else band(size, stride, 1, s, p);                                                                                       \
  }
BANDS(3, 1)
BANDS(3, 2)
BANDS(5, 1)
BANDS(5, 2)

static place place_of(const rsi_depthwise *s, int64_t plane) {
  const int64_t g = plane % s->groups, out = plane * s->oh * s->ow * L;
  return (place){.x = s->x + plane * s->h * s->w * L, .ring = INT64_MAX, .u = s->u + g * s->size * s->size * L, .y = s->y + out,
                 .residual = s->residual != NULL ? s->residual + out : NULL, .bias = s->bias != NULL ? load(s->bias + g * L) : (vec){0},
                 .low = all_lanes(s->low), .high = all_lanes(s->high)};
}

static void any_band(const rsi_depthwise *s, place p) {
  if (s->size == 3 && s->stride == 1) band_3_1(s, p);
  else if (s->size == 3) band_3_2(s, p);
  else if (s->stride == 1) band_5_1(s, p);
  else band_5_2(s, p);
}

static void bands(const rsi_depthwise *s, int64_t first, int64_t last) {
  const int64_t each = (s->oh + RSI_DEPTHWISE_ROWS - 1) / RSI_DEPTHWISE_ROWS;
  for (int64_t i = first; i < last; i++) {
    place p = place_of(s, i / each);
    p.row = i % each * RSI_DEPTHWISE_ROWS;
    p.first = p.row * s->stride - s->ph;
    any_band(s, p);
  }
}

/* ---- with a 1x1 convolution before it ---------------------------------------------------------------------------------- */

/* PIXELS pixels of block g of x: [PIXELS, L] = clamp(w1 from + bias1); from: the first one in block 0, `plane` floats from block to block. */
static void points(const rsi_expand *e, int64_t g, const float *from, int64_t plane, float *to) {
  const float *w = e->w1 + g * e->channels * L;
  const vec bias = e->bias1 != NULL ? load(e->bias1 + g * L) : (vec){0}, low = all_lanes(e->low1), high = all_lanes(e->high1);
  vec acc[PIXELS];
#pragma GCC unroll 14
  for (int i = 0; i < PIXELS; i++) acc[i] = bias;
  for (int64_t c = 0; c < e->channels; c += L, from += plane) {
    const int64_t count = e->channels - c < L ? e->channels - c : L;
    for (int64_t j = 0; j < count; j++, w += L) {
      const vec v = load(w);
#pragma GCC unroll 14
      for (int i = 0; i < PIXELS; i++) acc[i] += v * from[i * L + j];
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < PIXELS; i++) store(to + i * L, clamp(acc[i], low, high));
}

static void expand(const rsi_expand *e, int64_t plane, int64_t first, int64_t last, float *strip) {
  const int64_t h = e->s.h, w = e->s.w, n = plane / e->s.groups, g = plane % e->s.groups, before = e->s.pw;
  const float *const from = e->from + n * e->groups_in * h * w * L;
  rsi_depthwise s = e->s;                /* what the tiles see: rows with their padding */
  s.w = rsi_expand_width(&s), s.pw = 0, s.x = strip;
  place p = place_of(&s, plane);
  p.x = strip, p.ring = rsi_expand_rows(&s);
  for (int64_t i = 0; i < p.ring * s.w * L; i += L) store(strip + i, (vec){0});
  int64_t made = first * RSI_DEPTHWISE_ROWS * s.stride - s.ph;             /* rows before this one are in the ring, or not needed */
  if (made < 0) made = 0;
  for (int64_t i = first; i < last; i++) {
    p.row = i * RSI_DEPTHWISE_ROWS;
    p.first = (p.row * s.stride - s.ph + p.ring * s.size) % p.ring;
    const int64_t below = p.row * s.stride - s.ph + (p.row + 1 < s.oh ? s.stride : 0) + s.size, end = below < h ? below : h;
    for (; made < end; made++) {
      float *const to = strip + (made % p.ring * s.w + before) * L;
      for (int64_t at = 0; at < w; at += PIXELS) {
        const int64_t begin = w - at < PIXELS ? w - PIXELS : at;           /* the last ones may be made twice */
        points(e, g, from + (made * w + begin) * L, h * w * L, to + begin * L);
      }
    }
    any_band(&s, p);
  }
}

extern const rsi_k_depthwise RSI_ISA(rsi_k_depthwise);
const rsi_k_depthwise RSI_ISA(rsi_k_depthwise) = {.lanes = L, .bands = bands, .expand = expand, .narrowest = PIXELS};
