"""What a step costs beside its kernels, from a real serving run: vLLM 0.19, Llama 3.1 8B, one RTX PRO 6000.

The log has each request's first and last token's times and number of tokens. Requests whose first tokens came in the
same step count the same steps afterwards, so between the last tokens of two of them lie (difference of their output
tokens) steps. Where no prompt is processed in between, a step's measured time stands beside its kernels' modelled time.
"""

import collections
import dataclasses
import json

import numpy

import gemm
from attention import kv_bytes
from common import Row
from curves import Residuals

LAYERS, HIDDEN, VOCABULARY, KV_HEADS = 32, 4096, 128256, 8
LEAST_STEPS = 15
# Up to here decode attention splits every request over several blocks, so that requests of unequal length do not wait
# for the longest: 188 multiprocessors / 8 KV heads.
EVEN_REQUESTS = 188 // KV_HEADS


@dataclasses.dataclass
class Kernels:
    """The fitted constants that a step is modelled by."""

    peaks: "object"
    bf16: "object"
    decode: "object"
    elementwise_efficiency: float
    elementwise_overhead_us: float
    elementwise_bytes: float
    sampling_us: float

    def decode_step_us(self, requests, context):
        """`context`: of all requests together."""
        matrices = sum(
            float(self.bf16.time_us(requests, self.peaks.gemm_us("bf16", requests, k, n)))
            for k, n in gemm.LAYERS_8B.values()
        )
        size = kv_bytes(1, context, KV_HEADS)
        attention = float(self.decode.time_us(size, size / self.peaks.bytes_per_us))
        elementwise = 4 * self.elementwise_overhead_us + requests * self.elementwise_bytes / (
            self.peaks.bytes_per_us * self.elementwise_efficiency
        )
        lm_head = float(
            self.bf16.time_us(requests, self.peaks.gemm_us("bf16", requests, HIDDEN, VOCABULARY))
        )
        return LAYERS * (matrices + attention + elementwise) + lm_head + self.sampling_us


def windows(path):
    """(steps, microseconds a step, mean requests, mean context of all requests) of each usable pair."""
    with open(path) as file:
        log = [json.loads(line) for line in file]
    first, last, prompt, output = (
        numpy.array([entry[key] for entry in log], dtype=float)
        for key in ("first_token_ts", "last_token_ts", "input_toks", "output_toks")
    )
    start = first.min()
    first, last = first - start, last - start

    def running(time):
        now = (first <= time) & (last > time)
        share = (time - first[now]) / (last[now] - first[now])
        return now.sum(), (prompt[now] + share * output[now]).sum()

    together = collections.defaultdict(list)
    for i, time in enumerate(first):
        together[round(float(time), 6)].append(i)
    found = []
    for group in together.values():
        for a in group:
            for b in group:
                steps = output[b] - output[a]
                if (
                    steps < LEAST_STEPS
                    or ((first > last[a]) & (first < last[b])).any()
                    or last[a] < first.max()
                ):
                    continue
                times = numpy.linspace(last[a], last[b], 41)[1:-1]
                requests, context = numpy.mean([running(time) for time in times], axis=0)
                found.append((steps, (last[b] - last[a]) / steps * 1e6, requests, context))
    return sorted(found, key=lambda window: window[2])


def step_overhead(data, kernels):
    """(microseconds, rows): median of the windows in which decode attention is even."""
    found = windows(data / "vllm_logs/rtx_pro_6000_llama_3.1_8b_requests.jsonl")
    measured = numpy.array([step_us for _, step_us, _, _ in found])
    modelled = numpy.array(
        [kernels.decode_step_us(requests, context) for _, _, requests, context in found]
    )
    even = numpy.array([requests <= EVEN_REQUESTS for _, _, requests, _ in found])
    overhead_us = max(0.0, float(numpy.median((measured - modelled)[even])))
    rows = [
        Row(
            "step overhead",
            int(even.sum()),
            None,
            None,
            f"{overhead_us:.0f} us; windows of at most {EVEN_REQUESTS} requests",
        ),
        Row(
            "  steps of the serving run",
            len(found),
            None,
            Residuals.of(modelled + overhead_us, measured),
        ),
    ]
    for (steps, step_us, requests, _), model_us in zip(found, modelled):
        rows.append(
            Row(
                f"    {requests:.0f} requests",
                int(steps),
                None,
                None,
                f"measured {step_us / 1e3:.2f} ms, kernels {model_us / 1e3:.2f} ms",
            )
        )
    return overhead_us, rows
