"""Norms, rotary embedding, activation, sampling, and what a step costs beside its kernels."""

import numpy

import curves
from common import Row, read_columns

PROFILE = "rtx_pro_6000/vllm_0.19_llama_3.1_8b_bf16_tp1"

# Bytes a token of the operators of a Llama 3.1 8B layer, BF16: norms read and write the activations and the residual,
# rotary embedding reads and writes queries and keys, SwiGLU reads two vectors and writes one.
BYTES_PER_TOKEN = {
    "layernorm": 4 * 4096 * 2,
    "rotary_emb": 2 * (32 + 8) * 128 * 2,
    "act_fn": 3 * 14336 * 2,
}

LAYER_BYTES = (
    2 * BYTES_PER_TOKEN["layernorm"] + BYTES_PER_TOKEN["rotary_emb"] + BYTES_PER_TOKEN["act_fn"]
)


def fit_rtx(data, peaks):
    dense = read_columns(data / PROFILE / "dense.csv")
    tokens, moved, time_us = [], [], []
    for layer, size in BYTES_PER_TOKEN.items():
        part = dense["layer"] == layer
        tokens.append(dense["tokens"][part])
        moved.append(dense["tokens"][part] * size)
        time_us.append(dense["time_us"][part])
    tokens, moved, time_us = (numpy.concatenate(a) for a in (tokens, moved, time_us))
    overhead_us = float(numpy.median(time_us[tokens <= 8]))
    large = tokens >= 1024
    # Seconds and bytes summed over the large sizes: what a long chunk spends, whichever operator spends it.
    efficiency = float(
        (moved[large] / peaks.bytes_per_us).sum() / (time_us[large] - overhead_us).sum()
    )
    predicted = overhead_us + moved / (peaks.bytes_per_us * efficiency)
    rows = [Row("rtx elementwise", len(moved), curves.Residuals.of(predicted, time_us))]
    for low, high in ((1, 16), (17, 512), (513, 2048)):
        part = (tokens >= low) & (tokens <= high)
        rows.append(
            Row(
                f"  {low} to {high} tokens",
                int(part.sum()),
                curves.Residuals.of(predicted[part], time_us[part]),
            )
        )

    sequence = read_columns(data / PROFILE / "per_sequence.csv")
    sampler = (sequence["layer"] == "sampler") & (sequence["sequences"] <= 64)
    sampling_us = float(numpy.median(sequence["time_us"][sampler]))
    rows.append(
        Row(
            "rtx sampling",
            int(sampler.sum()),
            curves.Residuals.of(
                numpy.full(sampler.sum(), sampling_us), sequence["time_us"][sampler]
            ),
        )
    )
    return efficiency, overhead_us, sampling_us, rows
