/*
** The program: values, instructions, leaves. Recording appends to it, passes rewrite it, a workspace runs it.
** Invariants: values[0..ninputs-1] are the arguments. A view's `base` is never a view. An instruction writes its outputs, or,
** in place, in[0]; what it writes besides (op->writes) are bindings or arguments. Value numbers never change; passes only add
** values. The first `nprologue` instructions depend on bindings alone and run again only when one of those was written.
*/
#ifndef RSI_PROGRAM_INTERNAL_H
#define RSI_PROGRAM_INTERNAL_H

#include "program/program.h"
#include "autograd/autograd.h"

enum { RSI_V_ARG, RSI_V_BOUND, RSI_V_TEMP, RSI_V_VIEW };

/* A value: where it lives (the storage of value `base`, `offset` bytes from its start) and its form. */
typedef struct rsi_value {
  uint8_t    kind;
  bool       kept;                     /* a result: has a tensor of its own in each workspace */
  int        base;                     /* itself unless it is a view */
  int64_t    offset, delta;            /* delta: of a view, from where the value begins that it was taken of */
  rsi_desc   desc;
  int64_t    strides[RS_MAX_DIMS];
  bool       wants;                    /* arguments and bindings: it wanted a gradient when it was recorded */
  rs_tensor *bound;                    /* RSI_V_BOUND: the tensor, one reference */
  void      *data;                     /* RSI_V_BOUND: where it lay when it was recorded */
  /* of the memory plan */
  int64_t    place;                    /* RSI_V_TEMP: offset in the arena (or in the prologue's block), -1: nobody uses it */
  int        first, last;              /* instructions that write it first and use it last; -1: none */
} rsi_value;

/* An instruction. kernel NULL: a view, which costs nothing when it runs. */
typedef struct rsi_instr {
  const rs_op      *op;
  const rsi_kernel *kernel;
  int               nin, nout;
  int              *ids;               /* values of the inputs (-1: left out), then of the outputs */
  uint8_t          *writes;            /* [nin], in the block of ids: is input k written (in place or by op->writes)? */
  size_t            ids_bytes;
  void             *attrs;
  bool              inplace, marks;    /* marks: it writes a binding or an argument, whose version must grow */
  rsi_desc          desc[RS_MAX_OUTPUTS];
} rsi_instr;

/* A leaf whose gradient the recorded function read or changed. */
enum { RSI_GRAD_ANY, RSI_GRAD_NONE, RSI_GRAD_THIS };
typedef struct rsi_leaf {
  rsi_node  *node;                     /* one reference */
  uint8_t    before;                   /* what the gradient must be before a run: RSI_GRAD_… */
  rs_tensor *expected, *after;         /* RSI_GRAD_THIS: the tensor; what it is after a run (NULL: none). References */
  rs_tensor *former;                   /* while it is recorded: the gradient before, which the leaf gets back. A reference */
} rsi_leaf;

/* Planned when it is recorded and when it is optimised, so that making workspaces, in any thread, only reads it. */
struct rs_program {
  _Atomic int32_t refs;
  rsi_heap       *heap;
  rs_ctx         *ctx;                 /* kept alive once recorded: its heap holds the program */
  rsi_value      *values;
  rsi_instr      *instrs;
  rsi_leaf       *leaves;
  int            *outputs;
  int             nvalues, values_capacity, ninstrs, instrs_capacity, nleaves, leaves_capacity, ninputs, noutputs;
  int             nprologue;
  bool            writes_inputs;       /* an instruction writes to an argument in place */
  bool            grads;               /* it was recorded with gradients on: then it depends on who wants one */
  bool            half, exact;         /* half: bf16 where it pays; exact: of the context when it was recorded */
  bool            spoiled;             /* a pass failed half-way */
  _Atomic bool    used;                /* a workspace was made of it: it does not change any more */
  int64_t         arena_bytes, prologue_bytes;
};

struct rsi_trace {
  rs_program *program;
  uint64_t    serial;
  rs_status   status;                  /* of the first append that failed: the recording has a hole */
};

/* ---- for recording and passes ------------------------------------------------------------------------------------------ */

/* Grows an array of the heap to hold one more element. */
rs_status rsi_grow(rsi_heap *heap, void **array, int count, int *capacity, size_t item);
void      rsi_instr_free(rs_program *p, rsi_instr *instr);
/* Sets `marks`: when a recording has come to its end (a gradient may turn into a binding then), and for what an edit makes. */
void      rsi_instr_mark(const rs_program *p, rsi_instr *i);
int       rsi_number_of(const rs_op *op);
static inline int rsi_base_of(const rs_program *p, int id) { return p->values[id].base; }
/* Can the caller, or a later run, see what is written to value `id`? */
bool      rsi_is_outside(const rs_program *p, int id);
/* Appends an instruction with room for its ids (all -1), writes and attributes; it is counted at once, so that it is cleaned up. */
rs_status rsi_instr_new(rs_program *p, const rs_op *op, int nin, int nout, const void *attrs, rsi_instr **out);
/* A header that has the form of value `id` and no data, for shape rules and the choice of kernels. */
void      rsi_phantom(const rs_program *p, int id, rs_tensor *out);

/* What passes ask. Arrays over values, but for `def`; made by rsi_facts_make, freed by rsi_facts_free. */
typedef struct rsi_facts {
  size_t block;
  int   *uses;                         /* times it is read, as itself (a view of it counts), results included */
  int   *def;                          /* the instruction that makes it; -1 */
  bool  *written;                      /* of a base: written after it was made (or a binding or argument written at all) */
} rsi_facts;
rs_status rsi_facts_make(const rs_program *p, rsi_facts *f);
void      rsi_facts_free(const rs_program *p, rsi_facts *f);

/*
** An edit rewrites the list of instructions: rsi_edit_begin takes the old ones away; then, in order, each is kept, left out, or
** replaced by new ones; rsi_edit_end drops the old list. rsi_edit_map makes later instructions (and results) read another value.
*/
typedef struct rsi_edit {
  rs_program *p;
  rsi_instr  *old;
  int         nold, old_capacity;
  int        *map;                     /* old value -> value */
  int         nmap;                    /* values when the edit began; later ones stand for themselves */
  rs_status   status;                  /* the first failure sticks; later calls do nothing */
} rsi_edit;
rs_status rsi_edit_begin(rs_program *p, rsi_edit *e);
int       rsi_edit_id(const rsi_edit *e, int id);
void      rsi_edit_map(rsi_edit *e, int from, int to);
void      rsi_edit_keep(rsi_edit *e, int k);
/* A new instruction over present values; `ids` receives its results. attrs NULL: the defaults. False after a failure, also when no
** kernel takes it. `ids` may name existing values (id >= 0): they are then (re)defined by it, when their form fits; -1: new ones. */
bool      rsi_edit_emit(rsi_edit *e, int op, const void *attrs, int nin, const int *in, int nout, int *ids);
rs_status rsi_edit_end(rsi_edit *e);

/* Makes later instructions read `to` where they read `value`, whatever that was mapped to before. */
void      rsi_edit_set(rsi_edit *e, int value, int to);

/* ---- attributes by name (attrs.c); an attribute that is not there reads as 0 and is not written ---------------------------- */

typedef struct rsi_attr_set {
  const rs_op *op;
  _Alignas(16) char bytes[RSI_MAX_ATTR_BYTES];
} rsi_attr_set;
int64_t rsi_attr_int(const rsi_instr *i, const char *name);
double  rsi_attr_float(const rsi_instr *i, const char *name);
rs_list rsi_attr_list(const rsi_instr *i, const char *name);
void    rsi_attrs_of(int op, rsi_attr_set *a);                  /* the defaults of an op */
void    rsi_attrs_from(rsi_attr_set *a, const rsi_instr *i);    /* takes over what both ops have, by name */
void    rsi_attrs_int(rsi_attr_set *a, const char *name, int64_t v);
void    rsi_attrs_float(rsi_attr_set *a, const char *name, double v);
void    rsi_attrs_list(rsi_attr_set *a, const char *name, const rs_list *v);
void    rsi_attrs_sizes(rsi_attr_set *a, const char *name, int n, const int64_t *v);

/* ---- passes: each leaves a program that computes the same ---------------------------------------------------------------- */

rs_status rsi_pass_ssa(rs_program *p);          /* ssa.c: no writes in place into temporaries */
rs_status rsi_pass_clean(rs_program *p);        /* clean.c: dead and repeated instructions */
rs_status rsi_pass_fold(rs_program *p);         /* fold.c: batch norm into the convolution before it */
rs_status rsi_pass_layout(rs_program *p);       /* layout.c: images in block form; convolution, batch norm, sum and ReLU in one */
rs_status rsi_pass_expand(rs_program *p);       /* fuse_expand.c: a 1x1 and a depthwise convolution in one */
rs_status rsi_pass_remat(rs_program *p);        /* remat.c: cheap large values made again instead of kept */
rs_status rsi_pass_half(rs_program *p);         /* half.c: large products in bf16, where that was asked for */
rs_status rsi_pass_casts(rs_program *p);        /* fuse_cast.c: casts there and back */
rs_status rsi_pass_join(rs_program *p);         /* fuse_join.c: sums of parts as parts behind each other */
rs_status rsi_pass_narrow(rs_program *p);       /* narrow.c: what is read in bf16 is made in bf16 */
rs_status rsi_pass_linear(rs_program *p);       /* fuse_linear.c: linear maps and products with what follows them */
rs_status rsi_pass_norm(rs_program *p);         /* fuse_norm.c: layer norm and the sums beside it */
rs_status rsi_pass_chains(rs_program *p);       /* fuse_chain.c: element-wise instructions in a row */
rs_status rsi_pass_hoist(rs_program *p);        /* hoist.c: what depends on bindings alone goes into the prologue */
/* Which bases are fixed between runs: bindings that nothing writes, and what is made of such alone. [nvalues] */
void      rsi_fixed(const rs_program *p, const rsi_facts *f, bool *fixed);
rs_status rsi_plan(rs_program *p);              /* plan.c: lifetimes and places; always */

#endif
