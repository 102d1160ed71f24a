#!/bin/sh
# The launcher: finds the Lua files relative to itself, in a checkout (build/resin) or installed (bin/resin).
# LUAJIT names the interpreter.
self=$(readlink -f "$0") || exit 1
here=${self%/*}
if [ -f "$here/lua/resin/ops.lua" ]; then
  dir=$here
  while [ "$dir" != "" ] && [ ! -f "$dir/lua/resin/cli.lua" ]; do dir=${dir%/*}; done
  [ "$dir" != "" ] || dir=@SOURCE@   # a build directory outside the checkout
  lua=$dir/lua
else
  lua=${here%/*}/share/lua/5.1
fi
if [ ! -f "$lua/resin/cli.lua" ]; then
  echo "resin: cannot find resin/cli.lua near $here" >&2
  exit 1
fi
exec "${LUAJIT:-luajit}" "$lua/resin/cli.lua" "$here" "$@"
