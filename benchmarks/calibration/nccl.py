"""NCCL: latency of sends and collectives beyond their bytes on the wire, by size."""

import numpy
from scipy import optimize

import curves
from common import Row, provenance, read_columns
from textproto import Enum

H200_HOST = "one host with NVIDIA H200s, NCCL 2.28.9, 3 ranks"
EMULATED = (
    "EMULATED link: "
    + H200_HOST
    + " as two hosts (0,1 | 2) over a paced network plugin, 2 us latency, GPUDirect path"
)
EMULATED_DATA = "h200/nccl_emulated_link_3_ranks.csv"
TRANSPORTS_DATA = "h200/nccl_transports_3_ranks.csv"

# What the topology's links carry for messages, bytes / us: fitted rates are relative to these.
NVLINK = 348e3
PCIE5_X16 = 63.0e3 * 256 / 280
MIB = 2.0**20
DEFAULT_CHUNK = 131072.0


def ring_steps(op, ranks):
    return 2 * (ranks - 1) if op == "all_reduce" else ranks - 1


def bus_factor(op, ranks):
    return ring_steps(op, ranks) / ranks


def interpolate(x, knots, values):
    return numpy.interp(numpy.log2(x), numpy.log2(knots), values)


def least_squares(error, first, lower, upper):
    return optimize.least_squares(
        error,
        first,
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=0.05,
        x_scale="jac",
        max_nfev=2000,
    ).x


class SendFit:
    """time = latency(bytes) + bytes / min(rate, chunk / step). Latency at `knots`, constant beyond."""

    def __init__(self, knots, latency_us, cap):
        self.knots, self.latency_us, self.cap = numpy.asarray(knots), numpy.asarray(latency_us), cap

    def time_us(self, size, rate, cap=None):
        return interpolate(size, self.knots, self.latency_us) + size / numpy.minimum(
            rate, cap or self.cap
        )


def fit_send(size, time_us, rate, knots, cap=None):
    """cap: bytes / us that a stream is held to; None: fitted."""
    knots = numpy.asarray(knots)

    def unpack(parameters):
        return SendFit(knots, parameters[: len(knots)], cap or parameters[-1] * 1e3)

    first, lower, upper = [40.0] * len(knots), [0.0] * len(knots), [1000.0] * len(knots)
    if cap is None:
        first, lower, upper = first + [25.0], lower + [1.0], upper + [1000.0]
    return unpack(
        least_squares(
            lambda p: numpy.log(unpack(p).time_us(size, rate) / time_us), first, lower, upper
        )
    )


def without_one_size(fit_with, size, time_us, predict):
    """Residuals at each inner size when it is left out of the fit."""
    predicted, measured = [], []
    for held in sorted(set(size))[1:-1]:
        out = size == held
        fitted = fit_with(~out)
        predicted += list(predict(fitted, out))
        measured += list(time_us[out])
    return curves.Residuals.of(predicted, measured)


def latency_points(knots, values, name="points"):
    return [(name, [("bytes", float(x)), ("latency_us", float(y))]) for x, y in zip(knots, values)]


def send_message(path, points, source, chunk_step_us=None, max_gb_s=None):
    return (
        "sends",
        [("path", Enum(path))]
        + points
        + [("chunk_step_us", chunk_step_us), ("max_gb_s", max_gb_s), ("provenance", source)],
    )


def sends(data):
    messages, rows = [], []

    # Over the network with GPUDirect.
    link = read_columns(data / EMULATED_DATA)
    use = (link["nccl_proto"] == "None") & (link["bytes"] <= 256 * MIB)
    size, time_us = link["bytes"][use], link["p2p_us"][use]
    rate = link["link_gbps"][use] / 8 * 1e3
    knots = sorted(set(size[size <= 16 * MIB]))

    def network(part):
        return fit_send(
            size[part], time_us[part], rate[part], [k for k in knots if k in set(size[part])]
        )

    fitted = network(numpy.ones(len(size), dtype=bool))
    held_out = without_one_size(
        network, size, time_us, lambda f, part: f.time_us(size[part], rate[part])
    )
    rows.append(
        Row(
            "send, network RDMA",
            len(size),
            curves.Residuals.of(fitted.time_us(size, rate), time_us),
            held_out,
            "held out: each size",
        )
    )
    tuning = read_columns(data / "h200/nccl_emulated_link_sendrecv_tuning.csv")
    chunk_step_us = DEFAULT_CHUNK / fitted.cap
    for setting, chunk in (
        ("buffsize_8m", DEFAULT_CHUNK),
        ("chunk_512k+buffsize_8m", 4 * DEFAULT_CHUNK),
    ):
        part = tuning["setting"] == setting
        predicted = fitted.time_us(
            tuning["bytes"][part], tuning["link_gbps"][part] / 8 * 1e3, chunk / chunk_step_us
        )
        rows.append(
            Row(
                f"  {setting}",
                int(part.sum()),
                None,
                curves.Residuals.of(predicted, tuning["pingpong_half_us"][part]),
                "not in the fit",
            )
        )
    messages.append(
        send_message(
            "PATH_KIND_NETWORK_RDMA",
            latency_points(fitted.knots, fitted.latency_us),
            provenance(
                EMULATED,
                EMULATED_DATA + ", checked with h200/nccl_emulated_link_sendrecv_tuning.csv",
                True,
                f"200 and 400 Gbps and unpaced; the default chunk is capped at {fitted.cap / 1e3:.1f} GB/s, one of 512 "
                "KiB reached 49.9 GB/s at 400 Gbps. Published between two real hosts: 31 to 34 us up to 8 KiB.",
                held_out,
            ),
            chunk_step_us=chunk_step_us,
        )
    )

    # TCP.
    transports = read_columns(data / TRANSPORTS_DATA)

    def transport(name):
        part = transports["transport"] == name
        return transports["bytes"][part], transports["p2p_us"][part]

    size, time_us = transport("sock")
    small = size <= 32768
    latency_us = time_us[small] - size[small] / 3.2e3  # one socket's rate
    rows.append(Row("send, network TCP", int(small.sum()), None, None, "latency only, on loopback"))
    messages.append(
        send_message(
            "PATH_KIND_NETWORK_TCP",
            latency_points(size[small], latency_us),
            provenance(
                H200_HOST + ", NCCL sockets on loopback",
                TRANSPORTS_DATA,
                True,
                "Latency of small messages only; a wire adds its own. No cap: several streams of plain TCP are published "
                "at 198 of 200 Gbps. NCCL's own sockets do not get there: on loopback one socket carried 3.2 GB/s, 4 "
                "threads of 4 sockets 11.1 GB/s.",
            ),
        )
    )

    # Inside a host.
    for path, name, rate, cap, note in (
        ("PATH_KIND_NVLINK", "p2p", NVLINK, 1e9, "Rate: that of peer copies, 348 GB/s."),
        (
            "PATH_KIND_HOST_MEMORY",
            "shm",
            1e9,
            None,
            "A lone stream; in a ring, where every GPU sends and receives, each edge gets 28 GB/s.",
        ),
    ):
        size, time_us = transport(name)
        knots = size[size <= 16 * MIB]
        fit = fit_send(size, time_us, rate, knots, cap)
        rows.append(
            Row(
                f"send, {path[10:].lower().replace('_', ' ')}",
                len(size),
                curves.Residuals.of(fit.time_us(size, rate), time_us),
                None,
                "a curve through its points",
            )
        )
        messages.append(
            send_message(
                path,
                latency_points(fit.knots, fit.latency_us),
                provenance(H200_HOST, TRANSPORTS_DATA, True, note),
                max_gb_s=None if cap else fit.cap / 1e3,
            )
        )

    node = read_columns(data / "rtx_pro_6000/nccl_collectives_one_node.csv")
    use = (node["op_name"] == "alltoall") & (node["nccl_dtype"] == "half") & (node["num_gpus"] == 2)
    size, time_us = (
        node["message_size"][use],
        node["latency_ms"][use] * 1e3,
    )  # elements of 2 B, half of them to the other GPU
    order = numpy.argsort(size)
    size, time_us = size[order], time_us[order]
    out = numpy.arange(len(size)) % 4 == 2
    knots = [4.0**e for e in range(4, 13)]
    fit = fit_send(size[~out], time_us[~out], PCIE5_X16, knots)
    held_out = curves.Residuals.of(fit.time_us(size[out], PCIE5_X16), time_us[out])
    rows.append(
        Row(
            "send, pcie peer",
            len(size),
            curves.Residuals.of(fit.time_us(size[~out], PCIE5_X16), time_us[~out]),
            held_out,
        )
    )
    messages.append(
        send_message(
            "PATH_KIND_PCIE_PEER",
            latency_points(fit.knots, fit.latency_us),
            provenance(
                "RTX PRO 6000 Blackwell Server Edition, one host, NCCL 2.29.2",
                "ai-dynamo/aiconfigurator: rtx_pro_6000/nccl_collectives_one_node.csv",
                True,
                "Two GPUs that exchange messages (all-to-all), so both directions at once. One direction alone is "
                "unmeasured: plain peer copies are published at 53 to 56.6 GB/s.",
                held_out,
            ),
            max_gb_s=fit.cap / 1e3,
        )
    )
    return messages, rows


class CollectiveFit:
    """time = base + ring steps x step(bytes) + bytes x bus factor / (wire rate x fraction)."""

    def __init__(self, base_us, knots, step_us, fraction):
        self.base_us, self.knots, self.step_us, self.fraction = base_us, knots, step_us, fraction

    def time_us(self, size, steps, factor, wire):
        return (
            self.base_us
            + steps * interpolate(size, self.knots, self.step_us)
            + size * factor / (wire * self.fraction)
        )


def fit_collective(size, time_us, steps, factor, wire, knots, base_us=None, fraction=None):
    knots = numpy.asarray(knots, dtype=float)
    count = len(knots)

    def unpack(p):
        return CollectiveFit(
            base_us if base_us is not None else p[count],
            knots,
            p[:count],
            fraction if fraction is not None else p[-1],
        )

    first, lower, upper = [10.0] * count, [0.0] * count, [1e4] * count
    if base_us is None:
        first, lower, upper = first + [5.0], lower + [0.0], upper + [50.0]
    if fraction is None:
        first, lower, upper = first + [0.5], lower + [0.05], upper + [2.0]
    return unpack(
        least_squares(
            lambda p: numpy.log(unpack(p).time_us(size, steps, factor, wire) / time_us),
            first,
            lower,
            upper,
        )
    )


def collective_message(path, protocol, fit, source, max_bytes=None):
    return (
        "collectives",
        [("path", Enum(path)), ("protocol", protocol), ("base_us", fit.base_us)]
        + latency_points(fit.knots, fit.step_us, "step")
        + [("rate_fraction", fit.fraction), ("max_bytes", max_bytes), ("provenance", source)],
    )


# A ring's base in NCCL's tuning table; the measured rings keep it, as one number of ranks cannot tell base from steps.
BASE_US = {"LL": 6.6, "LL128": 14.0, "Simple": 8.4, "auto": 8.4}


def collectives(data):
    messages, rows, network = [], [], {}

    # Over the network.
    link = read_columns(data / EMULATED_DATA)
    paced = (link["link_gbps"] <= 400) & (
        link["bytes"] * 4 / 3 / link["allreduce_us"] <= link["link_gbps"] / 8 * 1e3
    )
    for protocol, label in (("Simple", "Simple"), ("None", "auto")):
        use = paced & (link["nccl_proto"] == protocol)
        size, time_us, wire = (
            link["bytes"][use],
            link["allreduce_us"][use],
            link["link_gbps"][use] / 8 * 1e3,
        )

        def fit_part(part):
            return fit_collective(
                size[part],
                time_us[part],
                4,
                4 / 3,
                wire[part],
                sorted(set(size[part])),
                BASE_US[label],
                1.0,
            )

        fit = fit_part(numpy.ones(len(size), dtype=bool))
        network[label] = fit
        held_out = without_one_size(
            fit_part, size, time_us, lambda f, part: f.time_us(size[part], 4, 4 / 3, wire[part])
        )
        rows.append(
            Row(
                f"all-reduce, network RDMA, {label}",
                len(size),
                curves.Residuals.of(fit.time_us(size, 4, 4 / 3, wire), time_us),
                held_out,
                "held out: each size",
            )
        )
        for gbps in sorted(set(link["link_gbps"][use])):
            part = wire == gbps / 8 * 1e3
            rows.append(
                Row(
                    f"  {gbps:.0f} Gbps",
                    int(part.sum()),
                    curves.Residuals.of(fit.time_us(size, 4, 4 / 3, wire)[part], time_us[part]),
                )
            )
        note = "3 ranks, all-reduce; base: NCCL's tuning table. " + (
            "200 Gbps only."
            if label == "Simple"
            else "What NCCL chose by itself, at 200 and 400 Gbps, between which its choice and the time at one size differ up "
            "to 3 times: a description of those runs, not a protocol."
        )
        messages.append(
            collective_message(
                "PATH_KIND_NETWORK_RDMA",
                label,
                fit,
                provenance(EMULATED, EMULATED_DATA, True, note, held_out),
            )
        )
    network["LL"] = CollectiveFit(BASE_US["LL"], [1.0], [2.7], 0.5)
    # Bounded by what NCCL's own choice, which this would be, took on the emulated link at 200 Gbps.
    small = (
        paced
        & (link["nccl_proto"] == "None")
        & (link["link_gbps"] == 200)
        & (link["bytes"] <= 32768)
    )
    modelled = network["LL"].time_us(link["bytes"][small], 4, 4 / 3, 25e3)
    worst = float((link["allreduce_us"][small] / modelled).max())
    messages.append(
        collective_message(
            "PATH_KIND_NETWORK_RDMA",
            "LL",
            network["LL"],
            [
                ("measured_on", "NCCL's own tuning constants, unmeasured here"),
                ("data", "NVIDIA/nccl, src/graph/tuning.cc"),
                ("sustained", True),
                (
                    "note",
                    "Half of the bytes are flags. Gives 138 us at 1 MiB, 3 ranks and 23.15 GB/s; NCCL's own choice took "
                    "140 us at 200 Gbps on the emulated link. At 8 and 32 KiB it took 77 and 123 us there, far more "
                    "than this; the interval spans both.",
                ),
                ("time_low_factor", 1.0),
                ("time_high_factor", worst),
            ],
        )
    )

    # Inside a host, three H200s.
    transports = read_columns(data / TRANSPORTS_DATA)
    for path, name, wire, fraction in (
        ("PATH_KIND_NVLINK", "p2p", NVLINK, 1.0),
        ("PATH_KIND_HOST_MEMORY", "shm", PCIE5_X16, None),
    ):
        use = transports["transport"] == name
        size = transports["bytes"][use]
        time_us = size * 4 / 3 / (transports["allreduce_busbw_GBps"][use] * 1e3)
        knots = size if fraction else size[:-1]
        fit = fit_collective(size, time_us, 4, 4 / 3, wire, knots, BASE_US["auto"], fraction)
        rows.append(
            Row(
                f"all-reduce, {path[10:].lower().replace('_', ' ')}, auto",
                len(size),
                curves.Residuals.of(fit.time_us(size, 4, 4 / 3, wire), time_us),
                None,
                "a curve through its points",
            )
        )
        messages.append(
            collective_message(
                path,
                "auto",
                fit,
                provenance(
                    H200_HOST,
                    TRANSPORTS_DATA,
                    True,
                    "All-reduce, what NCCL chose by itself; base: NCCL's tuning table. Small sizes come from a rate printed to two "
                    "digits. Rate: of "
                    + (
                        "NVLink peer copies, 348 GB/s."
                        if fraction
                        else "PCIe 5 x16's payload, 57.6 GB/s."
                    ),
                ),
            )
        )

    # Inside a host over PCIe, RTX PRO 6000.
    node = read_columns(data / "rtx_pro_6000/nccl_collectives_one_node.csv")
    use = (node["op_name"] != "alltoall") & (node["nccl_dtype"] == "half")
    ops, ranks = node["op_name"][use], node["num_gpus"][use].astype(int)
    size, time_us = node["message_size"][use] * 2, node["latency_ms"][use] * 1e3
    steps = numpy.array([ring_steps(op, n) for op, n in zip(ops, ranks)])
    factor = numpy.array([bus_factor(op, n) for op, n in zip(ops, ranks)])
    out = numpy.log2(size).astype(int) % 4 == 2
    # Above 8 MiB the wire decides, and a step of its own would only absorb the rate.
    knots = [2.0**e for e in range(9, 24) if e % 4 != 2]
    fit = fit_collective(size[~out], time_us[~out], steps[~out], factor[~out], PCIE5_X16, knots)
    predicted = fit.time_us(size, steps, factor, PCIE5_X16)
    held_out = curves.Residuals.of(predicted[out], time_us[out])
    rows.append(
        Row(
            "collectives, pcie peer, auto",
            len(size),
            curves.Residuals.of(predicted[~out], time_us[~out]),
            held_out,
            "held out: every 4th size",
        )
    )
    for n in (2, 4, 8):
        part = ranks == n
        rows.append(
            Row(
                f"  {n} GPUs",
                int(part.sum()),
                None,
                curves.Residuals.of(predicted[part], time_us[part]),
            )
        )
    for op in sorted(set(ops)):
        part = ops == op
        rows.append(
            Row(
                f"  {op}",
                int(part.sum()),
                None,
                curves.Residuals.of(predicted[part], time_us[part]),
            )
        )
    messages.append(
        collective_message(
            "PATH_KIND_PCIE_PEER",
            "auto",
            fit,
            provenance(
                "RTX PRO 6000 Blackwell Server Edition, 2, 4 and 8 GPUs of one host, NCCL 2.29.2",
                "ai-dynamo/aiconfigurator: rtx_pro_6000/nccl_collectives_one_node.csv",
                True,
                "All-reduce, all-gather and reduce-scatter, what NCCL chose by itself, priced as rings. Rate: of PCIe 5 x16's "
                "payload, 57.6 GB/s. Large all-reduces ran at 38.6 GB/s of bus bandwidth on two GPUs, 26.4 on four, 24.7 on eight.",
                held_out,
            ),
        )
    )
    return messages, rows, network_sanity(network)


def network_sanity(network):
    """Bus bandwidth of three ranks at 23.15 GB/s of payload (200 Gbps, path MTU 1024), the fastest protocol."""
    lines = []
    for size in (8192, 65536, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB):
        times = {name: float(fit.time_us(size, 4, 4 / 3, 23.15e3)) for name, fit in network.items()}
        best = min(times, key=times.get)
        rate = size * 4 / 3 / times[best] / 1e3
        lines.append(
            f"ring all-reduce, 3 ranks, 23.15 GB/s, {size:9.0f} B: {times[best]:8.1f} us ({best}), "
            f"bus bandwidth {rate:5.2f} GB/s"
        )
    return lines


def host_staging():
    return [
        ("host_staging_gb_s", 8.0),
        ("host_staging_low_gb_s", 4.0),
        ("host_staging_high_gb_s", 9.9),
        (
            "host_staging_provenance",
            [
                ("measured_on", "unmeasured"),
                ("data", "publication: single-digit GB/s on 200 Gbps with GPUDirect off"),
                ("sustained", True),
                ("note", "Chosen inside the published bracket, which is also the interval."),
            ],
        ),
    ]
