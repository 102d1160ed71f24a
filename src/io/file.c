/*
** Opening and reading regular files, and writing one so that it appears only when it is whole: data goes to a new file beside
** it, is brought to the disk, and takes the name in one step. Whatever fails, the temporary file is removed.
*/
#define _FILE_OFFSET_BITS 64
#include "io/io.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ONE_CALL = 1 << 30, TRIES = 1000 };   /* bytes of one read or write; names that may be taken already */

rs_status rsi_fail_errno(const char *path, const char *what) {
  const int code = errno;
  return rsi_fail(code == ENOMEM ? RS_ERR_NOMEM : RS_ERR_IO, "%s: %s: %s", path, what, strerror(code));
}

static const char *kind_of(mode_t mode) {
  return S_ISDIR(mode) ? "a directory" : "not a regular file";
}

/* ---- reading --------------------------------------------------------------------------------------------------------- */

rs_status rsi_open_file(const char *path, int *fd, int64_t *size) {
  struct stat st;
  *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   /* not blocking: a pipe must not hold us up */
  if (*fd < 0) return rsi_fail_errno(path, "cannot open");
  if (fstat(*fd, &st) != 0) {
    const rs_status status = rsi_fail_errno(path, "cannot open");
    close(*fd);
    return status;
  }
  if (!S_ISREG(st.st_mode)) {
    close(*fd);
    return rsi_fail(RS_ERR_IO, "%s: is %s", path, kind_of(st.st_mode));
  }
  *size = st.st_size;
  return RS_OK;
}

rs_status rsi_read_at(int fd, const char *path, void *data, size_t bytes, int64_t offset) {
  size_t done = 0;
  while (done < bytes) {
    const size_t want = bytes - done < ONE_CALL ? bytes - done : ONE_CALL;
    const ssize_t got = pread(fd, (char *)data + done, want, (off_t)(offset + (int64_t)done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return rsi_fail_errno(path, "cannot read");
    RSI_CHECK(got > 0, RS_ERR_IO, "%s: the file became shorter while it was read: %zu bytes were expected at byte %lld, %zu found",
              path, bytes, (long long)offset, done);
    done += (size_t)got;
  }
  return RS_OK;
}

/* ---- writing --------------------------------------------------------------------------------------------------------- */

static void forget_name(rsi_writer *w) {
  rsi_free(w->heap, w->temp, w->temp_size);
  w->temp = NULL;
}

rs_status rsi_writer_begin(rsi_heap *heap, const char *path, rsi_writer *out) {
  struct stat old;
  void *block;
  const bool exists = stat(path, &old) == 0;
  RSI_CHECK(!exists || S_ISREG(old.st_mode), RS_ERR_IO, "%s: cannot be written: it is %s", path, kind_of(old.st_mode));
  *out = (rsi_writer){.heap = heap, .path = path, .temp_size = strlen(path) + 64, .fd = -1};
  RSI_TRY(rsi_alloc(heap, out->temp_size, &block));
  out->temp = block;
  errno = EEXIST;
  for (int i = 0; i < TRIES && out->fd < 0 && errno == EEXIST; i++) {
    (void)snprintf(out->temp, out->temp_size, "%s.tmp-%ld-%d", path, (long)getpid(), i);
    out->fd = open(out->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  }
  if (out->fd < 0) {
    const rs_status status = rsi_fail_errno(path, "cannot write beside it");
    forget_name(out);
    return status;
  }
  if (exists) (void)fchmod(out->fd, old.st_mode & 0777);   /* the new file is as readable as the old one was */
  return RS_OK;
}

rs_status rsi_writer_write(rsi_writer *w, const void *data, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t got = write(w->fd, (const char *)data + done, bytes - done < ONE_CALL ? bytes - done : ONE_CALL);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return rsi_fail_errno(w->path, "cannot write");
    done += (size_t)got;
  }
  return RS_OK;
}

void rsi_writer_abort(rsi_writer *w) {
  if (w->fd >= 0) close(w->fd);
  unlink(w->temp);
  forget_name(w);
}

/* Brings the new name to the disk; the data is there already, so a file system that cannot is no failure. */
static void sync_directory(rsi_writer *w) {
  char *slash = strrchr(w->temp, '/');
  if (slash) slash[slash == w->temp] = 0;
  const int fd = open(slash ? w->temp : ".", O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  if (fd < 0) return;
  (void)fsync(fd);
  close(fd);
}

rs_status rsi_writer_commit(rsi_writer *w) {
  rs_status status = RS_OK;
  if (fsync(w->fd) != 0) status = rsi_fail_errno(w->path, "cannot write");
  if (close(w->fd) != 0 && status == RS_OK) status = rsi_fail_errno(w->path, "cannot write");
  w->fd = -1;
  if (status == RS_OK && rename(w->temp, w->path) != 0) status = rsi_fail_errno(w->path, "cannot be replaced");
  if (status != RS_OK) {
    rsi_writer_abort(w);
    return status;
  }
  sync_directory(w);
  forget_name(w);
  return RS_OK;
}
