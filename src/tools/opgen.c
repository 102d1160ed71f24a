/*
** opgen OUTDIR [resin.h]: writes everything that follows from the op table. Linked with the engine, it walks rsi_ops and
** makes
**   OUTDIR/resin_ops.h            numbers, attribute structs and one typed function per op
**   OUTDIR/ops_api.c              the bodies of those functions
**   OUTDIR/lua/resin/cdef.lua     resin.h and the attribute structs as LuaJIT reads them
**   OUTDIR/lua/resin/ops.lua      the Lua binding, one function per op
**   OUTDIR/ops.md                 the reference
** The public attribute structs have the layout of the internal ones because every field has 8 bytes or is an rs_list; this
** is checked here against the offsets in the table.
*/
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include "ops/op.h"

/* ---- small helpers --------------------------------------------------------------------------------------------------- */

_Noreturn static void die(const char *what, const char *detail) {
  fprintf(stderr, "opgen: %s: %s\n", what, detail);
  exit(1);
}

static void make_dir(const char *path) {
  if (mkdir(path, 0777) != 0 && errno != EEXIST) die(path, strerror(errno));
}

static FILE *create(const char *dir, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  FILE *f = fopen(path, "w");
  if (f == NULL) die(path, strerror(errno));
  return f;
}

static void finish(FILE *f, const char *name) {
  int bad = ferror(f);
  if (fclose(f) != 0 || bad) die(name, "could not be written");
}

static const rs_op *op_at(int id) {
  const rs_op *op = rsi_ops[id];
  if (op == NULL || op->name == NULL) die("op table", "an op of ops.def has no entry");
  return op;
}

static bool is_list(int kind) { return kind == RS_ATTR_DIMS || kind == RS_ATTR_SHAPE || kind == RS_ATTR_INTS; }
static bool is_variadic(const rs_op *op) { return op->nin_max == RSI_VARIADIC; }
static int  public_outputs(const rs_op *op) { return op->nout_public != 0 ? op->nout_public : op->nout; }

static const rsi_attr *find_attr(const rs_op *op, const char *name) {
  for (int i = 0; i < op->nattrs; i++)
    if (strcmp(op->attrs[i].name, name) == 0) return &op->attrs[i];
  return NULL;
}

/* Inputs as separate names; `?` and `...` are taken off. */
typedef struct names { int n; char name[RSI_FEW * 2][32]; bool optional[RSI_FEW * 2]; } names;

static names input_names(const rs_op *op) {
  names out;
  memset(&out, 0, sizeof out);
  const char *p = op->inputs == NULL ? "" : op->inputs;
  while (*p != 0) {
    size_t len = strcspn(p, ",");
    if (out.n == RSI_FEW * 2 || len >= sizeof out.name[0]) die(op->name, "its input names do not fit");
    char *name = out.name[out.n];
    memcpy(name, p, len);
    name[len] = 0;
    char *dots = strstr(name, "...");
    if (dots != NULL) *dots = 0;
    size_t left = strlen(name);
    if (left > 0 && name[left - 1] == '?') {
      name[left - 1] = 0;
      out.optional[out.n] = true;
    }
    if (!is_variadic(op) && out.n >= op->nin_min) out.optional[out.n] = true;
    out.n++;
    p += len;
    if (*p == ',') p++;
  }
  if (!is_variadic(op) && out.n != op->nin_max) die(op->name, "the names of its inputs do not match nin_max");
  if (is_variadic(op) && out.n != 1) die(op->name, "a variadic op has one input name");
  return out;
}

/* Does the in-place form `name_` exist? Its result must have the type of the first input. */
static bool has_inplace(const rs_op *op) {
  const bool named = (op->traits & RSI_T_INTERNAL) == 0 || strcmp(op->name, "assign") == 0;
  return named && (op->traits & RSI_T_ELEMENTWISE) != 0 && op->nout == 1 && op->nin_max >= 1 &&
         !is_variadic(op) && op->infer != rsi_infer_broadcast_bool && strcmp(op->name, "cast") != 0 && strcmp(op->name, "where") != 0;
}

/* ---- C --------------------------------------------------------------------------------------------------------------- */

static void write_struct(FILE *f, const rs_op *op) {
  if (op->nattrs == 0) return;
  int offset = 0;
  fprintf(f, "typedef struct rs_%s_attrs {\n", op->name);
  for (int i = 0; i < op->nattrs; i++) {
    const rsi_attr *a = &op->attrs[i];
    const char *type = is_list(a->kind) ? "rs_list" : a->kind == RS_ATTR_FLOAT ? "double" : "int64_t";
    fprintf(f, "  %s %s;\n", type, a->name);
    if (a->offset != offset) die(op->name, "an attribute does not lie where the public struct has it");
    offset += is_list(a->kind) ? (int)sizeof(rs_list) : 8;
  }
  fprintf(f, "} rs_%s_attrs;\n", op->name);
  if (offset != op->attrs_size) die(op->name, "its attributes do not fill their struct");
}

static void write_signature(FILE *f, const rs_op *op) {
  names in = input_names(op);
  fprintf(f, "rs_status rs_%s(rs_ctx *ctx", op->name);
  if (is_variadic(op)) fprintf(f, ", rs_tensor *const *%s, int n", in.name[0]);
  else
    for (int i = 0; i < in.n; i++) fprintf(f, ", rs_tensor *%s", in.name[i]);
  if (op->nattrs > 0) fprintf(f, ", const rs_%s_attrs *attrs", op->name);
  for (int j = 0; j < op->nout; j++) {
    if (op->nout == 1) fprintf(f, ", rs_tensor **out");
    else fprintf(f, ", rs_tensor **out%d", j);
  }
  fprintf(f, ")");
}

static void write_numbers(FILE *f) {
  fprintf(f, "enum {\n");
  for (int id = 0; id < RSI_OPS; id++) fprintf(f, "  RS_OP_%s = %d,\n", op_at(id)->name, id);
  fprintf(f, "  RS_OPS = %d\n};\n", RSI_OPS);
}

static void write_header(const char *dir) {
  FILE *f = create(dir, "resin_ops.h");
  fprintf(f, "/* Generated from the op table: do not edit. Part of resin.h. */\n#ifndef RESIN_OPS_H\n#define RESIN_OPS_H\n\n");
  write_numbers(f);
  for (int id = 0; id < RSI_OPS; id++) {
    const rs_op *op = op_at(id);
    fprintf(f, "\n/* %s */\n", op->doc == NULL ? op->name : op->doc);
    write_struct(f, op);
    if (op->nattrs > 0) fprintf(f, "RS_API void rs_%s_defaults(rs_%s_attrs *attrs);\n", op->name, op->name);
    fprintf(f, "RS_API ");
    write_signature(f, op);
    fprintf(f, ";\n");
  }
  fprintf(f, "\n#endif\n");
  finish(f, "resin_ops.h");
}

static void write_c_number(FILE *f, const rsi_attr *a) {
  if (a->kind != RS_ATTR_FLOAT) {
    if (a->def <= -9223372036854775808.0) fprintf(f, "INT64_MIN");
    else fprintf(f, "%" PRId64, (int64_t)a->def);
  } else if (isnan(a->def)) fprintf(f, "(double)NAN");
  else if (isinf(a->def)) fprintf(f, a->def > 0 ? "(double)INFINITY" : "-(double)INFINITY");
  else fprintf(f, "%.17g", a->def);
}

static void write_api(const char *dir) {
  FILE *f = create(dir, "ops_api.c");
  fprintf(f, "/* Generated from the op table: do not edit. One typed function per op, all through rs_call. */\n"
             "#undef RSI_INTERNAL\n#include <math.h>\n#include \"resin.h\"\n");
  for (int id = 0; id < RSI_OPS; id++) {
    const rs_op *op = op_at(id);
    names in = input_names(op);
    if (op->nattrs > 0) {
      fprintf(f, "\nvoid rs_%s_defaults(rs_%s_attrs *attrs) {\n  *attrs = (rs_%s_attrs){0};\n", op->name, op->name, op->name);
      for (int i = 0; i < op->nattrs; i++) {
        if (is_list(op->attrs[i].kind)) continue;   /* n = 0: not given */
        fprintf(f, "  attrs->%s = ", op->attrs[i].name);
        write_c_number(f, &op->attrs[i]);
        fprintf(f, ";\n");
      }
      fprintf(f, "}\n");
    }
    fprintf(f, "\n");
    write_signature(f, op);
    fprintf(f, " {\n");
    const char *inputs = "NULL";
    char        count[32] = "0";
    if (is_variadic(op)) {
      inputs = in.name[0];
      snprintf(count, sizeof count, "n");
    } else if (in.n > 0) {
      fprintf(f, "  rs_tensor *in[] = {");
      for (int i = 0; i < in.n; i++) fprintf(f, "%s%s", i == 0 ? "" : ", ", in.name[i]);
      fprintf(f, "};\n");
      inputs = "in";
      snprintf(count, sizeof count, "%d", in.n);
    }
    const char *attrs = op->nattrs > 0 ? "attrs" : "NULL";
    if (op->nout <= 1) {
      fprintf(f, "  return rs_call(ctx, RS_OP_%s, %s, %s, %s, %s);\n}\n", op->name, inputs, count, attrs,
              op->nout == 1 ? "out" : "NULL");
      continue;
    }
    fprintf(f, "  rs_tensor *out[%d];\n  rs_status rc = rs_call(ctx, RS_OP_%s, %s, %s, %s, out);\n  if (rc != RS_OK) return rc;\n",
            op->nout, op->name, inputs, count, attrs);
    for (int j = 0; j < op->nout; j++)   /* an output whose pointer is NULL is not wanted */
      fprintf(f, "  if (out%d != NULL) *out%d = out[%d]; else rs_tensor_release(out[%d]);\n", j, j, j, j);
    fprintf(f, "  return RS_OK;\n}\n");
  }
  finish(f, "ops_api.c");
}

/* ---- declarations for the FFI ---------------------------------------------------------------------------------------- */

static char *read_all(const char *path) {
  FILE *f = fopen(path, "r");
  if (f == NULL) die(path, strerror(errno));
  size_t cap = 1 << 20, n;
  char *text = malloc(cap);
  if (text == NULL) die(path, "out of memory");
  n = fread(text, 1, cap - 1, f);
  if (n == cap - 1) die(path, "is too long");
  text[n] = 0;
  fclose(f);
  return text;
}

/* Copies declarations: no comments, no preprocessor lines, no extern "C", no RS_API, no empty lines. */
static void write_declarations(FILE *f, char *text) {
  char *to = text;
  for (const char *p = text; *p != 0;) {
    if (p[0] == '/' && p[1] == '*') {
      const char *end = strstr(p, "*/");
      if (end == NULL) die("resin.h", "a comment does not end");
      p = end + 2;
    } else *to++ = *p++;
  }
  *to = 0;
  bool in_cplusplus = false;
  for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
    size_t len = strlen(line);
    while (len > 0 && (line[len - 1] == ' ' || line[len - 1] == '\t')) line[--len] = 0;
    if (strncmp(line, "#ifdef __cplusplus", 18) == 0) in_cplusplus = true;
    if (in_cplusplus) {
      if (strncmp(line, "#endif", 6) == 0) in_cplusplus = false;
      continue;
    }
    if (len == 0 || line[0] == '#') continue;
    fprintf(f, "%s\n", strncmp(line, "RS_API ", 7) == 0 ? line + 7 + strspn(line + 7, " ") : line);
  }
}

static void write_cdef(const char *dir, const char *header) {
  FILE *f = create(dir, "lua/resin/cdef.lua");
  fprintf(f, "-- Generated from resin.h and the op table: do not edit.\n"
             "-- Declares the C side once per Lua state and returns the ABI number that it was made for.\n"
             "local ffi = require \"ffi\"\n\nif not pcall(ffi.typeof, \"rs_info\") then\n  ffi.cdef [[\n");
  char *text = read_all(header);
  write_declarations(f, text);
  free(text);
  write_numbers(f);
  for (int id = 0; id < RSI_OPS; id++) write_struct(f, op_at(id));
  fprintf(f, "]]\nend\n\nreturn %d\n", RS_ABI_VERSION);
  finish(f, "cdef.lua");
}

/* ---- Lua ------------------------------------------------------------------------------------------------------------- */

static const char *const lua_words[] = {"and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if",
  "in", "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while",
  /* and the upvalues of the generated functions */
  "ops", "C", "ctx", "IN", "OUT", "A", "B", "Tensor", "wrap", "type", "getmetatable", "rc", "o", "n", "known", "ffi", NULL};

/* A parameter's name in Lua: the attribute's own unless that is a word of the language or one that we use. */
static const char *lua_name(const char *name) {
  static char buffer[4][64];
  static int  next;
  for (int i = 0; lua_words[i] != NULL; i++)
    if (strcmp(name, lua_words[i]) == 0) {
      char *out = buffer[next++ % 4];
      snprintf(out, sizeof buffer[0], "%s_", name);
      return out;
    }
  return name;
}

static void write_lua_number(FILE *f, double v, bool integer) {
  if (isnan(v)) fprintf(f, "0/0");
  else if (isinf(v)) fprintf(f, v > 0 ? "HUGE" : "-HUGE");
  else if (v <= -9223372036854775808.0) fprintf(f, "NONE");
  else if (integer) fprintf(f, "%.0f", v);
  else fprintf(f, "%.17g", v);
}

/* The name of the converter for an attribute kind. */
static const char *converter(int kind) {
  switch (kind) {
    case RS_ATTR_INT: return "to_int";
    case RS_ATTR_FLOAT: return "to_number";
    case RS_ATTR_BOOL: return "to_bool";
    case RS_ATTR_DIM: return "to_dim";
    case RS_ATTR_INDEX: return "to_index";
    case RS_ATTR_DTYPE: return "to_dtype";
    case RS_ATTR_ENUM: return "to_choice";
    case RS_ATTR_DIMS: return "set_dims";
    case RS_ATTR_SHAPE: return "set_shape";
    default: return "set_ints";
  }
}

/* An op whose one attribute is a list takes it spread out too: x:reshape(2, 3). */
static bool spreads(const rs_op *op) { return op->nattrs == 1 && is_list(op->attrs[0].kind); }

/*
** Two operands of which one may be a number: the attribute `scalar` holds it while its input is left out. Lua gives the number
** in the operand's place, so `scalar` is no parameter of its own there.
*/
static bool takes_scalar(const rs_op *op) {
  const rsi_attr *a = find_attr(op, "scalar");
  return op->nin_min <= 1 && op->nin_max == 2 && a != NULL && a->kind == RS_ATTR_FLOAT;
}

/* The attribute NAME_scalar: the number that was given in the place of input NAME. */
static const rsi_attr *number_for(const rs_op *op, const char *input) {
  char name[64];
  snprintf(name, sizeof name, "%s_scalar", input);
  const rsi_attr *a = find_attr(op, name);
  return a != NULL && a->kind == RS_ATTR_FLOAT ? a : NULL;
}

/* Is attribute i a parameter of the Lua function? Those that hold a number given as an operand are not. */
static bool is_parameter(const rs_op *op, int i) {
  if (takes_scalar(op) && strcmp(op->attrs[i].name, "scalar") == 0) return false;
  const names in = input_names(op);
  for (int k = 0; k < in.n; k++)
    if (number_for(op, in.name[k]) == &op->attrs[i]) return false;
  return true;
}

static int parameters(const rs_op *op) {
  int n = 0;
  for (int i = 0; i < op->nattrs; i++) n += is_parameter(op, i);
  return n;
}

/* May a number stand in the place of input i? */
static bool takes_number(const rs_op *op, const names *in, int i) {
  return takes_scalar(op) || number_for(op, in->name[i]) != NULL;
}

static void write_parameters(FILE *f, const rs_op *op, const names *in) {
  const char *comma = "";
  for (int i = 0; i < in->n; i++, comma = ", ") fprintf(f, "%s%s", comma, lua_name(in->name[i]));
  if (spreads(op)) {
    fprintf(f, "%s%s, b, c, d, e, f, g, h", comma, lua_name(op->attrs[0].name));
    return;
  }
  for (int i = 0; i < op->nattrs; i++)
    if (is_parameter(op, i)) fprintf(f, "%s%s", comma, lua_name(op->attrs[i].name)), comma = ", ";
}

/* An options table in the place of any attribute gives that attribute and the later ones. */
static void write_options(FILE *f, const rs_op *op) {
  const char *keyword = "if";
  int         number = 0;
  for (int i = 0; i < op->nattrs; i++) {
    const rsi_attr *a = &op->attrs[i];
    const char *name = lua_name(a->name), *comma = "";
    if (!is_parameter(op, i)) continue;
    fprintf(f, "    %s type(%s) == \"table\" and %s(%s) then\n", keyword, name, is_list(a->kind) ? "is_options" : "not_list", name);
    fprintf(f, "      local o = options(%s, known, %d, \"%s\")\n      ", name, ++number, op->name);
    keyword = "elseif";
    for (int k = i; k < op->nattrs; k++, comma = ", ") fprintf(f, "%s%s", comma, lua_name(op->attrs[k].name));
    fprintf(f, " = ");
    comma = "";
    for (int k = i; k < op->nattrs; k++, comma = ", ") fprintf(f, "%so[\"%s\"]", comma, op->attrs[k].name);
    fprintf(f, "\n");
  }
  if (number > 0) fprintf(f, "    end\n");
}

static void write_attributes(FILE *f, const rs_op *op) {
  for (int i = 0; i < op->nattrs; i++) {
    const rsi_attr *a = &op->attrs[i];
    const char *name = lua_name(a->name), *to = converter(a->kind);
    if (!is_parameter(op, i)) {
      fprintf(f, "    A.%s = %s\n", a->name, name);
      continue;
    }
    if (is_list(a->kind)) {
      fprintf(f, "    %s(A.%s, %s, \"%s: %s\")\n", to, a->name, name, op->name, a->name);
      continue;
    }
    fprintf(f, "    if %s == nil then A.%s = ", name, a->name);
    write_lua_number(f, a->def, a->kind != RS_ATTR_FLOAT);
    fprintf(f, " else A.%s = %s(%s, \"%s: %s\"%s%s) end\n", a->name, to, name, op->name, a->name,
            a->kind == RS_ATTR_ENUM ? ", choices_" : "", a->kind == RS_ATTR_ENUM ? a->name : "");
  }
}

static void write_spread(FILE *f, const rs_op *op) {
  const rsi_attr *a = &op->attrs[0];
  const char *name = lua_name(a->name);
  fprintf(f, "    if type(%s) == \"table\" and is_options(%s) then %s = options(%s, known, 1, \"%s\")[\"%s\"] end\n", name, name,
          name, name, op->name, a->name);
  fprintf(f, "    spread_%s(A.%s, \"%s: %s\", %s, b, c, d, e, f, g, h)\n", converter(a->kind) + 4, a->name, op->name, a->name,
          name);
}

static void write_operands(FILE *f, const rs_op *op, const names *in, bool inplace) {
  const char *x = lua_name(in->name[0]), *y = lua_name(in->name[1]);
  fprintf(f, "    local scalar = 0\n    if getmetatable(%s) ~= Tensor then\n", y);
  if (inplace || op->nin_min == 1) {
    fprintf(f, "      if type(%s) ~= \"number\" then not_operand(%s, \"%s: %s\") end\n      %s, scalar = nil, %s\n    end\n", y, y,
            op->name, y, y, y);
    fprintf(f, "    if getmetatable(%s) ~= Tensor then want(%s, \"%s: %s\") end\n", x, x, op->name, x);
    return;
  }
  fprintf(f, "      if type(%s) ~= \"number\" then not_operand(%s, \"%s: %s\") end\n      %s, scalar = nil, %s\n", y, y, op->name, y,
          y, y);
  fprintf(f, "      if getmetatable(%s) ~= Tensor then want(%s, \"%s: %s\") end\n", x, x, op->name, x);
  fprintf(f, "    elseif getmetatable(%s) ~= Tensor then\n", x);
  fprintf(f, "      if type(%s) ~= \"number\" then not_operand(%s, \"%s: %s\") end\n      %s, scalar = nil, %s\n    end\n", x, x, op->name, x,
          x, x);
}

static void write_body(FILE *f, int id, const rs_op *op, const names *in, bool inplace) {
  const bool  scalar = takes_scalar(op);
  const char *tail = inplace ? "_" : "";
  fprintf(f, "  function ops.%s%s(", op->name, tail);
  write_parameters(f, op, in);
  fprintf(f, ")\n");
  char count[32];
  snprintf(count, sizeof count, "%d", in->n);

  for (int i = 0; i < in->n && !is_variadic(op); i++) {
    const char *name = lua_name(in->name[i]);
    if (scalar) {
      if (i == 1) write_operands(f, op, in, inplace);
    } else if (number_for(op, in->name[i]) != NULL) {
      const char *number = number_for(op, in->name[i])->name;
      fprintf(f, "    local %s = 0\n    if getmetatable(%s) ~= Tensor then\n", number, name);
      fprintf(f, "      if type(%s) ~= \"number\" then not_operand(%s, \"%s: %s\") end\n      %s, %s = nil, %s\n    end\n", name, name,
              op->name, name, name, number, name);
    } else if (in->optional[i]) {
      fprintf(f, "    if %s ~= nil and getmetatable(%s) ~= Tensor then\n", name, name);
      if (op->nattrs > 0) {
        fprintf(f, "      if is_options(%s) then return ops.%s%s(", name, op->name, tail);
        for (int k = 0; k < in->n; k++) fprintf(f, "%s%s", k == 0 ? "" : ", ", k < i ? lua_name(in->name[k]) : "nil");
        fprintf(f, ", %s) end\n", name);
      }
      fprintf(f, "      want(%s, \"%s: %s\")\n    end\n", name, op->name, name);
    } else if (i > 0 && (op->traits & RSI_T_PROMOTE) != 0) {
      /* A number becomes a 0-d tensor with the dtype of the first tensor. */
      fprintf(f, "    if getmetatable(%s) ~= Tensor then %s = want_or_number(%s, %s, \"%s: %s\") end\n", name, name, name,
              lua_name(in->name[0]), op->name, name);
    } else if (i == 0 && !inplace && in->n > 1 && !in->optional[1] && (op->traits & RSI_T_PROMOTE) != 0) {
      fprintf(f, "    if getmetatable(%s) ~= Tensor then %s = want_or_number(%s, %s, \"%s: %s\") end\n", name, name, name,
              lua_name(in->name[1]), op->name, name);
    } else {
      fprintf(f, "    if getmetatable(%s) ~= Tensor then want(%s, \"%s: %s\") end\n", name, name, op->name, name);
    }
  }
  if (spreads(op)) write_spread(f, op);
  else {
    write_options(f, op);
    write_attributes(f, op);
  }
  const char *attrs = op->nattrs > 0 ? "A" : "nil", *array = "IN";
  if (is_variadic(op)) {
    fprintf(f, "    local n, many = array_of(%s, \"%s: %s\")\n", lua_name(in->name[0]), op->name, in->name[0]);
    snprintf(count, sizeof count, "n");
    array = "many";
  }
  for (int i = 0; i < in->n && !is_variadic(op); i++) {
    const char *name = lua_name(in->name[i]);
    if (in->optional[i])
      fprintf(f, "    if %s == nil then IN[%d] = nil else IN[%d] = %s.h or freed(\"%s: %s\") end\n", name, i, i, name, op->name,
              name);
    else fprintf(f, "    IN[%d] = %s.h or freed(\"%s: %s\")\n", i, name, op->name, name);
  }
  if (inplace) {
    fprintf(f, "    local rc = C.rs_call_inplace(ctx, %d, %s, %s, %s)\n", id, array, count, attrs);
    fprintf(f, "    if rc ~= 0 then again_inplace(rc, %d, %s, %s, %s) end\n    return %s\n  end\n", id, array, count, attrs,
            lua_name(in->name[0]));
    return;
  }
  fprintf(f, "    local rc = C.rs_call(ctx, %d, %s, %s, %s, OUT)\n", id, array, count, attrs);
  fprintf(f, "    if rc ~= 0 then again(rc, %d, %s, %s, %s) end\n", id, array, count, attrs);
  int shown = public_outputs(op);
  for (int j = shown; j < op->nout; j++) fprintf(f, "    C.rs_tensor_release(OUT[%d])\n", j);
  if (shown > 0) fprintf(f, "    return ");
  for (int j = 0; j < shown; j++) fprintf(f, "%swrap(OUT[%d])", j == 0 ? "" : ", ", j);
  fprintf(f, "%s  end\n", shown > 0 ? "\n" : "");
}

/* The text of a default, as a reader would write it. */
static void default_text(const rsi_attr *a, char *out, size_t size) {
  if (is_list(a->kind)) snprintf(out, size, "{}");
  else if (a->kind == RS_ATTR_BOOL) snprintf(out, size, a->def != 0 ? "true" : "false");
  else if (a->kind == RS_ATTR_DTYPE)
    snprintf(out, size, a->def < 0 || a->def >= RS_DTYPES ? "nil" : "\"%s\"", a->def < 0 ? "" : rs_dtype_name((int)a->def));
  else if (a->kind == RS_ATTR_ENUM && a->choices != NULL) {
    const char *p = a->choices;
    for (int i = (int)a->def; i > 0 && strchr(p, ',') != NULL; i--) p = strchr(p, ',') + 1;
    snprintf(out, size, "\"%.*s\"", (int)strcspn(p, ","), p);
  } else if (a->def <= -9223372036854775808.0) snprintf(out, size, "nil");
  else if (isnan(a->def)) snprintf(out, size, "nan");
  else if (isinf(a->def)) snprintf(out, size, a->def > 0 ? "inf" : "-inf");
  else if ((a->kind == RS_ATTR_DIM || a->kind == RS_ATTR_INDEX) && a->def >= 0) snprintf(out, size, "%.0f", a->def + 1);
  else snprintf(out, size, "%.10g", a->def);
}

static const char *kind_text(const rsi_attr *a) {
  switch (a->kind) {
    case RS_ATTR_FLOAT: return "number";
    case RS_ATTR_BOOL: return "boolean";
    case RS_ATTR_ENUM: case RS_ATTR_DTYPE: return "string";
    case RS_ATTR_DIMS: case RS_ATTR_SHAPE: case RS_ATTR_INTS: return "integer|integer[]";
    default: return "integer";
  }
}

static void write_comment(FILE *f, const rs_op *op, const names *in) {
  fprintf(f, "  ---%s\n", op->doc == NULL ? op->name : op->doc);
  for (int i = 0; i < in->n; i++)
    fprintf(f, "  ---@param %s%s resin.Tensor%s%s\n", lua_name(in->name[i]), in->optional[i] && !takes_number(op, in, i) ? "?" : "",
            is_variadic(op) ? "[]" : "", takes_number(op, in, i) ? "|number" : "");
  for (int i = 0; i < op->nattrs; i++) {
    char def[64];
    if (!is_parameter(op, i)) continue;
    default_text(&op->attrs[i], def, sizeof def);
    fprintf(f, "  ---@param %s? %s %s (default %s)\n", lua_name(op->attrs[i].name), kind_text(&op->attrs[i]),
            op->attrs[i].doc == NULL ? "" : op->attrs[i].doc, def);
  }
  int shown = public_outputs(op);
  for (int j = 0; j < shown; j++) fprintf(f, "  ---@return resin.Tensor\n");
}

static void write_op(FILE *f, int id, const rs_op *op) {
  names in = input_names(op);
  fprintf(f, "\ndo\n");
  if (op->nattrs > 0) {
    fprintf(f, "  local A = ffi.new(\"rs_%s_attrs\")\n  local known = {", op->name);
    const char *comma = "";
    for (int i = 0; i < op->nattrs; i++)
      if (is_parameter(op, i)) fprintf(f, "%s\"%s\"", comma, op->attrs[i].name), comma = ", ";
    fprintf(f, "}\n");
    for (int i = 0; i < op->nattrs; i++)
      if (op->attrs[i].kind == RS_ATTR_ENUM)
        fprintf(f, "  local choices_%s = choices(\"%s\")\n", op->attrs[i].name, op->attrs[i].choices);
  }
  write_comment(f, op, &in);
  write_body(f, id, op, &in, false);
  if (has_inplace(op)) {
    fprintf(f, "  ---The same, written into its first tensor.\n");
    write_body(f, id, op, &in, true);
  }
  fprintf(f, "end\n");
}

static void write_binding(const char *dir) {
  FILE *f = create(dir, "lua/resin/ops.lua");
  fprintf(f,
          "-- Generated from the op table: do not edit. One function per op; binding.lua says how arguments are read.\n"
          "-- luacheck: ignore 211 411 421 431 432 631\n"
          "local B = require \"resin.binding\"\n"
          "local ffi, C, ctx, IN, OUT, Tensor, wrap = B.ffi, B.C, B.ctx, B.IN, B.OUT, B.Tensor, B.wrap\n"
          "local want, want_or_number, not_operand, freed, array_of = B.want, B.want_or_number, B.not_operand, B.freed, B.array_of\n"
          "local again, again_inplace = B.again, B.again_inplace\n"
          "local options, is_options, not_list, choices = B.options, B.is_options, B.not_list, B.choices\n"
          "local to_int, to_number, to_bool, to_dim, to_index = B.to_int, B.to_number, B.to_bool, B.to_dim, B.to_index\n"
          "local to_dtype, to_choice, set_dims, set_shape, set_ints = B.to_dtype, B.to_choice, B.set_dims, B.set_shape, B.set_ints\n"
          "local spread_dims, spread_shape, spread_ints = B.spread_dims, B.spread_shape, B.spread_ints\n"
          "local type, getmetatable, HUGE, NONE = type, getmetatable, math.huge, B.NONE\n\n"
          "local ops = {}\n");
  for (int id = 0; id < RSI_OPS; id++) write_op(f, id, op_at(id));
  fprintf(f, "\n-- Names that are methods of tensors, and names that resin.F shows.\nB.methods = {\n");
  for (int id = 0; id < RSI_OPS; id++) {
    const rs_op *op = op_at(id);
    if ((op->traits & (RSI_T_INTERNAL | RSI_T_NOT_METHOD)) != 0 || op->nin_max == 0 || is_variadic(op)) continue;
    fprintf(f, "  \"%s\",%s%s%s\n", op->name, has_inplace(op) ? " \"" : "", has_inplace(op) ? op->name : "",
            has_inplace(op) ? "_\"," : "");
  }
  fprintf(f, "}\nB.public = {\n");
  for (int id = 0; id < RSI_OPS; id++)
    if ((op_at(id)->traits & RSI_T_INTERNAL) == 0) fprintf(f, "  \"%s\",\n", op_at(id)->name);
  fprintf(f, "}\n\nreturn ops\n");
  finish(f, "ops.lua");
}

/* ---- reference ------------------------------------------------------------------------------------------------------- */

static void dtype_list(FILE *f, uint32_t dtypes) {
  const char *comma = "";
  for (int d = 0; d < RS_DTYPES; d++)
    if ((dtypes & (1u << d)) != 0) {
      fprintf(f, "%s%s", comma, rs_dtype_name(d));
      comma = ", ";
    }
}

static void range_text(const rsi_attr *a, char *out, size_t size) {
  if (a->kind == RS_ATTR_ENUM) snprintf(out, size, "%s", a->choices == NULL ? "" : a->choices);
  else if (a->kind == RS_ATTR_BOOL || a->kind == RS_ATTR_DTYPE || a->kind == RS_ATTR_DIM || a->kind == RS_ATTR_INDEX ||
           a->kind == RS_ATTR_DIMS || a->min >= a->max) snprintf(out, size, "%s", "");
  else if (fabs(a->min) >= RSI_BIG && fabs(a->max) >= RSI_BIG) snprintf(out, size, "%s", "");
  else if (fabs(a->max) >= RSI_BIG) snprintf(out, size, "from %g", a->min);
  else if (fabs(a->min) >= RSI_BIG) snprintf(out, size, "up to %g", a->max);
  else snprintf(out, size, "%g to %g", a->min, a->max);
}

/* In a table cell a bar would end the cell. */
static void write_cell(FILE *f, const char *text) {
  for (; *text != 0; text++) fprintf(f, *text == '|' ? "\\|" : "%c", *text);
}

static void write_reference(const char *dir) {
  FILE *f = create(dir, "ops.md");
  fprintf(f, "# Ops\n\nGenerated from the op table. Every op is a function of `resin.F`, and a method of tensors unless marked "
             "*function*. Dimensions and indices count from 1 in Lua, from 0 in C. `?` marks an input that may be left out. "
             "Attributes are given by position after the tensors, or by name in one table at the end.\n");
  for (int id = 0; id < RSI_OPS; id++) {
    const rs_op *op = op_at(id);
    if ((op->traits & RSI_T_INTERNAL) != 0) continue;
    names in = input_names(op);
    fprintf(f, "\n## %s\n\n", op->name);
    const char *comma = "";
    fprintf(f, "`%s(", op->name);
    for (int i = 0; i < in.n; i++, comma = ", ")
      fprintf(f, is_variadic(op) ? "%s{%s...}" : in.optional[i] && !takes_number(op, &in, i) ? "%s%s?" : "%s%s", comma, in.name[i]);
    for (int i = 0; i < op->nattrs; i++) {
      char def[64];
      if (!is_parameter(op, i)) continue;
      default_text(&op->attrs[i], def, sizeof def);
      fprintf(f, "%s%s = %s", comma, op->attrs[i].name, def);
      comma = ", ";
    }
    fprintf(f, ")`");
    if (has_inplace(op)) fprintf(f, ", in place: `%s_`", op->name);
    if ((op->traits & RSI_T_NOT_METHOD) != 0 || op->nin_max == 0 || is_variadic(op)) fprintf(f, " *function*");
    fprintf(f, "\n\n%s\n\nElement types: ", op->doc == NULL ? "" : op->doc);
    dtype_list(f, op->dtypes);
    fprintf(f, ". %s", op->grad != NULL ? "Has a gradient." : (op->traits & RSI_T_NONDIFF) != 0 ? "No gradient by nature."
                                                                                               : "No gradient.");
    if (public_outputs(op) > 1) fprintf(f, " Returns %d tensors.", public_outputs(op));
    if ((op->traits & RSI_T_VIEW) != 0) fprintf(f, " Returns a view.");
    if ((op->traits & RSI_T_RANDOM) != 0) fprintf(f, " Draws random numbers.");
    fprintf(f, "\n");
    if (takes_scalar(op)) fprintf(f, "One of the inputs may be a number.\n");
    if (parameters(op) == 0) continue;
    fprintf(f, "\n| attribute | type | default | range | meaning |\n|---|---|---|---|---|\n");
    for (int i = 0; i < op->nattrs; i++) {
      const rsi_attr *a = &op->attrs[i];
      char def[64], range[128];
      if (!is_parameter(op, i)) continue;
      default_text(a, def, sizeof def);
      range_text(a, range, sizeof range);
      fprintf(f, "| %s | ", a->name);
      write_cell(f, kind_text(a));
      fprintf(f, " | %s | %s | ", def, range);
      write_cell(f, a->doc == NULL ? "" : a->doc);
      fprintf(f, " |\n");
    }
  }
  finish(f, "ops.md");
}

int main(int argc, char **argv) {
  if (argc < 2 || argc > 3) die("usage", "opgen OUTDIR [resin.h]");
  char path[4096];
  make_dir(argv[1]);
  snprintf(path, sizeof path, "%s/lua", argv[1]);
  make_dir(path);
  snprintf(path, sizeof path, "%s/lua/resin", argv[1]);
  make_dir(path);
  write_header(argv[1]);
  write_api(argv[1]);
  write_cdef(argv[1], argc == 3 ? argv[2] : "src/resin.h");
  write_binding(argv[1]);
  write_reference(argv[1]);
  return 0;
}
