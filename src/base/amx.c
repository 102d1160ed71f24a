/*
** Whether this process may use the tiles of AMX. The system gives a process the room for them when it asks; that is asked once, and
** the answer, which never changes, is kept under pthread_once.
*/
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/base.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, OSXSAVE = 27, AMX_BF16 = 22, AMX_TILE = 24, AVX512_BF16 = 5, XCR0_TILES = 3 << 17 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool usable, splits;

static void ask(void) {
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << OSXSAVE)) return;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & XCR0_TILES) != XCR0_TILES) return;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << AMX_BF16) || !(d & 1u << AMX_TILE)) return;
  usable = syscall(SYS_arch_prctl, ARCH_REQUEST_PERMISSION, TILE_DATA) == 0;
  splits = usable && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << AVX512_BF16);
}

bool rsi_cpu_amx(void) {
  pthread_once(&once, ask);
  return usable;
}

bool rsi_cpu_split(void) {
  pthread_once(&once, ask);
  return splits;
}
#else
bool rsi_cpu_amx(void) { return false; }
bool rsi_cpu_split(void) { return false; }
#endif
