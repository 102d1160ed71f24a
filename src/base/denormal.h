/*
** Numbers below the smallest normal one cost the processor a hundred times as much as others. Where a loop would carry them along
** for thousands of rounds (moments of an optimiser that decay), they are taken as 0 while it runs; the mode of the host is put back.
*/
#ifndef RSI_DENORMAL_H
#define RSI_DENORMAL_H

#if defined(__SSE__)
#include <xmmintrin.h>
typedef unsigned rsi_float_mode;
static inline rsi_float_mode rsi_flush_begin(void) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040u);        /* results to 0, operands as 0 */
  return before;
}
static inline void rsi_flush_end(rsi_float_mode before) { _mm_setcsr(before); }
#else
typedef int rsi_float_mode;
static inline rsi_float_mode rsi_flush_begin(void) { return 0; }
static inline void rsi_flush_end(rsi_float_mode before) { (void)before; }
#endif

#endif
