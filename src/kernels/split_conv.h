/*
** Convolutions of f32 block images by split products (split_tiles.h), AVX-512 with the tiles of AMX only; elsewhere the functions are
** NULL. It is the product of a matrix of pixels and one of weights that is never unfolded: a task splits its part of the image, with
** the zeros around it, into
**   a: [runs of 32 channels][3 parts][positions][16 units of 32 bits]
** where unit i of run r holds channel i of blocks 2r and 2r + 1. Sixteen positions in a row are the rows of a tile, and a tap is only a
** distance from them. Positions are numbered in one of two ways.
**   by row    Rows of `pitch` positions; zeros on the right of a row are those on the left of the next. Of an image that is read in
**             steps each of the step_h * step_w images of every second row and column has places of its own, so that what a tile
**             reads always lies side by side. Some rows of a tile may belong to no result and are dropped.
**   by image  16 images side by side at each pixel: no zeros around the image, and taps outside it are left out. More than 16 lie
**             in sets, one after the other.
** Weights are tiles of b: [phases][pairs of blocks of results][runs][taps][blocks of the pair][RSI_RUN], so all that a chain reads lies in a
** row. (f32 weights that are split as they come into the cache are two thirds of the bytes, and were slower for all shapes tried.)
**
** In a program in bf16 (`half`) the same is done with one part: images are bf16 [n, h, w, channels], so 32 channels of a pixel are a row
** of a tile as they lie: unit i of run r holds channels 32r + 2i and 32r + 2i + 1. Where nothing is around the image, it is a (`in_place`).
** Weights are tiles of b: [phases][blocks of results][runs][taps][RSI_TILE].
**
** A gradient for x is the same with the images exchanged; when the convolution went in steps, the results of one phase, that is all
** of one remainder by the steps, are a convolution with the taps that meet them.
*/
#ifndef RSI_K_SPLIT_CONV_H
#define RSI_K_SPLIT_CONV_H

#include "base/base.h"

enum { RSI_SPLIT_TAPS = 64, RSI_SPLIT_PHASES = 4, RSI_SPLIT_CHAIN = 12, RSI_SPLIT_IMAGES = 16 };   /* CHAIN: runs that are summed at once */

/* Grid point (i, j) reads pixel (i * step_h + y, j * step_w + x) and multiplies it with weight number `index` of a filter. */
typedef struct rsi_split_tap { int64_t y, x, index; } rsi_split_tap;

/* Grid point (i, j) of this phase, i < down and j < across, is pixel (i * over_h + y, j * over_w + x) of the result. */
typedef struct rsi_split_phase {
  int64_t first, taps;             /* of tap[] */
  int64_t down, across, y, x;
  int64_t b;                       /* where its weights begin in b: elements */
} rsi_split_phase;

typedef struct rsi_split_conv {
  int64_t n, h, w, oh, ow;         /* of the image that is read and of the result */
  int64_t in, out, groups_in, groups_out, runs;   /* channels, their blocks of 16, pairs of blocks */
  int64_t step_h, step_w, over_h, over_w;
  int64_t down, across;            /* the largest of the phases' */
  int64_t phases;
  rsi_split_phase phase[RSI_SPLIT_PHASES];
  rsi_split_tap   tap[RSI_SPLIT_TAPS];
  bool    by_image, flat;          /* flat: one tap on every pixel; then the image has one column */
  bool    streams, deep;           /* the weights do not stay in the cache; chunks of runs go outside, blocks of the result inside */
  int64_t chunk, kept;             /* runs of a chunk, at most; those that are in a at a time, run r at place r % kept: all, or, deep, a chunk's */
  int64_t beside;                  /* runs of a chunk of a task's first blocks, if the image is split beside their products; 0: before */
  int64_t acc_groups;              /* blocks of sums that are kept from chunk to chunk: an even number, or none */
  bool    skips;                   /* pixels outside the image take no part; otherwise they are zeros */
  int64_t low_y, low_x, far_y;     /* the least offsets of taps; how many more rows of an image in steps than of the grid are read */
  int64_t pitch, columns;          /* positions from row to row; those of a row with all its zeros */
  int64_t sub[4], subs, each;      /* which of the images in steps are read (their number or -1), how many; positions of each */
  int64_t positions;               /* of a part */
  int64_t parts;                   /* 3, or 1: half */
  bool    half, in_place;
  bool    fresh;                   /* half: b is NULL, a task packs the weights of a pair of blocks when it comes to them */
  int64_t weight_in, weight_out;   /* distances in w of channels of x and of y */
  int64_t tiles, strips;           /* of a phase in a task, at most; pieces of rows that a task splits, at most */
  const void *x, *residual;        /* residual as y, may be y; NULL: none */
  const float *weight, *bias;      /* bias: groups_out * 16; NULL: none */
  const uint16_t *b;
  void *y;                         /* y = clamp(conv + bias + residual, low, high), but NaN stays NaN */
  float low, high;
} rsi_split_conv;

typedef struct rsi_k_split_conv {
  size_t (*scratch)(const rsi_split_conv *s);      /* bytes of scratch of a task, a multiple of 64; it is aligned to as many */
  /* Weights of one block of results for one run, of all phases; a filter has `taps` taps. scratch: 512 * taps floats. */
  void (*pack)(const rsi_split_conv *s, int64_t group, int64_t run, int64_t taps, uint16_t *b, float *scratch);
  /* Rows first.. of the grids of all images, counted through; by image: images. Blocks group..group + groups - 1 of the result. */
  void (*task)(const rsi_split_conv *s, int64_t first, int64_t rows, int64_t group, int64_t groups, char *scratch);
} rsi_k_split_conv;

#ifdef RSI_ISA_LEVEL
#include "kernels/isa.h"
extern const rsi_k_split_conv RSI_ISA(rsi_k_split_conv);
#endif

#endif
