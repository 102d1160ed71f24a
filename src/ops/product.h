/*
** One matrix product inside another op, on as many threads as it pays for: the same cut into blocks as matmul, which follows
** from the sizes alone.
*/
#ifndef RSI_PRODUCT_H
#define RSI_PRODUCT_H

#include "ops/op.h"

/* Bytes of scratch, aligned to 64, that rsi_product of these sizes needs. */
size_t rsi_product_scratch(const rsi_exec *x, int dtype, int64_t m, int64_t n, int64_t k);
/* c: [m, n] = (beta ? c : 0) + a: [m, k] x b: [k, n], f32 or f64, with strides in elements as rsi_k_gemm takes them. */
void rsi_product(const rsi_exec *x, int dtype, int64_t m, int64_t n, int64_t k, const void *a, int64_t ars, int64_t acs,
                 const void *b, int64_t brs, int64_t bcs, int beta, void *c, int64_t ldc, void *scratch);
/* The same, with an end; its bias and residual are of `dtype`. */
void rsi_product_end(const rsi_exec *x, int dtype, int64_t m, int64_t n, int64_t k, const void *a, int64_t ars, int64_t acs,
                     const void *b, int64_t brs, int64_t bcs, int beta, void *c, int64_t ldc, const rsi_gemm_end *end,
                     void *scratch);
/* `batch` products, each with its part of a, b and c, which lie a_step, b_step and m * ldc elements apart. */
typedef struct rsi_batch { int64_t count, a_step, b_step; } rsi_batch;
size_t rsi_product_batch_scratch(const rsi_exec *x, int dtype, rsi_batch batch, int64_t m, int64_t n, int64_t k);
void rsi_product_batch(const rsi_exec *x, int dtype, rsi_batch batch, int64_t m, int64_t n, int64_t k, const void *a, int64_t ars,
                       int64_t acs, const void *b, int64_t brs, int64_t bcs, int beta, void *c, int64_t ldc, void *scratch);
/* c: [m, n] = a: [m, k] x b in panels of f32 or bf16, and its end. Needs no scratch. */
void rsi_product_panels(const rsi_exec *x, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const void *b, bool bf16,
                        float *c, int64_t ldc, const rsi_gemm_end *end);

#endif
