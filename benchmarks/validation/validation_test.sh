#!/bin/bash
# The program runs on a made-up log, skips what it has no measurements for, and says when it has none at all.

set -euo pipefail
validation="$1"
data="$(dirname "$(dirname "$2")")"

fail() {
  echo "$1" >&2
  exit 1
}

output="$("${validation}" --data="${data}")"
for text in "made-up, one RTX PRO 6000" "12 requests" "| TTFT, s: p99 |" "| makespan, s |" "| as forecast |" \
  "Skipped: no profile" "Skipped: no measurements"; do
  grep -qF "${text}" <<<"${output}" || fail "no '${text}' in: ${output}"
done

status=0
errors="$("${validation}" --data=/nowhere 2>&1 >/dev/null)" || status=$?
[[ "${status}" == 2 ]] || fail "exit status ${status} without measurements, not 2"
grep -qF "skipped, nothing was compared" <<<"${errors}" || fail "no word about what is missing: ${errors}"
