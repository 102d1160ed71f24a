/* The machine's f32 peak: multiply-adds on registers only. usage: peak THREADS SECONDS. Prints GFLOP/s of all threads together.
 *
 * Each thread has CHAINS independent sums of one vector register each: enough to fill two units of four or five cycles' latency. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifdef __AVX512F__
enum { LANES = 16, CHAINS = 24 };
#elif defined __AVX__
enum { LANES = 8, CHAINS = 12 };
#else
enum { LANES = 4, CHAINS = 12 };
#endif
enum { STEPS = 100000, MOST = 256 };
#ifdef __AVX512F__
#define OPERAND "+v"
#else
#define OPERAND "+x"
#endif
typedef float vec __attribute__((vector_size(LANES * sizeof(float))));

typedef struct { double seconds, gflops; float sum; } work;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The sums stay in registers: the loops over CHAINS are unrolled, and the compiler is told that each sum may have changed. */
static void steps(vec *sums, vec a, vec b) {
  vec s[CHAINS];
#pragma GCC unroll 32
  for (int i = 0; i < CHAINS; i++) s[i] = sums[i];
  for (int n = 0; n < STEPS; n++) {
#pragma GCC unroll 32
    for (int i = 0; i < CHAINS; i++) {
      s[i] = s[i] * a + b;
      __asm__ volatile("" : OPERAND (s[i]));
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < CHAINS; i++) sums[i] = s[i];
}

static void *run(void *argument) {
  work *w = argument;
  vec sums[CHAINS] = {{0}}, a, b;
  for (int i = 0; i < LANES; i++) a[i] = 0.999f, b[i] = 1e-3f * (float)i;
  steps(sums, a, b);
  double begin = now(), end = begin, count = 0;
  while (end - begin < w->seconds) {
    steps(sums, a, b);
    count += 2.0 * STEPS * CHAINS * LANES;
    end = now();
  }
  w->gflops = count / (end - begin) * 1e-9;
  for (int i = 0; i < CHAINS; i++) w->sum += sums[i][0];
  return NULL;
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1;
  static work works[MOST];
  static pthread_t ids[MOST];
  if (threads < 1 || threads > MOST) return 1;
  for (int i = 0; i < threads; i++) {
    works[i].seconds = argc > 2 ? atof(argv[2]) : 0.5;
    if (pthread_create(&ids[i], NULL, run, &works[i]) != 0) return 1;
  }
  double total = 0;
  float sum = 0;
  for (int i = 0; i < threads; i++) {
    pthread_join(ids[i], NULL);
    total += works[i].gflops;
    sum += works[i].sum;
  }
  printf("%.1f\n", total);
  return sum == 1.5f;      /* the sums are used, so they are computed */
}
