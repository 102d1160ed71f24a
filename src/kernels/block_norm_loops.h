/*
** The loops of block_norm.c for one element type T: N(name), FROM and TO (one element to and from float); N(load), N(store),
** N(load_pair), N(store_pair), N(rounded) (to what T holds) for vectors of elements, N(table_pair) and N(untable_pair)
** for numbers of columns beside such a pair.
*/

/* ---- sums ------------------------------------------------------------------------------------------------------------ */

enum { N(SUM), N(MOMENTS), N(GRAD) };
enum { N(WRITE_NOT), N(WRITE), N(WRITE_SUM) };

/* Where the operands of a row begin. x is always there; g and y are with GRAD; masked may be written, from g + more if there is more. */
typedef struct N(row) { const T *x, *g, *y, *more; T *masked; } N(row);

/* What a vector of elements x, g and y adds to the two sums. m, scale and shift are those of its columns. Returns the masked g. */
INLINE vec N(terms)(int what, int by, vec x, vec g, vec y, vec m, vec scale, vec shift, vec low, vec high, vec *u, vec *v) {
  const vec d = what == N(SUM) ? x : x - m;
  if (what != N(GRAD)) {
    *u += d;
    if (what == N(MOMENTS)) *v += d * d;
    return d;
  }
  if (by == RSI_BY_X) y = d * scale + shift;
  if (by != RSI_BY_NONE) g = (vec)((mask)g & (mask)(y > low) & (mask)(y < high));
  *u += g, *v += g * d;
  return g;
}

/* The same for one element, in columns that fill no vector: few, so it asks what to do each time. */
static void N(term)(int what, int by, const N(row) *r, int64_t at, int64_t j, const rsi_block_factors *f, float *u, float *v) {
  const float x = FROM(r->x[at]), d = what == N(SUM) ? x : x - f->mean[j];
  if (what != N(GRAD)) {
    *u += d, *v += d * d;
    return;
  }
  const float y = by == RSI_BY_Y ? FROM(r->y[at]) : by == RSI_BY_X ? d * f->scale[j] + f->shift[j] : 0.0f;
  const float sum = r->more ? FROM(TO(FROM(r->g[at]) + FROM(r->more[at]))) : FROM(r->g[at]);
  const float g = by == RSI_BY_NONE || (y > f->low && y < f->high) ? sum : 0.0f;
  if (r->masked) r->masked[at] = TO(g);
  *u += g, *v += g * d;
}

/* Full rows of the columns j..j + WIDE L - 1. */
INLINE void N(strip)(int what, int by, int write, const N(row) *from, const rsi_columns *s, int64_t j, const rsi_block_factors *f,
                     float *first, float *second) {
  vec u[WIDE] = {{0}}, v[WIDE] = {{0}}, m[WIDE] = {{0}}, scale[WIDE] = {{0}}, shift[WIDE] = {{0}};
  const vec low = all_lanes(f->low), high = all_lanes(f->high);
  for (int k = 0; k < WIDE; k += 2) {
    if (what != N(SUM)) N(table_pair)(f->mean + j + k * L, m + k);
    if (by == RSI_BY_X) N(table_pair)(f->scale + j + k * L, scale + k), N(table_pair)(f->shift + j + k * L, shift + k);
  }
  for (int64_t piece = 0; piece < s->pieces; piece++) {
    int64_t at = piece * s->step + j;
    for (int64_t r = 0; r < s->rows; r++, at += s->stride)
      for (int k = 0; k < WIDE; k += 2) {
        const int64_t here = at + k * L;
        vec x[2], g[2] = {{0}}, y[2] = {{0}};
        N(load_pair)(from->x + here, x);
        if (what == N(GRAD)) N(load_pair)(from->g + here, g);
        if (write == N(WRITE_SUM)) {
          vec more[2];
          N(load_pair)(from->more + here, more);
          for (int i = 0; i < 2; i++) g[i] = N(rounded)(g[i] + more[i]);
        }
        if (by == RSI_BY_Y) N(load_pair)(from->y + here, y);
        for (int i = 0; i < 2; i++)
          g[i] = N(terms)(what, by, x[i], g[i], y[i], m[k + i], scale[k + i], shift[k + i], low, high, &u[k + i], &v[k + i]);
        if (write != N(WRITE_NOT)) N(store_pair)(from->masked + here, g);
      }
  }
  for (int k = 0; k < WIDE; k += 2) {
    N(untable_pair)(first + j + k * L, u + k);
    if (what != N(SUM)) N(untable_pair)(second + j + k * L, v + k);
  }
}

/* Adds what the vector of columns j..j + L - 1 gives in `rows` rows, the first of which begins at `at` in the first piece. */
INLINE void N(single)(int what, int by, int write, const N(row) *from, const rsi_columns *s, int64_t at, int64_t rows, int64_t j,
                      const rsi_block_factors *f, float *first, float *second) {
  const vec low = all_lanes(f->low), high = all_lanes(f->high), none = {0};
  const vec m = what == N(SUM) ? none : load_f32(f->mean + j);
  const vec scale = by == RSI_BY_X ? load_f32(f->scale + j) : none, shift = by == RSI_BY_X ? load_f32(f->shift + j) : none;
  vec u = load_f32(first + j), v = what == N(SUM) ? none : load_f32(second + j);
  for (int64_t piece = 0; piece < s->pieces; piece++) {
    int64_t here = piece * s->step + at + j;
    for (int64_t r = 0; r < rows; r++, here += s->stride) {
      vec g = what == N(GRAD) ? N(load)(from->g + here) : none;
      if (write == N(WRITE_SUM)) g = N(rounded)(g + N(load)(from->more + here));
      g = N(terms)(what, by, N(load)(from->x + here), g, by == RSI_BY_Y ? N(load)(from->y + here) : none, m, scale, shift, low, high,
                   &u, &v);
      if (write != N(WRITE_NOT)) N(store)(from->masked + here, g);
    }
  }
  store_f32(first + j, u);
  if (what != N(SUM)) store_f32(second + j, v);
}

/* What fills no vector: columns from j on, and the end of last rows. */
static __attribute__((noinline)) void N(leftover)(int what, int by, const N(row) *from, const rsi_columns *s, int64_t j,
                                                  const rsi_block_factors *f, float *first, float *second) {
  for (int64_t piece = 0; piece < s->pieces; piece++) {
    for (int64_t r = 0; r < s->rows; r++)
      for (int64_t k = j; k < s->width; k++) N(term)(what, by, from, piece * s->step + r * s->stride + k, k, f, &first[k], &second[k]);
    for (int64_t k = s->rest / L * L; k < s->rest; k++)
      N(term)(what, by, from, piece * s->step + s->rows * s->stride + k, k, f, &first[k], &second[k]);
  }
}

/* first: [width] and second: [width] = the two sums of each column */
INLINE void N(fold)(int what, int by, int write, const N(row) *from, const rsi_columns *s, const rsi_block_factors *f,
                    float *first, float *second) {
  int64_t j = 0;
  for (; j + WIDE * L <= s->width; j += WIDE * L) N(strip)(what, by, write, from, s, j, f, first, second);
  memset(first + j, 0, (size_t)(s->width - j) * sizeof(float)), memset(second + j, 0, (size_t)(s->width - j) * sizeof(float));
  for (; j + L <= s->width; j += L) N(single)(what, by, write, from, s, 0, s->rows, j, f, first, second);
  for (int64_t k = 0; k + L <= s->rest; k += L) N(single)(what, by, write, from, s, s->rows * s->stride, 1, k, f, first, second);
  if (j < s->width || s->rest % L != 0) N(leftover)(what, by, from, s, j, f, first, second);
}

static const rsi_block_factors N(nothing) = {0};

static void N(sums)(const void *x, const rsi_columns *s, double *to) {
  float sum[RSI_BLOCK_COLUMNS], unused[RSI_BLOCK_COLUMNS] = {0};
  N(fold)(N(SUM), RSI_BY_NONE, N(WRITE_NOT), &(N(row)){.x = x}, s, &N(nothing), sum, unused);
  for (int64_t j = 0; j < s->width; j++) to[j] += (double)sum[j];
}

/* One sweep about `mean`, and then the mean itself. True when it was so far off that f32 lost digits. */
static bool N(about)(const void *x, const rsi_columns *s, float *restrict mean, float *restrict about, float *restrict first,
                     float *restrict second) {
  const int64_t ends[3] = {0, s->rest, s->width};
  const rsi_block_factors f = {.mean = about};
  int32_t off = 0;
  memcpy(about, mean, (size_t)s->width * sizeof(float));
  N(fold)(N(MOMENTS), RSI_BY_NONE, N(WRITE_NOT), &(N(row)){.x = x}, s, &f, first, second);
  for (int part = 0; part < 2; part++) {
    const float count = (float)(s->pieces * (s->rows + (part == 0))), share = count > 0 ? 1.0f / count : 0.0f;
    for (int64_t j = ends[part]; j < ends[part + 1]; j++) {
      off |= 5.0f * first[j] * first[j] > second[j] * count;
      mean[j] = about[j] + first[j] * share;
    }
  }
  return off != 0;
}

/*
** Sums about a number near the mean of these elements are held well by f32: the distance may be two standard deviations, or the
** sweep is done again about the mean that it found. In double they are moved to the origin: sum(x - o) = sum(d) + n e,
** sum((x - o)^2) = sum(d^2) + 2 e sum(d) + n e^2 with e the number's distance from the origin.
*/
static void N(moments)(const void *x, const rsi_columns *s, const float *origin, float *mean, double *restrict to) {
  float about[RSI_BLOCK_COLUMNS], first[RSI_BLOCK_COLUMNS], second[RSI_BLOCK_COLUMNS];
  const int64_t width = s->width, ends[3] = {0, s->rest, width};
  if (N(about)(x, s, mean, about, first, second)) N(about)(x, s, mean, about, first, second);
  for (int part = 0; part < 2; part++) {
    const double count = (double)(s->pieces * (s->rows + (part == 0)));
    for (int64_t j = ends[part]; j < ends[part + 1] && count > 0; j++) {
      const double e = (double)about[j] - (double)origin[j], d = (double)first[j], ne = count * e;
      to[j] += d + ne;
      to[width + j] += (double)second[j] + e * (d + d + ne);
    }
  }
}

static void N(grad_sums)(const void *g, const void *more, const void *x, const void *y, void *masked, const rsi_columns *s,
                         const rsi_block_factors *f, double *restrict to) {
  float first[RSI_BLOCK_COLUMNS], second[RSI_BLOCK_COLUMNS];
  const N(row) from = {x, g, y, more, masked};
  if (more && f->mask == RSI_BY_Y) N(fold)(N(GRAD), RSI_BY_Y, N(WRITE_SUM), &from, s, f, first, second);
  else if (more) N(fold)(N(GRAD), RSI_BY_NONE, N(WRITE_SUM), &from, s, f, first, second);
  else if (f->mask == RSI_BY_X) N(fold)(N(GRAD), RSI_BY_X, N(WRITE_NOT), &from, s, f, first, second);
  else if (f->mask == RSI_BY_Y && masked) N(fold)(N(GRAD), RSI_BY_Y, N(WRITE), &from, s, f, first, second);
  else if (f->mask == RSI_BY_Y) N(fold)(N(GRAD), RSI_BY_Y, N(WRITE_NOT), &from, s, f, first, second);
  else if (masked) N(fold)(N(GRAD), RSI_BY_NONE, N(WRITE), &from, s, f, first, second);
  else N(fold)(N(GRAD), RSI_BY_NONE, N(WRITE_NOT), &from, s, f, first, second);
  for (int64_t j = 0; j < s->width; j++) {
    to[j] += (double)first[j];
    to[s->width + j] += (double)second[j];
  }
}

/* ---- sweeps ---------------------------------------------------------------------------------------------------------- */

/*
** Calls ROW(at, j, STRIP) for n elements from the first column on, in stretches of one row, and REST(at, j, count) for those that
** are shorter. Few columns are never a hot case.
*/
#define RSI_SWEEP(ROW, REST)                                                                                                \
  for (int64_t first = 0; first < n; first += width) {                                                                      \
    const int64_t end = n - first < width ? n - first : width;                                                              \
    int64_t j = 0;                                                                                                          \
    for (; j + STRIP <= end; j += STRIP) ROW(first + j, j, STRIP);                                                          \
    if (j < end) REST(first + j, j, end - j);                                                                               \
  }

INLINE void N(apply_row)(T *restrict y, const T *restrict x, const T *restrict r, int64_t n, const float *restrict mean,
                         const float *restrict scale, const float *restrict shift, float low, float high) {
  RSI_LOOP for (int64_t i = 0; i < n; i++) {
    float v = (FROM(x[i]) - mean[i]) * scale[i] + shift[i];
    if (r) v += FROM(r[i]);
    v = low > v ? low : v;          /* a NaN stays */
    v = high < v ? high : v;
    y[i] = TO(v);
  }
}

static __attribute__((noinline)) void N(apply_rest)(T *y, const T *x, const T *r, int64_t n, const float *mean, const float *scale,
                                                    const float *shift, float low, float high) {
  N(apply_row)(y, x, r, n, mean, scale, shift, low, high);
}

static void N(apply)(void *py, const void *px, const void *pr, int64_t n, int64_t width, const rsi_block_factors *f) {
  T *const y = py;
  const T *const x = px, *const r = pr;
  const float *const mean = f->mean, *const scale = f->scale, *const shift = f->shift, low = f->low, high = f->high;
#define RSI_ROW(at, j, count) N(apply_row)(y + (at), x + (at), r + (at), count, mean + (j), scale + (j), shift + (j), low, high)
#define RSI_ALONE(at, j, count) N(apply_row)(y + (at), x + (at), NULL, count, mean + (j), scale + (j), shift + (j), low, high)
#define RSI_REST(at, j, count) \
  N(apply_rest)(y + (at), x + (at), r ? r + (at) : NULL, count, mean + (j), scale + (j), shift + (j), low, high)
  if (r) RSI_SWEEP(RSI_ROW, RSI_REST)
  else RSI_SWEEP(RSI_ALONE, RSI_REST)
#undef RSI_ROW
#undef RSI_ALONE
#undef RSI_REST
}

INLINE void N(grad_row)(int by, T *restrict dx, const T *restrict pg, const T *restrict px, const T *restrict py, int64_t n,
                        int64_t j, const rsi_block_factors *f) {
  const float *restrict mean = f->mean + j, *restrict a = f->a + j, *restrict b = f->b + j, *restrict c = f->c + j;
  const float *restrict scale = by == RSI_BY_X ? f->scale + j : NULL, *restrict shift = by == RSI_BY_X ? f->shift + j : NULL;
  const float low = f->low, high = f->high;
  RSI_LOOP for (int64_t i = 0; i < n; i++) {
    const float d = FROM(px[i]) - mean[i];
    float g = FROM(pg[i]);
    if (by != RSI_BY_NONE) {
      const float y = by == RSI_BY_Y ? FROM(py[i]) : d * scale[i] + shift[i];
      g = ((y > low) & (y < high)) ? g : 0.0f;
    }
    dx[i] = TO(a[i] * g + (b[i] * d + c[i]));
  }
}

static __attribute__((noinline)) void N(grad_rest)(T *dx, const T *g, const T *x, const T *y, int64_t n, int64_t j,
                                                   const rsi_block_factors *f) {
  if (f->mask == RSI_BY_X) N(grad_row)(RSI_BY_X, dx, g, x, y, n, j, f);
  else if (f->mask == RSI_BY_Y) N(grad_row)(RSI_BY_Y, dx, g, x, y, n, j, f);
  else N(grad_row)(RSI_BY_NONE, dx, g, x, y, n, j, f);
}

static void N(grad)(void *pdx, const void *pg, const void *px, const void *py, int64_t n, int64_t width, const rsi_block_factors *f) {
  T *const dx = pdx;
  const T *const g = pg, *const x = px, *const y = f->mask == RSI_BY_Y ? py : px;
#define RSI_REST(at, j, count) N(grad_rest)(dx + (at), g + (at), x + (at), y + (at), count, j, f)
#define RSI_ROW_X(at, j, count) N(grad_row)(RSI_BY_X, dx + (at), g + (at), x + (at), y + (at), count, j, f)
#define RSI_ROW_Y(at, j, count) N(grad_row)(RSI_BY_Y, dx + (at), g + (at), x + (at), y + (at), count, j, f)
#define RSI_ROW_NONE(at, j, count) N(grad_row)(RSI_BY_NONE, dx + (at), g + (at), x + (at), y + (at), count, j, f)
  if (f->mask == RSI_BY_X) RSI_SWEEP(RSI_ROW_X, RSI_REST)
  else if (f->mask == RSI_BY_Y) RSI_SWEEP(RSI_ROW_Y, RSI_REST)
  else RSI_SWEEP(RSI_ROW_NONE, RSI_REST)
#undef RSI_REST
#undef RSI_ROW_X
#undef RSI_ROW_Y
#undef RSI_ROW_NONE
}
#undef RSI_SWEEP
