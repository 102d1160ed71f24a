/* Between the two halves of the layout pass: which instructions join into one, and the images themselves. */
#ifndef RSI_PROGRAM_IMAGES_H
#define RSI_PROGRAM_IMAGES_H

#include "program/fuse.h"
#include "backend/backend.h"
#include "ops/conv_block.h"

/* What becomes of an instruction. */
enum { RSI_ROLE_NONE, RSI_ROLE_JOINED, RSI_ROLE_END, RSI_ROLE_MASK };

/*
** JOINED: another instruction computes it. END: the last of `head` (a convolution or batch norm) -> add `residual` -> act.
** MASK: a relu_backward that the batch_norm_backward `head` does itself, after the sum of two gradients that the instruction
** `sum` (-1: none) would make; `shared`: others read the masked gradient too.
*/
typedef struct rsi_role {
  uint8_t kind, act;
  bool    shared;
  int     head, residual, sum;
} rsi_role;

/* roles: [ninstrs] */
rs_status rsi_image_roles(const rs_program *p, const rsi_facts *f, rsi_role *roles);

#endif
