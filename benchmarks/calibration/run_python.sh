#!/bin/bash
# Runs a Python program with the first interpreter that has numpy and scipy; without one, says so and succeeds.

set -euo pipefail

for python in python3 /usr/bin/python3; do
  if "${python}" -c 'import numpy, scipy' 2>/dev/null; then
    exec "${python}" -B "$@"
  fi
done
echo "skipped: no numpy and scipy (Debian: apt-get install python3-numpy python3-scipy)" >&2
