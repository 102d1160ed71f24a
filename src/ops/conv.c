/*
** Convolution (cross-correlation, as everywhere in this field) of images [N, C, H, W], and its two gradients.
**
** The three ops are one trilinear form T(x, w, g) = sum over all n, o, i, j of conv2d(x, w)[n, o, i, j] * g[n, o, i, j] seen from
** three sides: each op is the derivative of T by one argument, so the gradient rules of each are the other two.
**
** The portable kernels unfold the image into a matrix (rows: channel and tap, columns: outputs) for some rows of outputs at a
** time, and multiply. A task owns its part of the result, and the parts depend on the shape only, so that the result does not
** depend on the number of threads. Filters that see one channel go directly over the planes.
*/
#include "backend/backend.h"
#include "base/lanes.h"
#include "ops/op.h"
#include "ops/product.h"
#include "ops/split_product.h"
#include <string.h>

/* ---- attributes ------------------------------------------------------------------------------------------------------ */

#define CONV_ATTRS(F, T)                                                                                                    \
  F(T, INTS, stride, 1, 1, RSI_BIG, NULL, "step of the window: one number, or vertical and horizontal")                     \
  F(T, INTS, padding, 0, 0, RSI_BIG, NULL, "zeros around the image: one number, or vertical and horizontal")                \
  F(T, INTS, dilation, 1, 1, RSI_BIG, NULL, "distance of the taps: one number, or vertical and horizontal")                 \
  F(T, INT, groups, 1, 1, INT32_MAX, NULL, "channels and filters fall into this many groups that do not see each other")
#define CONV_DATA_ATTRS(F, T) CONV_ATTRS(F, T) F(T, SHAPE, input_size, 0, 0, RSI_BIG, NULL, "shape of the input")
#define CONV_WEIGHT_ATTRS(F, T) CONV_ATTRS(F, T) F(T, SHAPE, weight_size, 0, 0, RSI_BIG, NULL, "shape of the weight")
RSI_ATTRS(conv2d, CONV_ATTRS)
RSI_ATTRS(conv2d_backward_data, CONV_DATA_ATTRS)
RSI_ATTRS(conv2d_backward_weight, CONV_WEIGHT_ATTRS)

/* The attributes that all three begin with. */
static conv2d_attrs common_attrs(const void *attrs) {
  conv2d_attrs a;
  memcpy(&a, attrs, sizeof a);
  return a;
}

/* ---- shapes ---------------------------------------------------------------------------------------------------------- */

/* s from shapes that fit. */
static void set_shape(rsi_conv_shape *s, const conv2d_attrs *a, const int64_t *x, const int64_t *w) {
  *s = (rsi_conv_shape){.n = x[0], .c = x[1], .h = x[2], .w = x[3], .o = w[0], .kh = w[2], .kw = w[3], .groups = a->groups,
                        .sh = rsi_at(&a->stride, 0, 1), .sw = rsi_at(&a->stride, 1, 1),
                        .ph = rsi_at(&a->padding, 0, 0), .pw = rsi_at(&a->padding, 1, 0),
                        .dh = rsi_at(&a->dilation, 0, 1), .dw = rsi_at(&a->dilation, 1, 1)};
  s->oh = (s->h + 2 * s->ph - s->dh * (s->kh - 1) - 1) / s->sh + 1;
  s->ow = (s->w + 2 * s->pw - s->dw * (s->kw - 1) - 1) / s->sw + 1;
}

static rs_status check_list(const char *name, const rs_list *list, int64_t least) {
  RSI_CHECK(list->n <= 2, RS_ERR_ARG, "%s %s has %d values; give one, or two (vertical, horizontal)", name,
            rsi_shape_text((int)list->n, list->v), (int)list->n);
  for (int i = 0; i < list->n; i++)
    RSI_CHECK(list->v[i] >= least && list->v[i] <= INT32_MAX, RS_ERR_ARG, "%s is %lld, but must be %lld or more", name,
              (long long)list->v[i], (long long)least);
  return RS_OK;
}

static rs_status check_rank(const rs_tensor *t, const char *name, const char *wanted) {
  RSI_CHECK(t->ndim == 4, RS_ERR_SHAPE, "%s must have 4 dimensions, %s, got %s", name, wanted, rsi_text(t));
  return RS_OK;
}

static rs_status check_same_dtype(const rs_tensor *a, const rs_tensor *b, const char *name_a, const char *name_b) {
  RSI_CHECK(a->dtype == b->dtype, RS_ERR_DTYPE, "%s is %s but %s is %s; cast one of them", name_a, rs_dtype_name(a->dtype), name_b,
            rs_dtype_name(b->dtype));
  return RS_OK;
}

/* Checks the attributes and the shapes of input and weight against each other. */
static rs_status infer_shape(const void *attrs, const int64_t *x, const int64_t *w, rsi_conv_shape *s) {
  const conv2d_attrs a = common_attrs(attrs);
  RSI_TRY(check_list("stride", &a.stride, 1));
  RSI_TRY(check_list("padding", &a.padding, 0));
  RSI_TRY(check_list("dilation", &a.dilation, 1));
  const char *const xs = rsi_shape_text(4, x), *const ws = rsi_shape_text(4, w);
  const long long groups = a.groups;
  RSI_CHECK(groups >= 1, RS_ERR_ARG, "groups is %lld, but must be 1 or more", groups);
  RSI_CHECK(w[0] % groups == 0, RS_ERR_SHAPE, "the %lld filters of weight %s cannot be divided into %lld groups", (long long)w[0],
            ws, groups);
  RSI_CHECK(x[1] % groups == 0, RS_ERR_SHAPE, "the %lld channels of input %s cannot be divided into %lld groups", (long long)x[1],
            xs, groups);
  RSI_CHECK(x[1] / groups == w[1], RS_ERR_SHAPE, "input %s has %lld channels but weight %s expects %lld (groups %lld)", xs,
            (long long)x[1], ws, (long long)(w[1] * groups), groups);
  RSI_CHECK(w[2] > 0 && w[3] > 0, RS_ERR_SHAPE, "weight %s has an empty kernel", ws);
  set_shape(s, &a, x, w);
  const int64_t tall = s->dh * (s->kh - 1) + 1, wide = s->dw * (s->kw - 1) + 1;
  const int64_t h = s->h + 2 * s->ph, width = s->w + 2 * s->pw;
  RSI_CHECK(s->h > 0 && s->w > 0, RS_ERR_SHAPE, "input %s has images without pixels", xs);
  RSI_CHECK(tall <= h && wide <= width, RS_ERR_SHAPE,
            "the kernel of weight %s covers %lld x %lld pixels (dilation %lld, %lld), more than the %lld x %lld of input %s with padding "
            "%lld, %lld",
            ws, (long long)tall, (long long)wide, (long long)s->dh, (long long)s->dw, (long long)h, (long long)width, xs,
            (long long)s->ph, (long long)s->pw);
  return RS_OK;
}

static rs_status conv2d_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0], *const w = c->in[1], *const bias = c->in[2];
  rsi_conv_shape s;
  RSI_TRY(check_rank(x, "input", "[N, C, H, W]"));
  RSI_TRY(check_rank(w, "weight", "[O, C / groups, kh, kw]"));
  RSI_TRY(check_same_dtype(x, w, "input", "weight"));
  RSI_TRY(infer_shape(c->attrs, x->shape, w->shape, &s));
  if (bias != NULL) {
    RSI_CHECK(bias->ndim == 1 && bias->shape[0] == s.o, RS_ERR_SHAPE, "bias must be [%lld], one number for each filter of weight %s, "
              "got %s", (long long)s.o, rsi_text(w), rsi_text(bias));
    RSI_TRY(check_same_dtype(x, bias, "input", "bias"));
  }
  c->desc[0] = (rsi_desc){.dtype = x->dtype, .ndim = 4, .shape = {s.n, s.o, s.oh, s.ow}};
  return RS_OK;
}

/* g must be what a convolution of these shapes gives. */
static rs_status check_result(const rs_tensor *g, const rsi_conv_shape *s) {
  const int64_t want[4] = {s->n, s->o, s->oh, s->ow};
  RSI_CHECK(memcmp(g->shape, want, sizeof want) == 0, RS_ERR_SHAPE, "the gradient has shape %s, but the result has %s", rsi_text(g),
            rsi_shape_text(4, want));
  return RS_OK;
}

static rs_status check_size(const char *name, const rs_list *size) {
  RSI_CHECK(size->n == 4, RS_ERR_ARG, "%s must have 4 values, got %s", name, rsi_shape_text((int)size->n, size->v));
  for (int i = 0; i < 4; i++)
    RSI_CHECK(size->v[i] >= 0, RS_ERR_ARG, "%s %s has a negative size", name, rsi_shape_text(4, size->v));
  return RS_OK;
}

static rs_status conv2d_backward_data_infer(rsi_call *c) {
  const rs_tensor *const g = c->in[0], *const w = c->in[1];
  const rs_list *const size = &RSI_ATTR(c, conv2d_backward_data)->input_size;
  rsi_conv_shape s;
  RSI_TRY(check_rank(g, "gradient", "[N, O, H, W]"));
  RSI_TRY(check_rank(w, "weight", "[O, C / groups, kh, kw]"));
  RSI_TRY(check_same_dtype(g, w, "gradient", "weight"));
  RSI_TRY(check_size("input_size", size));
  RSI_TRY(infer_shape(c->attrs, size->v, w->shape, &s));
  RSI_TRY(check_result(g, &s));
  c->desc[0] = (rsi_desc){.dtype = g->dtype, .ndim = 4, .shape = {s.n, s.c, s.h, s.w}};
  return RS_OK;
}

static rs_status conv2d_backward_weight_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0], *const g = c->in[1];
  const rs_list *const size = &RSI_ATTR(c, conv2d_backward_weight)->weight_size;
  rsi_conv_shape s;
  RSI_TRY(check_rank(x, "input", "[N, C, H, W]"));
  RSI_TRY(check_rank(g, "gradient", "[N, O, H, W]"));
  RSI_TRY(check_same_dtype(x, g, "input", "gradient"));
  RSI_TRY(check_size("weight_size", size));
  RSI_TRY(infer_shape(c->attrs, x->shape, size->v, &s));
  RSI_TRY(check_result(g, &s));
  c->desc[0] = (rsi_desc){.dtype = x->dtype, .ndim = 4, .shape = {s.o, s.c / s.groups, s.kh, s.kw}};
  return RS_OK;
}

/* The shape of a call that infer has checked. */
static rsi_conv_shape shape_of(const rsi_call *c, rsi_conv_kind kind) {
  const int64_t *const result = c->out && c->out[0] ? c->out[0]->shape : c->desc[0].shape;
  const conv2d_attrs a = common_attrs(c->attrs);
  rsi_conv_shape s;
  set_shape(&s, &a, kind == RSI_CONV_DATA ? result : c->in[0]->shape, kind == RSI_CONV_WEIGHT ? result : c->in[1]->shape);
  return s;
}

/* ---- portable kernels ------------------------------------------------------------------------------------------------ */

enum {
  BLOCK_ELEMENTS = 128 * 1024,   /* of an unfolded matrix, so that it stays in the second-level cache */
  PARTS          = 8             /* tasks that a single image or group is divided into, if it can be */
};
static const double MIN_WORK = 4e6;      /* multiplications and additions that pay for a second thread */

/* How a kernel divides its work: tasks are groups of channels and rows of outputs. */
typedef struct plan {
  rsi_conv_shape s;
  rsi_conv_kind kind;
  bool    plain;                 /* 1x1 on every pixel: the image is the unfolded matrix */
  int64_t group_c, group_o, taps, depth;   /* of a group: channels, filters; kh * kw; group_c * taps */
  int64_t blocks, block_c;       /* channels are divided into blocks of block_c (data, weight) */
  int64_t rows;                  /* of outputs that are unfolded at once */
  int64_t row_blocks;            /* tasks per image and group (forward) */
  int64_t tasks;
  size_t  item, col, gemm;       /* bytes: of an element, of the matrix, of what the product needs */
  double  work;                  /* of all tasks */
} plan;

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static plan make_plan(const rsi_call *c, rsi_conv_kind kind) {
  plan p = {.s = shape_of(c, kind), .kind = kind, .item = rsi_dtype_size[c->in[0]->dtype]};
  const rsi_conv_shape *const s = &p.s;
  p.group_c = s->c / s->groups, p.group_o = s->o / s->groups, p.taps = s->kh * s->kw, p.depth = p.group_c * p.taps;
  p.plain = p.taps == 1 && s->sh == 1 && s->sw == 1 && s->ph == 0 && s->pw == 0;
  p.work = 2.0 * (double)(s->n * s->o * s->oh * s->ow) * (double)p.depth;
  const int64_t units = kind == RSI_CONV_WEIGHT ? s->groups : s->n * s->groups;
  const int64_t parts = kind == RSI_CONV_FORWARD || units >= PARTS || units == 0 ? 1 : divide_up(PARTS, units);
  p.block_c = p.group_c > 0 ? divide_up(p.group_c, parts) : 1;
  p.blocks = divide_up(p.group_c, p.block_c);
  const int64_t row = p.block_c * p.taps * s->ow;              /* elements that a row of outputs unfolds to */
  p.rows = row > 0 ? BLOCK_ELEMENTS / row : 1;
  if (p.rows < 1) p.rows = 1;
  if (p.rows > s->oh) p.rows = s->oh;
  p.row_blocks = divide_up(s->oh, p.rows);
  p.tasks = kind == RSI_CONV_FORWARD ? units * p.row_blocks : units * p.blocks;
  p.col = p.plain ? 0 : rsi_lane_round((size_t)(p.rows * row) * p.item);
  const int64_t m = kind == RSI_CONV_DATA ? p.block_c * p.taps : p.group_o;
  const int64_t n = kind == RSI_CONV_WEIGHT ? p.block_c * p.taps : p.rows * s->ow;
  const int64_t k = kind == RSI_CONV_FORWARD ? p.depth : kind == RSI_CONV_DATA ? p.group_o : p.rows * s->ow;
  p.gemm = rsi_lane_round(c->x->k->gemm->scratch(m, n, k, p.item));
  return p;
}

static size_t plan_scratch(const rsi_call *c, rsi_conv_kind kind) {
  const plan p = make_plan(c, kind);
  const int64_t lanes = p.work < MIN_WORK ? 1 : rsi_lane_count(rsi_pool_threads(c->x->pool), p.tasks);
  return (size_t)lanes * (p.col + p.gemm);
}

typedef struct job {
  plan p;
  const rsi_kernels    *k;
  const rsi_conv_loops *loops;
  const char *a, *b, *bias;      /* a: x, or the gradient of y; b: weight, or the gradient of y */
  char       *out;
} job;

static void multiply(const job *j, int64_t m, int64_t n, int64_t k, const void *a, int64_t ars, int64_t acs, const void *b,
                     int64_t brs, int64_t bcs, int beta, void *c, int64_t ldc, void *scratch) {
  if (j->p.item == sizeof(float)) j->k->gemm->sgemm(m, n, k, a, ars, acs, b, brs, bcs, beta, c, ldc, scratch);
  else j->k->gemm->dgemm(m, n, k, a, ars, acs, b, brs, bcs, beta, c, ldc, scratch);
}

/* Element i of an array of the call's type. */
#define AT(array, i) ((array) + (size_t)(i) * p->item)

/* y[n, group, rows] = bias + weight[group]: [group_o, depth] x col: [depth, rows * ow] */
static void forward_task(void *arg, int64_t task, void *scratch) {
  const job *const j = arg;
  const plan *const p = &j->p;
  const rsi_conv_shape *const s = &p->s;
  const int64_t block = task % p->row_blocks, unit = task / p->row_blocks;          /* unit: image, group */
  const int64_t group = unit % s->groups, row = block * p->rows;
  const int64_t rows = row + p->rows <= s->oh ? p->rows : s->oh - row, columns = rows * s->ow, plane = s->oh * s->ow;
  const char *const x = AT(j->a, unit * p->group_c * s->h * s->w);
  const char *const w = AT(j->b, group * p->group_o * p->depth);
  char *const y = AT(j->out, unit * p->group_o * plane + row * s->ow);
  j->loops->fill_rows(p->group_o, columns, plane, j->bias ? AT(j->bias, group * p->group_o) : NULL, y);
  if (p->depth == 0) return;
  char *const gemm = (char *)scratch + p->col;
  if (p->plain) {
    multiply(j, p->group_o, columns, p->depth, w, p->depth, 1, AT(x, row * s->ow), plane, 1, 1, y, plane, gemm);
    return;
  }
  j->loops->im2col(s, x, p->group_c, row, rows, scratch);
  multiply(j, p->group_o, columns, p->depth, w, p->depth, 1, scratch, columns, 1, 1, y, plane, gemm);
}

/* x[n, group, block] = fold of col: [block_c * taps, rows * ow] = weight[group, block] transposed x g[n, group, rows] */
static void data_task(void *arg, int64_t task, void *scratch) {
  const job *const j = arg;
  const plan *const p = &j->p;
  const rsi_conv_shape *const s = &p->s;
  const int64_t block = task % p->blocks, unit = task / p->blocks, group = unit % s->groups;
  const int64_t c0 = block * p->block_c, count = c0 + p->block_c <= p->group_c ? p->block_c : p->group_c - c0;
  const int64_t size = s->h * s->w, plane = s->oh * s->ow;
  const char *const g = AT(j->a, unit * p->group_o * plane);
  const char *const w = AT(j->b, group * p->group_o * p->depth + c0 * p->taps);
  char *const x = AT(j->out, (unit * p->group_c + c0) * size), *const gemm = (char *)scratch + p->col;
  memset(x, 0, (size_t)(count * size) * p->item);
  for (int64_t row = 0; row < s->oh && p->group_o > 0; row += p->rows) {
    const int64_t rows = row + p->rows <= s->oh ? p->rows : s->oh - row, columns = rows * s->ow;
    const char *const part = AT(g, row * s->ow);
    if (p->plain) {
      multiply(j, count, columns, p->group_o, w, 1, p->depth, part, plane, 1, 0, AT(x, row * s->ow), size, gemm);
    } else {
      multiply(j, count * p->taps, columns, p->group_o, w, 1, p->depth, part, plane, 1, 0, scratch, columns, gemm);
      j->loops->col2im(s, scratch, count, row, rows, x);
    }
  }
}

/* w[group, block]: [group_o, block_c * taps] = sum over n and rows of g[n, group, rows]: [group_o, rows * ow] x col transposed */
static void weight_task(void *arg, int64_t task, void *scratch) {
  const job *const j = arg;
  const plan *const p = &j->p;
  const rsi_conv_shape *const s = &p->s;
  const int64_t block = task % p->blocks, group = task / p->blocks;
  const int64_t c0 = block * p->block_c, count = c0 + p->block_c <= p->group_c ? p->block_c : p->group_c - c0;
  const int64_t plane = s->oh * s->ow;
  char *const w = AT(j->out, group * p->group_o * p->depth + c0 * p->taps), *const gemm = (char *)scratch + p->col;
  j->loops->fill_rows(p->group_o, count * p->taps, p->depth, NULL, w);
  for (int64_t n = 0; n < s->n; n++) {
    const char *const x = AT(j->a, (n * s->c + group * p->group_c + c0) * s->h * s->w);
    const char *const g = AT(j->b, (n * s->o + group * p->group_o) * plane);
    for (int64_t row = 0; row < s->oh; row += p->rows) {
      const int64_t rows = row + p->rows <= s->oh ? p->rows : s->oh - row, columns = rows * s->ow;
      const char *col = AT(x, row * s->ow);
      if (!p->plain) j->loops->im2col(s, x, count, row, rows, scratch), col = scratch;
      multiply(j, p->group_o, count * p->taps, columns, AT(g, row * s->ow), plane, 1, col, 1, p->plain ? plane : columns, 1, w,
               p->depth, gemm);
    }
  }
}

static job make_job(const rsi_call *c, rsi_conv_kind kind) {
  const rs_tensor *const bias = kind == RSI_CONV_FORWARD ? c->in[2] : NULL;
  return (job){.p = make_plan(c, kind), .k = c->x->k,
               .loops = c->in[0]->dtype == RS_F32 ? &c->x->k->conv->f32 : &c->x->k->conv->f64,
               .a = c->in[0]->data, .b = c->in[1]->data, .bias = bias ? bias->data : NULL, .out = c->out[0]->data};
}

static rs_status run_plan(const rsi_call *c, rsi_conv_kind kind, rsi_lane_fn fn) {
  job j = make_job(c, kind);
  const int64_t lanes = j.p.work < MIN_WORK ? 1 : rsi_lane_count(rsi_pool_threads(c->x->pool), j.p.tasks);
  if (c->out[0]->numel > 0) rsi_lanes_run(c->x->pool, lanes, j.p.tasks, fn, &j, c->scratch, j.p.col + j.p.gemm);
  return RS_OK;
}

/* ---- 1x1 on every pixel ---------------------------------------------------------------------------------------------- */

/*
** The image is the unfolded matrix, so the products are those of matrices, and by split tiles they beat oneDNN, which needs its own
** layouts: for each image y = weight x, dx = weight^T dy, and the weight's gradient is the sum over images of dy x^T.
*/
typedef struct point_call { rsi_conv_shape s; int64_t pixels, m, n, k; rsi_batch batch; } point_call;

static bool point_of(const rsi_call *c, rsi_conv_kind kind, point_call *p) {
  const rsi_conv_shape s = shape_of(c, kind);
  *p = (point_call){.s = s, .pixels = s.oh * s.ow};
  if (s.kh * s.kw != 1 || s.sh != 1 || s.sw != 1 || s.ph != 0 || s.pw != 0 || s.groups != 1 || s.n == 0) return false;
  p->m = kind == RSI_CONV_DATA ? s.c : s.o;
  p->n = kind == RSI_CONV_WEIGHT ? s.c : p->pixels;
  p->k = kind == RSI_CONV_FORWARD ? s.c : kind == RSI_CONV_DATA ? s.o : p->pixels;
  p->batch = (rsi_batch){kind == RSI_CONV_WEIGHT ? 1 : s.n, 0, p->k * p->n};
  return rsi_split_pays(c->x, p->m, p->n, p->k);
}

static size_t point_scratch(const rsi_call *c, rsi_conv_kind kind) {
  point_call p;
  return point_of(c, kind, &p) ? rsi_product_batch_scratch(c->x, RS_F32, p.batch, p.m, p.n, p.k) : 0;
}

static rs_status point_run(const rsi_call *c, rsi_conv_kind kind) {
  point_call p;
  RSI_CHECK(point_of(c, kind, &p), RS_ERR_UNSUPPORTED, "this was prepared for another precision or instruction set");
  const float *const a = c->in[0]->data, *const b = c->in[1]->data;
  float *const out = c->out[0]->data;
  if (kind == RSI_CONV_WEIGHT) {
    for (int64_t i = 0; i < p.s.n; i++)
      rsi_product(c->x, RS_F32, p.m, p.n, p.k, b + i * p.s.o * p.pixels, p.pixels, 1, a + i * p.s.c * p.pixels, 1, p.pixels, i > 0, out, p.n,
                  c->scratch);
    return RS_OK;
  }
  const bool forward = kind == RSI_CONV_FORWARD, bias = forward && c->in[2] != NULL;
  for (int64_t i = 0; bias && i < p.s.n; i++)
    c->x->k->conv->f32.fill_rows(p.m, p.n, p.n, c->in[2]->data, (char *)(out + i * p.m * p.n));
  rsi_product_batch(c->x, RS_F32, p.batch, p.m, p.n, p.k, b, forward ? p.s.c : 1, forward ? 1 : p.s.c, a, p.n, 1, bias, out, p.n, c->scratch);
  return RS_OK;
}

/* ---- filters that see one channel ------------------------------------------------------------------------------------ */

enum { FEW_FILTERS = 4 };         /* with more filters per channel, unfolding it once for all is faster */
static const double TAP_NS = 0.25;

static bool is_depthwise(const rsi_call *c, rsi_conv_kind kind) {
  const rsi_conv_shape s = shape_of(c, kind);
  return s.groups == s.c && s.o <= FEW_FILTERS * s.c && s.c > 0;
}

/* Planes [n, o] of y. */
static void depthwise_forward(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  const plan *const p = &j->p;
  const rsi_conv_shape *const s = &p->s;
  for (int64_t i = first; i < last; i++) {
    const int64_t n = i / s->o, o = i % s->o;
    j->loops->depthwise(s, AT(j->a, (n * s->c + o / p->group_o) * s->h * s->w), AT(j->b, o * p->taps),
                        j->bias ? AT(j->bias, o) : NULL, AT(j->out, i * s->oh * s->ow));
  }
}

/* Planes [n, c] of the gradient of x. */
static void depthwise_data(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  const plan *const p = &j->p;
  const rsi_conv_shape *const s = &p->s;
  const int64_t size = s->h * s->w;
  for (int64_t i = first; i < last; i++) {
    const int64_t n = i / s->c, o0 = i % s->c * p->group_o;
    memset(AT(j->out, i * size), 0, (size_t)size * p->item);
    for (int64_t o = o0; o < o0 + p->group_o; o++)
      j->loops->depthwise_data(s, AT(j->a, (n * s->o + o) * s->oh * s->ow), AT(j->b, o * p->taps), AT(j->out, i * size));
  }
}

/* Filters [o] of the gradient of weight. */
static void depthwise_weight(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  const plan *const p = &j->p;
  const rsi_conv_shape *const s = &p->s;
  memset(AT(j->out, first * p->taps), 0, (size_t)((last - first) * p->taps) * p->item);
  for (int64_t n = 0; n < s->n; n++)
    for (int64_t o = first; o < last; o++)
      j->loops->depthwise_weight(s, AT(j->a, (n * s->c + o / p->group_o) * s->h * s->w), AT(j->b, (n * s->o + o) * s->oh * s->ow),
                                 AT(j->out, o * p->taps));
}

static rs_status run_depthwise(const rsi_call *c, rsi_conv_kind kind, rsi_range_fn fn) {
  job j = make_job(c, kind);
  const rsi_conv_shape *const s = &j.p.s;
  const int64_t count = kind == RSI_CONV_FORWARD ? s->n * s->o : kind == RSI_CONV_DATA ? s->n * s->c : s->o;
  if (count > 0) rsi_parallel(c->x, count, TAP_NS * j.p.work / 2 / (double)count, fn, &j);
  return RS_OK;
}

/* ---- oneDNN ---------------------------------------------------------------------------------------------------------- */

enum { THIN_DEPTH = 32, THIN_CHANNELS = 8, POINT_CHANNELS = 256, POINT_PIXELS = 128 };

/*
** Where our product beats oneDNN with its reorders (measured on AVX-512): few rows in the unfolded matrix, a gradient with few
** channels, for which oneDNN has no loops, and 1x1 filters on images that are not tiny.
*/
static bool unfold_is_faster(const rsi_conv_shape *s, rsi_conv_kind kind) {
  if (kind == RSI_CONV_WEIGHT || s->groups > 1) return false;
  if (s->kh * s->kw == 1) return s->c <= POINT_CHANNELS && s->oh * s->ow >= POINT_PIXELS;
  return kind == RSI_CONV_FORWARD ? s->c * s->kh * s->kw <= THIN_DEPTH : s->c <= THIN_CHANNELS;
}

/* Plain images are block images of blocks of one. */
static rsi_conv_call plain_call(const rsi_call *c, rsi_conv_kind kind) {
  return (rsi_conv_call){.kind = kind, .s = shape_of(c, kind), .x_block = 1, .x_dtype = RS_F32, .y_block = 1, .y_dtype = RS_F32,
                         .bias = kind == RSI_CONV_FORWARD && c->in[2] != NULL, .exact = c->x->exact};
}

static bool onednn_accepts(const rsi_call *c, rsi_conv_kind kind) {
  if (c->x->onednn == NULL) return false;
  const rsi_conv_call call = plain_call(c, kind);
  return !unfold_is_faster(&call.s, kind) && rsi_onednn_conv_accepts(c->x->onednn, &call);
}

static size_t onednn_scratch(const rsi_call *c, rsi_conv_kind kind) {
  const rsi_conv_call call = plain_call(c, kind);
  return rsi_onednn_conv_scratch(c->x->onednn, &call, rsi_pool_threads(c->x->pool));
}

static rs_status onednn_run(const rsi_call *c, rsi_conv_kind kind) {
  const rsi_conv_call call = plain_call(c, kind);
  const rs_tensor *const bias = call.bias ? c->in[2] : NULL;
  void *const a = c->in[0]->data, *const b = c->in[1]->data, *const out = c->out[0]->data;
  const rsi_conv_data data = {.x = kind == RSI_CONV_DATA ? out : a, .w = kind == RSI_CONV_WEIGHT ? out : b,
                              .y = kind == RSI_CONV_FORWARD ? out : kind == RSI_CONV_DATA ? a : b, .bias = bias ? bias->data : NULL};
  return rsi_onednn_conv_run(c->x, &call, &data, c->scratch);
}

/* ---- kernel tables --------------------------------------------------------------------------------------------------- */

#define KERNELS(name, KIND)                                                                                                 \
  static bool name##_fast(const rsi_call *c) { return onednn_accepts(c, KIND); }                                            \
  static size_t name##_fast_scratch(const rsi_call *c) { return onednn_scratch(c, KIND); }                                  \
  static rs_status name##_fast_run(const rsi_call *c) { return onednn_run(c, KIND); }                                       \
  static bool name##_by_point(const rsi_call *c) { point_call p; return point_of(c, KIND, &p); }                                    \
  static size_t name##_by_point_scratch(const rsi_call *c) { return point_scratch(c, KIND); }                                  \
  static rs_status name##_by_point_run(const rsi_call *c) { return point_run(c, KIND); }                                       \
  static bool name##_thin(const rsi_call *c) { return is_depthwise(c, KIND); }                                              \
  static rs_status name##_thin_run(const rsi_call *c) { return run_depthwise(c, KIND, depthwise_##name); }                  \
  static size_t name##_scratch(const rsi_call *c) { return plan_scratch(c, KIND); }                                         \
  static rs_status name##_run(const rsi_call *c) { return run_plan(c, KIND, name##_task); }                                 \
  static const rsi_kernel name##_kernels[] = {                                                                              \
    {"point", RSI_PORTABLE, RSI_F32, name##_by_point, name##_by_point_scratch, name##_by_point_run},                                 \
    {"onednn", RSI_ONEDNN, RSI_F32, name##_fast, name##_fast_scratch, name##_fast_run},                                     \
    {"depthwise", RSI_PORTABLE, RSI_FLOATS, name##_thin, NULL, name##_thin_run},                                            \
    {"unfold", RSI_PORTABLE, RSI_FLOATS, NULL, name##_scratch, name##_run},                                                 \
    {NULL, 0, 0, NULL, NULL, NULL}};
KERNELS(forward, RSI_CONV_FORWARD)
KERNELS(data, RSI_CONV_DATA)
KERNELS(weight, RSI_CONV_WEIGHT)

/* ---- gradient rules: the other two sides of the form ----------------------------------------------------------------- */

static rs_tensor *emit_conv(rsi_grad *g, rs_tensor *x, rs_tensor *w) {
  const conv2d_attrs a = common_attrs(rsi_attrs(g));
  return rsi_emit2(g, RS_OP_conv2d, &a, x, w);
}

static rs_tensor *emit_data(rsi_grad *g, rs_tensor *gy, rs_tensor *w, const rsi_desc *x) {
  const conv2d_attrs a = common_attrs(rsi_attrs(g));
  conv2d_backward_data_attrs b = {a.stride, a.padding, a.dilation, a.groups, {.n = 4}};
  memcpy(b.input_size.v, x->shape, 4 * sizeof(int64_t));
  return rsi_emit2(g, RS_OP_conv2d_backward_data, &b, gy, w);
}

static rs_tensor *emit_weight(rsi_grad *g, rs_tensor *x, rs_tensor *gy, const rsi_desc *w) {
  const conv2d_attrs a = common_attrs(rsi_attrs(g));
  conv2d_backward_weight_attrs b = {a.stride, a.padding, a.dilation, a.groups, {.n = 4}};
  memcpy(b.weight_size.v, w->shape, 4 * sizeof(int64_t));
  return rsi_emit2(g, RS_OP_conv2d_backward_weight, &b, x, gy);
}

static void conv2d_grad(rsi_grad *g) {
  static const rs_list pixels = {3, {0, 2, 3}};
  rs_tensor *const gy = rsi_gout(g, 0);
  if (rsi_needs(g, 0)) rsi_give(g, 0, emit_data(g, gy, rsi_in(g, 1), rsi_in_desc(g, 0)));
  if (rsi_needs(g, 1)) rsi_give(g, 1, emit_weight(g, rsi_in(g, 0), gy, rsi_in_desc(g, 1)));
  if (rsi_has_in(g, 2) && rsi_needs(g, 2)) rsi_give(g, 2, rsi_b_sum(g, gy, &pixels, false));
}

static void conv2d_backward_data_grad(rsi_grad *g) {
  rs_tensor *const gx = rsi_gout(g, 0);
  if (rsi_needs(g, 0)) rsi_give(g, 0, emit_conv(g, gx, rsi_in(g, 1)));
  if (rsi_needs(g, 1)) rsi_give(g, 1, emit_weight(g, gx, rsi_in(g, 0), rsi_in_desc(g, 1)));
}

static void conv2d_backward_weight_grad(rsi_grad *g) {
  rs_tensor *const gw = rsi_gout(g, 0);
  if (rsi_needs(g, 0)) rsi_give(g, 0, emit_data(g, rsi_in(g, 1), gw, rsi_in_desc(g, 0)));
  if (rsi_needs(g, 1)) rsi_give(g, 1, emit_conv(g, rsi_in(g, 0), gw));
}

/* ---- samples --------------------------------------------------------------------------------------------------------- */

#define PAIR(a, b) {2, {a, b}}
#define ONE(a) {1, {a}}
static const conv2d_attrs same3 = {ONE(1), ONE(1), ONE(1), 1};
static const conv2d_attrs half3 = {ONE(2), ONE(1), ONE(1), 1};
static const conv2d_attrs wide = {PAIR(2, 3), PAIR(2, 1), PAIR(3, 2), 1};
static const conv2d_attrs paired = {PAIR(1, 2), PAIR(0, 1), ONE(1), 2};
static const conv2d_attrs each = {ONE(1), ONE(1), ONE(1), 6};
static const conv2d_attrs each_half = {ONE(2), PAIR(1, 2), PAIR(1, 2), 3};
static const conv2d_attrs point = {.groups = 1};
static const conv2d_attrs point_half = {.stride = ONE(2), .groups = 1};

static const rsi_sample conv2d_samples[] = {
  {"f2x3x8x8,f4x3x3x3,f4", &same3, 2e-5, 0},
  {"f1x2x7x9,f3x2x3x3", &half3, 2e-5, 0},
  {"f2x4x11x13,f5x4x3x5,f5", &wide, 2e-5, 0},
  {"f2x4x7x7,f6x2x3x2,f6", &paired, 2e-5, 0},
  {"f2x6x9x33,f6x1x3x3,f6", &each, 2e-5, 0},
  {"f1x3x9x8,f6x1x2x3", &each_half, 2e-5, 0},
  {"f3x5x6x7,f7x5x1x1,f7", &point, 2e-5, 0},
  {"f2x5x7x7,f3x5x1x1", &point_half, 2e-5, 0},
  {"f2x160x16x16,f160x160x1x1,f160", &point, 2e-4, 0},
  {"f2x1x5x5,f3x1x5x5,f3", NULL, 2e-5, 0},
  {"f1x17x10x10,f33x17x3x3,f33", &same3, 2e-5, 0},
  {"f2x64x16x16,f64x64x3x3,f64", &same3, 2e-4, 0},
  {"f0x3x8x8,f4x3x3x3,f4", &same3, 0, 0},
  {NULL, NULL, 0, 0}};

static const conv2d_backward_data_attrs
  data_same3 = {ONE(1), ONE(1), ONE(1), 1, {4, {2, 3, 8, 8}}}, data_half3 = {ONE(2), ONE(1), ONE(1), 1, {4, {1, 2, 8, 9}}},
  data_wide = {PAIR(2, 3), PAIR(2, 1), PAIR(3, 2), 1, {4, {2, 4, 11, 13}}},
  data_paired = {PAIR(1, 2), PAIR(0, 1), ONE(1), 2, {4, {2, 4, 7, 7}}},
  data_each = {ONE(1), ONE(1), ONE(1), 6, {4, {2, 6, 9, 33}}}, data_points = {.groups = 1, .input_size = {4, {2, 160, 16, 16}}}, data_point = {.groups = 1, .input_size = {4, {3, 5, 6, 7}}},
  data_big = {ONE(1), ONE(1), ONE(1), 1, {4, {2, 64, 16, 16}}}, data_empty = {ONE(1), ONE(1), ONE(1), 1, {4, {0, 3, 8, 8}}};
static const rsi_sample conv2d_backward_data_samples[] = {
  {"f2x4x8x8,f4x3x3x3", &data_same3, 2e-5, 0},   {"f1x3x4x5,f3x2x3x3", &data_half3, 2e-5, 0},
  {"f2x5x5x3,f5x4x3x5", &data_wide, 2e-5, 0},    {"f2x6x5x4,f6x2x3x2", &data_paired, 2e-5, 0},
  {"f2x6x9x33,f6x1x3x3", &data_each, 2e-5, 0},   {"f3x7x6x7,f7x5x1x1", &data_point, 2e-5, 0},
  {"f2x160x16x16,f160x160x1x1", &data_points, 2e-4, 0},
  {"f2x64x16x16,f64x64x3x3", &data_big, 2e-4, 0}, {"f0x4x8x8,f4x3x3x3", &data_empty, 0, 0},
  {NULL, NULL, 0, 0}};

static const conv2d_backward_weight_attrs
  weight_same3 = {ONE(1), ONE(1), ONE(1), 1, {4, {4, 3, 3, 3}}}, weight_half3 = {ONE(2), ONE(1), ONE(1), 1, {4, {3, 2, 3, 3}}},
  weight_wide = {PAIR(2, 3), PAIR(2, 1), PAIR(3, 2), 1, {4, {5, 4, 3, 5}}},
  weight_paired = {PAIR(1, 2), PAIR(0, 1), ONE(1), 2, {4, {6, 2, 3, 2}}},
  weight_each = {ONE(1), ONE(1), ONE(1), 6, {4, {6, 1, 3, 3}}}, weight_point = {.groups = 1, .weight_size = {4, {7, 5, 1, 1}}},
  weight_points = {.groups = 1, .weight_size = {4, {160, 160, 1, 1}}},
  weight_big = {ONE(1), ONE(1), ONE(1), 1, {4, {64, 64, 3, 3}}};
static const rsi_sample conv2d_backward_weight_samples[] = {
  {"f2x3x8x8,f2x4x8x8", &weight_same3, 2e-5, 0},   {"f1x2x7x9,f1x3x4x5", &weight_half3, 2e-5, 0},
  {"f2x4x11x13,f2x5x5x3", &weight_wide, 2e-5, 0},  {"f2x4x7x7,f2x6x5x4", &weight_paired, 2e-5, 0},
  {"f2x6x9x33,f2x6x9x33", &weight_each, 2e-5, 0},  {"f3x5x6x7,f3x7x6x7", &weight_point, 2e-5, 0},
  {"f2x160x16x16,f2x160x16x16", &weight_points, 2e-4, 0},
  {"f2x64x16x16,f2x64x16x16", &weight_big, 2e-4, 0}, {"f0x3x8x8,f0x4x8x8", &weight_same3, 0, 0},
  {NULL, NULL, 0, 0}};

/* ---- ops ------------------------------------------------------------------------------------------------------------- */

const rs_op rsi_op_conv2d = {
  .name = "conv2d",
  .doc = "Convolution of images x [N, C, H, W] with filters weight [O, C / groups, kh, kw]: "
         "y[n, o, i, j] = bias[o] + sum of weight[o, c, a, b] * x[n, c, i * stride + a * dilation - padding, ...].",
  .inputs = "x,weight,bias?",
  .nin_min = 2, .nin_max = 3, .nout = 1,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(conv2d),
  .infer = conv2d_infer,
  .grad = conv2d_grad,
  .saves = {RSI_KEEP_IN(1), RSI_KEEP_IN(0), 0},
  .kernels = forward_kernels,
  .samples = conv2d_samples,
};

const rs_op rsi_op_conv2d_backward_data = {
  .name = "conv2d_backward_data",
  .doc = "Gradient of conv2d with respect to its input, which is also the transposed convolution.",
  .inputs = "grad,weight",
  .nin_min = 2, .nin_max = 2, .nout = 1,
  .traits = RSI_T_INTERNAL,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(conv2d_backward_data),
  .infer = conv2d_backward_data_infer,
  .grad = conv2d_backward_data_grad,
  .saves = {RSI_KEEP_IN(1), RSI_KEEP_IN(0)},
  .kernels = data_kernels,
  .samples = conv2d_backward_data_samples,
};

const rs_op rsi_op_conv2d_backward_weight = {
  .name = "conv2d_backward_weight",
  .doc = "Gradient of conv2d with respect to its weight.",
  .inputs = "x,grad",
  .nin_min = 2, .nin_max = 2, .nout = 1,
  .traits = RSI_T_INTERNAL,
  .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(conv2d_backward_weight),
  .infer = conv2d_backward_weight_infer,
  .grad = conv2d_backward_weight_grad,
  .saves = {RSI_KEEP_IN(1), RSI_KEEP_IN(0)},
  .kernels = weight_kernels,
  .samples = conv2d_backward_weight_samples,
};
