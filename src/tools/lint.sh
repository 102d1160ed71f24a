#!/bin/sh
# What a reader relies on: no warning from gcc or clang, luacheck-clean Lua, includes that point downwards, prefixes that tell the
# layer, no call that could bring a host down, files of a size that can be read.
set -u
cd "$(dirname "$0")/../.."
B=${B:-build}
bad=0
complain() { echo "lint: $*"; bad=1; }

# Warnings. The generated header must exist for the two files that include it from outside.
flags="-std=c11 -O1 -fsyntax-only -D_GNU_SOURCE -DRSI_INTERNAL -DRSI_WITH_BLAS -DRSI_WITH_ONEDNN -DRSI_ISA_LEVEL=0 -Isrc -Wall -Wextra -Wshadow -Wconversion
  -Wdouble-promotion -Wstrict-prototypes -Werror"
for compiler in gcc clang; do
  command -v $compiler >/dev/null 2>&1 || { echo "lint: $compiler is not installed; skipped"; continue; }
  for file in src/*.c src/*/*.c; do
    # shellcheck disable=SC2086
    $compiler $flags "$file" || complain "$compiler warns in $file"
  done
done

# Lua.
luacheck -q lua spec examples bench || complain "luacheck"

# Includes point downwards: a file may include its own layer and those below it.
level() {
  case $1 in
    base) echo 0 ;; tensor) echo 1 ;; kernels) echo 1 ;; backend) echo 3 ;; ops) echo 3 ;; autograd) echo 4 ;; program) echo 5 ;;
    io) echo 4 ;; tools) echo 9 ;; *) echo 8 ;;
  esac
}
for file in src/*/*.c src/*/*.h; do
  layer=$(basename "$(dirname "$file")")
  for target in $(sed -n 's/^#include "\([a-z]*\)\/[a-z_0-9]*\.\(h\|def\)".*/\1/p' "$file"); do
    [ "$(level "$target")" -le "$(level "$layer")" ] ||
      case "$file:$target" in
        # The tape hangs on tensors and the dispatcher drives tape and recording: these few doors upwards are the design.
        src/tensor/*:autograd | src/tensor/access.c:program | src/autograd/*:program | src/ops/dispatch.c:autograd | src/ops/dispatch.c:program) ;;
        *) complain "$file includes upwards: $target" ;;
      esac
  done
  case $layer in
    backend) ;;
    *) grep -nE '#include <(cblas|dnnl|oneapi|omp)' "$file" && complain "$file includes a compute library outside backend" ;;
  esac
done

# Nothing that ends the process, prints, or reads the environment.
grep -nE '\b(abort|exit|printf|puts|fprintf|perror|getenv|assert|setlocale|signal|atexit)\(' $(ls src/*.c src/*/*.c src/*/*.h | grep -v '^src/tools/') |
  grep -vE 'rsi_printf|static_assert|_Static_assert|^\S+\s*(\*|/\*)' && complain "a call that a library must not make"

# Public names.
if [ -f "$B/libresin.so" ]; then
  nm -D --defined-only "$B/libresin.so" | awk '{print $3}' | grep -vE '^(rs_|_init$|_fini$)' && complain "a symbol without the prefix rs_ is exported"
fi

# The reference follows from the op table.
if [ -f "$B/ops.md" ]; then
  cmp -s "$B/ops.md" docs/ops.md || complain "docs/ops.md is older than the op table: make docs"
fi

# One idea per file.
wc -l src/*.[ch] src/*/*.[ch] lua/resin/*.lua lua/resin/*/*.lua 2>/dev/null | awk '$2 != "total" && $1 > 900 {print "lint: " $2 " has " $1 " lines"; n++} END {exit n > 0}' || bad=1

[ $bad = 0 ] && echo "lint: clean"
exit $bad
