/*
** resin: a neural network engine.
** The only header that a host or the FFI needs. It is also read by the build to make the Lua declarations, so it keeps to
** plain declarations: opaque structs, enums, functions; no macro but RS_API, no inline code, no bit fields, no variadics.
**
** Conventions
**   - Every function that can fail returns rs_status. The text of the last failure on this thread is rs_last_error().
**   - Results come through the last pointers. A tensor received that way is owned by the caller: rs_tensor_release it.
**   - A context is used by one thread at a time. Tensors may be shared and released by any thread.
**   - Dimensions and indices count from 0 here. Messages speak the base chosen by rs_set_index_base.
*/
#ifndef RESIN_H
#define RESIN_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RS_API __attribute__((visibility("default")))

/* ---- status ------------------------------------------------------------------------------------------------------- */

typedef enum rs_status {
  RS_OK = 0,
  RS_ERR_NOMEM,        /* an allocation failed, or the byte budget is used up */
  RS_ERR_SHAPE,        /* shapes or dimensions do not fit */
  RS_ERR_DTYPE,        /* an element type is not accepted */
  RS_ERR_ARG,          /* an argument or attribute is out of its range */
  RS_ERR_INDEX,        /* an index or label is out of its range */
  RS_ERR_GRAD,         /* a gradient was asked for that does not exist */
  RS_ERR_VERSION,      /* a value that backward needs was overwritten in place */
  RS_ERR_STATE,        /* the call is not allowed now */
  RS_ERR_IO,           /* a file could not be read or written */
  RS_ERR_FORMAT,       /* a file's content is not what it should be */
  RS_ERR_UNSUPPORTED,  /* not built in, or not supported in this combination */
  RS_HOST,             /* no failure: backward waits for gradients that the host computes, see rs_host */
  RS_MORE              /* no failure: a program's run has not come to its end yet, see rs_program_step */
} rs_status;

enum { RS_ABI_VERSION = 1, RS_MAX_DIMS = 8, RS_MAX_OUTPUTS = 4 };

RS_API int         rs_abi_version(void);              /* RS_ABI_VERSION of the library that was loaded */
RS_API const char *rs_version(void);                  /* "major.minor.patch" */
RS_API const char *rs_last_error(void);               /* text of the last failure on this thread; never NULL */
RS_API const char *rs_status_name(rs_status status);
RS_API const char *rs_build_info(void);               /* compiler, backends and instruction sets of this library */
RS_API double      rs_time(void);                     /* seconds of a clock that never goes back, for measuring */

/* ---- context ------------------------------------------------------------------------------------------------------ */

typedef struct rs_ctx     rs_ctx;       /* flags, memory, threads and random state of one user */
typedef struct rs_tensor  rs_tensor;
typedef struct rs_program rs_program;   /* a recording: immutable, may be run by many threads at once */
typedef struct rs_walk    rs_walk;      /* a backward that waits for the host */
typedef struct rs_workspace rs_workspace; /* what one running thread needs to run a program */

/* Memory hooks of a host. alloc returns memory aligned to `align` (a power of two) or NULL. */
typedef struct rs_allocator {
  void *(*alloc)(void *user, size_t size, size_t align);
  void  (*free)(void *user, void *ptr, size_t size);
  void  *user;
} rs_allocator;

typedef struct rs_ctx_options {
  const rs_allocator *allocator;   /* NULL: the system's */
  double              budget;      /* bytes this context may hold; 0: no limit */
  int                 threads;     /* threads that an op may use, the caller's included; 0: 1 */
  const char         *isa;         /* "baseline", "avx2", "avx512"; NULL: the best of this machine */
} rs_ctx_options;

/* Counters that change as memory is taken and given back. Read them through the pointer; do not write. */
typedef struct rs_stats {
  double live_bytes;       /* bytes that tensors hold now */
  double peak_bytes;       /* the most they held since rs_reset_peak */
  double cached_bytes;     /* bytes kept for reuse */
  double budget_bytes;     /* 0: no limit */
  double allocations;      /* blocks handed out since the context was made */
  double system_calls;     /* times memory was asked of the system or of the host's hook */
  double live_blocks;      /* blocks handed out and not yet given back */
} rs_stats;

RS_API rs_status       rs_ctx_create(const rs_ctx_options *options, rs_ctx **out);
RS_API void            rs_ctx_release(rs_ctx *ctx);   /* tensors made by it stay valid until they are released */
RS_API const rs_stats *rs_ctx_stats(const rs_ctx *ctx);
RS_API void            rs_reset_peak(rs_ctx *ctx);
RS_API void            rs_trim(rs_ctx *ctx);          /* gives cached memory back to the system */
RS_API void            rs_set_budget(rs_ctx *ctx, double bytes);
RS_API void            rs_fail_allocation(rs_ctx *ctx, double countdown, int sticky); /* for tests: the n-th next allocation fails (and all later); 0 turns it off */
RS_API rs_status       rs_set_num_threads(rs_ctx *ctx, int threads);
RS_API int             rs_get_num_threads(const rs_ctx *ctx);
RS_API rs_status       rs_set_isa(rs_ctx *ctx, const char *name);       /* "baseline", "avx2", "avx512", "best" */
RS_API const char     *rs_get_isa(const rs_ctx *ctx);
RS_API rs_status       rs_set_backends(rs_ctx *ctx, const char *names); /* "all", "portable", or a list: "blas,onednn" */
/* "default", or "highest": no Winograd convolutions (whose error is a few times larger), no f32 products on bf16 tiles (whose error is
   no larger) and no programs in bf16. */
RS_API rs_status       rs_set_precision(rs_ctx *ctx, const char *name);
RS_API const char     *rs_get_precision(const rs_ctx *ctx);
RS_API void            rs_set_index_base(rs_ctx *ctx, int base);        /* 0 or 1: how messages count */
RS_API int             rs_set_grad_enabled(rs_ctx *ctx, int enabled);   /* returns the former setting */
RS_API int             rs_get_grad_enabled(const rs_ctx *ctx);
RS_API void            rs_seed(rs_ctx *ctx, double seed);
RS_API void            rs_get_rng_state(const rs_ctx *ctx, double state[4]);
RS_API void            rs_set_rng_state(rs_ctx *ctx, const double state[4]);

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

typedef enum rs_dtype {
  RS_F32 = 0, RS_F64, RS_BF16, RS_F16, RS_I64, RS_I32, RS_U8, RS_BOOL, RS_DTYPES
} rs_dtype;

/* What a tensor is, in one read. Strides are in elements. */
typedef struct rs_info {
  void     *data;
  double    numel;
  double    version;             /* times its storage was written in place */
  int       dtype, ndim;
  int       requires_grad, is_leaf, is_contiguous, is_view;
  int64_t   shape[8];
  int64_t   strides[8];
} rs_info;

RS_API const char *rs_dtype_name(int dtype);          /* "f32", …; "?" when unknown */
RS_API int         rs_dtype_size(int dtype);          /* bytes of an element; 0 when unknown */

RS_API rs_status rs_tensor_empty(rs_ctx *ctx, int dtype, int ndim, const int64_t *shape, rs_tensor **out);
RS_API rs_tensor *rs_tensor_retain(rs_tensor *t);     /* returns t */
RS_API void      rs_tensor_release(rs_tensor *t);     /* NULL is allowed */
RS_API void      rs_tensor_info(const rs_tensor *t, rs_info *out);
RS_API int       rs_tensor_ndim(const rs_tensor *t);
RS_API int       rs_tensor_dtype(const rs_tensor *t);
RS_API double    rs_tensor_numel(const rs_tensor *t);
RS_API double    rs_tensor_size(const rs_tensor *t, int dim);           /* -1 when there is no such dimension */
RS_API void     *rs_tensor_data(const rs_tensor *t);  /* first element; writing does not bump the version */
RS_API int       rs_tensor_same_storage(const rs_tensor *a, const rs_tensor *b);
RS_API int       rs_tensor_same_shape(const rs_tensor *a, const rs_tensor *b);
RS_API double    rs_tensor_version(const rs_tensor *t);                 /* times its storage was written in place */
RS_API rs_status rs_tensor_item(rs_ctx *ctx, const rs_tensor *t, double *out);   /* t has one element */
RS_API rs_status rs_tensor_read(rs_ctx *ctx, const rs_tensor *t, double *out);   /* all elements, row-major */
RS_API rs_status rs_tensor_write(rs_ctx *ctx, rs_tensor *t, const double *values); /* all elements; bumps the version */
RS_API rs_status rs_tensor_set_data(rs_ctx *ctx, rs_tensor *t, rs_tensor *source); /* t becomes another view of source's storage */

/* ---- gradients ---------------------------------------------------------------------------------------------------- */

enum { RS_RETAIN_GRAPH = 1, RS_CREATE_GRAPH = 2, RS_ALLOW_UNUSED = 4 };

RS_API int       rs_tensor_requires_grad(const rs_tensor *t);
RS_API rs_status rs_tensor_set_requires_grad(rs_ctx *ctx, rs_tensor *t, int on);  /* leaves only */
RS_API rs_status rs_tensor_retain_grad(rs_ctx *ctx, rs_tensor *t);                /* keep the gradient of an intermediate */
RS_API rs_status rs_tensor_grad(rs_ctx *ctx, rs_tensor *t, rs_tensor **out);      /* *out = NULL when there is none */
RS_API rs_status rs_tensor_set_grad(rs_ctx *ctx, rs_tensor *t, rs_tensor *grad);  /* NULL clears */
RS_API rs_status rs_tensor_detach(rs_ctx *ctx, rs_tensor *t, rs_tensor **out);
/*
** Accumulates the gradient of `root` into the leaves. `grad` may be NULL when root has one element. One thread at a time may
** accumulate into a leaf (rs_grad may run in many). After a failure the gradients of the leaves are undefined: zero them.
*/
RS_API rs_status rs_backward(rs_ctx *ctx, rs_tensor *root, rs_tensor *grad, int flags);
/* Gradients of `root` with respect to `inputs`, returned instead of accumulated. */
RS_API rs_status rs_grad(rs_ctx *ctx, rs_tensor *root, rs_tensor *grad, rs_tensor *const *inputs, int n, int flags,
                         rs_tensor **out);
RS_API double    rs_zero_grads(rs_ctx *ctx, rs_tensor *const *tensors, int n);    /* drops the gradients; returns how many there were */

/*
** A node whose gradient the host computes (checkpoints, reversible layers). `value` was computed without gradients; rs_host makes
** it depend on `inputs`. rs_backward returns RS_HOST when it comes to the node: rs_suspended_walk then gives the walk,
** rs_walk_state the token (its storage is shared as long as the node lives) and the gradient of `value`, both new references.
** The host computes the gradients of `inputs` (NULL: none), in backwards of its own if it likes, and calls rs_walk_resume, which may
** return RS_HOST again; or rs_walk_cancel, after a failure. Either way the walk must be ended.
*/
RS_API rs_status rs_host(rs_ctx *ctx, rs_tensor *value, rs_tensor *const *inputs, int n, rs_tensor *token);
RS_API rs_walk  *rs_suspended_walk(rs_ctx *ctx);
RS_API rs_status rs_walk_state(rs_walk *walk, rs_tensor **token, rs_tensor **grad);
RS_API rs_status rs_walk_resume(rs_walk *walk, rs_tensor *const *grads, int n);
RS_API void      rs_walk_cancel(rs_walk *walk);
RS_API rs_status rs_tensor_twin(const rs_tensor *t, rs_tensor **out);   /* another tensor of the same memory and gradient */
RS_API int       rs_tensor_is_shared(const rs_tensor *t);     /* does another tensor or a node use its storage? */

/* A list attribute: a shape, dimensions, a stride for each dimension. n = 0 means not given. */
typedef struct rs_list { int64_t n, v[8]; } rs_list;

/* ---- ops ---------------------------------------------------------------------------------------------------------- */

/* Runs op number `op` (RS_OP_…). Optional inputs may be NULL; attrs NULL means the defaults. */
RS_API rs_status rs_call(rs_ctx *ctx, int op, rs_tensor *const *in, int nin, const void *attrs, rs_tensor **out);
/* The same, writing the result into in[0]. */
RS_API rs_status rs_call_inplace(rs_ctx *ctx, int op, rs_tensor *const *in, int nin, const void *attrs);

/* What the op table says, for tools and tests. */
typedef struct rs_attr_info {
  const char *name, *doc;
  int         kind, count, offset, base_one;  /* kind: rs_attr_kind */
  double      def, min, max;
  const char *choices;                        /* enum: "erf,tanh" */
} rs_attr_info;

typedef enum rs_attr_kind { RS_ATTR_INT = 0, RS_ATTR_FLOAT, RS_ATTR_BOOL, RS_ATTR_DIM, RS_ATTR_DIMS, RS_ATTR_SHAPE,
                            RS_ATTR_INTS, RS_ATTR_ENUM, RS_ATTR_DTYPE, RS_ATTR_INDEX } rs_attr_kind;

typedef struct rs_op_info {
  const char *name, *doc, *inputs;     /* inputs: "x,weight,bias?" */
  int         nin_min, nin_max, nout, nout_public, nattrs, attrs_size, nsamples, nkernels, has_grad;
  unsigned    traits, dtypes;
} rs_op_info;

typedef struct rs_sample_info { const char *inputs; const void *attrs; double tolerance; int no_grad; } rs_sample_info;

RS_API int       rs_op_count(void);
RS_API rs_status rs_op_describe(int op, rs_op_info *out);
RS_API rs_status rs_op_attr(int op, int index, rs_attr_info *out);
RS_API rs_status rs_op_sample(int op, int index, rs_sample_info *out);
RS_API const char *rs_op_kernel(int op, int index, int *backend);   /* name of a kernel; backend: 0 portable, 1 blas, 2 onednn */
RS_API const char *rs_last_kernel(const rs_ctx *ctx);               /* the kernel that the last op used */

/* ---- programs ----------------------------------------------------------------------------------------------------- */

/* Records what this context runs until rs_trace_end. `inputs` become the program's arguments; any other tensor that is read
   is bound as it is (a parameter). Two contexts must not record over the same tensors at the same time (running the
   programs at once is what they are for). */
/* What is recorded is not computed: tensors made meanwhile have a form but no values, and only the program's outputs will. */
RS_API rs_status rs_trace_begin(rs_ctx *ctx, rs_tensor *const *inputs, int n);
RS_API rs_status rs_trace_end(rs_ctx *ctx, rs_tensor *const *outputs, int n, rs_program **out);
RS_API void      rs_trace_abort(rs_ctx *ctx);
RS_API int       rs_is_tracing(const rs_ctx *ctx);
/* While a recording is paused ops run as always: for parameters and state that are made when they are first needed. Returns
   whether it was paused. */
RS_API int       rs_trace_pause(rs_ctx *ctx, int paused);
/*
** Rewrites a program so that it computes the same faster; before its first workspace. Bit i of `passes` stands for the pass
** rs_pass_name(i); ~0u runs all. dtype: RS_F32, or RS_BF16 to convolve and multiply in bf16 with sums in f32 where that pays.
*/
RS_API rs_status rs_program_optimize(rs_program *p, unsigned passes, int dtype);
RS_API int         rs_pass_count(void);
RS_API const char *rs_pass_name(int index);
RS_API void      rs_program_release(rs_program *p);
RS_API int       rs_program_length(const rs_program *p);            /* instructions */
RS_API rs_status rs_workspace_create(rs_ctx *ctx, const rs_program *p, rs_workspace **out);
/* A workspace that shares its temporary memory with another one of the same context; they are used in turn. */
RS_API rs_status rs_workspace_create_beside(rs_ctx *ctx, const rs_program *p, rs_workspace *beside, rs_workspace **out);
RS_API void      rs_workspace_release(rs_workspace *w);
RS_API double    rs_workspace_bytes(const rs_workspace *w);
/* What was computed from bindings alone is computed again by the next run. Needed only after writing through rs_tensor_data. */
RS_API void      rs_workspace_refresh(rs_workspace *w);
RS_API int       rs_program_writes_inputs(const rs_program *p);     /* does a run write into an argument in place? */
/* Would a run accept these inputs, and are gradients as they were when p was recorded? No message. (A run also refuses inputs that
   share memory with each other or with a binding, where p writes to one of the two.) */
RS_API int       rs_program_fits(const rs_program *p, rs_tensor *const *inputs, int nin);
/* Is t a binding of p, other than a gradient that belongs to its parameter? For a host that frees a tensor that p still holds. */
RS_API int       rs_program_reads(const rs_program *p, const rs_tensor *t);
RS_API int       rs_tensor_was_recorded(const rs_tensor *t);        /* has a recording ever met it? */
/* Runs p: no allocation (but for the first run after a call, which gave its results away), no lock. outputs[i] receives a tensor
   owned by the workspace, overwritten by its next run and refused as an input of it. */
RS_API rs_status rs_program_run(const rs_program *p, rs_workspace *w, rs_tensor *const *inputs, int nin,
                                rs_tensor **outputs, int nout);
/* The same with outputs that are the caller's: the next run makes itself new ones. Only the second of two that share memory and
   what depends on bindings alone are copied. */
RS_API rs_status rs_program_call(const rs_program *p, rs_workspace *w, rs_tensor *const *inputs, int nin,
                                 rs_tensor **outputs, int nout);
/*
** A run in steps, for a frame's budget: begin, then step until it returns RS_OK instead of RS_MORE, then finish, whose outputs are
** the caller's. A step ends after the instruction in which the budget (microseconds; 0: none) was used up.
*/
RS_API rs_status rs_program_begin(const rs_program *p, rs_workspace *w, rs_tensor *const *inputs, int nin);
RS_API rs_status rs_program_step(const rs_program *p, rs_workspace *w, double budget_us);
RS_API rs_status rs_program_finish(const rs_program *p, rs_workspace *w, rs_tensor **outputs, int nout);
RS_API void      rs_program_cancel(const rs_program *p, rs_workspace *w);

/* What a program consists of, for tools. */
typedef struct rs_program_info {
  int    instructions, prologue, values, inputs, outputs, bound;   /* prologue: instructions that run only when bindings changed */
  double arena_bytes, prologue_bytes, bound_bytes;
  double temporary_bytes;              /* what temporaries would need without a plan */
} rs_program_info;
typedef struct rs_instruction_info {
  const char *op, *kernel;             /* kernel NULL: a view, which costs nothing */
  int         number, nin, nout, inplace;
  const int  *ids;                     /* values: nin inputs (-1: left out), then nout outputs */
  const void *attrs;
} rs_instruction_info;
typedef struct rs_value_info {
  int       kind, base, dtype, ndim, kept;   /* kind: 0 argument, 1 bound, 2 temporary, 3 view of `base` */
  int       first, last;               /* instructions between which it lives */
  double    place;                     /* offset in the arena; -1: none */
  int64_t   shape[8];
  rs_tensor *bound;
} rs_value_info;
RS_API void      rs_program_describe(const rs_program *p, rs_program_info *out);
RS_API rs_status rs_program_instruction(const rs_program *p, int index, rs_instruction_info *out);
RS_API rs_status rs_program_value(const rs_program *p, int id, rs_value_info *out);
RS_API int       rs_program_output(const rs_program *p, int index);      /* the value that is result `index`; -1 when there is none */

/* ---- profiling ---------------------------------------------------------------------------------------------------- */

/* A kernel that ran. */
typedef struct rs_profile_event {
  const char       *op, *kernel;
  const rs_program *program;           /* whose instruction it was; NULL: an op that was called. Only to tell programs apart */
  int               instruction;
  double            start, seconds;    /* of rs_time */
  double            bytes;             /* of inputs and outputs; what is written in place counts twice */
} rs_profile_event;
/*
** From begin to end, every kernel that this context runs is noted in `events`, which stays the caller's and must live that long.
** Views run no kernel. When the buffer is full, later events are dropped and counted.
*/
RS_API rs_status rs_profile_begin(rs_ctx *ctx, rs_profile_event *events, double capacity);
RS_API double    rs_profile_end(rs_ctx *ctx, double *dropped);   /* how many events there are; 0 when none was under way */

/* ---- files -------------------------------------------------------------------------------------------------------- */

typedef struct rs_file rs_file;         /* an open safetensors file, or one being written */

/* Opens a safetensors file and checks its whole header. */
RS_API rs_status   rs_file_open(rs_ctx *ctx, const char *path, rs_file **out);
RS_API int         rs_file_count(const rs_file *f);
RS_API const char *rs_file_name(const rs_file *f, int index);
RS_API rs_status   rs_file_read(rs_ctx *ctx, const rs_file *f, int index, rs_tensor **out);
RS_API int         rs_file_meta_count(const rs_file *f);
RS_API const char *rs_file_meta_key(const rs_file *f, int index);
RS_API const char *rs_file_meta_value(const rs_file *f, int index);
RS_API void        rs_file_close(rs_file *f);
/* Writes tensors under their names; the file appears under `path` only when it is whole. */
RS_API rs_status   rs_file_save(rs_ctx *ctx, const char *path, const char *const *names, rs_tensor *const *tensors, int n,
                                const char *const *meta_keys, const char *const *meta_values, int nmeta);
/* Reads an IDX file (the format of MNIST), plain or gzip. limit: at most that many entries of dimension 0; 0 means all. */
RS_API rs_status   rs_read_idx(rs_ctx *ctx, const char *path, double limit, rs_tensor **out);

/* Generated from the op table: RS_OP_… numbers, attribute structs, one typed function per op. */
#ifndef RSI_INTERNAL
#include "resin_ops.h"
#endif

#ifdef __cplusplus
}
#endif
#endif
