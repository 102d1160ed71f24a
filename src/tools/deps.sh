#!/bin/sh
# Installs the Debian packages that are missing, says which, and does nothing when all are there.
set -eu
wanted="gcc libc6-dev pkg-config luajit libluajit-5.1-dev zlib1g-dev libjansson-dev lua-busted lua-check graphviz dataset-fashion-mnist"
[ "${BLAS:-openblas}" = none ] || wanted="$wanted libopenblas-dev"
[ "${ONEDNN:-yes}" = no ] || wanted="$wanted libdnnl-dev"
if ! command -v dpkg-query >/dev/null 2>&1; then
  echo "resin: this is no Debian-like system; make sure that these (by their Debian names) are installed: $wanted"
  exit 0
fi
missing=
for package in $wanted; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
sudo=
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null 2>&1 || { echo "resin: run this as root:  apt-get install$missing" >&2; exit 1; }
  sudo=sudo
fi
echo "resin: installing$missing"
log=$(mktemp)
if ! { $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } \
    >"$log" 2>&1; then
  cat "$log" >&2
  echo "resin: apt-get could not install$missing" >&2
  rm -f "$log"
  exit 1
fi
rm -f "$log"
