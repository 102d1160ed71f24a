/*
** OpenBLAS, loaded when a kernel first asks for it: a program that never does has none of its threads and none of its memory.
**
** Debian's usual build keeps worker threads of its own. They would make results depend on their number and compete with our
** pool, so OpenBLAS is told to use one thread as soon as it is loaded. That setting belongs to the process: a host that uses
** the same library itself, in parallel, has to set its number of threads again after our first use (openblas_set_num_threads).
** The state below is written once, under pthread_once, and only read from then on.
*/
#include "backend/backend.h"

#ifdef RSI_WITH_BLAS
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>

/* Of cblas.h: row-major order, and whether a matrix is transposed. */
enum { ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112 };
typedef void (*sgemm_fn)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                         int ldb, float beta, float *c, int ldc);
typedef void (*dgemm_fn)(int order, int ta, int tb, int m, int n, int k, double alpha, const double *a, int lda, const double *b,
                         int ldb, double beta, double *c, int ldc);
typedef void (*threads_fn)(int n);

static pthread_once_t once = PTHREAD_ONCE_INIT;
static sgemm_fn sgemm;
static dgemm_fn dgemm;     /* set last: not NULL means that all is there */

/* A function of the library; false when it has none of that name. ISO C has no cast from void * to a function. */
static bool find(void *library, const char *name, void *fn, size_t size) {
  void *const symbol = dlsym(library, name);
  if (symbol) memcpy(fn, &symbol, size);
  return symbol != NULL;
}

static void load(void) {
  static const char *const names[] = {"libopenblas.so.0", "libopenblas.so"};
  void *library = NULL;
  threads_fn set_threads;
  dgemm_fn d;
  for (size_t i = 0; i < sizeof names / sizeof names[0] && !library; i++) library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
  if (!library) return;
  if (find(library, "cblas_sgemm", &sgemm, sizeof sgemm) && find(library, "cblas_dgemm", &d, sizeof d) &&
      find(library, "openblas_set_num_threads", &set_threads, sizeof set_threads)) {
    set_threads(1);
    dgemm = d;
    return;
  }
  dlclose(library);
}

bool rsi_blas_available(void) {
  pthread_once(&once, load);
  return dgemm != NULL;
}

bool rsi_blas_fits(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc) {
  const int64_t most = INT_MAX;
  return m <= most && n <= most && k <= most && lda <= most && ldb <= most && ldc <= most;
}

void rsi_blas_sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                    int beta, float *c, int64_t ldc) {
  sgemm(ROW_MAJOR, ta ? TRANSPOSED : AS_IT_IS, tb ? TRANSPOSED : AS_IT_IS, (int)m, (int)n, (int)k, 1.0f, a, (int)lda, b, (int)ldb,
        beta ? 1.0f : 0.0f, c, (int)ldc);
}

void rsi_blas_dgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda, const double *b, int64_t ldb,
                    int beta, double *c, int64_t ldc) {
  dgemm(ROW_MAJOR, ta ? TRANSPOSED : AS_IT_IS, tb ? TRANSPOSED : AS_IT_IS, (int)m, (int)n, (int)k, 1.0, a, (int)lda, b, (int)ldb,
        beta ? 1.0 : 0.0, c, (int)ldc);
}


#else

/* Left out of this build: no kernel accepts, so nothing below is called but the first. */
bool rsi_blas_available(void) { return false; }

bool rsi_blas_fits(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc) {
  (void)m, (void)n, (void)k, (void)lda, (void)ldb, (void)ldc;
  return false;
}

void rsi_blas_sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                    int beta, float *c, int64_t ldc) {
  (void)ta, (void)tb, (void)m, (void)n, (void)k, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c, (void)ldc;
}

void rsi_blas_dgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda, const double *b, int64_t ldb,
                    int beta, double *c, int64_t ldc) {
  (void)ta, (void)tb, (void)m, (void)n, (void)k, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c, (void)ldc;
}

#endif
