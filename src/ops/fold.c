/*
** The driver of the reductions. The loops (kernels/reduce.h) fold a row, or several columns side by side, into accumulators;
** here shapes and strides become such rows and columns, and these are cut for the threads.
**
** A unit is a group of results, a part a range of the reduced elements in a fixed order. How work is cut depends on the shape
** only, and parts are merged in their order, so the result does not depend on the number of threads.
*/
#include "ops/fold.h"
#include <string.h>

enum {
  TILE = 256,             /* results of a unit at most */
  UNIT_WORK = 4096,       /* elements that a unit of short rows should have */
  PART_WORK = 65536,      /* elements that pay for a part */
  MAX_PARTS = 64, FEW_UNITS = 16
};

/* ---- dimensions ------------------------------------------------------------------------------------------------------ */

uint32_t rsi_fold_mask(const rs_list *dims, int ndim) {
  uint32_t mask = 0;
  if (dims->n == 0) return (1u << ndim) - 1u;
  for (int i = 0; i < dims->n; i++) mask |= 1u << (dims->v[i] < 0 ? dims->v[i] + ndim : dims->v[i]);
  return mask;
}

rs_status rsi_fold_dims(const rsi_call *c, rs_list *dims, int ndim) {
  uint32_t seen = 0;
  for (int i = 0; i < dims->n; i++) {
    RSI_TRY(rsi_dim(c->ctx, dims->v[i], ndim, &dims->v[i]));
    RSI_CHECK(!(seen >> dims->v[i] & 1u), RS_ERR_ARG, "dimension %lld is named twice; name each dimension once",
              (long long)dims->v[i] + rsi_base(c));
    seen |= 1u << dims->v[i];
  }
  return RS_OK;
}

void rsi_fold_shape(const rs_tensor *x, uint32_t mask, bool keepdim, rsi_desc *out) {
  out->ndim = 0;
  for (int i = 0; i < x->ndim; i++) {
    if (!(mask >> i & 1u)) out->shape[out->ndim++] = x->shape[i];
    else if (keepdim) out->shape[out->ndim++] = 1;
  }
}

/* ---- the plan -------------------------------------------------------------------------------------------------------- */

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Appends a dimension to a list, merged with the one before it where memory allows. */
static void append(int *n, int64_t *shape, int64_t *stride, int64_t size, int64_t step) {
  if (size == 1) return;
  if (*n > 0 && stride[*n - 1] == size * step) {
    shape[*n - 1] *= size;
    stride[*n - 1] = step;
    return;
  }
  shape[*n] = size;
  stride[*n] = step;
  ++*n;
}

/* Reduced dimensions, the largest stride first: memory is then read in order. */
static int by_stride(const rs_tensor *x, uint32_t mask, int *order) {
  int n = 0;
  for (int i = 0; i < x->ndim; i++) {
    if (!(mask >> i & 1u)) continue;
    int at = n++;
    for (; at > 0 && x->strides[order[at - 1]] < x->strides[i]; at--) order[at] = order[at - 1];
    order[at] = i;
  }
  return n;
}

static void cut(rsi_fold_plan *p) {
  const int64_t inner = p->nkept > 0 ? p->kept_shape[p->nkept - 1] : 1;
  if (p->columns) {
    p->width = inner < TILE ? inner : TILE;
    p->line = inner;
    p->units = p->kept / inner * divide_up(inner, p->width);
  } else {
    const int64_t rows = UNIT_WORK / (p->reduced > 0 ? p->reduced : 1);
    p->width = rows < 1 ? 1 : rows > TILE ? TILE : rows;
    p->line = p->kept;
    p->units = divide_up(p->kept, p->width);
  }
  p->parts = 1;
  p->length = p->reduced;
  if (p->units >= FEW_UNITS || p->kept * p->reduced < 2 * PART_WORK) return;
  const int64_t parts = p->kept * p->reduced / PART_WORK, most = p->reduced < MAX_PARTS ? p->reduced : MAX_PARTS;
  p->length = divide_up(p->reduced, parts < most ? parts : most);
  p->parts = divide_up(p->reduced, p->length);
}

void rsi_fold_plan_make(rsi_fold_plan *p, const rs_tensor *x, uint32_t mask, bool ordered) {
  int order[RS_MAX_DIMS], n = 0;
  p->nkept = p->nreduced = 0;
  p->kept = p->reduced = 1;
  for (int i = 0; i < x->ndim; i++) {
    if (mask >> i & 1u) {
      p->reduced *= x->shape[i];
      order[n++] = i;
    } else {
      p->kept *= x->shape[i];
      append(&p->nkept, p->kept_shape, p->kept_stride, x->shape[i], x->strides[i]);
    }
  }
  if (!ordered) n = by_stride(x, mask, order);
  for (int i = 0; i < n; i++) append(&p->nreduced, p->shape, p->stride, x->shape[order[i]], x->strides[order[i]]);
  if (p->nreduced == 0) p->nreduced = 1, p->shape[0] = p->reduced, p->stride[0] = 0;
  p->columns = p->nkept > 0 && p->kept_stride[p->nkept - 1] == 1 && p->stride[p->nreduced - 1] != 1;
  if (p->kept > 0) cut(p);
}

size_t rsi_fold_scratch(const rsi_fold_plan *p, const rsi_fold *fold) {
  return p->kept > 0 && p->parts > 1 ? fold->acc * (size_t)(p->kept * p->parts) : 0;
}

/* ---- running --------------------------------------------------------------------------------------------------------- */

typedef struct job {
  const rsi_fold_plan *plan;
  const rsi_fold      *fold;
  const char          *data;
  char                *out, *second;
  char                *scratch;     /* [part][result] accumulators, when there are several parts */
  size_t               size, item, item2;   /* bytes of an element of x, of results */
  double               param;
} job;

/* Where result number k begins, in elements of x. */
static int64_t origin(const rsi_fold_plan *p, int64_t k) {
  int64_t at = 0;
  for (int i = p->nkept - 1; i > 0; i--) {
    at += k % p->kept_shape[i] * p->kept_stride[i];
    k /= p->kept_shape[i];
  }
  return p->nkept > 0 ? at + k * p->kept_stride[0] : 0;
}

/* Rows of one level, their origins a fixed step apart: nothing to work out for each. */
static void fold_rows(const job *j, char *acc, const char *x, int64_t n, int64_t first, int64_t last) {
  const rsi_fold_plan *const p = j->plan;
  const int64_t stride = p->stride[0], step = (p->nkept > 0 ? p->kept_stride[0] : 0) * (int64_t)j->size;
  x += first * stride * (int64_t)j->size;
  for (int64_t i = 0; i < n; i++, x += step, acc += j->fold->acc) j->fold->row(acc, x, last - first, stride, first);
}

/* Folds the reduced elements first..last-1 of the results that begin at x: one row each time, or `columns` columns. */
static void fold_range(const job *j, char *acc, const char *x, int64_t columns, int64_t first, int64_t last) {
  const rsi_fold_plan *const p = j->plan;
  const int inner = p->nreduced - 1;
  const int64_t stride = p->stride[inner];
  int64_t index[RS_MAX_DIMS], rest = first;
  if (first >= last) return;
  for (int i = inner; i >= 0; i--) {
    index[i] = rest % p->shape[i];
    rest /= p->shape[i];
  }
  while (first < last) {
    int64_t at = 0, n = p->shape[inner] - index[inner];
    if (n > last - first) n = last - first;
    for (int i = 0; i <= inner; i++) at += index[i] * p->stride[i];
    const char *const from = x + at * (int64_t)j->size;
    if (columns > 0) j->fold->cols(acc, from, n, columns, stride, first);
    else j->fold->row(acc, from, n, stride, first);
    first += n;
    index[inner] = 0;
    for (int i = inner - 1; i >= 0 && ++index[i] == p->shape[i]; i--) index[i] = 0;
  }
}

static void finish(const job *j, int64_t first, const char *acc, int64_t n) {
  char *const out = j->out ? j->out + (size_t)first * j->item : NULL;
  char *const second = j->second ? j->second + (size_t)first * j->item2 : NULL;
  j->fold->finish(out, second, acc, n, j->param);
}

static void run_units(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  const rsi_fold_plan *const p = j->plan;
  const int64_t per_line = (p->line + p->width - 1) / p->width;
  _Alignas(64) char local[TILE * RSI_FOLD_MAX_ACC];
  for (int64_t t = first; t < last; t++) {
    const int64_t part = t / p->units, unit = t % p->units;
    const int64_t in_line = unit % per_line * p->width, from = unit / per_line * p->line + in_line;
    const int64_t n = p->line - in_line < p->width ? p->line - in_line : p->width;
    const int64_t begin = part * p->length, end = begin + p->length < p->reduced ? begin + p->length : p->reduced;
    char *const acc = j->scratch ? j->scratch + (size_t)(part * p->kept + from) * j->fold->acc : local;
    j->fold->init(acc, n);
    if (p->columns) fold_range(j, acc, j->data + origin(p, from) * (int64_t)j->size, n, begin, end);
    else if (p->nreduced == 1 && p->nkept <= 1)
      fold_rows(j, acc, j->data + origin(p, from) * (int64_t)j->size, n, begin, end);
    else
      for (int64_t i = 0; i < n; i++)
        fold_range(j, acc + (size_t)i * j->fold->acc, j->data + origin(p, from + i) * (int64_t)j->size, 0, begin, end);
    if (!j->scratch) finish(j, from, acc, n);
  }
}

void rsi_fold_run(const rsi_exec *x, const rsi_fold_plan *p, const rsi_fold *fold, const rs_tensor *in, void *out,
                  size_t item, void *second, size_t item2, double param, void *scratch) {
  job j = {p, fold, in->data, out, second, p->parts > 1 ? scratch : NULL, rsi_item_size(in), item, item2, param};
  if (p->kept == 0) return;
  rsi_parallel(x, p->units * p->parts, 0.15 * (double)p->width * (double)p->length + 10.0, run_units, &j);
  if (!j.scratch) return;
  for (int64_t part = 1; part < p->parts; part++)
    fold->merge(j.scratch, j.scratch + (size_t)(part * p->kept) * fold->acc, p->kept);
  finish(&j, 0, j.scratch, p->kept);
}
