/*
** Matrix multiplication after Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", 2008).
**
** A tile of c, MR rows by two vectors, is summed in registers over a run of k (the micro-kernel). Around it: b is cut into
** blocks of KC x NC, a into MC x KC, so that what is read again lies in the cache that can keep it: a panel of b, KC x NR,
** in L1, the block of a in L2, the block of b in L3. A block is copied ("packed") into the order in which it is read, but only
** when that pays or when its rows cannot be loaded as vectors; the micro-kernel takes row strides, so either may stay in place.
**
** Shapes for which this is wasteful have paths of their own: one row or one column (bound by memory), and a x b^T with few
** rows, where dot products along k need no packing.
**
** Nothing is read or written outside the matrices: the last columns go through masked loads and stores.
** gemm_body.h holds the text for one element type and is included for float and for double.
*/
#include "kernels/gemm.h"
#include "kernels/bf16.h"
#include "kernels/gemm_amx.h"
#include "kernels/gemm_end.h"
#include <string.h>
#if RSI_ISA_LEVEL > 0
#include <immintrin.h>
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define ALWAYS static inline __attribute__((always_inline))

/* Rows of a tile: 2 * MR sums, two vectors of b and one of a fit in the registers (32, 16, 16). */
#if RSI_ISA_LEVEL == 2
enum { MR = 12, DOT_ROWS = 4 };
#elif RSI_ISA_LEVEL == 1
enum { MR = 6, DOT_ROWS = 2 };
#else
enum { MR = 4, DOT_ROWS = 2 };
#endif

/* Written out, so that every compiler sees constant subscripts and keeps the sums in registers. */
#if RSI_ISA_LEVEL == 2
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#elif RSI_ISA_LEVEL == 1
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#else
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3)
#endif

enum {
  VECTOR = RSI_LANES * 4,       /* bytes */
  DOT_K = 1024,                 /* of one run of dot products: four rows of b stay in L1 */
  GEMV_ROWS = 8,                /* rows of b that one row of c takes up at a time */
  KC = 384, MC = 144, NC = 1024,
  FETCH_K = 32,                 /* sums of fewer products do not wait for c */
  PAD = 16,                     /* between rows of a block that was copied: they fall on different sets of the cache */
  SET_BYTES = 2048,             /* rows at a distance that this divides fall on one set, or two */
  PACK_SIDE = 64, PACK_AREA = 65536,   /* a matrix this large is copied when it meets that many rows or columns */
  STACK = 4096                  /* bytes of scratch that a call takes from its own stack */
};

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* How much of k is summed at a time: equal runs of at most KC. */
static int64_t run_of(int64_t k) {
  const int64_t runs = (k + KC - 1) / KC;
  return runs < 2 ? k : round_up((k + runs - 1) / runs, 8);
}

/* Bytes of packed blocks. Few bytes come from the stack of the call, so that a small product asks for none. */
static size_t scratch(int64_t m, int64_t n, int64_t k, size_t item) {
  if (m <= 1 || n <= 1 || k <= 0) return 0;
  const int64_t width = round_up(smaller(n, NC), 2 * VECTOR / (int64_t)item), depth = run_of(k);
  const int64_t bytes = (width + round_up(smaller(m, MC), MR)) * (depth + PAD) * (int64_t)item;
  return bytes <= STACK ? 0 : (size_t)bytes;
}

#define T float
#define NAME(x) s##x
#define LANES RSI_LANES
#define FINISH RSI_ISA(rsi_gemm_end_f32)
#include "kernels/gemm_body.h"
#include "kernels/gemm_panels.h"
#undef FINISH
#undef T
#undef NAME
#undef LANES

#define T double
#define NAME(x) d##x
#define LANES (RSI_LANES / 2)
#define FINISH RSI_ISA(rsi_gemm_end_f64)
#include "kernels/gemm_body.h"
#undef FINISH
#undef T
#undef NAME
#undef LANES

extern const rsi_k_gemm RSI_ISA(rsi_k_gemm);
const rsi_k_gemm RSI_ISA(rsi_k_gemm) = {
  .sgemm = sgemm, .dgemm = dgemm, .sgemm_end = sgemm_end, .dgemm_end = dgemm_end,
  .f32_end = RSI_ISA(rsi_gemm_end_f32), .f64_end = RSI_ISA(rsi_gemm_end_f64), .scratch = scratch,
  .panels = spanels, .panels_bf16 = spanels_bf16, .pack_panels = spack_panels, .amx = &RSI_ISA(rsi_k_amx),
};
