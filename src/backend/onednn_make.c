/* Entries of oneDNN's table: how a convolution is cut into slices, which algorithm, and the primitives of the slices. */
#include "backend/onednn.h"

#ifdef RSI_WITH_ONEDNN

#include "base/lanes.h"
#include <string.h>

/* ---- how a shape is cut ---------------------------------------------------------------------------------------------- */

/* Measured with 2.6.3 on AVX-512 and AMX: see the rules that use them. */
static const double WAKE_WORK = 8e6;       /* additions and multiplications that pay for a second thread */
static const double SLICE_WORK = 2e7;      /* of a slice, about 0.1 ms */
static const double FILTER_WORK = 2e8;     /* of a slice that is cut along the filters */
static const double DEPTHWISE_FACTOR = 4;  /* reading and writing cost more than the sums there */
static const double AMX_FACTOR = 8;        /* the same for bf16, where a product costs less than what lies around it */
enum { MOST_SLICES = 32, MOST_SUMS = 8, GOOD_ROWS = 8, SLICE_CHANNELS = 32, SUM_OUTPUTS = 1024, LEAST_ROWS = 4 };
enum { WINOGRAD_SLICES = 4, WINOGRAD_TILES = 64, SLICE_TILES = 512, WINOGRAD_CHANNELS = 32, MANY_TILES = 16, STRIP_TILES = 256, STRIP_FILTERS = 128, STRIPS = 4 };

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static double work_of(const rsi_conv_shape *s) {
  return 2.0 * (double)(s->n * s->o * s->oh * s->ow) * (double)(s->c / s->groups * s->kh * s->kw);
}

static bool in_bf16(const rsi_conv_call *k) { return k->x_dtype == RS_BF16 || k->y_dtype == RS_BF16; }

/* oneDNN's Winograd form, F(4x4, 3x3), takes these; with fewer channels or tiles its transforms cost more than they save. */
static bool winograd_possible(const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  return s->kh == 3 && s->kw == 3 && s->sh == 1 && s->sw == 1 && s->dh == 1 && s->dw == 1 && s->ph <= 1 && s->pw <= 1 &&
         s->groups == 1 && s->c >= WINOGRAD_CHANNELS && s->o >= WINOGRAD_CHANNELS && s->c % 16 == 0 && s->o % 16 == 0 &&
         !in_bf16(k) && !k->exact;
}

static int64_t tiles(const rsi_conv_shape *s) { return divide_up(s->oh, 4) * divide_up(s->ow, 4); }

static int64_t length_along(const rsi_conv_shape *s, split cut) {
  switch (cut) {
    case BY_BATCH:   return s->n;
    case BY_FILTER:  return s->o;
    case BY_CHANNEL: return s->c;
    case BY_GROUP:   return s->groups;
    case BY_ROWS:    return s->oh;
  }
  return 1;
}

/* Rows of one image lie together only when a pixel's channels do; else slices copy theirs. */
static bool rows_possible(const rsi_conv_call *k) {
  return k->kind == RSI_CONV_FORWARD && k->s.n == 1 && k->x_block == k->s.c && k->y_block == k->s.o && k->s.oh >= 2 * LEAST_ROWS;
}

/* The cut for direct convolutions, and for a single image: the smaller operand should be the shared one. */
static split choose_cut(const rsi_conv_call *k) {
  const rsi_conv_shape *const s = &k->s;
  const int64_t filters = s->c / s->groups * s->o * s->kh * s->kw, images = s->n * s->c * s->h * s->w;
  const int64_t channels = k->kind == RSI_CONV_DATA ? s->c : s->o;
  if (rows_possible(k)) return BY_ROWS;
  if (s->groups > 1) return s->n == 1 ? BY_GROUP : BY_BATCH;
  if ((s->n == 1 || filters > images) && channels > SLICE_CHANNELS / 2) return k->kind == RSI_CONV_DATA ? BY_CHANNEL : BY_FILTER;
  return BY_BATCH;
}

/* A slice begins and ends at multiples of this many, so that it consists of whole blocks. */
static int64_t unit_of(const rsi_conv_call *k, split cut) {
  const rsi_conv_shape *const s = &k->s;
  if (cut == BY_FILTER) return s->o % (2 * SLICE_CHANNELS) == 0 ? SLICE_CHANNELS : SLICE_CHANNELS / 2;
  if (cut == BY_CHANNEL) return s->c % (2 * SLICE_CHANNELS) == 0 ? SLICE_CHANNELS : SLICE_CHANNELS / 2;
  if (cut == BY_ROWS) return LEAST_ROWS;
  if (cut != BY_GROUP) return 1;
  const int64_t c = s->c / s->groups, o = s->o / s->groups;
  int64_t unit = 1;
  while (unit < s->groups && ((k->x_block < s->c && unit * c % k->x_block != 0) || (k->y_block < s->o && unit * o % k->y_block != 0))) unit++;
  return unit;
}

/*
** Is Winograd's form worth it, and how is it cut? A slice transforms all filters that it uses, unless they are packed, so it must
** have tiles enough to pay for that; cut along the filters, each slice transforms all images.
*/
static bool choose_winograd(const rsi_conv_call *k, split *cut, int64_t *slices) {
  const int64_t all = k->s.n * tiles(&k->s), enough = k->packed ? MANY_TILES : WINOGRAD_TILES;
  int64_t most = 2;
  /* Copies of rows are cheaper than to transform a large image for each part of few filters. */
  if (k->packed && k->s.n == 1 && all >= STRIP_TILES && k->s.o <= STRIP_FILTERS) {
    *cut = BY_ROWS, *slices = STRIPS;
    return true;
  }
  if (k->s.n >= 2 && all >= 2 * enough) *cut = BY_BATCH, most = all / SLICE_TILES;
  else if (all < (k->kind == RSI_CONV_WEIGHT ? enough / 2 : enough)) return false;
  *slices = least(*slices, most < 2 ? 2 : least(most, WINOGRAD_SLICES));
  return true;
}

/* Slices along the cut, and which algorithm. */
static void choose(entry *e, dnnl_alg_kind_t *algorithm) {
  const rsi_conv_call *const k = &e->key;
  const rsi_conv_shape *const s = &k->s;
  const double work = work_of(s) * (s->groups == s->c ? DEPTHWISE_FACTOR : 1) / (in_bf16(k) ? AMX_FACTOR : 1);
  int64_t slices = (int64_t)(work / SLICE_WORK);
  if (slices < 2 && work >= WAKE_WORK) slices = 2;
  if (slices > MOST_SLICES) slices = MOST_SLICES;
  *algorithm = dnnl_convolution_direct;
  e->cut = slices > 1 ? choose_cut(k) : BY_BATCH;
  if (e->cut == BY_ROWS && slices > s->oh / GOOD_ROWS) slices = s->oh < 2 * GOOD_ROWS ? 2 : s->oh / GOOD_ROWS;
  /* Each slice reads all images again. */
  if (slices > 2 && (e->cut == BY_FILTER || e->cut == BY_CHANNEL)) slices = least(slices, (int64_t)(work / FILTER_WORK) + 2);
  if (winograd_possible(k) && choose_winograd(k, &e->cut, &slices)) *algorithm = dnnl_convolution_winograd;
  /* Partial sums are worth it only if much goes into each. */
  if (k->kind == RSI_CONV_WEIGHT && e->cut == BY_BATCH) slices = least(slices, least(s->n * s->oh * s->ow / SUM_OUTPUTS, MOST_SUMS));
  const int64_t length = length_along(s, e->cut), unit = unit_of(k, e->cut);
  slices = least(slices, length / unit);
  if (slices < 1) slices = 1;
  while (slices < 8 && (slices & (slices - 1))) slices--;         /* so that two or four threads get equal shares */
  e->size = divide_up(divide_up(length, slices), unit) * unit;
  if (e->size > length) e->size = length;
  e->slices = divide_up(length, e->size);
}

/* The slice from `at` on, `size` long; p->window has what lies around its part of x. */
static void cut_piece(const entry *e, int64_t at, int64_t size, piece *p) {
  const rsi_conv_shape *const s = &e->key.s;
  rsi_conv_shape *const q = &p->s;
  *q = *s;
  p->window = (window){.stride = {s->sh, s->sw}, .dilation = {s->dh - 1, s->dw - 1}, .before = {s->ph, s->pw},
                       .after = {(s->oh - 1) * s->sh + (s->kh - 1) * s->dh + 1 - s->h - s->ph,
                                 (s->ow - 1) * s->sw + (s->kw - 1) * s->dw + 1 - s->w - s->pw}};
  switch (e->cut) {
    case BY_BATCH:   q->n = size; break;
    case BY_FILTER:  q->o = size; break;
    case BY_CHANNEL: q->c = size; break;
    case BY_GROUP:   q->groups = size, q->c = s->c / s->groups * size, q->o = s->o / s->groups * size; break;
    case BY_ROWS: {
      const int64_t first = at * s->sh - s->ph, end = (at + size - 1) * s->sh - s->ph + (s->kh - 1) * s->dh + 1;
      const int64_t from = first > 0 ? first : 0, to = end < s->h ? end : s->h;
      q->oh = size, q->h = to - from;
      p->window.before[0] = from - first;
      p->window.after[0] = end - to;
      /* Taps beyond the last row that none needs. */
      if (at + size == s->oh && p->window.after[0] < 0) q->h += p->window.after[0], p->window.after[0] = 0;
    }
  }
}

/* ---- layouts --------------------------------------------------------------------------------------------------------- */

static dnnl_data_type_t type_of(int64_t dtype) { return dtype == RS_BF16 ? dnnl_bf16 : dnnl_f32; }

dnnl_format_tag_t rsi_onednn_tag(int64_t block, int64_t channels, bool last) {
  if (last && block == channels) return dnnl_nhwc;
  switch (block) {
    case 1:  return dnnl_nchw;
    case 8:  return dnnl_nChw8c;
    case 16: return dnnl_nChw16c;
    default: return block == channels ? dnnl_nhwc : dnnl_format_tag_undef;
  }
}

static void image_dims(const rsi_conv_shape *s, int op, dnnl_dims_t dims) {
  dims[0] = s->n, dims[1] = op == X ? s->c : s->o, dims[2] = op == X ? s->h : s->oh, dims[3] = op == X ? s->w : s->ow;
}

/* Filters of slice p; there is a dimension of groups when the whole, s, has groups. */
static int filter_dims(const rsi_conv_shape *s, const rsi_conv_shape *p, dnnl_dims_t dims) {
  int n = 0;
  if (s->groups > 1) dims[n++] = p->groups;
  dims[n++] = p->o / p->groups, dims[n++] = p->c / p->groups, dims[n++] = s->kh, dims[n++] = s->kw;
  return n;
}

/* How the caller holds operand `op` of a slice. */
static dnnl_status_t given_md(const rsi_conv_call *k, const rsi_conv_shape *p, int op, md *out) {
  const rsi_conv_shape *const s = &k->s;
  dnnl_dims_t dims, strides = {0};
  if (op == W) {
    const int64_t taps = s->kh * s->kw, group_c = s->c / s->groups, group_o = s->o / s->groups;
    const int n = filter_dims(s, p, dims), g = n - 4;
    if (g > 0) strides[0] = group_o * group_c * taps;
    strides[g] = group_c * taps, strides[g + 1] = taps, strides[g + 2] = s->kw, strides[g + 3] = 1;
    return md_strided(out, n, dims, dnnl_f32, strides);
  }
  const int64_t channels = op == X ? s->c : s->o, block = op == X ? k->x_block : k->y_block;
  const dnnl_data_type_t type = type_of(op == X ? k->x_dtype : k->y_dtype);
  const dnnl_format_tag_t tag = rsi_onednn_tag(block, channels, in_bf16(k));
  if (tag == dnnl_format_tag_undef) return dnnl_unimplemented;
  dnnl_dims_t whole;
  md all;
  image_dims(p, op, dims);
  image_dims(s, op, whole);
  whole[0] = dims[0];
  const bool channels_cut = dims[1] != whole[1], rows_cut = dims[2] != whole[2];
  const bool dense = (!channels_cut || (dims[0] == 1 && tag != dnnl_nhwc)) && (!rows_cut || block >= channels);
  if (dense) return md_tag(out, 4, dims, type, tag);
  const dnnl_dims_t start = {0};
  memset(&all, 0, sizeof all);
  DNNL_TRY(md_tag(&all, 4, whole, type, tag));
  const dnnl_status_t status = md_part(out, &all, dims, start);
  md_free(&all);
  return status;
}

/* What the primitive is asked to take: the caller's block form when `form`, else anything. hint: the forward one of a gradient. */
static dnnl_status_t asked_md(const entry *e, const piece *p, int op, bool form, bool hint, md *out) {
  const rsi_conv_call *const k = &e->key;
  const bool bf16 = in_bf16(k);
  const dnnl_data_type_t result = op == W ? dnnl_f32 : type_of(op == X ? k->x_dtype : k->y_dtype);
  const dnnl_data_type_t type = op == e->result && !hint ? result : bf16 ? dnnl_bf16 : dnnl_f32;
  dnnl_dims_t dims;
  if (op == W) {
    const int n = filter_dims(&k->s, &p->s, dims);
    return md_tag(out, n, dims, type, dnnl_format_tag_any);
  }
  const int64_t channels = op == X ? k->s.c : k->s.o, block = op == X ? k->x_block : k->y_block;
  const dnnl_format_tag_t tag = rsi_onednn_tag(block, channels, bf16);
  image_dims(&p->s, op, dims);
  return md_tag(out, 4, dims, type, form && (block > 1 || tag == dnnl_nhwc) ? tag : dnnl_format_tag_any);
}

/* ---- primitives ------------------------------------------------------------------------------------------------------ */

static uint64_t name_of(dnnl_primitive_desc_t desc, const char **name) {
  *name = "";
  dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, (void *)name);
  uint64_t h = 14695981039346656037u;
  for (const char *c = *name; *c; c++) h = (h ^ (unsigned char)*c) * 1099511628211u;
  return h;
}

bool rsi_onednn_is_slow(dnnl_primitive_desc_t desc) {
  const char *name;
  name_of(desc, &name);
  return strstr(name, "ref") != NULL || strstr(name, "gemm") != NULL;
}

/*
** Which of the forms that oneDNN offers. LARGE_TILES: of two Winograd forms it offers F(2x2, 3x3) first, which is worse unless tiles
** are few. APART, for bf16: not the batched products for AMX, whose generator in 2.6 and 2.7 reads past the end of a table of its
** own, and not the 1x1 forms, which give wrong results for some numbers of pixels (spec/conv_block_spec.lua has them).
*/
typedef enum preference { FIRST, LARGE_TILES, APART } preference;

static bool wanted(dnnl_primitive_desc_t desc, preference which) {
  const char *name;
  name_of(desc, &name);
  return which == FIRST || (which == LARGE_TILES ? strstr(name, "4x3") != NULL : strncmp(name, "brg", 3) != 0 && strstr(name, "1x1") == NULL);
}

/* The primitive of the entry's kind; gradients need a forward one as a hint. bias NULL: none. */
static dnnl_status_t conv_desc(dnnl_engine_t engine, dnnl_primitive_attr_t attr, rsi_conv_kind kind, dnnl_prop_kind_t prop,
                               dnnl_alg_kind_t algorithm, const md d[OPERANDS], const md *bias, const window *w, preference which,
                               dnnl_primitive_desc_t hint, dnnl_primitive_desc_t *out) {
  const md_ref x = ref(&d[X]), f = ref(&d[W]), y = ref(&d[Y]), b = bias != NULL ? ref(bias) : NULL;
#if DNNL_VERSION_MAJOR >= 3
  switch (kind) {
    case RSI_CONV_FORWARD:
      DNNL_TRY(dnnl_convolution_forward_primitive_desc_create(out, engine, prop, algorithm, x, f, b, y, w->stride, w->dilation,
                                                              w->before, w->after, attr));
      break;
    case RSI_CONV_DATA:
      DNNL_TRY(dnnl_convolution_backward_data_primitive_desc_create(out, engine, algorithm, x, f, y, w->stride, w->dilation,
                                                                    w->before, w->after, hint, attr));
      break;
    case RSI_CONV_WEIGHT:
      DNNL_TRY(dnnl_convolution_backward_weights_primitive_desc_create(out, engine, algorithm, x, f, NULL, y, w->stride, w->dilation,
                                                                       w->before, w->after, hint, attr));
      break;
    default: return dnnl_invalid_arguments;
  }
  while (which == LARGE_TILES && !wanted(*out, which) && dnnl_primitive_desc_next_impl(*out) == dnnl_success) {}
  return dnnl_success;
#else
  dnnl_convolution_desc_t c;
  switch (kind) {
    case RSI_CONV_FORWARD:
      DNNL_TRY(dnnl_dilated_convolution_forward_desc_init(&c, prop, algorithm, x, f, b, y, w->stride, w->dilation, w->before, w->after));
      break;
    case RSI_CONV_DATA:
      DNNL_TRY(dnnl_dilated_convolution_backward_data_desc_init(&c, algorithm, x, f, y, w->stride, w->dilation, w->before, w->after));
      break;
    case RSI_CONV_WEIGHT:
      DNNL_TRY(dnnl_dilated_convolution_backward_weights_desc_init(&c, algorithm, x, f, NULL, y, w->stride, w->dilation, w->before,
                                                                   w->after));
      break;
    default: return dnnl_invalid_arguments;
  }
  if (x->data_type == dnnl_bf16 || y->data_type == dnnl_bf16) which = APART;
  if (which == FIRST) return dnnl_primitive_desc_create(out, &c, attr, engine, hint);
  dnnl_primitive_desc_iterator_t it;
  DNNL_TRY(dnnl_primitive_desc_iterator_create(&it, &c, attr, engine, hint));
  dnnl_status_t status = dnnl_success;
  dnnl_primitive_desc_t first = dnnl_primitive_desc_iterator_fetch(it), better = NULL;
  if (first == NULL) status = dnnl_unimplemented;
  while (status == dnnl_success && !wanted(better != NULL ? better : first, which)) {
    if (better != NULL) dnnl_primitive_desc_destroy(better), better = NULL;
    if (dnnl_primitive_desc_iterator_next(it) != dnnl_success) break;
    better = dnnl_primitive_desc_iterator_fetch(it);
    if (better == NULL) break;
  }
  dnnl_primitive_desc_iterator_destroy(it);
  if (better != NULL) dnnl_primitive_desc_destroy(first);
  *out = better != NULL ? better : first;
  return status;
#endif
}

dnnl_status_t rsi_onednn_primitive(dnnl_primitive_desc_t desc, dnnl_primitive_t *out, md *pad, size_t *pad_bytes) {
  const md_ref need = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
  *pad_bytes = need != NULL ? dnnl_memory_desc_get_size(need) : 0;
  if (*pad_bytes > 0) DNNL_TRY(md_copy(pad, need));
  return dnnl_primitive_create(out, desc);
}

dnnl_status_t rsi_onednn_reorder(rsi_onednn *t, operand *o, bool result) {
  dnnl_primitive_desc_t desc;
  const md *const from = result ? &o->used : &o->given, *const to = result ? &o->given : &o->used;
  DNNL_TRY(dnnl_reorder_primitive_desc_create(&desc, ref(from), t->engine, ref(to), t->engine, t->attr));
  const dnnl_status_t status = rsi_onednn_primitive(desc, &o->reorder, &o->reorder_pad_md, &o->reorder_pad);
  dnnl_primitive_desc_destroy(desc);
  return status;
}

/* Sets how operand o is used; a residual is used as y, but goes the other way. */
static dnnl_status_t use(rsi_onednn *t, operand *o, md_ref used, bool result) {
  DNNL_TRY(md_copy(&o->used, used));
  o->same = dnnl_memory_desc_equal(ref(&o->given), ref(&o->used)) != 0;
  o->bytes = rsi_lane_round(dnnl_memory_desc_get_size(ref(&o->used)));
  o->present = true;
  return o->same ? dnnl_success : rsi_onednn_reorder(t, o, result);
}

typedef struct wishes {
  dnnl_alg_kind_t algorithm;
  bool            form;          /* ask for the caller's forms */
  bool            apart;         /* read the residual where it is */
} wishes;

static dnnl_status_t adopt(rsi_onednn *t, const entry *e, const wishes *wish, piece *p, dnnl_primitive_desc_t desc) {
  static const dnnl_query_t what[3][OPERANDS] = {
    [RSI_CONV_FORWARD] = {dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md},
    [RSI_CONV_DATA] = {dnnl_query_diff_src_md, dnnl_query_weights_md, dnnl_query_diff_dst_md},
    [RSI_CONV_WEIGHT] = {dnnl_query_src_md, dnnl_query_diff_weights_md, dnnl_query_diff_dst_md}};
  const char *name;
  if (rsi_onednn_is_slow(desc)) return dnnl_unimplemented;
  p->name = name_of(desc, &name);
  for (int i = 0; i < OPERANDS; i++) {
    const md_ref used = dnnl_primitive_desc_query_md(desc, what[e->key.kind][i], 0);
    if (used == NULL) return dnnl_runtime_error;
    DNNL_TRY(use(t, &p->op[i], used, i == e->result));
  }
  if (wish->apart) {
    if (!p->op[Y].same) return dnnl_unimplemented;
    p->op[R].present = p->op[R].same = true;
    DNNL_TRY(md_copy(&p->op[R].used, ref(&p->op[Y].used)));
  } else if (e->key.residual && !p->op[Y].same) {
    DNNL_TRY(md_copy(&p->op[R].given, ref(&p->op[Y].given)));
    DNNL_TRY(use(t, &p->op[R], ref(&p->op[Y].used), false));
  }
  return rsi_onednn_primitive(desc, &p->conv, &p->pad, &p->pad_bytes);
}

/* y: how y lies, if the residual is to be read from a place of its own (apart); otherwise it lies in y already. */
static dnnl_status_t fill_post_ops(const rsi_conv_call *k, const md *y, dnnl_post_ops_t ops) {
  if (!k->residual) return dnnl_success;
  if (y != NULL) return dnnl_post_ops_append_binary(ops, dnnl_binary_add, ref(y));
#if DNNL_VERSION_MAJOR >= 3
  return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
#else
  return dnnl_post_ops_append_sum(ops, 1.0f);
#endif
}

static dnnl_status_t post_ops(const rsi_conv_call *k, const md *y, dnnl_primitive_attr_t *out) {
  dnnl_post_ops_t ops = NULL;
  DNNL_TRY(dnnl_primitive_attr_create(out));
  DNNL_TRY(dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user));
  DNNL_TRY(dnnl_post_ops_create(&ops));
  dnnl_status_t status = fill_post_ops(k, y, ops);
  if (status == dnnl_success) status = dnnl_primitive_attr_set_post_ops(*out, ops);
  dnnl_post_ops_destroy(ops);
  return status;
}

/* ---- pieces ---------------------------------------------------------------------------------------------------------- */

/* The primitives of the slice from `at` on. like: the layout that a shared operand must have, or NULL. */
static dnnl_status_t make_piece(rsi_onednn *t, const entry *e, const wishes *wish, int64_t at, int64_t size, const md *like, piece *p) {
  const rsi_conv_call *const k = &e->key;
  const rsi_conv_kind kind = (rsi_conv_kind)k->kind;
  md asked[OPERANDS], hinted[OPERANDS];
  memset(asked, 0, sizeof asked), memset(hinted, 0, sizeof hinted);
  dnnl_primitive_desc_t hint = NULL, desc = NULL;
  dnnl_primitive_attr_t attr = NULL;
  dnnl_status_t status = dnnl_success;
  cut_piece(e, at, size, p);
  const preference which = wish->algorithm == dnnl_convolution_winograd && p->s.n * tiles(&p->s) >= MANY_TILES ? LARGE_TILES : FIRST;
  for (int i = 0; i < OPERANDS && status == dnnl_success; i++) {
    status = given_md(k, &p->s, i, &p->op[i].given);
    if (status != dnnl_success) break;
    status = like != NULL && i == e->shared ? md_copy(&asked[i], ref(like)) : asked_md(e, p, i, wish->form, false, &asked[i]);
    if (status == dnnl_success && kind != RSI_CONV_FORWARD) status = asked_md(e, p, i, wish->form, true, &hinted[i]);
  }
  if (status == dnnl_success && k->bias) {
    const dnnl_dims_t dims = {p->s.o}, strides = {1};
    p->with_bias = true;
    status = md_strided(&p->bias, 1, dims, dnnl_f32, strides);
  }
  if (status == dnnl_success) status = post_ops(k, wish->apart ? &p->op[Y].given : NULL, &attr);
  const dnnl_prop_kind_t prop = k->packed ? dnnl_forward_inference : dnnl_forward_training;
  if (status == dnnl_success && kind != RSI_CONV_FORWARD)
    status = conv_desc(t->engine, t->attr, RSI_CONV_FORWARD, prop, wish->algorithm, hinted, NULL, &p->window, false, NULL, &hint);
  if (status == dnnl_success)
    status = conv_desc(t->engine, attr, kind, prop, wish->algorithm, asked, k->bias ? &p->bias : NULL, &p->window, which, hint, &desc);
  if (status == dnnl_success) status = adopt(t, e, wish, p, desc);
  if (attr) dnnl_primitive_attr_destroy(attr);
  if (desc) dnnl_primitive_desc_destroy(desc);
  if (hint) dnnl_primitive_desc_destroy(hint);
  for (int i = 0; i < OPERANDS; i++) md_free(&asked[i]), md_free(&hinted[i]);
  return status;
}

static size_t lane_bytes(const entry *e, const piece *p) {
  size_t pad = p->pad_bytes, bytes = 0;
  for (int i = 0; i < OPERANDS; i++) {
    if (i != e->shared && p->op[i].present && !p->op[i].same && !(i == W && e->key.packed)) bytes += p->op[i].bytes;
    if (p->op[i].reorder_pad > pad) pad = p->op[i].reorder_pad;
  }
  if (p->op[R].reorder_pad > pad) pad = p->op[R].reorder_pad;
  return bytes + rsi_lane_round(pad);
}

enum { PART_FILTERS = 16, MOST_PARTS = 16, PART_BYTES = 64 * 1024 };

/* Cuts the reordering of shared filters into parts of whole filters, if the primitive's layout has them one after the other. */
static dnnl_status_t make_parts(rsi_onednn *t, entry *e) {
  const rsi_conv_shape *const s = &e->key.s;
  const operand *const all = &e->piece[0].op[W];
  operand *const o = &e->part.op[W];
  e->parts = 0;
  if (s->groups > 1 || all->same || e->key.packed || all->reorder_pad > 0 || s->o % PART_FILTERS != 0) return dnnl_success;
  int64_t parts = s->o / PART_FILTERS;
  while (parts > 1 && (parts > MOST_PARTS || s->o % (parts * PART_FILTERS) != 0 || all->bytes / (size_t)parts < PART_BYTES)) parts--;
  if (parts < 2) return dnnl_success;
  const dnnl_dims_t dims = {s->o / parts, s->c, s->kh, s->kw}, start = {0}, second = {s->o / parts};
  md next;
  memset(&next, 0, sizeof next);
  if (md_part(&next, &all->used, dims, second) != dnnl_success) return dnnl_success;      /* not a blocked layout */
  const size_t item = dnnl_data_type_size(e->result == W || !in_bf16(&e->key) ? dnnl_f32 : dnnl_bf16);
  e->part_used = (size_t)md_offset(&next) * item;
  e->part_given = (size_t)(s->o / parts * s->c * s->kh * s->kw) * sizeof(float);
  md_free(&next);
  if (e->part_used * (size_t)parts != dnnl_memory_desc_get_size(ref(&all->used))) return dnnl_success;
  DNNL_TRY(md_part(&o->used, &all->used, dims, start));
  DNNL_TRY(md_part(&o->given, &all->given, dims, start));
  o->present = true;
  DNNL_TRY(rsi_onednn_reorder(t, o, e->result == W));
  if (o->reorder_pad == 0) e->parts = parts;
  return dnnl_success;
}

static dnnl_status_t make_pieces(rsi_onednn *t, entry *e, const wishes *wish) {
  const int64_t length = length_along(&e->key.s, e->cut), rest = length - (e->slices - 1) * e->size;
  e->shared = e->cut == BY_BATCH || e->cut == BY_ROWS ? W : e->cut == BY_FILTER ? X : e->cut == BY_CHANNEL ? Y : -1;
  e->partial = e->shared == e->result && e->slices > 1;
  if (e->slices == 1) e->shared = -1;
  DNNL_TRY(make_piece(t, e, wish, 0, e->size, NULL, &e->piece[0]));
  const md *const like = e->shared >= 0 ? &e->piece[0].op[e->shared].used : NULL;
  int pieces = 1;
  e->middle = e->last = 0;
  if (e->cut == BY_ROWS && e->slices > 2) {
    e->middle = pieces++;
    DNNL_TRY(make_piece(t, e, wish, e->size, e->size, like, &e->piece[e->middle]));
  }
  if (e->slices > 1 && (rest != e->size || e->cut == BY_ROWS)) {
    e->last = pieces++;
    DNNL_TRY(make_piece(t, e, wish, length - rest, rest, like, &e->piece[e->last]));
  }
  for (int i = 1; i < pieces; i++)
    if (like != NULL && !dnnl_memory_desc_equal(ref(like), ref(&e->piece[i].op[e->shared].used))) return dnnl_unimplemented;
  e->lane_bytes = 0, e->shared_bytes = 0;
  for (int i = 0; i < pieces; i++) {
    const size_t bytes = lane_bytes(e, &e->piece[i]);
    if (bytes > e->lane_bytes) e->lane_bytes = bytes;
  }
  if (e->shared >= 0 && !(e->shared == W && e->key.packed)) {
    const operand *const o = &e->piece[0].op[e->shared];
    if (e->partial) e->shared_bytes = (size_t)e->slices * o->bytes;
    else if (!o->same) e->shared_bytes = o->bytes;
    e->shared_bytes += rsi_lane_round(o->reorder_pad);
  }
  return e->shared == W ? make_parts(t, e) : dnnl_success;
}

static void free_pieces(entry *e) {
  for (int i = 0; i < MOST_PIECES; i++) rsi_onednn_piece_free(&e->piece[i]);
  rsi_onednn_piece_free(&e->part);
}

/* In bf16, and for NHWC, the implementations that could are worse than a copy. */
static bool apart_possible(const rsi_conv_call *k, dnnl_alg_kind_t algorithm) {
  return k->residual == RSI_CONV_APART && algorithm == dnnl_convolution_direct && !in_bf16(k) && (k->y_block == 8 || k->y_block == 16);
}

bool rsi_onednn_make(rsi_onednn *t, entry *e) {
  const rsi_conv_kind kind = (rsi_conv_kind)e->key.kind;
  wishes p = {.form = true};
  e->result = kind == RSI_CONV_FORWARD ? Y : kind == RSI_CONV_DATA ? X : W;
  const int former = rsi_onednn_alone();
  const bool image = kind == RSI_CONV_IMAGE;
  dnnl_status_t status = image ? rsi_onednn_image_make(t, e) : rsi_onednn_unfold_make(t, e);
  const bool plain = !image && status != dnnl_success && status != dnnl_out_of_memory;
  if (plain) {
    free_pieces(e);
    choose(e, &p.algorithm);
    p.apart = apart_possible(&e->key, p.algorithm);
    status = dnnl_success;
  }
  while (plain) {
    status = make_pieces(t, e, &p);
    if (status == dnnl_success || status == dnnl_out_of_memory) break;
    free_pieces(e);
    if (p.apart) p.apart = false;
    else if (p.form) p.form = false;
    else if (p.algorithm == dnnl_convolution_winograd) p.algorithm = dnnl_convolution_direct, p.form = true;
    else if (e->slices > 1) e->cut = BY_BATCH, e->slices = 1, e->size = e->key.s.n, p.form = true;
    else break;
  }
  e->apart = plain && p.apart;
  rsi_onednn_not_alone(former);
  e->usable = status == dnnl_success;
  return status != dnnl_out_of_memory;
}

#endif
