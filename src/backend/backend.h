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

typedef enum rsi_conv_kind { RSI_CONV_FORWARD, RSI_CONV_DATA, RSI_CONV_WEIGHT, RSI_CONV_IMAGE } rsi_conv_kind;   /* IMAGE: see below */
enum { RSI_CONV_NO_ACT, RSI_CONV_RELU, RSI_CONV_RELU6 };       /* what is applied at the end of a forward convolution */

/* The residual: lies in y already; lies elsewhere; elsewhere, and is to be copied (so that packed weights may be used). */
enum { RSI_CONV_NO_RESIDUAL, RSI_CONV_IN_PLACE, RSI_CONV_APART, RSI_CONV_COPIED };

/*
** A convolution, or the gradient of one, and how its operands lie: x: [n, c, h, w] and y: [n, o, oh, ow] are block images
** (ops/conv_block.c; block 1 is plain) of dtype f32 or bf16, w is plain f32, or packed (forward only). No padding: compared as bytes.
*/
typedef struct rsi_conv_call {
  int64_t kind;
  rsi_conv_shape s;
  int64_t x_block, x_dtype, y_block, y_dtype;
  int64_t packed, bias, residual, act;
  int64_t exact;                 /* of rsi_exec */
} rsi_conv_call;

/* x, w, y: the operands or their gradients, one of them the result. Forward: y = act(conv + bias + residual), residual as y. */
typedef struct rsi_conv_data {
  void *x, *w, *y;
  const void *bias, *residual;   /* f32 [o]; NULL: none. The residual may be y itself */
} rsi_conv_data;

/* `threads` is how many may work; the results do not depend on it. Scratch made for more threads than run is accepted. */
bool      rsi_onednn_conv_accepts(rsi_onednn *cache, const rsi_conv_call *call);
size_t    rsi_onednn_conv_scratch(rsi_onednn *cache, const rsi_conv_call *call, int threads);
rs_status rsi_onednn_conv_run(const rsi_exec *x, const rsi_conv_call *call, const rsi_conv_data *data, void *scratch);

/* Weights for a call with packed set: bytes that one run of pack writes, and a mark of their layout. 0: not accepted. */
size_t    rsi_onednn_pack_bytes(rsi_onednn *cache, const rsi_conv_call *call, uint64_t *layout);
rs_status rsi_onednn_pack_run(const rsi_exec *x, const rsi_conv_call *call, const float *weight, void *packed);

/* Moves images from the form of x to that of y; kind RSI_CONV_IMAGE, s has c, h and w (and n = 1, o = c), accepted by conv_accepts. */
rs_status rsi_onednn_image_run(const rsi_exec *x, const rsi_conv_call *call, int64_t images, const void *from, void *to);

/* The block in which this machine convolves images of so many channels fastest: 16, 8, channels (NHWC) or 0, where none is better. */
int64_t   rsi_onednn_block(int dtype, int64_t channels);

#endif
