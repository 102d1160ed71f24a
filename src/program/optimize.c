/* The order of the passes, and what tools may ask of a program. */
#include "program/internal.h"
#include <string.h>

typedef struct pass {
  const char *name;
  rs_status (*run)(rs_program *p);
} pass;

static const pass passes[] = {
  {"ssa", rsi_pass_ssa},
  {"clean", rsi_pass_clean},
  {"fold", rsi_pass_fold},
  {"layout", rsi_pass_layout},
  {"expand", rsi_pass_expand},
  {"half", rsi_pass_half},
  {"tidy", rsi_pass_clean},            /* again: layout and half made casts and reorders twice, and left some that nobody reads */
  {"casts", rsi_pass_casts},
  {"join", rsi_pass_join},
  {"narrow", rsi_pass_narrow},
  {"remat", rsi_pass_remat},           /* behind the last clean, which would take it back */
  {"linear", rsi_pass_linear},
  {"norm", rsi_pass_norm},
  {"chains", rsi_pass_chains},
  {"hoist", rsi_pass_hoist},
};
enum { PASSES = (int)(sizeof passes / sizeof *passes) };

int rs_pass_count(void) { return PASSES; }
const char *rs_pass_name(int index) { return index >= 0 && index < PASSES ? passes[index].name : NULL; }

rs_status rs_program_optimize(rs_program *p, unsigned mask, int dtype) {
  RSI_CHECK(!atomic_load_explicit(&p->used, memory_order_relaxed), RS_ERR_STATE, "optimize: the program has a workspace already");
  RSI_CHECK(dtype == RS_F32 || dtype == RS_BF16, RS_ERR_DTYPE, "optimize: the dtype must be f32 or bf16, not %s", rs_dtype_name(dtype));
  RSI_CHECK(dtype != RS_BF16 || !p->exact, RS_ERR_STATE, "optimize: precision \"highest\" forbids bf16");
  p->half = dtype == RS_BF16;
  p->spoiled = true;
  for (int i = 0; i < PASSES; i++)
    if (mask >> i & 1u) RSI_TRY(passes[i].run(p));
  RSI_TRY(rsi_plan(p));
  p->spoiled = false;
  return RS_OK;
}

/* ---- for tools -------------------------------------------------------------------------------------------------------- */

int rs_program_length(const rs_program *p) { return p->ninstrs; }

void rs_program_describe(const rs_program *p, rs_program_info *out) {
  *out = (rs_program_info){.instructions = p->ninstrs, .prologue = p->nprologue, .values = p->nvalues, .inputs = p->ninputs,
                           .outputs = p->noutputs, .arena_bytes = (double)p->arena_bytes, .prologue_bytes = (double)p->prologue_bytes};
  for (int i = 0; i < p->nvalues; i++) {
    const rsi_value *const v = &p->values[i];
    double bytes = (double)rsi_dtype_size[v->desc.dtype];
    for (int d = 0; d < v->desc.ndim; d++) bytes *= (double)v->desc.shape[d];
    if (v->kind == RSI_V_BOUND) out->bound++, out->bound_bytes += bytes;
    if (v->kind == RSI_V_TEMP && v->first >= p->nprologue) out->temporary_bytes += bytes;
  }
}

rs_status rs_program_instruction(const rs_program *p, int index, rs_instruction_info *out) {
  RSI_CHECK(index >= 0 && index < p->ninstrs, RS_ERR_INDEX, "program: there is no instruction %d", index);
  const rsi_instr *const i = &p->instrs[index];
  *out = (rs_instruction_info){.op = i->op->name, .kernel = i->kernel ? i->kernel->name : NULL, .nin = i->nin, .nout = i->inplace ? 0 : i->nout,
                               .inplace = i->inplace, .ids = i->ids, .attrs = i->attrs};
  out->number = rsi_number_of(i->op);
  return RS_OK;
}

rs_status rs_program_value(const rs_program *p, int id, rs_value_info *out) {
  RSI_CHECK(id >= 0 && id < p->nvalues, RS_ERR_INDEX, "program: there is no value %d", id);
  const rsi_value *const v = &p->values[id];
  *out = (rs_value_info){.kind = v->kind, .base = v->base, .dtype = v->desc.dtype, .ndim = v->desc.ndim, .kept = v->kept,
                         .place = (double)v->place, .first = v->first, .last = v->last, .bound = v->bound};
  for (int d = 0; d < v->desc.ndim; d++) out->shape[d] = v->desc.shape[d];
  return RS_OK;
}

int rs_program_reads(const rs_program *p, const rs_tensor *t) {
  for (int i = 0; i < p->nleaves; i++)
    if (p->leaves[i].after == t || p->leaves[i].expected == t) return 0;
  for (int i = 0; i < p->nvalues; i++)
    if (p->values[i].bound == t) return 1;
  return 0;
}

int rs_program_output(const rs_program *p, int index) { return index >= 0 && index < p->noutputs ? p->outputs[index] : -1; }
