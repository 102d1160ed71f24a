/*
** Loops of attention on a tile of scores: rows x n products q k, row i at s + i * ld. One set per element type: of[RS_F32],
** of[RS_F64]. The score of a pair is scale * product + mask; a pair that takes no part has the score -inf and the weight 0.
*/
#ifndef RSI_K_ATTENTION_H
#define RSI_K_ATTENTION_H

#include "base/base.h"

enum { RSI_MASK_NONE, RSI_MASK_BOOL, RSI_MASK_FLOAT };

typedef struct rsi_scores {
  int64_t     rows, n, ld;
  void       *s;
  double      scale;
  int         kind;             /* of the mask; bool: 1 takes part; float: is added */
  const void *mask;             /* element (i, j) at mask + i * mrs + j * mcs elements */
  int64_t     mrs, mcs;
  int64_t     visible;          /* row i sees the columns below visible + i */
} rsi_scores;

typedef struct rsi_attention_loops {
  /*
  ** Products become exp(score - m), where m, for each row, is the largest score so far; max and sum (over all tiles so far) are
  ** brought up to date, and factor is what earlier sums over this row must be multiplied with.
  */
  void (*weights)(const rsi_scores *t, void *max, void *sum, void *factor);
  /* Products become exp(score - lse): the weights of the softmax themselves; lse is one per row. */
  void (*probabilities)(const rsi_scores *t, const void *lse);
  /* d = p (d - delta), delta one per row; without the columns that are not visible, which become 0 */
  void (*grad)(const rsi_scores *p, void *d, const void *delta);
  /* rows x n values times a factor for each row */
  void (*scale_rows)(int64_t rows, int64_t n, void *x, int64_t ld, const void *factor);
  /* x *= factor */
  void (*scale)(int64_t n, void *x, double factor);
  /* out = sum(a b) of each row; columns lie acs and bcs elements apart */
  void (*dots)(int64_t rows, int64_t n, const void *a, int64_t lda, int64_t acs, const void *b, int64_t ldb, int64_t bcs, void *out);
  /* the sums of a row turned around (0 stays 0, for a row without weights), and log(sum) + max into lse */
  void (*finish)(int64_t rows, const void *max, void *sum, void *lse);
  /* y[i] = words[i] < keep ? x[i] factor : 0 */
  void (*drop)(void *y, const void *x, const uint32_t *words, int64_t n, uint32_t keep, double factor);
  /* to: [columns, rows] with row stride ldt = from transposed; from: element (i, j) at i * rs + j * cs */
  void (*transpose)(int64_t rows, int64_t columns, const void *from, int64_t rs, int64_t cs, void *to, int64_t ldt);
} rsi_attention_loops;

typedef struct rsi_k_attention {
  const rsi_attention_loops *of[2];
  const struct rsi_attention_tiles *tiles;   /* kernels/attention_amx.h */
} rsi_k_attention;

#endif
