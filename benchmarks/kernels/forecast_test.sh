#!/bin/bash
# Forecasts of what was measured on an H200 stay near it, and a folder without measurements is an error that names it.
#
#   forecast_test.sh BINARY

set -euo pipefail

printed="$("$1")"

# Of the lines that begin with $1, $3 of them, column $2: each within +-$4 %.
within() {
  local lines
  lines="$(grep -E "^\\| *$1" <<<"${printed}")"
  [[ "$(wc -l <<<"${lines}")" == "$3" ]] || { echo "not $3 lines of $1: ${lines}" >&2; exit 1; }
  awk -F'|' -v column="$2" -v most="$4" '{
    split($column, error, " ")
    if (error[1] > most || error[1] < -most) { print "off by more than " most " %: " $0; bad = 1 }
  } END { exit bad }' <<<"${lines}"
}

# 9 numbers of requests and 7 of chunks; from, to.
for column in 6 7; do
  within "405b (decode|prefill)" "${column}" 16 10
  within "70b decode" "${column}" 9 15
done
# The first figure of the three runs of a stage: TPOT.
within "closed loop" 6 3 6

"$1" --results /no/such/folder 2>errors && { echo "a folder that is not there was read" >&2; exit 1; }
grep -q "/no/such/folder/h200_kernels.json: cannot be read" errors || { cat errors >&2; exit 1; }
