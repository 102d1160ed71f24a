/* What the passes share that put several instructions into one. */
#ifndef RSI_FUSE_H
#define RSI_FUSE_H

#include "program/internal.h"

/* Who reads what: instructions list[start[v]] to list[start[v + 1] - 1] read value v, as itself; twice when they read it twice. */
typedef struct rsi_uses {
  size_t block;
  int   *start, *list;
  bool  *result;                       /* [nvalues] is it a result of the program? */
  bool  *viewed;                       /* [nvalues] of a base: it has views */
} rsi_uses;
rs_status rsi_uses_make(const rs_program *p, rsi_uses *u);
void      rsi_uses_free(const rs_program *p, rsi_uses *u);
static inline int rsi_use_count(const rsi_uses *u, int id) { return u->start[id + 1] - u->start[id]; }
/* The one instruction that reads value `id`, which is neither a result nor viewed nor written in place; else -1. */
int       rsi_only_reader(const rs_program *p, const rsi_facts *f, const rsi_uses *u, int id);
/* Is value `id` an ordinary temporary that is made once and never written after? */
bool      rsi_is_plain(const rs_program *p, const rsi_facts *f, int id);
/* Does an instruction from `first` to `last` write to what value `id` lies in? */
bool      rsi_written_between(const rs_program *p, const rsi_instr *instrs, int id, int first, int last);
/*
** Could instruction k stand at `where` instead (earlier: right after that one; later: in its place, joined with it)? Nothing that it reads
** is made or written on the way, and nothing that it makes or writes is read or written there. pass: a value of which k's companions
** on the way make something; -1: none.
*/
bool      rsi_may_move(const rs_program *p, int k, int where, int pass);
bool      rsi_same_form(const rs_program *p, int a, int b);            /* dtype and shape */
bool      rsi_value_is_contiguous(const rs_program *p, int id);
int64_t   rsi_value_numel(const rs_program *p, int id);
/* Is the instruction, which reads value `id`, the sum of it and a contiguous tensor of its form? Then that one, else -1. */
int       rsi_addend(const rs_program *p, const rsi_instr *i, int id);

#endif
