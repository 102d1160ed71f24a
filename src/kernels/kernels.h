/*
** Loops that are compiled once per instruction set. Each src/kernels/NAME.c is compiled three times with RSI_ISA_LEVEL set and
** defines one constant table `RSI_ISA(rsi_k_NAME)` of function pointers, whose type is in NAME.h; table.c joins them. The loops
** are plain C that the compiler vectorises, so baseline is also the portable form and the oracle for the others.
*/
#ifndef RSI_KERNELS_H
#define RSI_KERNELS_H

#include "base/base.h"
#include "kernels/elementwise.h"
#include "kernels/reduce.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/conv.h"
#include "kernels/optim.h"
#include "kernels/rnn.h"
#include "kernels/attention.h"
#include "kernels/activation.h"
#include "kernels/rms.h"
#include "kernels/block_norm.h"
#include "kernels/block_pool.h"
#include "kernels/winograd.h"
#include "kernels/winograd_split.h"
#include "kernels/depthwise.h"
#include "kernels/conv_first.h"
#include "kernels/conv_point.h"
#include "kernels/split_conv.h"
#include "kernels/split_gemm.h"
#include "kernels/split_strips.h"
#include "kernels/split_wgrad.h"

typedef struct rsi_kernels {
  rsi_isa_level             level;
  const rsi_k_elementwise  *elementwise;
  const rsi_k_reduce       *reduce;
  const rsi_k_gemm         *gemm;
  const rsi_k_norm         *norm;
  const rsi_k_conv         *conv;
  const rsi_k_optim        *optim;
  const rsi_k_rnn          *rnn;
  const rsi_k_attention    *attention;
  const rsi_k_activation   *activation;
  const rsi_k_rms          *rms;
  const rsi_k_block_norm   *block_norm;
  const rsi_k_block_pool   *block_pool;
  const rsi_k_winograd     *winograd;
  const rsi_k_winograd_split *winograd_split;
  const rsi_k_depthwise    *depthwise;
  const rsi_k_conv_first   *conv_first;
  const rsi_k_conv_point   *conv_point;
  const rsi_k_split_conv   *split_conv;
  const rsi_k_split        *split;
  const rsi_k_split_strips *split_strips;
  const rsi_k_split_wgrad  *split_wgrad;
} rsi_kernels;

/* The table of a level; falls back to the next lower one that is compiled in. */
const rsi_kernels *rsi_kernels_of(rsi_isa_level level);

#endif
