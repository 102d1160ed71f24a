/* bf16 is the upper half of a float. */
#ifndef RSI_K_BF16_H
#define RSI_K_BF16_H

#include <stdint.h>
#include <string.h>

static inline float rsi_from_bf16(uint16_t x) {
  const uint32_t u = (uint32_t)x << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

/*
** To nearest, ties to even. A NaN stays one if its lower half is not all ones or nearly so: that holds for what processors make, and
** for results computed from bf16, from other finite numbers and from NaN as rsi_plain_nan leaves it.
*/
static inline uint16_t rsi_to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

static inline float rsi_plain_nan(float x) { return x == x ? x : __builtin_nanf(""); }

#endif
