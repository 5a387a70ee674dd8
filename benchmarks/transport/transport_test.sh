#!/bin/bash
# The benchmark still runs, in one process and in two, and prints its sections. Speed is not tested.
#
#   transport_test.sh TRANSPORT

set -euo pipefail

# Three free ports, most likely.
port=$((20000 + RANDOM % 10000))

# expect TEXT...: each is a line's beginning in what was printed.
expect() {
  local text
  for text in "$@"; do
    if ! grep -q "^${text}" <<<"${output}"; then
      echo "no '${text}' in:" >&2
      echo "${output}" >&2
      exit 1
    fi
  done
}

output="$("$1" --quick --address="127.0.0.1:${port}")"
expect "Verified: " "## Round trips, on one machine" "| 0 B | [0-9]" "| 1 MiB | [0-9]" \
  "## Streams, on one machine" "| 4 KiB | [0-9]" "| 64 MiB | [0-9]"

"$1" --quick --serve="127.0.0.1:$((port + 3))" &
server=$!
output="$("$1" --quick --dial="127.0.0.1:$((port + 3))")"
wait "${server}"
expect "Verified: " "## Streams, to 127.0.0.1:"

if command -v iperf3 >/dev/null; then
  output="$("$1" --quick --iperf3 --address="127.0.0.1:$((port + 6))")"
  expect "## Beside iperf3, on one machine" "| 4 | [0-9]"
fi
