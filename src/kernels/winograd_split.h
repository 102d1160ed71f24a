/*
** Winograd's F(4x4, 3x3) (kernels/winograd.h) by split products on the tiles of AMX (kernels/split_tiles.h): the 36 products of matrices
** [tiles, channels] x [channels, results] take about half the time that FMA takes, and the error is half as large: root mean square, for
** normal data against f64, 4e-7 of the result for 64 channels, 7e-7 for 256. Only where rsi_cpu_split() and the level is AVX-512; elsewhere
** the functions are NULL.
**
** Tiles of the image are taken in parts, those of a part in strips of `rows`, at most 16. A run is 32 channels, a group 16 results.
**   v [36][strips][runs][RSI_SPLIT_RUN]   the points of a part, split where they are made
**   u [36][groups][runs][RSI_SPLIT_RUN]   the points of the filters
**   m [36][at_once][strips rows][16]      the products for some groups, to be transformed back
** A number of m, and so of y, is the same sum however tiles are cut into parts and groups into tasks. A tile of a group whose sums may be
** wrong (rsi_odd) is not stored but computed by FMA as direct sums of the plain weights.
*/
#ifndef RSI_K_WINOGRAD_SPLIT_H
#define RSI_K_WINOGRAD_SPLIT_H

#include "kernels/split_gemm.h"
#include "kernels/winograd.h"

/* At most: tiles of a part; runs, as many as one chain of sums may have; groups at once */
enum { RSI_WINOGRAD_PART = 64, RSI_WINOGRAD_RUNS = 16, RSI_WINOGRAD_AT_ONCE = 8 };

typedef struct rsi_winograd_split {
  rsi_winograd s;                /* `most` and `u` are not used */
  int64_t runs;                  /* of all channels */
  int64_t part, strips, rows;    /* tiles of a part, how they are cut */
  int64_t at_once;
  const uint16_t *u;
  bool far;                      /* u does not stay in the cache: it is asked for ahead of its use */
  rsi_winograd_filters f;        /* the plain weights */
} rsi_winograd_split;

/* Groups group.. of tiles first..end - 1. v: a part; m: rsi_winograd_m_room floats. */
typedef struct rsi_winograd_task {
  int64_t   first, end, group, groups;
  uint16_t *v;
  float    *m;
} rsi_winograd_task;

/* Elements of u and v, floats of m between points: a little more, so that they do not all fall into one set of the cache. */
static inline int64_t rsi_winograd_u_step(int64_t groups, int64_t runs) { return groups * runs * RSI_SPLIT_RUN + 32; }
static inline int64_t rsi_winograd_v_step(const rsi_winograd_split *z) { return z->strips * z->runs * RSI_SPLIT_RUN + 32; }
static inline int64_t rsi_winograd_m_step(const rsi_winograd_split *z) { return z->at_once * z->strips * z->rows * 16 + 16; }

/* Floats of m, whose place also serves for weights when tiles are computed again. */
static inline int64_t rsi_winograd_m_room(const rsi_winograd_split *z) {
  const int64_t m = RSI_WINOGRAD_POINTS * rsi_winograd_m_step(z), panel = z->s.groups_in * 16 * 9 * 16;
  return m > panel ? m : panel;
}

typedef struct rsi_k_winograd_split {
  /* Transforms the weights from run `run` to group `group` to their place in u. */
  void (*filters)(const rsi_winograd_filters *f, int64_t group, int64_t run, uint16_t *u);
  void (*task)(const rsi_winograd_split *z, const rsi_winograd_task *t);
} rsi_k_winograd_split;

#ifdef RSI_ISA_LEVEL
extern const rsi_k_winograd_split RSI_ISA(rsi_k_winograd_split);
#endif

#endif
