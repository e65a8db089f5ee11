#!/usr/bin/env bash
# From a clone to a ranked page: ./run_all.sh [smoke|quick|full|paper] [options of `quantarena run`]
# Makes .venv, installs what constraints.txt pins, runs what is missing, writes the page.
# Exit codes: 0 ok, 1 some cells failed (the page is written), 2 usage. PYTHON picks an interpreter.
set -euo pipefail
usage="usage: ./run_all.sh [smoke|quick|full|paper] [options of: quantarena run]"

fail() { echo "error: $1" >&2; exit 2; }

install() {  # $1: extras such as [dev], or nothing; does nothing when done before and unchanged
  local python="${PYTHON:-}" candidate want stamp
  if [ ! -x .venv/bin/pip ]; then
    for candidate in ${python:+"$python"} python3.13 python3.12 python3.11 python3 python; do
      "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
      echo "making .venv with $candidate" >&2
      "$candidate" -m venv .venv && break
    done
    [ -x .venv/bin/pip ] || fail "Python 3.11 or newer with venv is needed: set PYTHON=/path/to/python3"
  fi
  want="$(cat pyproject.toml constraints.txt setup.py $(find methods/core/kernels/csrc -type f | sort) | cksum)"
  stamp=".venv/installed${1:+-${1//[^a-z]/}}"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
    echo "installing quantarena$1 into .venv (some minutes the first time)" >&2
    .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".$1" >&2 ||
      fail "the installation failed, see above; run again to retry"
    echo "$want" > "$stamp"
  fi
}

cd "$(dirname "${BASH_SOURCE[0]}")"
case "${1:-quick}" in
  --install) install "${2:-}"; exit 0 ;;
  -h | --help) echo "$usage"; exit 0 ;;
  smoke | quick | full | paper) install "" ;;
  *) fail "unknown preset '$1': choose smoke, quick, full or paper ($usage)" ;;
esac
exec .venv/bin/quantarena run "${@:-quick}"
