/*
** Attention on the tiles of AMX: matrices of bf16, sums in f32. Only to be called where rsi_cpu_amx() and the level is AVX-512;
** elsewhere the functions are NULL.
**
** Two forms of a matrix of bf16, whose sides are multiples of 32 (RSI_TILE_SIDE) because what is missing is zeros:
**   rows:  row after row, `ld` elements apart. Tiles of a left operand are read from it where it lies.
**   pairs: the right operand of a product: panels of 32 columns, `panel` elements apart; in a panel rows 2i and 2i + 1 are
**          interleaved to 64 elements.
*/
#ifndef RSI_K_ATTENTION_AMX_H
#define RSI_K_ATTENTION_AMX_H

#include "base/base.h"

enum { RSI_TILE_SIDE = 32 };

/* A block of scores, rows ld elements apart: [rows, n] of [high, wide]. Row i takes part in the columns below visible + i. */
typedef struct rsi_tile_block {
  int64_t rows, n, high, wide, ld, visible;
  float   scale;                 /* > 0 */
} rsi_tile_block;

typedef struct rsi_attention_tiles {
  /* to: [high, wide] in rows = from: [rows, n], f32 or bf16, with strides in elements, and zeros around it. high > rows is possible. */
  void (*read)(int64_t rows, int64_t n, const void *from, bool bf16, int64_t rs, int64_t cs, int64_t high, int64_t wide, uint16_t *to,
               int64_t ld);
  /* to: x: [rows, n] in pairs */
  void (*pairs)(int64_t rows, int64_t n, const uint16_t *x, int64_t ld, uint16_t *to, int64_t panel);
  /* to: the transpose of x: [rows, n] in pairs, so its panels go through the rows of x */
  void (*turned_pairs)(int64_t rows, int64_t n, const uint16_t *x, int64_t ld, uint16_t *to, int64_t panel);
  /* to: [n, rows] in rows = the transpose of x: [rows, n] */
  void (*turned)(int64_t rows, int64_t n, const uint16_t *x, int64_t ld, uint16_t *to, int64_t ldt);
  /* c: [m, n] f32, rows ldc apart, = or += a: [m, k] in rows x b: [k, n] in pairs. open and close stand around a series of these. */
  void (*open)(void);
  void (*product)(int64_t m, int64_t n, int64_t k, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t panel, bool more, float *c,
                  int64_t ldc);
  void (*close)(void);
  /*
  ** Products s become the weights w, as rsi_attention_loops.weights; the sums are of what is not rounded yet. What takes no part in w,
  ** and what the block has less than its sides, is 0. s is overwritten.
  */
  void (*weights)(const rsi_tile_block *b, float *s, float *max, float *sum, float *factor, uint16_t *w);
  /* w = exp(scale s - lse); s is overwritten */
  void (*probabilities)(const rsi_tile_block *b, float *s, const float *lse, uint16_t *w);
  /* d = w (s - delta) */
  void (*grad)(const rsi_tile_block *b, const uint16_t *w, const float *s, const float *delta, uint16_t *d);
  /* out = sum(a b) of each row */
  void (*dots)(int64_t rows, int64_t n, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t ldb, float *out);
  /* to: [rows, n], f32 or bf16, contiguous, = x times `scale` and times a factor for each row (NULL: 1) */
  void (*write)(int64_t rows, int64_t n, const float *x, int64_t ld, float scale, const float *factor, void *to, bool bf16);
} rsi_attention_tiles;

#ifdef RSI_ISA_LEVEL
extern const rsi_attention_tiles RSI_ISA(rsi_attention_tiles);
#endif

#endif
