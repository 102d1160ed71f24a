/*
** Chains and trees of element-wise instructions of one shape become one `fused` (or `fused_many`, when values inside are wanted
** outside too). A group is emitted where its last member stood; so nobody outside may read what a member makes before that, and
** nobody may write what a member reads in between.
*/
#include "program/fuse.h"
#include "ops/fused.h"
#include <string.h>

enum {
  LEAST = 2048,        /* elements of a value: below that reading the steps costs more than the way to memory and back */
  LEAST_ROW = 64       /* elements that lie together in every operand: shorter rows are not worth a tile */
};

/* ---- which ops are steps ------------------------------------------------------------------------------------------------ */

typedef struct entry { const rs_op *op; uint8_t family, index; } entry;

#define UNARY(NAME, WHICH)  {&rsi_op_##NAME, RSI_F_UNARY, RSI_U_##WHICH}
#define BINARY(NAME, WHICH) {&rsi_op_##NAME, RSI_F_BINARY, RSI_B_##WHICH}
#define ACTIVATION(NAME, WHICH) {&rsi_op_##NAME, RSI_F_FORWARD, RSI_A_##WHICH}, {&rsi_op_##NAME##_backward, RSI_F_BACKWARD, RSI_A_##WHICH}
static const entry entries[] = {
  UNARY(neg, NEG), UNARY(abs, ABS), UNARY(square, SQUARE), UNARY(sign, SIGN), UNARY(relu, RELU), UNARY(clamp, CLAMP),
  UNARY(sqrt, SQRT), UNARY(rsqrt, RSQRT), UNARY(reciprocal, RECIPROCAL), UNARY(floor, FLOOR), UNARY(ceil, CEIL),
  UNARY(round, ROUND), UNARY(exp, EXP), UNARY(expm1, EXPM1), UNARY(log, LOG), UNARY(log1p, LOG1P), UNARY(sin, SIN),
  UNARY(cos, COS), UNARY(erf, ERF), UNARY(tanh, TANH), UNARY(sigmoid, SIGMOID), UNARY(gelu, GELU), UNARY(logical_not, NOT),
  UNARY(isnan, ISNAN), UNARY(isfinite, ISFINITE),
  BINARY(add, ADD), BINARY(sub, SUB), BINARY(mul, MUL), BINARY(div, DIV), BINARY(pow, POW), BINARY(maximum, MAXIMUM),
  BINARY(minimum, MINIMUM), BINARY(eq, EQ), BINARY(ne, NE), BINARY(lt, LT), BINARY(le, LE), BINARY(gt, GT), BINARY(ge, GE),
  BINARY(logical_and, AND), BINARY(logical_or, OR), BINARY(tanh_backward, TANH_BACKWARD),
  BINARY(sigmoid_backward, SIGMOID_BACKWARD), BINARY(relu_backward, RELU_BACKWARD), BINARY(gelu_backward, GELU_BACKWARD),
  BINARY(clamp_backward, CLAMP_BACKWARD),
  ACTIVATION(silu, SILU), ACTIVATION(elu, ELU), ACTIVATION(leaky_relu, LEAKY_RELU), ACTIVATION(hardtanh, HARDTANH),
  ACTIVATION(softplus, SOFTPLUS), ACTIVATION(hardsigmoid, HARDSIGMOID), ACTIVATION(hardswish, HARDSWISH), ACTIVATION(mish, MISH),
  {&rsi_op_where, RSI_F_WHERE, 0}, {&rsi_op_cast, RSI_F_CAST, 0},
};

static const entry *entry_of(const rs_op *op) {
  for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
    if (entries[i].op == op) return &entries[i];
  return NULL;
}

/* How the step of an instruction is called: its row, the inputs it reads (-1: a number), and its numbers. */
typedef struct form {
  int     family, index, noperands, nargs;
  int     ids[3];                      /* values; -1: numbers[i] */
  double  numbers[3], args[4];
} form;

static double attr_at(const rsi_instr *i, int n) { return ((const double *)i->attrs)[n]; }

static bool is_real(int dtype) { return dtype == RS_F32 || dtype == RS_F64; }

static int quick_power(double e) {
  return e == 2.0 ? RSI_U_SQUARE : e == 0.5 ? RSI_U_SQRT : e == -0.5 ? RSI_U_RSQRT : e == -1.0 ? RSI_U_RECIPROCAL : -1;
}

/* What differs from the plain row of the op's entry, as the op itself decides it. */
static void refine(const rsi_instr *i, form *f) {
  const rs_op *const op = i->op;
  if (op == &rsi_op_gelu && rsi_attr_int(i, "approximate")) f->index = RSI_U_GELU_TANH;
  if (op == &rsi_op_gelu_backward && rsi_attr_int(i, "approximate")) f->index = RSI_B_GELU_TANH_BACKWARD;
  if (op == &rsi_op_cast) f->index = (int)rsi_attr_int(i, "dtype");
  if (op == &rsi_op_add && rsi_attr_float(i, "alpha") != 1.0) {
    f->index = RSI_B_ADD_SCALED;
    f->args[f->nargs++] = rsi_attr_float(i, "alpha");
  }
  if (op == &rsi_op_pow && f->ids[1] < 0 && quick_power(f->numbers[1]) >= 0) {
    f->family = RSI_F_UNARY;
    f->index = quick_power(f->numbers[1]);
    f->noperands = 1;
  }
  if (op == &rsi_op_clamp || op == &rsi_op_clamp_backward || f->family == RSI_F_FORWARD || f->family == RSI_F_BACKWARD)
    for (; f->nargs < op->nattrs; f->nargs++) f->args[f->nargs] = attr_at(i, f->nargs);
}

static bool form_of(const rs_program *p, const rsi_instr *i, form *f) {
  const entry *const e = i->kernel && !i->inplace && !i->marks && i->nout == 1 ? entry_of(i->op) : NULL;
  if (!e) return false;
  *f = (form){.family = e->family, .index = e->index, .noperands = rsi_fused_operands(e->family)};
  bool any = false;
  for (int a = 0; a < f->noperands; a++) {
    f->ids[a] = a < i->nin ? i->ids[a] : -1;
    if (f->ids[a] < 0) {
      if (e->family != RSI_F_BINARY && e->family != RSI_F_WHERE) return false;
      f->numbers[a] = attr_at(i, e->family == RSI_F_WHERE ? a - 1 : 0);
      continue;
    }
    const int dtype = p->values[f->ids[a]].desc.dtype;
    const bool condition = e->family == RSI_F_WHERE && a == 0, logical = i->op == &rsi_op_logical_and || i->op == &rsi_op_logical_or ||
                           i->op == &rsi_op_logical_not;
    if (e->family == RSI_F_CAST) {
      if (!is_real(dtype) && !rsi_is_half(dtype) && dtype != RS_BOOL) return false;
    } else if (condition ? dtype != RS_BOOL : !is_real(dtype) && !(logical && dtype == RS_BOOL)) return false;
    any |= !condition;
  }
  refine(i, f);
  return any;
}

/* ---- operands ------------------------------------------------------------------------------------------------------------ */

/* Elements, counted from the end of the result's shape, along which the operand is contiguous or stands still. */
static int64_t run_length(const rs_program *p, int operand, int result) {
  const rsi_value *const v = &p->values[operand], *const r = &p->values[result];
  int64_t run = 1, stride = -1;        /* stride: of the run; -1: not known yet */
  for (int i = r->desc.ndim - 1, a = v->desc.ndim - 1; i >= 0; i--, a--) {
    const int64_t size = r->desc.shape[i];
    const int64_t s = a < 0 || v->desc.shape[a] == 1 ? 0 : v->strides[a];
    if (size == 1) continue;
    if (stride < 0) {
      if (s != 0 && s != 1) return 1;
      stride = s;
    } else if (s != stride * run) return run;
    run *= size;
  }
  return run;
}

static bool operand_fits(const rs_program *p, int operand, int result) {
  const int64_t run = run_length(p, operand, result);
  return run >= LEAST_ROW || run == rsi_value_numel(p, result);
}

/* ---- groups -------------------------------------------------------------------------------------------------------------- */

typedef struct chain {
  const rs_program *p;
  rsi_facts f;
  rsi_uses  u;
  int      *group, *next;              /* [ninstrs]: the last member of an instruction's group, -1: none; the member before it */
} chain;

typedef struct members { int n, k[RSI_F_STEPS]; } members;   /* in the order of the program */

static bool is_member(const members *m, int k) {
  for (int i = 0; i < m->n; i++)
    if (m->k[i] == k) return true;
  return false;
}

static bool add_members(const chain *c, members *m, int last) {
  for (int k = last; k >= 0; k = c->next[k]) {
    if (is_member(m, k)) continue;
    if (m->n == RSI_F_STEPS) return false;
    int at = m->n++;
    for (; at > 0 && m->k[at - 1] > k; at--) m->k[at] = m->k[at - 1];
    m->k[at] = k;
  }
  return true;
}

static int result_of(const chain *c, int k) { return c->p->instrs[k].ids[c->p->instrs[k].nin]; }

/* May instruction k be a member of any group? */
static bool is_candidate(const chain *c, int k) {
  const rs_program *const p = c->p;
  form f;
  if (!form_of(p, &p->instrs[k], &f)) return false;
  const int out = result_of(c, k);
  const rsi_value *const v = &p->values[out];
  if (v->base != out || v->kind == RSI_V_ARG || rsi_value_numel(p, out) < LEAST || c->f.def[out] != k) return false;
  if (v->kind == RSI_V_TEMP ? c->f.written[out] : c->u.viewed[out]) return false;
  if (v->kind == RSI_V_BOUND)          /* the only one that writes it */
    for (int t = 0; t < p->ninstrs; t++)
      if (t != k && rsi_written_between(p, p->instrs, out, t, t)) return false;
  for (int a = 0; a < f.noperands; a++)
    if (f.ids[a] >= 0 && !operand_fits(p, f.ids[a], out)) return false;
  return true;
}

/* ---- a group as one instruction -------------------------------------------------------------------------------------------- */

typedef struct plan {
  rsi_fused_step steps[RSI_F_STEPS];
  double numbers[RSI_F_NUMBERS];
  int    nnumbers, nin, nout;
  int    in[RSI_F_INPUTS], out[RS_MAX_OUTPUTS];
} plan;

static int find_id(const int *list, int n, int id) {
  for (int i = 0; i < n; i++)
    if (list[i] == id) return i;
  return -1;
}

/* Is what member i makes wanted outside? */
static bool is_wanted(const chain *c, const members *m, int i) {
  const int id = result_of(c, m->k[i]);
  if (c->u.result[id] || c->p->values[id].kind != RSI_V_TEMP) return true;
  for (int n = c->u.start[id]; n < c->u.start[id + 1]; n++)
    if (!is_member(m, c->u.list[n])) return true;
  return false;
}

/* Does somebody outside read it too early, or is something overwritten that it reads? */
static bool is_disturbed(const chain *c, const members *m, int i) {
  const rs_program *const p = c->p;
  const int k = m->k[i], last = m->k[m->n - 1], id = result_of(c, k);
  for (int n = c->u.start[id]; n < c->u.start[id + 1]; n++)
    if (c->u.list[n] < last && !is_member(m, c->u.list[n])) return true;
  for (int a = 0; a < p->instrs[k].nin && k < last; a++) {
    const int in = p->instrs[k].ids[a];
    if (in >= 0 && (c->f.written[rsi_base_of(p, in)]) && rsi_written_between(p, p->instrs, in, k + 1, last - 1)) return true;
  }
  return false;
}

/* May the group's one result take the place of this input? Then it is to be the first. */
static bool dies_here(const chain *c, const members *m, int id) {
  const int out = result_of(c, m->k[m->n - 1]);
  if (!rsi_is_plain(c->p, &c->f, id) || c->u.result[id] || c->u.viewed[id] || !rsi_same_form(c->p, id, out)) return false;
  for (int n = c->u.start[id]; n < c->u.start[id + 1]; n++)
    if (!is_member(m, c->u.list[n])) return false;
  return true;
}

static bool list_inputs(const chain *c, const members *m, plan *g) {
  for (int i = 0; i < m->n; i++) {
    form f;
    form_of(c->p, &c->p->instrs[m->k[i]], &f);
    for (int a = 0; a < f.noperands; a++) {
      const int id = f.ids[a];
      if (id < 0 || find_id(g->in, g->nin, id) >= 0) continue;
      if (c->f.def[id] >= 0 && is_member(m, c->f.def[id])) continue;
      if (g->nin == RSI_F_INPUTS) return false;
      g->in[g->nin++] = id;
      if (dies_here(c, m, id) && !dies_here(c, m, g->in[0])) {
        g->in[g->nin - 1] = g->in[0];
        g->in[0] = id;
      }
    }
  }
  return g->nin > 0;
}

/* A run of numbers that lie together; returns where it begins, -1 when there is no room. */
static int add_numbers(plan *g, const double *v, int n) {
  for (int at = 0; at + n <= g->nnumbers; at++)
    if (memcmp(g->numbers + at, v, sizeof(double) * (size_t)n) == 0) return at;
  if (g->nnumbers + n > RSI_F_NUMBERS) return -1;
  memcpy(g->numbers + g->nnumbers, v, sizeof(double) * (size_t)n);
  g->nnumbers += n;
  return g->nnumbers - n;
}

/* The last member that reads what member i makes. */
static int last_reader(const chain *c, const members *m, int i) {
  const int id = result_of(c, m->k[i]);
  int last = i;
  for (int n = c->u.start[id]; n < c->u.start[id + 1]; n++)
    for (int j = i + 1; j < m->n; j++)
      if (m->k[j] == c->u.list[n] && j > last) last = j;
  return last;
}

static bool make_plan(const chain *c, const members *m, plan *g) {
  int place[RSI_F_STEPS], until[RSI_F_SLOTS];   /* where each member's value is; the last step that needs a slot */
  *g = (plan){0};
  for (int s = 0; s < RSI_F_SLOTS; s++) until[s] = -1;
  if (!list_inputs(c, m, g)) return false;
  for (int i = 0; i < m->n; i++) {
    form f;
    if (is_disturbed(c, m, i)) return false;
    form_of(c->p, &c->p->instrs[m->k[i]], &f);
    rsi_fused_step s = {.family = f.family, .index = f.index, .from = {RSI_F_NONE, RSI_F_NONE, RSI_F_NONE}, .arg = RSI_F_NONE};
    if (f.nargs) {
      const int at = add_numbers(g, f.args, f.nargs);
      if (at < 0) return false;
      s.arg = at;
    }
    for (int a = 0; a < f.noperands; a++) {
      const int def = f.ids[a] < 0 ? -1 : c->f.def[f.ids[a]];
      if (f.ids[a] < 0) {
        const int at = add_numbers(g, &f.numbers[a], 1);
        if (at < 0) return false;
        s.from[a] = RSI_F_NUMBER + at;
      } else if (def >= 0 && is_member(m, def)) s.from[a] = place[find_id(m->k, m->n, def)];
      else s.from[a] = RSI_F_INPUT + find_id(g->in, g->nin, f.ids[a]);
    }
    if (is_wanted(c, m, i) || i == m->n - 1) {
      if (g->nout == RS_MAX_OUTPUTS) return false;
      g->out[g->nout] = result_of(c, m->k[i]);
      place[i] = RSI_F_RESULT + g->nout++;
    } else {
      int slot = 0;
      while (slot < RSI_F_SLOTS && until[slot] >= i) slot++;
      if (slot == RSI_F_SLOTS) return false;
      until[slot] = last_reader(c, m, i);
      place[i] = RSI_F_SLOT + slot;
    }
    s.to = place[i];
    g->steps[i] = s;
  }
  return true;
}

/* ---- the pass -------------------------------------------------------------------------------------------------------------- */

/* Instruction k joins the groups of those that make its inputs, where that goes. */
static void join(chain *c, int k) {
  members now = {1, {k}};
  const rsi_instr *const i = &c->p->instrs[k];
  plan g;
  c->group[k] = k;
  for (int a = 0; a < i->nin; a++) {
    const int def = i->ids[a] >= 0 && c->p->values[i->ids[a]].base == i->ids[a] ? c->f.def[i->ids[a]] : -1;
    if (def < 0 || c->group[def] < 0 || is_member(&now, def)) continue;
    const rsi_desc *const x = &c->p->values[i->ids[a]].desc, *const y = &c->p->values[result_of(c, k)].desc;
    if (x->ndim != y->ndim || memcmp(x->shape, y->shape, sizeof(int64_t) * (size_t)x->ndim) != 0) continue;
    members more = now;
    if (add_members(c, &more, c->group[def]) && make_plan(c, &more, &g)) now = more;
  }
  for (int n = 0; n < now.n; n++) {
    c->group[now.k[n]] = k;
    c->next[now.k[n]] = n > 0 ? now.k[n - 1] : -1;
  }
}

static bool emit(rsi_edit *e, const plan *g, int nsteps) {
  static const char *const names[RSI_F_NUMBERS] = {"c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"};
  const int op = g->nout > 1 ? RS_OP_fused_many : RS_OP_fused;
  rsi_attr_set attrs;
  int64_t codes[RSI_F_STEPS];
  int ids[RS_MAX_OUTPUTS];
  for (int i = 0; i < nsteps; i++) codes[i] = rsi_fused_pack(&g->steps[i]);
  rsi_attrs_of(op, &attrs);
  rsi_attrs_sizes(&attrs, "steps", nsteps < 8 ? nsteps : 8, codes);
  rsi_attrs_sizes(&attrs, "more", nsteps < 8 ? 0 : nsteps - 8, codes + 8);
  for (int n = 0; n < g->nnumbers; n++) rsi_attrs_float(&attrs, names[n], g->numbers[n]);
  memcpy(ids, g->out, sizeof ids);
  return rsi_edit_emit(e, op, attrs.bytes, g->nin, g->in, g->nout, ids);
}

/* Does a group of several end with instruction k? */
static bool is_end(const chain *c, int k) { return c->group[k] == k && c->next[k] >= 0; }

static void rewrite(const chain *c, rsi_edit *e, const plan *plans) {
  for (int k = 0; k < e->nold && e->status == RS_OK; k++) {
    if (c->group[k] < 0 || (c->group[k] == k && !is_end(c, k))) rsi_edit_keep(e, k);
    if (!is_end(c, k)) continue;
    members m = {0};
    add_members(c, &m, k);
    if (!emit(e, plans++, m.n))
      for (int n = 0; n < m.n; n++) rsi_edit_keep(e, m.k[n]);
  }
}

/* The plans of all groups, in order; made before instructions move. */
static rs_status make_plans(rs_program *p, const chain *c, plan **plans, size_t *bytes) {
  size_t count = 0;
  void *block;
  for (int k = 0; k < p->ninstrs; k++) count += is_end(c, k);
  *bytes = count * sizeof(plan) + 1;
  RSI_TRY(rsi_alloc(p->heap, *bytes, &block));
  *plans = block;
  count = 0;
  for (int k = 0; k < p->ninstrs; k++) {
    members m = {0};
    if (!is_end(c, k)) continue;
    add_members(c, &m, k);
    make_plan(c, &m, &(*plans)[count++]);
  }
  return RS_OK;
}

static rs_status run(rs_program *p, chain *c) {
  rsi_edit e;
  plan *plans;
  size_t bytes;
  for (int k = p->nprologue; k < p->ninstrs; k++)
    if (is_candidate(c, k)) join(c, k);
  RSI_TRY(make_plans(p, c, &plans, &bytes));
  rs_status status = rsi_edit_begin(p, &e);
  if (status == RS_OK) {
    rewrite(c, &e, plans);
    status = rsi_edit_end(&e);
  }
  rsi_free(p->heap, plans, bytes);
  return status;
}

static rs_status with_groups(rs_program *p, chain *c) {
  void *block;
  const size_t n = (size_t)p->ninstrs, bytes = 2 * sizeof(int) * n + 1;
  RSI_TRY(rsi_alloc(p->heap, bytes, &block));
  memset(block, -1, bytes);
  c->group = block;
  c->next = c->group + n;
  const rs_status status = run(p, c);
  rsi_free(p->heap, block, bytes);
  return status;
}

rs_status rsi_pass_chains(rs_program *p) {
  chain c = {.p = p};
  RSI_TRY(rsi_facts_make(p, &c.f));
  rs_status status = rsi_uses_make(p, &c.u);
  if (status == RS_OK) {
    status = with_groups(p, &c);
    rsi_uses_free(p, &c.u);
  }
  rsi_facts_free(p, &c.f);
  return status;
}
