/*
** Loops of recurrent layers: what happens to one row of n units after the matrix products of a step. One set per element type:
** of[RS_F32], of[RS_F64]. Pointers are to that type. Values of one unit's gates lie `hidden` elements apart, so a call may treat
** a range of the units.
*/
#ifndef RSI_K_RNN_H
#define RSI_K_RNN_H

#include "base/base.h"

typedef struct rsi_rnn_loops {
  /*
  ** s: the sums of the gates i, f, g, o; becomes their values. c = f c0 + i g, h = o tanh(c). bias: four as s. u: more of the sums,
  ** those of one gate `ug` elements after those of the one before.
  */
  void (*lstm)(int64_t n, int64_t hidden, void *s, const void *u, int64_t ug, const void *bias, const void *c0, void *c, void *h);
  /*
  ** s, c0, c: as the forward left them. The gradient of h is dh + gy; dc is that of c and becomes that of c0.
  ** d: the gradients of the four sums.
  */
  void (*lstm_grad)(int64_t n, int64_t hidden, const void *s, const void *c0, const void *c, const void *dh, const void *gy,
                    void *dc, void *d);
  /*
  ** s: the sums r, z, n from the input; becomes r, z, n and, as the fourth, what r was multiplied with. u: the sums from h0.
  ** bias: of r, of z, of n's input sum, of n's state sum. h = (1 - z) n + z h0.
  */
  void (*gru)(int64_t n, int64_t hidden, void *s, const void *u, const void *bias, const void *h0, void *h);
  /* dh + gy: gradient of h; dh becomes the part that reaches h0 through z. dx, du: the gradients of the sums s and u. */
  void (*gru_grad)(int64_t n, int64_t hidden, const void *s, const void *h0, const void *gy, void *dh, void *dx, void *du);
  /* y = tanh(y + bias), or the positive part */
  void (*rnn)(int64_t n, void *y, const void *bias, int relu);
  void (*rnn_grad)(int64_t n, const void *y, const void *dh, const void *gy, int relu, void *d);
  /* to: [columns, rows] with row stride ldt = from: [rows, columns] transposed */
  void (*transpose)(int64_t rows, int64_t columns, const void *from, int64_t ldf, void *to, int64_t ldt);
} rsi_rnn_loops;

typedef struct rsi_k_rnn { const rsi_rnn_loops *of[2]; } rsi_k_rnn;

#endif
