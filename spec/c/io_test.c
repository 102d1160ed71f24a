/*
** Files: what is saved comes back, whatever is wrong with a file is a status with a text that names the path, nothing leaks, and
** a failed save leaves the old file and no other. Hostile files: every truncation of small good files, and random mutations.
*/
#include "ops/op.h"
#include "test.h"
#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

static char dir[64], path[512];
static rs_ctx *ctx;
static double blocks;   /* alive before the first test */

/* ---- helpers --------------------------------------------------------------------------------------------------------- */

static const char *in_dir(const char *name) {
  (void)snprintf(path, sizeof path, "%s/%s", dir, name);
  return path;
}

/* A new file each time: file systems may wait for the disk when an old one is cut and rewritten. */
static bool write_bytes(const char *to, const void *data, size_t n) {
  unlink(to);
  FILE *f = fopen(to, "wb");
  if (!f) return false;
  const bool ok = fwrite(data, 1, n, f) == n;
  return fclose(f) == 0 && ok;
}

static size_t read_bytes(const char *from, unsigned char *data, size_t most) {
  FILE *f = fopen(from, "rb");
  if (!f) return 0;
  const size_t n = fread(data, 1, most, f);
  fclose(f);
  return n;
}

static bool write_gz(const char *to, const void *data, size_t n) {
  gzFile f = gzopen(to, "wb");
  if (!f) return false;
  const bool ok = gzwrite(f, data, (unsigned)n) == (int)n;
  return gzclose(f) == Z_OK && ok;
}

static int files_in_dir(void) {
  int n = 0;
  DIR *d = opendir(dir);
  if (!d) return -1;
  for (struct dirent *e; (e = readdir(d)) != NULL;) n += e->d_name[0] != '.';
  closedir(d);
  return n;
}

static uint64_t random_state = 88172645463325252u;
static uint32_t random_below(uint32_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)(random_state >> 32) % n;
}

static rs_tensor *counting(int dtype, int ndim, const int64_t *shape) {
  rs_tensor *t;
  if (rs_tensor_empty(ctx, dtype, ndim, shape, &t) != RS_OK) return NULL;
  unsigned char *bytes = rs_tensor_data(t);
  const size_t n = (size_t)rs_tensor_numel(t) * (size_t)rs_dtype_size(dtype);
  for (size_t i = 0; i < n; i++) bytes[i] = (unsigned char)(dtype == RS_BOOL ? i & 1 : i * 37 + 11);
  return t;
}

/* A safetensors file of a header text and zeros. */
static bool write_header(const char *to, const char *json, size_t zeros) {
  static unsigned char buffer[8192];
  const uint64_t length = strlen(json);
  memset(buffer, 0, sizeof buffer);
  memcpy(buffer, &length, 8);
  memcpy(buffer + 8, json, length);
  return write_bytes(to, buffer, 8 + length + zeros);
}

/* ---- safetensors ----------------------------------------------------------------------------------------------------- */

static void round_trip(void) {
  const int64_t shape[] = {3, 5, 2}, empty[] = {4, 0};
  const char *names[RS_DTYPES + 3];
  rs_tensor *tensors[RS_DTYPES + 3];
  const int n = RS_DTYPES + 3;
  for (int i = 0; i < RS_DTYPES; i++) {
    names[i] = rs_dtype_name(i);
    ENSURE((tensors[i] = counting(i, 3, shape)) != NULL);
  }
  names[RS_DTYPES] = "zero dims";
  ENSURE((tensors[RS_DTYPES] = counting(RS_F32, 0, NULL)) != NULL);
  names[RS_DTYPES + 1] = "empty";
  ENSURE((tensors[RS_DTYPES + 1] = counting(RS_I64, 2, empty)) != NULL);
  names[RS_DTYPES + 2] = "t\xc3\xa9nsor \"quoted\"";
  const struct { int64_t a, b; } dims = {0, 2};
  ENSURE_OK(rs_call(ctx, RS_OP_transpose, &tensors[RS_F64], 1, &dims, &tensors[RS_DTYPES + 2]));
  const char *keys[] = {"format", "step"}, *values[] = {"pt", "12"};
  ENSURE_OK(rs_file_save(ctx, in_dir("a.safetensors"), names, tensors, n, keys, values, 2));
  unsigned char head[8];
  uint64_t length;
  ENSURE(read_bytes(path, head, 8) == 8);
  memcpy(&length, head, 8);
  ENSURE(length % 8 == 0);

  rs_file *f;
  ENSURE_OK(rs_file_open(ctx, path, &f));
  ENSURE_NUM(rs_file_count(f), n);
  ENSURE_NUM(rs_file_meta_count(f), 2);
  ENSURE_TEXT(rs_file_meta_key(f, 0), "format");
  ENSURE_TEXT(rs_file_meta_value(f, 1), "12");
  ENSURE(rs_file_meta_key(f, 2) == NULL && rs_file_name(f, -1) == NULL);
  for (int i = 0; i < n; i++) {
    rs_tensor *t;
    ENSURE_TEXT(rs_file_name(f, i), names[i]);
    ENSURE_OK(rs_file_read(ctx, f, i, &t));
    ENSURE(rs_tensor_dtype(t) == rs_tensor_dtype(tensors[i]) && rs_tensor_ndim(t) == rs_tensor_ndim(tensors[i]));
    ENSURE(rsi_same_shape(t, tensors[i]));
    const size_t bytes = (size_t)rs_tensor_numel(t) * (size_t)rs_dtype_size(rs_tensor_dtype(t));
    if (i < n - 1) ENSURE(memcmp(rs_tensor_data(t), rs_tensor_data(tensors[i]), bytes) == 0);
    else {   /* the transposed one arrives in row-major order */
      const double *got = rs_tensor_data(t), *from = rs_tensor_data(tensors[RS_F64]);
      for (int a = 0; a < 2; a++)
        for (int b = 0; b < 5; b++)
          for (int c = 0; c < 3; c++) ENSURE(memcmp(&got[(a * 5 + b) * 3 + c], &from[(c * 5 + b) * 2 + a], 8) == 0);
    }
    rs_tensor_release(t);
  }
  rs_tensor *none;
  ENSURE_STATUS(rs_file_read(ctx, f, n, &none), RS_ERR_INDEX);
  rs_file_close(f);
  rs_file_close(NULL);
  for (int i = 0; i < n; i++) rs_tensor_release(tensors[i]);
}

static void save_nothing(void) {
  rs_file *f;
  ENSURE_OK(rs_file_save(ctx, in_dir("nothing.safetensors"), NULL, NULL, 0, NULL, NULL, 0));
  ENSURE_OK(rs_file_open(ctx, path, &f));
  ENSURE_NUM(rs_file_count(f), 0);
  rs_file_close(f);
}

static void large_strided(void) {   /* more than one buffer of rows */
  const int64_t shape[] = {700, 601};
  const struct { int64_t a, b; } dims = {0, 1};
  const char *name = "w";
  rs_tensor *t = counting(RS_F32, 2, shape), *turned, *back;
  ENSURE(t != NULL);
  float *x = rs_tensor_data(t);
  for (int i = 0; i < 700 * 601; i++) x[i] = (float)i;
  ENSURE_OK(rs_call(ctx, RS_OP_transpose, &t, 1, &dims, &turned));
  ENSURE_OK(rs_file_save(ctx, in_dir("large.safetensors"), &name, &turned, 1, NULL, NULL, 0));
  rs_file *f;
  ENSURE_OK(rs_file_open(ctx, path, &f));
  ENSURE_OK(rs_file_read(ctx, f, 0, &back));
  const float *y = rs_tensor_data(back);
  for (int i = 0; i < 601; i++)
    for (int k = 0; k < 700; k++) ENSURE_NUM(y[i * 700 + k], x[k * 601 + i]);
  rs_file_close(f);
  rs_tensor_release(back);
  rs_tensor_release(turned);
  rs_tensor_release(t);
}

#define ENSURE_SAVE_FAILS(to, names, tensors, n, status, text)                                                              \
  do {                                                                                                                      \
    ENSURE_STATUS(rs_file_save(ctx, to, names, tensors, n, NULL, NULL, 0), status);                                         \
    ENSURE_HAS(rs_last_error(), text);                                                                                      \
  } while (0)

static void save_failures(void) {
  const int64_t shape[] = {2};
  rs_tensor *t = counting(RS_F32, 1, shape), *two[2] = {t, t}, *missing[1] = {NULL};
  const char *good[] = {"a", "b"}, *twice[] = {"a", "a"}, *none[] = {""}, *meta[] = {"__metadata__"}, *control[] = {"a\nb"},
             *latin[] = {"\xe9"};
  ENSURE_OK(rs_file_save(ctx, in_dir("keep.safetensors"), good, two, 2, NULL, NULL, 0));
  const int before = files_in_dir();
  struct stat old, now;
  ENSURE(stat(path, &old) == 0);
  ENSURE_SAVE_FAILS(path, twice, two, 2, RS_ERR_ARG, "keep.safetensors: the name \"a\" is given to two tensors");
  ENSURE_SAVE_FAILS(path, none, two, 1, RS_ERR_ARG, "empty name");
  ENSURE_SAVE_FAILS(path, meta, two, 1, RS_ERR_ARG, "cannot be the name of a tensor");
  ENSURE_SAVE_FAILS(path, control, two, 1, RS_ERR_ARG, "control character");
  ENSURE_SAVE_FAILS(path, latin, two, 1, RS_ERR_ARG, "UTF-8");
  ENSURE_SAVE_FAILS(path, good, missing, 1, RS_ERR_ARG, "tensor \"a\" is missing");
  for (int i = 1; i < 3; i++) {   /* no memory */
    rs_fail_allocation(ctx, i, 1);
    ENSURE_STATUS(rs_file_save(ctx, path, good, two, 2, NULL, NULL, 0), RS_ERR_NOMEM);
    rs_fail_allocation(ctx, 0, 0);
  }
  ENSURE(stat(path, &now) == 0 && now.st_ino == old.st_ino && now.st_size == old.st_size);
  ENSURE_SAVE_FAILS(dir, good, two, 2, RS_ERR_IO, "it is a directory");
  ENSURE_SAVE_FAILS(in_dir("no/such/file"), good, two, 2, RS_ERR_IO, "No such file or directory");
  ENSURE_SAVE_FAILS("/dev/null", good, two, 2, RS_ERR_IO, "not a regular file");
  if (access("/dev/full", W_OK) == 0 && symlink("/dev/full", in_dir("full")) == 0) {
    ENSURE_SAVE_FAILS(path, good, two, 2, RS_ERR_IO, "not a regular file");
    unlink(path);
  }
  ENSURE_NUM(files_in_dir(), before);
  rs_tensor_release(t);
}

#define ENSURE_OPEN_FAILS(from, status, text)                                                                               \
  do {                                                                                                                      \
    rs_file *f_;                                                                                                            \
    ENSURE_STATUS(rs_file_open(ctx, from, &f_), status);                                                                    \
    ENSURE(f_ == NULL);                                                                                                     \
    ENSURE_HAS(rs_last_error(), text);                                                                                      \
    ENSURE_HAS(rs_last_error(), from);                                                                                      \
  } while (0)

static void not_a_file(void) {
  ENSURE_OPEN_FAILS(in_dir("missing.safetensors"), RS_ERR_IO, "cannot open: No such file or directory");
  ENSURE_OPEN_FAILS(dir, RS_ERR_IO, "is a directory");
  ENSURE_OPEN_FAILS("/dev/null", RS_ERR_IO, "not a regular file");
  ENSURE(mkfifo(in_dir("pipe"), 0600) == 0);
  ENSURE_OPEN_FAILS(path, RS_ERR_IO, "not a regular file");
  unlink(path);
  ENSURE(write_bytes(in_dir("short"), "abc", 3));
  ENSURE_OPEN_FAILS(path, RS_ERR_FORMAT, "has 3 bytes");
  unsigned char bytes[120] = {0};
  const uint64_t huge = 9000000000u;
  memcpy(bytes, &huge, 8);
  ENSURE(write_bytes(in_dir("huge"), bytes, 120));
  ENSURE_OPEN_FAILS(path, RS_ERR_FORMAT, "header says 9000000000 bytes but the file has 120");
  memset(bytes, 0xff, 8);
  ENSURE(write_bytes(path, bytes, 120));
  ENSURE_OPEN_FAILS(path, RS_ERR_FORMAT, "header says 18446744073709551615 bytes but the file has 120");
}

static void bad_headers(void) {
  static const struct { const char *json; size_t zeros; rs_status status; const char *text; } cases[] = {
    {"", 0, RS_ERR_FORMAT, "the header is empty"},
    {"{", 0, RS_ERR_FORMAT, "not valid JSON"},
    {"[]", 0, RS_ERR_FORMAT, "not a JSON object"},
    {"{\"a\":1}", 0, RS_ERR_FORMAT, "tensor \"a\" is not described by an object"},
    {"{\"a\":{}}", 0, RS_ERR_FORMAT, "dtype is missing"},
    {"{\"a\":{\"dtype\":\"I16\",\"shape\":[1],\"data_offsets\":[0,2]}}", 2, RS_ERR_UNSUPPORTED, "tensor \"a\" has dtype I16"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, RS_ERR_FORMAT, "shape is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, RS_ERR_FORMAT, "no size"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, RS_ERR_FORMAT, "no size"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, RS_ERR_UNSUPPORTED, "9 dimensions"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, RS_ERR_FORMAT, "data_offsets is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, RS_ERR_FORMAT, "data_offsets is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, RS_ERR_FORMAT, "data_offsets [4, 0] lie outside"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, RS_ERR_FORMAT, "lie outside"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, RS_ERR_FORMAT, "outside the 4 bytes of data"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, RS_ERR_FORMAT, "shape [2] of F32 does not take the 4 bytes"},
    {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, RS_ERR_FORMAT, "does not take"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, RS_ERR_FORMAT, "does not take"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
     6, RS_ERR_FORMAT, "tensors \"a\" and \"b\" overlap"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[5,6]}}",
     6, RS_ERR_FORMAT, "1 bytes of data before tensor \"b\""},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 6, RS_ERR_FORMAT, "last 2 bytes"},
    {"{\"\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, RS_ERR_FORMAT, "empty name"},
    {"{\"a\\u001b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, RS_ERR_FORMAT, "control character"},
    {"{\"a\\u0000\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, RS_ERR_FORMAT, "not valid JSON"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, RS_ERR_FORMAT, "duplicate object key"},
    {"{\"__metadata__\":[]}", 0, RS_ERR_FORMAT, "__metadata__ is not an object"},
    {"{\"__metadata__\":{\"a\":1}}", 0, RS_ERR_FORMAT, "a value that is no string"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    ENSURE(write_header(in_dir("bad.safetensors"), cases[i].json, cases[i].zeros));
    ENSURE_OPEN_FAILS(path, cases[i].status, cases[i].text);
  }
  char deep[4000];   /* nesting has a limit, the stack survives */
  memset(deep, '[', sizeof deep - 1);
  deep[sizeof deep - 1] = 0;
  ENSURE(write_header(path, deep, 0));
  ENSURE_OPEN_FAILS(path, RS_ERR_FORMAT, "not valid JSON");
}

static void good_headers(void) {   /* spaces around, a gap-free order that is not that of the header, an empty tensor between */
  rs_file *f;
  rs_tensor *t;
  ENSURE(write_header(in_dir("good.safetensors"),
                      " {\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,6]},\"e\":{\"dtype\":\"F32\",\"shape\":[0,7],"
                      "\"data_offsets\":[4,4]},\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}   ",
                      6));
  ENSURE_OK(rs_file_open(ctx, path, &f));
  ENSURE_NUM(rs_file_count(f), 3);
  ENSURE_TEXT(rs_file_name(f, 2), "a");
  ENSURE(truncate(path, 100) == 0);   /* while it is open */
  ENSURE_STATUS(rs_file_read(ctx, f, 0, &t), RS_ERR_IO);
  ENSURE_HAS(rs_last_error(), "became shorter");
  rs_file_close(f);
  ENSURE(write_header(path, "{\"m\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3));
  FILE *raw = fopen(path, "r+b");
  ENSURE(raw != NULL);
  fseek(raw, -2, SEEK_END);
  fputc(7, raw);
  fclose(raw);
  ENSURE_OK(rs_file_open(ctx, path, &f));
  ENSURE_STATUS(rs_file_read(ctx, f, 0, &t), RS_ERR_FORMAT);
  ENSURE_HAS(rs_last_error(), "element 1 is 7, which is no bool");
  rs_file_close(f);
}

/* Opens, reads everything, closes. */
static rs_status load_all(const char *from) {
  rs_file *f;
  rs_status status = rs_file_open(ctx, from, &f);
  if (status != RS_OK) return status;
  for (int i = 0; i < rs_file_count(f) && status == RS_OK; i++) {
    rs_tensor *t;
    status = rs_file_read(ctx, f, i, &t);
    if (status == RS_OK) rs_tensor_release(t);
  }
  rs_file_close(f);
  return status;
}

static size_t small_file(unsigned char *bytes, size_t most) {
  const int64_t shape[] = {2, 3};
  const char *names[] = {"layer.weight", "b", "mask"}, *keys[] = {"k"}, *values[] = {"v"};
  rs_tensor *t[3] = {counting(RS_F32, 2, shape), counting(RS_I64, 1, shape), counting(RS_BOOL, 1, shape)};
  if (rs_file_save(ctx, in_dir("small.safetensors"), names, t, 3, keys, values, 1) != RS_OK) return 0;
  for (int i = 0; i < 3; i++) rs_tensor_release(t[i]);
  return read_bytes(path, bytes, most);
}

static void truncated(void) {
  unsigned char bytes[1024];
  const size_t n = small_file(bytes, sizeof bytes);
  ENSURE(n > 100 && n < sizeof bytes);
  ENSURE_OK(load_all(path));
  for (size_t i = 0; i < n; i++) {
    ENSURE(write_bytes(in_dir("cut.safetensors"), bytes, i));
    ENSURE_STATUS(load_all(path), RS_ERR_FORMAT);
  }
}

/* Replaces, repeats, drops or inserts a few bytes; text bytes are drawn from what JSON is made of. */
static size_t mutate(unsigned char *bytes, size_t n, size_t most) {
  static const char alphabet[] = "{}[]\",:0123456789-.eE \\utrfnABFI\x00\xff\x80";
  const uint32_t times = 1 + random_below(4);
  for (uint32_t i = 0; i < times && n > 1; i++) {
    const size_t at = random_below((uint32_t)n);
    const unsigned char byte = random_below(2) ? (unsigned char)alphabet[random_below(sizeof alphabet)] : (unsigned char)random_below(256);
    switch (random_below(5)) {
      case 0: bytes[at] = byte; break;
      case 1: bytes[at] ^= (unsigned char)(1u << random_below(8)); break;
      case 2: memmove(bytes + at, bytes + at + 1, n - at - 1); n--; break;
      case 3:
        if (n == most) break;
        memmove(bytes + at + 1, bytes + at, n - at);
        bytes[at] = byte;
        n++;
        break;
      default: n = random_below(8) ? n : at + 1; break;
    }
  }
  return n;
}

static void mutated(void) {
  unsigned char bytes[1024], copy[1024];
  const size_t n = small_file(bytes, sizeof bytes);
  int good = 0;
  ENSURE(n > 100);
  rs_reset_peak(ctx);
  const double before = rs_ctx_stats(ctx)->peak_bytes;
  for (int i = 0; i < 20000; i++) {
    memcpy(copy, bytes, n);
    ENSURE(write_bytes(in_dir("fuzz.safetensors"), copy, mutate(copy, n, sizeof copy)));
    good += load_all(path) == RS_OK;
  }
  ENSURE(good < 20000);
  ENSURE(rs_ctx_stats(ctx)->peak_bytes - before < 65536);   /* no allocation that the file does not explain */
}

/* ---- IDX ------------------------------------------------------------------------------------------------------------- */

static size_t idx_bytes(unsigned char *to, int type, int ndim, const uint32_t *shape, const void *data, size_t bytes) {
  const unsigned char head[4] = {0, 0, (unsigned char)type, (unsigned char)ndim};
  if (bytes) memmove(to + 4 + 4 * ndim, data, bytes);   /* first: data may lie in `to` */
  memcpy(to, head, 4);
  for (int i = 0; i < ndim; i++)
    for (int b = 0; b < 4; b++) to[4 + 4 * i + b] = (unsigned char)(shape[i] >> (24 - 8 * b));
  return 4 + 4 * (size_t)ndim + bytes;
}

#define ENSURE_IDX_FAILS(limit, status, text)                                                                               \
  do {                                                                                                                      \
    rs_tensor *t_;                                                                                                          \
    ENSURE_STATUS(rs_read_idx(ctx, path, limit, &t_), status);                                                              \
    ENSURE(t_ == NULL);                                                                                                     \
    ENSURE_HAS(rs_last_error(), text);                                                                                      \
    ENSURE_HAS(rs_last_error(), path);                                                                                      \
  } while (0)

static void idx_types(void) {
  static const unsigned char f32[] = {0x3f, 0xc0, 0, 0, 0xc0, 0, 0, 0}, f64[] = {0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0},
                             i32[] = {0, 1, 0, 2, 0xff, 0xff, 0xff, 0xfe}, i16[] = {1, 2, 0xff, 0xfe}, i8[] = {5, 0xfe}, u8[] = {5, 0xfe};
  static const struct { int type; const unsigned char *data; size_t bytes; int dtype; double a, b; } cases[] = {
    {0x08, u8, 2, RS_U8, 5, 254},      {0x09, i8, 2, RS_I32, 5, -2},      {0x0b, i16, 4, RS_I32, 258, -2},
    {0x0c, i32, 8, RS_I32, 65538, -2}, {0x0d, f32, 8, RS_F32, 1.5, -2.0}, {0x0e, f64, 16, RS_F64, 1.5, -2.0}};
  unsigned char bytes[64];
  const uint32_t shape[] = {2};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int gz = 0; gz < 2; gz++) {
      rs_tensor *t;
      double v[2];
      const size_t n = idx_bytes(bytes, cases[i].type, 1, shape, cases[i].data, cases[i].bytes);
      ENSURE(gz ? write_gz(in_dir("t.idx.gz"), bytes, n) : write_bytes(in_dir("t.idx"), bytes, n));
      ENSURE_OK(rs_read_idx(ctx, path, 0, &t));
      ENSURE_NUM(rs_tensor_dtype(t), cases[i].dtype);
      ENSURE_NUM(rs_tensor_numel(t), 2);
      ENSURE_OK(rs_tensor_read(ctx, t, v));
      ENSURE_NUM(v[0], cases[i].a);
      ENSURE_NUM(v[1], cases[i].b);
      rs_tensor_release(t);
    }
}

/* Larger than the first buffers; 16-bit, so that the conversion goes over its own source. */
static void idx_large(void) {
  enum { N = 300007 };
  static unsigned char bytes[2 * N + 16];
  const uint32_t shape[] = {N};
  const size_t n = idx_bytes(bytes, 0x0b, 1, shape, NULL, 0) + 2 * N;
  for (int i = 0; i < N; i++) {
    const uint16_t v = (uint16_t)(int16_t)(i % 60000 - 30000);
    bytes[8 + 2 * i] = (unsigned char)(v >> 8);
    bytes[9 + 2 * i] = (unsigned char)v;
  }
  for (int gz = 0; gz < 2; gz++)
    for (int limit = 0; limit < 200000; limit += 150001) {
      rs_tensor *t;
      ENSURE(gz ? write_gz(in_dir("l.idx.gz"), bytes, n) : write_bytes(in_dir("l.idx"), bytes, n));
      ENSURE_OK(rs_read_idx(ctx, path, limit, &t));
      ENSURE_NUM(rs_tensor_numel(t), limit ? limit : N);
      const int32_t *v = rs_tensor_data(t);
      for (int i = 0; i < (limit ? limit : N); i++) ENSURE_NUM(v[i], i % 60000 - 30000);
      rs_tensor_release(t);
    }
}

static void idx_limit(void) {
  unsigned char bytes[64], data[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const uint32_t shape[] = {3, 2, 2};
  const size_t n = idx_bytes(bytes, 8, 3, shape, data, 12);
  rs_tensor *t;
  ENSURE(write_bytes(in_dir("limit.idx"), bytes, n));
  ENSURE_OK(rs_read_idx(ctx, path, 2, &t));
  ENSURE_NUM(rs_tensor_size(t, 0), 2);
  ENSURE(memcmp(rs_tensor_data(t), data, 8) == 0);
  rs_tensor_release(t);
  ENSURE_OK(rs_read_idx(ctx, path, 1e300, &t));
  ENSURE_NUM(rs_tensor_size(t, 0), 3);
  rs_tensor_release(t);
  ENSURE_IDX_FAILS(-1, RS_ERR_ARG, "limit is -1");
  ENSURE_IDX_FAILS(1.5, RS_ERR_ARG, "limit is 1.5");
  ENSURE_IDX_FAILS((double)NAN, RS_ERR_ARG, "limit is");
}

static void idx_bad(void) {
  unsigned char bytes[128] = {0};
  uint32_t shape[8] = {3, 4};
  rs_tensor *t;
  in_dir("missing.idx");
  ENSURE_IDX_FAILS(0, RS_ERR_IO, "No such file or directory");
  ENSURE_STATUS(rs_read_idx(ctx, dir, 0, &t), RS_ERR_IO);
  ENSURE(write_bytes(in_dir("bad.idx"), "", 0));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "ends after 0 bytes");
  ENSURE(write_bytes(path, "PK\3\4", 4));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "is no IDX file: it begins with 50 4b");
  ENSURE(write_bytes(path, "\0\0\x0a\1\0\0\0\0", 8));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "element type 0a");
  ENSURE(write_bytes(path, "\0\0\x08\0", 4));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "has 0 dimensions");
  ENSURE(write_bytes(path, "\0\0\x08\x09", 4));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "has 9 dimensions");
  ENSURE(write_bytes(path, bytes, idx_bytes(bytes, 8, 2, shape, bytes, 11)));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "24 bytes were expected for shape [3, 4] of u8, but the file has 23");
  ENSURE(write_bytes(path, bytes, idx_bytes(bytes, 8, 2, shape, bytes, 13)));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "but the file has 25");
  ENSURE(write_gz(path, bytes, idx_bytes(bytes, 8, 2, shape, bytes, 11)));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "12 bytes were expected for shape [3, 4] of u8, but the data ends after 11");
  ENSURE(write_gz(path, bytes, idx_bytes(bytes, 8, 2, shape, bytes, 13)));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "there are more");
  for (int i = 0; i < 8; i++) shape[i] = 0xffffffffu;
  ENSURE(write_gz(path, bytes, idx_bytes(bytes, 14, 8, shape, bytes, 16)));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "more elements than memory can hold");
  ENSURE(write_bytes(path, bytes, idx_bytes(bytes, 14, 1, shape, bytes, 16)));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "34359738368 bytes were expected");
  rs_reset_peak(ctx);
  const double before = rs_ctx_stats(ctx)->peak_bytes;
  ENSURE(write_gz(path, bytes, idx_bytes(bytes, 14, 1, shape, bytes, 16)));   /* says 32 GiB, has 16 bytes */
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "the data ends after 16");
  ENSURE(rs_ctx_stats(ctx)->peak_bytes - before < 200000);
}

static void idx_truncated(void) {
  unsigned char bytes[128], packed[256];
  const uint32_t shape[] = {5, 7};
  for (int i = 0; i < 128; i++) bytes[i] = (unsigned char)(i * 73);
  unsigned char data[35];
  memcpy(data, bytes, 35);
  const size_t n = idx_bytes(bytes, 8, 2, shape, data, 35);
  rs_tensor *t;
  for (size_t i = 0; i < n; i++) {
    ENSURE(write_bytes(in_dir("cut.idx"), bytes, i));
    ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "cut.idx: ");
  }
  ENSURE(write_gz(in_dir("whole.gz"), bytes, n));
  const size_t m = read_bytes(path, packed, sizeof packed);
  ENSURE_OK(rs_read_idx(ctx, path, 0, &t));
  rs_tensor_release(t);
  ENSURE(m > 30 && m < sizeof packed);
  for (size_t i = 0; i < m; i++) {
    ENSURE(write_bytes(in_dir("cut.gz"), packed, i));
    ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "cut.gz: ");
  }
  packed[m - 6] ^= 1;   /* the checksum */
  ENSURE(write_bytes(in_dir("sum.gz"), packed, m));
  ENSURE_IDX_FAILS(0, RS_ERR_FORMAT, "the gzip data is damaged");
}

static void idx_mutated(void) {
  unsigned char bytes[512], copy[512], data[35] = {0};
  const uint32_t shape[] = {5, 7};
  const size_t plain = idx_bytes(bytes, 8, 2, shape, data, 35);
  rs_reset_peak(ctx);
  const double before = rs_ctx_stats(ctx)->peak_bytes;
  for (int gz = 0; gz < 2; gz++) {
    size_t n = plain;
    if (gz) {
      ENSURE(write_gz(in_dir("whole.gz"), bytes, plain));
      n = read_bytes(path, bytes, sizeof bytes);
    }
    for (int i = 0; i < 10000; i++) {
      rs_tensor *t;
      memcpy(copy, bytes, n);
      ENSURE(write_bytes(in_dir("fuzz.idx"), copy, mutate(copy, n, sizeof copy)));
      if (rs_read_idx(ctx, path, i % 3, &t) == RS_OK) rs_tensor_release(t);
      else ENSURE(t == NULL);
    }
  }
  ENSURE(rs_ctx_stats(ctx)->peak_bytes - before < 1e6);
}

static void idx_no_memory(void) {
  static unsigned char bytes[200000];
  const uint32_t shape[] = {199000};
  rs_tensor *t;
  const size_t n = idx_bytes(bytes, 8, 1, shape, NULL, 0) + 199000;
  ENSURE(write_gz(in_dir("memory.gz"), bytes, n));
  for (int i = 1; i < 5; i++) {
    rs_fail_allocation(ctx, i, 1);
    const rs_status status = rs_read_idx(ctx, path, 0, &t);
    rs_fail_allocation(ctx, 0, 0);
    if (status == RS_OK) {
      rs_tensor_release(t);
      ENSURE(i > 2);
      return;
    }
    ENSURE_STATUS(status, RS_ERR_NOMEM);
  }
}

/* ---- everything ------------------------------------------------------------------------------------------------------ */

static void nothing_leaks(void) { ENSURE_NUM(rs_ctx_stats(ctx)->live_blocks, blocks); }

static void remove_dir(void) {
  DIR *d = opendir(dir);
  if (!d) return;
  for (struct dirent *e; (e = readdir(d)) != NULL;)
    if (e->d_name[0] != '.') unlink(in_dir(e->d_name));
  closedir(d);
  rmdir(dir);
}

int main(void) {
  (void)snprintf(dir, sizeof dir, "/tmp/resin-io-test-XXXXXX");
  if (!mkdtemp(dir) || rs_ctx_create(NULL, &ctx) != RS_OK) {
    fprintf(stderr, "io_test: no directory in /tmp, or no context\n");
    return 1;
  }
  blocks = rs_ctx_stats(ctx)->live_blocks;
  RUN(round_trip);
  RUN(save_nothing);
  RUN(large_strided);
  RUN(save_failures);
  RUN(not_a_file);
  RUN(bad_headers);
  RUN(good_headers);
  RUN(truncated);
  RUN(mutated);
  RUN(idx_types);
  RUN(idx_large);
  RUN(idx_limit);
  RUN(idx_bad);
  RUN(idx_truncated);
  RUN(idx_mutated);
  RUN(idx_no_memory);
  RUN(nothing_leaks);
  remove_dir();
  rs_ctx_release(ctx);
  return TEST_RESULT();
}
