/* Attributes by name, for passes: the structs themselves belong to the op's family file. */
#include "program/internal.h"
#include <string.h>

static void *attr_at(const rs_op *op, const void *attrs, const char *name) {
  for (int i = 0; i < op->nattrs; i++)
    if (strcmp(op->attrs[i].name, name) == 0) return (char *)(uintptr_t)attrs + op->attrs[i].offset;
  return NULL;
}

int64_t rsi_attr_int(const rsi_instr *i, const char *name) {
  const int64_t *const at = attr_at(i->op, i->attrs, name);
  return at ? *at : 0;
}

double rsi_attr_float(const rsi_instr *i, const char *name) {
  const double *const at = attr_at(i->op, i->attrs, name);
  return at ? *at : 0;
}

rs_list rsi_attr_list(const rsi_instr *i, const char *name) {
  const rs_list *const at = attr_at(i->op, i->attrs, name);
  const rs_list none = {0};
  return at ? *at : none;
}

void rsi_attrs_of(int op, rsi_attr_set *a) {
  a->op = rsi_ops[op];
  memset(a->bytes, 0, sizeof a->bytes);
  rsi_op_attrs(a->op, NULL, a->bytes);
}

void rsi_attrs_int(rsi_attr_set *a, const char *name, int64_t v) {
  int64_t *const at = attr_at(a->op, a->bytes, name);
  if (at) *at = v;
}

void rsi_attrs_float(rsi_attr_set *a, const char *name, double v) {
  double *const at = attr_at(a->op, a->bytes, name);
  if (at) *at = v;
}

void rsi_attrs_list(rsi_attr_set *a, const char *name, const rs_list *v) {
  rs_list *const at = attr_at(a->op, a->bytes, name);
  if (at) *at = *v;
}

void rsi_attrs_sizes(rsi_attr_set *a, const char *name, int n, const int64_t *v) {
  rs_list list = {.n = n};
  for (int i = 0; i < n; i++) list.v[i] = v[i];
  rsi_attrs_list(a, name, &list);
}

/* Takes over every attribute that both ops have, by name and kind. */
void rsi_attrs_from(rsi_attr_set *a, const rsi_instr *i) {
  for (int k = 0; k < a->op->nattrs; k++) {
    const rsi_attr *const to = &a->op->attrs[k];
    for (int j = 0; j < i->op->nattrs; j++) {
      const rsi_attr *const from = &i->op->attrs[j];
      if (from->kind != to->kind || strcmp(from->name, to->name) != 0) continue;
      const bool list = to->kind == RS_ATTR_DIMS || to->kind == RS_ATTR_SHAPE || to->kind == RS_ATTR_INTS;
      memcpy(a->bytes + to->offset, (const char *)i->attrs + from->offset, list ? sizeof(rs_list) : sizeof(int64_t));
    }
  }
}
