/* Joins the loops of one instruction set. */
#include "kernels/kernels.h"
#include "kernels/isa.h"

extern const rsi_k_elementwise RSI_ISA(rsi_k_elementwise);
extern const rsi_k_reduce      RSI_ISA(rsi_k_reduce);
extern const rsi_k_gemm        RSI_ISA(rsi_k_gemm);
extern const rsi_k_norm        RSI_ISA(rsi_k_norm);
extern const rsi_k_conv        RSI_ISA(rsi_k_conv);
extern const rsi_k_optim       RSI_ISA(rsi_k_optim);
extern const rsi_k_activation  RSI_ISA(rsi_k_activation);
extern const rsi_k_rms         RSI_ISA(rsi_k_rms);
extern const rsi_k_rnn         RSI_ISA(rsi_k_rnn);
extern const rsi_k_attention   RSI_ISA(rsi_k_attention);
extern const rsi_k_block_norm  RSI_ISA(rsi_k_block_norm);
extern const rsi_k_block_pool  RSI_ISA(rsi_k_block_pool);
extern const rsi_k_winograd    RSI_ISA(rsi_k_winograd);
extern const rsi_k_winograd_split RSI_ISA(rsi_k_winograd_split);
extern const rsi_k_depthwise   RSI_ISA(rsi_k_depthwise);
extern const rsi_k_conv_first  RSI_ISA(rsi_k_conv_first);
extern const rsi_k_conv_point  RSI_ISA(rsi_k_conv_point);
extern const rsi_k_split_conv  RSI_ISA(rsi_k_split_conv);
extern const rsi_k_split       RSI_ISA(rsi_k_split);
extern const rsi_k_split_strips RSI_ISA(rsi_k_split_strips);
extern const rsi_k_split_wgrad RSI_ISA(rsi_k_split_wgrad);
extern const rsi_kernels       RSI_ISA(rsi_kernels);

const rsi_kernels RSI_ISA(rsi_kernels) = {
  .level = (rsi_isa_level)RSI_ISA_LEVEL,
  .elementwise = &RSI_ISA(rsi_k_elementwise),
  .reduce = &RSI_ISA(rsi_k_reduce),
  .gemm = &RSI_ISA(rsi_k_gemm),
  .norm = &RSI_ISA(rsi_k_norm),
  .conv = &RSI_ISA(rsi_k_conv),
  .optim = &RSI_ISA(rsi_k_optim),
  .rnn = &RSI_ISA(rsi_k_rnn),
  .attention = &RSI_ISA(rsi_k_attention),
  .activation = &RSI_ISA(rsi_k_activation),
  .rms = &RSI_ISA(rsi_k_rms),
  .block_norm = &RSI_ISA(rsi_k_block_norm),
  .block_pool = &RSI_ISA(rsi_k_block_pool),
  .winograd = &RSI_ISA(rsi_k_winograd),
  .winograd_split = &RSI_ISA(rsi_k_winograd_split),
  .depthwise = &RSI_ISA(rsi_k_depthwise),
  .conv_first = &RSI_ISA(rsi_k_conv_first),
  .conv_point = &RSI_ISA(rsi_k_conv_point),
  .split_conv = &RSI_ISA(rsi_k_split_conv),
  .split = &RSI_ISA(rsi_k_split),
  .split_strips = &RSI_ISA(rsi_k_split_strips),
  .split_wgrad = &RSI_ISA(rsi_k_split_wgrad),
};
