/*
** Random words in bulk: the same numbers as rsi_philox, computed for several counters at a time. The words of one block lie
** side by side in the result, so word i of the whole comes from block i / 4, whoever computes it.
*/
#include "kernels/elementwise.h"
#include "kernels/isa.h"
#include "kernels/row.h"
#include "kernels/vmath.h"

extern const rsi_k_random RSI_ISA(rsi_k_random);

enum { GROUP = 32 };   /* blocks computed together */

/* One round of Philox 4x32 on every column; c: [4][GROUP] */
static inline void philox_round(uint32_t c[4][GROUP], uint32_t k0, uint32_t k1) {
  RSI_LOOP for (int j = 0; j < GROUP; j++) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c[0][j], p1 = (uint64_t)0xCD9E8D57u * c[2][j];
    c[0][j] = (uint32_t)(p1 >> 32) ^ c[1][j] ^ k0;
    c[1][j] = (uint32_t)p1;
    c[2][j] = (uint32_t)(p0 >> 32) ^ c[3][j] ^ k1;
    c[3][j] = (uint32_t)p0;
  }
}

static void words(uint64_t key, uint64_t first, int64_t blocks, uint32_t *out) {
  _Alignas(64) uint32_t c[4][GROUP];
  for (int64_t at = 0; at < blocks; at += GROUP) {
    const int64_t count = blocks - at < GROUP ? blocks - at : GROUP;
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int j = 0; j < GROUP; j++) {
      const uint64_t counter = first + (uint64_t)(at + j);
      c[0][j] = (uint32_t)counter, c[1][j] = (uint32_t)(counter >> 32);
      c[2][j] = c[3][j] = 0;
    }
    for (int round = 0; round < 10; round++) {
      philox_round(c, k0, k1);
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    for (int64_t j = 0; j < count; j++)
      for (int w = 0; w < 4; w++) out[4 * (at + j) + w] = c[w][j];
  }
}

/*
** Box and Muller: the radius sqrt(-2 ln u) from the first word, u in (0, 1], and the angle 2 pi v from the second. The angle
** is taken from its signed fraction of a turn, so sin and cos need no further care.
*/
static void normal_f32(int64_t n, const uint32_t *word, float *out) {
  float even[RSI_ROW_BLOCK], odd[RSI_ROW_BLOCK];
  for (int64_t at = 0; at < n / 2; at += RSI_ROW_BLOCK) {
    const int64_t count = n / 2 - at < RSI_ROW_BLOCK ? n / 2 - at : RSI_ROW_BLOCK;
    const uint32_t *const w = word + 2 * at;
    RSI_LOOP for (int64_t i = 0; i < count; i++) {
      const float high = (float)(int32_t)(w[2 * i] >> 8), low = (float)(int32_t)(w[2 * i] & 255u);
      const float u = (high + low * 0.00390625f + 0.00390625f) * 5.96046448e-8f;   /* (word + 1) / 2^32 */
      const float angle = (float)(int32_t)w[2 * i + 1] * 1.46291808e-9f, radius = sqrtf(-2.0f * rsi_log_f32(u));
      even[i] = radius * rsi_v_cos(angle);
      odd[i] = radius * rsi_v_sin(angle);
    }
    for (int64_t i = 0; i < count; i++) {
      out[2 * (at + i)] = even[i];
      out[2 * (at + i) + 1] = odd[i];
    }
  }
}

static void fraction_f32(int64_t n, const uint32_t *word, float *out) {
  RSI_LOOP for (int64_t i = 0; i < n; i++) out[i] = (float)(int32_t)(word[i] >> 8) * 5.96046448e-8f;
}

const rsi_k_random RSI_ISA(rsi_k_random) = {.words = words, .normal_f32 = normal_f32, .fraction_f32 = fraction_f32};
