#!/bin/bash
# The documents' tables are those of the results; and what tables.py does to results and documents made here.

set -euo pipefail

readonly TABLES="${PWD}/benchmarks/kernels/tables.py"
python3 -B "${TABLES}" --check

fail() {
  echo "$1" >&2
  exit 1
}

cd "${TEST_TMPDIR}"
mkdir -p docs benchmarks/results peers
cat >a.json <<'JSON'
{"environment": {"gpu": "H200", "date": "2026-11-25"}, "ceilings": {"copy_gb_s": 4000},
 "timings": [{"kernel": "int4_gemm_mma", "model": "llama-3.1-405b", "operation": "o", "tokens": "1",
              "bytes": 140000000, "single_us": 40, "graph_us": 35}]}
JSON
cat >b.json <<'JSON'
{"environment": {"gpu": "H200"}, "ceilings": {"copy_gb_s": 1, "read_gb_s": 4500},
 "timings": [{"kernel": "int4_gemm_mma", "model": "llama-3.1-405b", "operation": "o", "tokens": "1",
              "single_us": 99, "relative_error": 0.002},
             {"kernel": "cublaslt_bf16", "model": "llama-3.1-405b", "operation": "o", "tokens": "1",
              "bytes": 540000000, "operations": 540000000, "single_us": 150},
             {"kernel": "layer", "model": "llama-3.1-8b", "operation": "decode", "tokens": "1", "requests": "1",
              "context": "1024", "bytes": 120000000, "graph_us": 33}]}
JSON
printf 'projection,k,n,m,time_ms\no,16384,16384,1,0.05\n' >peers/marlin_int4_group128.csv

python3 -B "${TABLES}" --merge=benchmarks/results/made_kernels.json --peers=peers a.json b.json
python3 - <<'PYTHON' || fail "the first file's times win, the others add what it lacks"
import json
merged = json.load(open("benchmarks/results/made_kernels.json"))
assert merged["ceilings"] == {"copy_gb_s": 4000, "read_gb_s": 4500}, merged
product, bf16, layer = merged["timings"]
assert product["single_us"] == 40 and product["relative_error"] == 0.002, product
assert product["peer"] == "Marlin" and product["peer_us"] == 50, product
assert "peer" not in bf16, bf16  # Marlin's weights are INT4
assert layer["kernel"] == "layer", layer
PYTHON

cat >docs/kernels.md <<'MARKDOWN'
before
<!-- table: made_kernels int4_gemm -->
<!-- end -->
<!-- table: made_kernels dense -->
<!-- end -->
<!-- table: made_kernels layer -->
stale
<!-- end -->
after
MARKDOWN
python3 -B "${TABLES}" --check 2>/dev/null && fail "a stale table was not found"
python3 -B "${TABLES}"
python3 -B "${TABLES}" --check
# 140 MB in 40 us are 3,500 of 4,000 GB/s; 40 us are 0.8 of Marlin's 50.
grep -qF '| o | int4_gemm_mma | 1 | 40.0 | 35.0 | - | 88 % | 100 % | 0.80 |' docs/kernels.md || fail "$(cat docs/kernels.md)"
# 540 MB in 150 us are 3,600 of 4,000 GB/s.
grep -qF '| o | 1 | 150.0 | - | 90 % | 4 | - | - | - | - |' docs/kernels.md || fail "$(cat docs/kernels.md)"
# 120 MB at 4,000 GB/s take 30 us.
grep -qF '| 8B | decode | 1 | 1 | 1024 | 33.0 | - | 1.10 |' docs/kernels.md || fail "$(cat docs/kernels.md)"
grep -q stale docs/kernels.md && fail "the old table is still there"
[[ "$(tail -n 1 docs/kernels.md)" == after ]] || fail "what follows a table was lost"

sed -i 's/H200/H100/' b.json
python3 -B "${TABLES}" --merge=x.json a.json b.json 2>/dev/null && fail "results of two GPUs were merged"
echo '<!-- table: made_kernels nonsense -->' >docs/kernels.md
echo '<!-- end -->' >>docs/kernels.md
python3 -B "${TABLES}" --check 2>errors && fail "an unknown table was accepted"
grep -q 'there is no table nonsense' errors || fail "$(cat errors)"
