#!/bin/bash
# The benchmark still runs, checks what it times and prints its four sections. Speed is not tested.

set -euo pipefail

output="$("$1" --quick --repeats=2)"
for section in "made-up hour" "Where the time goes" "Growth with stages" "Growth with requests"; do
  if ! grep -q "^## .*${section}" <<<"${output}"; then
    echo "no section '${section}' in:" >&2
    echo "${output}" >&2
    exit 1
  fi
done
