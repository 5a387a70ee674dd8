#!/usr/bin/env python3
"""Tables of documents, from the kernels' measured times.

    tables.py [--check]                     rewrites the tables of DOCUMENTS, or fails if they would change
    tables.py --print RESULTS.json          prints all tables of a file
    tables.py --merge=OUT.json IN.json...   one file of several benchmarks' results, all of one machine
              [--peers=FOLDER]              with others' times of the same shapes (marlin_*.csv, attention_*.csv)

A table stands between two lines, and names its results, benchmarks/results/FILE.json, and itself:

    <!-- table: FILE NAME -->
    <!-- end -->
"""

import argparse
import csv
import glob
import json
import os
import re
import sys

DOCUMENTS = ["docs/kernels.md", "kernels/README.md"]
RESULTS = "benchmarks/results"
PRODUCTS = ["qkv", "o", "gate_up", "down"]
MODELS = {"llama-3.1-405b": "405B", "llama-3.1-70b": "70B", "llama-3.1-8b": "8B"}
COUNTS = ["tokens", "requests", "context", "outputs", "inputs"]
# Documents show so much of the grid, which is there for calibration: --print prints all.
SHOWN_TOKENS = {1, 8, 16, 32, 64, 128, 256, 1024, 2048, 8192}
SHOWN_DECODES = {1, 16, 64, 256}
SHOWN_CHUNKS = {512, 2048, 8192}
# From here on a table shows TFLOP/s in the place of a share of the copy's rate.
MANY_TOKENS = 512
MARKER = re.compile(r"<!-- table: (\S+) (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


class Failure(Exception):
    """For the person who called."""


def number(timing, field):
    """JSON holds 64-bit integers as strings, and leaves zeros out."""
    return float(timing.get(field, 0))


def count(timing, field):
    return int(timing.get(field, 0))


def key(timing):
    return tuple(timing.get(field, "") for field in ("kernel", "model", "operation")) + tuple(
        count(timing, field) for field in ("tokens", "requests", "context")
    )


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: {error}") from error


def shown(timing):
    """Whether documents show it."""
    kernel, tokens, context = timing.get("kernel", ""), count(timing, "tokens"), count(timing, "context")
    if kernel == "layer" or timing.get("operation") == "attention":
        if kernel != "layer" and timing.get("model") != "llama-3.1-405b":
            return False
        if count(timing, "requests") == 1 and tokens > 1:
            return tokens in SHOWN_CHUNKS and context in (tokens, tokens + 8192)
        return tokens in SHOWN_DECODES and context in (1024, 8192)
    if kernel == "int4_gemm_wgmma" and tokens < 32:
        return False  # not what is chosen there
    if timing.get("operation") in PRODUCTS:
        return tokens in SHOWN_TOKENS
    if kernel in ("elementwise", "cublaslt_bf16"):
        return timing.get("model") == "llama-3.1-405b" and tokens in (1, 16, 64, 8192)
    if kernel == "sample_tokens":
        return tokens in (1, 64)
    return kernel == "layer_part"


# How tables are written.


def us(value):
    if not value:
        return "-"
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def table(head, rows):
    """Markdown, its last columns to the right; nothing measured is no table."""
    if not rows:
        return "Not measured.\n"
    words = sum(1 for cell in rows[0] if not re.fullmatch(r"[-\d,.% ]*", cell))
    align = ["---"] * words + ["---:"] * (len(head) - words)
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, align] + rows)


class Results:
    def __init__(self, content, wanted=lambda timing: True):
        self.environment = content.get("environment", {})
        self.ceilings = content.get("ceilings", {})
        self.timings = [timing for timing in content.get("timings", []) if wanted(timing)]

    def of(self, **fields):
        """The timings with these values, as text."""
        return [t for t in self.timings if all(str(t.get(f, "")) == v for f, v in fields.items())]

    def share(self, timing, field):
        """Of the copy's rate, in percent."""
        time, copy = number(timing, field), number(self.ceilings, "copy_gb_s")
        return f"{100 * number(timing, 'bytes') / time / 1e3 / copy:.0f} %" if time and copy else "-"


def tflops(timing, field):
    time = number(timing, field)
    return f"{number(timing, 'operations') / time / 1e6:,.0f}" if time else "-"


def against_peer(timing):
    peer = number(timing, "peer_us")
    return f"{number(timing, 'single_us') / peer:.2f}" if peer else "-"


def by_model(timing):
    return list(MODELS).index(timing["model"]) if timing.get("model") in MODELS else len(MODELS)


# The tables: of Results, Markdown.


def environment(results):
    e, c = results.environment, results.ceilings
    parts = [
        e.get("gpu", "?"),
        f"driver {e.get('driver', '?')}",
        f"CUDA {e.get('cuda', '?')}",
        f"cuBLASLt {e['cublaslt']}" if "cublaslt" in e else "no cuBLASLt",
        f"SM clock {number(e, 'sm_clock_mhz'):.0f} MHz, limit {number(e, 'power_limit_watts'):.0f} W",
        f"{e.get('date', '?')}, commit {e.get('commit', '?')}",
    ]
    ceilings = (
        f"Copy {number(c, 'copy_gb_s'):,.0f} GB/s, read {number(c, 'read_gb_s'):,.0f} GB/s, "
        f"BF16 matmul {number(c, 'bf16_matmul_tflops'):.0f} TFLOP/s in the same run."
    )
    return "; ".join(parts) + ".\n" + ceilings + "\n"


def int4_gemm(results):
    rows = []
    for product in PRODUCTS:
        timings = [
            t
            for t in results.of(model="llama-3.1-405b", operation=product)
            if t["kernel"].startswith("int4_gemm") and count(t, "tokens") < MANY_TOKENS
        ]
        for t in sorted(timings, key=lambda t: (count(t, "tokens"), t["kernel"])):
            times = [us(number(t, field)) for field in ("single_us", "graph_us", "sustained_us")]
            shares = [results.share(t, field) for field in ("single_us", "graph_us")]
            rows.append(
                [product, t["kernel"], str(count(t, "tokens"))] + times + shares + [against_peer(t)]
            )
    head = ["405B", "kernel", "tokens", "lone us", "graph us", "load us", "lone, of copy", "graph, of copy"]
    return table(head + ["x Marlin"], rows)


def many_tokens(results):
    rows = []
    for product in PRODUCTS:
        timings = [
            t
            for t in results.of(model="llama-3.1-405b", operation=product)
            if t["kernel"].startswith("int4_gemm") and count(t, "tokens") >= MANY_TOKENS
        ]
        for t in sorted(timings, key=lambda t: (count(t, "tokens"), t["kernel"])):
            times = [us(number(t, field)) for field in ("single_us", "sustained_us")]
            rates = [tflops(t, field) for field in ("single_us", "sustained_us")]
            rows.append(
                [product, t["kernel"], str(count(t, "tokens"))] + times + rates + [against_peer(t)]
            )
    head = ["405B", "kernel", "tokens", "lone us", "load us", "lone TFLOP/s", "load TFLOP/s", "x Marlin"]
    return table(head, rows)


def dense(results):
    """BF16 weights, and INT4 weights by way of them, beside the kernel that multiplies them as they are."""
    rows = []
    for product in PRODUCTS:
        by_kernel = {
            kernel: {
                count(t, "tokens"): t
                for t in results.of(model="llama-3.1-405b", operation=product, kernel=kernel)
            }
            for kernel in ("cublaslt_bf16", "int4_many_tokens", "int4_gemm_wgmma")
        }
        for tokens in sorted(by_kernel["cublaslt_bf16"]):
            bf16, dequantised, direct = (times.get(tokens, {}) for times in by_kernel.values())
            rows.append(
                [product, str(tokens), us(number(bf16, "single_us")), us(number(bf16, "sustained_us"))]
                + [results.share(bf16, "single_us"), tflops(bf16, "single_us")]
                + [us(number(dequantised, field)) for field in ("single_us", "sustained_us")]
                + [tflops(dequantised, "single_us"), us(number(direct, "single_us"))]
            )
    head = ["405B", "tokens", "BF16 lone us", "load us", "lone, of copy", "TFLOP/s"]
    return table(head + ["dequantised lone us", "load us", "TFLOP/s", "wgmma lone us"], rows)


def attention(results, kernel, rate_head, rate):
    rows = []
    timings = [t for t in results.of(operation="attention") if t.get("kernel", "").startswith(kernel)]
    for t in sorted(
        timings, key=lambda t: (by_model(t), count(t, "requests"), count(t, "tokens"), count(t, "context"))
    ):
        times = [us(number(t, field)) for field in ("single_us", "graph_us", "sustained_us")]
        shape = [str(count(t, field)) for field in ("requests", "tokens", "context")]
        rows.append([MODELS.get(t.get("model"), "")] + shape + times + rate(t) + [against_peer(t)])
    head = ["", "requests", "tokens", "context", "lone us", "graph us", "load us"]
    return table(head + rate_head + ["x cuDNN"], rows)


def attention_decode(results):
    return attention(
        results, "decode", ["lone, of copy", "graph, of copy"],
        lambda t: [results.share(t, "single_us"), results.share(t, "graph_us")],
    )  # fmt: skip


def attention_prefill(results):
    return attention(results, "prefill", ["lone TFLOP/s"], lambda t: [tflops(t, "single_us")])


def others(results):
    """Everything that is neither product, attention nor layer."""
    rows = []
    known = PRODUCTS + ["attention", "decode", "prefill"]
    for t in sorted(results.timings, key=lambda t: (by_model(t), t.get("operation", ""), count(t, "tokens"))):
        if t.get("operation") in known or t.get("kernel") in ("layer", "layer_part"):
            continue
        times = [us(number(t, field)) for field in ("single_us", "graph_us")]
        name = [t.get("operation", ""), t.get("kernel", "")]
        rows.append([MODELS.get(t.get("model"), "")] + name + [str(count(t, "tokens"))] + times)
    return table(["", "operation", "kernel", "tokens", "lone us", "graph us"], rows)


def layer(results):
    rows = []
    for t in sorted(
        results.of(kernel="layer"),
        key=lambda t: (by_model(t), t["operation"], count(t, "context"), count(t, "tokens")),
    ):
        shape = [str(count(t, field)) for field in ("tokens", "requests", "context")]
        # Layers of many tokens are not measured in a graph: they gain nothing from it.
        field = "graph_us" if number(t, "graph_us") else "single_us"
        time, floor = number(t, field), number(t, "bytes") / number(results.ceilings, "copy_gb_s") / 1e3
        ratio = f"{time / floor:.2f}" if time else "-"
        times = [us(time), us(number(t, "sustained_us"))]
        rates = [ratio, tflops(t, field)]
        rows.append([MODELS.get(t["model"], t["model"]), t["operation"]] + shape + times + rates)
    head = ["", "", "tokens", "requests", "context", "us", "load us", "x bytes / copy", "TFLOP/s"]
    return table(head, rows)


def layer_parts(results):
    rows = []
    for t in results.of(kernel="layer_part"):
        share = t.get("note", "").replace(" of the layer", "")
        name = [MODELS.get(t["model"], t["model"]), t["operation"]]
        rows.append(name + [str(count(t, "tokens")), us(number(t, "graph_us")), share])
    return table(["", "without it the graph is shorter by", "tokens", "us", "of the layer"], rows)


TABLES = {
    "environment": environment,
    "int4_gemm": int4_gemm,
    "many_tokens": many_tokens,
    "dense": dense,
    "attention_decode": attention_decode,
    "attention_prefill": attention_prefill,
    "others": others,
    "layer": layer,
    "layer_parts": layer_parts,
}


def rewritten(document, path):
    """The document with its tables as the results have them."""

    def replace(match):
        file, name = match[1], match[2]
        if name not in TABLES:
            raise Failure(f"{path}: there is no table {name}; there are {', '.join(TABLES)}")
        results = Results(read(f"{RESULTS}/{file}.json"), shown)
        return f"<!-- table: {file} {name} -->\n{TABLES[name](results)}<!-- end -->"

    return MARKER.sub(replace, document)


def update(check):
    stale = []
    for path in filter(os.path.exists, DOCUMENTS):
        with open(path, encoding="utf-8") as file:
            document = file.read()
        new = rewritten(document, path)
        if new == document:
            continue
        stale.append(path)
        if not check:
            with open(path, "w", encoding="utf-8") as file:
                file.write(new)
    if check and stale:
        raise Failure(f"{', '.join(stale)}: tables differ from the results; run benchmarks/kernels/tables.py")


def peers(folder):
    """Others' times in us, by (operation, tokens) or ("attention", phase, requests, context)."""
    times = {}
    for path in glob.glob(f"{folder}/marlin_*.csv"):
        with open(path, encoding="utf-8") as file:
            for row in csv.DictReader(file):
                times[row["projection"], int(row["m"])] = ("Marlin", 1e3 * float(row["time_ms"]))
    for path in glob.glob(f"{folder}/attention_*.csv"):
        with open(path, encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["backend"] == "cudnn":
                    place = "attention", row["phase"], int(row["requests"]), int(row["context"])
                    times[place] = ("cuDNN, contiguous cache", 1e3 * float(row["time_ms"]))
    if not times:
        raise Failure(f"{folder}: neither marlin_*.csv nor attention_*.csv")
    return times


def readable(timing):
    """64-bit integers as numbers, and times to six digits."""

    def value(field, written):
        if field in COUNTS:
            return int(written)
        return float(f"{written:.6g}") if isinstance(written, float) else written

    return {field: value(field, written) for field, written in timing.items()}


def merge(paths, out, peer_times):
    """The first file's times win; the others add what it lacks."""
    merged, by_key = {}, {}
    for path in paths:
        content = read(path)
        gpu = content.get("environment", {}).get("gpu")
        if merged.get("environment", {}).get("gpu", gpu) != gpu:
            raise Failure(f"{path}: measured on {gpu}, not on {merged['environment']['gpu']}")
        for part in ("environment", "ceilings"):
            merged[part] = {**content.get(part, {}), **merged.get(part, {})}
        for timing in content.get("timings", []):
            by_key[key(timing)] = {**timing, **by_key.get(key(timing), {})}
    for timing in by_key.values():
        if timing.get("model") != "llama-3.1-405b" or "peer_us" in timing:
            continue
        phase = timing["kernel"].split("_")[0]
        place = (timing.get("operation"), count(timing, "tokens"))
        if timing["kernel"] == "cublaslt_bf16":
            continue  # the peers' weights are INT4
        if timing.get("operation") == "attention":
            # The table's prefills have no past.
            whole = phase == "decode" or count(timing, "tokens") == count(timing, "context")
            place = "attention", phase if whole else "", count(timing, "requests"), count(timing, "context")
        if place in peer_times:
            timing["peer"], timing["peer_us"] = peer_times[place]
    merged["timings"] = [readable(timing) for timing in by_key.values()]
    with open(out, "w", encoding="utf-8") as file:
        # A timing a line: a new measurement is a small difference.
        head = {part: merged.get(part, {}) for part in ("environment", "ceilings")}
        lines = ",\n".join("  " + json.dumps(timing) for timing in merged["timings"])
        file.write(json.dumps(head, indent=1)[:-2] + ',\n "timings": [\n' + lines + "\n ]\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", metavar="RESULTS.json")
    parser.add_argument("--merge", metavar="OUT.json")
    parser.add_argument("--peers", metavar="FOLDER")
    parser.add_argument("results", nargs="*", metavar="IN.json")
    arguments = parser.parse_args()
    try:
        if arguments.merge:
            if not arguments.results:
                raise Failure("--merge: name the files to merge")
            merge(arguments.results, arguments.merge, peers(arguments.peers) if arguments.peers else {})
        elif arguments.print:
            results = Results(read(arguments.print))
            for name, write in TABLES.items():
                print(f"{name}\n\n{write(results)}")
        else:
            update(arguments.check)
    except Failure as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
