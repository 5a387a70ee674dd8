#!/usr/bin/env python3
"""Tables of docs/405b.md, from what tools/pipeline_405b measured.

    tables.py [--check]              rewrites the tables of docs/405b.md, or fails if they would change
    tables.py --print FOLDER         prints all tables of a folder of results
    tables.py --merge=OUT FOLDER...  a folder of the results of several; of two measurements that succeeded, the
                                     first folder's counts, and forecasts are those made first

A table stands between two lines, and names its results, benchmarks/results/405b/FOLDER/runs.json, and itself:

    <!-- table: FOLDER NAME -->
    <!-- end -->
"""

import argparse
import json
import os
import re
import shutil
import sys

DOCUMENT = "docs/405b.md"
RESULTS = "benchmarks/results/405b"
KERNELS = "benchmarks/results/h200_kernels.json"
MARKER = re.compile(r"<!-- table: (\S+) (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)

# Llama 3.1 405B.
HIDDEN = 16_384
QKV, GATE_UP, DOWN = 18_432 * HIDDEN, 2 * 53_248 * HIDDEN, 53_248 * HIDDEN
LAYER_WEIGHTS = QKV + HIDDEN * HIDDEN + GATE_UP + DOWN
EMBEDDING_BYTES = 2 * 128_256 * HIDDEN
KV_BYTES = 2 * 8 * 128 * 2  # a layer and token


class Failure(Exception):
    """For the person who called."""


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: {error}") from error


# How tables are written.


def ms(seconds, digits=2):
    return "-" if not seconds else f"{1e3 * seconds:,.{digits}f}"


def us(seconds):
    return "-" if seconds is None else f"{1e6 * seconds:,.0f}"


def gb(size):
    return f"{int(size) / 1e9:.1f}"


def percent(share, digits=1):
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def change(measured, forecast):
    """Of the forecast against what was measured."""
    return f"{100 * (forecast / measured - 1):+.1f} %" if measured and forecast else "-"


def table(head, rows, words=1):
    """Markdown, all but the first `words` columns to the right; nothing measured is no table."""
    if not rows:
        return "Not measured.\n"
    align = ["---"] * words + ["---:"] * (len(head) - words)
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, align] + rows)


def mean(values):
    return sum(values) / len(values)


class Runs:
    """Of a folder. What failed is as if it had not been."""

    def __init__(self, folder):
        self.entries = read(f"{folder}/runs.json")["runs"]
        self.by_name = {e["name"]: e for e in self.entries if "tpot_s" in e.get("measured", {})}

    def measured(self, name):
        return self.by_name.get(name, {}).get("measured")

    def forecast(self, name):
        return self.by_name.get(name, {}).get("forecast")

    def names(self, pattern):
        return [name for name in self.by_name if re.fullmatch(pattern, name)]

    def first(self):
        return next(iter(self.by_name.values()), {}).get("measured")


def copy_rate(run):
    """Bytes a second, of the fastest GPU, which gives the lowest floor; 0: not measured."""
    return 1e9 * max(run.get("ceilings", {}).get("copy_gb_s", []), default=0)


def lengths(run):
    """Tokens in and out."""
    return tuple(int(re.search(rf"{name}=(\d+)", run["workload"])[1]) for name in ("input", "output"))


def memory_of(run, stage):
    """Of the first GPU of a stage."""
    return next(m for m in run["memory"] if m["gpu"] == run["stages"][stage]["gpus"][0])


def step_bytes(run, stage, contexts):
    """What each GPU of a stage reads for a decode step: all weights but the embedding, and keys and values."""
    gpus = len(run["stages"][stage]["gpus"])
    weights = int(memory_of(run, stage)["weight_bytes"]) - (EMBEDDING_BYTES if stage == 0 else 0)
    return weights + KV_BYTES * run["stages"][stage]["layers"] * contexts / gpus


def floor_of(run, requests=1):
    """Seconds that reading takes at the copy's rate, stage after stage; 0: that was not measured."""
    prompt, output = lengths(run)
    contexts = requests * (prompt + output / 2)
    size = sum(step_bytes(run, stage, contexts) for stage in range(len(run["stages"])))
    return size / copy_rate(run) if copy_rate(run) else 0


def gpus_of(run):
    """"3 stages", "1 stage, TP 2", "2 stages, TP 2,1"."""
    each = [len(stage["gpus"]) for stage in run["stages"]]
    shared = "" if max(each) == 1 else ", TP " + (str(each[0]) if len(set(each)) == 1 else ",".join(map(str, each)))
    return f"{len(each)} stage{'s' if len(each) > 1 else ''}{shared}"


def layers_of(run):
    return "/".join(str(stage["layers"]) for stage in run["stages"])


# The tables: of Runs, Markdown.


def environment(runs):
    machines = {}
    for entry in runs.by_name.values():
        run = entry["measured"]
        each = run["gpus"][0] if len(set(run["gpus"])) == 1 else ", ".join(run["gpus"])
        place = f"{len(run['gpus'])} x {each} ({run['power_limit']}), driver {run['driver']}, NCCL {run['nccl'] or '?'}"
        place = place.replace(", NCCL ?", "")
        key = (place, run["date"][:10], run["commit"], json.dumps(run.get("ceilings", {})))
        machines.setdefault(key, []).append(entry["name"])
    lines = []
    for (place, date, commit, ceilings), names in machines.items():
        rates = json.loads(ceilings)
        copies = " and ".join(f"{rate:,.0f}" for rate in rates.get("copy_gb_s", [])) or "?"
        peers = " and ".join(f"{rate:,.0f}" for rate in rates.get("peer_gb_s", [])) or "?"
        lines.append(
            f"- {place}; {date}, commit {commit}. Copies within the GPUs {copies} GB/s, from one to the next "
            f"{peers} GB/s. Runs: {', '.join(names)}.\n"
        )
    return "".join(lines) or "Not measured.\n"


def memory(runs):
    run = runs.measured("one_1k") or runs.first()
    if run is None:
        return table([], [])
    rows = []
    for index, stage in enumerate(run["stages"]):
        for gpu in stage["gpus"]:
            m = next(m for m in run["memory"] if m["gpu"] == gpu)
            ends = [" + embedding"] * (index == 0) + [" + lm_head"] * (index == len(run["stages"]) - 1)
            fields = ("weight_bytes", "activation_bytes", "reserve_bytes", "kv_cache_bytes", "capacity_bytes")
            rows.append([gpu + "".join(ends), str(stage["layers"])] + [gb(m[field]) for field in fields])
    return table(
        ["GPU", "layers", "weights", "activations", "reserve", "left for KV", "capacity, GB"], rows
    )


def one(runs):
    rows = []
    for name in ["one_1k", "prefill_1024", "tensor_2", "tensor_2_1"]:
        run, forecast = runs.measured(name), runs.forecast(name)
        if run is None:
            continue
        floor = floor_of(run)
        prompt, output = lengths(run)
        rows.append(
            [gpus_of(run), f"{prompt:,} + {output}", ms(run["ttft_s"], 0), ms(end_to_end(run), 0)]
            + [ms(run["tpot_s"]), ms(run["itl_p50_s"]), ms(run["itl_p99_s"])]
            + [ms(floor), f"{run['tpot_s'] / floor:.3f}" if floor else "-"]
            + [ms(forecast["tpot_s"]) if forecast else "-"]
            + [change(run["tpot_s"], forecast["tpot_s"]) if forecast else "-"]
        )
    head = ["one request", "tokens in + out", "TTFT ms", "steps end to end", "TPOT ms", "ITL p50", "ITL p99"]
    return table(head + ["floor ms", "x floor", "forecast TPOT ms", "off by"], rows)


def by_load(name):
    return [int(number) for number in re.findall(r"\d+", name)]


def load(runs):
    rows = []
    for name in sorted(runs.names(r"load_\d+x\d+"), key=by_load):
        run, forecast = runs.measured(name), runs.forecast(name)
        steady = run["steady"]
        if steady is None:
            continue
        step = steady["step"][steady["slowest"]]["mean_s"]
        whole = run["stages"][steady["slowest"]]["steady_busy_fraction"]
        foretold = forecast["steady"]["tokens_per_s"] if forecast and forecast["steady"] else None
        rows.append(
            [f"{run['max_in_flight']} x {steady['requests']}", " / ".join(ms(s["mean_s"]) for s in steady["step"])]
            + [" / ".join(percent(busy) for busy in steady["busy"]), percent(whole)]
            + [f"{steady['tokens_per_s']:,.1f}", f"{steady['tokens_per_s'] * step / steady['requests']:.3f}"]
            + [f"{foretold:,.1f}" if foretold else "-", change(steady["tokens_per_s"], foretold)]
        )
    head = ["micro-batches x requests", "step of each stage ms", "busy, decoding", "slowest busy, fill to drain"]
    head += ["tokens/s", "x batch / slowest step", "forecast", "off by"]
    return table(head, rows)


def prefill_rate(run, stage):
    """Operations a second of a stage's GPUs while busy: its layers' products and causal attention of the prompt."""
    figures = run["stages"][stage]
    tokens, busy = figures["prefill"]["tokens"], figures["prefill"]["busy_s"]
    if not tokens or not busy:
        return 0
    attention = 4 * HIDDEN * tokens * (tokens + 1) / 2
    operations = figures["layers"] * (2 * LAYER_WEIGHTS * tokens + attention)
    return operations / busy / len(figures["gpus"])


def matmul_rate(run):
    """Of a BF16 product on one such GPU, where a kernels' benchmark has measured it; else 0."""
    if not run["gpus"][0].startswith("NVIDIA H200") or not os.path.exists(KERNELS):
        return 0
    return 1e12 * float(read(KERNELS)["ceilings"]["bf16_matmul_tflops"])


def end_to_end(run):
    """Seconds to the first token if each stage had begun each chunk when its input was there and it was free.

    From the times that the chunks were measured to take: what is left out is waiting of any other kind. A chunk is
    launched when the one `max_in_flight` before it is done; messages take their least time.
    """
    each = [stage["prefill"]["each"] for stage in run["stages"]]
    if not each[0]:
        return 0
    hop = [next(s for s in reversed(h["sizes"]) if s["bytes"])["min_s"] for h in run["hops"][:-1]]
    ends = []  # of each chunk, by stage
    for chunk in range(len(each[0])):
        done = ends[chunk - run["max_in_flight"]][-1] if chunk >= run["max_in_flight"] else 0
        ends.append([])
        for stage, steps in enumerate(each):
            there = ends[chunk][stage - 1] + hop[stage - 1] if stage > 0 else done
            free = ends[chunk - 1][stage] if chunk > 0 else 0
            ends[chunk].append(max(there, free) + steps[chunk][1])
    # Before the first chunk and behind the last, the head.
    begin, last = each[0][0][0], each[-1][-1]
    return ends[-1][-1] + run["ttft_s"] - (last[0] + last[1] - begin)


def prefill(runs):
    rows = []
    names = sorted(runs.names(r"prefill_\d+"), key=by_load)
    unchunked = runs.measured("prefill_8192")
    for name in names:
        run, forecast = runs.measured(name), runs.forecast(name)
        stages = len(run["stages"])
        chunk, (prompt, _) = run["max_chunk_tokens"], lengths(run)
        rates = [prefill_rate(run, stage) for stage in range(stages)]
        matmul, ideal = matmul_rate(run), end_to_end(run)
        rows.append(
            [f"{chunk:,}", ms(run["ttft_s"], 0), ms(ideal, 0)]
            + [f"{ideal / end_to_end(unchunked):.3f}" if unchunked else "-"]
            # One chunk passes all stages, and the others follow a chunk's time apart.
            + [f"{(1 + (stages - 1) * chunk / prompt) / stages:.3f}"]
            + [" / ".join(f"{rate / 1e12:,.0f}" for rate in rates)]
            + [percent(min(rates) / matmul, 0) if matmul else "-"]
            + [ms(forecast["ttft_s"], 0) if forecast else "-"]
            + [change(ideal, forecast["ttft_s"]) if forecast else "-"]
        )
    head = ["chunk", "TTFT ms", "steps end to end", "x unchunked", "ideal", "TFLOP/s of each stage while busy"]
    return table(head + ["least, of BF16 matmul", "forecast ms", "off by"], rows)


TRANSPORTS = {
    "one_1k": "NCCL as it chooses; one request",
    "hops_nccl": "NCCL as it chooses",
    "hops_shm": "NCCL, NCCL_P2P_DISABLE",
    "hops_sockets": "NCCL, and NCCL_SHM_DISABLE",
    "hops_hosts": "NCCL, NCCL_HOSTID: as two hosts",
    "hops_tcp": "--transport tcp",
}


def hops(runs):
    """Messages of decode micro-batches of which there is one at a time: all of their time is waited for."""
    rows = []
    for name, what in TRANSPORTS.items():
        run = runs.measured(name)
        if run is None or run["steady"] is None:
            continue
        size = 2 * HIDDEN * run["steady"]["requests"]
        for hop in run["hops"][:-1]:
            message = next((s for s in hop["sizes"] if s["bytes"] == size), None)
            if message is None:
                continue
            rows.append(
                [what, ", ".join(run["via"]) or hop["route"], f"{hop['from']} to {hop['to']}", f"{size // 1024:,}"]
                + [us(message["p50_s"]), us(message["max_s"]), ms(run["itl_p50_s"])]
                + [percent(message["p50_s"] / run["itl_p50_s"], 2)]
            )
    head = ["", "NCCL says", "hop", "KiB", "p50 us", "max us", "ITL p50 ms", "of it"]
    return table(head, rows, words=3)


def exposed(runs):
    """What of the messages is waited for when the pipeline is full."""
    rows = []
    for name in sorted(runs.names(r"load_\d+x\d+"), key=by_load):
        run = runs.measured(name)
        if run["steady"] is None:
            continue
        for hop in run["hops"]:
            waited, back = hop["exposed_s"] / hop["messages"], hop["to"] == 0
            rows.append(
                [f"{run['max_in_flight']} x {run['steady']['requests']}"]
                + [f"{hop['from']} to {hop['to']}" + (" (tokens back)" if back else ""), str(hop["messages"])]
                + [f"{hop['bytes'] / hop['messages'] / 1024:,.1f}", us(hop["exposed"]["p50_s"]) if not back else "-"]
                + [us(waited), percent(waited / run["itl_p50_s"], 3)]
            )
    head = ["micro-batches x requests", "hop", "messages", "KiB each", "exposed us, median", "mean", "of ITL"]
    return table(head, rows, words=2)


def sizes(runs):
    """Messages of runs that have one micro-batch or chunk after the other. The least times are of those that the
    receiving stage was ready for."""
    by_size = {}
    for name in runs.names(r"one_1k|hops_nccl|prefill_.*"):
        run = runs.measured(name)
        for hop in run["hops"][:-1]:
            for size in hop["sizes"]:
                if size["count"] > 0 and size["bytes"] > 0:
                    by_size.setdefault(size["bytes"], []).append((size["count"], name, size))
    rows = []
    for size, seen in sorted(by_size.items()):
        count, name, message = max(seen, key=lambda s: s[0])
        rows.append(
            [f"{size / 1024:,.0f} KiB", name, str(count), us(message["min_s"]), us(message["p50_s"])]
            + [us(message["max_s"]), f"{size / message['min_s'] / 1e9:,.1f}"]
        )
    return table(["message", "run", "messages", "least us", "p50", "max", "GB/s, least"], rows, words=2)


def clocks(runs):
    """What the GPUs ran at."""
    rows = []
    for name, entry in runs.by_name.items():
        busy = entry["measured"].get("clocks", [])
        if name in ("one_1k", "tensor_2") or re.fullmatch(r"(load_6x|prefill_(512|8192)).*", name):
            clock = " / ".join(f"{gpu['sm_mhz']:,.0f}" for gpu in busy) or "-"
            power = " / ".join(f"{gpu['power_w']:,.0f}" for gpu in busy) or "-"
            rows.append([name, clock, power])
    return table(["run", "SM clock of each GPU MHz", "power W"], rows)


def split(runs):
    rows = []
    for name, what in (
        ("load_6x32", "even"),
        ("split_auto", "auto, by the roofline"),
        ("split_measured", "auto, by the times of the even run"),
    ):
        run = runs.measured(name)
        if run is None or run["steady"] is None:
            continue
        steps = [step["mean_s"] for step in run["steady"]["step"]]
        rows.append(
            [what, layers_of(run), " / ".join(ms(step) for step in steps), f"{max(steps) / mean(steps):.3f}"]
            + [f"{run['steady']['tokens_per_s']:,.1f}"]
        )
    return table(["--split", "layers", "step of each stage ms", "slowest / mean", "tokens/s"], rows)


def one_gpu_step(run, layers):
    """Seconds of a decode step of so many layers on one GPU, from stages of other numbers of layers."""
    steps = [(s["layers"], step["mean_s"]) for s, step in zip(run["stages"], run["steady"]["step"])]
    return layers * sum(step for _, step in steps) / sum(count for count, _ in steps)


def tensor(runs):
    rows = []
    pipelines = [name for name in runs.names(r"load_\d+x32") if runs.measured(name)["steady"]]
    least = min(pipelines, key=lambda name: by_load(name)[0], default="")
    for name, beside in (("tensor_2", "one_1k"), ("tensor_2x32", least), ("tensor_2_1", "one_1k")):
        run, alone, forecast = runs.measured(name), runs.measured(beside), runs.forecast(name)
        if run is None or alone is None or run["steady"] is None or alone["steady"] is None:
            continue
        for index, (stage, step) in enumerate(zip(run["stages"], run["steady"]["step"])):
            if len(stage["gpus"]) == 1:
                continue
            single = one_gpu_step(alone, stage["layers"])
            foretold = forecast["steady"]["step"][index]["mean_s"] if forecast and forecast["steady"] else None
            rows.append(
                [gpus_of(run), str(run["steady"]["requests"]), str(stage["layers"]), ms(single), ms(step["mean_s"])]
                + [f"{single / step['mean_s']:.2f}", ms(foretold), change(step["mean_s"], foretold)]
            )
    head = ["", "requests", "layers", "on one GPU ms", "on two ms", "faster", "forecast ms", "off by"]
    return table(head, rows)


def loading(runs):
    """Weights only; and whole runs, which start processes, load, capture graphs and answer requests."""
    rows = []
    pattern = re.compile(r"(stage \d+)\b.*?([\d.]+) GB of weights in ([\d.]+) s \(([\d.]+) GB/s\)")
    for name in ["one_1k", "tensor_2", "tensor_2_1", "disk_cached", "disk_dropped"]:
        run = runs.measured(name)
        if run is None:
            continue
        what = {"disk_cached": "checkpoint, from the page cache", "disk_dropped": "checkpoint, from the disk"}
        for match in filter(None, map(pattern.search, run["environment"])):
            rows.append(
                [what.get(name, "synthetic"), f"{gpus_of(run)}, {layers_of(run)} layers", match[1]]
                + [match[2], match[3], match[4], f"{run['wall_s']:.1f}"]
            )
    head = ["weights", "", "", "GB a GPU", "s", "GB/s", "whole run s"]
    return table(head, rows, words=3)


def events(runs):
    """Forecast beside measurement: medians of all events of a kind, and of the differences of those lined up."""
    rows = []
    for name in ("one_1k", "load_6x32", "prefill_1024"):
        compared = runs.by_name.get(name, {}).get("events", {})
        for d in compared.get("durations", []):
            if d["what"] == "send wait" or not d["lined_up"]:
                continue
            stage = "" if d["stage"] < 0 else f" {d['stage']}"
            rows.append(
                [name, f"{d['what']}{stage} {d['phase']}".strip(), str(d["lined_up"])]
                + [ms(d["forecast_p50_s"], 3), ms(d["measured_p50_s"], 3), f"{1e3 * d['difference_p50_s']:+,.3f}"]
                + [ms(d["difference_p90_s"], 3)]
            )
    head = ["run", "event", "lined up", "forecast ms", "measured ms", "later by ms", "90 % within ms"]
    return table(head, rows, words=2)


def rules(runs):
    run = runs.measured("rules")
    if run is None:
        return "Not measured.\n"
    return "".join(f"- {choice}\n" for choice in run["choices"]) or "Nothing was chosen by rule.\n"


TABLES = {
    "environment": environment,
    "memory": memory,
    "one": one,
    "load": load,
    "prefill": prefill,
    "hops": hops,
    "exposed": exposed,
    "sizes": sizes,
    "clocks": clocks,
    "split": split,
    "tensor": tensor,
    "loading": loading,
    "events": events,
    "rules": rules,
}


def rewritten(document):
    """The document with its tables as the results have them."""

    def replace(match):
        folder, name = match[1], match[2]
        if name not in TABLES:
            raise Failure(f"{DOCUMENT}: there is no table {name}; there are {', '.join(TABLES)}")
        return f"<!-- table: {folder} {name} -->\n{TABLES[name](Runs(f'{RESULTS}/{folder}'))}<!-- end -->"

    return MARKER.sub(replace, document)


def update(check):
    with open(DOCUMENT, encoding="utf-8") as file:
        document = file.read()
    new = rewritten(document)
    if new == document:
        return
    if check:
        raise Failure(f"{DOCUMENT}: tables differ from the results; run benchmarks/pipeline_405b/tables.py")
    with open(DOCUMENT, "w", encoding="utf-8") as file:
        file.write(new)


def merge(out, folders):
    """Runs of several folders, and the files that each has of the runs taken from it; not the timelines."""
    merged = {}
    os.makedirs(out, exist_ok=True)
    for folder in folders:
        for entry in read(f"{folder}/runs.json")["runs"]:
            known = merged.setdefault(entry["name"], {"name": entry["name"], "group": entry["group"]})
            if "forecast" in entry and "forecast" not in known:
                known["forecast"] = entry["forecast"]
                copy_file(folder, out, f"{entry['name']}.forecast.json")
            succeeded = entry.get("measured", {}).get("exit") == 0
            if succeeded and "measured" not in known:
                known["measured"] = entry["measured"]
                known["events"] = entry.get("events", {})
                copy_file(folder, out, f"{entry['name']}.json")
    with open(f"{out}/runs.json", "w", encoding="utf-8") as file:
        json.dump({"schema": "fabricast.pipeline_405b.v1", "runs": list(merged.values())}, file, indent=1)
        file.write("\n")


def copy_file(folder, out, name):
    if os.path.exists(f"{folder}/{name}") and os.path.realpath(folder) != os.path.realpath(out):
        shutil.copyfile(f"{folder}/{name}", f"{out}/{name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", metavar="FOLDER")
    parser.add_argument("--merge", metavar="OUT")
    parser.add_argument("folders", nargs="*", metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        if arguments.merge:
            if not arguments.folders:
                raise Failure("--merge: name the folders to merge")
            merge(arguments.merge, arguments.folders)
        elif arguments.print:
            runs = Runs(arguments.print)
            for name, write in TABLES.items():
                print(f"{name}\n\n{write(runs)}")
        else:
            update(arguments.check)
    except Failure as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
