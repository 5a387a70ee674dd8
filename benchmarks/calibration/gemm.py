"""Matrix products of m tokens: one efficiency curve a weight format, over the shapes of large models."""

import numpy
from scipy import optimize

import curves
from common import PROJECTIONS_405B, WEIGHT_BITS, Row, curve_points, provenance, read_columns

# One token more than a full tile takes another row of tiles: the time jumps there, so both sides have a knot.
KNOTS = [
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
    129,
    256,
    257,
    512,
    513,
    1024,
    1025,
    2048,
    2049,
    4096,
    8192,
    16384,
    32768,
]
LAYERS_8B = {
    "qkv_proj": (4096, 6144),
    "o_proj": (4096, 4096),
    "gate_up_proj": (4096, 28672),
    "down_proj": (14336, 4096),
}
LARGE = 4096  # smallest k and n of the shapes used
HOLD_OUT = 5  # every 5th shape is held out

# What mma.sync, the instruction that int4_gemm_mma uses, could reach on the H200 at 1.80 GHz, TFLOP/s.
H200_MMA_SYNC_TFLOPS = 647.0

# Most tokens of int4_gemm_mma; beyond, weights are dequantised for cuBLASLt where there is no wgmma
# (kernels/int4/int4_choice.h). Its tiles hold 8, 16, 32 and 64 tokens, and take as long whether they are full or not.
MMA_TILES = (8, 16, 32, 64)
# Of 128 x 128 weights, as this project packs them and as AWQ does.
BLOCK_BYTES, AWQ_BLOCK_BYTES = 8576, 8512


def gemm_message(weight_format, curve, source):
    return (
        "gemms",
        [("weight_format", weight_format), ("overhead_us", curve.overhead_us)]
        + curve_points(curve)
        + [("provenance", source)],
    )


def fit_rtx_bf16(data, peaks):
    columns = read_columns(data / "rtx_pro_6000/gemm_bf16.csv")
    large = (columns["n"] >= LARGE) & (columns["k"] >= LARGE)
    m, n, k = (columns[c][large] for c in ("m", "n", "k"))
    time_us = columns["latency_ms"][large] * 1e3
    shapes = sorted(set(zip(n, k)))
    held = {shape for i, shape in enumerate(shapes) if i % HOLD_OUT == HOLD_OUT // 2}
    out = numpy.array([shape in held for shape in zip(n, k)])
    roofline = peaks.gemm_us("bf16", m, k, n)
    curve = curves.fit(m[~out], roofline[~out], time_us[~out], KNOTS)
    predicted = curve.time_us(m, roofline)
    fitted = curves.Residuals.of(predicted[~out], time_us[~out])
    held_out = curves.Residuals.of(predicted[out], time_us[out])
    rows = [
        Row(
            "rtx gemm bf16", len(m), fitted, held_out, f"{len(shapes)} shapes, {len(held)} held out"
        )
    ]
    for low, high in ((1, 16), (17, 128), (129, 511), (512, 32768)):
        part = out & (m >= low) & (m <= high)
        rows.append(
            Row(
                f"  {low} to {high} tokens",
                int(part.sum()),
                None,
                curves.Residuals.of(predicted[part], time_us[part]),
            )
        )
    # Would shape classes help? Two curves instead of one, small and large weights.
    both = numpy.zeros(len(m))
    for half in (n * k < 2**26, n * k >= 2**26):
        own = curves.fit(m[half & ~out], roofline[half & ~out], time_us[half & ~out], KNOTS)
        both[half] = own.time_us(m[half], roofline[half])
    rows.append(
        Row(
            "  if two curves, by size",
            int(out.sum()),
            None,
            curves.Residuals.of(both[out], time_us[out]),
            "below and from 2^26 weights",
        )
    )
    # Another program's measurements of four shapes.
    dense = read_columns(data / "rtx_pro_6000/vllm_0.19_llama_3.1_8b_bf16_tp1/dense.csv")
    predicted8, measured8 = [], []
    for layer, (k8, n8) in LAYERS_8B.items():
        part = dense["layer"] == layer
        predicted8 += list(
            curve.time_us(
                dense["tokens"][part], peaks.gemm_us("bf16", dense["tokens"][part], k8, n8)
            )
        )
        measured8 += list(dense["time_us"][part])
    rows.append(
        Row(
            "  the 8B's layers in vLLM 0.19",
            len(measured8),
            None,
            curves.Residuals.of(predicted8, measured8),
            "not in the fit",
        )
    )
    source = provenance(
        "RTX PRO 6000 Blackwell Server Edition, kernels of vLLM 0.24",
        "ai-dynamo/aiconfigurator, systems/data/rtx_pro_6000_server: rtx_pro_6000/gemm_bf16.csv",
        False,
        f"Shapes with k and n of {LARGE} and more; every {HOLD_OUT}th shape held out. Short runs: the power limit may "
        "bind under continuous load.",
        held_out,
    )
    return curve, gemm_message("bf16", curve, source), rows


def ridge(weight_format, gpu):
    """Tokens at which reading the weights takes as long as the operations, at the peaks."""
    return WEIGHT_BITS[weight_format] / 8 * gpu.flops_per_us / (2 * gpu.bytes_per_us)


def derive_fp8(bf16, gpu, data):
    """Half the bytes and twice the rate of operations: half the time of BF16 at the same number of tokens."""

    # Between the two ridges the ratio of the rooflines is linear in the tokens: more knots there.
    ridges = [ridge(weight_format, gpu) for weight_format in ("fp8", "bf16")]
    knots = numpy.unique(numpy.concatenate([bf16.x, numpy.round(numpy.geomspace(*ridges, 3))]))
    k = n = 16384
    half = gpu.gemm_us("bf16", knots, k, n) / 2
    # Relative to max(bytes / bandwidth, operations / BF16 peak), the roofline that the cost model uses.
    derived = curves.Curve(
        bf16.overhead_us, knots, bf16.at(knots) * gpu.gemm_us("fp8", knots, k, n) / half
    )
    source = provenance(
        "scaled from BF16, unmeasured",
        data,
        False,
        "Half of the BF16 time at the same tokens: half the bytes, twice the tensor rate. Efficiencies above 1 are "
        "relative to the BF16 peak. Weights in FP8 with BF16 arithmetic would not gain the tensor rate.",
    )
    return gemm_message("fp8", derived, source)


def in_series(a, b, exponent):
    """Time of two phases that overlap, not fully: between max(a, b) and a + b."""
    return (a**exponent + b**exponent) ** (1 / exponent)


def tile(tokens):
    """The tokens that int4_gemm_mma computes for so many."""
    return next(size for size in MMA_TILES if tokens <= size)


class MmaLaw:
    """int4_gemm_mma on the H200: time^p = (bytes / rate)^p + (operations of whole tiles / peak)^p, in a graph.

    `timings`: of large products at full tiles, as benchmarks/results has them. The rate is that of 8 tokens: left free, it
    would come out above the memory's peak. At its power limit the GPU takes sustained[tokens of a tile] times as long.
    """

    def __init__(self, timings):
        tokens, inputs, outputs, graph_us, load_us = (
            numpy.array([t[field] for t in timings], dtype=float)
            for field in ("tokens", "inputs", "outputs", "graph_us", "sustained_us")
        )
        size = inputs * outputs * WEIGHT_BITS["int4"] / 8 * BLOCK_BYTES / AWQ_BLOCK_BYTES
        operations = 2 * tokens * inputs * outputs
        few = tokens == MMA_TILES[0]
        self.rate = float(numpy.median((size / graph_us)[few]))  # bytes / us

        def predict(parameters):
            peak, exponent = parameters
            return in_series(size / self.rate, operations / (peak * 1e6), exponent)

        solution = optimize.least_squares(
            lambda parameters: numpy.log(predict(parameters) / graph_us),
            [500.0, 2.0],
            bounds=([100, 1], [1000, 10]),
            x_scale="jac",
        ).x
        self.peak, self.exponent = float(solution[0] * 1e6), float(solution[1])  # operations / us
        self.sustained = {
            size: float(load_us[tokens == size].sum() / graph_us[tokens == size].sum())
            for size in MMA_TILES
        }
        self.row = Row(
            "int4_gemm_mma's law on the H200",
            len(timings),
            curves.Residuals.of(predict(solution), graph_us),
            None,
            f"{self.rate / 1e6:.2f} TB/s, {self.peak / 1e6:.0f} TFLOP/s, p {self.exponent:.2f}; load / graph "
            + ", ".join(f"{ratio:.2f}" for ratio in self.sustained.values()),
        )


def dequantise_us(bf16, peaks, tokens, k, n):
    """INT4 weights read and written as BF16, at the rate at which BF16 products read, then the BF16 product."""
    copied = k * n * (WEIGHT_BITS["int4"] + WEIGHT_BITS["bf16"]) / 8
    product = peaks.gemm_us("bf16", tokens, k, n) / bf16.at(tokens)
    return copied / (peaks.bytes_per_us * float(bf16.at(1))) + product


def dequantising_on_h200(timings, bf16, peaks):
    """The row that says how far dequantise_us is from this project's int4_many_tokens, measured on the H200."""
    tokens, inputs, outputs, time_us = (
        numpy.array([t[field] for t in timings], dtype=float)
        for field in ("tokens", "inputs", "outputs", "sustained_us")
    )
    predicted = bf16.overhead_us + dequantise_us(bf16, peaks, tokens, inputs, outputs)
    return Row(
        "dequantising on the H200, as derived",
        len(timings),
        None,
        curves.Residuals.of(predicted, time_us),
        f"in the median x {numpy.median(predicted / time_us):.2f} of what was measured",
    )


class Rtx4Bit:
    """INT4 products on the RTX PRO 6000: this project's kernels, which have never run there.

    Up to 64 tokens int4_gemm_mma. Bytes: on the H200 it reads faster than cuBLASLt's BF16 products do, so here it is
    given their rate, which is 0.95 of the memory's. Operations: its share of what mma.sync can reach on the H200; on the
    RTX PRO 6000 mma.sync reaches the peak. Times what power costs the H200 under load. Beyond 64: the weights
    dequantised to BF16 in memory, then the BF16 product.
    """

    def __init__(self, law, marlin_rate, bf16, peaks, h200_bf16, h200_peaks):
        self.law, self.bf16, self.peaks = law, bf16, peaks
        self.share = law.peak / (H200_MMA_SYNC_TFLOPS * 1e6)
        self.marlin_share = marlin_rate / (h200_peaks.bytes_per_us * float(h200_bf16.at(1)))
        self.memory_rate = peaks.bytes_per_us * float(bf16.at(1))

    def mma_us(self, tokens, k, n):
        read = k * n * WEIGHT_BITS["int4"] / 8 * BLOCK_BYTES / AWQ_BLOCK_BYTES / self.memory_rate
        compute = 2 * tile(tokens) * k * n / (self.peaks.flops_per_us * self.share)
        return in_series(read, compute, self.law.exponent) * self.law.sustained[tile(tokens)]

    def time_us(self, tokens, k, n):
        """Without the overhead of the launch."""
        if tokens <= MMA_TILES[-1]:
            return self.mma_us(tokens, k, n)
        return float(dequantise_us(self.bf16, self.peaks, tokens, k, n))

    def efficiency(self, tokens):
        time_us = sum(self.time_us(tokens, k, n) for _, k, n in PROJECTIONS_405B)
        roofline = sum(
            float(self.peaks.gemm_us("int4", tokens, k, n)) for _, k, n in PROJECTIONS_405B
        )
        return roofline / time_us

    def curve(self):
        # Efficiency against max(reads, operations) dips where the two are equal; a tile more begins after each full one.
        starts = [size + 1 for size in MMA_TILES]
        knots = sorted(set(KNOTS + starts + [round(ridge("int4", self.peaks))]))
        return curves.Curve(
            self.bf16.overhead_us,
            numpy.array(knots, dtype=float),
            numpy.array([self.efficiency(tokens) for tokens in knots]),
        )

    def message(self, curve):
        low = float(curve.at(16) / self.bf16.at(16))
        high = 1 / self.marlin_share
        source = provenance(
            "scaled from H200, unmeasured",
            "benchmarks/results/h200_kernels.json and rtx_pro_6000/gemm_bf16.csv",
            True,
            "This project's kernels as they are chosen on compute capability 12.0. Up to 64 tokens int4_gemm_mma: reads "
            f"at the BF16 product's rate here, operations at {self.share:.2f} of what mma.sync reaches, its share on "
            "the H200, in whole tiles of 8, 16, 32 and 64 tokens, times that GPU's ratio of times under load and in a "
            "graph. Beyond, weights dequantised to BF16 and the BF16 product. Interval: from BF16's own efficiency at "
            "16 tokens to the share of the BF16 rate that another kernel, Marlin, had on the H200 "
            f"({self.marlin_share:.2f}).",
        )
        return gemm_message(
            "int4", curve, source + [("time_low_factor", low), ("time_high_factor", high)]
        )


def marlin_rate(data):
    """Bytes a us of IST-DASLab's Marlin on the H200: gate_up, one token."""
    columns = read_columns(data / "h200/marlin_int4_group128.csv")
    one = (columns["projection"] == "gate_up") & (columns["m"] == 1)
    size = columns["k"] * columns["n"] * WEIGHT_BITS["int4"] / 8
    return float((size / (columns["time_ms"] * 1e3))[one][0])


def layer_us(curve, weight_format, tokens, peaks):
    """The four projections of a 405B layer."""
    return sum(
        float(curve.time_us(tokens, peaks.gemm_us(weight_format, tokens, k, n)))
        for _, k, n in PROJECTIONS_405B
    )
