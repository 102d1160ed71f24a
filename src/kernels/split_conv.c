/*
** Convolutions by split products. What a task does:
**   split    its part of the image becomes a: a list of strips (rows of pixels, zeros) is gone through for each run
**   tiles    which results 16 positions make, and sections of tiles that take the same taps
**   sum      for each pair of blocks of the result, for each chunk of runs, for each pair of tiles of positions: a chunk's sums are
**            added up in f32. So a chunk's weights and its slice of the image stay near, and long sums are sums of short ones
**   finish   bias, residual, clamp and store of 16 pixels x 16 channels
** While a pair of tiles is multiplied, the sums before are finished and, for the first blocks of the result, the next runs are split:
** the loops of products leave the processor's other ports idle.
** A sum that may be wrong (rsi_odd) makes the task do all its results again by FMA.
**
** With one part (half) nothing is split: the image is copied before the products, or read in place, a chain is a whole sum, and only
** finishing goes on beside the products. What depends on the number of parts takes it as its first argument, a constant once all is
** inlined.
*/
#include "kernels/split_conv.h"
#include "kernels/split_tiles.h"

#if RSI_ISA_LEVEL == 2

typedef rsi_split_conv conv;
enum { TABLE = RSI_SIDE, PAIR = 4 * 256, BLOCK = 256, PIXEL = 32 };      /* PIXEL: elements of a position */

/* ---- scratch ----------------------------------------------------------------------------------------------------------- */

/* `count` positions from `at` on: pixels from `from` on (counted in x, for run 0) or zeros (-1). */
typedef struct strip { int64_t from; int32_t at, count; } strip;

/* Tiles first..end - 1 take the taps of this mask (by image), or all. */
typedef struct section { int32_t first, end; uint64_t taps; } section;

/* Tile t: rows at positions start[t].., and the pixel of y (in pixels from y's start, of block 0) of each row, or -1. */
typedef struct room {
  uint16_t *a;
  float    *sums, *acc;          /* [2][PAIR]; [pairs of blocks, or 1][tiles][2][BLOCK], or nothing if there is one chunk */
  int32_t  *out, *start;         /* [tiles][16], [tiles] */
  int32_t  *a_at, *b_at;         /* where the runs of a chunk lie, elements */
  section  *sections;
  strip    *strips;
  uint16_t *b;                   /* fresh: [2][runs][taps][RSI_TILE], and what pack() needs */
  float    *lines;
} room;

static size_t round64(size_t bytes) { return (bytes + 63) / 64 * 64; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t most_taps(const conv *s) {
  int64_t most = 1;
  for (int64_t p = 0; p < s->phases; p++) most = larger(most, s->phase[p].taps);
  return most;
}

/* The next `bytes` of scratch; at is only counted when there is none. */
static void *take(char **at, size_t bytes) {
  char *const from = *at;
  *at += round64(bytes);
  return from;
}

static size_t room_of(const conv *s, char *const begin, room *z) {
  const size_t taps = (size_t)most_taps(s), runs = (size_t)s->runs;
  const size_t list = s->half ? runs * taps : RSI_SPLIT_CHAIN;                 /* runs of a chunk */
  const size_t a = s->in_place ? 0 : (size_t)(s->kept * s->parts * s->positions * PIXEL) * sizeof(uint16_t);
  const size_t panel = s->half ? 0 : runs * PIXEL * taps * RSI_SIDE * sizeof(float);       /* of again() */
  char *at = begin;
  z->a = take(&at, a > panel ? a : panel);
  z->sums = take(&at, 2 * PAIR * sizeof(float));
  z->acc = take(&at, (size_t)(s->tiles * s->acc_groups + 2) * BLOCK * sizeof(float));
  z->out = take(&at, (size_t)(s->tiles * TABLE) * sizeof(int32_t));
  z->start = take(&at, (size_t)s->tiles * sizeof(int32_t));
  z->a_at = take(&at, list * sizeof(int32_t));
  z->b_at = take(&at, list * sizeof(int32_t));
  z->sections = take(&at, (size_t)(s->by_image ? s->down * s->across : 1) * sizeof(section));
  z->strips = take(&at, (size_t)s->strips * sizeof(strip));
  z->b = take(&at, s->fresh ? 2 * runs * taps * RSI_TILE * sizeof(uint16_t) : 0);
  z->lines = take(&at, s->fresh ? RSI_TILE * taps * sizeof(float) : 0);
  return (size_t)(at - begin);
}

static size_t scratch_bytes(const conv *s) {
  room z;
  return room_of(s, NULL, &z);
}

/* Sums that are multiplied and not yet where they belong. */
typedef struct late {
  const float *sums;
  float *acc;
  const int32_t *out[2];
  int64_t group;                 /* of the first column of tiles */
  int down, across, row;         /* row: how many rows of each tile are done; 16: nothing is left */
  bool first, last;              /* of the chunks */
} late;

typedef struct work {
  const conv *s;
  room  z;
  late  left;
  int   turn;
  __mmask16 odd;
  int64_t strips, tiles, sections;
  int64_t run, strip, done;      /* how far splitting is: so many runs, strips of the next and positions of that */
  int64_t all, each;             /* positions of a run; those that are split after four products */
  int64_t step, ahead, to_step;  /* from pixel to pixel, to those that are asked for; of places */
  const char *ask;               /* weights of the next chunk: so many lines are to be asked for, so many after four products */
  int64_t ask_left, ask_each;
  int     finished, pace;        /* rows that should be finished, how many more in a step of products: in 256ths */
} work;

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

/* Blocks of an image of x or y that lie one after the other; with half there is one of all channels. */
static int64_t planes(const conv *s, int64_t groups) { return s->half ? 1 : groups; }

static int64_t piece_positions(const conv *s, const piece *p) { return (p->to - p->from + s->far_y) * s->pitch; }

/* ---- splitting the image ----------------------------------------------------------------------------------------------- */

static void add_strip(work *w, int64_t from, int64_t at, int64_t count) {
  strip *const next = &w->z.strips[w->strips];
  if (count <= 0) return;
  if (from < 0 && w->strips > 0 && next[-1].from < 0 && next[-1].at + next[-1].count == at) next[-1].count += (int32_t)count;
  else *next = (strip){from, (int32_t)at, (int32_t)count}, w->strips++;
}

static void strips_of_piece(work *w, const piece *p) {
  const conv *const s = w->s;
  const int64_t image = p->n * planes(s, s->groups_in) * s->h * s->w;
  if (s->flat) {
    add_strip(w, image + p->from, p->at, p->to - p->from);
    return;
  }
  for (int64_t row = 0; row < p->to - p->from + s->far_y; row++)
    for (int64_t q = 0; q < s->step_h * s->step_w; q++) {            /* as the rows lie in memory */
      const int64_t base_y = q / s->step_w + s->low_y, base_x = q % s->step_w + s->low_x;
      const int64_t y = (p->from + row) * s->step_h + base_y, at = s->sub[q] * s->each + p->at + row * s->pitch;
      const int64_t begin = smaller(base_x < 0 ? divide_up(-base_x, s->step_w) : 0, s->pitch);
      const int64_t end = larger(smaller(s->w > base_x ? divide_up(s->w - base_x, s->step_w) : 0, s->pitch), begin);
      if (s->sub[q] < 0) continue;
      if (y < 0 || y >= s->h) add_strip(w, -1, at, s->pitch);
      else {
        add_strip(w, -1, at, begin);
        add_strip(w, image + y * s->w + begin * s->step_w + base_x, at + begin, end - begin);
        add_strip(w, -1, at + end, s->pitch - end);
      }
    }
  for (int64_t q = 0; q < s->step_h * s->step_w; q++)
    if (s->sub[q] >= 0) add_strip(w, -1, s->sub[q] * s->each + p->at + piece_positions(s, p), s->columns - s->pitch);
}

static void make_strips(work *w, int64_t first, int64_t last) {
  const conv *const s = w->s;
  const int64_t pixels = s->h * s->w;
  piece p = {0, 0, 0, 0};
  w->strips = 0;
  w->step = (s->by_image ? 1 : s->step_w) * (s->half ? s->in : 16), w->to_step = s->by_image ? RSI_SPLIT_IMAGES * PIXEL : PIXEL;
  w->ahead = s->flat || s->by_image ? 32 * 16 : s->step_h * s->w * 16;
  if (s->by_image)
    for (int64_t n = first; n < last; n++) {
      const int64_t set = (n - first) / RSI_SPLIT_IMAGES * pixels * RSI_SPLIT_IMAGES;
      add_strip(w, n * planes(s, s->groups_in) * pixels, set + (n - first) % RSI_SPLIT_IMAGES, pixels);
    }
  else
    for (; next_piece(s, &first, last, &p); p.at += piece_positions(s, &p)) strips_of_piece(w, &p);
  for (int64_t i = 0; i < w->strips; i++) w->all += w->z.strips[i].count;
}

/* The pixels of a strip in two blocks of x, or one if there are no `two`. */
RSI_TILES_IN void split_pixels(const work *w, bool two, const float *x, const float *y, int64_t count, uint16_t *to) {
  const int64_t part = w->s->positions * PIXEL, step = w->step, ahead = w->ahead, to_step = w->to_step;
  for (int64_t i = 0; i < count; i++, x += step, y += step, to += to_step) {
    __m512i v[RSI_PARTS];
    _mm_prefetch((const char *)(x + ahead), _MM_HINT_T0);
    if (two) _mm_prefetch((const char *)(y + ahead), _MM_HINT_T0);
    rsi_split(_mm512_loadu_ps(x), two ? _mm512_loadu_ps(y) : _mm512_setzero_ps(), v);
    for (int p = 0; p < RSI_PARTS; p++) _mm512_storeu_si512(to + p * part, v[p]);
  }
}

/* Splits `count` more positions, strip after strip and run after run. */
RSI_TILES __attribute__((noinline)) static void split_some(work *w, int64_t count) {
  const conv *const s = w->s;
  const int64_t plane = s->h * s->w * 16, part = s->positions * PIXEL, to_step = w->to_step;
  while (count > 0 && w->run < s->runs) {
    const strip *const t = &w->z.strips[w->strip];
    const int64_t some = smaller(count, t->count - w->done);
    uint16_t *const to = w->z.a + w->run % s->kept * RSI_PARTS * part + t->at * PIXEL + w->done * to_step;
    if (t->from >= 0) {
      const float *const from = (const float *)s->x + 2 * w->run * plane + t->from * 16 + w->done * w->step;
      if (2 * w->run + 1 < s->groups_in) split_pixels(w, true, from, from + plane, some, to);
      else split_pixels(w, false, from, from, some, to);
    } else
      for (int64_t p = 0; p < RSI_PARTS; p++)
        for (int64_t i = 0; i < some; i++) _mm512_storeu_si512(to + p * part + i * to_step, _mm512_setzero_si512());
    count -= some, w->done += some;
    if (w->done < t->count) continue;
    w->done = 0;
    if (++w->strip == w->strips) w->strip = 0, w->run++;
  }
}

RSI_TILES_IN __mmask32 channel_mask(int64_t n) { return n >= PIXEL ? (__mmask32)-1 : n <= 0 ? 0 : ((__mmask32)1 << n) - 1; }

/* Half: all strips of all runs at once, since memory is best read as it lies. */
RSI_TILES static void copy_all(work *w) {
  const conv *const s = w->s;
  const int64_t line = s->positions * PIXEL, end = (s->runs - 1) * line, pixel = s->in * 2, step = w->step * 2, to_step = w->to_step;
  const __mmask32 mask = channel_mask(s->in - (s->runs - 1) * PIXEL);
  for (const strip *t = w->z.strips, *const past = t + w->strips; t < past; t++) {
    const char *x = (const char *)s->x + t->from * pixel;
    uint16_t *to = w->z.a + t->at * PIXEL;
    if (t->from < 0) {
      for (int64_t p = 0; p <= end; p += line)
        for (int64_t i = 0; i < t->count; i++) _mm512_storeu_si512(to + p + i * PIXEL, _mm512_setzero_si512());
      continue;
    }
    for (int64_t i = 0; i < t->count; i++, x += step, to += to_step) {
      const char *from = x;
      for (int64_t p = 0; p < end; p += line, from += 64) _mm512_storeu_si512(to + p, _mm512_loadu_si512(from));
      _mm512_storeu_si512(to + end, _mm512_maskz_loadu_epi16(mask, from));
    }
  }
}

/* ---- tiles of positions ------------------------------------------------------------------------------------------------ */

/* `count` results at positions start.., the first at pixel `out` of y, the others `step` apart. A tile begins where none reaches. */
RSI_TILES_IN void add_results(work *w, int64_t start, int64_t count, int64_t out, int64_t step) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int64_t done = 0; done < count;) {
    const int64_t at = start + done;
    if (w->tiles == 0 || at >= w->z.start[w->tiles - 1] + RSI_SIDE) {
      w->z.start[w->tiles] = (int32_t)at;
      _mm512_storeu_si512(w->z.out + w->tiles * TABLE, _mm512_set1_epi32(-1));
      w->tiles++;
    }
    const int64_t from = w->z.start[w->tiles - 1], low = at - from, high = smaller(RSI_SIDE, start + count - from);
    const __mmask16 mask = (__mmask16)(rsi_first_of(high) & ~rsi_first_of(low));
    const __m512i pixel = _mm512_add_epi32(_mm512_set1_epi32((int32_t)(out + (from - start) * step)),
                                           _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int32_t)step)));
    _mm512_mask_storeu_epi32(w->z.out + (w->tiles - 1) * TABLE, mask, pixel);
    done = from + high - start;
  }
}

/* The last tile of an image in place must not reach beyond it: it begins earlier, with rows that are dropped. */
static void pull_back(room *z, int64_t tile, int64_t end) {
  const int64_t over = z->start[tile] + RSI_SIDE - end;
  if (over <= 0) return;
  int32_t *const out = z->out + tile * TABLE;
  z->start[tile] -= (int32_t)over;
  for (int64_t i = RSI_SIDE - 1; i >= 0; i--) out[i] = i < over ? -1 : out[i - over];
}

RSI_TILES static void tiles_by_row(work *w, const rsi_split_phase *f, int64_t first, int64_t last) {
  const conv *const s = w->s;
  const int64_t plane = s->oh * s->ow;
  piece p = {0, 0, 0, 0};
  while (next_piece(s, &first, last, &p)) {
    const int64_t image = p.n * planes(s, s->groups_out) * plane;
    if (s->flat) add_results(w, s->in_place ? p.from : p.at, p.to - p.from, image + p.from, 1);
    else
      for (int64_t i = p.from; i < smaller(p.to, f->down); i++)
        add_results(w, p.at + (i - p.from) * s->pitch, f->across, image + (i * s->over_h + f->y) * s->ow + f->x, s->over_w);
    p.at += piece_positions(s, &p);
  }
  if (s->in_place) pull_back(&w->z, w->tiles - 1, s->h);
  w->z.sections[w->sections++] = (section){0, (int32_t)w->tiles, ~(uint64_t)0};
}

/* Which taps of a phase meet the image from line i of the grid, bit t for tap t: in height or in width. */
static uint64_t met(const conv *s, const rsi_split_phase *f, bool down, int64_t i) {
  uint64_t mask = 0;
  for (int64_t t = 0; t < f->taps; t++) {
    const rsi_split_tap *const tap = &s->tap[f->first + t];
    const int64_t at = down ? i * s->step_h + tap->y : i * s->step_w + tap->x;
    if (at >= 0 && at < (down ? s->h : s->w)) mask |= (uint64_t)1 << t;
  }
  return mask;
}

/* The tile of one pixel of up to 16 images from image n on, which are set number `set` of the task. */
RSI_TILES_IN void add_pixel(work *w, const rsi_split_phase *f, int64_t set, int64_t n, int64_t count, int64_t i, int64_t j) {
  const conv *const s = w->s;
  const int64_t image = planes(s, s->groups_out) * s->oh * s->ow;
  const int64_t out = n * image + (i * s->over_h + f->y) * s->ow + j * s->over_w + f->x;
  w->z.start[w->tiles] = (int32_t)(((set * s->h + i * s->step_h) * s->w + j * s->step_w) * RSI_SPLIT_IMAGES);
  for (int64_t q = 0; q < RSI_SPLIT_IMAGES; q++) w->z.out[w->tiles * TABLE + q] = q < count ? (int32_t)(out + q * image) : -1;
  w->tiles++;
}

/* Rectangles of the grid whose pixels meet the image with the same taps are sections. */
RSI_TILES static void tiles_by_image(work *w, const rsi_split_phase *f, int64_t first, int64_t last) {
  for (int64_t i0 = 0, i1; i0 < f->down; i0 = i1) {
    const uint64_t vertical = met(w->s, f, true, i0);
    for (i1 = i0 + 1; i1 < f->down && met(w->s, f, true, i1) == vertical;) i1++;
    for (int64_t j0 = 0, j1; j0 < f->across; j0 = j1) {
      const uint64_t horizontal = met(w->s, f, false, j0);
      const int64_t from = w->tiles;
      for (j1 = j0 + 1; j1 < f->across && met(w->s, f, false, j1) == horizontal;) j1++;
      for (int64_t n = first, set = 0; n < last; n += RSI_SPLIT_IMAGES, set++)
        for (int64_t i = i0; i < i1; i++)
          for (int64_t j = j0; j < j1; j++) add_pixel(w, f, set, n, last - n, i, j);
      w->z.sections[w->sections++] = (section){(int32_t)from, (int32_t)w->tiles, vertical & horizontal};
    }
  }
}

/* ---- finishing --------------------------------------------------------------------------------------------------------- */

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
  ending e = {w->left.sums, w->left.out[0], (uint16_t *)s->y + first, (uint16_t *)(void *)w->z.acc,
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

/* The sums of rows `from` to `to` - 1 of a tile (or of two, for the block after, `next` floats on) go to y. */
RSI_TILES_IN __mmask16 end_rows(const conv *s, const late *l, bool two, int d, int64_t from, int64_t to) {
  const int64_t plane = s->oh * s->ow, next = plane * 16, at = d * l->across * BLOCK;
  const float *const sums = l->sums + at, *const acc = l->first ? NULL : l->acc + at;
  const int32_t *const out = l->out[d];
  float *const y = (float *)s->y + l->group * next;
  const float *const residual = s->residual ? (const float *)s->residual + l->group * next : NULL;
  const __m512 low = _mm512_set1_ps(s->low), high = _mm512_set1_ps(s->high);
  const __m512 bias0 = s->bias ? _mm512_loadu_ps(s->bias + l->group * 16) : _mm512_setzero_ps();
  const __m512 bias1 = s->bias && two ? _mm512_loadu_ps(s->bias + l->group * 16 + 16) : _mm512_setzero_ps();
  const bool biased = s->bias != NULL;
  __mmask16 odd = 0;
  for (int64_t i = from; i < to; i++) {
    const int64_t pixel = out[i] * (int64_t)16;
    if (pixel < 0) continue;
    __m512 v = _mm512_load_ps(sums + i * 16), u = two ? _mm512_load_ps(sums + BLOCK + i * 16) : v;
    if (acc != NULL) {
      v = _mm512_add_ps(v, _mm512_load_ps(acc + i * 16));
      if (two) u = _mm512_add_ps(u, _mm512_load_ps(acc + BLOCK + i * 16));
    }
    odd |= rsi_odd(v);
    if (two) odd |= rsi_odd(u);
    if (biased) v = _mm512_add_ps(v, bias0), u = _mm512_add_ps(u, bias1);
    if (residual != NULL) {
      v = _mm512_add_ps(v, _mm512_loadu_ps(residual + pixel));
      if (two) u = _mm512_add_ps(u, _mm512_loadu_ps(residual + next + pixel));
    }
    _mm512_storeu_ps(y + pixel, _mm512_min_ps(high, _mm512_max_ps(low, v)));
    if (two) _mm512_storeu_ps(y + next + pixel, _mm512_min_ps(high, _mm512_max_ps(low, u)));
  }
  return odd;
}

/* Rows up to `row` of all tiles. The first sums of several are where they are added up already. */
RSI_TILES_IN void finish(work *w, int row) {
  late *const l = &w->left;
  const int from = l->row;
  l->row = row;
  if (l->last) {
    for (int d = 0; d < l->down; d++)
      w->odd |= l->across > 1 ? end_rows(w->s, l, true, d, from, row) : end_rows(w->s, l, false, d, from, row);
    return;
  }
  const int64_t each = l->down * l->across, end = row * each * 16;
  const float *const sums = l->sums;
  float *const acc = l->acc;
  for (int64_t i = from * each * 16; i < end; i += 16) _mm512_store_ps(acc + i, _mm512_add_ps(_mm512_load_ps(acc + i), _mm512_load_ps(sums + i)));
}

RSI_TILES_IN void ask(work *w) {
  for (int64_t i = 0; i < w->ask_each && w->ask_left > 0; i++, w->ask_left--, w->ask += 64) _mm_prefetch(w->ask, _MM_HINT_T1);
}

/* What is done after four products: as much as the processor can do beside them; more at once would leave the tiles idle. */
RSI_TILES __attribute__((noinline)) static void chores(void *arg) {
  work *const w = arg;
  w->finished += w->pace;
  if (w->left.row < RSI_SIDE) finish(w, (int)smaller(w->finished >> 8, RSI_SIDE));
  if (w->each > 0) split_some(w, w->each);
  ask(w);
}

/* ---- products ---------------------------------------------------------------------------------------------------------- */

/*
** sums: [down][across][16][16] = a x b over `runs` runs at a_at and b_at; a[h] and b[q] are the two tiles of rows and of columns.
*/
RSI_TILES_IN void multiply(work *w, int down, int across, int runs, const uint16_t *const a[2], const uint16_t *const b[2], float *sums) {
  const int64_t part = w->s->positions * PIXEL;
  const int32_t *const a_at = w->z.a_at, *const b_at = w->z.b_at;
  w->finished = 0, w->pace = RSI_SIDE * 256 / (RSI_BETWEEN * (runs > 0 ? runs : 1)) + 1;
  rsi_split_begin(down, across);
  for (int r = 0; r < runs; r++)
    rsi_split_run(RSI_PARTS, down, across, a[0] + a_at[r], a[1] + a_at[r], part, b[0] + b_at[r], b[1] + b_at[r], RSI_TILE, chores, w);
  if (w->left.row < RSI_SIDE) finish(w, RSI_SIDE);
  rsi_split_end(down, across, sums, across * BLOCK);
}

/* The same with one part; sums: [down][16][across][16]. */
RSI_TILES_IN void multiply_half(work *w, int down, int across, int runs, const uint16_t *const a[2], const uint16_t *const b[2], float *sums) {
  const int64_t line = w->s->in_place ? w->s->in * 2 : 64, units = down * RSI_SIDE, each = runs > 0 ? divide_up(units, runs) : 0;
  const int32_t *const a_at = w->z.a_at, *const b_at = w->z.b_at;
  const bool lower = down > 1, right = across > 1;
  if (w->left.down != down || w->left.across != across) finish_half(w);
  const bool more = w->left.row < RSI_SIDE;
  const ending e = ending_of(w, more ? across : 0);
  int64_t unit = more ? 0 : units;
  _tile_zero(0);
  if (right) _tile_zero(1);
  if (lower) _tile_zero(2);
  if (lower && right) _tile_zero(3);
  for (int r = 0; r < runs; r++) {
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

#define MULTIPLY(name, down, across)                                                                                        \
  RSI_TILES static void name##down##across(work *w, int runs, const uint16_t *const a[2], const uint16_t *const b[2], float *sums) { \
    name(w, down, across, runs, a, b, sums);                                                                                \
  }
MULTIPLY(multiply, 1, 1)
MULTIPLY(multiply, 1, 2)
MULTIPLY(multiply, 2, 1)
MULTIPLY(multiply, 2, 2)
MULTIPLY(multiply_half, 1, 1)
MULTIPLY(multiply_half, 1, 2)
MULTIPLY(multiply_half, 2, 1)
MULTIPLY(multiply_half, 2, 2)

typedef void (*multiply_fn)(work *w, int runs, const uint16_t *const a[2], const uint16_t *const b[2], float *sums);
static const multiply_fn multiplies[2][2][2] = {{{multiply11, multiply12}, {multiply21, multiply22}},
                                                {{multiply_half11, multiply_half12}, {multiply_half21, multiply_half22}}};

/* Runs r0..r1 - 1 and taps t0..t1 - 1 of a phase. */
typedef struct chunk { int64_t r0, r1, t0, t1; } chunk;

/* A chunk for blocks group.. of the result, one or two. */
typedef struct turn { chunk of; int64_t group; int across; } turn;

/* The runs of a chunk that a section takes; a run of weights is `step` elements. */
static int list_runs(const conv *s, const rsi_split_phase *f, const chunk *c, uint64_t taps, int64_t step, room *z) {
  int runs = 0;
  int64_t of = 0;
  for (int64_t r = c->r0; r < c->r1; r++)
    for (int64_t t = c->t0; t < c->t1; t++, of++) {
      const rsi_split_tap *const tap = &s->tap[f->first + t];
      if (!(taps >> t & 1)) continue;
      int64_t at = (tap->y * s->w + tap->x) * RSI_SPLIT_IMAGES;
      if (!s->by_image) {
        const int64_t y = tap->y - s->low_y, x = tap->x - s->low_x;
        at = s->sub[y % s->step_h * s->step_w + x % s->step_w] * s->each + y / s->step_h * s->pitch + x / s->step_w;
      }
      z->a_at[runs] = (int32_t)(((s->in_place ? r : r % s->kept * s->parts * s->positions) + at) * PIXEL);
      z->b_at[runs++] = (int32_t)(of * step);
    }
  return runs;
}

RSI_TILES static void gather_lines(const conv *s, int64_t group, int64_t run, int64_t taps, float *lines);
RSI_TILES static void put_lines(const conv *s, const rsi_split_phase *f, int64_t taps, const float *lines, int64_t step, uint16_t *to);

/* Half: blocks group.. of the result, one or two, of a phase; `step` elements each. */
RSI_TILES static const uint16_t *weights_of(const work *w, const rsi_split_phase *f, int64_t group, int count, int64_t step) {
  const conv *const s = w->s;
  if (!s->fresh) return (const uint16_t *)s->b + f->b + group * step;
  for (int64_t r = 0; r < s->runs; r++)
    for (int64_t g = 0; g < count; g++) {
      gather_lines(s, group + g, r, f->taps, w->z.lines);
      put_lines(s, f, f->taps, w->z.lines, RSI_TILE, w->z.b + g * step + r * f->taps * RSI_TILE);
    }
  return w->z.b;
}

/* One chunk of all tiles and of one or two blocks of the result, with weights at b[q]. */
RSI_TILES static void sum_chunk(work *w, const rsi_split_phase *f, const turn *c, const uint16_t *const b[2], float *acc, bool first, bool last) {
  const conv *const s = w->s;
  const int64_t step = s->half ? RSI_TILE : c->across * RSI_RUN, row = s->in_place ? s->in : PIXEL;
  for (int64_t i = 0; i < w->sections; i++) {
    const section *const e = &w->z.sections[i];
    const int runs = list_runs(s, f, &c->of, e->taps, step, &w->z);
    for (int64_t t = e->first; t < e->end; t += 2) {
      const int down = t + 1 < e->end ? 2 : 1;
      const uint16_t *const a[2] = {w->z.a + w->z.start[t] * row, w->z.a + w->z.start[t + down - 1] * row};
      const int32_t *const out = w->z.out + t * TABLE;
      float *const kept = acc + t * 2 * BLOCK, *const sums = first && !last ? kept : w->z.sums + (w->turn ^= 1) * PAIR;
      multiplies[s->half][down - 1][c->across - 1](w, runs, a, b, sums);
      w->left = (late){sums, kept, {out, out + (down - 1) * TABLE}, c->group, down, c->across, first && !last ? RSI_SIDE : 0, first, last};
    }
  }
}

/*
** What a phase does one after the other: pairs of blocks, and in each chunks of up to `depth` runs of channels; or, deep, chunks, and in each
** all pairs of blocks. Then a slice of the image is split, used by all blocks and done with. Where all runs are one chunk, the first pair takes
** them in shorter ones, and the image is split beside its products.
*/
typedef struct order {
  const rsi_split_phase *f;
  int64_t group, groups, pairs;
  int64_t parts, each;           /* of the taps of a chunk */
  int64_t depth, chunks;         /* of a pair */
  int64_t depth0, chunks0;       /* of the first */
} order;

static order order_of(const conv *s, const rsi_split_phase *f, int64_t group, int64_t groups) {
  order o = {.f = f, .group = group, .groups = groups, .pairs = divide_up(groups, 2)};
  o.parts = f->taps > 0 ? divide_up(f->taps, RSI_SPLIT_CHAIN) : 1, o.each = larger(divide_up(f->taps, o.parts), 1);
  o.depth = smaller(s->chunk, larger(RSI_SPLIT_CHAIN / o.each, 1));
  o.depth0 = s->beside ? s->beside : o.depth;
  o.chunks = divide_up(s->runs, o.depth) * o.parts, o.chunks0 = divide_up(s->runs, o.depth0) * o.parts;
  return o;
}

static turn turn_at(const conv *s, const order *o, int64_t i) {
  const bool first = !s->deep && i < o->chunks0;
  const int64_t depth = first ? o->depth0 : o->depth, later = i - o->chunks0;
  const int64_t number = s->deep ? i / o->pairs : first ? i : later % o->chunks, pair = s->deep ? i % o->pairs : first ? 0 : later / o->chunks + 1;
  const int64_t r = number / o->parts * depth, t = number % o->parts * o->each;
  return (turn){{r, smaller(r + depth, s->runs), t, smaller(t + o->each, o->f->taps)}, o->group + 2 * pair, 2 * pair + 1 < o->groups ? 2 : 1};
}

static const uint16_t *weights_at(const conv *s, const order *o, const turn *c) {
  const int64_t taps = o->f->taps, run = c->group * s->runs * taps + (c->of.r0 * taps + c->of.t0) * c->across;
  return (const uint16_t *)s->b + o->f->b + run * RSI_RUN;
}

static int64_t weight_runs(const order *o, const turn *c) {
  return larger((c->of.r1 - c->of.r0 - 1) * o->f->taps + c->of.t1 - c->of.t0, 0) * c->across;
}

/* How often chores() is called in a chunk. */
static int64_t chores_in(const work *w, const chunk *c) {
  int64_t sum = 0;
  for (int64_t i = 0; i < w->sections; i++) {
    const section *const e = &w->z.sections[i];
    const uint64_t taps = e->taps >> c->t0 & (((uint64_t)1 << (c->t1 - c->t0)) - 1);
    sum += (e->end - e->first + 1) / 2 * __builtin_popcountll(taps) * (c->r1 - c->r0);
  }
  return larger(sum * RSI_BETWEEN, 1);
}

/* All of a phase. Beside the products of a chunk the weights of the next one are asked for, and its runs of the image may be split. */
RSI_TILES static void sum_blocks(work *w, const order *o) {
  const conv *const s = w->s;
  const int64_t turns = s->deep ? o->chunks * o->pairs : o->chunks0 + o->chunks * (o->pairs - 1);
  turn c = turn_at(s, o, 0), next = c;
  for (int64_t i = 0; i < turns; i++, c = next) {
    const uint16_t *const b0 = weights_at(s, o, &c), *const b[2] = {b0, b0 + RSI_RUN};
    while (w->run < c.of.r1) split_some(w, w->all);
    const int64_t chores = chores_in(w, &c.of), pair = (c.group - o->group) / 2;
    const int64_t wanted = s->beside ? smaller(2 * c.of.r1 - c.of.r0, s->runs) - w->run : 0;
    w->each = wanted > 0 ? divide_up(wanted * w->all, chores) : 0;
    w->ask_left = 0;
    if (i + 1 < turns) next = turn_at(s, o, i + 1);
    if (s->streams && i + 1 < turns) {
      w->ask = (const char *)weights_at(s, o, &next);
      w->ask_left = weight_runs(o, &next) * RSI_RUN * (int64_t)sizeof *b0 / 64;
      w->ask_each = divide_up(w->ask_left, chores);
    }
    sum_chunk(w, o->f, &c, b, w->z.acc + (s->deep ? pair * 2 * s->tiles * BLOCK : 0), c.of.r0 == 0 && c.of.t0 == 0,
              c.of.r1 == s->runs && c.of.t1 >= o->f->taps);
  }
  w->each = 0;
}

/* The same with one part: each pair of blocks is one chunk. */
RSI_TILES static void sum_half(work *w, const rsi_split_phase *f, int64_t group, int64_t groups) {
  const conv *const s = w->s;
  const int64_t step = s->runs * f->taps * RSI_TILE;
  for (int64_t g = 0; g < groups; g += 2) {
    const turn c = {{0, s->runs, 0, f->taps}, group + g, g + 1 < groups ? 2 : 1};
    const uint16_t *const b0 = weights_of(w, f, c.group, c.across, step), *const b[2] = {b0, b0 + step};
    sum_chunk(w, f, &c, b, w->z.acc, true, true);
  }
}

RSI_TILES static void sum_phase(work *w, const rsi_split_phase *f, int64_t group, int64_t groups) {
  if (w->s->half) {
    sum_half(w, f, group, groups);
    finish_half(w);
  } else {
    const order o = order_of(w->s, f, group, groups);
    sum_blocks(w, &o);
    if (w->left.row < RSI_SIDE) finish(w, RSI_SIDE);
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

RSI_TILES static void task(const conv *s, int64_t first, int64_t rows, int64_t group, int64_t groups, char *scratch) {
  work w = {.s = s, .left = {.row = RSI_SIDE}};
  room_of(s, scratch, &w.z);
  rsi_tiles_begin();
  if (s->in_place) w.z.a = (uint16_t *)(uintptr_t)s->x;
  else make_strips(&w, first, first + rows);
  if (s->half && !s->in_place) copy_all(&w);
  for (int64_t k = 0; k < s->phases; k++) {
    w.tiles = w.sections = 0;
    if (s->by_image) tiles_by_image(&w, &s->phase[k], first, first + rows);
    else tiles_by_row(&w, &s->phase[k], first, first + rows);
    sum_phase(&w, &s->phase[k], group, groups);
  }
  _tile_release();
  if (w.odd) again(s, first, first + rows, group, groups, (float *)(void *)w.z.a);
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

/* A tile, or three, for each tap of the phase, `step` elements apart. */
RSI_TILES static void put_lines(const conv *s, const rsi_split_phase *f, int64_t taps, const float *lines, int64_t step, uint16_t *to) {
  const int64_t low = (s->half ? 2 : 1) * taps * 16, high = (s->half ? 1 : 16) * taps * 16;      /* channels of unit i: i * low, + high */
  for (int64_t t = 0; t < f->taps; t++, to += step) {
    const float *const from = lines + s->tap[f->first + t].index * 16;
    for (int64_t i = 0; i < 16; i++) {
      __m512i v[RSI_PARTS];
      rsi_split(_mm512_loadu_ps(from + i * low), _mm512_loadu_ps(from + i * low + high), v);
      for (int p = 0; p < s->parts; p++) _mm512_storeu_si512(to + p * RSI_TILE + i * RSI_DEEP, v[p]);
    }
  }
}

RSI_TILES static void pack(const conv *s, int64_t group, int64_t run, int64_t taps, uint16_t *b, float *scratch) {
  const int64_t pair = group / 2 * 2, across = s->half || (group == pair && group + 1 == s->groups_out) ? 1 : 2;
  gather_lines(s, group, run, taps, scratch);
  for (int64_t k = 0; k < s->phases; k++) {
    const rsi_split_phase *const f = &s->phase[k];
    const int64_t each = s->parts * RSI_TILE, at = s->half ? group * s->runs + run : pair * s->runs + run * across;
    put_lines(s, f, taps, scratch, across * each, b + f->b + (at * f->taps + (s->half ? 0 : group - pair)) * each);
  }
}

const rsi_k_split_conv RSI_ISA(rsi_k_split_conv) = {.scratch = scratch_bytes, .pack = pack, .task = task};
#else
const rsi_k_split_conv RSI_ISA(rsi_k_split_conv) = {NULL, NULL, NULL};
#endif
