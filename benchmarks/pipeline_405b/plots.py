#!/usr/bin/env python3
"""Plots of docs/405b.md, from what tools/pipeline_405b measured; needs matplotlib.

    plots.py FOLDER...     draws FOLDER/{tpot,load,prefill}.svg from FOLDER/runs.json; what was not measured is left out
    plots.py --format=png FOLDER...
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import tables  # noqa: E402

# Measured, forecast, bound: told apart without colour, too.
MEASURED = {"color": "#1f5fa8", "marker": "o"}
FORECAST = {"color": "#c8641e", "marker": "s", "linestyle": "--", "markerfacecolor": "none"}
BOUND = {"color": "#666666", "linestyle": ":"}


def tpot(runs, figure):
    """TPOT of one request, its forecast, and the time of reading what it needs."""
    shown = []
    for name, what in (("one_1k", "1k context"), ("prefill_1024", "8k context"), ("tensor_2", "1k context")):
        run = runs.measured(name)
        if run is not None:
            shown.append((f"{tables.gpus_of(run)}\n{what}", run, runs.forecast(name)))
    if not shown:
        return False
    axes = figure.subplots()
    for place, (_, run, forecast) in enumerate(shown):
        bars = [(run["tpot_s"], MEASURED["color"], "measured")]
        if forecast:
            bars.append((forecast["tpot_s"], FORECAST["color"], "forecast"))
        if tables.floor_of(run):
            bars.append((tables.floor_of(run), BOUND["color"], "floor: bytes / copy rate"))
        for index, (seconds, color, label) in enumerate(bars):
            x = place + 0.25 * (index - (len(bars) - 1) / 2)
            axes.bar(x, 1e3 * seconds, 0.22, color=color, label=label if place == 0 else None)
            axes.text(x, 1e3 * seconds, f"{1e3 * seconds:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(shown)), [label for label, _, _ in shown])
    axes.set_ylabel("TPOT, ms")
    axes.margins(y=0.25)
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    return True


def load(runs, figure):
    """Throughput, and how busy the slowest stage is, over micro-batches in flight."""
    points = []
    for name in runs.names(r"load_\d+x\d+"):
        run, forecast = runs.measured(name), runs.forecast(name)
        if run["steady"] is not None:
            points.append((run["steady"]["requests"], run["max_in_flight"], run, forecast))
    if not points:
        return False
    points.sort(key=lambda point: point[:2])
    rate, busy = figure.subplots(1, 2)
    colors = {16: "#2a8a57", 32: MEASURED["color"], 64: "#8a2a6b"}
    for each in sorted({point[0] for point in points}):
        mine = [point for point in points if point[0] == each]
        color = colors.get(each, "#333333")
        in_flight = [point[1] for point in mine]
        steadies = [run["steady"] for _, _, run, _ in mine]
        label = f"{each} requests each"
        rate.plot(in_flight, [s["tokens_per_s"] for s in steadies], color=color, marker="o", label=label)
        ideal = [each / s["step"][s["slowest"]]["mean_s"] for s in steadies]
        rate.plot(in_flight, ideal, color=color, linestyle=":", marker="_", label=None)
        forecasts = [(m, f["steady"]["tokens_per_s"]) for _, m, _, f in mine if f and f["steady"]]
        if forecasts:
            rate.plot(*zip(*forecasts), color=color, linestyle="--", marker="s", markerfacecolor="none")
        busy.plot(in_flight, [100 * s["busy"][s["slowest"]] for s in steadies], color=color, marker="o", label=label)
    rate.set_ylabel("output tokens/s, all decoding")
    rate.set_ylim(bottom=0)
    busy.set_ylabel("slowest stage busy, %")
    busy.set_ylim(90, 100.5)
    for axes in (rate, busy):
        axes.set_xlabel("micro-batches in flight")
        axes.set_xticks(sorted({point[1] for point in points}))
    busy.axhline(97, label="97 %: to reach", **BOUND)
    busy.legend(loc="lower right", fontsize=8, frameon=False)
    rate.plot([], [], color="#333333", linestyle="--", marker="s", markerfacecolor="none", label="forecast")
    rate.plot([], [], color="#333333", linestyle=":", marker="_", label="batch / slowest step")
    rate.legend(loc="lower right", fontsize=8, frameon=False)
    return True


def prefill(runs, figure):
    """TTFT of a long prompt over the length of its chunks."""
    shown = [runs.measured(name) for name in sorted(runs.names(r"prefill_\d+"), key=tables.by_load)]
    if not shown:
        return False
    axes = figure.subplots()
    chunks = [r["max_chunk_tokens"] for r in shown]
    axes.plot(chunks, [tables.end_to_end(r) for r in shown], label="measured steps, end to end", **MEASURED)
    axes.plot(chunks, [r["ttft_s"] for r in shown], "x", color=MEASURED["color"], label="measured TTFT")
    forecasts = [f for f in map(runs.forecast, sorted(runs.names(r"prefill_\d+"), key=tables.by_load)) if f]
    axes.plot([f["max_chunk_tokens"] for f in forecasts], [f["ttft_s"] for f in forecasts], label="forecast", **FORECAST)
    unchunked = runs.measured("prefill_8192")
    if unchunked is not None:
        stages, whole = len(unchunked["stages"]), tables.end_to_end(unchunked)
        ideal = [whole * (1 + (stages - 1) * chunk / 8192) / stages for chunk in chunks]
        axes.plot(chunks, ideal, label=f"unchunked x (1 + {stages - 1} chunk / prompt) / {stages}", **BOUND)
    axes.set_xscale("log", base=2)
    axes.set_xticks(chunks, [f"{chunk:,}" for chunk in chunks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens of a chunk")
    axes.set_ylabel("TTFT of 8,192 tokens, s")
    axes.legend(fontsize=8, frameon=False)
    return True


PLOTS = {"tpot": (tpot, (5.5, 3.4)), "load": (load, (8.5, 3.6)), "prefill": (prefill, (5.5, 3.4))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--format", default="svg")
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        sys.exit("plots.py: needs matplotlib; on Debian: apt-get install python3-matplotlib")
    matplotlib.use("Agg")
    # The same bytes for the same results; text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "fabricast", "svg.fonttype": "none"})
    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    from matplotlib.figure import Figure

    try:
        for folder in arguments.folders:
            runs = tables.Runs(folder)
            for name, (draw, size) in PLOTS.items():
                figure = Figure(figsize=size, layout="constrained")
                if draw(runs, figure):
                    undated = {"metadata": {"Date": None}} if arguments.format == "svg" else {"dpi": 110}
                    figure.savefig(f"{folder}/{name}.{arguments.format}", **undated)
    except tables.Failure as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
