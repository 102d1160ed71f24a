/*
** Steps of the optimisers. Each is one sweep that reads and writes every array once; what does not depend on the element is
** computed before, in f64.
*/
#include "kernels/optim.h"
#include "kernels/isa.h"
#include <math.h>

/*
** g' = sign g + weight_decay p;  buffer = momentum buffer + (1 - dampening) g', at first buffer = g';
** d = nesterov ? g' + momentum buffer : buffer (g' without momentum);  p = p - lr d.
** The weights turn every case into one of three loops.
*/
#define SGD(T, tag)                                                                                                         \
  static void sgd_##tag(void *pp, const void *pg, void *pb, int64_t n, const rsi_sgd *a) {                                  \
    T *const restrict p = pp, *const restrict b = pb;                                                                       \
    const T *const restrict g = pg;                                                                                         \
    const T sign = a->maximize ? -1 : 1, decay = (T)a->weight_decay, lr = (T)a->lr;                                         \
    const T m = (T)a->momentum, take = (T)(1.0 - a->dampening);                                                           \
    if (!b)                                                                                                                 \
      for (int64_t i = 0; i < n; i++) p[i] -= lr * (sign * g[i] + decay * p[i]);                                            \
    else if (a->first)                                                                                                      \
      for (int64_t i = 0; i < n; i++) {                                                                                     \
        const T d = sign * g[i] + decay * p[i];                                                                             \
        b[i] = d;                                                                                                           \
        p[i] -= lr * (a->nesterov ? d + m * d : d);                                                                         \
      }                                                                                                                     \
    else if (a->nesterov)                                                                                                   \
      for (int64_t i = 0; i < n; i++) {                                                                                     \
        const T d = sign * g[i] + decay * p[i], next = m * b[i] + take * d;                                              \
        b[i] = next;                                                                                                        \
        p[i] -= lr * (d + m * next);                                                                                        \
      }                                                                                                                     \
    else                                                                                                                    \
      for (int64_t i = 0; i < n; i++) {                                                                                     \
        const T next = m * b[i] + take * (sign * g[i] + decay * p[i]);                                                   \
        b[i] = next;                                                                                                        \
        p[i] -= lr * next;                                                                                                  \
      }                                                                                                                     \
  }

/*
** g' = sign g + weight_decay p (decoupled: p = p - lr weight_decay p instead);  m = m + (1 - beta1) (g' - m);
** v = beta2 v + (1 - beta2) g'^2;  p = p - lr / correction1 m / (sqrt(v / correction2) + eps).
*/
#define ADAM(T, tag, SQRT)                                                                                                  \
  static void adam_##tag(void *pp, const void *pg, void *pm, void *pv, int64_t n, const rsi_adam *a) {                      \
    T *const restrict p = pp, *const restrict m = pm, *const restrict v = pv;                                               \
    const T *const restrict g = pg;                                                                                         \
    const T sign = a->maximize ? -1 : 1, decay = a->decoupled ? 0 : (T)a->weight_decay;                                     \
    const T shrink = a->decoupled ? (T)(1.0 - a->lr * a->weight_decay) : 1;                                                 \
    const T take1 = (T)(1.0 - a->beta1), keep2 = (T)a->beta2, take2 = (T)(1.0 - a->beta2), eps = (T)a->eps;                 \
    const T step = (T)(a->lr / a->correction1), root = (T)(1.0 / sqrt(a->correction2));                                     \
    for (int64_t i = 0; i < n; i++) {                                                                                       \
      const T old = p[i], d = sign * g[i] + decay * old, m1 = m[i] + take1 * (d - m[i]), v1 = keep2 * v[i] + take2 * d * d; \
      m[i] = m1;                                                                                                            \
      v[i] = v1;                                                                                                            \
      p[i] = shrink * old - step * m1 / (SQRT(v1) * root + eps);                                                            \
    }                                                                                                                       \
  }

SGD(float, f32)
SGD(double, f64)
ADAM(float, f32, sqrtf)
ADAM(double, f64, sqrt)

extern const rsi_k_optim RSI_ISA(rsi_k_optim);
const rsi_k_optim RSI_ISA(rsi_k_optim) = {.sgd = {sgd_f32, sgd_f64}, .adam = {adam_f32, adam_f64}};
