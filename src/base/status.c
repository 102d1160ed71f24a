/*
** The text of the last failure.
** One buffer per thread, always terminated. A text that does not fit keeps its beginning and ends in "...", cut between
** UTF-8 characters. New text is made in a second buffer first, since its arguments may point into the old text.
*/
#include "base/base.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#ifndef RS_VERSION_STRING
#define RS_VERSION_STRING "0.1.0"
#endif

enum { TEXT_SIZE = 1024 };

static _Thread_local char last_error[TEXT_SIZE];

/* Makes `text` the last error; `length` is what it would have been without the limit, negative if it could not be made. */
static void keep(char text[TEXT_SIZE], int length) {
  if (length < 0) {
    strcpy(text, "(the text of this failure could not be made)");
  } else if (length >= TEXT_SIZE) {
    size_t end = TEXT_SIZE - 4;
    while (end > 0 && ((unsigned char)text[end] & 0xC0u) == 0x80u) end--;
    memcpy(text + end, "...", 4);
  }
  memcpy(last_error, text, TEXT_SIZE);
}

rs_status rsi_fail(rs_status status, const char *format, ...) {
  char text[TEXT_SIZE] = {0};
  va_list args;
  va_start(args, format);
  const int length = vsnprintf(text, sizeof text, format, args);
  va_end(args);
  keep(text, length);
  return status;
}

rs_status rsi_fail_prefix(rs_status status, const char *prefix) {
  char text[TEXT_SIZE] = {0};
  const int length = snprintf(text, sizeof text, "%s: %s", prefix, last_error);
  keep(text, length);
  return status;
}

const char *rs_last_error(void) { return last_error; }

const char *rs_status_name(rs_status status) {
  switch (status) {
    case RS_OK:              return "ok";
    case RS_ERR_NOMEM:       return "nomem";
    case RS_ERR_SHAPE:       return "shape";
    case RS_ERR_DTYPE:       return "dtype";
    case RS_ERR_ARG:         return "arg";
    case RS_ERR_INDEX:       return "index";
    case RS_ERR_GRAD:        return "grad";
    case RS_ERR_VERSION:     return "version";
    case RS_ERR_STATE:       return "state";
    case RS_ERR_IO:          return "io";
    case RS_ERR_FORMAT:      return "format";
    case RS_ERR_UNSUPPORTED: return "unsupported";
    case RS_HOST:            return "host";
    case RS_MORE:            return "more";
  }
  return "unknown";
}

int rs_abi_version(void) { return RS_ABI_VERSION; }

const char *rs_version(void) { return RS_VERSION_STRING; }
