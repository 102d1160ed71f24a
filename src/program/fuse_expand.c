/*
** A 1x1 convolution whose image only a convolution with one filter for each channel reads becomes one instruction with it
** (ops/expand.c), when that image is so large that writing and reading it takes longer than the convolution. Both weights must be
** packed already, that is, fixed between runs; they are arranged anew in the prologue, and the packs go (clean.c).
*/
#include "program/fuse.h"
#include <string.h>

enum {
  LARGE_BYTES = 1400 * 1024,           /* of the image between the two: measured, about what does not stay in a core's cache */
  MOST_CHANNELS = 64                   /* of the image before it: with more the 1x1 convolution is better done by what is made for it */
};

typedef struct expansions {
  rs_program *p;
  rsi_facts   f;
  rsi_uses    u;
  int        *role;                    /* [ninstrs] of a depthwise convolution: the 1x1 one before it; of that one: -2; else -1 */
} expansions;

static bool all_are(const rsi_instr *i, const char *name, int64_t def, int64_t value) {
  const rs_list l = rsi_attr_list(i, name);
  return rsi_at(&l, 0, def) == value && rsi_at(&l, 1, def) == value;
}

/* The weight that a convolution's pack was made of; -1: it is not packed, or may change. */
static int weight_of(const expansions *x, const rsi_instr *i) {
  const int pack = x->f.def[i->ids[1]];
  if (pack < 0 || x->p->instrs[pack].op != &rsi_op_conv2d_pack) return -1;
  const int w = x->p->instrs[pack].ids[0];
  const rsi_desc *const d = &x->p->values[w].desc;
  const bool fits = d->dtype == RS_F32 && d->ndim == 4 && rsi_value_is_contiguous(x->p, w) && !x->f.written[rsi_base_of(x->p, w)];
  return fits ? w : -1;
}

/* Common to both: f32 blocks of the loops' width, no residual, no dilation. */
static bool suits(const expansions *x, const rsi_instr *i) {
  const int64_t b = x->p->ctx->x.k->depthwise->lanes;
  return i->op == &rsi_op_conv2d_block && !i->inplace && (i->nin < 4 || i->ids[3] < 0) && rsi_attr_int(i, "dtype") == RS_F32 &&
         x->p->values[i->ids[0]].desc.dtype == RS_F32 && rsi_attr_int(i, "block_in") == b && rsi_attr_int(i, "block_out") == b &&
         all_are(i, "dilation", 1, 1) && weight_of(x, i) >= 0;
}

static bool is_each(const expansions *x, const rsi_instr *i) {
  if (!suits(x, i)) return false;
  const rsi_desc *const w = &x->p->values[weight_of(x, i)].desc;
  const int64_t channels = rsi_attr_int(i, "channels"), size = w->shape[2];
  const rs_list padding = rsi_attr_list(i, "padding");
  return channels > 1 && rsi_attr_int(i, "groups") == channels && w->shape[0] == channels &&
         channels % x->p->ctx->x.k->depthwise->lanes == 0 && w->shape[3] == size && (size == 3 || size == 5) &&
         rsi_at(&padding, 0, 0) < size && rsi_at(&padding, 1, 0) < size &&
         (all_are(i, "stride", 1, 1) || all_are(i, "stride", 1, 2));
}

static bool is_point(const expansions *x, const rsi_instr *i) {
  if (!suits(x, i)) return false;
  const rsi_desc *const w = &x->p->values[weight_of(x, i)].desc;
  return rsi_attr_int(i, "groups") == 1 && w->shape[2] == 1 && w->shape[3] == 1 && w->shape[1] <= MOST_CHANNELS &&
         all_are(i, "stride", 1, 1) && all_are(i, "padding", 0, 0);
}

static void find(expansions *x, int k) {
  const rs_program *const p = x->p;
  const rsi_instr *const i = &p->instrs[k];
  if (!i->kernel || !is_each(x, i)) return;
  const int image = i->ids[0], d = x->f.def[image];
  if (d < 0 || x->role[d] != -1 || !p->instrs[d].kernel || !is_point(x, &p->instrs[d])) return;
  if (rsi_only_reader(p, &x->f, &x->u, image) != k || x->f.written[rsi_base_of(p, p->instrs[d].ids[0])]) return;
  if (rsi_value_numel(p, image) * (int64_t)sizeof(float) < LARGE_BYTES) return;
  if (p->values[image].desc.shape[3] < p->ctx->x.k->depthwise->narrowest || !rsi_value_is_contiguous(p, p->instrs[d].ids[0])) return;
  x->role[k] = d, x->role[d] = -2;
}

/* Weight [groups b, n, …] as [groups, n, b]; -1 after a failure. */
static int arranged(rsi_edit *e, int weight, int64_t groups, int64_t n, int64_t b) {
  const int64_t apart[3] = {groups, b, n};
  const rs_list dims = {3, {0, 2, 1}};
  rsi_attr_set a;
  int id = rsi_edit_id(e, weight), out = -1, turned = -1, made = -1;
  rsi_attrs_of(RS_OP_reshape, &a);
  rsi_attrs_sizes(&a, "shape", 3, apart);
  if (!rsi_edit_emit(e, RS_OP_reshape, a.bytes, 1, &id, 1, &out)) return -1;
  rsi_attrs_of(RS_OP_permute, &a);
  rsi_attrs_list(&a, "dims", &dims);
  if (!rsi_edit_emit(e, RS_OP_permute, a.bytes, 1, &out, 1, &turned)) return -1;
  return rsi_edit_emit(e, RS_OP_copy, NULL, 1, &turned, 1, &made) ? made : -1;
}

static int bias_of(const rsi_instr *i) { return i->nin > 2 ? i->ids[2] : -1; }

static bool emit(const expansions *x, rsi_edit *e, const rsi_instr *point, const rsi_instr *each, int w1, int w2) {
  const int64_t b = x->p->ctx->x.k->depthwise->lanes, channels = rsi_attr_int(point, "channels"), size = x->p->values[w2].desc.shape[2];
  const int64_t groups = x->p->values[w2].desc.shape[0] / b;
  const rs_list padding = rsi_attr_list(each, "padding"), stride = rsi_attr_list(each, "stride");
  rsi_attr_set a;
  const int in[5] = {rsi_edit_id(e, point->ids[0]), arranged(e, w1, groups, channels, b), arranged(e, w2, groups, size * size, b),
                     bias_of(point) < 0 ? -1 : rsi_edit_id(e, bias_of(point)), bias_of(each) < 0 ? -1 : rsi_edit_id(e, bias_of(each))};
  if (in[1] < 0 || in[2] < 0) return false;
  rsi_attrs_of(RS_OP_conv2d_expand_block, &a);
  rsi_attrs_int(&a, "channels", channels);
  rsi_attrs_int(&a, "size", size);
  rsi_attrs_int(&a, "stride", rsi_at(&stride, 0, 1));
  rsi_attrs_list(&a, "padding", &padding);
  rsi_attrs_int(&a, "inner", rsi_attr_int(point, "act"));
  rsi_attrs_int(&a, "act", rsi_attr_int(each, "act"));
  int out = each->ids[each->nin];
  return rsi_edit_emit(e, RS_OP_conv2d_expand_block, a.bytes, 5, in, 1, &out);
}

static rs_status run(rs_program *p, expansions *x) {
  rsi_edit e;
  void *block;
  int found = 0;
  const size_t count = (size_t)p->ninstrs, bytes = 3 * count * sizeof(int) + 1;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  x->role = block;
  int *const w1 = x->role + count, *const w2 = w1 + count;
  memset(x->role, -1, count * sizeof(int));
  for (int k = 0; k < p->ninstrs; k++) {
    find(x, k);
    if (x->role[k] < 0) continue;
    w1[k] = weight_of(x, &p->instrs[x->role[k]]), w2[k] = weight_of(x, &p->instrs[k]);
    found++;
  }
  rs_status status = found > 0 ? rsi_edit_begin(p, &e) : RS_OK;
  if (status == RS_OK && found > 0) {
    for (int k = 0; k < e.nold && e.status == RS_OK; k++) {
      if (x->role[k] == -1) rsi_edit_keep(&e, k);
      if (x->role[k] < 0 || emit(x, &e, &e.old[x->role[k]], &e.old[k], w1[k], w2[k])) continue;
      rsi_edit_keep(&e, x->role[k]);
      rsi_edit_keep(&e, k);
    }
    status = rsi_edit_end(&e);
  }
  rsi_free(p->heap, block, bytes);
  return status;
}

rs_status rsi_pass_expand(rs_program *p) {
  expansions x = {.p = p};
  if (p->half) return RS_OK;
  RSI_TRY(rsi_facts_make(p, &x.f));
  rs_status status = rsi_uses_make(p, &x.u);
  if (status == RS_OK) {
    status = run(p, &x);
    rsi_uses_free(p, &x.u);
  }
  rsi_facts_free(p, &x.f);
  return status;
}
