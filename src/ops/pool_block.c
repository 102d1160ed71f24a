/*
** Pooling of images in block form (block_image.h), and the sum of each channel. Windows are those of max_pool2d and avg_pool2d: their
** shape rules are asked for the size of the result, with a header of the plain image. The maximum leaves the number of the chosen
** tap, u8, for its gradient.
*/
#include "ops/block_image.h"
#include <string.h>

/* ---- attributes: those of the plain ops, which get them as they are --------------------------------------------------- */

#define WINDOW_ATTRS(F, T)                                                                                                  \
  F(T, INTS, kernel_size, 0, 1, RSI_BIG, NULL, "as in max_pool2d")                                                          \
  F(T, INTS, stride, 0, 1, RSI_BIG, NULL, "as in max_pool2d")                                                               \
  F(T, INTS, padding, 0, 0, RSI_BIG, NULL, "as in max_pool2d")
#define MAX_ATTRS(F, T)                                                                                                     \
  WINDOW_ATTRS(F, T)                                                                                                        \
  F(T, INTS, dilation, 1, 1, RSI_BIG, NULL, "as in max_pool2d")                                                             \
  F(T, BOOL, ceil_mode, 0, 0, 1, NULL, "as in max_pool2d")
#define AVG_ATTRS(F, T)                                                                                                     \
  WINDOW_ATTRS(F, T)                                                                                                        \
  F(T, BOOL, ceil_mode, 0, 0, 1, NULL, "as in avg_pool2d")                                                                  \
  F(T, BOOL, count_include_pad, 1, 0, 1, NULL, "as in avg_pool2d")
#define CHANNELS(F, T) F(T, INT, channels, 1, 1, INT32_MAX, NULL, "channels of the image")
#define INPUT_SIZE(F, T) F(T, SHAPE, input_size, 0, 0, RSI_BIG, NULL, "[N, C, H, W]")
#define MAX_BACK_ATTRS(F, T) MAX_ATTRS(F, T) INPUT_SIZE(F, T)
#define AVG_BACK_ATTRS(F, T) AVG_ATTRS(F, T) INPUT_SIZE(F, T)
#define GLOBAL_BACK_ATTRS(F, T)                                                                                             \
  INPUT_SIZE(F, T)                                                                                                          \
  F(T, INT, block, 1, 1, INT32_MAX, NULL, "block of the result")                                                            \
  F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "dtype of the result")
RSI_ATTRS(max_pool2d_block, MAX_ATTRS)
RSI_ATTRS(max_pool2d_block_backward, MAX_BACK_ATTRS)
RSI_ATTRS(avg_pool2d_block, AVG_ATTRS)
RSI_ATTRS(avg_pool2d_block_backward, AVG_BACK_ATTRS)
RSI_ATTRS(global_avg_pool_block, CHANNELS)
RSI_ATTRS(global_avg_pool_block_backward, GLOBAL_BACK_ATTRS)
RSI_ATTRS(channel_sum_block, CHANNELS)

/* ---- windows --------------------------------------------------------------------------------------------------------- */

enum { MOST_TAPS = 256 };    /* of max_pool2d_block: their numbers are bytes */

/* Asks the plain op for the height and width of the result for images of h x w pixels. */
static rs_status result_size(rsi_call *c, const rs_op *plain, int64_t n, int64_t channels, int64_t h, int64_t w, int64_t size[2]) {
  rs_tensor image = {.dtype = RS_F32, .ndim = 4, .flags = RSI_CONTIGUOUS, .shape = {n, channels, h, w}, .numel = n * channels * h * w};
  rs_tensor *in[1] = {&image}, *out[1] = {NULL};
  rsi_call call = {.op = plain, .x = c->x, .ctx = c->ctx, .nin = 1, .nout = 1, .in = in, .out = out, .attrs = c->attrs};
  RSI_TRY(plain->infer(&call));
  size[0] = call.desc[0].shape[2], size[1] = call.desc[0].shape[3];
  return RS_OK;
}

/* The image t with other planes. */
static void describe(const rs_tensor *t, int64_t h, int64_t w, rsi_desc *out) {
  rsi_desc_of(t, out);
  out->shape[2] = h, out->shape[3] = w;
}

static rs_status check_taps(const max_pool2d_block_attrs *a) {
  const double taps = (double)rsi_at(&a->kernel_size, 0, 1) * (double)rsi_at(&a->kernel_size, 1, 1);
  RSI_CHECK(taps <= MOST_TAPS, RS_ERR_UNSUPPORTED, "a window has %.0f elements, but %d are the most for block images", taps, (int)MOST_TAPS);
  return RS_OK;
}

static rs_status max_pool2d_block_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  int64_t size[2];
  RSI_TRY(rsi_block_check(x, "input", 0));
  RSI_TRY(result_size(c, &rsi_op_max_pool2d, x->shape[0], x->shape[1], x->shape[2], x->shape[3], size));
  RSI_TRY(check_taps(c->attrs));
  describe(x, size[0], size[1], &c->desc[0]);
  c->desc[1] = c->desc[0];
  c->desc[1].dtype = RS_U8;
  return RS_OK;
}

static rs_status avg_pool2d_block_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  int64_t size[2];
  RSI_TRY(rsi_block_check(x, "input", 0));
  RSI_TRY(result_size(c, &rsi_op_avg_pool2d, x->shape[0], x->shape[1], x->shape[2], x->shape[3], size));
  describe(x, size[0], size[1], &c->desc[0]);
  return RS_OK;
}

static rs_status check_size(const rs_list *size) {
  RSI_CHECK(size->n == 4, RS_ERR_ARG, "input_size must have 4 values, got %s", rsi_shape_text((int)size->n, size->v));
  for (int i = 0; i < 4; i++)
    RSI_CHECK(size->v[i] >= (i == 1), RS_ERR_ARG, "input_size %s has %s", rsi_shape_text(4, size->v),
              i == 1 ? "no channels" : "a negative size");
  return RS_OK;
}

/* g must be the gradient of what the plain op makes of input_size. */
static rs_status infer_back(rsi_call *c, const rs_op *plain, const rs_list *input) {
  const rs_tensor *const g = c->in[0];
  const int64_t *const v = input->v;
  int64_t size[2];
  RSI_TRY(check_size(input));
  RSI_TRY(rsi_block_check(g, "gradient", v[1]));
  RSI_TRY(result_size(c, plain, v[0], v[1], v[2], v[3], size));
  RSI_CHECK(g->shape[0] == v[0] && g->shape[2] == size[0] && g->shape[3] == size[1], RS_ERR_SHAPE,
            "gradient %s does not belong to an input %s", rsi_text(g), rsi_shape_text(4, v));
  describe(g, v[2], v[3], &c->desc[0]);
  return RS_OK;
}

static rs_status max_pool2d_block_backward_infer(rsi_call *c) {
  const rs_tensor *const g = c->in[0], *const tap = c->in[1];
  RSI_TRY(infer_back(c, &rsi_op_max_pool2d, &RSI_ATTR(c, max_pool2d_block_backward)->input_size));
  RSI_TRY(check_taps(c->attrs));
  RSI_CHECK(tap->dtype == RS_U8, RS_ERR_DTYPE, "taps must be u8, got %s", rs_dtype_name(tap->dtype));
  RSI_CHECK(rsi_same_shape(g, tap), RS_ERR_SHAPE, "the gradient has shape %s but the taps have %s", rsi_text(g), rsi_text(tap));
  return RS_OK;
}

static rs_status avg_pool2d_block_backward_infer(rsi_call *c) {
  return infer_back(c, &rsi_op_avg_pool2d, &RSI_ATTR(c, avg_pool2d_block_backward)->input_size);
}

/* ---- running over rows ----------------------------------------------------------------------------------------------- */

typedef struct pool_job {
  rsi_pool_shape s;
  const rsi_block_pool_loops *k;
  const char *from;
  char       *to;
  uint8_t    *tap;
  size_t      item;
  int64_t     block;
} pool_job;

/* image: [.., h, w, b], result: [.., oh, ow, b] */
static pool_job make_job(const rsi_call *c, const rs_tensor *image, const rs_tensor *result) {
  const max_pool2d_block_attrs *const a = c->attrs;       /* all begin with the window */
  rsi_pool_shape s = {.h = image->shape[2], .w = image->shape[3], .oh = result->shape[2], .ow = result->shape[3],
                      .kh = rsi_at(&a->kernel_size, 0, 1), .kw = rsi_at(&a->kernel_size, 1, 1), .dh = 1, .dw = 1};
  s.sh = rsi_at(&a->stride, 0, s.kh), s.sw = rsi_at(&a->stride, 1, s.kw);
  s.ph = rsi_at(&a->padding, 0, 0), s.pw = rsi_at(&a->padding, 1, 0);
  return (pool_job){.s = s, .k = image->dtype == RS_F32 ? &c->x->k->block_pool->f32 : &c->x->k->block_pool->bf16,
                    .from = c->in[0]->data, .to = c->out[0]->data, .item = rsi_item_size(image), .block = rsi_block_of(image)};
}

static void add_dilation(pool_job *j, const max_pool2d_block_attrs *a) {
  j->s.dh = rsi_at(&a->dilation, 0, 1), j->s.dw = rsi_at(&a->dilation, 1, 1);
}

/* Elements of a plane and of a row, on either side. */
#define IMAGE(j)      ((j)->s.h * IMAGE_ROW(j))
#define IMAGE_ROW(j)  ((j)->s.w * (j)->block)
#define RESULT(j)     ((j)->s.oh * RESULT_ROW(j))
#define RESULT_ROW(j) ((j)->s.ow * (j)->block)

/* Rows of the result, or of the image, of all planes. */
#define ROWS(name, count, call)                                                                                             \
  static void name(void *arg, int64_t first, int64_t last) {                                                                \
    const pool_job *const j = arg;                                                                                          \
    for (int64_t i = first; i < last; i++) {                                                                                \
      const int64_t plane = i / (count), row = i % (count);                                                                 \
      call;                                                                                                                 \
    }                                                                                                                       \
  }
#define AT(p, elements) ((p) + (size_t)(elements) * j->item)
ROWS(max_rows, j->s.oh, j->k->max(&j->s, j->block, AT(j->from, plane * IMAGE(j)), row, AT(j->to, i * RESULT_ROW(j)), j->tap + i * RESULT_ROW(j)))
ROWS(max_back_rows, j->s.h, j->k->max_back(&j->s, j->block, AT(j->from, plane * RESULT(j)), j->tap + plane * RESULT(j), row,
                                           AT(j->to, i * IMAGE_ROW(j))))
ROWS(avg_rows, j->s.oh, j->k->avg(&j->s, j->block, AT(j->from, plane * IMAGE(j)), row, AT(j->to, i * RESULT_ROW(j))))
ROWS(avg_back_rows, j->s.h, j->k->avg_back(&j->s, j->block, AT(j->from, plane * RESULT(j)), row, AT(j->to, i * IMAGE_ROW(j))))

static const double ELEMENT_NS = 0.1;

/* Nanoseconds for a row: every tap is looked at once. A row of single channels goes element by element. */
static double row_work(const pool_job *j, int64_t pixels, int64_t rows) {
  const double taps = (double)(j->s.kh * j->s.kw) * (double)(j->s.oh * j->s.ow) / (double)(rows * pixels);
  return ELEMENT_NS * (j->block < 8 ? 10 : 1) * (double)(pixels * j->block) * (1.0 + taps) + 5.0;
}

static rs_status run_pool(const rsi_call *c, pool_job *j, int64_t rows, int64_t pixels, rsi_range_fn fn) {
  rsi_parallel(c->x, c->in[0]->shape[0] * c->in[0]->shape[1] * rows, row_work(j, pixels, rows), fn, j);
  return RS_OK;
}

static rs_status max_pool2d_block_run(const rsi_call *c) {
  pool_job j = make_job(c, c->in[0], c->out[0]);
  add_dilation(&j, c->attrs);
  j.tap = c->out[1]->data;
  return run_pool(c, &j, j.s.oh, j.s.ow, max_rows);
}

static rs_status max_pool2d_block_backward_run(const rsi_call *c) {
  pool_job j = make_job(c, c->out[0], c->in[0]);
  add_dilation(&j, c->attrs);
  j.tap = c->in[1]->data;
  return run_pool(c, &j, j.s.h, j.s.w, max_back_rows);
}

static rs_status avg_pool2d_block_run(const rsi_call *c) {
  const avg_pool2d_block_attrs *const a = c->attrs;
  pool_job j = make_job(c, c->in[0], c->out[0]);
  j.s.include_pad = a->count_include_pad != 0;
  return run_pool(c, &j, j.s.oh, j.s.ow, avg_rows);
}

static rs_status avg_pool2d_block_backward_run(const rsi_call *c) {
  const avg_pool2d_block_backward_attrs *const a = c->attrs;
  pool_job j = make_job(c, c->out[0], c->in[0]);
  j.s.include_pad = a->count_include_pad != 0;
  return run_pool(c, &j, j.s.h, j.s.w, avg_back_rows);
}

/* ---- sums over whole planes ------------------------------------------------------------------------------------------ */

typedef struct plane_job {
  rsi_block_plan plan;
  const rsi_block_norm_loops *k;
  const char *x;
  float      *y;
  size_t      item;
  int64_t     channels, planes, elements;      /* planes: of the image, which the plan may have joined; elements of one */
  rsi_row_fn  cast;
  int64_t     groups;
} plane_job;

static plane_job make_planes(const rsi_call *c, const rs_tensor *x) {
  plane_job j = {.k = x->dtype == RS_F32 ? &c->x->k->block_norm->f32 : &c->x->k->block_norm->bf16, .x = x->data,
                 .item = rsi_item_size(x), .groups = x->shape[1], .planes = x->shape[0] * x->shape[1]};
  rsi_block_plan_make(x, &j.plan);
  j.elements = x->shape[2] * x->shape[3] * j.plan.block;
  return j;
}

static rs_status channel_sum_block_infer(rsi_call *c) {
  const int64_t channels = RSI_ATTR(c, channel_sum_block)->channels;
  RSI_TRY(rsi_block_check(c->in[0], "input", channels));
  c->desc[0] = (rsi_desc){.dtype = RS_F32, .ndim = 1, .shape = {channels}};
  return RS_OK;
}

static size_t channel_sum_block_scratch(const rsi_call *c) {
  rsi_block_plan plan;
  rsi_block_plan_make(c->in[0], &plan);
  return rsi_block_sums_bytes(&plan, 1);
}

static void sums_of(const void *arg, int64_t group, int64_t at, int64_t column, const rsi_columns *columns, double *sums,
                    float *memory, bool first) {
  const plane_job *const j = arg;
  (void)group, (void)column, (void)memory, (void)first;
  j->k->sums(AT(j->x, at), columns, sums);
}

/* y: [C] */
static rs_status channel_sum_block_run(const rsi_call *c) {
  const plane_job j = make_planes(c, c->in[0]);
  double *const sums = c->scratch;
  float *const y = c->out[0]->data;
  rsi_block_sums(c->x, &j.plan, 1, ELEMENT_NS, sums_of, &j, sums);
  for (int64_t i = 0; i < RSI_ATTR(c, channel_sum_block)->channels; i++) y[i] = (float)sums[i];
  return RS_OK;
}

static rs_status global_avg_pool_block_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  const int64_t channels = RSI_ATTR(c, global_avg_pool_block)->channels;
  RSI_TRY(rsi_block_check(x, "input", channels));
  RSI_CHECK(x->shape[2] > 0 && x->shape[3] > 0, RS_ERR_SHAPE, "input %s has images without pixels", rsi_text(x));
  c->desc[0] = (rsi_desc){.dtype = RS_F32, .ndim = 4, .shape = {x->shape[0], channels, 1, 1}};
  return RS_OK;
}

/* x: [n, g, h, w, b], y: [n, c] */
static void mean_planes(void *arg, int64_t first, int64_t last) {
  const plane_job *const j = arg;
  const rsi_block_plan *const p = &j->plan;
  const double share = (double)p->block / (double)j->elements;
  double sums[RSI_BLOCK_COLUMNS];
  for (int64_t i = first; i < last; i++) {
    const int64_t group = i % j->groups, rest = j->channels - group * p->block, filled = rest < p->block ? rest : p->block;
    float *const y = j->y + i / j->groups * j->channels + group * p->block;
    for (int64_t column = 0; column < p->width; column += RSI_BLOCK_COLUMNS) {
      const int64_t width = p->width - column < RSI_BLOCK_COLUMNS ? p->width - column : RSI_BLOCK_COLUMNS;
      memset(sums, 0, sizeof sums);
      for (int64_t at = 0; at < j->elements; at += p->piece) {
        const int64_t length = j->elements - at < p->piece ? j->elements - at : p->piece;
        const rsi_columns columns = {.pieces = 1, .rows = length / p->width, .stride = p->width, .width = width, .rest = length % p->width};
        j->k->sums(AT(j->x, i * j->elements + at + column), &columns, sums);
      }
      for (int64_t k = p->block; k < width; k++) sums[k % p->block] += sums[k];
      for (int64_t k = 0; k < width && column + k < filled; k++) y[column + k] = (float)(sums[k] * share);
    }
  }
}

static rs_status global_avg_pool_block_run(const rsi_call *c) {
  plane_job j = make_planes(c, c->in[0]);
  j.y = c->out[0]->data, j.channels = RSI_ATTR(c, global_avg_pool_block)->channels;
  rsi_parallel(c->x, j.planes, ELEMENT_NS * (double)j.elements + 50.0, mean_planes, &j);
  return RS_OK;
}

/* ---- the gradient of a mean ------------------------------------------------------------------------------------------ */

static rs_status global_avg_pool_block_backward_infer(rsi_call *c) {
  const global_avg_pool_block_backward_attrs *const a = c->attrs;
  const rs_tensor *const g = c->in[0];
  const int64_t *const v = a->input_size.v;
  RSI_TRY(check_size(&a->input_size));
  const int64_t want[4] = {v[0], v[1], 1, 1};
  RSI_CHECK(v[2] > 0 && v[3] > 0, RS_ERR_SHAPE, "input_size %s has images without pixels", rsi_shape_text(4, v));
  RSI_CHECK(g->ndim == 4 && memcmp(g->shape, want, sizeof want) == 0, RS_ERR_SHAPE, "the gradient has shape %s, but the result has %s",
            rsi_text(g), rsi_shape_text(4, want));
  RSI_CHECK(g->dtype == RS_F32, RS_ERR_DTYPE, "the gradient is %s; keep it in f32", rs_dtype_name(g->dtype));
  RSI_CHECK(a->dtype == RS_F32 || a->dtype == RS_BF16, RS_ERR_DTYPE, "dtype is %s, but block images are f32 or bf16",
            rs_dtype_name((int)a->dtype));
  c->desc[0] = (rsi_desc){.dtype = (int)a->dtype, .ndim = 5, .shape = {v[0], (v[1] + a->block - 1) / a->block, v[2], v[3], a->block}};
  return RS_OK;
}

/* x: [n, g, h, w, b] = g: [n, c] / (h w). A plane's first pixel is copied, then twice as many, and so on up to 4 KiB at a time. */
static void fill_planes(void *arg, int64_t first, int64_t last) {
  enum { PART = 64, MOST = 4096 };
  const plane_job *const j = arg;
  const rsi_block_plan *const p = &j->plan;
  const float share = (float)p->block / (float)j->elements;
  for (int64_t i = first; i < last; i++) {
    const int64_t group = i % j->groups, rest = j->channels - group * p->block, filled = rest < p->block ? rest : p->block;
    const float *const g = j->y + i / j->groups * j->channels + group * p->block;
    char *const to = (char *)(uintptr_t)j->x + (size_t)(i * j->elements) * j->item;
    float scaled[PART];
    for (int64_t k = 0; k < filled; k += PART) {
      const int64_t count = filled - k < PART ? filled - k : PART;
      char *const data[2] = {AT(to, k), (char *)scaled};
      for (int64_t l = 0; l < count; l++) scaled[l] = g[k + l] * share;
      j->cast(count, data, (const int64_t[]){(int64_t)j->item, sizeof(float)}, NULL);
    }
    memset(AT(to, filled), 0, (size_t)(p->block - filled) * j->item);
    const size_t bytes = (size_t)j->elements * j->item;
    for (size_t done = (size_t)p->block * j->item, unit = done; done < bytes; done += unit) {
      if (unit < done && done <= MOST) unit = done;
      if (unit > bytes - done) unit = bytes - done;
      memcpy(to + done, to, unit);
    }
  }
}

static rs_status global_avg_pool_block_backward_run(const rsi_call *c) {
  const rs_tensor *const x = c->out[0];
  plane_job j = make_planes(c, x);
  j.y = c->in[0]->data, j.channels = c->in[0]->shape[1];
  j.cast = c->x->k->elementwise->cast->cast[RS_F32][x->dtype];
  rsi_parallel(c->x, j.planes, ELEMENT_NS * (double)j.elements + 50.0, fill_planes, &j);
  return RS_OK;
}

/* ---- samples --------------------------------------------------------------------------------------------------------- */

#define ONE(a) {1, {a}}
#define PAIR(a, b) {2, {a, b}}
static const max_pool2d_block_attrs max2 = {.kernel_size = ONE(2)}, max3 = {ONE(3), ONE(2), ONE(1), {0}, 0},
                                    max_wide = {PAIR(2, 3), PAIR(1, 3), PAIR(1, 1), PAIR(3, 2), 0}, max_ceil = {ONE(3), ONE(2), {0}, {0}, 1};
static const rsi_sample max_pool2d_block_samples[] = {
  {"d2x2x8x8x16", &max2, 0, 1},     {"d1x1x7x33x8", &max3, 0, 1}, {"d2x1x9x11x27", &max_wide, 0, 1}, {"d1x2x8x10x1", &max_ceil, 0, 1},
  {"d1x3x7x9", &max2, 0, 1}, {"d0x3x8x8x16", &max2, 0, 1},  {NULL, NULL, 0, 0}};

static const max_pool2d_block_backward_attrs
  max2_back = {.kernel_size = ONE(2), .input_size = {4, {2, 32, 9, 9}}}, max3_back = {ONE(3), ONE(2), ONE(1), {0}, 0, {4, {1, 5, 7, 33}}},
  max_ceil_back = {ONE(3), ONE(2), {0}, {0}, 1, {4, {1, 2, 8, 10}}},
  max_wide_back = {PAIR(2, 3), PAIR(1, 3), PAIR(1, 1), PAIR(3, 2), 0, {4, {2, 27, 9, 11}}},
  max_empty_back = {.kernel_size = ONE(2), .input_size = {4, {0, 3, 8, 8}}};
static const rsi_sample max_pool2d_block_backward_samples[] = {
  {"f2x2x4x4x16,u2x2x4x4x16@0:3", &max2_back, 0, 1}, {"f1x1x4x17x8,u1x1x4x17x8@0:8", &max3_back, 0, 1},
  {"f2x1x8x3x27,u2x1x8x3x27@0:5", &max_wide_back, 0, 1}, {"f1x2x4x5x1,u1x2x4x5x1@0:8", &max_ceil_back, 0, 1},
  {"f0x1x4x4x16,u0x1x4x4x16@0:3", &max_empty_back, 0, 1}, {NULL, NULL, 0, 0}};

static const avg_pool2d_block_attrs avg2 = {.kernel_size = ONE(2), .count_include_pad = 1}, avg3 = {ONE(3), ONE(2), ONE(1), 0, 1},
                                    avg_inner = {PAIR(3, 2), PAIR(1, 2), ONE(1), 0, 0}, avg_ceil = {ONE(3), ONE(2), ONE(1), 1, 1};
static const rsi_sample avg_pool2d_block_samples[] = {
  {"f2x2x8x8x16", &avg2, 0, 1},      {"f1x1x7x33x8", &avg3, 0, 1}, {"f2x1x9x7x27", &avg_inner, 0, 1}, {"f1x2x8x10x1", &avg_ceil, 0, 1},
  {"f0x3x8x8x16", &avg2, 0, 1},  {NULL, NULL, 0, 0}};

static const avg_pool2d_block_backward_attrs
  avg2_back = {.kernel_size = ONE(2), .count_include_pad = 1, .input_size = {4, {2, 32, 8, 8}}},
  avg3_back = {ONE(3), ONE(2), ONE(1), 0, 1, {4, {1, 8, 7, 33}}}, inner_back = {PAIR(3, 2), PAIR(1, 2), ONE(1), 0, 0, {4, {2, 27, 9, 7}}},
  ceil_back = {ONE(3), ONE(2), ONE(1), 1, 1, {4, {1, 2, 8, 10}}}, avg_empty_back = {ONE(2), {0}, {0}, 0, 1, {4, {0, 3, 8, 8}}};
static const rsi_sample avg_pool2d_block_backward_samples[] = {
  {"f2x2x4x4x16", &avg2_back, 0, 1}, {"f1x1x4x17x8", &avg3_back, 0, 1},  {"f2x1x9x4x27", &inner_back, 0, 1},
  {"f1x2x5x6x1", &ceil_back, 0, 1}, {"f0x1x4x4x16", &avg_empty_back, 0, 1}, {NULL, NULL, 0, 0}};

static const global_avg_pool_block_attrs mean3 = {3}, mean20 = {20}, mean600 = {600};
static const rsi_sample global_avg_pool_block_samples[] = {
  {"f2x3x7x7x1", &mean3, 0, 1}, {"f2x2x7x5x16", &mean20, 0, 1}, {"f2x1x3x5x600", &mean600, 0, 1}, {"f2x1x7x7x3", &mean3, 0, 1},
  {"f0x3x7x7", &mean3, 0, 1},  {NULL, NULL, 0, 0}};

static const global_avg_pool_block_backward_attrs mean3_back = {{4, {2, 3, 7, 7}}, 1, RS_F32}, mean20_back = {{4, {2, 20, 7, 5}}, 16, RS_F32},
                                                  mean600_back = {{4, {2, 600, 3, 5}}, 600, RS_F32}, mean_empty_back = {{4, {0, 3, 7, 7}}, 8, RS_F32};
static const rsi_sample global_avg_pool_block_backward_samples[] = {
  {"f2x3x1x1", &mean3_back, 0, 1}, {"f2x20x1x1", &mean20_back, 0, 1}, {"f2x600x1x1", &mean600_back, 0, 1},
  {"f0x3x1x1", &mean_empty_back, 0, 1}, {NULL, NULL, 0, 0}};

static const channel_sum_block_attrs sum3 = {3}, sum20 = {20}, sum600 = {600};
static const rsi_sample channel_sum_block_samples[] = {
  {"f2x3x7x7x1", &sum3, 0, 1}, {"f2x2x7x5x16", &sum20, 0, 1}, {"f2x1x3x5x600", &sum600, 0, 1}, {"f2x1x7x7x3", &sum3, 0, 1},
  {"f0x3x7x7", &sum3, 0, 1},  {NULL, NULL, 0, 0}};

/* ---- the ops --------------------------------------------------------------------------------------------------------- */

#define KERNELS(op, scratch) \
  static const rsi_kernel op##_kernels[] = {{#op, RSI_PORTABLE, RSI_F32 | RSI_HALF, NULL, scratch, op##_run}, {0}};
KERNELS(max_pool2d_block, NULL)
KERNELS(max_pool2d_block_backward, NULL)
KERNELS(avg_pool2d_block, NULL)
KERNELS(avg_pool2d_block_backward, NULL)
KERNELS(global_avg_pool_block, NULL)
KERNELS(global_avg_pool_block_backward, NULL)
KERNELS(channel_sum_block, channel_sum_block_scratch)

#define BLOCK_OP(op)                                                                                                        \
  .name = #op, .traits = RSI_T_INTERNAL | RSI_T_HALF, .dtypes = RSI_F32 | RSI_HALF, RSI_USES_ATTRS(op), .infer = op##_infer,  \
  .kernels = op##_kernels, .samples = op##_samples

const rs_op rsi_op_max_pool2d_block = {
  BLOCK_OP(max_pool2d_block), .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 2,
  .doc = "max_pool2d of an image in block form; the second result holds the numbers of the chosen taps, u8.",
};
const rs_op rsi_op_max_pool2d_block_backward = {
  BLOCK_OP(max_pool2d_block_backward), .inputs = "grad,taps", .nin_min = 2, .nin_max = 2, .nout = 1,
  .doc = "Gradient of max_pool2d_block: gives each element of grad to its tap.",
};
const rs_op rsi_op_avg_pool2d_block = {
  BLOCK_OP(avg_pool2d_block), .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .doc = "avg_pool2d of an image in block form.",
};
const rs_op rsi_op_avg_pool2d_block_backward = {
  BLOCK_OP(avg_pool2d_block_backward), .inputs = "grad", .nin_min = 1, .nin_max = 1, .nout = 1,
  .doc = "Gradient of avg_pool2d_block.",
};
const rs_op rsi_op_global_avg_pool_block = {
  BLOCK_OP(global_avg_pool_block), .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .doc = "Mean of each channel of each image in block form: [N, C, 1, 1], f32 and plain.",
};
const rs_op rsi_op_global_avg_pool_block_backward = {
  BLOCK_OP(global_avg_pool_block_backward), .inputs = "grad", .nin_min = 1, .nin_max = 1, .nout = 1,
  .doc = "Gradient of global_avg_pool_block: an image in block form.",
};
const rs_op rsi_op_channel_sum_block = {
  BLOCK_OP(channel_sum_block), .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .doc = "Sum of each channel of an image in block form: [C], f32.",
};
