#!/bin/bash
# layer_test.sh (FILE PATTERN)...: fails if a label listed in FILE matches PATTERN. See defs.bzl.

set -u
failed=0
while [[ $# -gt 0 ]]; do
  if [[ ! -s "$1" ]]; then
    echo "$1 lists nothing"
    failed=1
  elif violations="$(grep -E -- "$2" "$1")"; then
    echo "This layer depends on what lies outside of it:"
    echo "${violations}"
    echo "bazel query 'somepath(<target of the layer>, <one of these>)' shows the way."
    failed=1
  fi
  shift 2
done
exit "${failed}"
