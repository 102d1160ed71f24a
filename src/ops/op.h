/*
** The op table. One line in ops.def fixes the number of an op; one `const rs_op rsi_op_NAME` in a family file says all the
** rest: shape rule, kernels, gradient rule, attributes, samples for the tests. Everything else (typed C functions, the Lua
** binding, the reference, the generated tests) comes from here.
*/
#ifndef RSI_OP_H
#define RSI_OP_H

#include "tensor/tensor.h"
#include "kernels/kernels.h"

typedef struct rs_op    rs_op;
typedef struct rsi_call rsi_call;
typedef struct rsi_grad rsi_grad;

enum { RSI_MAX_ATTRS = 24, RSI_MAX_ATTR_BYTES = 512, RSI_VARIADIC = 255, RSI_FEW = 8 };

/* ---- attributes ------------------------------------------------------------------------------------------------------ */

/*
** An attribute list is a macro: F(T, KIND, name, default, min, max, choices, doc) for each attribute. Every field has 8 bytes
** (or is an rs_list), so the generated public struct has the layout of the internal one.
** RSI_ATTRS(softmax, SOFTMAX_ATTRS) makes `softmax_attrs` and `softmax_table`.
*/
typedef struct rsi_attr {
  const char *name, *doc, *choices;   /* choices: "erf,tanh" for ENUM */
  int         kind, offset;
  double      def, min, max;
} rsi_attr;

#define RSI_TYPE_INT   int64_t
#define RSI_TYPE_FLOAT double
#define RSI_TYPE_BOOL  int64_t
#define RSI_TYPE_DIM   int64_t
#define RSI_TYPE_DIMS  rs_list
#define RSI_TYPE_SHAPE rs_list
#define RSI_TYPE_INTS  rs_list
#define RSI_TYPE_ENUM  int64_t
#define RSI_TYPE_DTYPE int64_t
#define RSI_TYPE_INDEX int64_t
#define RSI_FIELD(T, kind, name, def, min, max, choices, doc) RSI_TYPE_##kind name;
#define RSI_ROW(T, kind, name, def, min, max, choices, doc)                                                                 \
  {#name, doc, choices, RS_ATTR_##kind, (int)offsetof(T, name), (double)(def), (double)(min), (double)(max)},
#define RSI_ATTRS(op, LIST)                                                                                                 \
  typedef struct op##_attrs { LIST(RSI_FIELD, op##_attrs) } op##_attrs;                                                     \
  static const rsi_attr op##_table[] = {LIST(RSI_ROW, op##_attrs)};
#define RSI_USES_ATTRS(op)                                                                                                  \
  .attrs = op##_table, .nattrs = (int)(sizeof(op##_table) / sizeof(rsi_attr)), .attrs_size = (int)sizeof(op##_attrs)

#define RSI_NO_DIM INT64_MIN          /* a DIM attribute that was not given (default of optional ones) */
#define RSI_BIG    9007199254740992.0 /* 2^53: the largest range of an integer attribute */

/* Element i of a list attribute: `def` when none was given, the one value when one was given for all. */
static inline int64_t rsi_at(const rs_list *list, int i, int64_t def) {
  return list->n == 0 ? def : list->n == 1 ? list->v[0] : list->v[i];
}

/* ---- a call ---------------------------------------------------------------------------------------------------------- */

/* What a running kernel may use. */
typedef struct rsi_exec {
  const rsi_kernels *k;          /* loops of the chosen instruction set */
  rsi_pool          *pool;       /* NULL: one thread */
  rsi_heap          *heap;
  rsi_rng           *rng;
  struct rsi_onednn *onednn;     /* its primitives; NULL when it is not built in */
  int                base;       /* what index tensors count from: 0 or 1 */
  bool               exact;      /* no Winograd and no bf16: each product and sum in the dtype's own precision */
} rsi_exec;

struct rsi_call {
  const rs_op     *op;
  const rsi_exec  *x;
  rs_ctx          *ctx;          /* for infer and its messages; NULL when a program runs */
  int              nin, nout;
  rs_tensor *const *in;          /* NULL: an optional input left out */
  rs_tensor      **out;
  void            *attrs;        /* a private copy: infer may normalise it (negative dimensions, defaults) */
  rsi_desc         desc[RS_MAX_OUTPUTS];   /* set by infer */
  void            *scratch;      /* kernel->scratch(call) bytes */
};

#define RSI_ATTR(c, op) ((const op##_attrs *)(c)->attrs)

typedef enum rsi_backend { RSI_PORTABLE = 0, RSI_BLAS, RSI_ONEDNN, RSI_BACKENDS } rsi_backend;

/* A kernel writes every element of every output. Inputs and outputs do not overlap, except in an in-place call. */
typedef struct rsi_kernel {
  const char *name;
  int         backend;
  uint32_t    dtypes;                              /* of in[0] (or of out[0] when there is no input): RSI_DT(f32) | … */
  bool      (*accepts)(const rsi_call *c);         /* NULL: any; desc[] is known, out may be NULL */
  size_t    (*scratch)(const rsi_call *c);         /* NULL: none */
  rs_status (*run)(const rsi_call *c);
} rsi_kernel;

#define RSI_F32  (1u << RS_F32)
#define RSI_F64  (1u << RS_F64)
#define RSI_HALF ((1u << RS_BF16) | (1u << RS_F16))
#define RSI_I64  (1u << RS_I64)
#define RSI_I32  (1u << RS_I32)
#define RSI_U8   (1u << RS_U8)
#define RSI_BOOL (1u << RS_BOOL)
#define RSI_FLOATS (RSI_F32 | RSI_F64)
#define RSI_INTS   (RSI_I64 | RSI_I32 | RSI_U8)
#define RSI_ANY    ((1u << RS_DTYPES) - 1u)

/* ---- an op ----------------------------------------------------------------------------------------------------------- */

enum {                                /* traits */
  RSI_T_ELEMENTWISE = 1 << 0,         /* out[i] depends on in[i] only (after broadcasting): in-place calls are possible */
  RSI_T_PROMOTE     = 1 << 1,         /* inputs of several dtypes are cast to the common one first */
  RSI_T_VIEW        = 1 << 2,         /* makes a view: `view` instead of kernels */
  RSI_T_RANDOM      = 1 << 3,         /* draws from the context's generator */
  RSI_T_NONDIFF     = 1 << 4,         /* no gradient by nature (comparison, argmax) */
  RSI_T_INDEXED     = 1 << 5,         /* an input or output holds indices, which count from rsi_exec.base */
  RSI_T_INTERNAL    = 1 << 6,         /* emitted by gradient rules; no Lua name of its own */
  RSI_T_HALF        = 1 << 7,         /* kernels take bf16 and f16 themselves; otherwise the call is made in f32 and cast back */
  RSI_T_NOT_METHOD  = 1 << 8,         /* the Lua binding is a function only, not a method of tensors */
  RSI_T_BF16        = 1 << 10,        /* kernels take bf16 themselves when every input is bf16 (that is, none is f32 or f16) */
  RSI_T_STRIDED     = 1 << 9          /* kernels take strided inputs; others (but ELEMENTWISE and VIEW) get contiguous ones */
};

/* What the gradient of an input needs: bits of inputs and outputs to keep. */
#define RSI_KEEP_IN(i)  (1u << (i))
#define RSI_KEEP_OUT(j) (1u << (8 + (j)))

/*
** A test sample. `inputs`, separated by commas: KIND SHAPE RANGE, for example "f2x3", "f2x3@0.1:2" (floats in a range),
** "i4@0:9" (i64, inclusive, as C counts), "j4@0:9" (i32), "u4@0:9" (u8), "b2x3" (bools), "f" (0-d), "f0x3" (empty), "-" (left out),
** "d2x3" (floats all distinct, away from ties). Default range of f: -1:1. attrs: a static struct or NULL for the defaults.
*/
typedef struct rsi_sample {
  const char *inputs;
  const void *attrs;
  double      tolerance;    /* f32 against f64, relative to the largest; 0: 1e-5 */
  int         no_grad;      /* 1: not differentiable here */
} rsi_sample;

struct rs_op {
  const char *name, *doc;              /* doc: one sentence; formula or source when there is one */
  const char *inputs;                  /* "x,weight,bias?" ; variadic: "tensors..." */
  uint8_t     nin_min, nin_max, nout;  /* nin_max RSI_VARIADIC: any number */
  uint8_t     nout_public;             /* outputs that a Lua caller sees; 0: all. The others are kept for backward */
  uint8_t     over;                    /* 1 + the input whose place a program may give to output 0; 0: none (or, element-wise, 0) */
  uint32_t    traits, dtypes;          /* dtypes: of in[0], or of the result when there is no input */
  const rsi_attr *attrs;
  int         nattrs, attrs_size;
  rs_status (*infer)(rsi_call *c);
  /* For VIEW ops: the new view relative to in[0]->data. RS_ERR_STATE (without a text) asks for a contiguous copy first. */
  rs_status (*view)(const rsi_call *c, int64_t *offset, int64_t *strides);
  bool      (*writes)(const rsi_call *c, int i);  /* true: input i is written in place (running statistics, parameters) */
  void      (*grad)(rsi_grad *g);
  uint32_t    saves[RSI_FEW];                     /* saves[i]: what the gradient of input i needs */
  const rsi_kernel *kernels;                      /* in order of preference; the last is portable; ends with name NULL */
  const rsi_sample *samples;                      /* ends with inputs NULL */
};

/* Numbers of the ops. */
enum {
#define RS_OP(name) RS_OP_##name,
#include "ops/ops.def"
#undef RS_OP
  RSI_OPS
};
#define RS_OP(name) extern const rs_op rsi_op_##name;
#include "ops/ops.def"
#undef RS_OP
extern const rs_op *const rsi_ops[RSI_OPS];

/* Attributes for a call: a copy of `attrs`, or the defaults when it is NULL. */
void rsi_op_attrs(const rs_op *op, const void *attrs, void *copy);

/* What messages of this call count dimensions from: 0 or 1. */
int rsi_base(const rsi_call *c);

/* Common shape rules. */
rs_status rsi_infer_same(rsi_call *c);           /* out[0] like in[0] */
rs_status rsi_infer_broadcast(rsi_call *c);      /* out[0]: broadcast of all inputs, dtype of in[0] */
rs_status rsi_infer_broadcast_bool(rsi_call *c); /* the same with dtype bool */
/* Runs row(n, data, strides, arg) over out[0], in[0], in[1], … on as many threads as `work` nanoseconds per element pay for. */
rs_status rsi_run_rows(const rsi_call *c, rsi_row_fn row, const void *arg, double work);
/* The same; missing[i] points at the one element that stands for an input left out (NULL: it is skipped, as above). */
rs_status rsi_run_rows_with(const rsi_call *c, rsi_row_fn row, const void *arg, double work, const void *const *missing);
/* Splits `count` items of `work` nanoseconds each into chunks that depend on the shape only and runs them. */
typedef void (*rsi_range_fn)(void *arg, int64_t first, int64_t last);
void rsi_parallel(const rsi_exec *x, int64_t count, double work, rsi_range_fn fn, void *arg);

/* ---- running ops inside the engine ------------------------------------------------------------------------------------ */

rs_status rsi_run(rs_ctx *ctx, int op, rs_tensor *const *in, int nin, const void *attrs, rs_tensor **out);

/* ---- gradient rules --------------------------------------------------------------------------------------------------- */

/*
** A rule reads what it needs and gives the gradient of each input that wants one. Every helper returns a tensor owned by the
** rule (freed at its end) or NULL after a failure, and accepts NULL, so a rule needs no checks of its own. rsi_give reduces
** a broadcast gradient to the input's shape and casts it to its dtype.
*/
bool        rsi_needs(const rsi_grad *g, int i);
rs_tensor  *rsi_gout(rsi_grad *g, int j);      /* gradient of output j; zeros when nothing flowed into it */
bool        rsi_has_gout(const rsi_grad *g, int j);
rs_tensor  *rsi_in(rsi_grad *g, int i);        /* saved input (NULL when it was left out) */
rs_tensor  *rsi_out(rsi_grad *g, int j);       /* saved output */
const void *rsi_attrs(const rsi_grad *g);
int         rsi_nin(const rsi_grad *g);
bool        rsi_has_in(const rsi_grad *g, int i);            /* was input i given? */
const rsi_desc *rsi_in_desc(rsi_grad *g, int i);             /* shape and dtype of input i, saved or not */
void        rsi_give(rsi_grad *g, int i, rs_tensor *t);
void        rsi_grad_fail(rsi_grad *g, rs_status status);    /* after rsi_fail */
rs_tensor  *rsi_emit(rsi_grad *g, int op, const void *attrs, int nin, rs_tensor *const *in, int nout, rs_tensor **outs);
rs_tensor  *rsi_emit1(rsi_grad *g, int op, const void *attrs, rs_tensor *a);
rs_tensor  *rsi_emit2(rsi_grad *g, int op, const void *attrs, rs_tensor *a, rs_tensor *b);
rs_tensor  *rsi_emit3(rsi_grad *g, int op, const void *attrs, rs_tensor *a, rs_tensor *b, rs_tensor *c);

/* Emitters with attributes, written in the family file that owns the op. */
rs_tensor *rsi_b_scale(rsi_grad *g, rs_tensor *t, double factor);                 /* binary.c: t * factor */
rs_tensor *rsi_b_add_scalar(rsi_grad *g, rs_tensor *t, double value);             /* binary.c */
rs_tensor *rsi_b_pow(rsi_grad *g, rs_tensor *t, double exponent);                 /* binary.c */
rs_tensor *rsi_b_sum(rsi_grad *g, rs_tensor *t, const rs_list *dims, bool keepdim);   /* reduce.c; dims NULL: all */
rs_tensor *rsi_b_sum_to(rsi_grad *g, rs_tensor *t, const rsi_desc *like);         /* reduce.c: undoes broadcasting */
rs_tensor *rsi_b_reshape(rsi_grad *g, rs_tensor *t, int ndim, const int64_t *shape);  /* shape.c */
rs_tensor *rsi_b_expand(rsi_grad *g, rs_tensor *t, int ndim, const int64_t *shape);   /* shape.c */
rs_tensor *rsi_b_transpose(rsi_grad *g, rs_tensor *t, int64_t a, int64_t b);      /* shape.c */
rs_tensor *rsi_b_permute(rsi_grad *g, rs_tensor *t, const rs_list *dims);         /* shape.c */
rs_tensor *rsi_b_narrow(rsi_grad *g, rs_tensor *t, int64_t dim, int64_t start, int64_t length); /* shape.c */
rs_tensor *rsi_b_select(rsi_grad *g, rs_tensor *t, int64_t dim, int64_t index);   /* shape.c */
rs_tensor *rsi_b_narrow_backward(rsi_grad *g, rs_tensor *t, int64_t dim, int64_t start, int64_t size); /* join.c: zeros around t */
rs_tensor *rsi_b_cast(rsi_grad *g, rs_tensor *t, int dtype);                      /* cast.c */
rs_tensor *rsi_b_full(rsi_grad *g, const rsi_desc *desc, double value);           /* create.c */

#endif
