/*
** Conversion between dtypes, and the copy that makes a tensor contiguous. Both take any strides and every dtype themselves.
** A copy whose source runs fastest along another dimension than its result (a transposed one) moves in square tiles, so that
** each cache line that is read is used up before it is lost.
*/
#include "ops/pointwise.h"

/* ---- cast ------------------------------------------------------------------------------------------------------------ */

#define CAST_ATTRS(F, T) F(T, DTYPE, dtype, RS_F32, 0, RS_DTYPES - 1, NULL, "the dtype of the result")
RSI_ATTRS(cast, CAST_ATTRS)

rs_tensor *rsi_b_cast(rsi_grad *g, rs_tensor *t, int dtype) { return rsi_emit1(g, RS_OP_cast, &(cast_attrs){dtype}, t); }

static rs_status cast_infer(rsi_call *c) {
  rsi_desc_of(c->in[0], &c->desc[0]);
  c->desc[0].dtype = (int)RSI_ATTR(c, cast)->dtype;
  return RS_OK;
}

static rs_status cast_run(const rsi_call *c) {
  return rsi_run_rows(c, c->x->k->elementwise->cast->cast[c->in[0]->dtype][c->out[0]->dtype], NULL, 0.15);
}

static void pass_grad(rsi_grad *g) {
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_gout(g, 0));
}

static const cast_attrs to_f64 = {RS_F64}, to_bf16 = {RS_BF16}, to_f16 = {RS_F16}, to_i64 = {RS_I64}, to_i32 = {RS_I32},
                        to_u8 = {RS_U8}, to_bool = {RS_BOOL};
static const rsi_kernel cast_kernels[] = {{"rows", RSI_PORTABLE, RSI_ANY, NULL, NULL, cast_run}, {0}};
static const rsi_sample cast_samples[] = {
  {"f2x3", &to_f64, 0, 0}, {"f", &to_f64, 0, 0}, {"f0x3", &to_f64, 0, 0}, {"f7x33", NULL, 0, 1}, {"f33", &to_bf16, 1e-2, 1},
  {"f33", &to_f16, 1e-3, 1}, {"f33@-9:9", &to_i64, 0, 1}, {"f33@-9:9", &to_i32, 0, 1}, {"f33@0:200", &to_u8, 0, 1},
  {"f33", &to_bool, 0, 1}, {"i33@-3:3", NULL, 0, 1}, {"i7@-3:3", &to_bool, 0, 1}, {"b7", &to_f64, 0, 1}, {0}};

const rs_op rsi_op_cast = {
  .name = "cast", .doc = "x in another dtype: to floats rounds to nearest even, to integers cuts off the fraction and saturates "
                         "(NaN gives 0), to bool is x ~= 0.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_ELEMENTWISE | RSI_T_HALF, .dtypes = RSI_ANY,
  RSI_USES_ATTRS(cast), .infer = cast_infer, .grad = pass_grad, .kernels = cast_kernels, .samples = cast_samples,
};

/* ---- copy ------------------------------------------------------------------------------------------------------------ */

enum { TILE = 32 };

/*
** in and out as a nest of two operands; `fast` is the level along which the source is contiguous, `inner` the level along
** which the result is. An item is a strip of TILE steps of `fast` with all of `inner`, at one place of the other levels.
*/
typedef struct tiles { rsi_nest nest; int fast, inner; int64_t strips; size_t size; } tiles;

#define MOVE_TILE(T)                                                                                                        \
  for (int64_t i = 0; i < rows; i++)                                                                                        \
    for (int64_t j = 0; j < columns; j++)                                                                                   \
      *(T *)(void *)(to + i * to_fast + j * (int64_t)sizeof(T)) =                                                           \
        *(const T *)(const void *)(from + i * (int64_t)sizeof(T) + j * from_inner);

/* rows: along `fast`, columns: along `inner` */
static void move_tile(const tiles *t, char *to, const char *from, int64_t rows, int64_t columns) {
  const int64_t to_fast = t->nest.strides[0][t->fast], from_inner = t->nest.strides[1][t->inner];
  switch (t->size) {
    case 1: MOVE_TILE(uint8_t) break;
    case 2: MOVE_TILE(uint16_t) break;
    case 4: MOVE_TILE(uint32_t) break;
    default: MOVE_TILE(uint64_t) break;
  }
}

static void move_strips(void *arg, int64_t first, int64_t last) {
  const tiles *const t = arg;
  const rsi_nest *const nest = &t->nest;
  const int64_t length = nest->shape[t->fast], width = nest->shape[t->inner];
  for (int64_t item = first; item < last; item++) {
    const int64_t row = item % t->strips * TILE;
    char *to = nest->data[0] + row * nest->strides[0][t->fast];
    const char *from = nest->data[1] + row * nest->strides[1][t->fast];
    int64_t rest = item / t->strips;
    for (int d = nest->ndim - 1; d >= 0; d--) {
      if (d == t->fast || d == t->inner) continue;
      to += rest % nest->shape[d] * nest->strides[0][d];
      from += rest % nest->shape[d] * nest->strides[1][d];
      rest /= nest->shape[d];
    }
    const int64_t rows = length - row < TILE ? length - row : TILE;
    for (int64_t at = 0; at < width; at += TILE)
      move_tile(t, to + at * nest->strides[0][t->inner], from + at * nest->strides[1][t->inner], rows,
                width - at < TILE ? width - at : TILE);
  }
}

/* Is this a transposed copy that gains from tiles? Fills t then. */
static bool find_tiles(const rsi_call *c, tiles *t) {
  rs_tensor *const operands[2] = {c->out[0], c->in[0]};
  if (rsi_is_contiguous(c->in[0]) || !rsi_is_contiguous(c->out[0]) || c->out[0]->numel < TILE * TILE) return false;
  rsi_nest_make(&t->nest, operands, 2);
  t->size = rsi_item_size(c->out[0]);
  t->inner = t->nest.ndim - 1;
  const int64_t size = (int64_t)t->size;
  if (t->inner < 1 || t->nest.strides[1][t->inner] == size || t->nest.strides[1][t->inner] == 0) return false;
  for (t->fast = t->inner - 1; t->fast >= 0; t->fast--)
    if (t->nest.strides[1][t->fast] == size) break;
  if (t->fast < 0) return false;
  t->strips = (t->nest.shape[t->fast] + TILE - 1) / TILE;
  return true;
}

static rs_status copy_run(const rsi_call *c) {
  tiles t;
  if (find_tiles(c, &t)) {
    const int64_t items = t.nest.numel / (t.nest.shape[t.fast] * t.nest.shape[t.inner]) * t.strips;
    rsi_parallel(c->x, items, 0.4 * (double)t.nest.numel / (double)items, move_strips, &t);
    return RS_OK;
  }
  return rsi_run_rows(c, c->x->k->elementwise->cast->copy[rsi_size_index(c->out[0]->dtype)], NULL, 0.1);
}

static const rsi_kernel copy_kernels[] = {{"rows", RSI_PORTABLE, RSI_ANY, NULL, NULL, copy_run}, {0}};
static const rsi_sample copy_samples[] = {{"f2x3", NULL, 0, 0}, {"f", NULL, 0, 0}, {"f0x3", NULL, 0, 0}, {"f7x33", NULL, 0, 0},
                                          {"f33x65", NULL, 0, 1}, {"i7", NULL, 0, 1}, {"b7", NULL, 0, 1}, {0}};

const rs_op rsi_op_copy = {
  .name = "copy", .doc = "The same elements in a new contiguous tensor.", .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_ELEMENTWISE | RSI_T_HALF, .dtypes = RSI_ANY, .infer = rsi_infer_same, .grad = pass_grad,
  .kernels = copy_kernels, .samples = copy_samples,
};
