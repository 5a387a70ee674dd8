#!/bin/bash
# The scripts compile.
#
#   scripts_test.sh FILE...

set -euo pipefail
for script in "$@"; do
  python3 - "${script}" <<'PYTHON'
import sys

with open(sys.argv[1], encoding="utf-8") as source:
    compile(source.read(), sys.argv[1], "exec")
PYTHON
done
echo "$# compile"
