#!/bin/bash
# The script in a packed folder, with the real command's forecasts, and in the place of GPUs a program that
# "measures" what was forecast.
#
#   pipeline_405b_test.sh PIPELINE_405B FABRICAST

set -uo pipefail
script="$(realpath "$1")" real="$(realpath "$2")"
failures=0

# expect STATUS REGEX COMMAND...
expect() {
  local wanted="$1" regex="$2" output status
  shift 2
  output="$("$@" 2>&1)"
  status=$?
  if [[ "${status}" != "${wanted}" ]] || ! grep -qE -- "${regex}" <<<"${output}"; then
    echo "FAILED: $*: wanted exit status ${wanted} and '${regex}', got ${status} and:"
    echo "${output}"
    failures=$((failures + 1))
  fi
}

cd "${TEST_TMPDIR}" || exit 1
mkdir -p packed/bundle/bin programs
install -m 755 "${script}" packed/pipeline_405b
cp "$(dirname "${script}")/random_checkpoint.py" packed/
echo abc1234 >packed/commit
cat >packed/config.json <<'JSON'
{"architectures": ["LlamaForCausalLM"], "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
 "num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
 "max_position_embeddings": 131072, "tie_word_embeddings": false, "torch_dtype": "float16",
 "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm"}}
JSON
cat >packed/bundle/bin/fabricast <<BASH
#!/bin/bash
[[ "\$1" != run ]] && exec "${real}" "\$@"
arguments=" \$* "
value() { sed -E "s/.* --\$1 (\\S+) .*/\\1/" <<<"\${arguments}"; }
[[ "\${NCCL_NVLS_ENABLE}" == 0 ]] || exit 9
case "\${arguments}" in
  *"--transport tcp"*) echo "fabricast: stage 1: no such peer" >&2; exit 1 ;;
  *concurrency=256*) echo "\$\$" >"${TEST_TMPDIR}/running"; sleep 30 ;;
esac
out="\$(value out)"
echo "[stage 0] fabricast: 108.54 GB of weights in 0.5 s" >&2
echo "host 0 NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM" >"\${NCCL_DEBUG_FILE/\\%p/\$\$}"
[[ "\${RANK:-0}" != 0 ]] && exit 0
[[ "\${RANK:-}\${NCCL_HOSTID:-}" == 0host0 || -z "\${RANK:-}" ]] || exit 9
from="\${out%.json}.forecast.json"
[[ -e "\${from}" ]] || from="\${out%/*}/hops_nccl.forecast.json"
cp "\${from}" "\${out}"
cp "\${from%.json}.trace.json" "\$(value trace)"
BASH
chmod +x packed/bundle/bin/fabricast
cat >programs/nvidia-smi <<'BASH'
#!/bin/bash
if [[ "$*" == *clocks.sm* ]]; then
  printf '0, 1980, 100\n0, 1500, 600\n0, 1700, 650\n1, 1980, 90\n'
  exec sleep 60
fi
echo "NVIDIA H200, 143771, 580.1, 700.00"
echo "NVIDIA H200, 143771, 580.1, 700.00"
BASH
chmod +x programs/nvidia-smi
export PATH="${TEST_TMPDIR}/programs:${PATH}"

# Two of 141 GB hold all; 3 of 96 GB do; 2 of 80 GB do not, and it says so.
expect 0 "2 x NVIDIA H200: 126 of 126 layers in 2 stages" packed/pipeline_405b --dry-run
expect 0 "NCCL_HOSTID=host1.* RANK=1 .*--token-file" packed/pipeline_405b --dry-run --only=hops
expect 0 "126 of 126 layers in 3 stages" \
  packed/pipeline_405b --dry-run --gpus="3xNVIDIA RTX PRO 6000 Blackwell Server Edition"
expect 0 "--tensor-parallel 2,1 --split 84,42" packed/pipeline_405b --dry-run --gpus="3xNVIDIA H200"
expect 0 "[0-9]+ of 126 layers IN 2 STAGES, NOT THE WHOLE" packed/pipeline_405b --dry-run --gpus="2xNVIDIA H100 80GB HBM3"
expect 1 "1 GPU here, and a pipeline needs two" packed/pipeline_405b --gpus="1xNVIDIA H200"
expect 1 "--gpus=many: write COUNTxNAME" packed/pipeline_405b --gpus=many
expect 1 "there are the groups one, load" packed/pipeline_405b --dry-run --only=nonsense

expect 0 "load_6x32: TPOT [0-9.]+ ms" packed/pipeline_405b --forecast --out=out
# One fails, one takes too long, the others are measured; the exit status says that not all were.
only="--only=one,load_2x32,load_8x32,hops_tcp,hops_hosts"
expect 1 "load_8x32 .*failed" packed/pipeline_405b --out=out "${only}" --timeout=5
expect 1 "one_1k .*as before" packed/pipeline_405b --out=out "${only}" --timeout=5
expect 0 "no time left of --limit" packed/pipeline_405b --out=out --only=prefill --limit=1

# Our own loader reads what it writes as a checkpoint, and none of the values makes a logit infinite.
python3 -B - <<'PYTHON' || failures=$((failures + 1))
import json, os, sys

sys.path.insert(0, "packed")
import random_checkpoint

config = json.load(open("packed/config.json"))
config.update(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=1, vocab_size=512)
size = random_checkpoint.write(config, "tiny")
# A layer: 256 x (256 + 128 + 128 + 256 + 512 + 512) + 512 x 256 = 589,824 weights of 4 + (4 + 16) / 128 bits, and two
# norms; embedding, lm_head and the last norm.
layer = 589_824 * (4 + 20 / 128) / 8 + 2 * 256 * 2
assert size == random_checkpoint.checkpoint_bytes(config) == 2 * layer + 2 * 512 * 256 * 2 + 256 * 2, size
assert sum(os.path.getsize(f"tiny/{name}") for name in os.listdir("tiny") if name.endswith(".safetensors")) > size
PYTHON
expect 0 "requests finished +2 of 2" "${real}" run --model tiny --stages 1 --workload closed:concurrency=1,requests=2,input=8,output=4

# It writes one where it needs one, and leaves nothing behind.
cp -r packed small
cp tiny/config.json small/config.json
mkdir -p scratch small_out
cp out/hops_nccl.forecast*.json small_out/
expect 0 "disk_dropped " small/pipeline_405b --out=small_out --only=disk --scratch=scratch
python3 - <<'PYTHON' || failures=$((failures + 1))
import json, os

for run in json.load(open("small_out/runs.json"))["runs"]:
    assert run["measured"]["exit"] == 0, run
    # Twice the layers of the one above.
    assert run["measured"]["checkpoint"]["bytes"] == 4 * 307_456 + 2 * 512 * 256 * 2 + 256 * 2, run
    assert "--model llama-3.1-405b-4-layers-random --stages 1" in run["measured"]["command"], run
    assert "synthetic" not in run["measured"]["command"], run
assert os.listdir("scratch") == [], os.listdir("scratch")
PYTHON

# When it is ended, what it has started ends too.
rm running
packed/pipeline_405b --out=out --only=load_8x32 >/dev/null 2>&1 &
while [[ ! -s running ]]; do sleep 0.1; done
kill "$!"
wait "$!"
if kill -0 "$(cat running)" 2>/dev/null; then
  echo "FAILED: the command still runs"
  failures=$((failures + 1))
fi

python3 - <<'PYTHON' || failures=$((failures + 1))
import json

runs = {run["name"]: run for run in json.load(open("out/runs.json"))["runs"]}
one = runs["one_1k"]
assert one["measured"]["exit"] == 0, one
assert one["measured"]["commit"] == "abc1234" and one["measured"]["driver"] == "580.1", one
assert one["measured"]["via"] == ["P2P/CUMEM"], one
assert one["measured"]["command"].startswith("NCCL_NVLS_ENABLE=0 fabricast run --topology local_gpu"), one
assert one["measured"]["log"] == ["[stage 0] 108.54 GB of weights in 0.5 s"], one
# Idle samples do not count: 100 is less than half of 650 W.
assert one["measured"]["clocks"][0] == {"sm_mhz": 1600, "power_w": 625, "most_power_w": 650}, one
assert one["measured"]["tpot_s"] == one["forecast"]["tpot_s"] > 0, one
# What was measured is what was forecast.
assert all(d["difference_p50_s"] == 0 for d in one["events"]["durations"]), one["events"]
# One request: the stages decode in turn, so that together they are busy all of the time but for messages.
assert 0.95 < sum(one["forecast"]["steady"]["busy"]) <= 1, one["forecast"]["steady"]

load = runs["load_2x32"]["measured"]
steady = load["steady"]
# 64 requests in two micro-batches, on two stages of which the one with lm_head is the slower.
assert steady["requests"] == 32 and steady["slowest"] == 1, steady
assert 0.97 < steady["busy"][1] <= 1.0001, steady
rate = 32 / steady["step"][1]["mean_s"]
assert abs(steady["tokens_per_s"] / rate - 1) < 0.03, (steady, rate)
# 32 tokens x 16,384 x 2 B.
assert 1048576 in [size["bytes"] for size in load["hops"][0]["sizes"]], load["hops"]

tcp = runs["hops_tcp"]["measured"]
assert tcp["exit"] == 1 and "no such peer" in tcp["failure"] and "forecast" not in runs["hops_tcp"], tcp
assert runs["hops_hosts"]["measured"]["exit"] == 0, runs["hops_hosts"]
assert runs["load_8x32"]["measured"]["exit"] == 124, runs["load_8x32"]
PYTHON

[[ "${failures}" == 0 ]]
