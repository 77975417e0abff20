# shellcheck shell=bash disable=SC2034
# What the client tests written in shell share: sourced, never run.
#
# Every test gets ENDPOINT, ACCESS_KEY, SECRET_KEY and BUCKET (REGION and VHOST_DOMAIN have defaults), works on keys
# below its own prefix, so that tests may share a bucket, and says at which step it failed.

set -euo pipefail

: "${ENDPOINT:?set ENDPOINT, such as http://127.0.0.1:3900}"
: "${ACCESS_KEY:?set ACCESS_KEY}" "${SECRET_KEY:?set SECRET_KEY}" "${BUCKET:?set BUCKET}"
REGION=${REGION:-garage}
HOST=${ENDPOINT#http://}
PREFIX="$(basename "$0")-$$"
WORK=$(mktemp -d "${TMPDIR:-/tmp}/garage-client.XXXXXX")
STEP=start

# Nothing of the caller's own configuration may reach the clients.
export HOME=$WORK
unset "${!AWS_@}" http_proxy HTTP_PROXY

finish() {
  local status=$?
  rm -rf "$WORK"
  if [ "$status" -ne 0 ]; then
    echo "FAILED in step: $STEP" >&2
  fi
  exit "$status"
}
trap finish EXIT

# Names the step that starts now.
step() {
  STEP=$*
  echo "step: $STEP"
}

fail() {
  echo "$*" >&2
  exit 1
}

# Makes a file of random bytes: make_file PATH SIZE (as understood by head -c).
make_file() {
  mkdir -p "$(dirname "$1")"
  head -c "$2" /dev/urandom >"$1"
}

# Writes a piece of a file to standard output: piece FILE OFFSET LENGTH.
piece() {
  dd if="$1" bs=1M iflag=skip_bytes,count_bytes,fullblock skip="$2" count="$3" status=none
}

# Compares two files byte by byte.
same() {
  cmp -- "$1" "$2" || fail "$1 and $2 differ"
}

# Compares two directory trees byte by byte.
same_tree() {
  diff -r -- "$1" "$2" || fail "$1 and $2 differ"
}

# Compares two texts: equal WHAT WANTED ACTUAL.
equal() {
  [ "$2" = "$3" ] || fail "$1: wanted '$2', got '$3'"
}

# Succeeds when the command fails: refused COMMAND...
refused() {
  if "$@" >"$WORK/refused.out" 2>&1; then
    fail "succeeded although it must not: $*"
  fi
}
