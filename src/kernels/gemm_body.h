/*
** Matrix multiplication for one element type; included by gemm.c with T (the type), NAME (a prefix) and LANES (elements of a
** vector) defined. NR = 2 * LANES is the width of a tile.
*/
#define V      NAME(_v)
#define VU     NAME(_vu)
#define Q      NAME(_q)
#define QU     NAME(_qu)
#define MASK   NAME(_mask)
#define NR     (2 * LANES)

typedef T V __attribute__((vector_size(VECTOR)));
typedef T VU __attribute__((vector_size(VECTOR), aligned(sizeof(T)), may_alias));
typedef T Q __attribute__((vector_size(4 * sizeof(T))));        /* four elements, whatever the registers */
typedef T QU __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));

#if LANES == 16
typedef T NAME(_h) __attribute__((vector_size(8 * sizeof(T))));
#endif

/* ---- vectors of which only the first n elements exist ---------------------------------------------------------------- */

#if RSI_ISA_LEVEL == 2
typedef uint32_t MASK;
ALWAYS MASK NAME(mask_of)(int64_t n) { return (1u << n) - 1u; }
#elif RSI_ISA_LEVEL == 1
typedef __m256i MASK;
ALWAYS MASK NAME(mask_of)(int64_t n) {
  return sizeof(T) == 4
    ? _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
    : _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
#else
typedef int64_t MASK;
ALWAYS MASK NAME(mask_of)(int64_t n) { return n; }
#endif

ALWAYS V NAME(load)(const T *p) { return *(const VU *)p; }
ALWAYS void NAME(store)(T *p, V v) { *(VU *)p = v; }
ALWAYS V NAME(splat)(T x) { return x - (V){0}; }

ALWAYS V NAME(load_part)(const T *p, MASK mask) {
#if RSI_ISA_LEVEL == 2
  return sizeof(T) == 4 ? (V)_mm512_maskz_loadu_ps((__mmask16)mask, p) : (V)_mm512_maskz_loadu_pd((__mmask8)mask, p);
#elif RSI_ISA_LEVEL == 1
  return sizeof(T) == 4 ? (V)_mm256_maskload_ps((const float *)p, mask) : (V)_mm256_maskload_pd((const double *)p, mask);
#else
  V v = {0};
  for (int l = 0; l < LANES; l++)
    if (l < mask) v[l] = p[l];
  return v;
#endif
}

ALWAYS void NAME(store_part)(T *p, MASK mask, V v) {
#if RSI_ISA_LEVEL == 2
  if (sizeof(T) == 4) _mm512_mask_storeu_ps(p, (__mmask16)mask, (__m512)v);
  else _mm512_mask_storeu_pd(p, (__mmask8)mask, (__m512d)v);
#elif RSI_ISA_LEVEL == 1
  if (sizeof(T) == 4) _mm256_maskstore_ps((float *)p, mask, (__m256)v);
  else _mm256_maskstore_pd((double *)p, mask, (__m256d)v);
#else
  for (int l = 0; l < LANES; l++)
    if (l < mask) p[l] = v[l];
#endif
}

ALWAYS V NAME(load_if)(bool part, const T *p, MASK mask) { return part ? NAME(load_part)(p, mask) : NAME(load)(p); }
ALWAYS void NAME(put)(bool part, T *p, MASK mask, int beta, V v) {
  if (part) NAME(store_part)(p, mask, beta ? v + NAME(load_part)(p, mask) : v);
  else NAME(store)(p, beta ? v + NAME(load)(p) : v);
}

/* ---- the micro-kernel ------------------------------------------------------------------------------------------------ */

/*
** c: [mr, width] += a: [mr, k] x b: [k, width], width within two vectors (one, when not `two`), of the last of which only
** `mask` exists when `part`. mr, two, part and packed are constants where this is inlined. packed: ars is 1 and acs is MR.
*/
ALWAYS void NAME(tile)(int mr, bool two, bool part, bool packed, int64_t k, const T *a, int64_t ars, int64_t acs, const T *b,
                       int64_t brs, MASK mask, int beta, T *c, int64_t ldc) {
  V left[MR], right[MR];
  const T *row[MR];
#define BEGIN(i)                                                                                                            \
  if (i < mr) {                                                                                                             \
    row[i] = a + i * ars;                                                                                                   \
    left[i] = right[i] = (V){0};                                                                                            \
  }
#define STEP(i)                                                                                                             \
  if (i < mr) {                                                                                                             \
    const V x = NAME(splat)(packed ? a[i] : row[i][at]);                                                                    \
    left[i] += x * l;                                                                                                       \
    if (two) right[i] += x * r;                                                                                             \
  }
#define END(i)                                                                                                              \
  if (i < mr) {                                                                                                             \
    NAME(put)(part && !two, c + i * ldc, mask, beta, left[i]);                                                              \
    if (two) NAME(put)(part, c + i * ldc + LANES, mask, beta, right[i]);                                                    \
  }
  EACH_ROW(BEGIN)
  /* The tile of c comes while the sums are made, when that takes long enough. */
#define FETCH(i) if (i < mr) __builtin_prefetch(c + i * ldc, 1), __builtin_prefetch(c + i * ldc + NR - 1, 1);
  if (k >= FETCH_K) { EACH_ROW(FETCH) }
#undef FETCH
  for (int64_t p = 0, at = 0; p < k; p++, b += brs) {
    const V l = NAME(load_if)(part && !two, b, mask), r = two ? NAME(load_if)(part, b + LANES, mask) : l;
    EACH_ROW(STEP)
    if (packed) a += MR;
    else at += acs;
  }
  EACH_ROW(END)
#undef BEGIN
#undef STEP
#undef END
}

typedef void NAME(tile_fn)(int64_t mr, int64_t k, const T *a, int64_t ars, int64_t acs, const T *b, int64_t brs, MASK mask,
                           int beta, T *c, int64_t ldc);

/* One function per width; 0 < mr <= MR. */
#define ROWS(n, two, part)                                                                                                  \
  case n: NAME(tile)(n <= MR ? n : MR, two, part, false, k, a, ars, acs, b, brs, mask, beta, c, ldc); break;
#define STRIP(name, two, part)                                                                                              \
  static void NAME(name)(int64_t mr, int64_t k, const T *a, int64_t ars, int64_t acs, const T *b, int64_t brs, MASK mask,   \
                         int beta, T *c, int64_t ldc) {                                                                     \
    if (mr == MR && ars == 1 && acs == MR) {                                                                                \
      NAME(tile)(MR, two, part, true, k, a, 1, MR, b, brs, mask, beta, c, ldc);                                             \
      return;                                                                                                               \
    }                                                                                                                       \
    switch (mr) {                                                                                                           \
      ROWS(1, two, part) ROWS(2, two, part) ROWS(3, two, part) ROWS(4, two, part)                                           \
      MORE_ROWS(two, part)                                                                                                  \
    }                                                                                                                       \
  }
#if RSI_ISA_LEVEL == 2
#define MORE_ROWS(two, part)                                                                                                \
  ROWS(5, two, part) ROWS(6, two, part) ROWS(7, two, part) ROWS(8, two, part) ROWS(9, two, part) ROWS(10, two, part)        \
  ROWS(11, two, part) ROWS(12, two, part)
#elif RSI_ISA_LEVEL == 1
#define MORE_ROWS(two, part) ROWS(5, two, part) ROWS(6, two, part)
#else
#define MORE_ROWS(two, part)
#endif
STRIP(strip2, true, false)
STRIP(strip2_part, true, true)
STRIP(strip1, false, false)
STRIP(strip1_part, false, true)
#undef STRIP
#undef ROWS
#undef MORE_ROWS

/* ---- packing --------------------------------------------------------------------------------------------------------- */

/*
** to: [depth, width] with row stride `unit`, from element (p, j) at from[p * prs + j * pcs]; columns width..unit-1 are left
** as they are. pcs == 1 copies rows, prs == 1 transposes four by four.
*/
static void NAME(pack_panel)(int64_t depth, int64_t width, int64_t unit, const T *from, int64_t prs, int64_t pcs, T *to) {
  if (pcs == 1) {
    if (width == NR) {
      for (int64_t p = 0; p < depth; p++)
        memcpy(to + p * unit, from + p * prs, NR * sizeof(T));
      return;
    }
    for (int64_t p = 0; p < depth; p++)
      for (int64_t j = 0; j < width; j++) to[p * unit + j] = from[p * prs + j];
    return;
  }
  int64_t done = 0;
  if (prs == 1) {
    for (; done + 4 <= width; done += 4) {
      const T *const f = from + done * pcs;
      T *const t = to + done;
      int64_t p = 0;
      for (; p + 4 <= depth; p += 4) {
        const Q a = *(const QU *)(f + p), b = *(const QU *)(f + pcs + p);
        const Q c = *(const QU *)(f + 2 * pcs + p), d = *(const QU *)(f + 3 * pcs + p);
        const Q e = __builtin_shufflevector(a, b, 0, 4, 1, 5), g = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Q h = __builtin_shufflevector(c, d, 0, 4, 1, 5), i = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        *(QU *)(t + p * unit) = __builtin_shufflevector(e, h, 0, 1, 4, 5);
        *(QU *)(t + (p + 1) * unit) = __builtin_shufflevector(e, h, 2, 3, 6, 7);
        *(QU *)(t + (p + 2) * unit) = __builtin_shufflevector(g, i, 0, 1, 4, 5);
        *(QU *)(t + (p + 3) * unit) = __builtin_shufflevector(g, i, 2, 3, 6, 7);
      }
      for (; p < depth; p++)
        for (int64_t j = 0; j < 4; j++) t[p * unit + j] = f[p + j * pcs];
    }
  }
  for (int64_t p = 0; p < depth; p++)
    for (int64_t j = done; j < width; j++) to[p * unit + j] = from[p * prs + j * pcs];
}

/*
** Panels of `unit` columns, one after the other, each [depth, unit]. Rows that lie together are read in runs of several panels, so
** that whole cache lines are used at once.
*/
static void NAME(pack)(int64_t depth, int64_t width, int64_t unit, const T *from, int64_t prs, int64_t pcs, T *to) {
  const int64_t size = depth * unit;
  if (pcs == 1) {
    for (; width >= unit; ) {
      const int64_t run = smaller(width / unit, unit > MR ? 4 : 8);
      for (int64_t p = 0; p < depth; p++)
        for (int64_t q = 0; q < run; q++)
          if (unit == NR) memcpy(to + q * size + p * NR, from + p * prs + q * NR, NR * sizeof(T));
          else memcpy(to + q * size + p * MR, from + p * prs + q * MR, MR * sizeof(T));
      width -= run * unit;
      from += run * unit;
      to += run * size;
    }
  }
  for (int64_t j = 0; j < width; j += unit, to += size)
    NAME(pack_panel)(depth, smaller(unit, width - j), unit, from + j * pcs, prs, pcs, to);
}

/* ---- the loops around it --------------------------------------------------------------------------------------------- */

/* The mask and the tile for a strip of `width` columns, at most NR. */
static NAME(tile_fn) *NAME(strip_of)(int64_t width, MASK *mask) {
  const int64_t last = (width - 1) % LANES + 1;
  *mask = NAME(mask_of)(last);
  return width > LANES ? last == LANES ? NAME(strip2) : NAME(strip2_part) : last == LANES ? NAME(strip1) : NAME(strip1_part);
}

/*
** c: [m, n] += a: [m, k] x b: [k, n] for one block. a is in panels of MR rows when packed_a, b in panels of NR columns.
** `end`, when there is one, is done to each strip of c at once; the block begins at (row, column) of the result.
*/
static void NAME(block)(int64_t m, int64_t n, int64_t k, const T *a, int64_t ars, int64_t acs, bool packed_a, const T *b,
                        int64_t brs, bool packed_b, int beta, T *c, int64_t ldc, const rsi_gemm_end *end, int64_t row,
                        int64_t column) {
  for (int64_t j = 0; j < n; j += NR) {
    const int64_t width = smaller(NR, n - j);
    MASK mask;
    NAME(tile_fn) *const strip = NAME(strip_of)(width, &mask);
    const T *const bj = packed_b ? b + j * k : b + j;
    for (int64_t i = 0; i < m; i += MR) {
      const T *const ai = packed_a ? a + i * k : a + i * ars;
      strip(smaller(MR, m - i), k, ai, packed_a ? 1 : ars, packed_a ? MR : acs, bj, packed_b ? NR : brs, mask, beta,
            c + i * ldc + j, ldc);
    }
    if (end != NULL) FINISH(end, row, column + j, m, width, c + j, ldc);
  }
}

static void NAME(blocked)(int64_t m, int64_t n, int64_t k, const T *a, int64_t ars, int64_t acs, const T *b, int64_t brs,
                          int64_t bcs, int beta, T *c, int64_t ldc, const rsi_gemm_end *end, T *scratch) {
  const bool pack_b = bcs != 1 || (m >= PACK_SIDE && n * k >= PACK_AREA);
  const bool pack_a = acs != 1 && (ars != 1 ? n >= PACK_SIDE : n >= 2 * PACK_SIDE && m * k >= PACK_AREA);
  const int64_t unit = run_of(k);
  const bool copy_a = acs == 1 && n >= 8 * PACK_SIDE && m * k >= PACK_AREA && ars * (int64_t)sizeof(T) % SET_BYTES == 0;
  for (int64_t j = 0; j < n; j += NC) {
    const int64_t width = smaller(NC, n - j);
    for (int64_t p = 0; p < k; p += unit) {
      const int64_t depth = smaller(unit, k - p);
      const T *bb = b + p * brs + j * bcs;
      T *const room = scratch + (pack_b ? round_up(width, NR) * depth : 0);
      if (pack_b) {
        NAME(pack)(depth, width, NR, bb, brs, bcs, scratch);
        bb = scratch;
      }
      for (int64_t i = 0; i < m; i += MC) {
        const int64_t height = smaller(MC, m - i);
        const T *aa = a + i * ars + p * acs;
        int64_t rows = ars;
        if (copy_a) {
          rows = depth + PAD;
          for (int64_t r = 0; r < height; r++) memcpy(room + r * rows, aa + r * ars, (size_t)depth * sizeof(T));
          aa = room;
        }
        if (pack_a) {
          NAME(pack)(depth, height, MR, aa, acs, ars, room);
          aa = room;
        }
        NAME(block)(height, width, depth, aa, rows, acs, pack_a, bb, brs, pack_b, beta || p > 0, c + i * ldc + j, ldc,
                    p + depth == k ? end : NULL, i, j);
      }
    }
  }
}

/* ---- dot products ---------------------------------------------------------------------------------------------------- */

/* The sums of four vectors. Each is folded to four elements, then the four are transposed and added. */
#if LANES == 2
ALWAYS void NAME(sums)(const V *v, Q *out) {
  UNROLL for (int i = 0; i < 4; i++) (*out)[i] = v[i][0] + v[i][1];
}
#else
ALWAYS Q NAME(fold)(V v) {
#if LANES == 16
  const NAME(_h) h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
                     + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
#elif LANES == 8
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  return v;
#endif
}
ALWAYS void NAME(sums)(const V *v, Q *out) {
  const Q a = NAME(fold)(v[0]), b = NAME(fold)(v[1]), c = NAME(fold)(v[2]), d = NAME(fold)(v[3]);
  const Q ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Q cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *out = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}
#endif

/* c: four sums of which n exist, at distance cs. */
ALWAYS void NAME(put_sums)(int64_t n, const V *v, int beta, T *c, int64_t cs) {
  Q s;
  if (n <= 0) return;
  NAME(sums)(v, &s);
  if (n >= 4 && cs == 1) *(QU *)c = beta ? s + *(const QU *)c : s;
  else
    for (int64_t j = 0; j < 4 && j < n; j++) c[j * cs] = beta ? c[j * cs] + s[j] : s[j];
}

/*
** c: [mr, nr] += a: [mr, k] x b^T with b: [nr, k], both with unit column stride; mr <= rows, nr <= columns. Rows that do not
** exist are the last one again, and their sums are dropped. rows (1, 2 or 4) and columns (8 or 4) are constants.
*/
ALWAYS void NAME(dot_tile)(int rows, int columns, int64_t mr, int64_t nr, int64_t k, const T *a, int64_t lda, const T *b,
                           int64_t ldb, int beta, T *c, int64_t ldc, int64_t cs) {
  V s0[8], s1[8], s2[8], s3[8], u0, u1 = {0}, u2 = {0}, u3 = {0};
  const T *const x1 = a + smaller(1, mr - 1) * lda, *const x2 = a + smaller(2, mr - 1) * lda;
  const T *const x3 = a + smaller(3, mr - 1) * lda, *y[8];
#define EACH_COLUMN(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define BEGIN(j)                                                                                                            \
  if (j < columns) {                                                                                                        \
    y[j] = b + smaller(j, nr - 1) * ldb;                                                                                    \
    s0[j] = s1[j] = s2[j] = s3[j] = (V){0};                                                                                 \
  }
#define COLUMN(j)                                                                                                           \
  if (j < columns) {                                                                                                        \
    const V w = NAME(load_if)(part, y[j] + p, mask);                                                                        \
    s0[j] += u0 * w;                                                                                                        \
    if (rows > 1) s1[j] += u1 * w;                                                                                          \
    if (rows > 2) s2[j] += u2 * w;                                                                                          \
    if (rows > 3) s3[j] += u3 * w;                                                                                          \
  }
#define STEP                                                                                                                \
  u0 = NAME(load_if)(part, a + p, mask);                                                                                    \
  if (rows > 1) u1 = NAME(load_if)(part, x1 + p, mask);                                                                     \
  if (rows > 2) u2 = NAME(load_if)(part, x2 + p, mask);                                                                     \
  if (rows > 3) u3 = NAME(load_if)(part, x3 + p, mask);                                                                     \
  EACH_COLUMN(COLUMN)
  EACH_COLUMN(BEGIN)
  const MASK mask = NAME(mask_of)(k % LANES);
  int64_t p = 0;
  for (; p + LANES <= k; p += LANES) {
    const bool part = false;
    STEP
  }
  if (p < k) {
    const bool part = true;
    STEP
  }
#undef BEGIN
#undef COLUMN
#undef STEP
#undef EACH_COLUMN
  NAME(put_sums)(nr, s0, beta, c, cs);
  if (columns > 4) NAME(put_sums)(nr - 4, s0 + 4, beta, c + 4 * cs, cs);
  if (rows > 1 && mr > 1) NAME(put_sums)(nr, s1, beta, c + ldc, cs);
  if (rows > 2 && mr > 2) NAME(put_sums)(nr, s2, beta, c + 2 * ldc, cs);
  if (rows > 3 && mr > 3) NAME(put_sums)(nr, s3, beta, c + 3 * ldc, cs);
}

/* c: [m, n] += a x b^T, one block of k after the other so that four rows of b stay in L1. */
static void NAME(dots)(int64_t m, int64_t n, int64_t k, const T *a, int64_t lda, const T *b, int64_t ldb, int beta, T *c,
                       int64_t ldc, int64_t cs) {
  for (int64_t p = 0; p < k; p += DOT_K, beta = 1) {
    const int64_t depth = smaller(DOT_K, k - p);
    if (m == 1)
      for (int64_t j = 0; j < n; j += 8)
        NAME(dot_tile)(1, 8, 1, smaller(8, n - j), depth, a + p, lda, b + j * ldb + p, ldb, beta,
                       c + j * cs, ldc, cs);
    else
      for (int64_t j = 0; j < n; j += 4)
        for (int64_t i = 0; i < m; i += DOT_ROWS)
          NAME(dot_tile)(DOT_ROWS, 4, smaller(DOT_ROWS, m - i), smaller(4, n - j), depth, a + i * lda + p, lda,
                         b + j * ldb + p, ldb, beta, c + i * ldc + j * cs, ldc, cs);
  }
}

/* ---- one row --------------------------------------------------------------------------------------------------------- */

/* c: [n] += x: [k] x b: [k, n], b with unit column stride: GEMV_ROWS rows of b at a time, each read once from end to end. */
ALWAYS void NAME(add_rows)(int rows, int64_t n, const T *x, int64_t xs, const T *b, int64_t ldb, int beta, T *c) {
  V u[GEMV_ROWS];
  const T *row[GEMV_ROWS];
  UNROLL for (int r = 0; r < rows; r++) {
    u[r] = NAME(splat)(x[r * xs]);
    row[r] = b + r * ldb;
  }
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) {
    V s = beta ? NAME(load)(c + j) : (V){0};
    UNROLL for (int r = 0; r < rows; r++) s += u[r] * NAME(load)(row[r] + j);
    NAME(store)(c + j, s);
  }
  if (j < n) {
    const MASK mask = NAME(mask_of)(n - j);
    V s = beta ? NAME(load_part)(c + j, mask) : (V){0};
    UNROLL for (int r = 0; r < rows; r++) s += u[r] * NAME(load_part)(row[r] + j, mask);
    NAME(store_part)(c + j, mask, s);
  }
}

static void NAME(row_times)(int64_t n, int64_t k, const T *x, int64_t xs, const T *b, int64_t ldb, int beta, T *c) {
  int64_t p = 0;
  for (; p + GEMV_ROWS <= k; p += GEMV_ROWS, beta = 1) NAME(add_rows)(GEMV_ROWS, n, x + p * xs, xs, b + p * ldb, ldb, beta, c);
  for (; p < k; p++, beta = 1) NAME(add_rows)(1, n, x + p * xs, xs, b + p * ldb, ldb, beta, c);
}

/* c: [n] += x: [k] x b: [k, n] with any strides. */
static void NAME(thin)(int64_t n, int64_t k, const T *x, int64_t xs, const T *b, int64_t brs, int64_t bcs, int beta, T *c,
                       int64_t cs) {
  T copy[DOT_K];
  if (bcs == 1 && cs == 1) {
    NAME(row_times)(n, k, x, xs, b, brs, beta, c);
    return;
  }
  for (int64_t p = 0; p < k; p += DOT_K, beta = 1) {
    const int64_t depth = smaller(DOT_K, k - p);
    const T *xp = x + p * xs;
    if (xs != 1) {
      for (int64_t i = 0; i < depth; i++) copy[i] = xp[i * xs];
      xp = copy;
    }
    if (brs == 1) {
      NAME(dots)(1, n, depth, xp, 0, b + p, bcs, beta, c, 0, cs);
      continue;
    }
    for (int64_t j = 0; j < n; j++) {
      const T *const bj = b + p * brs + j * bcs;
      T s = beta ? c[j * cs] : 0;
      for (int64_t i = 0; i < depth; i++) s += xp[i] * bj[i * brs];
      c[j * cs] = s;
    }
  }
}

/* ---- the choice ------------------------------------------------------------------------------------------------------ */

static void NAME(gemm_end)(int64_t m, int64_t n, int64_t k, const T *a, int64_t ars, int64_t acs, const T *b, int64_t brs,
                           int64_t bcs, int beta, T *c, int64_t ldc, const rsi_gemm_end *end, void *room) {
  _Alignas(64) char stack[STACK];
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    for (int64_t i = 0; i < m && !beta; i++) memset(c + i * ldc, 0, (size_t)n * sizeof(T));
  } else if (m == 1) {
    NAME(thin)(n, k, a, acs, b, brs, bcs, beta, c, 1);
  } else if (n == 1) {
    NAME(thin)(m, k, b, brs, a, acs, ars, beta, c, ldc);
  } else if (acs == 1 && brs == 1 && ((m <= 32 && k >= 8 * m) || (n <= 12 && k >= 64))) {
    NAME(dots)(m, n, k, a, ars, b, bcs, beta, c, ldc, 1);
  } else {
    NAME(blocked)(m, n, k, a, ars, acs, b, brs, bcs, beta, c, ldc, end,
                  scratch(m, n, k, sizeof(T)) == 0 ? (T *)(void *)stack : room);
    return;
  }
  if (end != NULL) FINISH(end, 0, 0, m, n, c, ldc);
}

static void NAME(gemm)(int64_t m, int64_t n, int64_t k, const T *a, int64_t ars, int64_t acs, const T *b, int64_t brs,
                       int64_t bcs, int beta, T *c, int64_t ldc, void *room) {
  NAME(gemm_end)(m, n, k, a, ars, acs, b, brs, bcs, beta, c, ldc, NULL, room);
}
