/* What recording and replay share: the program. */
#ifndef RSI_PROGRAM_INTERNAL_H
#define RSI_PROGRAM_INTERNAL_H

#include "program/program.h"

enum { RSI_V_ARG, RSI_V_BOUND, RSI_V_TEMP, RSI_V_VIEW };

/* A value: where it lives (the storage of value `base`, `offset` bytes from its start) and its form. */
typedef struct rsi_value {
  uint8_t    kind;
  int        base;                     /* itself unless it is a view */
  int64_t    offset;
  rsi_desc   desc;
  int64_t    strides[RS_MAX_DIMS];
  rs_tensor *bound;                    /* RSI_V_BOUND: the tensor, one reference */
} rsi_value;

/* An instruction. kernel NULL: a view, which costs nothing when it runs. */
typedef struct rsi_instr {
  const rs_op      *op;
  const rsi_kernel *kernel;
  int               nin, nout;
  int              *ids;               /* values of the inputs (-1: left out), then of the outputs */
  size_t            ids_bytes;
  void             *attrs;
  bool              inplace;
  rsi_desc          desc[RS_MAX_OUTPUTS];
} rsi_instr;

/* Immutable once recorded; values[0..ninputs-1] are the arguments. */
struct rs_program {
  _Atomic int32_t refs;
  rsi_heap       *heap;
  rs_ctx         *ctx;                 /* kept alive once recorded: its heap holds the program */
  rsi_value      *values;
  rsi_instr      *instrs;
  int            *outputs;
  int             nvalues, values_capacity, ninstrs, instrs_capacity, ninputs, noutputs;
  bool            writes_inputs;       /* an instruction writes to an argument in place */
};

struct rsi_trace {
  rs_program *program;
  uint64_t    serial;
  rs_status   status;                  /* of the first append that failed: the recording has a hole */
};

#endif
