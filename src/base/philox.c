/*
** Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; 2011).
** Four words are a pure function of a 64-bit key and a 128-bit counter. Our counter has 64 bits: it fills the two low words,
** the two high words are zero; low halves come first. So any thread can make any block without knowing of the others.
*/
#include "base/base.h"

enum { ROUNDS = 10 };

static const uint32_t multiplier[2] = {0xD2511F53u, 0xCD9E8D57u};
static const uint32_t weyl[2]       = {0x9E3779B9u, 0xBB67AE85u};   /* golden ratio, sqrt(3) - 1: added to the key each round */

static void philox_4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < ROUNDS; round++) {
    const uint64_t p0 = (uint64_t)multiplier[0] * c0, p1 = (uint64_t)multiplier[1] * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += weyl[0];
    k1 += weyl[1];
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

void rsi_philox(uint64_t key, uint64_t counter, uint32_t out[4]) {
  const uint32_t words[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), 0, 0};
  const uint32_t keys[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
  philox_4x32(words, keys, out);
}

/* One step of splitmix64: a bijection, so different seeds give different keys, and near seeds give far ones. */
static uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

void rsi_rng_seed(rsi_rng *rng, uint64_t seed) {
  rng->key = mix(seed);
  rng->counter = 0;
}
