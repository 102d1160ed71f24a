/* Chooses among the tables that were compiled in (RSI_X86: all three, otherwise the portable one). */
#include "kernels/kernels.h"

extern const rsi_kernels rsi_kernels_baseline;
#ifdef RSI_X86
extern const rsi_kernels rsi_kernels_avx2, rsi_kernels_avx512;
#endif

const rsi_kernels *rsi_kernels_of(rsi_isa_level level) {
#ifdef RSI_X86
  if (level >= RSI_ISA_AVX512) return &rsi_kernels_avx512;
  if (level == RSI_ISA_AVX2) return &rsi_kernels_avx2;
#else
  (void)level;
#endif
  return &rsi_kernels_baseline;
}
