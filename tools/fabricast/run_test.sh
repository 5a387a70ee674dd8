#!/bin/bash
# fabricast run as a user meets it: real text, saved results, and what goes wrong.
#
#   run_test.sh BINARY MODEL_FOLDER FIXTURES_FOLDER

set -uo pipefail
fabricast="$(realpath "$1")"
model="$(realpath "$2")"
fixtures="$(realpath "$3")"
short="closed:concurrency=2,requests=4,input=20,output=8"
# shellcheck source=tools/fabricast/expect.sh
source "$(dirname "$0")/expect.sh"

# same WANT COMMAND...: standard output is WANT.
same() {
  local want="$1" output
  shift
  output="$("${fabricast}" "$@" 2>/dev/null)" || fail "fabricast $*: exit status $?"
  [[ "${output}" == "${want}" ]] || fail "fabricast $*: '${output}', not '${want}'"
}

expect 0 "Example" run --help

# Text: the same for any number of stages and threads.
want=" up in the middle of the room, and thence he was seen."
for stages in 1 2 3; do
  for threads in 1 3; do
    same "${want}" run --model "${model}" --prompt "Captain Ahab stood" --max-output-tokens 15 --stages "${stages}" \
      --threads "${threads}"
  done
done
printf 'Captain Ahab stood' >prompt.txt
same "${want}" run --model "${model}" --prompt-file prompt.txt --max-output-tokens 15
same "${want}" run --model "${model}" --prompt-file - --max-output-tokens 15 <prompt.txt
same " up in the middle of the" run --model "${model}" --prompt "Captain Ahab stood" --stop " room"
# "the room" is two tokens.
same " up in the middle of" run --model "${model}" --prompt "Captain Ahab stood" --stop "e roo" --stop " the r"
first="$("${fabricast}" run --model "${model}" --prompt Once --temperature 1 --seed 3 2>/dev/null)"
same "${first}" run --model "${model}" --prompt Once --temperature 1 --seed 3 --stages 2
other="$("${fabricast}" run --model "${model}" --prompt Once --temperature 1 --seed 4 2>/dev/null)"
[[ "${first}" != "${other}" ]] || fail "another seed gives the same text"
expect 0 '"logprob":-[0-9.]+,"text":" up","top":\[\{.*\},\{.*\}\]' run --model "${model}" \
  --prompt "Captain Ahab stood" --max-output-tokens 2 --logprobs 2
expect 0 '"finish_reason": "length"' run --model "${model}" --prompt "Captain" --max-output-tokens 2 --format json
expect 0 "2 tokens in, 3 out \(length\); TTFT [0-9.]+ ms, TPOT [0-9.]+ ms" run --model "${model}" \
  --prompt "the" --max-output-tokens 3

# Every architecture and format.
for fixture in llama llama_tied qwen3 qwen3_moe llama_awq qwen3_awq qwen3_moe_awq; do
  expect 0 "requests finished +4 of 4" run --model "${fixtures}/${fixture}" --workload "${short}" --stages 2
done

# A measured run has the schema of a forecast.
expect 0 "Measured on .* hardware threads" run --model "${model}" --workload "${short}" --out measured.json \
  --trace trace.json
"${fabricast}" simulate local_cpu --model "${model}" --workload "${short}" --out simulated.json >/dev/null ||
  fail "simulate local_cpu"
fields() { grep -oE '^ "[a-z_0-9]+"' "$1" | sort; }
[[ "$(fields simulated.json)" == "$(fields measured.json)" ]] || fail "measured and simulated differ in fields"
grep -q '"kind": "MEASURED"' measured.json || fail "measured.json does not say that it was measured"
grep -q '"output_tokens": "32"' measured.json || fail "measured.json: 4 requests of 8 tokens are 32"
python3 -m json.tool trace.json >/dev/null || fail "the trace is no JSON"
grep -q "stage 2: local.cpu2" trace.json || fail "the trace has no third stage"
expect 0 "Answer: the forecast, local_cpu, of what local_cpu measured is mean TPOT [0-9.]+ m?s for [0-9.]+ m?s .*%" compare simulated.json measured.json
expect 0 "local_cpu measured \(2\) instead of local_cpu measured changes mean TPOT by .0.0000 %" compare measured.json \
  measured.json
expect 3 "holds" compare simulated.json measured.json --fail-if "ttft.p99 > 0ms"

# Forecast and run, event by event.
expect 0 "(All|The first) [0-9]+ micro-batches hold the same in both" compare simulated.json measured.json
expect 0 "stage 2 prefill +[0-9.]+ [mu]?s +[0-9.]+ [mu]?s +[-+][0-9.]+ %" compare simulated.json measured.json
expect 0 "What mean TTFT of 4 requests is made of" compare simulated.json measured.json
expect 0 "mean TPOT [-+][0-9.]+ [mu]s: [a-z ]+ [-+][0-9.]+ [mu]s, .*; most in (stage|hop|head)" compare simulated.json measured.json
expect 0 "All [0-9]+ micro-batches hold the same" compare measured.json measured.json
"${fabricast}" compare simulated.json measured.json --format json --events events.csv --trace both.json >events.json ||
  fail "compare --events --trace"
python3 - <<'PYTHON' || fail "the events of forecast and run"
import csv, json, math
with open("events.json") as file:
    comparison = json.load(file)
events = comparison["events"][0]
assert not events["not_lined_up"], events["not_lined_up"]
for attribution, metric in zip(events["attributions"], ("tpot", "ttft")):
    assert attribution["metric"] == metric + ".mean"
    for which, result in zip(("first_s", "second_s"), comparison["results"]):
        # Times are kept in nanoseconds.
        assert math.isclose(attribution[which], result[metric]["mean"], abs_tol=2e-9), (metric, which)
        assert math.isclose(attribution[which], sum(p[which] for p in attribution["parts"]), abs_tol=1e-9)
assert not any(result["event_log"] for result in comparison["results"])
with open("events.csv") as file:
    rows = list(csv.DictReader(file))
# 4 requests of 20 tokens in and 8 out, the last of which is never computed: each token once in both runs.
tokens = 0
for row in rows:
    if row["event"] != "step":
        continue
    for shared in row["tokens"].split():
        first, _, last = shared.split(":")[1].partition("-")
        tokens += int(last or first) - int(first) + 1
assert tokens == 4 * (20 + 7), tokens
assert {row["stage"] for row in rows if row["event"] == "compute"} == {"0", "1", "2"}
with open("both.json") as file:
    tracks = [e["args"]["name"] for e in json.load(file)["traceEvents"] if e["name"] == "thread_name"]
assert tracks[:2] == ["stage 0: local_cpu", "stage 0: local_cpu measured"], tracks
PYTHON
"${fabricast}" simulate local_cpu --model "${model}" --workload "${short}" --format=json >no_events.json
expect 0 "Not lined up: local_cpu has no events: write it with .fabricast simulate --out" compare no_events.json measured.json
expect 1 "local_cpu has no events: write it with" compare no_events.json measured.json --events x.csv
expect 1 "name two" compare simulated.json measured.json measured.json --trace x.json
expect 1 "nowhere/events.csv" compare simulated.json measured.json --events nowhere/events.csv
expect 1 "nowhere/both.json" compare simulated.json measured.json --trace nowhere/both.json
expect 1 "simulate --out. each topology first" compare local_cpu trinity_200g --model "${model}" --events x.csv
expect 1 "nowhere/x.json: No such file" simulate local_cpu --model "${model}" --out nowhere/x.json
sed 's/"event_log": "H4sI/"event_log": "AAAA/' measured.json >broken.json
expect 0 "Not lined up: local_cpu measured: the events are broken: they are not a gzipped" compare simulated.json broken.json
"${fabricast}" simulate trinity_200g --model llama-3.1-8b-instruct --workload "${short}" --format=json --stages 2 \
  >elsewhere.json || fail "simulate trinity_200g"
expect 0 "not the same model: local_cpu measured has prose_16m, trinity_200g has llama" compare measured.json elsewhere.json
expect 0 "not the same number of stages: local_cpu measured has 3, trinity_200g has 2" compare measured.json elsewhere.json
expect 0 "Not lined up: not the same model" compare measured.json elsewhere.json
expect 1 "not the same model" compare measured.json elsewhere.json --events x.csv
expect 1 "do not mix" compare simulated.json local_cpu
expect 1 "a second" compare measured.json
expect 1 "missing.json: No such file" compare measured.json missing.json
echo '{"schema": "other"}' >other.json
expect 1 'other.json: schema "other"' compare measured.json other.json
head -c 300 measured.json >cut.json
expect 1 "cut.json: not a result" compare measured.json cut.json
expect 1 "\-\-model is required" compare local_cpu trinity_200g

# Wrong input: one line that names it and says what to do.
expect 1 "either --prompt .* or --workload" run --model "${model}"
expect 1 "either --prompt .* or --workload" run --model "${model}" --prompt a --workload "${short}"
expect 1 "missing/config.json: no such file" run --model missing --prompt a
# Without a GPU, or without CUDA.
expect 1 "no NVIDIA|built without CUDA|of this machine is asked for" run --model "${model}" --prompt a \
  --topology trinity_200g --stages 3
expect 1 "synthetic is for GPUs" run --model "${model}" --workload "${short}" --weights synthetic
expect 1 "tensor parallelism 3 on processors|heads" run --model "${model}" --prompt a --tp 3
expect 1 "qwen3/tokenizer.json: no such file" run --model "${fixtures}/qwen3" --prompt a
expect 1 "no chat template" run --model "${model}" --prompt a --chat
expect 1 "prompt: .*byte 1: 0xff: not UTF-8" run --model "${model}" --prompt $'a\xff'
expect 1 "prompt: 1[0-9]{3} tokens, and the model's context of 1024" run --model "${model}" \
  --prompt "$(head -c 5000 "${model}/held_out.txt")"
expect 1 "does not fit the KV cache of 3 blocks x 16 = 48 tokens: " run --model "${model}" --prompt a --kv-blocks 3
expect 1 "longer than the model's context of 1024 tokens, such as number 1 with 2000 in" run --model "${model}" \
  --workload closed:concurrency=1,requests=2,input=2000,output=5
expect 1 "temperature is -1" run --model "${model}" --prompt a --temperature -1
expect 1 "top_p" run --model "${model}" --prompt a --top-p 1.5
expect 1 "max-output-tokens" run --model "${model}" --prompt a --max-output-tokens 0
expect 1 "missing.txt: cannot be read" run --model "${model}" --prompt-file missing.txt
expect 1 "nowhere/out.json: No such file" run --model "${model}" --prompt a --out nowhere/out.json
# An empty prompt is one token where the model adds its own, and an error where it does not.
expect 0 "1 tokens in, 4 out" run --model "${model}" --prompt "" --max-output-tokens 4
cp -rL "${model}" no_begin && chmod -R u+w no_begin
python3 - <<'PYTHON'
import json
with open("no_begin/tokenizer.json") as file:
    tokenizer = json.load(file)
tokenizer["post_processor"] = None
with open("no_begin/tokenizer.json", "w") as file:
    json.dump(tokenizer, file)
with open("no_begin/config.json") as file:
    config = json.load(file)
config["intermediate_size"] = 2048
with open("no_begin/other.json", "w") as file:
    json.dump(config, file)
config["architectures"] = ["MambaForCausalLM"]
with open("no_begin/mamba.json", "w") as file:
    json.dump(config, file)
config["architectures"] = ["LlamaForCausalLM"]
config["quantization_config"]["quant_method"] = "gptq"
with open("no_begin/gptq.json", "w") as file:
    json.dump(config, file)
PYTHON
expect 1 "prompt: it is empty" run --model no_begin --prompt ""
cp no_begin/other.json no_begin/config.json
expect 1 "model.safetensors: .*gate_proj.qweight: shape .384, 128., and the config.s .*2048 / 8" run --model no_begin --prompt a
cp no_begin/mamba.json no_begin/config.json
expect 1 "architectures: .*MambaForCausalLM" run --model no_begin --prompt a
cp no_begin/gptq.json no_begin/config.json
expect 1 "quant_method: .*gptq.*only awq" run --model no_begin --prompt a
cp "${model}/config.json" no_begin/config.json
head -c 100000 "${model}/model.safetensors" >no_begin/model.safetensors
expect 1 "no_begin/model.safetensors: " run --model no_begin --prompt a
rm no_begin/model.safetensors
expect 1 "no_begin" run --model no_begin --prompt a

# A full disk: the old result stays, the new one is shown instead of lost.
expect 1 '"schema": "fabricast.result.v1"' run --model "${model}" --prompt a --max-output-tokens 2 --out /dev/full
expect 1 "/dev/full: No space left on device; the result is on standard output" run --model "${model}" --prompt a \
  --max-output-tokens 2 --out /dev/full
# A trace that cannot be written does not take the result with it.
expect 1 "nowhere/trace.json" run --model "${model}" --prompt a --max-output-tokens 2 --trace nowhere/trace.json \
  --out traced.json
grep -q '"kind": "MEASURED"' traced.json || fail "a trace that could not be written took the result with it"
cp measured.json kept.json
limited="$( (trap '' XFSZ && ulimit -f 1 && "${fabricast}" run --model "${model}" --workload "${short}" \
  --out kept.json --format json 2>&1 | cat))"
# ThreadSanitizer writes larger files itself.
grep -qE "kept.json: File too large; the result is on standard output|ThreadSanitizer:DEADLYSIGNAL" <<<"${limited}" ||
  fail "ulimit -f: ${limited}"
cmp -s measured.json kept.json || fail "a result that could not be written harmed the old one"
[[ ! -e kept.json.partial ]] || fail "kept.json.partial was left behind"

# Ctrl-C: what has finished is reported, and the file says that it is partial.
"${fabricast}" run --model "${model}" --workload poisson:rate=4,requests=400,input=4,output=2 --out partial.json \
  >partial.txt 2>partial.err &
pid=$!
sleep 3
kill -INT "${pid}"
wait "${pid}"
status=$?
[[ ${status} -eq 130 ]] || fail "interrupted: exit status ${status}: $(cat partial.err)"
grep -qE "requests finished +[1-9][0-9]* of" partial.txt || fail "interrupted: no summary: $(cat partial.txt)"
grep -q '"partial": "interrupted"' partial.json || fail "partial.json does not say so"
expect 0 "partial.json: partial \(interrupted\)" compare partial.json measured.json
"${fabricast}" simulate local_cpu --model "${model}" --workload poisson:rate=4,requests=400,input=4,output=2 \
  --out whole.json >/dev/null || fail "simulate the interrupted run"
expect 0 "[0-9]+ of local_cpu share no token with the other run" compare whole.json partial.json
expect 0 "What mean TTFT of [1-9][0-9]? requests is made of" compare whole.json partial.json
"${fabricast}" run --model "${model}" --prompt Once --max-output-tokens 1000 --ignore-eos --threads 1 \
  --out prompt.json >prompt.out 2>prompt.err &
pid=$!
until [[ -s prompt.out ]]; do sleep 0.02; done
kill -INT "${pid}"
wait "${pid}"
status=$?
[[ ${status} -eq 130 || ${status} -eq 0 ]] || fail "interrupted prompt: exit status ${status}: $(cat prompt.err)"
[[ ${status} -eq 0 ]] || grep -q "out (interrupted)" prompt.err || fail "interrupted prompt: $(cat prompt.err)"

all_met
