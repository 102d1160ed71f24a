/*
** f32 products of matrices by split tiles (kernels/split_tiles.h). Only where rsi_cpu_split() and the level is AVX-512; elsewhere
** the functions are NULL.
**
** Rows of a and columns of b are taken in strips of 16. A block of c keeps the packed strips of one operand in the second-level cache
** and packs those of the other as they pass by, some at a time, so that nothing packed goes further out. Sums are taken over a chunk of
** k, at most RSI_SPLIT_CHUNK, then added to c.
*/
#ifndef RSI_K_SPLIT_GEMM_H
#define RSI_K_SPLIT_GEMM_H

#include "kernels/gemm_end.h"

enum { RSI_SPLIT_SIDE = 16, RSI_SPLIT_DEEP = 32, RSI_SPLIT_RUN = 1536, RSI_SPLIT_CHUNK = 512, RSI_SPLIT_STAY = 384,
       RSI_SPLIT_PASS = 8 };      /* runs that stay; strips that pass by at once */

/*
** Memory that will be read or written soon, asked for while the tiles are at work: `rows` rows `ld` bytes apart, each of `pieces` pieces
** `step` bytes apart, each of `lines` lines of 64 bytes.
*/
typedef struct rsi_soon { const char *at; int64_t rows, ld, pieces, step, lines; } rsi_soon;

/* A matrix as it lies: element (i, p), i along m or n and p along k, at from[i * side + p * deep]. With panels (kernels/gemm.h) the
** strides hold within 16 columns, which lie `strip` elements apart in the panel of 32. */
typedef struct rsi_split_matrix {
  const float *from;
  int64_t side, deep;
  int64_t panel;                   /* elements of a panel; 0: the matrix is not in panels */
} rsi_split_matrix;

/* The start of strip i. */
static inline const float *rsi_split_strip(const rsi_split_matrix *a, int64_t i) {
  return a->panel ? a->from + i / 2 * a->panel + i % 2 * RSI_SPLIT_SIDE : a->from + i * RSI_SPLIT_SIDE * a->side;
}

/* c: [m, n] (+)= a: [m, k] x b: [k, n], and its end. */
typedef struct rsi_split_product {
  int64_t m, n, k;
  rsi_split_matrix a, b;
  float  *c;
  int64_t ldc;
  bool    beta;
  const rsi_gemm_end *end;         /* or NULL; row and column: where c lies in its matrix */
  int64_t row, column;
} rsi_split_product;

/* How a product is cut: strips of the operand that stays, runs of a chunk. With `rows`, a stays. */
typedef struct rsi_split_plan { bool rows; int64_t strips, runs; } rsi_split_plan;

static inline size_t rsi_split_room(const rsi_split_plan *t) { return (size_t)((t->strips + RSI_SPLIT_PASS) * t->runs) * RSI_SPLIT_RUN * sizeof(uint16_t); }

typedef struct rsi_k_split {
  /* The part of c in strips i0..i1 - 1 of a and j0..j1 - 1 of b; at most t->strips of those that stay. Those are packed in room already
  ** when `packed`, by a call with the same ones, whose k was one chunk. room: rsi_split_room bytes, aligned to 64. */
  void (*block)(const rsi_split_product *s, const rsi_split_plan *t, bool packed, int64_t i0, int64_t i1, int64_t j0, int64_t j1, void *room);
} rsi_k_split;

#ifdef RSI_ISA_LEVEL
extern const rsi_k_split RSI_ISA(rsi_k_split);
#endif

#endif
