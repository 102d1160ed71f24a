/*
** What the readers and writers of files share.
** Every message begins with the path as the caller gave it. A reader treats its file as hostile: sizes are checked against the
** file before they are used, and nothing larger than the file explains is allocated. A writer works beside the file and puts
** the whole result in its place at the end.
*/
#ifndef RSI_IO_H
#define RSI_IO_H

#include "base/base.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "file formats are read and written as little-endian memory");

/* Opens a regular file for reading; *size is its length. */
rs_status rsi_open_file(const char *path, int *fd, int64_t *size);
/* Reads exactly `bytes` bytes at `offset`. */
rs_status rsi_read_at(int fd, const char *path, void *data, size_t bytes, int64_t offset);
/* "PATH: what: the system's reason" from errno. */
rs_status rsi_fail_errno(const char *path, const char *what) __attribute__((cold));

/* A file being written: "PATH.tmp-PID-N" until it is committed. After begin, exactly one of commit and abort is called. */
typedef struct rsi_writer {
  rsi_heap   *heap;
  const char *path;
  char       *temp;        /* name of the temporary file */
  size_t      temp_size;
  int         fd;
} rsi_writer;

rs_status rsi_writer_begin(rsi_heap *heap, const char *path, rsi_writer *out);
rs_status rsi_writer_write(rsi_writer *w, const void *data, size_t bytes);
rs_status rsi_writer_commit(rsi_writer *w);   /* on failure the old file is untouched and nothing is left behind */
void      rsi_writer_abort(rsi_writer *w);

#endif
