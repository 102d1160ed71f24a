/*
** Layout: between convolutions images stay in the form that the convolutions want (block form, ops/conv_block.h), in f32 or bf16.
**
** The pass goes through the instructions once. An image of the old program may exist in plain form, as a twin in block form, or as
** both. An instruction that knows block form (convolutions, batch norm, pooling, element-wise ops, joining channels) takes and makes
** twins; any other one gets plain images, for which one reorder is emitted where the first one asks. So a chain of convolutions
** has reorders at its ends only. What joins (roles) is emitted as one instruction where its last part stood.
** Weights that are fixed between runs are packed, which then happens in the prologue.
*/
#include "program/images.h"
#include <string.h>

typedef struct image {
  int     twin;                /* value in block form; -1: none */
  int     taps, pool;          /* of the positions that max pooling made: the block op's positions, and the old instruction; -1 */
  int64_t block;
  bool    no_plain;            /* exists as a twin only */
} image;

typedef struct layout {
  rs_program *p;
  rsi_edit    e;
  image      *images;          /* [nmap] */
  rsi_role   *roles;           /* [nold] */
  bool       *fixed;           /* [nmap] of bases */
  const rsi_facts *facts;
  int         dtype;           /* of twins */
} layout;

/* ---- images ----------------------------------------------------------------------------------------------------------- */

static const rsi_desc *desc_of(const layout *l, int id) { return &l->p->values[id].desc; }

static bool is_image(const layout *l, int id) {
  return id >= 0 && id < l->e.nmap && desc_of(l, id)->ndim == 4 && desc_of(l, id)->dtype == RS_F32;
}

static bool has_twin(const layout *l, int id) { return id >= 0 && id < l->e.nmap && l->images[id].twin >= 0; }

/* The block for images of so many channels; 1: plain is best. */
static int64_t block_for(const layout *l, int64_t channels) {
  const int64_t b = rsi_conv_block_size(&l->p->ctx->x, l->dtype, channels);
  if (b <= 0) return 1;
  return l->dtype == RS_F32 && channels < b ? 1 : b;
}

static bool is_contiguous(const layout *l, int id) {
  rs_tensor t;
  rsi_phantom(l->p, id, &t);
  return rsi_is_contiguous(&t);
}

static int reshape(layout *l, int id, int ndim, const int64_t *shape) {
  rsi_attr_set a;
  int out = -1;
  rsi_attrs_of(RS_OP_reshape, &a);
  rsi_attrs_sizes(&a, "shape", ndim, shape);
  return rsi_edit_emit(&l->e, RS_OP_reshape, a.bytes, 1, &id, 1, &out) ? out : -1;
}

static int reorder(layout *l, int id, int64_t channels, int64_t from, int64_t block, int dtype) {
  rsi_attr_set a;
  int out = -1;
  rsi_attrs_of(RS_OP_image_block, &a);
  rsi_attrs_int(&a, "channels", channels);
  rsi_attrs_int(&a, "from", from);
  rsi_attrs_int(&a, "block", block);
  rsi_attrs_int(&a, "dtype", dtype);
  return rsi_edit_emit(&l->e, RS_OP_image_block, a.bytes, 1, &id, 1, &out) ? out : -1;
}

/* The plain form of an old value, as a value of the new program; -1 after a failure. */
static int plain(layout *l, int id) {
  if (id < 0 || id >= l->e.nmap || !l->images[id].no_plain) return rsi_edit_id(&l->e, id);
  image *const i = &l->images[id];
  const rsi_desc d = *desc_of(l, id);
  int out = reorder(l, i->twin, d.shape[1], i->block, 1, RS_F32);
  if (out >= 0) out = reshape(l, out, 4, d.shape);
  if (out < 0) return -1;
  rsi_edit_set(&l->e, id, out);
  i->no_plain = false;
  return out;
}

/* An old image in block form b; it is remembered. */
static int in_block(layout *l, int id, int64_t b) {
  image *const i = &l->images[id];
  const int64_t channels = desc_of(l, id)->shape[1];
  int out;
  if (i->twin >= 0 && i->block == b) return i->twin;
  if (i->twin >= 0) return reorder(l, i->twin, channels, i->block, b, l->dtype);
  int from = rsi_edit_id(&l->e, id);
  if (!is_contiguous(l, from)) {
    out = -1;
    if (!rsi_edit_emit(&l->e, RS_OP_copy, NULL, 1, &from, 1, &out)) return -1;
    from = out;
  }
  if (b == 1 && l->dtype == RS_F32) return from;
  out = reorder(l, from, channels, 1, b, l->dtype);
  if (out >= 0 && !l->facts->written[rsi_base_of(l->p, id)]) i->twin = out, i->block = b;
  return out;
}

/* The result `made` (block form b) stands for the old value id. */
static void set_twin(layout *l, int id, int made, int64_t b) {
  image *const i = &l->images[id];
  if (b == 1 && l->dtype == RS_F32) {
    const int flat = reshape(l, made, 4, desc_of(l, id)->shape);
    if (flat >= 0) rsi_edit_set(&l->e, id, flat);
    return;
  }
  *i = (image){.twin = made, .block = b, .no_plain = true, .taps = -1, .pool = -1};
  if (!l->facts->written[rsi_base_of(l->p, id)]) return;
  (void)plain(l, id);                  /* a later write changes the plain form; the twin would be stale */
  i->twin = -1;
}

/* ---- convolutions ------------------------------------------------------------------------------------------------------- */

static bool block_conv(const layout *l, int64_t channels, int64_t filters, int64_t groups) {
  if (rsi_conv_block_size(&l->p->ctx->x, l->dtype, 64) <= 0) return false;
  return groups == 1 || (groups == channels && groups == filters);
}

static void conv_attrs(const layout *l, rsi_attr_set *a, int op, const rsi_instr *i, int64_t channels, int64_t in, int64_t out) {
  rsi_attrs_of(op, a);
  rsi_attrs_from(a, i);
  rsi_attrs_int(a, "channels", channels);
  rsi_attrs_int(a, "block_in", in);
  rsi_attrs_int(a, "block_out", out);
  rsi_attrs_int(a, "dtype", l->dtype);
}

/* The weight (an old value's or what was made of one) as the convolution of these attributes wants it, when `origin` is fixed. */
static int packed(layout *l, const rsi_attr_set *conv, int weight, int origin, const int64_t *input_size) {
  const rsi_instr like = {.op = conv->op, .attrs = (void *)(uintptr_t)conv->bytes};
  rsi_attr_set a;
  int out = -1;
  if (origin >= l->e.nmap || !l->fixed[rsi_base_of(l->p, origin)]) return weight;
  rsi_attrs_of(RS_OP_conv2d_pack, &a);
  rsi_attrs_from(&a, &like);
  rsi_attrs_int(&a, "input_dtype", l->dtype);
  rsi_attrs_sizes(&a, "input_size", 4, input_size);
  return rsi_edit_emit(&l->e, RS_OP_conv2d_pack, a.bytes, 1, &weight, 1, &out) ? out : weight;
}

/* A 1x1 convolution between plain images is one product of matrices: two reorders would cost more than block form gives. */
static bool lone_point(const layout *l, const rsi_instr *i, int out) {
  const rsi_desc *const w = &l->p->values[rsi_edit_id(&l->e, i->ids[1])].desc;
  const rs_list stride = rsi_attr_list(i, "stride"), padding = rsi_attr_list(i, "padding");
  if (l->dtype != RS_F32 || has_twin(l, i->ids[0]) || l->facts->def[i->ids[0]] >= 0 || w->shape[2] * w->shape[3] != 1) return false;
  for (int d = 0; d < 2; d++)
    if (rsi_at(&stride, d, 1) != 1 || rsi_at(&padding, d, 0) != 0) return false;
  for (int o = 0; o < l->p->noutputs; o++)
    if (l->p->outputs[o] == out && l->facts->uses[out] == 1) return true;
  return false;
}

/* In bf16 the last convolution of a net, whose result nobody convolves, gives it in bf16 too: the reorder widens it. */
static bool forward_conv(layout *l, const rsi_instr *i, int out, int residual, int act) {
  const rsi_desc x = *desc_of(l, i->ids[0]), w = l->p->values[rsi_edit_id(&l->e, i->ids[1])].desc;
  const int64_t groups = rsi_attr_int(i, "groups");
  rsi_attr_set a;
  if (!block_conv(l, x.shape[1], w.shape[0], groups)) return false;
  if (groups == 1 && residual < 0 && act == RSI_CONV_NO_ACT && lone_point(l, i, out)) return false;
  const int64_t bi = has_twin(l, i->ids[0]) ? l->images[i->ids[0]].block : block_for(l, x.shape[1]), bo = block_for(l, w.shape[0]);
  conv_attrs(l, &a, RS_OP_conv2d_block, i, x.shape[1], bi, bo);
  rsi_attrs_int(&a, "act", act);
  rsi_attrs_sizes(&a, "weight_size", 4, w.shape);
  int in[4] = {in_block(l, i->ids[0], bi), rsi_edit_id(&l->e, i->ids[1]), rsi_edit_id(&l->e, i->ids[2]), -1}, y = -1;
  if (residual >= 0) in[3] = in_block(l, residual, bo);
  if (in[0] < 0 || (residual >= 0 && in[3] < 0)) return false;
  in[1] = packed(l, &a, in[1], i->ids[1], x.shape);
  if (!rsi_edit_emit(&l->e, RS_OP_conv2d_block, a.bytes, 4, in, 1, &y)) return false;
  set_twin(l, out, y, bo);
  return true;
}

static int permute(layout *l, int id, const rs_list *dims) {
  rsi_attr_set a;
  int out = -1, dense = -1;
  rsi_attrs_of(RS_OP_permute, &a);
  rsi_attrs_list(&a, "dims", dims);
  return rsi_edit_emit(&l->e, RS_OP_permute, a.bytes, 1, &id, 1, &out) && rsi_edit_emit(&l->e, RS_OP_copy, NULL, 1, &out, 1, &dense) ? dense : -1;
}

/*
** A transposed convolution whose windows do not overlap (stride and kernel k x m): each pixel becomes k x m pixels. It is a 1x1
** convolution to k m C channels, ordered (window row, window column, channel), whose result is put in place.
*/
static bool spread_conv(layout *l, const rsi_instr *i, int out, int bias) {
  const rsi_desc g = *desc_of(l, i->ids[0]), y = *desc_of(l, out), w = l->p->values[rsi_edit_id(&l->e, i->ids[1])].desc;
  const rs_list stride = rsi_attr_list(i, "stride"), padding = rsi_attr_list(i, "padding");
  const int64_t k = w.shape[2], m = w.shape[3], channels = y.shape[1], b = block_for(l, channels), bg = block_for(l, g.shape[1]);
  const bool fits = rsi_at(&stride, 0, 1) == k && rsi_at(&stride, 1, 1) == m && rsi_at(&padding, 0, 0) == 0 && rsi_at(&padding, 1, 0) == 0 &&
                    rsi_attr_int(i, "groups") == 1 && y.shape[2] == k * g.shape[2] && y.shape[3] == m * g.shape[3];
  if (!fits || k * m == 1 || k * m > 16 || b == 1 || channels % b != 0 || !is_contiguous(l, rsi_edit_id(&l->e, i->ids[1]))) return false;
  const int64_t groups = channels / b, wide = k * m * channels, wb = l->dtype == RS_F32 ? b : wide;
  const int64_t filters[4] = {wide, g.shape[1], 1, 1}, one[1] = {channels};
  const rs_list window_first = {4, {2, 3, 1, 0}};
  int in[4] = {in_block(l, i->ids[0], bg), permute(l, rsi_edit_id(&l->e, i->ids[1]), &window_first), -1, -1}, made = -1;
  if (in[0] < 0 || in[1] < 0 || (in[1] = reshape(l, in[1], 4, filters)) < 0) return false;
  if (bias >= 0) {
    int parts[16];
    const int row = reshape(l, rsi_edit_id(&l->e, bias), 1, one);
    for (int n = 0; n < k * m; n++) parts[n] = row;
    if (row < 0 || !rsi_edit_emit(&l->e, RS_OP_cat, NULL, (int)(k * m), parts, 1, &in[2])) return false;
  }
  rsi_attr_set a;
  rsi_attrs_of(RS_OP_conv2d_block, &a);
  rsi_attrs_int(&a, "channels", g.shape[1]);
  rsi_attrs_int(&a, "block_in", bg);
  rsi_attrs_int(&a, "block_out", wb);
  rsi_attrs_int(&a, "dtype", l->dtype);
  rsi_attrs_sizes(&a, "weight_size", 4, filters);
  in[1] = packed(l, &a, in[1], i->ids[1], g.shape);
  if (!rsi_edit_emit(&l->e, RS_OP_conv2d_block, a.bytes, 4, in, 1, &made)) return false;
  /* made: [N, (k, m, groups), H, W, b], or [N, 1, H, W, (k, m, channels)] */
  const int64_t n = y.shape[0], h = g.shape[2], v = g.shape[3], apart[7] = {n, k, m, groups, h, v, b}, whole[7] = {n, h, v, k, m, groups, b};
  const int64_t placed[5] = {n, groups, k * h, m * v, b};
  const rs_list blocks = {7, {0, 3, 4, 1, 5, 2, 6}}, pixels = {7, {0, 5, 1, 3, 2, 4, 6}};
  made = reshape(l, made, 7, wb == b ? apart : whole);
  if (made < 0 || (made = permute(l, made, wb == b ? &blocks : &pixels)) < 0 || (made = reshape(l, made, 5, placed)) < 0) return false;
  set_twin(l, out, made, b);
  return true;
}

/* bias: of a transposed convolution, [1, C, 1, 1]; -1: none. */
static bool data_conv(layout *l, const rsi_instr *i, int out, int bias) {
  const rsi_desc g = *desc_of(l, i->ids[0]);
  const int64_t channels = desc_of(l, out)->shape[1], groups = rsi_attr_int(i, "groups");
  rsi_attr_set a;
  if (!block_conv(l, channels, g.shape[1], groups)) return false;
  if (spread_conv(l, i, out, bias)) return true;
  const int64_t bo = has_twin(l, i->ids[0]) ? l->images[i->ids[0]].block : block_for(l, g.shape[1]), bi = block_for(l, channels);
  conv_attrs(l, &a, RS_OP_conv2d_block_data, i, channels, bi, bo);
  rsi_attrs_sizes(&a, "input_size", 4, desc_of(l, out)->shape);
  int in[3] = {in_block(l, i->ids[0], bo), rsi_edit_id(&l->e, i->ids[1]), -1}, y = -1;
  if (bias >= 0 && (in[2] = reshape(l, rsi_edit_id(&l->e, bias), 1, &channels)) < 0) return false;
  if (in[0] < 0 || !rsi_edit_emit(&l->e, RS_OP_conv2d_block_data, a.bytes, 3, in, 1, &y)) return false;
  set_twin(l, out, y, bi);
  return true;
}

static bool weight_conv(layout *l, const rsi_instr *i) {
  const rsi_desc x = *desc_of(l, i->ids[0]), g = *desc_of(l, i->ids[1]);
  rsi_attr_set a;
  if (!block_conv(l, x.shape[1], g.shape[1], rsi_attr_int(i, "groups"))) return false;
  const int64_t bi = has_twin(l, i->ids[0]) ? l->images[i->ids[0]].block : block_for(l, x.shape[1]);
  const int64_t bo = has_twin(l, i->ids[1]) ? l->images[i->ids[1]].block : block_for(l, g.shape[1]);
  conv_attrs(l, &a, RS_OP_conv2d_block_weight, i, x.shape[1], bi, bo);
  rsi_attrs_int(&a, "dtype", RS_F32);
  const int in[2] = {in_block(l, i->ids[0], bi), in_block(l, i->ids[1], bo)};
  int out = i->ids[i->nin];
  return in[0] >= 0 && in[1] >= 0 && rsi_edit_emit(&l->e, RS_OP_conv2d_block_weight, a.bytes, 2, in, 1, &out);
}

/* ---- batch norm --------------------------------------------------------------------------------------------------------- */

static bool forward_norm(layout *l, const rsi_instr *i, int out, int residual, int act) {
  rsi_attr_set a;
  const bool twin = has_twin(l, i->ids[0]);
  if (!twin && (l->dtype != RS_F32 || (act == RSI_CONV_NO_ACT && residual < 0))) return false;
  const int64_t b = twin ? l->images[i->ids[0]].block : 1;
  const int x = in_block(l, i->ids[0], b);
  rsi_attrs_of(RS_OP_batch_norm_block, &a);
  rsi_attrs_from(&a, i);
  rsi_attrs_int(&a, "channels", desc_of(l, i->ids[0])->shape[1]);
  rsi_attrs_int(&a, "act", act);
  int in[6] = {x}, made[3] = {-1, i->ids[i->nin + 1], i->ids[i->nin + 2]};
  for (int k = 1; k < 5; k++) in[k] = rsi_edit_id(&l->e, i->ids[k]);
  in[5] = residual >= 0 ? in_block(l, residual, b) : -1;
  if (x < 0 || (residual >= 0 && in[5] < 0)) return false;
  if (!rsi_edit_emit(&l->e, RS_OP_batch_norm_block, a.bytes, 6, in, 3, made)) return false;
  set_twin(l, out, made[0], b);
  return true;
}

/*
** The bias of the batch norm that made the ReLU `y` all by itself, which the backward `i` differentiates: then what ReLU let pass can
** be computed from x again, and y need not be read. -1: it is not so.
*/
static int bias_of_masked(const layout *l, const rsi_instr *i, int y) {
  const int k = l->facts->def[y];
  if (k < 0 || l->roles[k].kind != RSI_ROLE_END || l->roles[k].residual >= 0 || l->roles[k].act != RSI_CONV_RELU) return -1;
  const rsi_instr *const norm = &l->e.old[l->roles[k].head];
  if (norm->op != &rsi_op_batch_norm || !norm->ids || norm->ids[0] != i->ids[1] || norm->ids[norm->nin + 1] != i->ids[2]) return -1;
  return norm->ids[2];
}

/* mask: the relu_backward before it, or NULL; sum: the sum before that, or NULL. */
static bool backward_norm(layout *l, const rsi_instr *i, const rsi_instr *mask, const rsi_instr *sum, bool shared) {
  rsi_attr_set a;
  const int g = sum ? sum->ids[0] : mask ? mask->ids[0] : i->ids[0], x = i->ids[1];
  if (!has_twin(l, x) && !has_twin(l, g)) return false;
  const int64_t b = has_twin(l, x) ? l->images[x].block : l->images[g].block;
  rsi_attrs_of(RS_OP_batch_norm_block_backward, &a);
  rsi_attrs_from(&a, i);
  rsi_attrs_int(&a, "channels", desc_of(l, x)->shape[1]);
  rsi_attrs_int(&a, "act", mask ? RSI_CONV_RELU : RSI_CONV_NO_ACT);
  rsi_attrs_int(&a, "residual", shared || sum);
  const int bias = mask && !sum && !shared ? bias_of_masked(l, i, mask->ids[1]) : -1;
  const int in[8] = {in_block(l, g, b), in_block(l, x, b), mask && bias < 0 ? in_block(l, mask->ids[1], b) : -1, rsi_edit_id(&l->e, i->ids[2]),
                     rsi_edit_id(&l->e, i->ids[3]), rsi_edit_id(&l->e, i->ids[4]), rsi_edit_id(&l->e, bias), sum ? in_block(l, sum->ids[1], b) : -1};
  int out[4] = {-1, i->ids[i->nin + 1], i->ids[i->nin + 2], -1};
  if (in[0] < 0 || in[1] < 0 || (mask && bias < 0 && in[2] < 0) || (sum && in[7] < 0)) return false;
  if (!rsi_edit_emit(&l->e, RS_OP_batch_norm_block_backward, a.bytes, 8, in, 4, out)) return false;
  set_twin(l, i->ids[i->nin], out[0], b);
  if (shared) set_twin(l, mask->ids[mask->nin], out[3], b);
  return true;
}

/* ---- element-wise ------------------------------------------------------------------------------------------------------- */

/* Leaves zeros where all inputs are zero, so channels that only fill a block stay harmless. */
static bool keeps_zeros(const rsi_instr *i) {
  static const int ops[] = {RS_OP_relu, RS_OP_relu_backward, RS_OP_copy, RS_OP_neg, RS_OP_silu, RS_OP_silu_backward, RS_OP_hardswish,
                            RS_OP_hardswish_backward, RS_OP_leaky_relu, RS_OP_leaky_relu_backward, RS_OP_tanh, RS_OP_tanh_backward,
                            RS_OP_gelu, RS_OP_gelu_backward, RS_OP_sub, RS_OP_mul, RS_OP_add};
  if (i->op == &rsi_op_hardtanh || i->op == &rsi_op_hardtanh_backward) return rsi_attr_float(i, "min_val") <= 0 && rsi_attr_float(i, "max_val") >= 0;
  if ((i->op == &rsi_op_add || i->op == &rsi_op_sub) && (i->ids[0] < 0 || i->ids[1] < 0)) return false;
  for (size_t k = 0; k < sizeof ops / sizeof *ops; k++)
    if (rsi_ops[ops[k]] == i->op) return true;
  return false;
}

static bool same_shape(const rsi_desc *a, const rsi_desc *b) {
  if (a->ndim != b->ndim) return false;
  for (int d = 0; d < a->ndim; d++)
    if (a->shape[d] != b->shape[d]) return false;
  return true;
}

/* One number for each channel, [1, C, 1, 1] or [C, 1, 1], as it stands beside a twin of block b. -1: it is something else. */
static int beside_twin(layout *l, int id, int64_t channels, int64_t b) {
  const int now = plain(l, id);
  if (now < 0) return -1;
  const rsi_desc *const d = &l->p->values[now].desc;
  int64_t n = 1;
  for (int k = 0; k < d->ndim; k++) n *= d->shape[k];
  if (n == 1 && d->ndim <= 5) return now;
  const int at = d->ndim - 3;
  if (n != channels || at < 0 || d->shape[at] != channels || channels % b != 0 || !is_contiguous(l, now)) return -1;
  const int64_t shape[5] = {1, channels / b, 1, 1, b};
  return reshape(l, now, 5, shape);
}

static bool elementwise(layout *l, const rsi_instr *i) {
  const int out = i->ids[i->nin];
  int in[RSI_FEW], first = -1, made = -1;
  if (i->inplace || i->nout != 1 || i->nin > RSI_FEW || !is_image(l, out)) return false;
  for (int a = 0; a < i->nin; a++)
    if (first < 0 && has_twin(l, i->ids[a]) && same_shape(desc_of(l, i->ids[a]), desc_of(l, out))) first = i->ids[a];
  if (first < 0) return false;
  const int64_t b = l->images[first].block, channels = desc_of(l, out)->shape[1];
  if (channels % b != 0 && !keeps_zeros(i)) return false;
  for (int a = 0; a < i->nin; a++) {
    const int id = i->ids[a];
    if (id < 0) in[a] = -1;
    else if (is_image(l, id) && same_shape(desc_of(l, id), desc_of(l, out))) in[a] = in_block(l, id, b);
    else in[a] = beside_twin(l, id, channels, b);
    if (id >= 0 && in[a] < 0) return false;
  }
  if (!rsi_edit_emit(&l->e, rsi_number_of(i->op), i->attrs, i->nin, in, 1, &made)) return false;
  set_twin(l, out, made, b);
  return true;
}

/* ---- joining and cutting channels ---------------------------------------------------------------------------------------- */

/* In block form channels follow each other along the groups; with one group for all (NHWC) along the last dimension. */
static bool join(layout *l, const rsi_instr *i) {
  const int out = i->ids[i->nin];
  enum { MOST = 16 };
  int64_t b = 0;
  if (!is_image(l, out) || rsi_attr_int(i, "dim") != 1 || i->nin > MOST) return false;
  const int64_t channels = desc_of(l, out)->shape[1];
  bool whole = true;                   /* each image is one group */
  for (int a = 0; a < i->nin; a++) {
    if (!is_image(l, i->ids[a])) return false;
    if (!has_twin(l, i->ids[a])) continue;
    b = l->images[i->ids[a]].block;
    whole &= b == desc_of(l, i->ids[a])->shape[1];
  }
  if (!b || (whole && l->dtype == RS_F32)) whole = false;
  int in[MOST], made = -1;
  for (int a = 0; a < i->nin; a++)
    if (!b || (!whole && desc_of(l, i->ids[a])->shape[1] % b != 0)) return false;
  for (int a = 0; a < i->nin; a++)
    if ((in[a] = in_block(l, i->ids[a], whole ? desc_of(l, i->ids[a])->shape[1] : b)) < 0) return false;
  rsi_attr_set at;
  rsi_attrs_of(RS_OP_cat, &at);
  rsi_attrs_int(&at, "dim", whole ? 4 : 1);
  if (!rsi_edit_emit(&l->e, RS_OP_cat, at.bytes, i->nin, in, 1, &made)) return false;
  set_twin(l, out, made, whole ? channels : b);
  return true;
}

static bool cut(layout *l, const rsi_instr *i) {
  const int x = i->ids[0], out = i->ids[i->nin];
  if (!is_image(l, x) || !has_twin(l, x) || rsi_attr_int(i, "dim") != 1) return false;
  const int64_t b = l->images[x].block, start = rsi_attr_int(i, "start"), length = rsi_attr_int(i, "length");
  const bool whole = b == desc_of(l, x)->shape[1] && l->dtype != RS_F32;
  if (!whole && (start % b != 0 || length % b != 0 || desc_of(l, x)->shape[1] % b != 0)) return false;
  rsi_attr_set a;
  int part = -1, made = -1;
  rsi_attrs_of(RS_OP_narrow, &a);
  rsi_attrs_int(&a, "dim", whole ? 4 : 1);
  rsi_attrs_int(&a, "start", whole ? start : start / b);
  rsi_attrs_int(&a, "length", whole ? length : length / b);
  if (!rsi_edit_emit(&l->e, RS_OP_narrow, a.bytes, 1, &l->images[x].twin, 1, &part)) return false;
  if (!rsi_edit_emit(&l->e, RS_OP_copy, NULL, 1, &part, 1, &made)) return false;
  set_twin(l, out, made, whole ? length : b);
  return true;
}

/* ---- pooling ------------------------------------------------------------------------------------------------------------- */

/* Are the positions that max pooling made read by its backward only? */
static bool only_for_backward(const layout *l, int positions) {
  for (int k = 0; k < l->e.nold; k++) {
    const rsi_instr *const i = &l->e.old[k];
    for (int a = 0; i->ids && a < i->nin; a++)
      if (i->ids[a] == positions && !(a == 1 && i->op == &rsi_op_max_pool2d_backward)) return false;
  }
  return true;
}

static bool max_pool(layout *l, int k) {
  const rsi_instr *const i = &l->e.old[k];
  const int x = i->ids[0], positions = i->ids[2];
  rsi_attr_set a;
  if (!has_twin(l, x) || !only_for_backward(l, positions)) return false;
  int out[2] = {-1, -1};
  rsi_attrs_of(RS_OP_max_pool2d_block, &a);
  rsi_attrs_from(&a, i);
  if (!rsi_edit_emit(&l->e, RS_OP_max_pool2d_block, a.bytes, 1, &l->images[x].twin, 2, out)) return false;
  set_twin(l, i->ids[1], out[0], l->images[x].block);
  l->images[positions].taps = out[1];
  l->images[positions].pool = k;
  l->images[positions].block = l->images[x].block;
  return true;
}

/* Its positions exist in block form only when the forward was brought there. */
static bool max_pool_backward(layout *l, const rsi_instr *i) {
  const image *const of = &l->images[i->ids[1]];
  if (of->taps < 0) return false;
  rsi_attr_set a;
  rsi_attrs_of(RS_OP_max_pool2d_block_backward, &a);
  rsi_attrs_from(&a, &l->e.old[of->pool]);
  rsi_attrs_from(&a, i);
  const int64_t b = of->block;
  const int in[2] = {in_block(l, i->ids[0], b), of->taps};
  int out = -1;
  if (in[0] < 0 || !rsi_edit_emit(&l->e, RS_OP_max_pool2d_block_backward, a.bytes, 2, in, 1, &out)) {
    if (l->e.status == RS_OK) l->e.status = rsi_fail(RS_ERR_STATE, "layout: max_pool2d_backward could not follow its forward");
    return true;
  }
  set_twin(l, i->ids[i->nin], out, b);
  return true;
}

static bool avg_pool(layout *l, const rsi_instr *i, int op) {
  const int x = i->ids[0];
  rsi_attr_set a;
  int out = -1;
  if (!has_twin(l, x)) return false;
  const int64_t b = l->images[x].block;
  rsi_attrs_of(op, &a);
  rsi_attrs_from(&a, i);
  if (!rsi_edit_emit(&l->e, op, a.bytes, 1, &l->images[x].twin, 1, &out)) return false;
  set_twin(l, i->ids[i->nin], out, b);
  return true;
}

static bool all_ones(const int64_t *v, int n) {
  for (int k = 0; k < n; k++)
    if (v[k] != 1) return false;
  return true;
}

/* Both ends of a mean over whole planes: [N, C, 1, 1] stays plain. */
static bool global_pool(layout *l, const rsi_instr *i) {
  const int x = i->ids[0];
  int out = i->ids[i->nin];
  rsi_attr_set a;
  if (!has_twin(l, x) || !all_ones(&desc_of(l, out)->shape[2], 2)) return false;
  rsi_attrs_of(RS_OP_global_avg_pool_block, &a);
  rsi_attrs_int(&a, "channels", desc_of(l, x)->shape[1]);
  return rsi_edit_emit(&l->e, RS_OP_global_avg_pool_block, a.bytes, 1, &l->images[x].twin, 1, &out);
}

static bool global_pool_backward(layout *l, const rsi_instr *i) {
  const int g = i->ids[0], x = i->ids[i->nin];
  const int64_t b = block_for(l, desc_of(l, x)->shape[1]);
  rsi_attr_set a;
  int out = -1, from = plain(l, g);
  if (b == 1 || from < 0 || !all_ones(&desc_of(l, g)->shape[2], 2) || !is_contiguous(l, from)) return false;
  rsi_attrs_of(RS_OP_global_avg_pool_block_backward, &a);
  rsi_attrs_sizes(&a, "input_size", 4, desc_of(l, x)->shape);
  rsi_attrs_int(&a, "block", b);
  rsi_attrs_int(&a, "dtype", l->dtype);
  if (!rsi_edit_emit(&l->e, RS_OP_global_avg_pool_block_backward, a.bytes, 1, &from, 1, &out)) return false;
  set_twin(l, x, out, b);
  return true;
}

/* The sum over batch and planes, a bias' gradient. */
static bool channel_sum(layout *l, const rsi_instr *i) {
  const int x = i->ids[0], out = i->ids[i->nin];
  const rs_list dims = rsi_attr_list(i, "dims");
  bool seen[4] = {false};
  rsi_attr_set a;
  if (!is_image(l, x) || !has_twin(l, x) || dims.n != 3) return false;
  for (int k = 0; k < 3; k++)
    if (dims.v[k] >= 0 && dims.v[k] < 4) seen[dims.v[k]] = true;
  if (!seen[0] || seen[1] || !seen[2] || !seen[3]) return false;
  const rsi_desc d = *desc_of(l, out);
  int made = d.ndim == 1 ? out : -1;
  rsi_attrs_of(RS_OP_channel_sum_block, &a);
  rsi_attrs_int(&a, "channels", desc_of(l, x)->shape[1]);
  if (!rsi_edit_emit(&l->e, RS_OP_channel_sum_block, a.bytes, 1, &l->images[x].twin, 1, &made)) return false;
  if (made == out) return true;
  const int flat = rsi_is_outside(l->p, out) ? -1 : reshape(l, made, d.ndim, d.shape);
  if (flat < 0) return false;
  rsi_edit_set(&l->e, out, flat);
  return true;
}

/* ---- the walk ------------------------------------------------------------------------------------------------------------ */

/* The instruction with plain images. */
static void keep(layout *l, int k) {
  const rsi_instr *const i = &l->e.old[k];
  for (int a = 0; a < i->nin; a++)
    if (i->ids[a] >= 0 && plain(l, i->ids[a]) < 0 && l->e.status == RS_OK)
      l->e.status = rsi_fail(RS_ERR_STATE, "layout: an image could not be brought to plain form");
  rsi_edit_keep(&l->e, k);
}

static bool lower_one(layout *l, int k) {
  const rsi_instr *const i = &l->e.old[k];
  if (!i->kernel && i->op != &rsi_op_narrow) return false;
  if (i->op == &rsi_op_conv2d_backward_data) return is_image(l, i->ids[0]) && data_conv(l, i, i->ids[i->nin], -1);
  if (i->op == &rsi_op_conv2d_backward_weight) return is_image(l, i->ids[0]) && weight_conv(l, i);
  if (i->op == &rsi_op_batch_norm_backward) return is_image(l, i->ids[0]) && backward_norm(l, i, NULL, NULL, false);
  if (i->op == &rsi_op_cat) return join(l, i);
  if (i->op == &rsi_op_narrow) return cut(l, i);
  if (i->op == &rsi_op_max_pool2d) return is_image(l, i->ids[0]) && max_pool(l, k);
  if (i->op == &rsi_op_max_pool2d_backward) return is_image(l, i->ids[0]) && max_pool_backward(l, i);
  if (i->op == &rsi_op_avg_pool2d) return is_image(l, i->ids[0]) && avg_pool(l, i, RS_OP_avg_pool2d_block);
  if (i->op == &rsi_op_avg_pool2d_backward) return is_image(l, i->ids[0]) && avg_pool(l, i, RS_OP_avg_pool2d_block_backward);
  if (i->op == &rsi_op_adaptive_avg_pool2d) return is_image(l, i->ids[0]) && global_pool(l, i);
  if (i->op == &rsi_op_adaptive_avg_pool2d_backward) return is_image(l, i->ids[0]) && global_pool_backward(l, i);
  if (i->op == &rsi_op_sum) return channel_sum(l, i);
  if (i->op->traits & RSI_T_ELEMENTWISE) return elementwise(l, i);
  return false;
}

static bool lower_head(layout *l, const rsi_instr *head, int out, int residual, int act) {
  if (head->op == &rsi_op_conv2d) return forward_conv(l, head, out, residual, act);
  if (head->op == &rsi_op_batch_norm) return forward_norm(l, head, out, residual, act);
  return act == RSI_CONV_NO_ACT && data_conv(l, head, out, residual);
}

static bool lower_chain(layout *l, const rsi_role *r, int end) {
  const rsi_instr *const head = &l->e.old[r->head], *const last = &l->e.old[end];
  const int out = last->ids[last->nin];
  return lower_head(l, head, out, r->residual, r->act);
}

/* What could not become one instruction: its parts, in order. The parts lie between head and end. */
static void keep_chain(layout *l, const rsi_role *r, int end) {
  const rsi_instr *const head = &l->e.old[r->head];
  const int y = head->ids[head->nin];
  if (r->head == end || !lower_head(l, head, y, -1, RSI_CONV_NO_ACT)) keep(l, r->head);
  int id = y;
  for (int k = r->head + 1; k <= end; k++) {
    const rsi_instr *const i = &l->e.old[k];
    const bool part = (l->roles[k].kind == RSI_ROLE_JOINED || k == end) && i->nin > 0 && (i->ids[0] == id || (i->nin > 1 && i->ids[1] == id));
    if (!part) continue;
    id = i->ids[i->nin];
    if (!lower_one(l, k)) keep(l, k);
  }
}

static void walk(layout *l) {
  for (int k = 0; k < l->e.nold && l->e.status == RS_OK; k++) {
    const rsi_role *const r = &l->roles[k];
    const rsi_instr *const i = &l->e.old[k];
    if (r->kind == RSI_ROLE_JOINED) continue;
    if (r->kind == RSI_ROLE_END) {
      if (!lower_chain(l, r, k)) keep_chain(l, r, k);
    } else if (r->kind == RSI_ROLE_MASK) {
      if (backward_norm(l, &l->e.old[r->head], i, r->sum < 0 ? NULL : &l->e.old[r->sum], r->shared)) continue;
      if (r->sum >= 0 && !lower_one(l, r->sum)) keep(l, r->sum);
      if (!lower_one(l, k)) keep(l, k);
      l->roles[r->head].kind = RSI_ROLE_NONE;
    } else if (!lower_one(l, k)) keep(l, k);
  }
  for (int o = 0; o < l->p->noutputs; o++) (void)plain(l, l->p->outputs[o]);
}

static bool convolves(const rs_program *p) {
  for (int k = 0; k < p->ninstrs; k++)
    if (p->instrs[k].op == &rsi_op_conv2d || p->instrs[k].op == &rsi_op_conv2d_backward_data) return true;
  return false;
}

rs_status rsi_pass_layout(rs_program *p) {
  layout l = {.p = p, .dtype = p->half ? RS_BF16 : RS_F32};
  rsi_facts f;
  void *block;
  if (!convolves(p) || rsi_conv_block_size(&p->ctx->x, l.dtype, 64) <= 0) return RS_OK;
  RSI_TRY(rsi_facts_make(p, &f));
  const size_t n = (size_t)p->nvalues, m = (size_t)p->ninstrs, bytes = n * (sizeof(image) + 1) + m * sizeof(rsi_role) + 1;
  rs_status status = rsi_alloc(p->heap, bytes, &block);
  if (status == RS_OK) {
    l.images = block;
    l.roles = (rsi_role *)(l.images + n);
    l.fixed = (bool *)(l.roles + m);
    l.facts = &f;
    for (size_t i = 0; i < n; i++) l.images[i] = (image){.twin = -1, .taps = -1, .pool = -1};
    rsi_fixed(p, &f, l.fixed);
    status = rsi_image_roles(p, &f, l.roles);
    if (status == RS_OK) status = rsi_edit_begin(p, &l.e);
    if (status == RS_OK) {
      walk(&l);
      status = rsi_edit_end(&l.e);
    }
    rsi_free(p->heap, block, bytes);
  }
  rsi_facts_free(p, &f);
  return status;
}
