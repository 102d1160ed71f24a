/*
** Convolutions by split products. What a task does:
**   split    its part of the image becomes a (pack_rows, pack_images)
**   tiles    for each pair of blocks of the result and each pair of tiles of positions a chain of products, at most RSI_SPLIT_CHAIN
**            runs at once; longer sums are added up in f32
**   finish   bias, residual, clamp and store of 16 pixels x 16 channels, done while the next chain is multiplied
** A sum that may be wrong (rsi_odd) makes the task do all its results again by FMA; not so with one part, where nothing is split.
** What depends on the number of parts takes it as its first argument, which is a constant once all is inlined.
*/
#include "kernels/split_conv.h"
#include "kernels/split_tiles.h"

#if RSI_ISA_LEVEL == 2

typedef rsi_split_conv conv;
enum { TABLE = RSI_SIDE, RING = 8, SUMS = 4 * 256, PIXEL = 32 };      /* PIXEL: elements of a position */

/* ---- scratch ----------------------------------------------------------------------------------------------------------- */

/* Tile t: rows at positions start[t].., and the pixel of y (in pixels from y's start, of block 0) of each row, or -1. */
typedef struct room {
  uint16_t *a;
  float    *sums, *acc;          /* [2][4][16][16]; [4][16][16] */
  int32_t  *out, *start;         /* [tiles][16], [tiles] */
  int32_t  *a_at, *b_at;         /* [runs * taps]: where a run of the chain lies, elements */
  uint16_t *b;                   /* fresh: [2][runs][taps][RSI_TILE], and what pack() needs */
  float    *lines;
} room;

static size_t round64(size_t bytes) { return (bytes + 63) / 64 * 64; }

static int64_t most_taps(const conv *s) {
  int64_t most = 1;
  for (int64_t p = 0; p < s->phases; p++)
    if (s->phase[p].taps > most) most = s->phase[p].taps;
  return most;
}

static int64_t tile_count(const conv *s) { return (s->by_image ? 0 : s->tiles) + RING; }

static size_t room_of(const conv *s, char *at, room *z) {
  const int64_t taps = most_taps(s);
  size_t a = s->in_place ? 0 : (size_t)(s->runs * s->parts * s->positions * PIXEL) * sizeof(uint16_t);
  const size_t panel = s->half ? 0 : (size_t)(s->runs * PIXEL * taps * RSI_SIDE) * sizeof(float);       /* of again() */
  if (a < panel) a = panel;
  char *const begin = at;
  if (z) z->a = (uint16_t *)(void *)at;
  at += round64(a);
  if (z) z->sums = (float *)(void *)at, z->acc = z->sums + 2 * SUMS;
  at += 3 * SUMS * sizeof(float);
  if (z) z->out = (int32_t *)(void *)at;
  at += round64((size_t)(tile_count(s) * TABLE) * sizeof(int32_t));
  if (z) z->start = (int32_t *)(void *)at;
  at += round64((size_t)tile_count(s) * sizeof(int32_t));
  if (z) z->a_at = (int32_t *)(void *)at;
  at += round64((size_t)(s->runs * taps) * sizeof(int32_t));
  if (z) z->b_at = (int32_t *)(void *)at;
  at += round64((size_t)(s->runs * taps) * sizeof(int32_t));
  if (!s->fresh) return (size_t)(at - begin);
  if (z) z->b = (uint16_t *)(void *)at;
  at += (size_t)(2 * s->runs * taps * RSI_TILE) * sizeof(uint16_t);
  if (z) z->lines = (float *)(void *)at;
  at += (size_t)(RSI_TILE * taps) * sizeof(float);
  return (size_t)(at - begin);
}

static size_t scratch_bytes(const conv *s) { return room_of(s, NULL, NULL); }

/* ---- pieces of images -------------------------------------------------------------------------------------------------- */

/* Rows [from, to) of the grids of image n; their positions begin at `at` in each image in steps. */
typedef struct piece { int64_t n, from, to, at; } piece;

/* The piece that begins at row `first` of all; the next begins after it. */
static bool next_piece(const conv *s, int64_t *first, int64_t last, piece *p) {
  if (*first >= last) return false;
  const int64_t n = *first / s->down, from = *first % s->down, left = last - *first;
  const int64_t rows = s->down - from < left ? s->down - from : left;
  p->n = n, p->from = from, p->to = from + rows;
  *first += rows;
  return true;
}

static int64_t piece_positions(const conv *s, const piece *p) { return (p->to - p->from + s->far_y) * s->pitch; }

/* ---- splitting the image ----------------------------------------------------------------------------------------------- */

/*
** What is packed at once: the parts of a run, or with half, where it is only copied, all runs, since memory is best read as it lies.
** Each goes to a line of positions of its own, `line` elements from the one before.
*/
typedef struct source {
  const char *x, *y;             /* the image from the run on; y: the second block, NULL: there is none */
  int64_t pixel, lines, line;    /* bytes between pixels */
  __mmask32 last;                /* half: of the channels in the last line */
} source;

RSI_TILES_IN __mmask32 channel_mask(int64_t n) { return n >= PIXEL ? (__mmask32)-1 : n <= 0 ? 0 : ((__mmask32)1 << n) - 1; }

RSI_TILES_IN source source_of(int parts, const conv *s, int64_t n, int64_t r) {
  const int64_t pixels = s->h * s->w, line = s->positions * PIXEL;
  if (parts == 1)
    return (source){(const char *)((const uint16_t *)s->x + n * pixels * s->in), NULL, s->in * 2, s->runs, line,
                    channel_mask(s->in - (s->runs - 1) * PIXEL)};
  const char *const x = (const char *)((const float *)s->x + (n * s->groups_in + 2 * r) * pixels * 16);
  return (source){x, 2 * r + 1 < s->groups_in ? x + pixels * 64 : NULL, 64, parts, line, 0};
}

RSI_TILES_IN void zeros(const source *from, uint16_t *to, int64_t count) {
  for (int64_t p = 0; p < from->lines; p++, to += from->line)
    for (int64_t i = 0; i < count; i++) _mm512_storeu_si512(to + i * PIXEL, _mm512_setzero_si512());
}

/* `count` pixels from pixel `first` on, `step` pixels apart. */
RSI_TILES_IN void put_pixels(int parts, const source *from, int64_t first, int64_t step, int64_t count, uint16_t *to, int64_t to_step) {
  const char *x = from->x + first * from->pixel, *y = from->y + (from->y ? first * from->pixel : 0);
  step *= from->pixel;
  for (int64_t i = 0; i < count; i++, x += step, to += to_step) {
    if (parts == 1) {
      const int64_t last = from->lines - 1;
      for (int64_t p = 0; p < last; p++) _mm512_storeu_si512(to + p * from->line, _mm512_loadu_si512(x + p * 64));
      _mm512_storeu_si512(to + last * from->line, _mm512_maskz_loadu_epi16(from->last, x + last * 64));
      continue;
    }
    __m512i v[RSI_PARTS];
    const __m512 second = from->y != NULL ? _mm512_loadu_ps(y + i * step) : _mm512_setzero_ps();
    rsi_split(_mm512_loadu_ps(x), second, v);
    for (int p = 0; p < RSI_PARTS; p++) _mm512_storeu_si512(to + p * from->line, v[p]);
  }
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

RSI_TILES_IN void pack_piece(int parts, const conv *s, const piece *p, const source *x, uint16_t *a) {
  if (s->flat) {
    put_pixels(parts, x, p->from, 1, p->to - p->from, a + p->at * PIXEL, PIXEL);
    return;
  }
  const int64_t rows = p->to - p->from + s->far_y;
  for (int64_t q = 0; q < s->step_h * s->step_w; q++) {
    if (s->sub[q] < 0) continue;
    const int64_t base_y = q / s->step_w + s->low_y, base_x = q % s->step_w + s->low_x;
    uint16_t *to = a + (s->sub[q] * s->each + p->at) * PIXEL;
    const int64_t begin = smaller(base_x < 0 ? divide_up(-base_x, s->step_w) : 0, s->pitch);
    const int64_t end = larger(smaller(s->w > base_x ? divide_up(s->w - base_x, s->step_w) : 0, s->pitch), begin);
    for (int64_t row = 0; row < rows; row++, to += s->pitch * PIXEL) {
      const int64_t y = (p->from + row) * s->step_h + base_y;
      if (y < 0 || y >= s->h) {
        zeros(x, to, s->pitch);
        continue;
      }
      zeros(x, to, begin);
      put_pixels(parts, x, y * s->w + begin * s->step_w + base_x, s->step_w, end - begin, to + begin * PIXEL, PIXEL);
      zeros(x, to + end * PIXEL, s->pitch - end);
    }
    zeros(x, to, s->columns - s->pitch);
  }
}

RSI_TILES_IN void pack_rows(int parts, const conv *s, int64_t first, int64_t last, uint16_t *a) {
  piece p = {0, 0, 0, 0};
  while (next_piece(s, &first, last, &p)) {
    for (int64_t r = 0; r < (parts == 1 ? 1 : s->runs); r++) {
      const source x = source_of(parts, s, p.n, r);
      pack_piece(parts, s, &p, &x, a + r * parts * s->positions * PIXEL);
    }
    p.at += piece_positions(s, &p);
  }
}

/* `count` images from image `first` on. */
RSI_TILES_IN void pack_images(int parts, const conv *s, int64_t first, int64_t count, uint16_t *a) {
  const int64_t pixels = s->h * s->w;
  for (int64_t r = 0; r < (parts == 1 ? 1 : s->runs); r++, a += parts * s->positions * PIXEL)
    for (int64_t i = 0; i < count; i++) {
      const source x = source_of(parts, s, first + i, r);
      const int64_t at = i / RSI_SPLIT_IMAGES * pixels * RSI_SPLIT_IMAGES + i % RSI_SPLIT_IMAGES;
      put_pixels(parts, &x, 0, 1, pixels, a + at * PIXEL, RSI_SPLIT_IMAGES * PIXEL);
    }
}

/* ---- tiles of positions ------------------------------------------------------------------------------------------------ */

typedef struct tiling { room *z; int64_t count; } tiling;

/* `count` results at positions start.., the first at pixel `out` of y, the others `step` apart. A tile begins where none reaches. */
RSI_TILES_IN void add_results(tiling *t, int64_t start, int64_t count, int64_t out, int64_t step) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int64_t done = 0; done < count;) {
    const int64_t at = start + done;
    if (t->count == 0 || at >= t->z->start[t->count - 1] + RSI_SIDE) {
      t->z->start[t->count] = (int32_t)at;
      _mm512_storeu_si512(t->z->out + t->count * TABLE, _mm512_set1_epi32(-1));
      t->count++;
    }
    const int64_t from = t->z->start[t->count - 1], low = at - from, high = smaller(RSI_SIDE, start + count - from);
    const __mmask16 mask = (__mmask16)(rsi_first_of(high) & ~rsi_first_of(low));
    const __m512i pixel = _mm512_add_epi32(_mm512_set1_epi32((int32_t)(out + (from - start) * step)),
                                           _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int32_t)step)));
    _mm512_mask_storeu_epi32(t->z->out + (t->count - 1) * TABLE, mask, pixel);
    done = from + high - start;
  }
}

/* Blocks of an image of y: each has a plane of its own, except with half. */
RSI_TILES_IN int64_t planes(const conv *s) { return s->half ? 1 : s->groups_out; }

/* The last tile of an image in place must not reach beyond it: it begins earlier, with rows that are dropped. */
static void pull_back(room *z, int64_t tile, int64_t end) {
  const int64_t over = z->start[tile] + RSI_SIDE - end;
  if (over <= 0) return;
  int32_t *const out = z->out + tile * TABLE;
  z->start[tile] -= (int32_t)over;
  for (int64_t i = RSI_SIDE - 1; i >= 0; i--) out[i] = i < over ? -1 : out[i - over];
}

RSI_TILES static int64_t make_tiles(const conv *s, const rsi_split_phase *f, int64_t first, int64_t last, room *z) {
  const int64_t plane = s->oh * s->ow;
  tiling t = {z, 0};
  piece p = {0, 0, 0, 0};
  while (next_piece(s, &first, last, &p)) {
    const int64_t image = p.n * planes(s) * plane;
    if (s->flat) add_results(&t, s->in_place ? p.from : p.at, p.to - p.from, image + p.from, 1);
    else
      for (int64_t i = p.from; i < smaller(p.to, f->down); i++)
        add_results(&t, p.at + (i - p.from) * s->pitch, f->across, image + (i * s->over_h + f->y) * s->ow + f->x, s->over_w);
    p.at += piece_positions(s, &p);
  }
  if (s->in_place) pull_back(z, t.count - 1, s->h);
  return t.count;
}

/* ---- finishing --------------------------------------------------------------------------------------------------------- */

/* Sums that are multiplied and not yet where they belong. */
typedef struct late {
  const float *sums;
  const int32_t *out[2];
  int64_t group;                 /* of the first column of tiles */
  int down, across, row;         /* row: how many rows of each tile are done; 16: nothing is left */
  bool first, last;              /* of the parts of a chain */
} late;

typedef struct work {
  const conv *s;
  room *z;
  late  left;
  int   turn;
  __mmask16 odd;
} work;

/* Half: what is the same for all pixels of a chain. Its sums are [pixel][across][16]. */
typedef struct ending {
  const float *sums;
  const int32_t *out;
  uint16_t *y, *nowhere;         /* nowhere: a line for pixels that are dropped */
  const uint16_t *residual;
  int64_t channels;
  __mmask32 mask;
  __m512 bias[2], low, high;
} ending;

RSI_TILES_IN ending ending_of(const work *w, int across) {
  const conv *const s = w->s;
  const int64_t first = w->left.group * 16;
  ending e = {w->left.sums, w->left.out[0], (uint16_t *)s->y + first, (uint16_t *)(void *)w->z->acc,
              s->residual ? (const uint16_t *)s->residual + first : NULL, s->out, channel_mask(smaller(across * 16, s->out - first)),
              {_mm512_setzero_ps(), _mm512_setzero_ps()}, _mm512_set1_ps(s->low), _mm512_set1_ps(s->high)};
  for (int q = 0; q < across; q++) e.bias[q] = _mm512_loadu_ps(s->bias + first + q * 16);
  return e;
}

RSI_TILES_IN void end_pixel(const ending *e, int across, int64_t i) {
  const float *const sums = e->sums + i * across * 16;
  const int64_t pixel = e->out[i];
  uint16_t *const y = pixel < 0 ? e->nowhere : e->y + pixel * e->channels;
  __m512 v[2] = {_mm512_add_ps(_mm512_load_ps(sums), e->bias[0]), _mm512_setzero_ps()};
  if (across > 1) v[1] = _mm512_add_ps(_mm512_load_ps(sums + 16), e->bias[1]);
  if (e->residual != NULL) {
    const __m512i r = _mm512_maskz_loadu_epi16(e->mask, pixel < 0 ? e->nowhere : e->residual + pixel * e->channels);
    v[0] = _mm512_add_ps(v[0], _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(r)), 16)));
    if (across > 1)
      v[1] = _mm512_add_ps(v[1], _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(r, 1)), 16)));
  }
  for (int q = 0; q < across; q++) v[q] = _mm512_min_ps(e->high, _mm512_max_ps(e->low, v[q]));
  _mm512_mask_storeu_epi16(y, e->mask, (__m512i)_mm512_cvtne2ps_pbh(v[1], v[0]));
}

RSI_TILES_IN void end_all(const work *w, int across) {
  const ending e = ending_of(w, across);
  for (int64_t i = 0; i < w->left.down * RSI_SIDE; i++) end_pixel(&e, across, i);
}

RSI_TILES static void finish_half(work *w) {
  if (w->left.row < RSI_SIDE && w->left.across > 1) end_all(w, 2);
  else if (w->left.row < RSI_SIDE) end_all(w, 1);
  w->left.row = RSI_SIDE;
}

RSI_TILES_IN void finish(int parts, work *w, int rows) {
  const conv *const s = w->s;
  late *const l = &w->left;
  const int64_t plane = s->oh * s->ow;
  if (parts == 1) {
    finish_half(w);
    return;
  }
  for (; rows > 0 && l->row < RSI_SIDE; rows--, l->row++)
    for (int d = 0; d < l->down; d++) {
      const int64_t pixel = l->out[d][l->row];
      if (pixel < 0) continue;
      for (int q = 0; q < l->across; q++) {
        const int at = ((d * l->across + q) * RSI_SIDE + l->row) * RSI_SIDE;
        __m512 v = _mm512_load_ps(l->sums + at);
        if (!l->first) v = _mm512_add_ps(v, _mm512_load_ps(w->z->acc + at));
        if (!l->last) {
          _mm512_store_ps(w->z->acc + at, v);
          continue;
        }
        const int64_t to = (pixel + (l->group + q) * plane) * 16;
        w->odd |= rsi_odd(v);
        if (s->bias != NULL) v = _mm512_add_ps(v, _mm512_loadu_ps(s->bias + (l->group + q) * 16));
        if (s->residual != NULL) v = _mm512_add_ps(v, _mm512_loadu_ps((const float *)s->residual + to));
        _mm512_storeu_ps((float *)s->y + to, _mm512_min_ps(_mm512_set1_ps(s->high), _mm512_max_ps(_mm512_set1_ps(s->low), v)));
      }
    }
}

/* ---- products ---------------------------------------------------------------------------------------------------------- */

/*
** sums: [down][across][16][16] = a x b over `runs` runs at a_at and b_at; a[h] and b[q] are the two tiles of rows and of columns. After
** each run some of the sums before are finished.
*/
RSI_TILES_IN void multiply(work *w, int down, int across, int64_t runs, const int32_t *a_at, const int32_t *b_at,
                           const uint16_t *const a[2], const uint16_t *const b[2], float *sums) {
  const int64_t part = w->s->positions * PIXEL;
  const int each = runs >= RSI_SIDE ? 1 : (int)(RSI_SIDE / (runs > 0 ? runs : 1)) + 1;
  rsi_split_begin(down, across);
  for (int64_t r = 0; r < runs; r++) {
    rsi_split_run(RSI_PARTS, down, across, a[0] + a_at[r], a[1] + a_at[r], part, b[0] + b_at[r], b[1] + b_at[r], RSI_TILE, NULL, NULL);
    finish(RSI_PARTS, w, each);
  }
  finish(RSI_PARTS, w, RSI_SIDE);
  rsi_split_end(down, across, sums, across * 256);
}

/* The same with one part; sums: [down][16][across][16]. */
RSI_TILES_IN void multiply_half(work *w, int down, int across, int64_t runs, const int32_t *a_at, const int32_t *b_at,
                                const uint16_t *const a[2], const uint16_t *const b[2], float *sums) {
  const int64_t line = w->s->in_place ? w->s->in * 2 : 64, units = down * RSI_SIDE, each = runs > 0 ? divide_up(units, runs) : 0;
  const bool lower = down > 1, right = across > 1;
  if (w->left.down != down || w->left.across != across) finish_half(w);
  const bool more = w->left.row < RSI_SIDE;
  const ending e = ending_of(w, more ? across : 0);
  int64_t unit = more ? 0 : units;
  _tile_zero(0);
  if (right) _tile_zero(1);
  if (lower) _tile_zero(2);
  if (lower && right) _tile_zero(3);
  for (int64_t r = 0; r < runs; r++) {
    const int64_t at = a_at[r], bt = b_at[r];
    if (r % 4 == 0) rsi_stay_awake();
    _tile_loadd(4, a[0] + at, line);
    _tile_loadd(6, b[0] + bt, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (right) {
      _tile_loadd(7, b[1] + bt, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (lower) {
      _tile_loadd(5, a[1] + at, line);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (lower && right) _tile_dpbf16ps(3, 5, 7);
    for (const int64_t end = smaller(unit + each, units); unit < end; unit++) end_pixel(&e, across, unit);
  }
  for (; unit < units; unit++) end_pixel(&e, across, unit);
  _tile_stored(0, sums, across * 64);
  if (right) _tile_stored(1, sums + 16, across * 64);
  if (lower) _tile_stored(2, sums + across * 256, across * 64);
  if (lower && right) _tile_stored(3, sums + across * 256 + 16, across * 64);
}

/* A whole chain of `runs` runs for tiles at start[h] and blocks group.. of the result. */
RSI_TILES_IN void chain(int of, work *w, int down, int across, int64_t runs, const int32_t *start, const int32_t *out, int64_t group,
                        const uint16_t *b, int64_t b_step) {
  const int64_t parts = of > 1 && runs > 0 ? divide_up(runs, RSI_SPLIT_CHAIN) : 1, each = divide_up(runs, parts);
  const int64_t row = w->s->in_place ? w->s->in : PIXEL;
  const uint16_t *const as[2] = {w->z->a + start[0] * row, w->z->a + start[down - 1] * row};
  const uint16_t *const bs[2] = {b, b + b_step};
  for (int64_t i = 0; i < parts; i++) {
    float *const sums = w->z->sums + (w->turn ^= 1) * SUMS;
    if (of == 1) multiply_half(w, down, across, runs, w->z->a_at, w->z->b_at, as, bs, sums);
    else multiply(w, down, across, smaller(each, runs - i * each), w->z->a_at + i * each, w->z->b_at + i * each, as, bs, sums);
    w->left = (late){sums, {out, out + (down - 1) * TABLE}, group, down, across, 0, i == 0, i == parts - 1};
  }
}

#define CHAIN(name, of, down, across)                                                                                       \
  RSI_TILES static void name(work *w, int64_t runs, const int32_t *start, const int32_t *out, int64_t group, const uint16_t *b, \
                             int64_t step) {                                                                                \
    chain(of, w, down, across, runs, start, out, group, b, step);                                                           \
  }
CHAIN(chain11, RSI_PARTS, 1, 1)
CHAIN(chain12, RSI_PARTS, 1, 2)
CHAIN(chain21, RSI_PARTS, 2, 1)
CHAIN(chain22, RSI_PARTS, 2, 2)
CHAIN(half11, 1, 1, 1)
CHAIN(half12, 1, 1, 2)
CHAIN(half21, 1, 2, 1)
CHAIN(half22, 1, 2, 2)

typedef void (*chain_fn)(work *w, int64_t runs, const int32_t *start, const int32_t *out, int64_t group, const uint16_t *b, int64_t step);
static const chain_fn chains[2][2][2] = {{{chain11, chain12}, {chain21, chain22}}, {{half11, half12}, {half21, half22}}};

/* ---- weights of a pair of blocks ------------------------------------------------------------------------------------------ */

RSI_TILES static void gather_lines(const conv *s, int64_t group, int64_t run, int64_t taps, float *lines);
RSI_TILES static void put_lines(const conv *s, const rsi_split_phase *f, int64_t taps, const float *lines, uint16_t *to);

/* Blocks group.. of the result, one or two, of phase f; `step` elements each. */
RSI_TILES_IN const uint16_t *weights_of(int parts, const work *w, const rsi_split_phase *f, int64_t group, int64_t count, int64_t step) {
  const conv *const s = w->s;
  if (parts > 1 || !s->fresh) return s->b + f->b + group * step;
  for (int64_t r = 0; r < s->runs; r++)
    for (int64_t g = 0; g < smaller(2, count); g++) {
      gather_lines(s, group + g, r, f->taps, w->z->lines);
      put_lines(s, f, f->taps, w->z->lines, w->z->b + g * step + r * f->taps * RSI_TILE);
    }
  return w->z->b;
}

/* ---- a task by rows ---------------------------------------------------------------------------------------------------- */

RSI_TILES_IN void rows_task(int parts, work *w, int64_t first, int64_t last, int64_t group, int64_t groups) {
  const conv *const s = w->s;
  if (s->in_place) w->z->a = (uint16_t *)(uintptr_t)s->x;
  else pack_rows(parts, s, first, last, w->z->a);
  for (int64_t k = 0; k < s->phases; k++) {
    const rsi_split_phase *const f = &s->phase[k];
    const int64_t runs = s->runs * f->taps, step = runs * parts * RSI_TILE;
    finish(parts, w, RSI_SIDE);                  /* it reads the table of tiles */
    const int64_t tiles = make_tiles(s, f, first, last, w->z);
    for (int64_t r = 0; r < s->runs; r++)
      for (int64_t t = 0; t < f->taps; t++) {
        const int64_t y = s->tap[f->first + t].y - s->low_y, x = s->tap[f->first + t].x - s->low_x;
        const int64_t sub = s->sub[y % s->step_h * s->step_w + x % s->step_w];
        const int64_t at = sub * s->each + y / s->step_h * s->pitch + x / s->step_w;
        w->z->a_at[r * f->taps + t] = (int32_t)(((s->in_place ? r : r * parts * s->positions) + at) * PIXEL);
        w->z->b_at[r * f->taps + t] = (int32_t)((r * f->taps + t) * parts * RSI_TILE);
      }
    for (int64_t g = 0; g < groups; g += 2) {
      const uint16_t *const b = weights_of(parts, w, f, group + g, groups - g, step);
      for (int64_t t = 0; t < tiles; t += 2)
        chains[parts == 1][t + 1 < tiles][g + 1 < groups](w, runs, w->z->start + t, w->z->out + t * TABLE, group + g, b, step);
    }
  }
}

/* ---- a task by images -------------------------------------------------------------------------------------------------- */

/* Of a grid line of `size` points from `from` on: how many meet the image of `length` with the same taps. bit t: with offset t. */
static uint64_t met(const conv *s, const rsi_split_phase *f, bool down, int64_t i) {
  uint64_t mask = 0;
  for (int64_t t = 0; t < f->taps; t++) {
    const rsi_split_tap *const tap = &s->tap[f->first + t];
    const int64_t at = down ? i * s->step_h + tap->y : i * s->step_w + tap->x;
    if (at >= 0 && at < (down ? s->h : s->w)) mask |= (uint64_t)1 << t;
  }
  return mask;
}

RSI_TILES_IN void images_task(int parts, work *w, int64_t first, int64_t last, int64_t group, int64_t groups) {
  const conv *const s = w->s;
  const int64_t plane = s->oh * s->ow, count = last - first;
  room *const z = w->z;
  pack_images(parts, s, first, count, z->a);
  int64_t ring = 0;
  for (int64_t k = 0; k < s->phases; k++) {
    const rsi_split_phase *const f = &s->phase[k];
    const int64_t step = s->runs * f->taps * parts * RSI_TILE;
    for (int64_t g = 0; g < groups; g += 2) {
      const uint16_t *const b = weights_of(parts, w, f, group + g, groups - g, step);
      for (int64_t i0 = 0, i1; i0 < f->down; i0 = i1) {
        const uint64_t vertical = met(s, f, true, i0);
        for (i1 = i0 + 1; i1 < f->down && met(s, f, true, i1) == vertical;) i1++;
        for (int64_t j0 = 0, j1; j0 < f->across; j0 = j1) {
          const uint64_t horizontal = met(s, f, false, j0), both = vertical & horizontal;
          for (j1 = j0 + 1; j1 < f->across && met(s, f, false, j1) == horizontal;) j1++;
          int64_t runs = 0;
          for (int64_t r = 0; r < s->runs; r++)
            for (int64_t t = 0; t < f->taps; t++) {
              if (!(both >> t & 1)) continue;
              const rsi_split_tap *const tap = &s->tap[f->first + t];
              z->a_at[runs] = (int32_t)((r * parts * s->positions + (tap->y * s->w + tap->x) * RSI_SPLIT_IMAGES) * PIXEL);
              z->b_at[runs++] = (int32_t)((r * f->taps + t) * parts * RSI_TILE);
            }
          const int64_t pixels = (i1 - i0) * (j1 - j0), all = pixels * divide_up(count, RSI_SPLIT_IMAGES);
          for (int64_t p = 0; p < all; p += 2, ring = (ring + 2) % RING) {
            const int64_t both_tiles = smaller(2, all - p);
            for (int64_t d = 0; d < both_tiles; d++) {
              const int64_t set = (p + d) / pixels, i = i0 + (p + d) % pixels / (j1 - j0), j = j0 + (p + d) % pixels % (j1 - j0);
              const int64_t image = first + set * RSI_SPLIT_IMAGES, left = count - set * RSI_SPLIT_IMAGES;
              z->start[ring + d] = (int32_t)(((set * s->h + i * s->step_h) * s->w + j * s->step_w) * RSI_SPLIT_IMAGES);
              const int64_t out = image * planes(s) * plane + (i * s->over_h + f->y) * s->ow + j * s->over_w + f->x;
              for (int64_t n = 0; n < RSI_SPLIT_IMAGES; n++)
                z->out[(ring + d) * TABLE + n] = n < left ? (int32_t)(out + n * planes(s) * plane) : -1;
            }
            chains[parts == 1][both_tiles - 1][g + 1 < groups](w, runs, z->start + ring, z->out + ring * TABLE, group + g, b, step);
          }
        }
      }
    }
  }
}

/* ---- once more, by FMA ------------------------------------------------------------------------------------------------- */

/* panel: [in][taps][16] weights of block `group` */
static void make_panel(const conv *s, const rsi_split_phase *f, int64_t group, float *panel) {
  const int64_t filled = smaller(16, s->out - group * 16);
  for (int64_t c = 0; c < s->in; c++)
    for (int64_t t = 0; t < f->taps; t++, panel += 16)
      for (int64_t o = 0; o < 16; o++)
        panel[o] = o < filled ? s->weight[(group * 16 + o) * s->weight_out + c * s->weight_in + s->tap[f->first + t].index] : 0.0f;
}

static void again_pixel(const conv *s, const rsi_split_phase *f, int64_t n, int64_t i, int64_t j, int64_t group, const float *panel) {
  const float zero = 0;
  const int64_t pixels = s->h * s->w;
  const float *const image = (const float *)s->x + n * s->groups_in * pixels * 16;
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t t = 0; t < f->taps; t++) {
    const rsi_split_tap *const tap = &s->tap[f->first + t];
    const int64_t y = i * s->step_h + tap->y, x = j * s->step_w + tap->x;
    const bool inside = y >= 0 && y < s->h && x >= 0 && x < s->w;
    if (!inside && s->skips) continue;
    for (int64_t c = 0; c < s->in; c++) {
      const float *const v = inside ? image + (c / 16 * pixels + y * s->w + x) * 16 + c % 16 : &zero;
      sum[c % 4] = _mm512_fmadd_ps(_mm512_set1_ps(*v), _mm512_loadu_ps(panel + (c * f->taps + t) * 16), sum[c % 4]);
    }
  }
  const int64_t at = ((n * s->groups_out + group) * s->oh * s->ow + (i * s->over_h + f->y) * s->ow + j * s->over_w + f->x) * 16;
  __m512 v = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
  if (s->bias != NULL) v = _mm512_add_ps(v, _mm512_loadu_ps(s->bias + group * 16));
  if (s->residual != NULL) v = _mm512_add_ps(v, _mm512_loadu_ps((const float *)s->residual + at));
  _mm512_storeu_ps((float *)s->y + at, _mm512_min_ps(_mm512_set1_ps(s->high), _mm512_max_ps(_mm512_set1_ps(s->low), v)));
}

static void again(const conv *s, int64_t first, int64_t last, int64_t group, int64_t groups, float *panel) {
  if (s->by_image) first *= s->down, last *= s->down;
  for (int64_t k = 0; k < s->phases; k++)
    for (int64_t g = group; g < group + groups; g++) {
      make_panel(s, &s->phase[k], g, panel);
      for (int64_t r = first; r < last; r++)
        for (int64_t j = 0; r % s->down < s->phase[k].down && j < s->phase[k].across; j++)
          again_pixel(s, &s->phase[k], r / s->down, r % s->down, j, g, panel);
    }
}

/* ---- the whole --------------------------------------------------------------------------------------------------------- */

RSI_TILES_IN void run_task(int parts, const conv *s, int64_t first, int64_t rows, int64_t group, int64_t groups, char *scratch) {
  room z;
  work w = {.s = s, .z = &z, .left = {.row = RSI_SIDE}};
  room_of(s, scratch, &z);
  rsi_tiles_begin();
  if (s->by_image) images_task(parts, &w, first, first + rows, group, groups);
  else rows_task(parts, &w, first, first + rows, group, groups);
  finish(parts, &w, RSI_SIDE);
  _tile_release();
  if (w.odd) again(s, first, first + rows, group, groups, (float *)(void *)z.a);
}

RSI_TILES static void task(const conv *s, int64_t first, int64_t rows, int64_t group, int64_t groups, char *scratch) {
  if (s->half) run_task(1, s, first, rows, group, groups, scratch);
  else run_task(RSI_PARTS, s, first, rows, group, groups, scratch);
}

/* ---- weights ------------------------------------------------------------------------------------------------------------- */

enum { LINES_AHEAD = 96, ROWS_AHEAD = 8 };      /* weights come from memory, in pieces too short for the processor to foresee */

/* lines: [32 channels][taps of a filter][16 results], zeros where there is no channel or result */
RSI_TILES static void gather_lines(const conv *s, int64_t group, int64_t run, int64_t taps, float *lines) {
  const int64_t filled = smaller(16, s->out - group * 16), c0 = run * RSI_DEEP;
  for (int64_t half = 0; half < 2; half++) {
    float *const to = lines + half * 16 * taps * 16;
    const int64_t channels = smaller(16, s->in - c0 - half * 16);
    if (channels < 16) memset(to, 0, (size_t)(16 * taps * 16) * sizeof(float));
    if (channels <= 0) continue;
    const float *const from = s->weight + group * 16 * s->weight_out + (c0 + half * 16) * s->weight_in;
    if (s->weight_in == taps) {                    /* the channels and taps of a filter lie side by side */
      for (int64_t i = 0; i < channels * taps; i += 16) {
        __m512 v[16];
        for (int64_t o = 0; o < filled; o++) _mm_prefetch((const char *)(from + o * s->weight_out + i + LINES_AHEAD), _MM_HINT_T0);
        rsi_load16(from + i, s->weight_out, 1, filled, smaller(16, channels * taps - i), v);
        rsi_transpose16(v);
        for (int64_t q = 0; q < smaller(16, channels * taps - i); q++) _mm512_storeu_ps(to + (i + q) * 16, v[q]);
      }
    } else {                                       /* the results and taps of a channel do */
      for (int64_t c = 0; c < channels; c++) {
        for (int64_t i = 0; i < filled * taps; i += 16) _mm_prefetch((const char *)(from + (c + ROWS_AHEAD) * s->weight_in + i), _MM_HINT_T0);
        for (int64_t t = 0; t < taps; t += 16) {
          __m512 v[16];
          if (taps == 1) v[0] = _mm512_maskz_loadu_ps(rsi_first_of(filled), from + c * s->weight_in);
          else {
            rsi_load16(from + c * s->weight_in + t, taps, 1, filled, smaller(16, taps - t), v);
            rsi_transpose16(v);
          }
          for (int64_t q = 0; q < smaller(16, taps - t); q++) _mm512_storeu_ps(to + (c * taps + t + q) * 16, v[q]);
        }
      }
    }
  }
}

/* to: [taps of the phase][parts * RSI_TILE] */
RSI_TILES static void put_lines(const conv *s, const rsi_split_phase *f, int64_t taps, const float *lines, uint16_t *to) {
  const int64_t low = (s->half ? 2 : 1) * taps * 16, high = (s->half ? 1 : 16) * taps * 16;      /* channels of unit i: i * low, + high */
  for (int64_t t = 0; t < f->taps; t++, to += s->parts * RSI_TILE) {
    const float *const from = lines + s->tap[f->first + t].index * 16;
    for (int64_t i = 0; i < 16; i++) {
      __m512i v[RSI_PARTS];
      rsi_split(_mm512_loadu_ps(from + i * low), _mm512_loadu_ps(from + i * low + high), v);
      for (int p = 0; p < s->parts; p++) _mm512_storeu_si512(to + p * RSI_TILE + i * RSI_DEEP, v[p]);
    }
  }
}

RSI_TILES static void pack(const conv *s, int64_t group, int64_t run, int64_t taps, uint16_t *b, float *scratch) {
  gather_lines(s, group, run, taps, scratch);
  for (int64_t k = 0; k < s->phases; k++) {
    const rsi_split_phase *const f = &s->phase[k];
    put_lines(s, f, taps, scratch, b + f->b + (group * s->runs + run) * f->taps * s->parts * RSI_TILE);
  }
}

const rsi_k_split_conv RSI_ISA(rsi_k_split_conv) = {.scratch = scratch_bytes, .pack = pack, .task = task};
#else
const rsi_k_split_conv RSI_ISA(rsi_k_split_conv) = {NULL, NULL, NULL};
#endif
