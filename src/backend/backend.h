/*
** The only door to third-party compute libraries; each file behind it compiles to "not available" when its library is left
** out (make BLAS=none ONEDNN=no), so no other file has a condition about them.
*/
#ifndef RSI_BACKEND_H
#define RSI_BACKEND_H

#include "ops/op.h"

bool rsi_blas_available(void);     /* loads OpenBLAS at the first call */
bool rsi_blas_fits(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc);   /* in its integers */
/* c: [m, n] row-major with row stride ldc = a x b (+ c when beta). ta: a is stored [k, m] with row stride lda. One thread.
** m, n, k > 0, and the library is available. */
void rsi_blas_sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                    int beta, float *c, int64_t ldc);
void rsi_blas_dgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda, const double *b, int64_t ldb,
                    int beta, double *c, int64_t ldc);

bool rsi_onednn_available(void);

/* The primitives made so far, by shape: bounded, and usable by any number of threads. *out is NULL when oneDNN is left out. */
typedef struct rsi_onednn rsi_onednn;
rs_status rsi_onednn_create(rsi_onednn **out);
void      rsi_onednn_destroy(rsi_onednn *cache);      /* NULL is allowed; nothing may be running */

typedef enum rsi_conv_kind { RSI_CONV_FORWARD, RSI_CONV_DATA, RSI_CONV_WEIGHT } rsi_conv_kind;

/*
** A convolution in f32 on plain images, or the gradient of one: forward (a = x, b = weight, out = y), data (a = g, b = weight,
** out = gradient of x), weight (a = x, b = g, out = gradient of weight). `threads` is how many may work; the results do
** not depend on it. Scratch made for more threads than run is accepted. bias: for forward, or NULL.
*/
bool      rsi_onednn_conv_accepts(rsi_onednn *cache, rsi_conv_kind kind, const rsi_conv_shape *s, bool bias);
size_t    rsi_onednn_conv_scratch(rsi_onednn *cache, rsi_conv_kind kind, const rsi_conv_shape *s, bool bias, int threads);
rs_status rsi_onednn_conv_run(const rsi_exec *x, rsi_conv_kind kind, const rsi_conv_shape *s, const float *a, const float *b,
                              const float *bias, float *out, void *scratch);

#endif
