/*
** Products of bf16 matrices with sums in f32, by the tiles of AMX. Only to be called where rsi_cpu_amx() and the level is AVX-512;
** elsewhere the functions are NULL.
**
** A tile of a holds 16 rows and 32 columns of it, so a is seen as blocks of 16 rows: either as it lies, when its rows are contiguous
** and the last run of 32 columns is whole, or packed. b lies in panels (kernels/gemm.h), whose rows are padded to a multiple of 32.
*/
#ifndef RSI_K_GEMM_AMX_H
#define RSI_K_GEMM_AMX_H

#include "kernels/gemm_end.h"

enum { RSI_AMX_ROWS = 16, RSI_AMX_DEEP = 32, RSI_AMX_BLOCK = 256 };   /* of a tile of a; rows of a block of work */

/* c: [m, n] (+)= a: [m, k] x b: [k, n], and its end. */
typedef struct rsi_amx {
  int64_t m, n, k;
  const uint16_t *a;               /* block i begins at a + i * a_block; its rows are a_row, its runs of 32 columns a_run elements apart */
  int64_t a_block, a_row, a_run;
  const uint16_t *a_last;          /* the last block, packed, when it has fewer than 16 rows; or NULL: it is like the others */
  const uint16_t *b;
  void   *c;
  int64_t ldc;
  bool    c_bf16, beta;            /* beta: c is f32 and is added to */
  rsi_gemm_end end;                /* bias is f32 */
  bool    residual_bf16;
} rsi_amx;

typedef struct rsi_k_amx {
  /* rows row.. (a multiple of RSI_AMX_BLOCK) up to `rows` of them, at most RSI_AMX_BLOCK; panels first..last - 1 */
  void (*block)(const rsi_amx *j, int64_t row, int64_t rows, int64_t first, int64_t last);
  /* Blocks first..last - 1 of 16 rows of a: [m, k] with any strides, each [k / 32 rounded up, 16, 32], padded with zeros. */
  void (*pack_a)(int64_t first, int64_t last, int64_t m, int64_t k, const uint16_t *a, int64_t ars, int64_t acs, uint16_t *to);
  /* Panels first..last - 1 of b: [k, n] with any strides. */
  void (*pack_b)(int64_t first, int64_t last, int64_t n, int64_t k, const uint16_t *b, int64_t brs, int64_t bcs, uint16_t *to);
} rsi_k_amx;

#ifdef RSI_ISA_LEVEL
extern const rsi_k_amx RSI_ISA(rsi_k_amx);
#endif

#endif
