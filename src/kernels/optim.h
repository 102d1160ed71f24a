/* Steps of the optimisers on n elements that lie side by side. One set per element type: f32, f64. */
#ifndef RSI_K_OPTIM_H
#define RSI_K_OPTIM_H

#include "base/base.h"

typedef struct rsi_sgd {
  double lr, momentum, dampening, weight_decay;
  bool   nesterov, maximize, first;      /* first: the buffer has no content yet and becomes the gradient */
} rsi_sgd;

typedef struct rsi_adam {
  double lr, beta1, beta2, eps, weight_decay;
  double correction1, correction2;       /* 1 - beta^step */
  bool   decoupled, maximize;
} rsi_adam;

/* p: parameters, g: their gradients, buffer: momentum or NULL */
typedef void (*rsi_sgd_fn)(void *p, const void *g, void *buffer, int64_t n, const rsi_sgd *a);
/* m, v: running means of the gradient and of its square */
typedef void (*rsi_adam_fn)(void *p, const void *g, void *m, void *v, int64_t n, const rsi_adam *a);

typedef struct rsi_k_optim {
  rsi_sgd_fn  sgd[2];
  rsi_adam_fn adam[2];
} rsi_k_optim;

#endif
