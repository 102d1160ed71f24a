/*
** Coalesced iteration over operands of one broadcast shape. Dimensions of size 1 vanish, neighbours that are contiguous in
** every operand merge, so most calls end with one or two levels.
*/
#include "tensor/tensor.h"

/* Byte stride of operand t in dimension i of an n-dimensional broadcast shape. */
static int64_t stride_in(const rs_tensor *t, int i, int n) {
  const int at = i - (n - t->ndim);
  return at < 0 || t->shape[at] == 1 ? 0 : t->strides[at] * (int64_t)rsi_item_size(t);
}

void rsi_nest_make(rsi_nest *nest, rs_tensor *const *t, int n) {
  const rs_tensor *const lead = t[0];
  int levels = 0;
  nest->n = n;
  nest->numel = lead->numel;
  for (int k = 0; k < n; k++) nest->data[k] = t[k]->data;
  for (int i = 0; i < lead->ndim; i++) {
    if (lead->shape[i] == 1) continue;
    bool merge = levels > 0;
    for (int k = 0; merge && k < n; k++)
      merge = nest->strides[k][levels - 1] == stride_in(t[k], i, lead->ndim) * lead->shape[i];
    if (merge) {
      nest->shape[levels - 1] *= lead->shape[i];
      for (int k = 0; k < n; k++) nest->strides[k][levels - 1] = stride_in(t[k], i, lead->ndim);
    } else {
      nest->shape[levels] = lead->shape[i];
      for (int k = 0; k < n; k++) nest->strides[k][levels] = stride_in(t[k], i, lead->ndim);
      levels++;
    }
  }
  nest->ndim = levels;
}

void rsi_nest_run(const rsi_nest *nest, int64_t first, int64_t last, rsi_row_fn run, const void *arg) {
  char *data[RSI_MAX_OPERANDS];
  int64_t strides[RSI_MAX_OPERANDS], index[RS_MAX_DIMS] = {0};
  const int inner = nest->ndim - 1;
  if (first >= last) return;
  for (int k = 0; k < nest->n; k++) {
    data[k] = nest->data[k];
    strides[k] = inner < 0 ? 0 : nest->strides[k][inner];
  }
  if (inner < 0) {
    run(1, data, strides, arg);
    return;
  }
  int64_t rest = first;
  for (int i = inner; i >= 0; i--) {
    index[i] = rest % nest->shape[i];
    rest /= nest->shape[i];
    for (int k = 0; k < nest->n; k++) data[k] += index[i] * nest->strides[k][i];
  }
  while (first < last) {
    int64_t count = nest->shape[inner] - index[inner];
    if (count > last - first) count = last - first;
    run(count, data, strides, arg);
    first += count;
    if (first >= last) break;
    for (int k = 0; k < nest->n; k++) data[k] -= index[inner] * nest->strides[k][inner];
    index[inner] = 0;
    for (int i = inner - 1; i >= 0; i--) {
      for (int k = 0; k < nest->n; k++) data[k] += nest->strides[k][i];
      if (++index[i] < nest->shape[i]) break;
      for (int k = 0; k < nest->n; k++) data[k] -= nest->shape[i] * nest->strides[k][i];
      index[i] = 0;
    }
  }
}
