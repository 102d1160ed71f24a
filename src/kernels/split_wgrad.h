/*
** The gradient of a convolution's weight on tiles (kernels/split_tiles.h): from f32 block images [N, G, H, W, 16] by split products, three
** parts of each number, and from bf16 images [N, H, W, C], where a number is its only part:
** dw[o, i, r, c] = the sum over images and pixels p of dy[p, o] x[p * stride + (r, c) * dilation - padding, i].
**
** The steps of k that make a run lie in different places, all at the same pixel: every image is cut into bands_h x bands_w bands of
** rows x columns pixels of dy, the bands of all images are numbered (members), and a run is one pixel of 32 members. So the tile of
** a tap is that of another pixel, whatever the stride, and nothing is copied twice. What a member sees of x is its window, whose
** pixel (j, k) is row (band_h * rows * step_h + j) * unit_h - before_h of the image, and so on; outside the image there are zeros.
** With one band down (across) all members have the same edges, and products beyond them are left out.
**
** A chunk is some rows of all bands. Split pixels: of dy two pairs of blocks of a chunk, one that is multiplied and the next one,
** [2][2][chunk][columns][pixel]; of x [blocks][ring][win_w][pixel] (rsi_wgrad_pixel), where row j of the windows lies at j % ring, and
** there is room for the rows that the next chunk adds. Blocks are those of 16 channels in either form of images.
*/
#ifndef RSI_K_SPLIT_WGRAD_H
#define RSI_K_SPLIT_WGRAD_H

#include "base/base.h"
#include "kernels/split_tiles.h"

enum {
  RSI_WGRAD_STAGE = 16,                /* pixels that are transposed at a time */
  RSI_WGRAD_SUMS  = 4 * RSI_SIDE * RSI_SIDE   /* of a pair of blocks of dy with a pair of blocks of x at a tap */
};

/* Bytes from one image, block of channels and pixel to the next; `channels` of them exist. */
typedef struct rsi_wgrad_image {
  const char *data;
  int64_t channels, image, block, pixel;
} rsi_wgrad_image;

typedef struct rsi_split_wgrad {
  rsi_wgrad_image x, dy;
  int64_t parts;                       /* RSI_PARTS: f32; 1: bf16 */
  int64_t n, in, out;                  /* images; blocks of channels of x and of dy */
  int64_t h, w, oh, ow, kh, kw;
  int64_t before_h, before_w;          /* padding */
  int64_t bands_h, bands_w, rows, columns, groups;   /* groups of 32 members */
  int64_t unit_h, unit_w;              /* pixels of x from one of a window to the next */
  int64_t step_h, step_w, tap_h, tap_w;   /* pixels of a window from one of dy to the next; from one tap to the next */
  int64_t win_h, win_w;
  int64_t chunk, chunks, ring;         /* rows of dy at a time, how many times a group has that, rows of windows that are kept */
} rsi_split_wgrad;

/* A piece of the work: blocks o0..o1 - 1 of dy and i0..i1 - 1 of x, chunks first..last - 1 (numbered over the groups). */
typedef struct rsi_wgrad_piece { int64_t o0, o1, i0, i1, first, last; } rsi_wgrad_piece;

/* The pixels of a chunk that belong to a tap. */
typedef struct rsi_wgrad_area {
  int64_t rows, columns;
  int64_t a, b;                        /* where the first is, from the beginning of a block of dy, and of a row of a block of x */
  int64_t line;                        /* the row of that block's ring */
} rsi_wgrad_area;

static inline int64_t rsi_wgrad_pairs(int64_t blocks) { return (blocks + 1) / 2; }

/* Floats of the sums of a piece: [pairs of blocks of dy][pairs of blocks of x][taps][2][2][16][16]. */
static inline int64_t rsi_wgrad_sums(const rsi_split_wgrad *s, int64_t out, int64_t in) {
  return rsi_wgrad_pairs(out) * rsi_wgrad_pairs(in) * s->kh * s->kw * RSI_WGRAD_SUMS;
}

/* bf16 of a split pixel of 16 channels and 32 members: a run, and a line of the cache apart. */
static inline int64_t rsi_wgrad_pixel(int64_t parts) { return parts * RSI_TILE + 32; }

/* Split pixels of dy and of x that a piece keeps, in bytes. */
static inline int64_t rsi_wgrad_split_bytes(const rsi_split_wgrad *s, int64_t in) {
  return (4 * s->chunk * s->columns + in * s->ring * s->win_w) * rsi_wgrad_pixel(s->parts) * (int64_t)sizeof(uint16_t);
}

/* Bytes of scratch for pieces of so many blocks of x. */
static inline size_t rsi_wgrad_scratch(const rsi_split_wgrad *s, int64_t in) {
  return (size_t)rsi_wgrad_split_bytes(s, in) + (size_t)(s->kh * s->kw) * sizeof(rsi_wgrad_area) +
         (size_t)(RSI_DEEP * (RSI_WGRAD_STAGE + 1) * RSI_SIDE + RSI_SIDE * RSI_DEEP + RSI_WGRAD_SUMS) * sizeof(float);
}

typedef struct rsi_k_split_wgrad {
  void (*sum)(const rsi_split_wgrad *s, const rsi_wgrad_piece *p, float *sums, void *scratch);
  /* Block `o` of dy of a piece: adds the sums of `parts` pieces that differ in their chunks, `part` floats apart, and writes them to
     dw: [filters, channels, taps]. Whether a sum was odd (rsi_odd; of bf16: not finite, as products with zeros beyond edges may be). */
  bool (*finish)(const rsi_split_wgrad *s, const rsi_wgrad_piece *p, int64_t o, int64_t parts, int64_t part, const float *sums,
                 float *dw);
} rsi_k_split_wgrad;

#ifdef RSI_ISA_LEVEL
extern const rsi_k_split_wgrad RSI_ISA(rsi_k_split_wgrad);
#endif

#endif
