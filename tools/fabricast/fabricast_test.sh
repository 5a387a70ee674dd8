#!/bin/bash
# The command as a user meets it: exit statuses, messages, the same bytes twice, help with an example everywhere.
#
#   fabricast_test.sh BINARY

set -uo pipefail
fabricast="$(realpath "$1")"
model=llama-3.1-405b-instruct-awq-int4
short="closed:concurrency=2,requests=4,input=100,output=8"
# shellcheck source=tools/fabricast/expect.sh
source "$(dirname "$0")/expect.sh"

for command in "" compare simulate plan collective topology "topology validate" "topology show" "topology route" \
  models workloads; do
  # shellcheck disable=SC2086
  expect 0 "fabricast ${command}|Usage" ${command} --help
  # shellcheck disable=SC2086
  [[ -z "${command}" || "${command}" == topology ]] || expect 0 "Example" ${command} --help
done

# What the issue of the tool is.
expect 0 "TTFT p99" compare trinity_200g trinity_400g --model "${model}" --workload "${short}"
expect 0 "Break-even on trinity_200g" compare trinity_200g trinity_400g --model "${model}" --workload "${short}"
expect 0 "bound by weight reading on stage" compare trinity_200g trinity_400g --model "${model}" --workload "${short}"
expect 0 "How sure: with kernel times" compare trinity_200g trinity_400g --model "${model}" --workload "${short}"
expect 0 "rate_gbps=200 .*rate_gbps=800" compare trinity_400g --set "node_*.nic0.rate_gbps=200,400,800" \
  --model "${model}" --workload "${short}" --no-break-even --no-intervals
expect 0 "p2p_net_chunk_bytes=524288" compare --model "${model}" --workload "${short}" --no-break-even --no-intervals \
  --set "communication.p2p_net_chunk_bytes=131072,524288" --fail-if "ttft.p99 > 600s" trinity_400g
expect 0 "Answer: trinity_400g instead of trinity_200g .* less than 1 % either way" compare trinity_200g trinity_400g \
  --model "${model}" --workload "${short}" --no-break-even
expect 0 "trinity_200g \(2\)" compare trinity_200g trinity_200g --model "${model}" --workload "${short}" \
  --no-break-even --no-intervals
expect 0 "tokens back" simulate trinity_200g --model "${model}" --workload "${short}"
expect 0 "layers 42/42/42" plan trinity_200g --model "${model}"
expect 0 "layers 43/42/41" plan trinity_200g --model "${model}" --split 43,42,41
expect 0 "prefill +node_b.gpu0 sets the pace.*--split" plan trinity_200g --model "${model}"
expect 0 "layers 84/42, tensor parallel over 2/1" plan h200_x4 --model "${model}" --tensor-parallel 2,1 --split 84,42
expect 0 "layers 63/63$" plan h200_x2 --model "${model}"
expect 0 "Chosen: split [0-9,]+ by the roofline for decodes" plan h200_x4 --model "${model}" --stages 3 --split auto
expect 0 "Chosen: split [0-9,]+ by the roofline for 512 tokens in, 128 out, 8 requests" plan h200_x4 --stages 3 \
  --model "${model}" --split auto --workload chat-closed-8
expect 0 "Chosen: 3 micro-batches in flight over 3 stages" plan h200_x4 --model "${model}" --stages 3 --max-in-flight auto
expect 0 "Chosen: prefill chunks of [0-9]+ tokens.*8192 tokens alone take .* 0.[34][0-9] x" plan h200_x4 --stages 3 \
  --model "${model}" --chunk-tokens auto --workload closed:concurrency=1,requests=1,input=8192,output=1
expect 0 "Chosen: prefill chunks of" simulate trinity_200g --model "${model}" --workload "${short}" --chunk-tokens auto
expect 0 "algbw +busbw" collective trinity_200g
expect 0 "sound: 3 GPUs" topology validate trinity_200g
expect 0 "node_b.gpu0" topology show trinity_200g
expect 0 "Path MTU: 1024" topology route trinity_200g node_a.gpu1 node_b.gpu0
expect 0 "GPUDirect RDMA: on" topology route trinity_200g node_a.gpu1 node_b.gpu0
expect 0 "${model}" models
expect 0 "chat-closed-8" workloads

# Guards.
expect 3 "tpot.p50 > -1%' holds" compare trinity_200g trinity_400g --model "${model}" --workload "${short}" \
  --no-break-even --no-intervals --fail-if "tpot.p50 > -1%"
expect 0 "TPOT" compare trinity_200g trinity_400g --model "${model}" --workload "${short}" \
  --no-break-even --no-intervals --fail-if "tpot.p50 > +1%" --fail-if "ttft.p99 > 600s"
expect 3 "ttft.p99 > 1ms' holds" simulate trinity_200g --model "${model}" --workload "${short}" --fail-if "ttft.p99 > 1ms"
expect 1 "against a baseline" simulate trinity_200g --model "${model}" --workload "${short}" --fail-if "tpot.p50 > +1%"
expect 1 "no metric is called" simulate trinity_200g --model "${model}" --workload "${short}" --fail-if "latency > 1"

# Wrong input: one line that says what to do.
expect 2 "required" simulate trinity_200g
expect 2 "subcommand" nonsense
expect 1 "trinity_200g" simulate trinity_20g --model "${model}"
expect 1 "${model}" simulate trinity_200g --model llama-3.1-405b-instruct-awq-int5
expect 1 "chat-closed-8" simulate trinity_200g --model "${model}" --workload chat-closed-9
expect 1 "128 heads" plan trinity_200g --model "${model}" --tp 3
expect 1 "GB short" plan trinity_200g --model llama-3.1-405b-instruct
expect 1 "The nearest that fits: --split" plan trinity_200g --model "${model}" --split 60,40,26
expect 1 "must be from 0 to" plan trinity_200g --model "${model}" --reserve-gb=-5
expect 1 "a collective needs two" collective trinity_200g --gpus=-1
expect 1 "sizes must grow" collective trinity_200g --factor 1
expect 1 "give one number a stage" plan h200_x4 --model "${model}" --tp 2,1 --stages 3
expect 1 "give a whole number or auto" plan h200_x4 --model "${model}" --max-in-flight many
expect 1 "give a whole number or auto" plan h200_x4 --model "${model}" --chunk-tokens 1k
expect 1 "only --split auto" plan h200_x4 --model "${model}" --stage-times measured.json
expect 1 "no-such.json" plan h200_x4 --model "${model}" --split auto --stage-times no-such.json
expect 1 "adds up to 125" plan trinity_200g --model "${model}" --split 42,42,41
expect 1 "nothing to compare" compare trinity_200g --model "${model}"
expect 1 "compare. sets them side by side" simulate trinity_200g --set "node_*.nic0.rate_gbps=200,400" --model "${model}"
expect 1 "node_a.gpu1" topology route trinity_200g node_a.gpu0 node_a.gpu7
expect 1 "rate_gbps" topology show trinity_200g --set "node_a.nic0.rate_gbps=fast"
expect 1 "/no/such/folder" simulate trinity_200g --model "${model}" --workload "${short}" --trace /no/such/folder/x.json
printf '\0\1\2' >noise.txtpb
expect 1 "noise.txtpb" topology validate ./noise.txtpb
: >empty.txtpb
expect 1 "empty.txtpb" topology validate ./empty.txtpb

# The same inputs and seed give the same bytes, and they are JSON under the schema.
json() {
  "${fabricast}" compare trinity_200g trinity_400g --model "${model}" --no-break-even --format=json \
    --workload "poisson:rate=0.2,requests=20,input=uniform(10;900),output=uniform(1;50)" --seed 7
}
json >first.json || fail "compare --format=json: exit status $?"
json >second.json
cmp -s first.json second.json || fail "two runs with one seed differ"
grep -q '"schema": "fabricast.comparison.v1"' first.json || fail "no schema in the JSON"
grep -q '"exposed_s"' first.json || fail "fields at 0 are left out of the JSON"

# A run's stages, simulated here, even out the next plan.
"${fabricast}" simulate h200_x4 --stages 3 --model "${model}" --workload "${short}" --format=json >busy.json ||
  fail "simulate --format=json: exit status $?"
expect 0 "Chosen: split [0-9,]+ by measured times" plan h200_x4 --stages 3 --model "${model}" --split auto \
  --stage-times busy.json --workload "${short}"
expect 1 "the measured run has 3 stages, the plan 4" plan h200_x4 --model "${model}" --split auto --stage-times busy.json

# Two forecasts, event by event: a slower network shows in its hop, and nowhere else.
for rate in 200 25; do
  "${fabricast}" simulate trinity_200g --model "${model}" --set "node_*.nic0.rate_gbps=${rate}" \
    --workload closed:concurrency=1,requests=2,input=100,output=20 --out "at_${rate}.json" >/dev/null ||
    fail "simulate --out at ${rate} Gbps"
done
expect 0 "All 40 micro-batches hold the same in both" compare at_200.json at_25.json
expect 0 "mean TPOT \+([0-9.]+) us: hop \+\1 us; most in hop 1 to 2" compare at_200.json at_25.json
expect 0 "trinity_200g -> trinity_200g node_\*.nic0.rate_gbps=25, event by event" compare at_200.json at_25.json

# A timeline for each of the two.
"${fabricast}" compare trinity_200g trinity_400g --model "${model}" --workload "${short}" --no-break-even \
  --no-intervals --trace run.json >/dev/null || fail "compare --trace"
for label in trinity_200g trinity_400g; do
  grep -q '"traceEvents"' "run.${label}.json" || fail "no timeline in run.${label}.json"
done

all_met
