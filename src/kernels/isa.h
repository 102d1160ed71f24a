/* Names of one instruction set: RSI_ISA(f) is f_baseline, f_avx2 or f_avx512 after RSI_ISA_LEVEL. */
#ifndef RSI_ISA_H
#define RSI_ISA_H

#define RSI_ISA_JOIN_(name, suffix) name##_##suffix
#define RSI_ISA_JOIN(name, suffix) RSI_ISA_JOIN_(name, suffix)
#if RSI_ISA_LEVEL == 2
#define RSI_ISA(name) RSI_ISA_JOIN(name, avx512)
#elif RSI_ISA_LEVEL == 1
#define RSI_ISA(name) RSI_ISA_JOIN(name, avx2)
#else
#define RSI_ISA(name) RSI_ISA_JOIN(name, baseline)
#endif

/* Floats in a vector register of this instruction set. */
#if RSI_ISA_LEVEL == 2
#define RSI_LANES 16
#elif RSI_ISA_LEVEL == 1
#define RSI_LANES 8
#else
#define RSI_LANES 4
#endif

#endif
