/*
** IDX, the format of MNIST: 00 00, an element type, the number of dimensions, each dimension as 4 bytes, then the elements;
** all big-endian. gzip files are read the same way.
** A plain file's length is checked before anything is allocated. The length of gzip data is known only at its end, so it is
** collected in a buffer that doubles; the tensor is made when half of what it needs has really arrived.
*/
#include "io/io.h"
#include "ctx.h"
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { FIRST_BUFFER = 1 << 16, ONE_CALL = 1 << 24 };

typedef struct element { uint8_t code, size; int dtype; const char *name; } element;   /* dtype: what it becomes */

static const element elements[] = {{0x08, 1, RS_U8, "u8"},   {0x09, 1, RS_I32, "i8"},  {0x0B, 2, RS_I32, "i16"},
                                   {0x0C, 4, RS_I32, "i32"}, {0x0D, 4, RS_F32, "f32"}, {0x0E, 8, RS_F64, "f64"}};

typedef struct source {
  rs_ctx     *ctx;
  const char *path;
  gzFile      gz;
  int64_t     size;      /* of the file */
  const element *type;
  rsi_desc    all;       /* what the file holds */
  rsi_desc    desc;      /* what is wanted: `all` with a smaller first dimension */
  size_t      bytes;     /* of the wanted elements, as they are in the file */
} source;

/* ---- reading --------------------------------------------------------------------------------------------------------- */

/* Reads up to `bytes`; fewer only at the end of the data. */
static rs_status read_some(const source *s, void *data, size_t bytes, size_t *got) {
  *got = 0;
  while (*got < bytes) {
    const size_t want = bytes - *got < ONE_CALL ? bytes - *got : ONE_CALL;
    const int n = gzread(s->gz, (char *)data + *got, (unsigned)want);
    if (n < 0) {
      int code;
      (void)gzerror(s->gz, &code);
      if (code == Z_ERRNO) return rsi_fail_errno(s->path, "cannot read");
      RSI_CHECK(code != Z_MEM_ERROR, RS_ERR_NOMEM, "%s: no memory to unpack it", s->path);
      RSI_CHECK(code == Z_BUF_ERROR, RS_ERR_FORMAT, "%s: the gzip data is damaged", s->path);
      return RS_OK;
    }
    if (n == 0) return RS_OK;
    *got += (size_t)n;
  }
  return RS_OK;
}

static uint32_t big32(const uint8_t *b) { return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3]; }

static rs_status read_header(source *s, double limit) {
  uint8_t head[4], sizes[4 * RS_MAX_DIMS];
  size_t got;
  int64_t numel;
  RSI_TRY(read_some(s, head, sizeof head, &got));
  RSI_CHECK(got == sizeof head, RS_ERR_FORMAT, "%s: the data ends after %zu bytes, within the header of an IDX file", s->path, got);
  RSI_CHECK(head[0] == 0 && head[1] == 0, RS_ERR_FORMAT, "%s: is no IDX file: it begins with %02x %02x, not 00 00", s->path, head[0],
            head[1]);
  for (size_t i = 0; i < sizeof elements / sizeof *elements; i++)
    if (elements[i].code == head[2]) s->type = &elements[i];
  RSI_CHECK(s->type, RS_ERR_FORMAT, "%s: element type %02x is unknown; an IDX file has 08, 09, 0b, 0c, 0d or 0e there", s->path, head[2]);
  RSI_CHECK(head[3] >= 1 && head[3] <= RS_MAX_DIMS, RS_ERR_FORMAT, "%s: has %d dimensions; 1 to %d are possible", s->path, head[3],
            RS_MAX_DIMS);
  RSI_TRY(read_some(s, sizes, 4 * (size_t)head[3], &got));
  RSI_CHECK(got == 4 * (size_t)head[3], RS_ERR_FORMAT, "%s: the data ends within the sizes of its %d dimensions", s->path, head[3]);
  s->all.dtype = s->type->dtype;
  s->all.ndim = head[3];
  for (int i = 0; i < s->all.ndim; i++) s->all.shape[i] = big32(sizes + 4 * i);
  if (rsi_numel(s->all.ndim, s->all.shape, 8, &numel) != RS_OK)
    return rsi_fail(RS_ERR_FORMAT, "%s: shape %s has more elements than memory can hold", s->path,
                    rsi_shape_text(s->all.ndim, s->all.shape));
  s->desc = s->all;
  if (limit > 0 && limit < (double)s->all.shape[0]) s->desc.shape[0] = (int64_t)limit;
  RSI_TRY(rsi_numel(s->desc.ndim, s->desc.shape, 8, &numel));
  s->bytes = (size_t)numel * s->type->size;
  return RS_OK;
}

static bool limited(const source *s) { return s->desc.shape[0] < s->all.shape[0]; }

static rs_status fail_length(const source *s, const char *verb, unsigned long long found) {
  int64_t numel = 0;
  (void)rsi_numel(s->desc.ndim, s->desc.shape, 8, &numel);
  return rsi_fail(RS_ERR_FORMAT, "%s: %lld bytes were expected for shape %s of %s, but %s %llu", s->path,
                  (long long)numel * s->type->size, rsi_shape_text(s->desc.ndim, s->desc.shape), s->type->name, verb, found);
}

/* ---- elements -------------------------------------------------------------------------------------------------------- */

static uint16_t big16(const uint8_t *b) { return (uint16_t)(b[0] << 8 | b[1]); }
static uint64_t big64(const uint8_t *b) { return (uint64_t)big32(b) << 32 | big32(b + 4); }

/* The elements of the file lie at the end of the tensor's memory, so going up never overwrites one that is still to be read. */
static char *raw_place(const source *s, const rs_tensor *t) {
  return (char *)t->data + ((size_t)t->numel * rsi_item_size(t) - s->bytes);
}

static void convert(const source *s, rs_tensor *t) {
  const uint8_t *from = (const uint8_t *)raw_place(s, t);
  char *const to = t->data;
  for (int64_t i = 0; i < t->numel; i++) {
    const uint8_t *b = from + i * s->type->size;
    int32_t v32;
    uint64_t v64;
    switch (s->type->code) {
      case 0x09: v32 = (int8_t)*b; break;
      case 0x0B: v32 = (int16_t)big16(b); break;
      case 0x0E: v64 = big64(b); memcpy(to + 8 * i, &v64, 8); continue;
      default:   v32 = (int32_t)big32(b); break;
    }
    memcpy(to + 4 * i, &v32, 4);
  }
}

/* ---- collecting ------------------------------------------------------------------------------------------------------- */

/* Reads the elements behind the first `have`, which are in `raw` already. */
static rs_status read_rest(const source *s, char *raw, size_t have) {
  size_t got;
  char more;
  RSI_TRY(read_some(s, raw + have, s->bytes - have, &got));
  if (have + got < s->bytes) return fail_length(s, "the data ends after", have + got);
  if (limited(s)) return RS_OK;
  RSI_TRY(read_some(s, &more, 1, &got));   /* also lets zlib compare its checksum */
  if (got > 0) return fail_length(s, "there are more; found at least", s->bytes + 1);
  int code;
  (void)gzerror(s->gz, &code);
  RSI_CHECK(code != Z_BUF_ERROR, RS_ERR_FORMAT, "%s: the gzip data is cut off at its end", s->path);
  return RS_OK;
}

/* Makes the tensor and fills it; `have` bytes have been read into `buffer`. */
static rs_status finish(const source *s, const void *buffer, size_t have, rs_tensor **out) {
  rs_tensor *t;
  RSI_TRY(rs_tensor_empty(s->ctx, s->desc.dtype, s->desc.ndim, s->desc.shape, &t));
  if (have > 0) memcpy(raw_place(s, t), buffer, have);
  const rs_status status = read_rest(s, raw_place(s, t), have);
  if (status != RS_OK) {
    rs_tensor_release(t);
    return status;
  }
  if (s->type->code != 0x08) convert(s, t);
  *out = t;
  return RS_OK;
}

static rs_status collect(const source *s, rs_tensor **out) {
  rsi_heap *const heap = s->ctx->x.heap;
  size_t size = FIRST_BUFFER, have = 0, got;
  void *buffer, *larger;
  if (s->bytes <= FIRST_BUFFER) return finish(s, NULL, 0, out);
  RSI_TRY(rsi_alloc(heap, size, &buffer));
  for (;;) {
    rs_status status = read_some(s, (char *)buffer + have, size - have, &got);
    have += got;
    if (status == RS_OK && have < size) status = fail_length(s, "the data ends after", have);
    const bool enough = status == RS_OK && s->bytes / 2 <= have;
    if (enough) status = finish(s, buffer, have, out);
    else if (status == RS_OK) status = rsi_alloc(heap, 2 * size, &larger);
    if (enough || status != RS_OK) {
      rsi_free(heap, buffer, size);
      return status;
    }
    memcpy(larger, buffer, have);
    rsi_free(heap, buffer, size);
    buffer = larger;
    size *= 2;
  }
}

static rs_status read_idx(source *s, double limit, rs_tensor **out) {
  RSI_TRY(read_header(s, limit));
  if (!gzdirect(s->gz)) return collect(s, out);
  const int64_t head = 4 + 4 * s->all.ndim;
  int64_t numel;
  RSI_TRY(rsi_numel(s->all.ndim, s->all.shape, 8, &numel));
  if (s->size - head != numel * s->type->size)
    return rsi_fail(RS_ERR_FORMAT, "%s: %lld bytes were expected for shape %s of %s, but the file has %lld", s->path,
                    (long long)(head + numel * s->type->size), rsi_shape_text(s->all.ndim, s->all.shape), s->type->name,
                    (long long)s->size);
  return finish(s, NULL, 0, out);
}

rs_status rs_read_idx(rs_ctx *ctx, const char *path, double limit, rs_tensor **out) {
  source s = {.ctx = ctx, .path = path};
  int fd;
  *out = NULL;
  RSI_CHECK(limit >= 0 && limit == floor(limit), RS_ERR_ARG, "%s: limit is %g; it must be a whole number, or 0 for all", path, limit);
  RSI_TRY(rsi_open_file(path, &fd, &s.size));
  s.gz = gzdopen(fd, "rb");
  if (!s.gz) {
    close(fd);
    return rsi_fail(RS_ERR_NOMEM, "%s: no memory to read it", path);
  }
  (void)gzbuffer(s.gz, 1 << 17);
  const rs_status status = read_idx(&s, limit, out);
  (void)gzclose(s.gz);
  return status;
}
