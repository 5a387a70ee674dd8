"""The H200's kernels: this project's own, as benchmarks/results/h200_kernels.json has them.

All under continuous load, which is what a busy stage's GPU does: a lone launch runs at clocks that the power limit
takes away from 16 tokens on.
"""

import dataclasses
import json

import numpy
from scipy import optimize

import curves
from attention import HEAD_DIM, kv_bytes
from common import Row, curve_points, provenance
from gemm import gemm_message, ridge

RESULTS = "benchmarks/results/h200_kernels.json"
PAIR_SUMS = "benchmarks/results/h200_pair_sums.csv"
STAGE_RUN = "benchmarks/results/h200_405b_stage/requests_1.json"

PRODUCTS = ("qkv", "o", "gate_up", "down")


@dataclasses.dataclass
class Shape:
    hidden: int
    ffn: int
    heads: int

    def elementwise_bytes(self):
        """A token's, as the forecast counts them (runtime/model): two norms, rotary embedding, SwiGLU, 2 B each."""
        norm, rope = 4 * self.hidden, 2 * (self.heads + KV_HEADS) * HEAD_DIM
        return 2 * (2 * norm + rope + 3 * self.ffn)


KV_HEADS = 8
ELEMENTWISE_KERNELS = 4  # that the forecast counts a layer
MODELS = {
    "llama-3.1-405b": Shape(16384, 53248, 128),
    "llama-3.1-70b": Shape(8192, 28672, 64),
    "llama-3.1-8b": Shape(4096, 14336, 32),
}
LARGE = "llama-3.1-405b"  # what the curves go through; the others are held out
VOCABULARY = 128256

# Tokens up to which int4_gemm_mma runs, int4_gemm_wgmma beyond (kernels/int4/int4_choice.h).
MMA_TOKENS = 16
# Both compute whole tiles of tokens, int4_gemm_mma of 8 and 16, int4_gemm_wgmma of 32, 48 and 64, then of 96 or 128 (its
# Launch()): these take what another number with the same tiles was measured to take. Within a tile times grow by 4 % at
# most.
SAME_TILES = {9: 16, 96: 65, 192: 129, 288: 257, 384: 289, 640: 577}

class Measured:
    """The timings of the file."""

    def __init__(self, path):
        content = json.loads(path.read_text())
        self.environment = content["environment"]
        self.timings = content["timings"]

    def of(self, **fields):
        return [t for t in self.timings if all(t.get(f) == v for f, v in fields.items())]

    def load_us(self, **fields):
        """Of the one timing with these fields."""
        (timing,) = self.of(**fields)
        return timing["sustained_us"]

    def int4(self, model, tokens, kernel=None):
        """The four products of a layer, by the kernel that runs for so many tokens: those measured."""
        kernel = kernel or ("int4_gemm_mma" if tokens <= MMA_TOKENS else "int4_gemm_wgmma")
        found = self.of(kernel=kernel, model=model, tokens=tokens)
        return [t for t in found if t["operation"] in PRODUCTS]

    def tokens(self, model, kernel=None):
        """Numbers of tokens at which all four products of a layer were measured."""
        every = {t["tokens"] for t in self.timings if t["kernel"].startswith("int4_gemm")}
        return sorted(m for m in every if len(self.int4(model, m, kernel)) == len(PRODUCTS))

    def source(self):
        e = self.environment
        return f"{e['gpu']} (SXM, {e['power_limit_watts']:.0f} W), driver {e['driver']}, CUDA {e['cuda']}"


def full_tiles(measured):
    """int4_gemm_mma's large products at numbers of tokens that fill its tiles."""
    found = measured.of(kernel="int4_gemm_mma", model=LARGE)
    return [t for t in found if t["operation"] in ("gate_up", "down") and t["tokens"] in (8, 16, 32, 64)]


def products_roofline(peaks, weight_format, timings):
    tokens, inputs, outputs = (
        numpy.array([t[field] for t in timings], dtype=float)
        for field in ("tokens", "inputs", "outputs")
    )
    return peaks.gemm_us(weight_format, tokens, inputs, outputs)


def loads(timings):
    return numpy.array([t["sustained_us"] for t in timings])


def launch_overhead(peaks, weight_format, timings):
    """What a product of few tokens takes beyond its bytes at one rate: of all shapes, whose bytes differ 200-fold."""
    few = [t for t in timings if t["tokens"] <= 8]
    tokens = numpy.array([t["tokens"] for t in few], dtype=float)
    knots = sorted(set(tokens))
    return curves.fit(tokens, products_roofline(peaks, weight_format, few), loads(few), knots).overhead_us


def residuals(curve, peaks, weight_format, timings):
    tokens = numpy.array([t["tokens"] for t in timings], dtype=float)
    predicted = curve.time_us(tokens, products_roofline(peaks, weight_format, timings))
    return curves.Residuals.of(predicted, loads(timings))


def fit_int4(measured, peaks):
    """(curve, message, rows): through the time of the 405B's four products together, which is what a stage takes."""
    by_model = {
        model: [t for tokens in measured.tokens(model) for t in measured.int4(model, tokens)]
        for model in MODELS
    }
    overhead_us = launch_overhead(peaks, "int4", sum(by_model.values(), []))

    def layer(tokens):
        """(roofline, time) of a layer's products."""
        timings = measured.int4(LARGE, tokens)
        return float(products_roofline(peaks, "int4", timings).sum()), float(loads(timings).sum())

    times = {tokens: layer(tokens) for tokens in measured.tokens(LARGE)}
    weights = sum(t["inputs"] * t["outputs"] for t in measured.int4(LARGE, 1))

    def add(tokens, time_us):
        times[tokens] = (float(peaks.gemm_us("int4", tokens, weights, 1)), time_us)

    for tokens, same in SAME_TILES.items():
        add(tokens, times[same][1])
    # Efficiency against max(reads, operations) dips where the two are equal; the time does not.
    dip = round(ridge("int4", peaks))
    known = sorted(times)
    add(dip, float(numpy.interp(dip, known, [times[tokens][1] for tokens in known])))
    knots = sorted(times)
    curve = curves.Curve(
        overhead_us,
        numpy.array(knots, dtype=float),
        numpy.array(
            [times[m][0] / (times[m][1] - len(PRODUCTS) * overhead_us) for m in knots]
        ),
    )

    held_out = residuals(curve, peaks, "int4", by_model["llama-3.1-70b"])
    rows = [
        Row(
            "h200 gemm int4",
            len(by_model[LARGE]),
            residuals(curve, peaks, "int4", by_model[LARGE]),
            held_out,
            "405B's products; held out: 70B's",
        )
    ]
    for model in ("llama-3.1-70b", "llama-3.1-8b"):
        for low, high in ((1, 16), (17, 256), (257, 8192)):
            part = [t for t in by_model[model] if low <= t["tokens"] <= high]
            rows.append(
                Row(
                    f"  {model[10:].upper()}, {low} to {high} tokens",
                    len(part),
                    None,
                    residuals(curve, peaks, "int4", part),
                )
            )
    source = provenance(
        measured.source() + ", this project's int4_gemm_mma to 16 tokens and int4_gemm_wgmma beyond",
        RESULTS,
        True,
        "Under continuous load, in a stream with dependent launches. The curve goes through the time of the four "
        "products of a Llama 3.1 405B layer together, over the numbers of tokens measured; the overhead from 12 "
        "shapes at 1 to 8 tokens. Residuals: the 70B's products. Those of less than 2^26 weights take longer than "
        f"this from 17 to 256 tokens. The point at {dip} tokens, where reads and operations are equal, lies between "
        "its neighbours in time.",
        held_out,
    )
    return curve, gemm_message("int4", curve, source), rows


def fit_bf16(measured, peaks):
    """(curve, message, rows): cuBLASLt's products of all shapes; the head's have few tokens."""
    timings = measured.of(kernel="cublaslt_bf16")
    overhead_us = launch_overhead(peaks, "bf16", timings)
    tokens = numpy.array([t["tokens"] for t in timings], dtype=float)
    roofline, time_us = products_roofline(peaks, "bf16", timings), loads(timings)
    knots = sorted(set(tokens))
    out = numpy.array([t["model"] == "llama-3.1-70b" for t in timings])
    held = curves.fit(tokens[~out], roofline[~out], time_us[~out], knots, overhead_us)
    curve = curves.fit(tokens, roofline, time_us, knots, overhead_us)
    held_out = curves.Residuals.of(held.time_us(tokens[out], roofline[out]), time_us[out])
    rows = [
        Row(
            "h200 gemm bf16",
            len(timings),
            curves.Residuals.of(curve.time_us(tokens, roofline), time_us),
            held_out,
            "held out: 70B's",
        )
    ]
    for low, high in ((1, 16), (17, 256), (257, 8192)):
        part = out & (tokens >= low) & (tokens <= high)
        rows.append(
            Row(
                f"  {low} to {high} tokens",
                int(part.sum()),
                None,
                curves.Residuals.of(held.time_us(tokens[part], roofline[part]), time_us[part]),
            )
        )
    source = provenance(
        f"{measured.source()}, cuBLASLt {measured.environment['cublaslt']}",
        RESULTS,
        True,
        "Under continuous load; the products of Llama 3.1 405B, 70B and 8B, and their heads up to 256 tokens. "
        "Residuals: the 70B's, left out of a fit.",
        held_out,
    )
    return curve, gemm_message("bf16", curve, source), rows


def attention_message(name, curve, source):
    return (name, [("overhead_us", curve.overhead_us)] + curve_points(curve) + [("provenance", source)])


def fit_decode(measured, peaks):
    timings = measured.of(kernel="decode_attention")
    requests, context = (
        numpy.array([t[field] for t in timings], dtype=float) for field in ("requests", "context")
    )
    time_us = loads(timings)
    x = kv_bytes(requests, context, KV_HEADS)
    # Next to nothing to read.
    overhead_us = float(numpy.median(time_us[(requests == 1) & (context == 1)]))
    long = context >= 256
    out = numpy.array([t["model"] == "llama-3.1-70b" for t in timings])
    knots = [2.0**e for e in range(22, 36)]
    use = long & ~out
    curve = curves.fit(x[use], x[use] / peaks.bytes_per_us, time_us[use], knots, overhead_us)
    predicted = curve.time_us(x, x / peaks.bytes_per_us)
    held = long & out
    held_out = curves.Residuals.of(predicted[held], time_us[held])
    short = ~long & (requests > 1)
    rows = [
        Row(
            "h200 decode attention",
            int(use.sum()),
            curves.Residuals.of(predicted[use], time_us[use]),
            held_out,
            "held out: 70B's",
        ),
        Row(
            "  contexts of one token",
            int(short.sum()),
            None,
            curves.Residuals.of(predicted[short], time_us[short]),
            f"measured {time_us[short].min():.0f} to {time_us[short].max():.0f} us",
        ),
    ]
    source = provenance(
        measured.source() + ", this project's decode_attention",
        RESULTS,
        True,
        "Under continuous load, KV cache cold, paged; 1 to 256 requests of equal context, 1,024 to 32,768 tokens; 128, 64 "
        "and 32 query heads over 8 KV heads, head size 128, BF16. Residuals: 64 heads, left out.",
        held_out,
    )
    return curve, attention_message("decode_attention", curve, source), rows


def fit_prefill(measured, peaks):
    timings = measured.of(kernel="prefill_attention")
    heads = numpy.array([MODELS[t["model"]].heads for t in timings], dtype=float)
    # The benchmarks' contexts hold the chunk's own tokens.
    new = numpy.array([t["tokens"] for t in timings], dtype=float)
    past = numpy.array([t["context"] for t in timings], dtype=float) - new
    x = 4 * heads * HEAD_DIM * (new * past + new * (new + 1) / 2)
    time_us, roofline = loads(timings), x / peaks.flops_per_us
    # Tiles of 128 queries of one KV head: fewer than about one a multiprocessor leave some idle for the whole context.
    full = heads * new >= 128 * 128
    out = numpy.array([t["model"] == "llama-3.1-70b" for t in timings])
    use = full & ~out
    knots = [2.0**e for e in range(29, 45, 2)]
    curve = curves.fit(x[use], roofline[use], time_us[use], knots)
    predicted = curve.time_us(x, roofline)
    held = full & out
    held_out = curves.Residuals.of(predicted[held], time_us[held])
    rows = [
        Row(
            "h200 prefill attention",
            int(use.sum()),
            curves.Residuals.of(predicted[use], time_us[use]),
            held_out,
            "held out: 70B's",
        ),
        Row(
            "  chunks after earlier ones",
            int((full & (past > 0)).sum()),
            None,
            curves.Residuals.of(predicted[full & (past > 0)], time_us[full & (past > 0)]),
        ),
        Row(
            "  heads x tokens below 2^14",
            int((~full).sum()),
            None,
            curves.Residuals.of(predicted[~full], time_us[~full]),
            "not in the fit: the GPU is not full",
        ),
    ]
    source = provenance(
        measured.source() + ", this project's prefill_attention (wgmma)",
        RESULTS,
        True,
        "Under continuous load; one request's chunk, 128 to 8,192 tokens after up to 32,768, head size 128, BF16, paged. "
        "heads x tokens of a chunk 2^14 and more: fewer do not fill the GPU, and after a long context take up to three "
        "times as long as this says. Residuals: 64 heads, left out.",
        held_out,
    )
    return curve, attention_message("prefill_attention", curve, source), rows


class Kernels:
    """The fitted curves: a layer, and a step."""

    def __init__(self, peaks, int4, bf16, decode, prefill):
        self.peaks, self.int4, self.bf16, self.decode, self.prefill = peaks, int4, bf16, decode, prefill

    def products_us(self, shape, tokens):
        width = shape.heads * HEAD_DIM
        sizes = (
            (shape.hidden, width + 2 * KV_HEADS * HEAD_DIM),
            (width, shape.hidden),
            (shape.hidden, 2 * shape.ffn),
            (shape.ffn, shape.hidden),
        )
        return sum(
            float(self.int4.time_us(tokens, self.peaks.gemm_us("int4", tokens, k, n)))
            for k, n in sizes
        )

    def attention_us(self, shape, operation, tokens, requests, context):
        if operation == "decode":
            x = kv_bytes(requests, context, KV_HEADS)
            return float(self.decode.time_us(x, x / self.peaks.bytes_per_us))
        past = context - tokens
        x = 4 * shape.heads * HEAD_DIM * (tokens * past + tokens * (tokens + 1) / 2)
        return float(self.prefill.time_us(x, x / self.peaks.flops_per_us))

    def lm_head_us(self, shape, rows):
        roofline = self.peaks.gemm_us("bf16", rows, shape.hidden, VOCABULARY)
        return float(self.bf16.time_us(rows, roofline))


def fit_elementwise(measured, kernels):
    """(efficiency, overhead_us, rows): what a layer takes beyond its products and attention.

    Fitted to layers of the 405B with no past and with contexts of 1,024 tokens; the others are held out.
    """
    layers = []
    for t in measured.of(kernel="layer"):
        shape = MODELS[t["model"]]
        tokens, requests, context = t["tokens"], t["requests"], t["context"]
        known = kernels.products_us(shape, tokens) + kernels.attention_us(
            shape, t["operation"], tokens, requests, context
        )
        fitted = t["model"] == LARGE and (
            context == 1024 if t["operation"] == "decode" else context == tokens
        )
        layers.append((known, tokens * shape.elementwise_bytes(), t["sustained_us"], fitted, t))
    known, moved, time_us, fitted = (numpy.array([layer[i] for layer in layers]) for i in range(4))
    roofline = moved / kernels.peaks.bytes_per_us

    def predict(overhead_us, efficiency):
        return known + ELEMENTWISE_KERNELS * overhead_us + roofline / efficiency

    def error(parameters):
        return numpy.log(predict(*parameters)[fitted] / time_us[fitted])

    overhead_us, efficiency = optimize.least_squares(
        error, [4.0, 0.5], bounds=([0, 0.01], [20, 4]), loss="soft_l1", f_scale=0.05, x_scale="jac"
    ).x
    predicted = predict(overhead_us, efficiency)
    rows = []

    def row(label, part, note=""):
        found = curves.Residuals.of(predicted[part], time_us[part])
        inside = bool(fitted[part].all())
        rows.append(
            Row(label, int(part.sum()), found if inside else None, None if inside else found, note)
        )

    model = numpy.array([layer[4]["model"] for layer in layers])
    tokens = numpy.array([layer[4]["tokens"] for layer in layers])
    row("h200 elementwise, by whole layers", fitted, "405B, contexts of 1,024, no past")
    row("  405B at other contexts", (model == LARGE) & ~fitted)
    for other in ("llama-3.1-70b", "llama-3.1-8b"):
        row(f"  {other[10:].upper()}", model == other)
        few = (model == other) & (tokens <= 16)
        row(f"  {other[10:].upper()}, up to 16 tokens", few)
    return float(efficiency), float(overhead_us), rows


def fit_sampling(measured):
    times = [t["single_us"] for t in measured.of(kernel="sample_tokens", operation="temperature")]
    sampling_us = float(numpy.median(times))
    row = Row(
        "h200 sampling",
        len(times),
        curves.Residuals.of(numpy.full(len(times), sampling_us), times),
        None,
        "temperature, 1 to 256 rows",
    )
    return sampling_us, [row]


def step_overhead(workspace, kernels, elementwise, sampling_us):
    """(microseconds, rows): a decode step of a stage run, 42 layers and lm_head, less its kernels."""
    run = json.loads((workspace / STAGE_RUN).read_text())
    (stage,) = run["plan"]["stages"]
    efficiency, overhead_us = elementwise
    shape = MODELS[LARGE]
    prompt, output = int(run["prompt_tokens"]), int(run["output_tokens"])
    context = prompt + output / 2
    layer = (
        kernels.products_us(shape, 1)
        + kernels.attention_us(shape, "decode", 1, 1, context)
        + ELEMENTWISE_KERNELS * overhead_us
        + shape.elementwise_bytes() / (kernels.peaks.bytes_per_us * efficiency)
    )
    step_us = run["tpot"]["mean"] * 1e6
    kernels_us = stage["num_layers"] * layer + kernels.lm_head_us(shape, 1) + overhead_us + sampling_us
    rest = step_us - kernels_us
    return rest, [
        Row(
            "h200 step overhead",
            output,
            None,
            None,
            f"measured {step_us / 1e3:.2f} ms, kernels {kernels_us / 1e3:.2f} ms",
        )
    ]
