"""Attention of one layer: decode by bytes of KV cache read, prefill by operations."""

import numpy

import curves
from common import Row, curve_points, provenance, read_columns

HEAD_DIM = 128
# Two times the L2 cache (128 MB): below it, repeated runs of a lone kernel read the cache, which serving does not.
COLD_BYTES = 256e6


def kv_bytes(batch, context, kv_heads):
    return batch * context * kv_heads * HEAD_DIM * 2 * 2


def fit_rtx_decode(data, peaks):
    serving = read_columns(data / "rtx_pro_6000/vllm_0.19_llama_3.1_8b_bf16_tp1/attention.csv")
    decode = (serving["prefill_chunk"] == 0) & (serving["n_decode"] > 0)
    sizes = kv_bytes(serving["n_decode"], serving["kv_decode"], 8)[decode]
    times = serving["time_us"][decode]
    batch = serving["n_decode"][decode]
    context = serving["kv_decode"][decode]

    lone = read_columns(data / "rtx_pro_6000/attention_decode_bf16.csv")
    group = lone["num_heads"] / lone["num_key_value_heads"]
    lone_sizes = kv_bytes(lone["batch_size"], lone["step"] + 1, lone["num_key_value_heads"])
    cold = (group >= 4) & (group <= 16) & (lone_sizes >= COLD_BYTES)
    x = numpy.concatenate([sizes, lone_sizes[cold]])
    y = numpy.concatenate([times, lone["latency_ms"][cold] * 1e3])
    batch = numpy.concatenate([batch, lone["batch_size"][cold]])
    context = numpy.concatenate([context, lone["step"][cold] + 1])
    # Contexts shorter than a tile of the kernel cost as much as a tile: no serving of large models is about them.
    long = context >= 256
    out = numpy.arange(len(x)) % 5 == 2
    knots = [2.0**e for e in range(20, 34)]
    use = long & ~out
    roofline = x / peaks.bytes_per_us
    # The floor: kernels with next to nothing to read.
    overhead_us = float(numpy.median(y[(batch == 1) & (x <= 2**18)]))
    curve = curves.fit(x[use], roofline[use], y[use], knots, overhead_us)
    predicted = curve.time_us(x, roofline)
    fitted = curves.Residuals.of(predicted[use], y[use])
    held = long & out
    held_out = curves.Residuals.of(predicted[held], y[held])
    rows = [
        Row(
            "rtx decode attention",
            int(long.sum()),
            fitted,
            held_out,
            "contexts of 256 tokens and more",
        )
    ]
    for low, high in ((1, 2), (4, 16), (32, 64), (128, 2048)):
        part = long & (batch >= low) & (batch <= high)
        rows.append(
            Row(
                f"  {low} to {high} requests",
                int(part.sum()),
                None,
                curves.Residuals.of(predicted[part], y[part]),
            )
        )
    short = ~long & (context >= 64)
    rows.append(
        Row(
            "  contexts of 64 to 255",
            int(short.sum()),
            None,
            curves.Residuals.of(predicted[short], y[short]),
        )
    )
    source = provenance(
        "RTX PRO 6000 Blackwell Server Edition, vLLM 0.19 (whole layers) and kernels of vLLM 0.24 (lone)",
        "casys-kaist/LLMServingSim: rtx_pro_6000/vllm_0.19_llama_3.1_8b_bf16_tp1/attention.csv; ai-dynamo/aiconfigurator: "
        "rtx_pro_6000/attention_decode_bf16.csv",
        False,
        "KV cache cold: whole-layer profile at all sizes, lone kernels only above twice the L2 cache (they read up to 2.9 "
        "TB/s below it). 4 to 16 query heads a KV head, BF16, head size 128, contexts of 256 tokens and more.",
        held_out,
    )
    return (
        curve,
        (
            "decode_attention",
            [("overhead_us", curve.overhead_us)] + curve_points(curve) + [("provenance", source)],
        ),
        rows,
    )


def fit_rtx_prefill(data, peaks):
    columns = read_columns(data / "rtx_pro_6000/attention_prefill_bf16.csv")
    heads, batch, length = columns["num_heads"], columns["batch_size"], columns["isl"]
    group = heads / columns["num_key_value_heads"]
    lone = (group >= 4) & (group <= 16) & (heads >= 32) & (length >= 64)
    serving = read_columns(data / "rtx_pro_6000/vllm_0.19_llama_3.1_8b_bf16_tp1/attention.csv")
    chunk = (serving["n_decode"] == 0) & (serving["prefill_chunk"] >= 256)
    new, past = serving["prefill_chunk"][chunk], serving["kv_prefill"][chunk]
    # Operations of one request's chunk, and how many requests the kernel has.
    flops = numpy.concatenate(
        [
            4 * heads[lone] * HEAD_DIM * length[lone] * (length[lone] + 1) / 2,
            4 * 32 * HEAD_DIM * (new * past + new * (new + 1) / 2),
        ]
    )
    requests = numpy.concatenate([batch[lone], numpy.ones(len(new))])
    chunks = numpy.concatenate(
        [numpy.zeros(int(lone.sum()), dtype=bool), numpy.ones(len(new), dtype=bool)]
    )
    y = numpy.concatenate([columns["latency_ms"][lone] * 1e3, serving["time_us"][chunk]])
    # The floor: kernels with next to nothing to compute. Below 1e9 operations there is little else to see.
    overhead_us = float(numpy.median(y[flops * requests < 1e8]))
    some = flops * requests >= 1e9
    flops, requests, chunks, y = flops[some], requests[some], chunks[some], y[some]
    out = numpy.arange(len(y)) % 5 == 2
    roofline = flops * requests / peaks.flops_per_us
    knots = [2.0**e for e in range(24, 45, 2)]
    curve = curves.fit(flops[~out], roofline[~out], y[~out], knots, overhead_us)
    predicted = curve.time_us(flops, roofline)
    held_out = curves.Residuals.of(predicted[out], y[out])
    rows = [
        Row(
            "rtx prefill attention", len(y), curves.Residuals.of(predicted[~out], y[~out]), held_out
        )
    ]
    for label, part in (
        ("1e11 operations and more", out & (flops >= 1e11)),
        ("chunks after earlier ones", chunks),
    ):
        rows.append(
            Row(f"  {label}", int(part.sum()), None, curves.Residuals.of(predicted[part], y[part]))
        )
    whole = curve.time_us(flops * requests, roofline)
    rows.append(
        Row(
            "  if x were the whole kernel's",
            int(out.sum()),
            None,
            curves.Residuals.of(whole[out], y[out]),
        )
    )
    source = provenance(
        "RTX PRO 6000 Blackwell Server Edition, kernels of vLLM 0.24 and vLLM 0.19",
        "ai-dynamo/aiconfigurator: rtx_pro_6000/attention_prefill_bf16.csv; casys-kaist/LLMServingSim: "
        "rtx_pro_6000/vllm_0.19_llama_3.1_8b_bf16_tp1/attention.csv",
        False,
        "x is the operations of one request's chunk: several requests in a kernel add their times, each at its own "
        "efficiency. Causal, 32 query heads and more, 4 to 16 a KV head, prompts of 64 to 16,384 tokens; chunks of 256 "
        "tokens and more after up to 16,384 earlier ones.",
        held_out,
    )
    return (
        curve,
        (
            "prefill_attention",
            [("overhead_us", curve.overhead_us)] + curve_points(curve) + [("provenance", source)],
        ),
        rows,
    )
