#!/bin/bash
# The benchmarks still run, check what they time and print their sections. Speed is not tested.
#
#   engine_test.sh ENGINE_OVERHEAD PIPELINE CPU_CONSTANTS PROCESS_OVERHEAD

set -euo pipefail

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

output="$("$1" --quick)"
expect "## Floor" "## One stage$" "## One stage, with text" "## Three stages$" "## Bar"
# Running requests and tokens a step follow from the settings.
expect "| 64 | 64.0 | " "| 64 | 21.3 | "

output="$("$2" --quick)"
expect "Verified: 5 prompts, 4 greedy tokens each, the same on all settings." "## Decode" "## Prefill"
[[ "$(grep -c '^| [123] | [12] | [13] | ' <<<"${output}")" -eq 12 ]]

output="$("$3" --quick --repeats=1)"
expect "memory_bandwidth_gb_s: [0-9]" "bf16_tflops: [0-9]" "step_overhead_us: [0-9]" \
  '  weight_format: "int4"' "decode_attention {" "prefill_attention {" "  max_gb_s: [0-9]" "| int4, 1 x 400 tokens"

output="$("$4" --quick --workload=closed:concurrency=4,requests=40,input=30,output=5)"
expect "## A step" "### Bar" "| 3 | 3 | 64 | " "## A trace" ".*Finished 40, failed 0, rejected 0, lost 0."
