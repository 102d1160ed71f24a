/* bf16 is the upper half of a float. Rounds to nearest, ties to even; NaN stays NaN. */
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

static inline uint16_t rsi_to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  const uint32_t rounded = u + 0x7FFFu + ((u >> 16) & 1u);
  return (uint16_t)((x != x ? u | 0x400000u : rounded) >> 16);
}

#endif
