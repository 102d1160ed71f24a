/*
** safetensors: a length (8 bytes), a JSON header of that length, then the data of all tensors. The header maps each name to
** {dtype, shape, data_offsets}, and "__metadata__" to an object of strings.
** Opening checks the whole header, so an rs_file that exists is consistent: the tensors cover the data exactly, without gaps
** or overlaps, in sizes that follow from their shapes. Names are those of the parsed header, which lives as long as the rs_file.
*/
#include "io/io.h"
#include "ctx.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PREFIX = 8, NAME_SHOWN = 120, BUFFER = 1 << 20 };
#define MAX_HEADER 100000000

typedef struct entry {
  const char *name;
  rsi_desc    desc;
  int64_t     begin, end;   /* bytes from the start of the data */
} entry;

struct rs_file {
  rsi_heap     *heap;
  size_t        block;
  int           fd, count, nmeta;
  int64_t       data;       /* where the data begins in the file */
  json_t       *header;
  entry        *entries;
  const entry **order;      /* by position in the data */
  const char  **meta;       /* key, value, key, value, … */
  char         *path;
};

/* ---- dtypes ---------------------------------------------------------------------------------------------------------- */

static const char *const file_dtypes[RS_DTYPES] = {"F32", "F64", "BF16", "F16", "I64", "I32", "U8", "BOOL"};

static int find_dtype(const char *name) {
  for (int i = 0; i < RS_DTYPES; i++)
    if (strcmp(name, file_dtypes[i]) == 0) return i;
  return -1;
}

/* ---- checking a header ----------------------------------------------------------------------------------------------- */

static bool has_control(const char *text) {
  for (; *text; text++)
    if ((unsigned char)*text < 0x20 || *text == 0x7f) return true;
  return false;
}

#define BAD(...) return rsi_fail(RS_ERR_FORMAT, __VA_ARGS__)

static rs_status read_shape(const char *path, const char *name, const json_t *shape, rsi_desc *d) {
  if (!json_is_array(shape)) BAD("%s: tensor \"%.*s\": shape is missing or no list", path, NAME_SHOWN, name);
  const size_t n = json_array_size(shape);
  if (n > RS_MAX_DIMS)
    return rsi_fail(RS_ERR_UNSUPPORTED, "%s: tensor \"%.*s\" has %zu dimensions; %d is the most", path, NAME_SHOWN, name, n, RS_MAX_DIMS);
  d->ndim = (int)n;
  for (size_t i = 0; i < n; i++) {
    const json_t *size = json_array_get(shape, i);
    if (!json_is_integer(size) || json_integer_value(size) < 0)
      BAD("%s: tensor \"%.*s\": the shape holds something that is no size", path, NAME_SHOWN, name);
    d->shape[i] = (int64_t)json_integer_value(size);
  }
  return RS_OK;
}

static rs_status read_offsets(const char *path, const char *name, const json_t *offsets, int64_t data_size, entry *e) {
  const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);   /* NULL when there is no such element */
  if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
    BAD("%s: tensor \"%.*s\": data_offsets is missing or no pair of integers", path, NAME_SHOWN, name);
  e->begin = (int64_t)json_integer_value(begin);
  e->end = (int64_t)json_integer_value(end);
  if (e->begin < 0 || e->begin > e->end || e->end > data_size)
    BAD("%s: tensor \"%.*s\": data_offsets [%lld, %lld] lie outside the %lld bytes of data", path, NAME_SHOWN, name,
        (long long)e->begin, (long long)e->end, (long long)data_size);
  return RS_OK;
}

static rs_status read_entry(const char *path, const char *name, const json_t *value, int64_t data_size, entry *e) {
  if (!json_is_object(value)) BAD("%s: tensor \"%.*s\" is not described by an object", path, NAME_SHOWN, name);
  const char *dtype = json_string_value(json_object_get(value, "dtype"));
  if (!dtype) BAD("%s: tensor \"%.*s\": dtype is missing or no string", path, NAME_SHOWN, name);
  e->name = name;
  e->desc.dtype = find_dtype(dtype);
  if (e->desc.dtype < 0)
    return rsi_fail(RS_ERR_UNSUPPORTED,
                    "%s: tensor \"%.*s\" has dtype %.16s; supported are F64, F32, F16, BF16, I64, I32, U8, BOOL", path, NAME_SHOWN,
                    name, has_control(dtype) ? "?" : dtype);
  RSI_TRY(read_shape(path, name, json_object_get(value, "shape"), &e->desc));
  RSI_TRY(read_offsets(path, name, json_object_get(value, "data_offsets"), data_size, e));
  const size_t item = rsi_dtype_size[e->desc.dtype];
  int64_t numel;
  if (rsi_numel(e->desc.ndim, e->desc.shape, item, &numel) != RS_OK || numel * (int64_t)item != e->end - e->begin)
    BAD("%s: tensor \"%.*s\": shape %s of %s does not take the %lld bytes of data_offsets [%lld, %lld]", path, NAME_SHOWN, name,
        rsi_shape_text(e->desc.ndim, e->desc.shape), dtype, (long long)(e->end - e->begin), (long long)e->begin, (long long)e->end);
  return RS_OK;
}

static rs_status read_metadata(const char *path, json_t *meta, rs_file *f) {
  const char *key;
  json_t *value;
  int n = 0;
  if (!meta) return RS_OK;
  json_object_foreach(meta, key, value) {
    if (!json_is_string(value)) BAD("%s: __metadata__ holds a value that is no string", path);
    f->meta[n++] = key;
    f->meta[n++] = json_string_value(value);
  }
  f->nmeta = n / 2;
  return RS_OK;
}

static int by_position(const void *a, const void *b) {
  const entry *x = *(const entry *const *)a, *y = *(const entry *const *)b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return (x->end > y->end) - (x->end < y->end);
}

/* The tensors, one after the other, are all of the data. */
static rs_status check_cover(const char *path, rs_file *f, int64_t data_size) {
  int64_t at = 0;
  for (int i = 0; i < f->count; i++) f->order[i] = &f->entries[i];
  if (f->count > 0) qsort(f->order, (size_t)f->count, sizeof *f->order, by_position);
  for (int i = 0; i < f->count; i++) {
    const entry *e = f->order[i];
    if (e->begin < at)
      BAD("%s: tensors \"%.*s\" and \"%.*s\" overlap", path, NAME_SHOWN, f->order[i - 1]->name, NAME_SHOWN, e->name);
    if (e->begin > at)
      BAD("%s: %lld bytes of data before tensor \"%.*s\" belong to no tensor", path, (long long)(e->begin - at), NAME_SHOWN, e->name);
    at = e->end;
  }
  if (at != data_size) BAD("%s: the last %lld bytes of the file belong to no tensor", path, (long long)(data_size - at));
  return RS_OK;
}

static rs_status check_header(const char *path, rs_file *f, int64_t data_size) {
  const char *name;
  json_t *value;
  json_object_foreach(f->header, name, value) {
    if (strcmp(name, "__metadata__") == 0) continue;
    if (!*name) BAD("%s: a tensor has an empty name", path);
    if (has_control(name)) BAD("%s: the name of tensor %d in the header holds a control character", path, f->count + 1);
    RSI_TRY(read_entry(path, name, value, data_size, &f->entries[f->count]));
    f->count++;
  }
  RSI_TRY(read_metadata(path, json_object_get(f->header, "__metadata__"), f));
  return check_cover(path, f, data_size);
}

/* ---- opening --------------------------------------------------------------------------------------------------------- */

/* Reads and parses the header; *data is where the data begins. */
static rs_status load_header(rsi_heap *heap, const char *path, int fd, int64_t size, json_t **header, int64_t *data) {
  uint64_t length;
  json_error_t error;
  void *text;
  RSI_CHECK(size >= PREFIX, RS_ERR_FORMAT, "%s: the file has %lld bytes, too few for a safetensors file", path, (long long)size);
  RSI_TRY(rsi_read_at(fd, path, &length, PREFIX, 0));
  RSI_CHECK(length <= (uint64_t)(size - PREFIX), RS_ERR_FORMAT, "%s: header says %llu bytes but the file has %lld", path,
            (unsigned long long)length, (long long)size);
  RSI_CHECK(length <= MAX_HEADER, RS_ERR_FORMAT, "%s: header says %llu bytes; %d is the most", path, (unsigned long long)length, MAX_HEADER);
  RSI_CHECK(length > 0, RS_ERR_FORMAT, "%s: the header is empty", path);
  RSI_TRY(rsi_alloc(heap, (size_t)length, &text));
  rs_status status = rsi_read_at(fd, path, text, (size_t)length, PREFIX);
  if (status == RS_OK) {
    *header = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (!*header) {
      for (char *c = error.text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
      status = json_error_code(&error) == json_error_out_of_memory
                 ? rsi_fail(RS_ERR_NOMEM, "%s: no memory for a header of %llu bytes", path, (unsigned long long)length)
                 : rsi_fail(RS_ERR_FORMAT, "%s: the header is not valid JSON at byte %d: %s", path, error.position, error.text);
    } else if (!json_is_object(*header)) {
      status = rsi_fail(RS_ERR_FORMAT, "%s: the header is not a JSON object", path);
    }
  }
  rsi_free(heap, text, (size_t)length);
  *data = PREFIX + (int64_t)length;
  return status;
}

/* One block: the rs_file, its entries, their order, the metadata and the path. */
static rs_status file_new(rsi_heap *heap, const char *path, json_t *header, rs_file **out) {
  json_t *meta = json_object_get(header, "__metadata__");
  RSI_CHECK(!meta || json_is_object(meta), RS_ERR_FORMAT, "%s: __metadata__ is not an object", path);
  const size_t n = json_object_size(header), m = json_object_size(meta), length = strlen(path) + 1;
  const size_t entries = (sizeof(rs_file) + 15) & ~(size_t)15;
  const size_t order = entries + n * sizeof(entry);
  const size_t strings = order + n * sizeof(entry *);
  const size_t name = strings + 2 * m * sizeof(char *);
  void *block;
  RSI_TRY(rsi_alloc(heap, name + length, &block));
  char *const base = block;
  rs_file *const f = block;
  *f = (rs_file){.heap = heap, .block = name + length, .fd = -1, .header = header};
  f->entries = (void *)(base + entries);
  f->order = (void *)(base + order);
  f->meta = (void *)(base + strings);
  f->path = memcpy(base + name, path, length);
  *out = f;
  return RS_OK;
}

rs_status rs_file_open(rs_ctx *ctx, const char *path, rs_file **out) {
  rsi_heap *const heap = ctx->x.heap;
  json_t *header = NULL;
  rs_file *f = NULL;
  int64_t size, data = 0;
  int fd;
  *out = NULL;
  RSI_TRY(rsi_open_file(path, &fd, &size));
  rs_status status = load_header(heap, path, fd, size, &header, &data);
  if (status == RS_OK) status = file_new(heap, path, header, &f);
  if (status == RS_OK) {
    f->fd = fd;
    f->data = data;
    status = check_header(path, f, size - data);
    if (status == RS_OK) *out = f;
    else rs_file_close(f);
    return status;
  }
  json_decref(header);
  close(fd);
  return status;
}

void rs_file_close(rs_file *f) {
  if (!f) return;
  close(f->fd);
  json_decref(f->header);
  rsi_free(f->heap, f, f->block);
}

int rs_file_count(const rs_file *f) { return f->count; }
int rs_file_meta_count(const rs_file *f) { return f->nmeta; }

const char *rs_file_name(const rs_file *f, int index) {
  return index >= 0 && index < f->count ? f->entries[index].name : NULL;
}

const char *rs_file_meta_key(const rs_file *f, int index) {
  return index >= 0 && index < f->nmeta ? f->meta[2 * index] : NULL;
}

const char *rs_file_meta_value(const rs_file *f, int index) {
  return index >= 0 && index < f->nmeta ? f->meta[2 * index + 1] : NULL;
}

rs_status rs_file_read(rs_ctx *ctx, const rs_file *f, int index, rs_tensor **out) {
  rs_tensor *t;
  *out = NULL;
  RSI_CHECK(index >= 0 && index < f->count, RS_ERR_INDEX, "%s: there is no tensor number %d; the file has %d", f->path,
            index + ctx->x.base, f->count);
  const entry *e = &f->entries[index];
  RSI_TRY(rs_tensor_empty(ctx, e->desc.dtype, e->desc.ndim, e->desc.shape, &t));
  rs_status status = rsi_read_at(f->fd, f->path, t->data, (size_t)(e->end - e->begin), f->data + e->begin);
  if (status == RS_OK && e->desc.dtype == RS_BOOL) {
    const uint8_t *byte = t->data;
    for (int64_t i = 0; i < t->numel && status == RS_OK; i++)
      if (byte[i] > 1)
        status = rsi_fail(RS_ERR_FORMAT, "%s: tensor \"%.*s\": element %lld is %d, which is no bool", f->path, NAME_SHOWN, e->name,
                          (long long)i + ctx->x.base, byte[i]);
  }
  if (status == RS_OK) *out = t;
  else rs_tensor_release(t);
  return status;
}

/* ---- saving ---------------------------------------------------------------------------------------------------------- */

/* Steals `value`. */
static rs_status put(const char *path, json_t *object, const char *key, json_t *value) {
  RSI_CHECK(value && json_object_set_new(object, key, value) == 0, RS_ERR_NOMEM, "%s: no memory for the header", path);
  return RS_OK;
}

static rs_status check_text(const char *path, const char *what, const char *text) {
  json_t *probe = json_string(text);
  RSI_CHECK(probe, RS_ERR_ARG, "%s: %s is not UTF-8 text", path, what);
  json_decref(probe);
  return RS_OK;
}

static rs_status describe_metadata(const char *path, json_t *header, const char *const *keys, const char *const *values, int n) {
  json_t *meta = json_object();
  if (n == 0) {
    json_decref(meta);
    return RS_OK;
  }
  RSI_TRY(put(path, header, "__metadata__", meta));
  for (int i = 0; i < n; i++) {
    RSI_TRY(check_text(path, "a metadata key", keys[i]));
    RSI_TRY(check_text(path, "a metadata value", values[i]));
    RSI_CHECK(!json_object_get(meta, keys[i]), RS_ERR_ARG, "%s: metadata key \"%.*s\" is given twice", path, NAME_SHOWN, keys[i]);
    RSI_TRY(put(path, meta, keys[i], json_string(values[i])));
  }
  return RS_OK;
}

static rs_status describe_tensor(const char *path, json_t *header, const char *name, const rs_tensor *t, int64_t *at) {
  RSI_CHECK(name && *name, RS_ERR_ARG, "%s: a tensor has an empty name", path);
  RSI_TRY(check_text(path, "the name of a tensor", name));
  RSI_CHECK(!has_control(name), RS_ERR_ARG, "%s: the name of a tensor holds a control character", path);
  RSI_CHECK(strcmp(name, "__metadata__") != 0, RS_ERR_ARG, "%s: \"__metadata__\" cannot be the name of a tensor", path);
  RSI_CHECK(!json_object_get(header, name), RS_ERR_ARG, "%s: the name \"%.*s\" is given to two tensors", path, NAME_SHOWN, name);
  RSI_CHECK(t, RS_ERR_ARG, "%s: tensor \"%.*s\" is missing", path, NAME_SHOWN, name);
  RSI_CHECK(!(t->flags & RSI_PHANTOM), RS_ERR_STATE, "%s: tensor \"%.*s\" was made while a program was recorded, so it has a shape but no "
            "values; only what the recorded function returns has values", path, NAME_SHOWN, name);
  json_t *const info = json_object(), *const shape = json_array(), *const offsets = json_array();
  bool made = info && shape && offsets;
  const int64_t begin = *at;
  *at += t->numel * (int64_t)rsi_item_size(t);
  for (int i = 0; made && i < t->ndim; i++) made = json_array_append_new(shape, json_integer(t->shape[i])) == 0;
  made = made && json_array_append_new(offsets, json_integer(begin)) == 0 && json_array_append_new(offsets, json_integer(*at)) == 0;
  made = made && json_object_set_new(info, "dtype", json_string(file_dtypes[t->dtype])) == 0;
  made = made && json_object_set(info, "shape", shape) == 0 && json_object_set(info, "data_offsets", offsets) == 0;
  json_decref(shape);
  json_decref(offsets);
  if (made) return put(path, header, name, info);
  json_decref(info);
  return rsi_fail(RS_ERR_NOMEM, "%s: no memory for the header", path);
}

typedef struct cursor { char *to; size_t item; } cursor;

/* Copies one row of a strided tensor to the cursor that *arg points at, and moves the cursor on. */
static void gather_row(int64_t n, char *const *data, const int64_t *strides, const void *arg) {
  cursor *const c = *(cursor *const *)arg;
  const char *from = data[0];
  for (int64_t i = 0; i < n; i++, from += strides[0], c->to += c->item) memcpy(c->to, from, c->item);
}

static rs_status write_tensor(rsi_writer *w, rs_tensor *t, void *buffer) {
  const size_t item = rsi_item_size(t);
  if (rsi_is_contiguous(t)) return rsi_writer_write(w, t->data, (size_t)t->numel * item);
  const int64_t step = (int64_t)(BUFFER / item);
  rsi_nest nest;
  rsi_nest_make(&nest, &t, 1);
  for (int64_t at = 0; at < t->numel; at += step) {
    cursor c = {buffer, item}, *const arg = &c;
    const int64_t end = at + step < t->numel ? at + step : t->numel;
    rsi_nest_run(&nest, at, end, gather_row, &arg);
    RSI_TRY(rsi_writer_write(w, buffer, (size_t)(end - at) * item));
  }
  return RS_OK;
}

static rs_status write_all(rsi_writer *w, const char *header, size_t length, rs_tensor *const *tensors, int n, void *buffer) {
  static const char spaces[PREFIX] = "        ";
  const size_t padding = (PREFIX - length % PREFIX) % PREFIX;   /* the data begins at a multiple of 8 */
  const uint64_t total = length + padding;
  RSI_TRY(rsi_writer_write(w, &total, PREFIX));
  RSI_TRY(rsi_writer_write(w, header, length));
  RSI_TRY(rsi_writer_write(w, spaces, padding));
  for (int i = 0; i < n; i++) RSI_TRY(write_tensor(w, tensors[i], buffer));
  return RS_OK;
}

static rs_status write_file(rs_ctx *ctx, const char *path, const char *header, rs_tensor *const *tensors, int n) {
  const size_t length = strlen(header);
  rsi_writer w;
  void *buffer;
  RSI_CHECK(length <= MAX_HEADER - PREFIX, RS_ERR_ARG, "%s: the header would have %zu bytes; %d is the most", path, length, MAX_HEADER);
  RSI_TRY(rsi_alloc(ctx->x.heap, BUFFER, &buffer));
  rs_status status = rsi_writer_begin(ctx->x.heap, path, &w);
  if (status == RS_OK) {
    status = write_all(&w, header, length, tensors, n, buffer);
    if (status == RS_OK) status = rsi_writer_commit(&w);
    else rsi_writer_abort(&w);
  }
  rsi_free(ctx->x.heap, buffer, BUFFER);
  return status;
}

rs_status rs_file_save(rs_ctx *ctx, const char *path, const char *const *names, rs_tensor *const *tensors, int n,
                       const char *const *meta_keys, const char *const *meta_values, int nmeta) {
  RSI_CHECK(!rs_is_tracing(ctx), RS_ERR_STATE, "%s: tensors cannot be saved while a program is recorded", path);
  json_t *const header = json_object();
  int64_t at = 0;
  RSI_CHECK(header, RS_ERR_NOMEM, "%s: no memory for the header", path);
  rs_status status = describe_metadata(path, header, meta_keys, meta_values, nmeta);
  for (int i = 0; i < n && status == RS_OK; i++) status = describe_tensor(path, header, names[i], tensors[i], &at);
  if (status == RS_OK) {
    char *const text = json_dumps(header, JSON_COMPACT);
    status = text ? write_file(ctx, path, text, tensors, n) : rsi_fail(RS_ERR_NOMEM, "%s: no memory for the header", path);
    free(text);
  }
  json_decref(header);
  return status;
}
