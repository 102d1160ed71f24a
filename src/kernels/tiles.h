/* What all loops over the tiles of AMX share: how tiles are set up, 16 rows of 64 bytes each, and moving units into them. Only in files
** of level AVX-512. */
#ifndef RSI_K_TILES_H
#define RSI_K_TILES_H

#include <immintrin.h>
#include <stdint.h>

typedef struct rsi_tile_config {
  uint8_t  palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t  rows[16];
} rsi_tile_config;

/* A constant: compilers do not know that the instruction reads all of it, and drop stores to a local one. */
static const rsi_tile_config rsi_tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* Before the first product of a task; _tile_release() after the last. */
__attribute__((target("amx-tile"), always_inline)) static inline void rsi_tiles_begin(void) { _tile_loadconfig(&rsi_tiles); }

/*
** One addition of floats. Measured: where a core runs tiles and nothing else on floats for half a microsecond, the next store of a tile takes
** 270 ns longer, as if the vector units had been put to sleep; one such instruction for each run prevents it.
*/
static inline __attribute__((always_inline)) void rsi_stay_awake(void) {
  __m256 zero = _mm256_setzero_ps();
  __asm__ volatile("vaddps %0, %0, %0" : "+x"(zero));
}

/* v: 16 rows of 16 units of 32 bits, becomes its transpose. */
__attribute__((always_inline)) static inline void rsi_transpose_units(__m512i v[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int h = 0; h < 2; h++) {
      v[i + 2 * h] = _mm512_unpacklo_epi64(t[i + h], t[i + 2 + h]);
      v[i + 2 * h + 1] = _mm512_unpackhi_epi64(t[i + h], t[i + 2 + h]);
    }
  for (int h = 0; h < 2; h++)
    for (int i = 0; i < 4; i++) {
      t[8 * h + i] = _mm512_shuffle_i32x4(v[8 * h + i], v[8 * h + 4 + i], 0x88);
      t[8 * h + 4 + i] = _mm512_shuffle_i32x4(v[8 * h + i], v[8 * h + 4 + i], 0xDD);
    }
  for (int i = 0; i < 4; i++) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    v[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    v[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xDD);
    v[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xDD);
  }
}

#endif
