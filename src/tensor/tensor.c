/* Headers and storages: shapes, life, views. */
#include "tensor/tensor.h"
#include "autograd/autograd.h"
#include <string.h>

const uint8_t rsi_dtype_size[RS_DTYPES] = {4, 8, 2, 2, 8, 4, 1, 1};
static const char *const dtype_names[RS_DTYPES] = {"f32", "f64", "bf16", "f16", "i64", "i32", "u8", "bool"};

/* A new tensor's block: header, storage, data, each aligned. */
enum { STORAGE_AT = (sizeof(rs_tensor) + RSI_ALIGN - 1) / RSI_ALIGN * RSI_ALIGN, DATA_AT = STORAGE_AT + RSI_ALIGN };
_Static_assert(sizeof(rsi_storage) <= RSI_ALIGN, "a storage fits in one alignment unit");

const char *rs_dtype_name(int dtype) { return dtype >= 0 && dtype < RS_DTYPES ? dtype_names[dtype] : "?"; }
int rs_dtype_size(int dtype) { return dtype >= 0 && dtype < RS_DTYPES ? rsi_dtype_size[dtype] : 0; }

/* ---- shapes ---------------------------------------------------------------------------------------------------------- */

rs_status rsi_numel(int ndim, const int64_t *shape, size_t item, int64_t *out) {
  int64_t n = 1;
  bool empty = false;
  for (int i = 0; i < ndim; i++) {
    RSI_CHECK(shape[i] >= 0, RS_ERR_SHAPE, "shape %s has a negative size", rsi_shape_text(ndim, shape));
    if (shape[i] == 0) empty = true;
    else RSI_CHECK(!__builtin_mul_overflow(n, shape[i], &n) && n <= INT64_MAX / 16 / (int64_t)item, RS_ERR_SHAPE,
                   "shape %s has more elements than memory can hold", rsi_shape_text(ndim, shape));
  }
  *out = empty ? 0 : n;
  return RS_OK;
}

/* Row-major strides from the shape. */
static void set_strides(rs_tensor *t) {
  int64_t step = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    t->strides[i] = step;
    step *= t->shape[i] > 1 ? t->shape[i] : 1;
  }
  t->flags |= RSI_CONTIGUOUS;
}

void rsi_tensor_update_flags(rs_tensor *t) {
  int64_t step = 1;
  bool contiguous = true;
  for (int i = t->ndim - 1; i >= 0 && contiguous; i--) {
    if (t->shape[i] == 1) continue;
    contiguous = t->strides[i] == step;
    step *= t->shape[i];
  }
  if (contiguous || t->numel == 0) t->flags |= RSI_CONTIGUOUS;
  else t->flags &= (uint8_t)~RSI_CONTIGUOUS;
}

bool rsi_overlaps_itself(const rs_tensor *t) {
  for (int i = 0; i < t->ndim; i++)
    if (t->strides[i] == 0 && t->shape[i] > 1) return true;
  return false;
}

bool rsi_same_shape(const rs_tensor *a, const rs_tensor *b) {
  if (a->ndim != b->ndim) return false;
  for (int i = 0; i < a->ndim; i++)
    if (a->shape[i] != b->shape[i]) return false;
  return true;
}

void rsi_desc_of(const rs_tensor *t, rsi_desc *out) {
  out->dtype = t->dtype;
  out->ndim = t->ndim;
  for (int i = 0; i < t->ndim; i++) out->shape[i] = t->shape[i];
}

const char *rsi_shape_text(int ndim, const int64_t *shape) {
  static _Thread_local char buffers[8][RS_MAX_DIMS * 22 + 8];
  static _Thread_local unsigned turn;
  char *const text = buffers[turn++ % 8];
  size_t at = 0;
  text[at++] = '[';
  for (int i = 0; i < ndim && i < RS_MAX_DIMS; i++) {
    char digits[24];
    int n = 0;
    uint64_t v = shape[i] < 0 ? (uint64_t)0 - (uint64_t)shape[i] : (uint64_t)shape[i];
    do digits[n++] = (char)('0' + v % 10); while (v /= 10);
    if (i) text[at++] = ',', text[at++] = ' ';
    if (shape[i] < 0) text[at++] = '-';
    while (n) text[at++] = digits[--n];
  }
  text[at++] = ']';
  text[at] = 0;
  return text;
}

rs_status rsi_broadcast(int na, const int64_t *a, int nb, const int64_t *b, int *nd, int64_t *out) {
  const int n = na > nb ? na : nb;
  for (int i = 0; i < n; i++) {
    const int64_t x = i < n - na ? 1 : a[i - (n - na)], y = i < n - nb ? 1 : b[i - (n - nb)];
    RSI_CHECK(x == y || x == 1 || y == 1, RS_ERR_SHAPE,
              "shapes %s and %s do not fit: sizes %lld and %lld differ, and neither is 1 to be repeated", rsi_shape_text(na, a),
              rsi_shape_text(nb, b), (long long)x, (long long)y);
    out[i] = x == 1 ? y : x;
  }
  *nd = n;
  return RS_OK;
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

void rsi_storage_release(rsi_storage *s) {
  if (!rsi_ref_drop(&s->refs)) return;
  rsi_free(s->heap, (char *)s - STORAGE_AT, s->block);
}

static void header_init(rs_tensor *t, uint8_t flags) {
  atomic_init(&t->refs, 1);
  t->flags = flags;
  t->out_index = 0;
  t->node = NULL;
  t->view_version = 0;
  t->trace_id = 0;
  t->trace_serial = 0;
}

static rs_status header_new(rsi_heap *heap, rs_tensor **out) {
  void *block;
  RSI_TRY(rsi_alloc(heap, sizeof(rs_tensor), &block));
  header_init(block, 0);
  *out = block;
  return RS_OK;
}

/* The storage in whose block the header lies; another one than t->storage after rs_tensor_set_data. */
static rsi_storage *home_of(rs_tensor *t) { return (void *)((char *)t + STORAGE_AT); }

void rsi_header_free(rs_tensor *t) {
  if (!(t->flags & RSI_WITH_STORAGE)) rsi_free(t->storage->heap, t, sizeof(rs_tensor));
  else if (t->storage != home_of(t)) rsi_storage_release(home_of(t));
}

void rsi_tensor_move(rs_tensor *t, rsi_storage *to) {
  rsi_storage *const from = t->storage;
  rsi_storage_retain(to);
  t->storage = to;
  if (!(t->flags & RSI_WITH_STORAGE) || from != home_of(t)) rsi_storage_release(from);
  if ((t->flags & RSI_WITH_STORAGE) && to == home_of(t)) rsi_storage_release(to);
}

/* The element count of a small vector or matrix needs no care about overflow. */
static bool small(const rsi_desc *desc, int64_t *numel) {
  const uint64_t a = desc->ndim > 0 ? (uint64_t)desc->shape[0] : 1, b = desc->ndim > 1 ? (uint64_t)desc->shape[1] : 1;
  *numel = (int64_t)(a * b);
  return desc->ndim <= 2 && a < 1u << 24 && b < 1u << 24;
}

/* data: whether there is memory for it. */
static rs_status make(rsi_heap *heap, const rsi_desc *desc, bool data, rs_tensor **out) {
  int64_t numel;
  void *block;
  const size_t item = rsi_dtype_size[desc->dtype];
  if (!small(desc, &numel)) RSI_TRY(rsi_numel(desc->ndim, desc->shape, item, &numel));
  const size_t bytes = data ? (size_t)numel * item : 0;
  RSI_TRY(rsi_alloc(heap, DATA_AT + bytes, &block));
  rs_tensor *const t = block;
  rsi_storage *const s = (void *)((char *)block + STORAGE_AT);
  atomic_init(&s->refs, 1);
  s->version = s->recorded = 0;
  s->writer = NULL;
  s->heap = heap;
  s->data = (char *)block + DATA_AT;
  s->bytes = bytes;
  s->block = DATA_AT + bytes;
  header_init(t, data ? RSI_WITH_STORAGE : RSI_WITH_STORAGE | RSI_PHANTOM);
  t->storage = s;
  t->dtype = (uint8_t)desc->dtype;
  t->ndim = (uint8_t)desc->ndim;
  t->numel = numel;
  t->data = s->data;
  for (int i = 0; i < desc->ndim; i++) t->shape[i] = desc->shape[i];
  set_strides(t);
  *out = t;
  return RS_OK;
}

rs_status rsi_tensor_new(rsi_heap *heap, const rsi_desc *desc, rs_tensor **out) { return make(heap, desc, true, out); }
rs_status rsi_tensor_phantom(rsi_heap *heap, const rsi_desc *desc, rs_tensor **out) { return make(heap, desc, false, out); }

static void copy_header(rs_tensor *dst, const rs_tensor *t) {
  dst->dtype = t->dtype;
  dst->ndim = t->ndim;
  dst->data = t->data;
  dst->storage = t->storage;
  dst->numel = t->numel;
  dst->view_version = t->storage->version;
  dst->trace_id = t->trace_id;          /* the same value in a recording */
  dst->trace_serial = t->trace_serial;
  for (int i = 0; i < t->ndim; i++) {
    dst->shape[i] = t->shape[i];
    dst->strides[i] = t->strides[i];
  }
  rsi_storage_retain(t->storage);
}

rs_status rsi_tensor_alias(const rs_tensor *t, rs_tensor **out) {
  rs_tensor *a;
  RSI_TRY(header_new(t->storage->heap, &a));
  copy_header(a, t);
  a->flags = (uint8_t)((t->flags & (RSI_CONTIGUOUS | RSI_PHANTOM)) | RSI_VIEW);
  *out = a;
  return RS_OK;
}

rs_status rsi_tensor_view(const rs_tensor *t, int64_t offset, int ndim, const int64_t *shape, const int64_t *strides,
                          rs_tensor **out) {
  int64_t numel;
  rs_tensor *v;
  RSI_TRY(rsi_numel(ndim, shape, rsi_item_size(t), &numel));
  RSI_TRY(header_new(t->storage->heap, &v));
  v->dtype = t->dtype;
  v->ndim = (uint8_t)ndim;
  v->data = (char *)t->data + offset * (int64_t)rsi_item_size(t);
  v->storage = t->storage;
  v->numel = numel;
  v->view_version = t->storage->version;
  for (int i = 0; i < ndim; i++) {
    v->shape[i] = shape[i];
    v->strides[i] = strides[i];
  }
  v->flags = (uint8_t)(RSI_VIEW | (t->flags & RSI_PHANTOM));
  rsi_tensor_update_flags(v);
  rsi_storage_retain(t->storage);
  *out = v;
  return RS_OK;
}

void rsi_tensor_embed(rs_tensor *dst, const rs_tensor *t) {
  atomic_init(&dst->refs, 1);
  copy_header(dst, t);
  dst->flags = (uint8_t)((t->flags & (RSI_CONTIGUOUS | RSI_VIEW | RSI_PHANTOM)) | RSI_EMBEDDED);
  dst->view_version = t->view_version;
  dst->out_index = t->out_index;
  dst->node = NULL;
}

rs_status rsi_tensor_share(rs_tensor *t, rs_tensor **out) {
  if (t->flags & RSI_EMBEDDED) return rs_tensor_twin(t, out);
  *out = rs_tensor_retain(t);
  return RS_OK;
}

rs_status rs_tensor_twin(const rs_tensor *t, rs_tensor **out) {
  RSI_TRY(rsi_tensor_alias(t, out));
  (*out)->flags = (uint8_t)(t->flags & (RSI_CONTIGUOUS | RSI_VIEW | RSI_PHANTOM));
  (*out)->view_version = t->view_version;
  if (t->node) {
    (*out)->node = rsi_node_retain(t->node);
    (*out)->out_index = t->out_index;
  }
  return RS_OK;
}

rs_tensor *rs_tensor_retain(rs_tensor *t) {
  rsi_ref_take(&t->refs);
  return t;
}

void rs_tensor_release(rs_tensor *t) {
  if (!t || !rsi_ref_drop(&t->refs)) return;
  rsi_node *const node = t->node;
  rsi_storage *const storage = t->storage;
  rsi_header_free(t);
  if (node) rsi_node_release(node);
  rsi_storage_release(storage);
}

/* ---- reading --------------------------------------------------------------------------------------------------------- */

int rs_tensor_ndim(const rs_tensor *t) { return t->ndim; }
int rs_tensor_dtype(const rs_tensor *t) { return t->dtype; }
double rs_tensor_numel(const rs_tensor *t) { return (double)t->numel; }
double rs_tensor_size(const rs_tensor *t, int dim) { return dim >= 0 && dim < t->ndim ? (double)t->shape[dim] : -1.0; }
void *rs_tensor_data(const rs_tensor *t) { return t->flags & RSI_PHANTOM ? NULL : t->data; }
int rs_tensor_same_storage(const rs_tensor *a, const rs_tensor *b) { return a->storage == b->storage; }
int rs_tensor_same_shape(const rs_tensor *a, const rs_tensor *b) { return rsi_same_shape(a, b); }
double rs_tensor_version(const rs_tensor *t) { return t->storage->version; }

void rs_tensor_info(const rs_tensor *t, rs_info *out) {
  out->data = rs_tensor_data(t);
  out->numel = (double)t->numel;
  out->version = t->storage->version;
  out->dtype = t->dtype;
  out->ndim = t->ndim;
  out->requires_grad = t->node != NULL;
  out->is_leaf = t->node == NULL || rsi_node_is_leaf(t->node);
  out->is_contiguous = rsi_is_contiguous(t);
  out->is_view = (t->flags & RSI_VIEW) != 0;
  memcpy(out->shape, t->shape, sizeof out->shape);
  memcpy(out->strides, t->strides, sizeof out->strides);
}
