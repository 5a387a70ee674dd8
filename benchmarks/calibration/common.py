"""What the fits share: peaks, measurements, a fitted constant's provenance and its row in the table."""

import csv
import dataclasses
import pathlib
import re

import numpy

COMMAND = "benchmarks/calibration/fit.py"

# Bits a weight occupies: INT4 in groups of 128 adds a 16-bit scale and a 4-bit zero point a group.
WEIGHT_BITS = {"bf16": 16.0, "fp8": 8.0, "int4": 4 + 16 / 128 + 4 / 128}

# The four matrix products of a Llama 3.1 405B layer: name, in, out.
PROJECTIONS_405B = (
    ("qkv", 16384, 18432),
    ("o", 16384, 16384),
    ("gate_up", 16384, 106496),
    ("down", 53248, 16384),
)


@dataclasses.dataclass
class Peaks:
    """Of a GPU's specification: efficiencies are relative to these."""

    bytes_per_us: float
    flops_per_us: float

    @staticmethod
    def read(specs, name):
        """From topology/specs/gpus/<name>.txtpb, so that a changed specification shows as a changed calibration."""
        path = specs / f"{name}.txtpb"
        text = path.read_text()

        def field(field_name):
            match = re.search(rf"^\s*{field_name}:\s*([0-9.eE+]+)", text, re.MULTILINE)
            if match is None:
                raise SystemExit(f"{specs}/{name}.txtpb: no {field_name}")
            return float(match.group(1))

        return Peaks(field("memory_bandwidth_gb_s") * 1e3, field("bf16_tflops") * 1e6)

    def gemm_us(self, weight_format, tokens, k, n):
        weights = numpy.asarray(k, dtype=float) * n
        return numpy.maximum(
            weights * WEIGHT_BITS[weight_format] / 8 / self.bytes_per_us,
            2 * tokens * weights / self.flops_per_us,
        )


def read_columns(path):
    """Column name -> array: numbers where every entry is one, else strings. Ragged rows are an error."""
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    header, rows = rows[0], rows[1:]
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise SystemExit(f"{path}:{i + 2}: {len(row)} fields, the header has {len(header)}")
    columns = {}
    for i, name in enumerate(header):
        values = numpy.array([row[i] for row in rows])
        try:
            columns[name] = values.astype(float)
        except ValueError:
            columns[name] = values
    return columns


@dataclasses.dataclass
class Row:
    """A line of the table that the program prints."""

    constant: str
    points: int
    fitted: "object" = None  # Residuals
    held_out: "object" = None
    note: str = ""


def provenance(measured_on, data, sustained, note, held_out=None):
    fields = [
        ("measured_on", measured_on),
        ("data", data),
        ("command", COMMAND),
        ("sustained", sustained),
    ]
    if held_out is not None and held_out.count > 0:
        fields += [
            ("residual_p50", round(held_out.p50, 4)),
            ("residual_p90", round(held_out.p90, 4)),
        ]
    return fields + [("note", note)]


def curve_points(curve):
    return [
        ("points", [("x", float(x)), ("efficiency", float(e))])
        for x, e in zip(curve.x, curve.efficiency)
    ]
