/* Time for measuring: a clock that never goes back. */
#include "base/base.h"
#include <time.h>

double rs_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
