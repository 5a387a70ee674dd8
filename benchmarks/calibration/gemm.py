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

# Sustained time / time of a lone launch, by tokens: the four projections of a 405B layer together on an H200 at its
# power limit (a quarter second of continuous load). Prototype kernel of this project; the ratio is what is used.
#   tokens 16: (254 + 126 + 47.0 + 40.6) / (220.9 + 114.8 + 44.1 + 38.1)
#   tokens 32: (345 + 176 + 64.9 + 56.9) / (302 + 159.9 + 60.6 + 53.4)
#   tokens 64: (556 + 276 + 101.9 + 88.1) / (494 + 253.6 + 98.8 + 85.5)
SUSTAINED_RATIO = {16: 467.6 / 417.9, 32: 642.8 / 575.9, 64: 1022.0 / 931.9}

# What mma.sync, the instruction that Marlin uses, could reach on the H200 at the clock it held (1.80 GHz), TFLOP/s.
H200_MMA_SYNC_TFLOPS = 647.0
H200_MULTIPROCESSORS = 132
RTX_MULTIPROCESSORS = 188


def sustained_ratio(tokens):
    """Power does not bind up to 8 tokens; launches of 1,024 tokens and more last long enough to be throttled already."""
    if tokens < 16 or tokens >= 1024:
        return 1.0
    return SUSTAINED_RATIO[min(2 ** int(numpy.log2(tokens)), 64)]


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


def fit_h200_bf16(data, peaks):
    columns = read_columns(data / "h200/torch_int4pack_and_bf16_k16384_n53248.csv")
    m, time_us = columns["m"], columns["bf16_ms"] * 1e3
    roofline = peaks.gemm_us("bf16", m, 16384, 53248)
    # One shape cannot tell overhead from efficiency: an empty kernel takes 2.9 us there.
    curve = curves.fit(m, roofline, time_us, m, overhead_us=2.9)
    residuals = curves.leave_one_out(curve, m, roofline, time_us)
    rows = [
        Row(
            "h200 gemm bf16",
            len(m),
            curves.Residuals.of(curve.time_us(m, roofline), time_us),
            residuals,
            "one shape; held out: each size, from its neighbours",
        )
    ]
    source = provenance(
        "NVIDIA H200 (SXM), PyTorch 2.11, cuBLAS",
        "h200/torch_int4pack_and_bf16_k16384_n53248.csv",
        False,
        "One shape, k 16384 and n 53248, median of short runs. Residuals: each size predicted from its "
        "neighbours.",
        residuals,
    )
    return curve, gemm_message("bf16", curve, source), rows


def marlin_h200(data):
    columns = read_columns(data / "h200/marlin_int4_group128.csv")
    return columns["projection"], columns["k"], columns["n"], columns["m"], columns["time_ms"] * 1e3


def in_series(a, b, exponent):
    """Time of two phases that overlap, not fully: between max(a, b) and a + b."""
    return (a**exponent + b**exponent) ** (1 / exponent)


class MarlinOnH200:
    """time^p = (bytes / rate)^p + (operations / peak)^p, for the gate_up projection.

    Rate from one token, peak from 128 and 256 tokens, p fitted between 16 and 128.
    """

    def __init__(self, data):
        projection, k, n, m, time_us = marlin_h200(data)
        size, operations = k * n * WEIGHT_BITS["int4"] / 8, 2 * m * k * n
        gate_up = projection == "gate_up"
        self.rate = float((size / time_us)[gate_up & (m == 1)][0])  # bytes / us
        self.peak = float(numpy.median((operations / time_us)[gate_up & (m >= 128) & (m <= 256)]))
        bend = gate_up & (m >= 16) & (m <= 128)
        reads, computes = size[bend] / self.rate, operations[bend] / self.peak

        def error(exponent):
            return numpy.log(in_series(reads, computes, exponent) / time_us[bend])

        self.exponent = float(optimize.least_squares(error, 2.0, bounds=(1, 10)).x[0])
        predicted = in_series(reads, computes, self.exponent)
        self.row = Row(
            "  law of reads and operations",
            int(bend.sum()),
            curves.Residuals.of(predicted, time_us[bend]),
            None,
            f"gate_up, 16 to 128 tokens, p {self.exponent:.2f}",
        )

    def efficiency(self, tokens, peaks):
        k, n = 16384, 106496
        read = k * n * WEIGHT_BITS["int4"] / 8 / self.rate
        return float(peaks.gemm_us("int4", tokens, k, n)) / (
            in_series(read, 2 * tokens * k * n / self.peak, self.exponent) * sustained_ratio(tokens)
        )


def fit_h200_int4(data, peaks):
    projection, k, n, m, lone_us = marlin_h200(data)
    time_us = lone_us * numpy.array([sustained_ratio(tokens) for tokens in m])
    roofline = peaks.gemm_us("int4", m, k, n)
    out = projection == "down"
    sizes = sorted(set(m))
    held = curves.fit(m[~out], roofline[~out], time_us[~out], sizes, overhead_us=2.9)
    fitted = curves.fit(m, roofline, time_us, sizes, overhead_us=2.9)
    residuals = curves.Residuals.of(held.time_us(m[out], roofline[out]), time_us[out])
    # Efficiency against max(reads, operations) dips where the two are equal, between 32 and 64 tokens: from the law.
    marlin = MarlinOnH200(data)
    dip = round(ridge("int4", peaks))
    at = int(numpy.searchsorted(fitted.x, dip))
    curve = curves.Curve(
        fitted.overhead_us,
        numpy.insert(fitted.x, at, dip),
        numpy.insert(fitted.efficiency, at, marlin.efficiency(dip, peaks)),
    )
    rows = [
        Row(
            "h200 gemm int4",
            len(m),
            curves.Residuals.of(curve.time_us(m, roofline), time_us),
            residuals,
            "held out: the down projection",
        ),
        marlin.row,
    ]
    source = provenance(
        "NVIDIA H200 (SXM), IST-DASLab Marlin, group 128, the four projections of Llama 3.1 405B",
        "h200/marlin_int4_group128.csv",
        True,
        "Lone launches from 16 to 512 tokens multiplied by sustained / lone time of an INT4 kernel on that GPU (1.12 at "
        f"16, 1.12 at 32, 1.10 from 64 tokens on); 1,024 and 2,048 tokens last long enough to be throttled as measured. "
        f"The point at {dip} tokens, where reads and operations take equal time, is interpolated by their law. A kernel "
        "that keeps more bytes in flight was shown to take 0.66-0.73 of this time up to 16 tokens, and dequantising to "
        "BF16 beats Marlin from some hundred tokens on.",
        residuals,
    )
    return marlin, gemm_message("int4", curve, source), rows


class Rtx4Bit:
    """INT4 products on the RTX PRO 6000, derived from Marlin on the H200: nobody measured them there.

    Bytes: on the H200 Marlin was bound by what a multiprocessor keeps in flight, not by memory. By the law of reads and
    operations (MarlinOnH200),
        (1 / rate)^p = (1 / BF16 rate)^p + (1 / (multiprocessors x rate of one))^p,
    one multiprocessor fetches some 26 GB/s. The RTX PRO 6000 needs 8.5 GB/s of each, as the A10 does (600 GB/s, 72),
    on which Marlin's authors show the full 3.87 times BF16's speed. So memory binds there, at BF16's efficiency.
    Operations: Marlin's share of what mma.sync can reach; on the RTX PRO 6000 mma.sync reaches the peak.
    From where it is faster: dequantise the weights to BF16 in memory, then the BF16 product.
    """

    def __init__(self, marlin, bf16, peaks, h200_bf16, h200_peaks):
        self.bf16, self.peaks, self.exponent = bf16, peaks, marlin.exponent
        h200_rate = h200_peaks.bytes_per_us * float(h200_bf16.at(1))
        self.h200_share = marlin.rate / h200_rate
        self.marlin_share = marlin.peak / (H200_MMA_SYNC_TFLOPS * 1e6)
        p = self.exponent
        one = (marlin.rate**-p - h200_rate**-p) ** (-1 / p) / H200_MULTIPROCESSORS
        self.memory_rate = peaks.bytes_per_us * float(bf16.at(1))
        self.slowdown = in_series(1, self.memory_rate / (RTX_MULTIPROCESSORS * one), p)

    def marlin_us(self, tokens, k, n):
        read = k * n * WEIGHT_BITS["int4"] / 8 / self.memory_rate * self.slowdown
        compute = 2 * tokens * k * n / (self.peaks.flops_per_us * self.marlin_share)
        return in_series(read, compute, self.exponent) * sustained_ratio(min(tokens, 512))

    def dequantise_us(self, tokens, k, n):
        copied = k * n * (WEIGHT_BITS["int4"] + WEIGHT_BITS["bf16"]) / 8
        product = float(self.peaks.gemm_us("bf16", tokens, k, n) / self.bf16.at(tokens))
        return copied / self.memory_rate + product

    def time_us(self, tokens, k, n):
        """Without the overhead of the launch."""
        return min(self.marlin_us(tokens, k, n), self.dequantise_us(tokens, k, n))

    def efficiency(self, tokens):
        time_us = sum(self.time_us(tokens, k, n) for _, k, n in PROJECTIONS_405B)
        roofline = sum(
            float(self.peaks.gemm_us("int4", tokens, k, n)) for _, k, n in PROJECTIONS_405B
        )
        return roofline / time_us

    def curve(self):
        # Efficiency against max(reads, operations) dips where the two are equal.
        knots = sorted(KNOTS + [48, round(ridge("int4", self.peaks))])
        return curves.Curve(
            self.bf16.overhead_us,
            numpy.array(knots, dtype=float),
            numpy.array([self.efficiency(tokens) for tokens in knots]),
        )

    def message(self, curve):
        low = float(curve.at(16) / self.bf16.at(16))
        high = 1 / self.h200_share / self.slowdown
        source = provenance(
            "scaled from H200, unmeasured",
            "h200/marlin_int4_group128.csv and rtx_pro_6000/gemm_bf16.csv",
            True,
            "Marlin. Memory-bound part: the BF16 product's memory efficiency here, as on the A10 (equal bandwidth a "
            f"multiprocessor), less {self.slowdown - 1:.1%}. Compute-bound part: the faster of Marlin at "
            f"{self.marlin_share:.2f} of what mma.sync reaches, and dequantisation to BF16 followed by the BF16 product. "
            "From 16 tokens on Marlin's times carry the sustained / lone ratio of the H200. Interval, up to 16 tokens: "
            f"from BF16's own efficiency to Marlin's share of the BF16 rate on the H200 ({self.h200_share:.2f}).",
        )
        return gemm_message(
            "int4", curve, source + [("time_low_factor", low), ("time_high_factor", high)]
        )


def layer_us(curve, weight_format, tokens, peaks):
    """The four projections of a 405B layer."""
    return sum(
        float(curve.time_us(tokens, peaks.gemm_us(weight_format, tokens, k, n)))
        for _, k, n in PROJECTIONS_405B
    )
