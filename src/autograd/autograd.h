/*
** The tape. Every tensor that wants a gradient points at a node: a leaf node for parameters, otherwise the node of the op
** that made it. A node holds edges to the nodes of its inputs and embedded copies of the tensors that its gradient rule
** needs, with their versions, so it never points at a Lua-visible header and no cycle can form.
** Invariant: node -> edges is acyclic; the leaf's `kept[0]` is the gradient that users see.
*/
#ifndef RSI_AUTOGRAD_H
#define RSI_AUTOGRAD_H

#include "tensor/tensor.h"

struct rs_op;
struct rsi_call;

typedef struct rsi_edge {
  rsi_node      *node;        /* NULL: this input needs no gradient */
  const int64_t *shape;       /* of the input, in the node's block */
  uint8_t        out_index, dtype, ndim, given;
} rsi_edge;

typedef struct rsi_saved {
  rs_tensor tensor;           /* embedded: owns its storage reference, not its node */
  uint32_t  version;          /* of the storage, when it was saved */
  uint8_t   slot;             /* input i, or 8 + output j */
  uint8_t   present;
} rsi_saved;

enum { RSI_N_LEAF = 1, RSI_N_RELEASED = 2, RSI_N_KEEP = 4, RSI_N_BUSY = 8 };   /* busy: of a suspended backward */

/* One block: the node, then edges, saved tensors, attributes, gradients and shapes. */
struct rsi_node {
  _Atomic int32_t     refs;
  uint8_t             nout, nsaved, flags;
  int32_t             nin;
  const struct rs_op *op;               /* NULL for a leaf */
  rsi_heap           *heap;
  size_t              block;
  rsi_edge           *edges;
  rsi_saved          *saved;
  void               *attrs;
  rs_tensor         **grad;             /* [nout] gradients that arrived in the backward pass under way */
  rs_tensor         **kept;             /* [nout] gradients kept for the user */
  rsi_desc           *outs;             /* [nout] when nout > 1 */
  /* of the traversal under way */
  uint64_t            visit;
  rsi_node           *parent, *next;
  int32_t             step;
};

static inline rsi_node *rsi_node_retain(rsi_node *n) {
  rsi_ref_take(&n->refs);
  return n;
}
void rsi_node_release(rsi_node *n);
bool rsi_node_is_leaf(const rsi_node *n);

/* Bit per saved slot that the gradients of the inputs marked in `wanted` need. */
uint32_t rsi_saved_mask(const struct rs_op *op, rs_tensor *const *in, int nin);
/* Records the finished call: its float outputs get the new node. */
rs_status rsi_record(const struct rsi_call *c, bool inplace);
/* The op of nodes whose gradient the host computes; in no table. */
extern const struct rs_op rsi_host_op;

#endif
