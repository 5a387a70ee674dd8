#!/bin/bash
# The document's tables are those of the results; and what tables.py makes of results made here.

set -euo pipefail

readonly TABLES="${PWD}/benchmarks/pipeline_405b/tables.py"
python3 -B "${TABLES}" --check

fail() {
  echo "$1" >&2
  exit 1
}

cd "${TEST_TMPDIR}"
mkdir -p docs benchmarks/results/405b first second
python3 - <<'PYTHON'
import json

GPUS = ["local.gpu0", "local.gpu1"]
EMBEDDING = 2 * 128_256 * 16_384


def run(workload, **more):
    stages = [{"gpus": [gpu], "layers": 10, "prefill": {"steps": 0, "tokens": 0, "busy_s": 0, "each": []}, "decode": {},
               "busy_fraction": 0.5, "steady_busy_fraction": 0.98} for gpu in GPUS]
    # 20 GB of layers on each GPU, and the embedding and lm_head.
    memory = [{"gpu": gpu, "weight_bytes": str(20 * 10**9 + EMBEDDING), "activation_bytes": "1000000000",
               "reserve_bytes": "2000000000", "kv_cache_bytes": "30000000000", "capacity_bytes": "141000000000"}
              for gpu in GPUS]
    return {"command": "fabricast run", "date": "2026-11-25T08:00", "commit": "abc", "gpus": ["NVIDIA H200"] * 2,
            "driver": "580.1", "power_limit": "700 W", "nccl": "2.28.9", "via": ["P2P/CUMEM"], "exit": 0,
            "ceilings": {"copy_gb_s": [4000, 4000], "peer_gb_s": [300]}, "wall_s": 9.0, "log": [],
            "environment": ["stage 0 (local.gpu0): process on host at 127.0.0.1:1, NVIDIA H200; 24.20 GB of weights in 0.10 s (242.0 GB/s); memory planned"],
            "workload": workload, "ttft_s": 1, "tpot_s": 0.012, "itl_p50_s": 0.012, "itl_p99_s": 0.013,
            "max_in_flight": 2, "max_chunk_tokens": 512, "choices": [], "stages": stages, "memory": memory,
            "hops": [], "steady": None, **more}


def steady(requests, steps, busy, tokens_per_s):
    slowest = steps.index(max(steps))
    return {"requests": requests, "steps": 100, "window_s": 1, "tokens_per_s": tokens_per_s, "slowest": slowest,
            "busy": busy, "step": [{"count": 100, "mean_s": s, "p50_s": s, "max_s": s} for s in steps]}


def save(folder, *entries):
    runs = [{"name": name, "group": "x", **more} for name, more in entries]
    json.dump({"runs": runs}, open(f"{folder}/runs.json", "w"))


one = run("closed:concurrency=1,requests=1,input=1000,output=48", steady=steady(1, [0.006, 0.006], [0.5, 0.5], 83))
hop = {"from": 0, "to": 1, "route": "", "messages": 10, "bytes": 1, "transfer_s": 0.002, "exposed_s": 0.001,
       "exposed": {"count": 10, "p50_s": 8e-5},
       "sizes": [{"bytes": 1048576, "count": 10, "mean_s": 2e-4, "min_s": 5e-5, "p50_s": 1e-4, "max_s": 3e-4}]}
load = run("closed:concurrency=64,requests=64,input=16,output=40",
           steady=steady(32, [0.009, 0.01], [0.88, 0.99], 3168), itl_p50_s=0.02, hops=[hop, {**hop, "from": 1, "to": 0}])
alone = {**load, "clocks": [{"sm_mhz": 1500, "power_w": 690, "most_power_w": 700}]}
wire = [{**hop, "sizes": [{"bytes": 2, "count": 1, "min_s": 0.01, "p50_s": 0.1, "max_s": 0.1}]}] * 2
whole = run("closed:concurrency=1,requests=1,input=8192,output=2", ttft_s=2.02, max_chunk_tokens=8192, hops=wire)
chunked = run("closed:concurrency=1,requests=1,input=8192,output=2", ttft_s=1.81, max_chunk_tokens=4096, hops=wire)
# A chunk takes 0.5 s. The second stage begins 0.3 s late.
chunks = [[[0.1, 0.5], [0.6, 0.5]], [[0.9, 0.5], [1.4, 0.5]]]
for stage, each, one_step in zip(range(2), chunks, ([0, 1], [1.01, 1])):
    chunked["stages"][stage]["prefill"] = {"steps": 2, "tokens": 8192, "busy_s": 1, "each": each}
    whole["stages"][stage]["prefill"] = {"steps": 1, "tokens": 8192, "busy_s": 1, "each": [one_step]}
shared = run("closed:concurrency=32,requests=32,input=16,output=24", steady=steady(32, [0.0095], [1.0], 3000))
shared["stages"] = [{**shared["stages"][0], "gpus": GPUS, "layers": 20}]
save("first", ("one_1k", {"measured": {"exit": 1, "failure": "lost"}}),
     ("load_2x32", {"measured": load, "forecast": {"steady": {"tokens_per_s": 3484.8}}, "events": {}}))
events = {"durations": [{"what": "hop", "stage": 0, "phase": "", "lined_up": 9, "difference_p50_s": -1e-5,
                         "difference_p90_s": 2e-5, "forecast_p50_s": 5e-5, "measured_p50_s": 4e-5}]}
save("second", ("one_1k", {"measured": one, "events": events}),
     ("load_2x32", {"measured": {**load, "commit": "later"}}),
     ("prefill_8192", {"measured": whole}), ("prefill_4096", {"measured": chunked}),
     ("tensor_2x32", {"measured": shared}), ("hops_nccl", {"measured": load}), ("load_6x32", {"measured": alone}))
PYTHON
echo '{}' >first/load_2x32.json
echo later >second/load_2x32.json

python3 -B "${TABLES}" --merge=benchmarks/results/405b/made first second
grep -q '{}' benchmarks/results/405b/made/load_2x32.json || fail "the first measurement's file counts"
names=(environment memory one load prefill hops exposed sizes clocks split tensor loading events rules)
{
  echo before
  for name in "${names[@]}"; do
    printf '<!-- table: made %s -->\nstale\n<!-- end -->\n' "${name}"
  done
  echo after
} >docs/405b.md
python3 -B "${TABLES}" --check 2>/dev/null && fail "a stale table was not found"
python3 -B "${TABLES}"
python3 -B "${TABLES}" --check
holds() {
  grep -qF -- "$1" docs/405b.md || fail "no '$1' in
$(cat docs/405b.md)"
}

# 40 GB of layers, 4.203 GB of lm_head, and 4,096 B of keys and values for each of 20 layers and 1,024 tokens, at
# 4,000 GB/s: 11.07 ms; 12 ms are 1.084 of it.
holds '| 2 stages | 1,000 + 48 | 1,000 | - | 12.00 | 12.00 | 13.00 | 11.07 | 1.084 |'
# 3,168 tokens/s are 0.99 of 32 in 10 ms, and 10 % less than what was foretold.
holds '| 2 x 32 | 9.00 / 10.00 | 88.0 % / 99.0 % | 98.0 % | 3,168.0 | 0.990 | 3,484.8 | +10.0 % |'
# End to end: 0.5 s, 10 ms of wire, 2 x 0.5 s, and the 10 ms that the head took; unchunked 2.02. Ideal: (1 + 1/2) / 2.
# 10 layers of 6.375e9 operations a token and 2.2e12 of attention, in 1 s.
holds '| 4,096 | 1,810 | 1,520 | 0.752 | 0.750 | 544 / 544 |'
# 100 us of 20 ms.
holds '| NCCL as it chooses | P2P/CUMEM | 0 to 1 | 1,024 | 100 | 300 | 20.00 | 0.50 % |'
holds '| 2 x 32 | 1 to 0 (tokens back) | 10 | 0.0 | - | 100 | 0.500 % |'
holds '| 2 x 32 | 0 to 1 | 10 | 0.0 | 80 | 100 | 0.500 % |'
# 1 MiB in 50 us.
holds '| 1,024 KiB | hops_nccl | 10 | 50 | 100 | 300 | 21.0 |'
holds '| load_6x32 | 1,500 | 690 |'
# 19 ms on one GPU after the other, 9.5 on two.
holds '| 1 stage, TP 2 | 32 | 20 | 19.00 | 9.50 | 2.00 |'
holds '| synthetic | 2 stages, 10/10 layers | stage 0 | 24.20 | 0.10 | 242.0 | 9.0 |'
holds '| one_1k | hop 0 | 9 | 0.050 | 0.040 | -0.010 | 0.020 |'
holds '| local.gpu1 + lm_head | 10 | 24.2 | 1.0 | 2.0 | 30.0 | 141.0 |'
grep -q 'commit later' docs/405b.md && fail "of two measurements the first folder's counts"
grep -q stale docs/405b.md && fail "an old table is still there"
[[ "$(tail -n 1 docs/405b.md)" == after ]] || fail "what follows a table was lost"

printf '<!-- table: made nonsense -->\n<!-- end -->\n' >docs/405b.md
python3 -B "${TABLES}" --check 2>errors && fail "an unknown table was accepted"
grep -q 'there is no table nonsense' errors || fail "$(cat errors)"
