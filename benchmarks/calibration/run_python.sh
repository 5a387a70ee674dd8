#!/bin/bash
# Runs a Python program with the first interpreter that has numpy and scipy.

set -euo pipefail

for python in python3 /usr/bin/python3; do
  if "${python}" -c 'import numpy, scipy' 2>/dev/null; then
    exec "${python}" -B "$@"
  fi
done
echo "no Python with numpy and scipy; on Debian: apt-get install python3-numpy python3-scipy" >&2
exit 1
