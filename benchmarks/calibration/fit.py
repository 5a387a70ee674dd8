#!/usr/bin/env python3
"""Fits topology/calibration/*.txtpb to measurements; README.md beside this file has the equations and sources.

Needs numpy and scipy (Debian: apt-get install python3-numpy python3-scipy).
"""

import argparse
import pathlib
import re
import sys

try:
    import numpy
    import scipy  # noqa: F401
except ImportError as error:
    sys.exit(
        f"{error}: install numpy and scipy (Debian: apt-get install python3-numpy python3-scipy)"
    )

import attention
import elementwise
import gemm
import h200
import nccl
import serving_log
import textproto
from common import Peaks, Row, provenance, read_columns

WORKSPACE = pathlib.Path(__file__).resolve().parents[2]

LOG = "vllm_logs/rtx_pro_6000_llama_3.1_8b_requests.jsonl"
RTX, H200 = "rtx_pro_6000_server", "h200_sxm"  # the calibrations' names
RTX_SPEC, H200_SPEC = "rtx_pro_6000_blackwell_server", "h200_sxm"


def fit_h200(specs):
    """(lines of the calibration, what the RTX PRO 6000's INT4 is scaled from, rows)."""
    peaks = Peaks.read(specs, H200_SPEC)
    measured = h200.Measured(WORKSPACE / h200.RESULTS)
    int4, int4_message, rows = h200.fit_int4(measured, peaks)
    bf16, bf16_message, part = h200.fit_bf16(measured, peaks)
    rows += part
    decode, decode_message, part = h200.fit_decode(measured, peaks)
    rows += part
    prefill, prefill_message, part = h200.fit_prefill(measured, peaks)
    rows += part
    fitted = h200.Kernels(peaks, int4, bf16, decode, prefill)
    efficiency, overhead_us, part = h200.fit_elementwise(measured, fitted)
    rows += part
    sampling_us, part = h200.fit_sampling(measured)
    rows += part
    sums = read_columns(WORKSPACE / h200.PAIR_SUMS)
    step_us, part = h200.step_overhead(WORKSPACE, fitted, (efficiency, overhead_us), sampling_us)
    rows += part
    lines = textproto.body(
        [
            ("name", H200),
            ("gpu", H200_SPEC),
            bf16_message,
            gemm.derive_fp8(bf16, peaks, h200.RESULTS),
            int4_message,
            decode_message,
            prefill_message,
            ("elementwise_efficiency", efficiency),
            ("elementwise_overhead_us", overhead_us),
            ("step_overhead_us", step_us),
            ("sampling_us", sampling_us),
            (
                "provenance",
                provenance(
                    measured.source(),
                    h200.RESULTS + " and " + h200.STAGE_RUN,
                    True,
                    "elementwise: what whole layers of Llama 3.1 405B take under load beyond their products and attention, by "
                    "the bytes that the forecast counts; sampling: by temperature, median of 1 to 256 rows; step_overhead_us: "
                    "a decode step of this project's engine, 42 layers of the 405B and one request, less its kernels.",
                ),
            ),
            *nccl.latency_points(
                sums["bytes"], numpy.minimum(sums["own_us"], sums["nccl_us"]), "pair_sums"
            ),
            (
                "pair_sums_provenance",
                provenance(
                    "two NVIDIA H200s (NVLink), driver 580.159.04, NCCL 2.28.3, 2026-11-25",
                    h200.PAIR_SUMS,
                    True,
                    "16 sums in a graph, one after another: by this project's kernel up to 16 MiB, by NCCL beyond "
                    "(runtime/executor/cuda:tensor_parallel_benchmark).",
                ),
            ),
        ]
    )
    law = gemm.MmaLaw(h200.full_tiles(measured))
    rows += [
        law.row,
        gemm.dequantising_on_h200(
            [
                t
                for t in measured.of(kernel="int4_many_tokens")
                if t["model"] != "llama-3.1-8b"
            ],
            bf16,
            peaks,
        ),
    ]
    return lines, (law, bf16, peaks), rows


def kernels(data, specs):
    """Name -> lines of the two kernel calibrations; the table; lines of the sanity check."""
    rtx = Peaks.read(specs, RTX_SPEC)
    rows = []

    bf16, bf16_message, part = gemm.fit_rtx_bf16(data, rtx)
    rows += part
    h200_lines, (law, h200_bf16, h200_peaks), part = fit_h200(specs)
    rows += part
    derived = gemm.Rtx4Bit(law, gemm.marlin_rate(data), bf16, rtx, h200_bf16, h200_peaks)
    int4 = derived.curve()
    decode, decode_message, part = attention.fit_rtx_decode(data, rtx)
    rows += part
    _, prefill_message, part = attention.fit_rtx_prefill(data, rtx)
    rows += part
    efficiency, overhead_us, sampling_us, part = elementwise.fit_rtx(data, rtx)
    rows += part
    step_us, part = serving_log.step_overhead(
        data,
        serving_log.Kernels(
            rtx, bf16, decode, efficiency, overhead_us, elementwise.LAYER_BYTES, sampling_us
        ),
    )
    rows += part

    small = [
        ("elementwise_efficiency", efficiency),
        ("elementwise_overhead_us", overhead_us),
        ("step_overhead_us", step_us),
        ("sampling_us", sampling_us),
    ]
    step_note = (
        "elementwise: over Llama 3.1 8B layers of 1,024 to 2,048 tokens, whose activations are partly in the L2 "
        "cache; sampling: median of 1 to 64 sequences; step_overhead_us: a serving run's "
        "step of 12 requests less its kernels; at 50 to 115 requests of unequal lengths the rest was 1.3 to 3.6 ms."
    )
    rtx_lines = textproto.body(
        [
            ("name", RTX),
            ("gpu", RTX_SPEC),
            bf16_message,
            gemm.derive_fp8(bf16, rtx, "rtx_pro_6000/gemm_bf16.csv"),
            derived.message(int4),
            decode_message,
            prefill_message,
        ]
        + small
        + [
            (
                "provenance",
                provenance(
                    "RTX PRO 6000 Blackwell Server Edition, vLLM 0.19, eager mode",
                    "casys-kaist/LLMServingSim: " + elementwise.PROFILE + " and " + LOG,
                    False,
                    step_note,
                ),
            )
        ]
    )
    sanity = []
    for tokens in (1, 8, 32, 64, 512, 2048):
        stage_ms = 42 * gemm.layer_us(int4, "int4", tokens, rtx) / 1e3
        sanity.append(
            f"405B INT4, 42 layers on {RTX}, {tokens} tokens: matrix products {stage_ms:.1f} ms a stage, "
            f"{3 * stage_ms:.0f} ms for three"
        )
    return {RTX: rtx_lines, H200: h200_lines}, rows, sanity


def communication(data):
    sends, send_rows = nccl.sends(data)
    collectives, collective_rows, sanity = nccl.collectives(data)
    lines = textproto.body(
        [("name", "nccl_2_28"), ("version", "2.28.9")] + sends + collectives + nccl.host_staging()
    )
    return lines, send_rows + collective_rows, sanity


def print_table(rows):
    def cells(residuals):
        return f"{residuals.p50:7.1%} {residuals.p90:7.1%}" if residuals else " " * 15

    print(f"{'constant':36} {'points':>6} {'fit p50':>7} {'p90':>7}  {'out p50':>7} {'p90':>7}")
    for row in rows:
        print(
            f"{row.constant:36} {row.points:6} {cells(row.fitted)}  {cells(row.held_out)}  {row.note}".rstrip()
        )


def differences(wanted, found, tolerance=2e-3):
    """Lines that differ by more than the last digit that the solver may turn."""

    def split(line):
        return re.split(r"(?<![\w.])(-?\d+\.?\d*(?:e[-+]?\d+)?)(?![\w.])", line)

    if len(wanted) != len(found):
        return [f"{len(found)} lines instead of {len(wanted)}"]
    different = []
    for a, b in zip(wanted, found):
        left, right = split(a), split(b)
        same = (
            len(left) == len(right)
            and left[::2] == right[::2]
            and all(
                abs(float(x) - float(y)) <= tolerance * max(abs(float(x)), abs(float(y)))
                for x, y in zip(left[1::2], right[1::2])
            )
        )
        if not same:
            different.append(f"- {b}\n+ {a}")
    return different


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        default=WORKSPACE / "../shared/data",
        help="folder of the measurements",
    )
    parser.add_argument("--specs", type=pathlib.Path, default=WORKSPACE / "topology/specs/gpus")
    parser.add_argument("--out", type=pathlib.Path, default=WORKSPACE / "topology/calibration")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare with the files in --out instead of writing them",
    )
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"{arguments.data}: no such folder; give the measurements' with --data")

    kernel_lines, rows, sanity = kernels(arguments.data, arguments.specs)
    nccl_lines, nccl_rows, nccl_sanity = communication(arguments.data)
    files = {
        f"{name}.txtpb": ["# proto-message: fabricast.KernelCalibration"] + lines
        for name, lines in kernel_lines.items()
    }
    files["nccl_2_28.txtpb"] = ["# proto-message: fabricast.NcclCalibration"] + nccl_lines
    print_table(rows + nccl_rows)
    print()
    print("\n".join(sanity + nccl_sanity))

    failed = False
    for name, lines in files.items():
        lines.insert(1, f"# Written by {'benchmarks/calibration/fit.py'}: change that, not this.")
        path = arguments.out / name
        if not arguments.check:
            path.write_text("\n".join(lines) + "\n")
            continue
        different = differences(lines, path.read_text().splitlines())
        if different:
            failed = True
            print(f"{path} differs from its refit:\n" + "\n".join(different[:20]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
