/*
** The loops of block_pool.c for one element type T: N(name), FROM and TO (one element to and from float).
** UNITS(F, ...) calls F_16, F_8, F_4 (where there are such vectors) or F_1 with the channels from j on, until all b are done.
*/
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define LOAD(V) JOIN(N(load), V)
#define STORE(V) JOIN(N(store), V)
#define EXACT(V) JOIN(N(exact), V)
#if RSI_LANES == 16
#define UNITS(F, ...)                                                                                                       \
  do {                                                                                                                      \
    int64_t j = 0;                                                                                                          \
    for (; j + 16 <= b; j += 16) JOIN(N(F), 16)(__VA_ARGS__);                                                               \
    for (; j + 8 <= b; j += 8) JOIN(N(F), 8)(__VA_ARGS__);                                                                  \
    for (; j < b; j++) JOIN(N(F), 1)(__VA_ARGS__);                                                                          \
  } while (0)
#else
#define UNITS(F, ...)                                                                                                       \
  do {                                                                                                                      \
    int64_t j = 0;                                                                                                          \
    for (; j + RSI_LANES <= b; j += RSI_LANES) JOIN(N(F), RSI_LANES)(__VA_ARGS__);                                          \
    for (; j < b; j++) JOIN(N(F), 1)(__VA_ARGS__);                                                                          \
  } while (0)
#endif

/* ---- maximum --------------------------------------------------------------------------------------------------------- */

/* The taps of a window that lie inside, and the distances of taps in the image. Tap (0, 0) would lie at x. */
typedef struct N(window) { const T *x; span rows, cols; int64_t down, right, kw; } N(window);

#define MAX_UNIT(V)                                                                                                         \
  INLINE void JOIN(N(max), V)(const N(window) *w, int64_t j, T *y, uint8_t *tap) {                                          \
    vec_##V best = {0};                                                                                                     \
    ints_##V chosen = {0};                                                                                                  \
    bool first = true;                                                                                                      \
    for (int64_t k = w->rows.first; k < w->rows.last; k++)                                                                  \
      for (int64_t l = w->cols.first; l < w->cols.last; l++) {                                                              \
        const vec_##V v = LOAD(V)(w->x + k * w->down + l * w->right + j);                                                   \
        const ints_##V number = (int32_t)(k * w->kw + l) - (ints_##V){0};                                                   \
        const ints_##V better = (ints_##V)(v > best) | (ints_##V)(v != v);                                                  \
        best = first ? v : pick_##V(better, v, best);                                                                       \
        chosen = first ? number : (number & better) | (chosen & ~better);                                                   \
        first = false;                                                                                                      \
      }                                                                                                                     \
    EXACT(V)(y + j, best);                                                                                                  \
    store_taps_##V(tap + j, chosen);                                                                                        \
  }
FOR_VECTORS(MAX_UNIT)
#undef MAX_UNIT

static void JOIN(N(max), 1)(const N(window) *w, int64_t j, T *y, uint8_t *tap) {
  int64_t chosen = w->rows.first * w->kw + w->cols.first;
  T best = w->x[w->rows.first * w->down + w->cols.first * w->right + j];
  for (int64_t k = w->rows.first; k < w->rows.last; k++)
    for (int64_t l = w->cols.first; l < w->cols.last; l++) {
      const T v = w->x[k * w->down + l * w->right + j];
      if (FROM(v) > FROM(best) || FROM(v) != FROM(v)) best = v, chosen = k * w->kw + l;
    }
  y[j] = best;
  tap[j] = (uint8_t)chosen;
}

static void N(max_row)(const rsi_pool_shape *s, int64_t b, const void *px, int64_t row, void *py, uint8_t *tap) {
  const int64_t top = row * s->sh - s->ph;
  T *y = py;
  N(window) w = {.rows = taps_inside(top, s->kh, s->dh, s->h), .down = s->dh * s->w * b, .right = s->dw * b, .kw = s->kw};
  if (s->kh == 2 && s->kw == 2 && s->ph == 0 && s->pw == 0 && w.rows.last == 2 && (s->ow - 1) * s->sw + s->dw < s->w) {
    const N(window) two = {.rows = {0, 2}, .cols = {0, 2}, .down = w.down, .right = w.right, .kw = 2};
    for (int64_t i = 0; i < s->ow; i++, y += b, tap += b) {
      N(window) here = two;
      here.x = (const T *)px + (top * s->w + i * s->sw) * b;
      UNITS(max, &here, j, y, tap);
    }
    return;
  }
  for (int64_t i = 0; i < s->ow; i++, y += b, tap += b) {
    const int64_t left = i * s->sw - s->pw;
    w.cols = taps_inside(left, s->kw, s->dw, s->w);
    w.x = (const T *)px + (top * s->w + left) * b;
    UNITS(max, &w, j, y, tap);
  }
}

/* ---- its gradient ---------------------------------------------------------------------------------------------------- */

/* What a window gives to the taps first.. first + count - 1, which lie side by side from x on. */
#define PASS_UNIT(V)                                                                                                        \
  INLINE void JOIN(N(pass), V)(const T *g, const uint8_t *tap, float share, int32_t first, int64_t count, int64_t b, int64_t j, T *x) { \
    const vec_##V v = LOAD(V)(g + j);                                                                                       \
    if (tap) {                                                                                                              \
      const ints_##V taps = load_taps_##V(tap + j) - first;                                                                 \
      for (int64_t l = 0; l < count; l++) EXACT(V)(x + l * b + j, keep_##V((ints_##V)(taps == (int32_t)l), v));             \
    } else {                                                                                                                \
      const vec_##V part = v * share;                                                                                       \
      for (int64_t l = 0; l < count; l++) STORE(V)(x + l * b + j, part);                                                    \
    }                                                                                                                       \
  }
FOR_VECTORS(PASS_UNIT)
#undef PASS_UNIT
static void JOIN(N(pass), 1)(const T *g, const uint8_t *tap, float share, int32_t first, int64_t count, int64_t b, int64_t j, T *x) {
  for (int64_t l = 0; l < count; l++)
    x[l * b + j] = !tap ? TO(FROM(g[j]) * share) : tap[j] == first + (int32_t)l ? g[j] : (T)0;
}

/* No two windows overlap, and taps are neighbours: each element of the image belongs to one window or to none. */
INLINE bool N(apart)(const rsi_pool_shape *s) { return s->sh >= s->kh && s->sw >= s->kw && s->dh == 1 && s->dw == 1; }

/* Pixels done..until - 1 of a row belong to no window. */
INLINE void N(zeros)(int64_t done, int64_t until, int64_t b, T *x) {
  if (done < until) memset(x + done * b, 0, (size_t)((until - done) * b) * sizeof(T));
}

/* Then row `row` of the image: of a maximum, or with tap NULL of a mean. */
INLINE void N(back_apart)(bool max, const rsi_pool_shape *s, int64_t b, const T *g, const uint8_t *tap, int64_t row, T *x) {
  const int64_t i = (row + s->ph) / s->sh, k = (row + s->ph) % s->sh;
  if (i >= s->oh || k >= s->kh) {
    N(zeros)(0, s->w, b, x);
    return;
  }
  const int64_t rows = max ? 1 : extent_of(i * s->sh - s->ph, s->kh, s->h, s->ph, s->include_pad);
  const float full = 1.0f / (float)(rows * s->kw);
  g += i * s->ow * b;
  const uint8_t *at = max ? tap + i * s->ow * b : NULL;
  int64_t done = 0;                    /* pixels */
  for (int64_t o = 0; o < s->ow; o++, g += b) {
    const int64_t left = o * s->sw - s->pw, right = left + s->kw;
    if (s->kw == 2 && left >= 0 && right <= s->w) {
      N(zeros)(done, left, b, x);
      UNITS(pass, g, at, full, (int32_t)(k * 2), 2, b, j, x + left * b);
      done = right;
    } else {
      const int64_t from = left < 0 ? 0 : left, end = right < s->w ? right : s->w;
      const float share = max ? 1.0f : 1.0f / (float)(rows * extent_of(left, s->kw, s->w, s->pw, s->include_pad));
      N(zeros)(done, from, b, x);
      UNITS(pass, g, at, share, (int32_t)(k * s->kw + from - left), end - from, b, j, x + from * b);
      done = end;
    }
    if (max) at += b;
  }
  N(zeros)(done, s->w, b, x);
}

/* The windows that hold pixel (row, at), and where they are. */
typedef struct N(holders) { span rows, cols; int64_t row, col, b; const rsi_pool_shape *s; const T *g; const uint8_t *tap; } N(holders);

/* The tap with which window `o` holds a position, or -1: between taps that are `dilation` apart lie others. */
INLINE int64_t N(tap_of)(int64_t at, int64_t pad, int64_t o, int64_t stride, int64_t dilation) {
  const int64_t distance = at + pad - o * stride;
  return dilation == 1 ? distance : distance % dilation == 0 ? distance / dilation : -1;
}

#define EACH_HOLDER(BODY)                                                                                                   \
  for (int64_t i = h->rows.first; i < h->rows.last; i++) {                                                                  \
    const int64_t k = N(tap_of)(h->row, h->s->ph, i, h->s->sh, h->s->dh);                                                   \
    for (int64_t o = h->cols.first; k >= 0 && o < h->cols.last; o++) {                                                      \
      const int64_t l = N(tap_of)(h->col, h->s->pw, o, h->s->sw, h->s->dw), at = (i * h->s->ow + o) * h->b + j;             \
      const int32_t number = (int32_t)(k * h->s->kw + l);                                                                   \
      if (l >= 0) BODY                                                                                                      \
    }                                                                                                                       \
  }

#define GATHER_UNIT(V)                                                                                                      \
  INLINE void JOIN(N(gather), V)(const N(holders) *h, int64_t j, T *x) {                                                    \
    vec_##V sum = {0};                                                                                                      \
    EACH_HOLDER(sum += keep_##V((ints_##V)(load_taps_##V(h->tap + at) == number), LOAD(V)(h->g + at));)                     \
    STORE(V)(x + j, sum);                                                                                                   \
  }
FOR_VECTORS(GATHER_UNIT)
#undef GATHER_UNIT
static void JOIN(N(gather), 1)(const N(holders) *h, int64_t j, T *x) {
  float sum = 0;
  EACH_HOLDER(if (h->tap[at] == number) sum += FROM(h->g[at]);)
  x[j] = TO(sum);
}
#undef EACH_HOLDER

static void N(max_back_row)(const rsi_pool_shape *s, int64_t b, const void *g, const uint8_t *tap, int64_t row, void *px) {
  const int64_t tall = s->dh * (s->kh - 1) + 1, wide = s->dw * (s->kw - 1) + 1;
  T *const x = px;
  if (N(apart)(s)) {
    N(back_apart)(true, s, b, g, tap, row, x);
    return;
  }
  N(holders) h = {.rows = windows(row, s->ph, tall, s->sh, s->oh), .cols = windows(0, s->pw, wide, s->sw, s->ow), .row = row,
                  .b = b, .s = s, .g = g, .tap = tap};
  for (; h.col < s->w; h.col++) {
    UNITS(gather, &h, j, x + h.col * b);
    h.cols = next_windows(h.cols, h.col, s->pw, wide, s->sw, s->ow);
  }
}

/* ---- average --------------------------------------------------------------------------------------------------------- */

#define MEAN_UNIT(V)                                                                                                        \
  INLINE void JOIN(N(mean), V)(const N(window) *w, float share, int64_t j, T *y) {                                          \
    vec_##V sum = {0};                                                                                                      \
    for (int64_t k = w->rows.first; k < w->rows.last; k++)                                                                  \
      for (int64_t l = w->cols.first; l < w->cols.last; l++) sum += LOAD(V)(w->x + k * w->down + l * w->right + j);         \
    STORE(V)(y + j, sum * share);                                                                                           \
  }
FOR_VECTORS(MEAN_UNIT)
#undef MEAN_UNIT
INLINE void JOIN(N(mean), 1)(const N(window) *w, float share, int64_t j, T *y) {
  float sum = 0;
  for (int64_t k = w->rows.first; k < w->rows.last; k++)
    for (int64_t l = w->cols.first; l < w->cols.last; l++) sum += FROM(w->x[k * w->down + l * w->right + j]);
  y[j] = TO(sum * share);
}

static void N(avg_row)(const rsi_pool_shape *s, int64_t b, const void *px, int64_t row, void *py) {
  const int64_t top = row * s->sh - s->ph, rows = extent_of(top, s->kh, s->h, s->ph, s->include_pad);
  T *y = py;
  N(window) w = {.rows = taps_inside(top, s->kh, 1, s->h), .down = s->w * b, .right = b, .kw = s->kw};
  for (int64_t i = 0; i < s->ow; i++, y += b) {
    const int64_t left = i * s->sw - s->pw;
    const float share = 1.0f / (float)(rows * extent_of(left, s->kw, s->w, s->pw, s->include_pad));
    w.cols = taps_inside(left, s->kw, 1, s->w);
    w.x = (const T *)px + (top * s->w + left) * b;
    UNITS(mean, &w, share, j, y);
  }
}

/* Windows i, o of a row and a column hold the element; `rows` is the size of one in the other direction. */
#define EACH_HOLDER(BODY)                                                                                                   \
  for (int64_t i = h->rows.first; i < h->rows.last; i++) {                                                                  \
    const rsi_pool_shape *const s = h->s;                                                                                   \
    const int64_t rows = extent_of(i * s->sh - s->ph, s->kh, s->h, s->ph, s->include_pad);                                  \
    for (int64_t o = h->cols.first; o < h->cols.last; o++) {                                                                \
      const float share = 1.0f / (float)(rows * extent_of(o * s->sw - s->pw, s->kw, s->w, s->pw, s->include_pad));          \
      const int64_t at = (i * s->ow + o) * h->b + j;                                                                        \
      BODY                                                                                                                  \
    }                                                                                                                       \
  }
#define SPREAD_UNIT(V)                                                                                                      \
  INLINE void JOIN(N(spread), V)(const N(holders) *h, int64_t j, T *x) {                                                    \
    vec_##V sum = {0};                                                                                                      \
    EACH_HOLDER(sum += LOAD(V)(h->g + at) * share;)                                                                         \
    STORE(V)(x + j, sum);                                                                                                   \
  }
FOR_VECTORS(SPREAD_UNIT)
#undef SPREAD_UNIT
static void JOIN(N(spread), 1)(const N(holders) *h, int64_t j, T *x) {
  float sum = 0;
  EACH_HOLDER(sum += FROM(h->g[at]) * share;)
  x[j] = TO(sum);
}
#undef EACH_HOLDER

static void N(avg_back_row)(const rsi_pool_shape *s, int64_t b, const void *g, int64_t row, void *px) {
  T *const x = px;
  if (N(apart)(s)) {
    N(back_apart)(false, s, b, g, NULL, row, x);
    return;
  }
  N(holders) h = {.rows = windows(row, s->ph, s->kh, s->sh, s->oh), .cols = windows(0, s->pw, s->kw, s->sw, s->ow), .row = row,
                  .b = b, .s = s, .g = g};
  for (; h.col < s->w; h.col++) {
    UNITS(spread, &h, j, x + h.col * b);
    h.cols = next_windows(h.cols, h.col, s->pw, s->kw, s->sw, s->ow);
  }
}

#undef JOIN_
#undef JOIN
#undef LOAD
#undef STORE
#undef EXACT
#undef UNITS
