/*
** What the processor and the system can run.
** A level counts only when the processor has every instruction set that its kernels are compiled with, and the system saves
** the registers they use. Nothing is kept: CPUID is slow in a virtual machine, so ask once per context.
*/
#include "base/base.h"

const char *rsi_isa_level_name(rsi_isa_level level) {
  switch (level) {
    case RSI_ISA_BASELINE: return "baseline";
    case RSI_ISA_AVX2:     return "avx2";
    case RSI_ISA_AVX512:   return "avx512";
    case RSI_ISA_LEVELS:   break;
  }
  return "?";
}

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

#define BIT(n) (1u << (n))

enum { XCR0_AVX = 0x06, XCR0_AVX512 = 0xE6 };   /* SSE and AVX state; the same, with mask and upper registers */

/* The state that the system saves. Legal only when CPUID reports OSXSAVE. */
static unsigned xcr0(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

rsi_isa_level rsi_cpu_best(void) {
  const unsigned leaf1 = BIT(12) | BIT(27) | BIT(28) | BIT(29);       /* ecx: FMA, OSXSAVE, AVX, F16C */
  const unsigned avx512 = BIT(16) | BIT(17) | BIT(30) | BIT(31);      /* ebx of leaf 7: F, DQ, BW, VL */
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1) != leaf1) return RSI_ISA_BASELINE;
  const unsigned state = xcr0();
  if ((state & XCR0_AVX) != XCR0_AVX) return RSI_ISA_BASELINE;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & BIT(5))) return RSI_ISA_BASELINE;   /* AVX2 */
  if ((b & avx512) != avx512 || (state & XCR0_AVX512) != XCR0_AVX512) return RSI_ISA_AVX2;
  return RSI_ISA_AVX512;
}
#else
rsi_isa_level rsi_cpu_best(void) { return RSI_ISA_BASELINE; }
#endif
