#!/bin/bash
# Runs the programs at small sizes.
set -euo pipefail

readonly HOP_TIMES="$1" FABRIC_REHEARSAL="$2"

status=0
output="$("${HOP_TIMES}" --quick)" || status=$?
case "${status}" in
  0)
    # Six sizes within a host, six over the cable.
    if [[ "$(grep -c '^| within a host | [0-9]' <<<"${output}")" != 6 ||
      "$(grep -c '^| 400 Mbit/s | [0-9]' <<<"${output}")" != 6 ||
      "$(grep -c 'PATH_KIND_NETWORK_TCP: points' <<<"${output}")" != 1 ]]; then
      echo "hop_times printed:" >&2
      echo "${output}" >&2
      exit 1
    fi
    ;;
  2) echo "skipped: no virtual network can be made here" ;;
  *) exit "${status}" ;;
esac

if output="$("${FABRIC_REHEARSAL}" no_such_run 2>&1)" ||
  [[ "${output}" != *"no_such_run.json: cannot be read"* ]]; then
  echo "fabric_rehearsal printed: ${output}" >&2
  exit 1
fi
