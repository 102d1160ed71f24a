/* How the tiles of AMX are set up: all eight have 16 rows of 64 bytes. Only in files of level AVX-512. */
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

#endif
