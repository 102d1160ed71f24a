/*
** What the decision on threads rests on: two threads of our pool, with oneDNN single-threaded on slices, beside two OpenMP threads.
** First a job that does nothing, then those of threads_work.h, whose results are compared. Back to back ("hot") and after a pause;
** with the second core to ourselves, and with another process that never sleeps pinned to it. All run in turn, in short blocks, and
** rounds in which others took the processor are repeated, some times. Printed are the median and the mean of a block (the least, or
** with a busy core the middle one of the blocks') and the 99th percentile of all samples, in microseconds.
**
**   threads [blocks]       prints the tables of docs/performance.md, "Threads"; about 20 s for each block
*/
#include "base/base.h"
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef RSI_WITH_ONEDNN
int main(void) { return puts("threads: built without oneDNN, so there is nothing to compare") < 0; }
#else
#include "threads_work.h"

/* libgomp's. GOMP_parallel is what gcc makes of `#pragma omp parallel`; so any compiler measures the same. */
extern void GOMP_parallel(void (*job)(void *), void *arg, unsigned threads, unsigned flags);
extern void omp_set_num_threads(int threads);

enum { MOST_BLOCKS = 20, RETRIES = 15, HOT = 50000, COLD = 10, PAUSE_MS = 20, SETTLE_MS = 50, BUSY_SECONDS = 300 };
enum { ALONE_HOT, ALONE_COLD, SHARED_HOT, SHARED_COLD, STATES };   /* shared: the second core has another process */
static const double QUIET = 0.1;     /* processors that others may take from a block */
static const double HOT_NS = 5e7;                                 /* of a block */
static const char *const state_names[STATES] = {"hot", "after 20 ms", "busy second core, hot", "busy, after 20 ms"};

static double now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void rest(int ms) { nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL); }

/* ---- samples --------------------------------------------------------------------------------------------------------- */

/* All in ns. What was taken last becomes a block of the series when it is kept. cpu: of a sample and the pause before it. */
typedef struct series {
  double *all, median[MOST_BLOCKS], mean[MOST_BLOCKS], cpu[MOST_BLOCKS];
  int     n, taken, blocks;
} series;

/* One way to do a job, with so many OpenMP threads for the caller (1: our own threads must find oneDNN alone). */
typedef struct side { const char *name; void (*run)(void *); void *arg; int omp; series in[STATES]; } side;

static int by_size(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* One block of samples. libgomp's threads spin for milliseconds after a job: SETTLE_MS keeps them out of the next block. */
static void measure(side *s, int state) {
  series *const to = &s->in[state];
  const bool cold = state == ALONE_COLD || state == SHARED_COLD;
  if (to->all == NULL) to->all = malloc(sizeof *to->all * HOT * MOST_BLOCKS);
  if (to->all == NULL) die(s->name, "out of memory");
  double *const block = to->all + to->n;
  double sum = 0;
  int n = 0;
  rest(SETTLE_MS);
  omp_set_num_threads(s->omp);
  for (int i = 0; i < 3; i++) s->run(s->arg);
  const double start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
  while (n < (cold ? COLD : HOT) && (cold || n < 5 || now(CLOCK_MONOTONIC) - start < HOT_NS)) {
    if (cold) rest(PAUSE_MS);
    const double begin = now(CLOCK_MONOTONIC);
    s->run(s->arg);
    block[n] = now(CLOCK_MONOTONIC) - begin;
    sum += block[n++];
  }
  to->cpu[to->blocks] = (now(CLOCK_PROCESS_CPUTIME_ID) - cpu) / n;
  qsort(block, (size_t)n, sizeof *block, by_size);
  to->median[to->blocks] = block[n / 2], to->mean[to->blocks] = sum / n;
  to->taken = n;
}

static void keep(series *s) { s->n += s->taken, s->blocks++; }

/* Of the blocks: the least, where only others could disturb; the middle one, where disturbance is what is measured. */
static double figure(double *blocks, int n, int state) {
  qsort(blocks, (size_t)n, sizeof *blocks, by_size);
  return blocks[state >= SHARED_HOT ? n / 2 : 0] / 1e3;
}

static void print_cell(series *s, int state) {
  qsort(s->all, (size_t)s->n, sizeof *s->all, by_size);
  const double us[3] = {figure(s->median, s->blocks, state), figure(s->mean, s->blocks, state), s->all[(size_t)((double)s->n * 0.99)] / 1e3};
  for (int i = 0; i < 3; i++) printf("%s%.*f", i > 0 ? " / " : " ", us[i] < 10 ? 2 : 0, us[i]);
  printf(" |");
}

/* Processor time that was used since the machine started, but by us or our child, in ns. */
static double others(void) {
  double ticks[8] = {0};
  FILE *const f = fopen("/proc/stat", "r");
  if (f == NULL || fscanf(f, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &ticks[0], &ticks[1], &ticks[2], &ticks[3], &ticks[4], &ticks[5],
                          &ticks[6], &ticks[7]) != 8) die("/proc/stat", "cannot be read");
  fclose(f);
  const double busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6] + ticks[7];
  struct rusage child;
  getrusage(RUSAGE_CHILDREN, &child);
  const struct timeval *const u = &child.ru_utime, *const v = &child.ru_stime;
  const double its = (double)(u->tv_sec + v->tv_sec) * 1e9 + (double)(u->tv_usec + v->tv_usec) * 1e3;
  return busy / (double)sysconf(_SC_CLK_TCK) * 1e9 - now(CLOCK_PROCESS_CPUTIME_ID) - its;
}

static pid_t keep_busy(int core) {
  const pid_t child = fork();
  if (child != 0) return child;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)core, &set);
  alarm(BUSY_SECONDS);                                            /* should the parent die */
  if (sched_setaffinity(0, sizeof set, &set) != 0) _exit(1);
  for (volatile unsigned i = 0;; i++) {}
}

/* ---- a job that does nothing ----------------------------------------------------------------------------------------- */

typedef struct meeting { rsi_pool *pool; atomic_int came; } meeting;

static void nothing(void *arg) { (void)arg; }
static void no_chunk(void *arg, int64_t chunk) { (void)arg, (void)chunk; }

/* Ends only when both chunks are being run, so by two threads. */
static void meet(void *arg, int64_t chunk) {
  meeting *const m = arg;
  (void)chunk;
  atomic_fetch_add(&m->came, 1);
  for (long spins = 0; atomic_load(&m->came) < 2; spins++)
    if (spins > 2000000000L) die("pool", "its worker never came");
}

static void run_omp(void *arg) { GOMP_parallel(nothing, arg, 2, 0); }
static void run_pool(void *arg) { rsi_pool_run(((meeting *)arg)->pool, 2, no_chunk, NULL); }
static void run_meeting(void *arg) {
  meeting *const m = arg;
  atomic_store(&m->came, 0);
  rsi_pool_run(m->pool, 2, meet, m);
}

/* ---- all of it ------------------------------------------------------------------------------------------------------- */

enum { TASKS = sizeof tasks / sizeof *tasks, SIDES = 4, EMPTY = 3, ALL = EMPTY + TASKS * SIDES };
static const char *const side_names[SIDES] = {"oneDNN, 1 thread", "oneDNN, 2 OpenMP threads", "resin, 1 thread", "resin, 2 threads"};

static void print_tables(side *sides) {
  printf("| empty job, 2 threads |");
  for (int state = 0; state < STATES; state++) printf(" %s |", state_names[state]);
  printf(" processor time, pause of 20 ms included |\n|---|---|---|---|---|---|\n");
  for (int i = 0; i < EMPTY; i++) {
    printf("| %s |", sides[i].name);
    for (int state = 0; state < STATES; state++) print_cell(&sides[i].in[state], state);
    printf(" %.0f |\n", figure(sides[i].in[ALONE_COLD].cpu, sides[i].in[ALONE_COLD].blocks, ALONE_COLD));
  }
  for (int i = 0; i < TASKS; i++) {
    printf("\n| %s |", tasks[i].name);
    for (int k = 0; k < SIDES; k++) printf(" %s |", side_names[k]);
    printf("\n|---|---|---|---|---|");
    for (int state = 0; state < STATES; state++) {
      printf("\n| %s |", state_names[state]);
      for (int k = 0; k < SIDES; k++) print_cell(&sides[EMPTY + i * SIDES + k].in[state], state);
    }
    printf("\n");
  }
}

/* Measures all sides once; returns how many processors others took meanwhile. */
static double round_of(side *sides, int state, int core) {
  const double start = now(CLOCK_MONOTONIC), before = others();
  const pid_t child = state >= SHARED_HOT ? keep_busy(core) : 0;
  if (child < 0) die("fork", "no process");
  for (int i = 0; i < ALL; i++) measure(&sides[i], state);
  if (child > 0) kill(child, SIGKILL), waitpid(child, NULL, 0);
  return (others() - before) / (now(CLOCK_MONOTONIC) - start);
}

int main(int argc, char **argv) {
  static side sides[ALL];
  static library libraries[TASKS][2];
  static engine engines[TASKS][2];
  static meeting m;
  const int blocks = argc > 1 ? atoi(argv[1]) : 10;
  cpu_set_t cores;
  int core = CPU_SETSIZE - 1;
  if (blocks < 1 || blocks > MOST_BLOCKS) die("blocks", "must be from 1 to 20");
  if (sched_getaffinity(0, sizeof cores, &cores) != 0 || CPU_COUNT(&cores) != 2) die("cores", "this is for a process that has two");
  while (!CPU_ISSET((size_t)core, &cores)) core--;
  OURS(rsi_pool_create(2, &m.pool));
  sides[0] = (side){.name = "`#pragma omp parallel`", .run = run_omp, .omp = 2};
  sides[1] = (side){.name = "our pool, chunks for whoever comes", .run = run_pool, .arg = &m, .omp = 1};
  sides[2] = (side){.name = "our pool, the worker must come", .run = run_meeting, .arg = &m, .omp = 1};
  for (int k = 0; k < 2; k++) {
    rs_ctx *ctx;
    OURS(rs_ctx_create(&(rs_ctx_options){.threads = k + 1}, &ctx));
    const bool wide = strcmp(rs_get_isa(ctx), "avx512") == 0;
    omp_set_num_threads(k + 1);                                   /* oneDNN makes a primitive for a number of threads */
    for (int i = 0; i < TASKS; i++) {
      side *const s = &sides[EMPTY + i * SIDES + k];
      engine *const e = &engines[i][k];
      library *const l = &libraries[i][k];
      make_engine(e, &tasks[i], wide, ctx);
      make_library(l, &tasks[i], wide, e);
      s[0] = (side){.name = side_names[k], .run = run_library, .arg = l, .omp = k + 1};
      s[2] = (side){.name = side_names[k + 2], .run = run_engine, .arg = e, .omp = 1};
      run_library(l);
      run_engine(e);
      compare(&tasks[i], l->y, e->y);
    }
  }
  for (int b = 0, retries = RETRIES; b < blocks; b++) {
    for (int state = 0; state < STATES; state++) {
      double taken = round_of(sides, state, core);
      for (; taken > QUIET && retries > 0; retries--) taken = round_of(sides, state, core);
      for (int i = 0; i < ALL; i++) keep(&sides[i].in[state]);
      fprintf(stderr, "  threads: block %d of %d, %s: others took %.2f processors\n", b + 1, blocks, state_names[state], taken);
    }
  }
  print_tables(sides);
  return 0;
}

#endif
