#!/bin/bash
# Draws what was measured, the same each time, and nothing of what was not.

set -euo pipefail

readonly PLOTS="${PWD}/benchmarks/pipeline_405b/plots.py"
for python in python3 /usr/bin/python3; do
  if "${python}" -c 'import matplotlib' 2>/dev/null; then
    break
  fi
  python=""
done
if [[ -z "${python}" ]]; then
  echo "skipped: no Python with matplotlib; on Debian: apt-get install python3-matplotlib"
  exit 0
fi

fail() {
  echo "$1" >&2
  exit 1
}

cd "${TEST_TMPDIR}"
mkdir -p made
export MPLCONFIGDIR="${TEST_TMPDIR}"
"${python}" - <<'PYTHON'
import json


def prefill(chunk, ttft_s):
    stages = [{"gpus": [f"local.gpu{index}"], "layers": 10, "prefill": {"each": [[index * ttft_s / 2, ttft_s / 2]]}}
              for index in range(2)]
    hop = {"sizes": [{"bytes": 2, "min_s": 0.001}]}
    return {"name": f"prefill_{chunk}", "group": "prefill", "forecast": {"max_chunk_tokens": chunk, "ttft_s": ttft_s},
            "measured": {"tpot_s": 0.05, "ttft_s": ttft_s, "max_chunk_tokens": chunk, "stages": stages,
                         "hops": [hop, hop], "max_in_flight": 2}}


json.dump({"runs": [prefill(8192, 10.0), prefill(512, 5.5)]}, open("made/runs.json", "w"))
PYTHON
"${python}" -B "${PLOTS}" made
grep -q 'tokens of a chunk' made/prefill.svg || fail "prefill.svg has no axis"
grep -q '>8,192<' made/prefill.svg || fail "prefill.svg does not show the chunk of 8,192 tokens"
[[ ! -e made/load.svg && ! -e made/tpot.svg ]] || fail "what was not measured was drawn"
cp made/prefill.svg first.svg
"${python}" -B "${PLOTS}" made
cmp first.svg made/prefill.svg || fail "two drawings of the same results differ"
"${python}" -B "${PLOTS}" missing 2>errors && fail "a missing folder was accepted"
grep -q 'missing/runs.json' errors || fail "$(cat errors)"
