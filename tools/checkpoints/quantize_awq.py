#!/usr/bin/env python3
"""Quantises a Llama, Qwen3 or Qwen3-MoE checkpoint to AWQ-INT4 in AutoAWQ's GEMM layout.

    tools/checkpoints/quantize_awq.py --model FOLDER --out FOLDER \\
        --calibration text.txt --held-out text.txt

What AWQ (arXiv:2306.00978) does: input channels with large activations get a larger share of the
quantiser's grid. A channel's weights are multiplied by a scale, and whatever produces the channel
is divided by it: the norm before q, k, v and before gate, up; v_proj before o_proj; up_proj before
down_proj. The scale is mean|x|^r / mean|w|^(1-r), with the exponent r in 0..1 that least changes
the layers' outputs on the calibration text. Then each group's range is shrunk, if that changes them
less.

Differences from AutoAWQ: the error is that of the linear layers themselves, from the Gram matrix of
their inputs (|X dW|^2 = dW G dW'); with grouped-query attention v and o are scaled too, one scale
for the query heads that share a value channel; each layer's inputs come from the layers quantised
so far.

Perplexity is reported before and after. Needs PyTorch, safetensors and tokenizers.
"""

import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import awq_gemm
from float_decoder import Checkpoint, decoder_layer, head_size, negative_log_likelihood, windows

EXPONENTS = [i / 20 for i in range(21)]
SHRINK = [1 - i / 40 for i in range(20)]  # of a group's range: 1 to 0.525
GROUP = awq_gemm.GROUP


class Inputs:
    """What entered the linear layers: the Gram matrix and the mean magnitude of each channel."""

    def __init__(self):
        self.gram, self.magnitude, self.tokens = {}, {}, {}

    def __call__(self, name, x):
        self.gram[name] = self.gram.get(name, 0) + x.t() @ x
        self.magnitude[name] = self.magnitude.get(name, 0) + x.abs().sum(0)
        self.tokens[name] = self.tokens.get(name, 0) + len(x)

    def mean(self, name):
        return self.magnitude[name] / self.tokens[name]


def error(change, gram):
    return ((change @ gram) * change).sum()


def round_trip(weight):
    return awq_gemm.dequantize(*awq_gemm.quantize(weight))


def search_scale(names, layer, inputs, tie=None):
    """The scale [in] of the input that the layers `names` share. `tie` makes channels share one."""
    seen = [name for name in names if inputs.tokens[name]]
    if not seen:
        return None
    x = sum(inputs.magnitude[name] for name in seen) / sum(inputs.tokens[name] for name in seen)
    weights = torch.cat([layer[name + ".weight"] for name in names])
    grouped = weights.abs().reshape(len(weights), -1, GROUP)
    w = (grouped / (grouped.amax(-1, keepdim=True) + 1e-6)).reshape(weights.shape).mean(0)
    least, best = None, None
    for r in EXPONENTS:
        scale = (x.clamp(min=1e-8) ** r / w.clamp(min=1e-8) ** (1 - r)).clamp(min=1e-4)
        if tie:
            scale = tie(scale)
        scale = scale / (scale.max() * scale.min()).sqrt()
        loss = sum(
            error(
                round_trip(layer[name + ".weight"] * scale) / scale - layer[name + ".weight"],
                inputs.gram[name],
            )
            for name in seen
        )
        if torch.isfinite(loss) and (least is None or loss < least):
            least, best = loss, scale
    unscaled = sum(
        error(round_trip(layer[name + ".weight"]) - layer[name + ".weight"], inputs.gram[name])
        for name in seen
    )
    return best if least is not None and least < unscaled else None


def scale_inputs(names, layer, inputs, scale):
    for name in names:
        layer[name + ".weight"] *= scale
        if name in inputs.gram:
            inputs.gram[name] = inputs.gram[name] / scale / scale[:, None]


def divide_outputs(name, layer, scale):
    layer[name + ".weight"] /= scale[:, None]
    if name + ".bias" in layer:
        layer[name + ".bias"] /= scale


def mlp_names(config, layer):
    if "mlp.gate.weight" in layer:
        return [f"mlp.experts.{e}" for e in range(config["num_experts"])]
    return ["mlp"]


def apply_scales(config, layer, inputs):
    """Searches and applies all scales of a layer, in place. It computes the same as before."""
    attention = [f"self_attn.{part}_proj" for part in "qkv"]
    scale = search_scale(attention, layer, inputs)
    if scale is not None:
        layer["input_layernorm.weight"] /= scale
        scale_inputs(attention, layer, inputs, scale)

    kv_heads, size = config["num_key_value_heads"], head_size(config)

    def share(scale):  # one scale for the query heads of a value channel: their geometric mean
        mean = scale.log().reshape(kv_heads, -1, size).mean(1, keepdim=True).exp()
        return mean.expand(kv_heads, config["num_attention_heads"] // kv_heads, size).reshape(-1)

    scale = search_scale(["self_attn.o_proj"], layer, inputs, share)
    if scale is not None:
        divide_outputs(
            "self_attn.v_proj", layer, scale.reshape(kv_heads, -1, size)[:, 0].reshape(-1)
        )
        scale_inputs(["self_attn.o_proj"], layer, inputs, scale)

    mlps = mlp_names(config, layer)
    fed = [f"{name}.{part}_proj" for name in mlps for part in ("gate", "up")]
    scale = search_scale(fed, layer, inputs)
    if scale is not None:
        layer["post_attention_layernorm.weight"] /= scale
        router = ["mlp.gate"] if "mlp.gate.weight" in layer else []
        scale_inputs(fed + router, layer, inputs, scale)
    for name in mlps:
        scale = search_scale([f"{name}.down_proj"], layer, inputs)
        if scale is not None:
            divide_outputs(f"{name}.up_proj", layer, scale)
            scale_inputs([f"{name}.down_proj"], layer, inputs, scale)


def search_clip(weight, gram):
    """For each group, the bound on its values' magnitude that least changes its own output."""
    rows, columns = weight.shape
    w = weight.reshape(rows, columns // GROUP, GROUP)
    most = w.abs().amax(-1, keepdim=True)
    blocks = torch.stack([gram[i : i + GROUP, i : i + GROUP] for i in range(0, columns, GROUP)])
    best, least = most.clone(), None
    for share in SHRINK:
        q = awq_gemm.dequantize(*awq_gemm.quantize(weight, clip=most * share))
        change = q.reshape(w.shape) - w
        loss = torch.einsum("rgi,gij,rgj->rg", change, blocks, change).unsqueeze(-1)
        if least is None:
            least = loss
            continue
        better = loss < least
        least, best = torch.where(better, loss, least), torch.where(better, most * share, best)
    return best


def quantise_layer(layer, inputs):
    """Quantises all linear layers but the router; in `layer`, (q - z) * s replaces the weights."""
    tensors = {}
    for name in sorted(
        key.removesuffix(".weight") for key in layer if key.endswith("_proj.weight")
    ):
        weight = layer[name + ".weight"]
        # As in AWQ, q and k keep their range: attention's scores are sensitive to it.
        use_clip = inputs.tokens.get(name) and not name.endswith(("q_proj", "k_proj"))
        clip = search_clip(weight, inputs.gram[name]) if use_clip else None
        q, z, s = awq_gemm.quantize(weight, clip=clip)
        tensors.update(awq_gemm.tensors(name, q, z, s))
        layer[name + ".weight"] = awq_gemm.dequantize(q, z, s)
    return tensors


@torch.no_grad()
def quantise(checkpoint, ids, size, count):
    """All tensors of the quantised checkpoint. `ids` is the calibration text."""
    config, device = checkpoint.config, checkpoint.device
    pieces = [piece for piece in windows(ids, config["bos_token_id"], size) if len(piece) == size]
    pieces = pieces[:: max(1, len(pieces) // count)][:count]
    assert pieces, f"the calibration text has fewer than {size} tokens"
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    states = [embedding[part] for part in torch.stack(pieces).to(device).split(16)]
    out = {
        name: checkpoint.tensor(name).half()
        for name in checkpoint.names()
        if not name.startswith("model.layers.")
    }
    for i in range(config["num_hidden_layers"]):
        layer, inputs = checkpoint.layer(i), Inputs()
        for x in states:
            decoder_layer(config, layer, x, inputs)
        apply_scales(config, layer, inputs)
        tensors = quantise_layer(layer, inputs)
        for name in layer:
            if not name.endswith("_proj.weight"):
                tensors[name] = layer[name].half()
                layer[name] = tensors[name].float()
        states = [decoder_layer(config, layer, x) for x in states]
        out.update({f"model.layers.{i}.{name}": tensor for name, tensor in tensors.items()})
        print(f"layer {i} quantised", flush=True)
    return {name: tensor.contiguous().cpu() for name, tensor in out.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--calibration", type=pathlib.Path, required=True, help="text to measure activations on"
    )
    parser.add_argument("--held-out", type=pathlib.Path, help="text to report perplexity on")
    parser.add_argument("--windows", type=int, default=128, help="of the calibration text")
    parser.add_argument("--window", type=int, default=512, help="tokens in each")
    args = parser.parse_args()

    torch.backends.cuda.matmul.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = Checkpoint(args.model, device)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))

    def encode(path):
        return torch.tensor(tokenizer.encode(path.read_text(), add_special_tokens=False).ids)

    tensors = quantise(checkpoint, encode(args.calibration), args.window, args.windows)
    args.out.mkdir(parents=True, exist_ok=True)
    routers = sorted(
        name.removesuffix(".weight") for name in tensors if name.endswith("mlp.gate.weight")
    )
    config = {
        **checkpoint.config,
        "torch_dtype": "float16",
        "quantization_config": awq_gemm.quantization_config(routers or None),
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, args.out / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (args.model / name).exists():
            shutil.copy(args.model / name, args.out / name)
    if args.held_out:
        ids = encode(args.held_out)
        for name, folder in (("before", args.model), ("after", args.out)):
            nll = negative_log_likelihood(Checkpoint(folder, device), ids, args.window).mean()
            print(f"perplexity {name}: {nll.exp():.3f} ({nll:.4f} nats a token, {len(ids)} tokens)")


if __name__ == "__main__":
    main()
