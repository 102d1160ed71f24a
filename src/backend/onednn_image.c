/*
** Images brought from one block form to another by oneDNN's reorders. An entry of the table for one image: kind RSI_CONV_IMAGE, s has
** c, h and w, x_* is the form it has and y_* the one it gets. piece[0].op[X] are `size` rows of it in both forms.
*/
#include "backend/onednn.h"

#ifdef RSI_WITH_ONEDNN

#include <string.h>

/* Elements that are moved at once, about 20 us. */
enum { SLICE_ELEMENTS = 64 * 1024 };

static size_t item_of(int64_t dtype) { return dtype == RS_BF16 ? 2 : 4; }

/* Rows 0..rows-1 of the image. */
static dnnl_status_t rows_md(const rsi_conv_shape *s, int64_t block, int64_t dtype, bool last, int64_t rows, md *out) {
  const dnnl_dims_t whole = {1, s->c, s->h, s->w}, part = {1, s->c, rows, s->w}, start = {0};
  const dnnl_format_tag_t tag = rsi_onednn_tag(block, s->c, last);
  md all;
  if (tag == dnnl_format_tag_undef) return dnnl_unimplemented;
  memset(&all, 0, sizeof all);
  DNNL_TRY(md_tag(&all, 4, whole, dtype == RS_BF16 ? dnnl_bf16 : dnnl_f32, tag));
  const dnnl_status_t status = md_part(out, &all, part, start);
  md_free(&all);
  return status;
}

dnnl_status_t rsi_onednn_image_make(rsi_onednn *t, entry *e) {
  const rsi_conv_call *const k = &e->key;
  const rsi_conv_shape *const s = &k->s;
  operand *const o = &e->piece[0].op[X];
  e->size = s->h;
  while (e->size % 2 == 0 && e->size * s->w * s->c > SLICE_ELEMENTS) e->size /= 2;
  e->slices = s->h / e->size;
  DNNL_TRY(rows_md(s, k->x_block, k->x_dtype, k->x_block != 8 && k->x_block != 16, e->size, &o->given));
  DNNL_TRY(rows_md(s, k->y_block, k->y_dtype, k->y_block != 8 && k->y_block != 16, e->size, &o->used));
  o->present = true;
  DNNL_TRY(rsi_onednn_reorder(t, o, false));
  return o->reorder_pad > 0 ? dnnl_unimplemented : dnnl_success;
}

typedef struct job {
  rsi_onednn *table;
  entry      *entry;
  const char *from;
  char       *to;
  _Atomic int status;
} job;

static size_t image_bytes(const rsi_conv_shape *s, int64_t block, int64_t dtype) {
  return (size_t)((s->c + block - 1) / block * block * s->h * s->w) * item_of(dtype);
}

/* Slices [n, rows]. */
static void move_slices(void *arg, int64_t first, int64_t last) {
  job *const j = arg;
  const entry *const e = j->entry;
  const rsi_conv_call *const k = &e->key;
  piece *const p = &j->entry->piece[0];
  arguments *a;
  const int former = rsi_onednn_alone();
  dnnl_status_t status = rsi_onednn_arguments(j->table, p, &a);
  if (status == dnnl_success) {
    for (int64_t i = first; i < last && status == dnnl_success; i++) {
      const size_t n = (size_t)(i / e->slices), pixels = (size_t)(i % e->slices * e->size * k->s.w);
      const char *const from = j->from + n * image_bytes(&k->s, k->x_block, k->x_dtype) + pixels * (size_t)k->x_block * item_of(k->x_dtype);
      char *const to = j->to + n * image_bytes(&k->s, k->y_block, k->y_dtype) + pixels * (size_t)k->y_block * item_of(k->y_dtype);
      status = dnnl_memory_set_data_handle(a->given[X], (char *)(uintptr_t)from);
      if (status == dnnl_success) status = dnnl_memory_set_data_handle(a->used[X], to);
      const dnnl_exec_arg_t args[2] = {{DNNL_ARG_FROM, a->given[X]}, {DNNL_ARG_TO, a->used[X]}};
      if (status == dnnl_success) status = dnnl_primitive_execute(p->op[X].reorder, j->table->stream, 2, args);
    }
    rsi_onednn_arguments_back(j->table, p, a);
  }
  rsi_onednn_not_alone(former);
  if (status != dnnl_success) atomic_store(&j->status, (int)status);
}

rs_status rsi_onednn_image_run(const rsi_exec *x, const rsi_conv_call *k, int64_t images, const void *from, void *to) {
  RSI_CHECK(x->onednn != NULL, RS_ERR_UNSUPPORTED, "this was prepared for oneDNN, which is not there");
  entry *const e = rsi_onednn_take(x->onednn, k);
  RSI_CHECK(e != NULL, RS_ERR_NOMEM, "out of memory: no room for a oneDNN primitive");
  job j = {.table = x->onednn, .entry = e, .from = from, .to = to, .status = e->usable ? dnnl_success : dnnl_unimplemented};
  if (e->usable) rsi_parallel(x, images * e->slices, 0.15 * (double)(e->size * k->s.w * k->s.c), move_slices, &j);
  const dnnl_status_t status = (dnnl_status_t)j.status;
  rsi_onednn_give(x->onednn, e);
  if (status == dnnl_success) return RS_OK;
  return rsi_fail(status == dnnl_out_of_memory ? RS_ERR_NOMEM : RS_ERR_UNSUPPORTED, "oneDNN failed with status %d", (int)status);
}

#else

rs_status rsi_onednn_image_run(const rsi_exec *x, const rsi_conv_call *k, int64_t images, const void *from, void *to) {
  (void)x, (void)k, (void)images, (void)from, (void)to;
  return rsi_fail(RS_ERR_UNSUPPORTED, "oneDNN is not built in");
}

#endif
