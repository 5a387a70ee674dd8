"""Llama, Qwen3 and Qwen3-MoE in plain PyTorch and float32, layer by layer from a checkpoint folder.

It holds one layer at once, so it needs little memory, and lets its caller see what enters every
linear layer. quantize_awq.py is built on it; transformers computes the references, so the two check
each other.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors import safe_open

import awq_gemm


class Checkpoint:
    """A folder with config.json and one or more model*.safetensors. AWQ is dequantised."""

    def __init__(self, folder, device="cpu"):
        self.folder, self.device = pathlib.Path(folder), device
        self.config = json.loads((self.folder / "config.json").read_text())
        self.files = {}
        for path in sorted(self.folder.glob("model*.safetensors")):
            with safe_open(path, "pt") as tensors:
                self.files.update({name: path for name in tensors.keys()})

    def stored(self, name):
        """The tensor as it lies in the file."""
        with safe_open(self.files[name], "pt") as tensors:
            return tensors.get_tensor(name)

    def tensor(self, name):
        """The tensor `name` of the unquantised model, in float32 on the device."""
        if name not in self.files and name.endswith(".weight"):
            layer = name.removesuffix("weight")
            q = awq_gemm.unpack(self.stored(layer + "qweight").to(self.device)).t()
            z = awq_gemm.unpack(self.stored(layer + "qzeros").to(self.device)).t()
            s = self.stored(layer + "scales").to(self.device).t()
            return awq_gemm.dequantize(q, z, s)
        return self.stored(name).float().to(self.device)

    def names(self):
        """The names that the unquantised model has."""
        return sorted(
            {
                name.removesuffix("qweight") + "weight" if name.endswith(".qweight") else name
                for name in self.files
                if not name.endswith((".qzeros", ".scales"))
            }
        )

    def layer(self, i):
        """The tensors of decoder layer i, named without "model.layers.i."."""
        prefix = f"model.layers.{i}."
        return {
            name.removeprefix(prefix): self.tensor(name)
            for name in self.names()
            if name.startswith(prefix)
        }

    def lm_head(self):
        tied = self.config.get("tie_word_embeddings", False)
        return self.tensor("model.embed_tokens.weight" if tied else "lm_head.weight")


def rms_norm(x, gain, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain


def rope_frequencies(config, device):
    size = head_size(config)
    frequency = config["rope_theta"] ** (
        -torch.arange(0, size, 2, device=device, dtype=torch.float64) / size
    )
    scaling = config.get("rope_scaling")
    if scaling:
        assert scaling.get("rope_type") == "llama3", f"rope_scaling {scaling} is not known here"
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (keep + (1 - keep) / scaling["factor"])
    return frequency.float()


def rotate(x, frequency):
    """x [..., positions, size]: the pair (i, i + size / 2) turns by position * frequency i."""
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def head_size(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def linear(layer, name, x, observe):
    if observe:
        observe(name, x.reshape(-1, x.shape[-1]))
    return F.linear(x, layer[name + ".weight"], layer.get(name + ".bias"))


def attention(config, layer, x, observe):
    batch, count, _ = x.shape

    def heads(name):
        y = linear(layer, f"self_attn.{name}_proj", x, observe).reshape(
            batch, count, -1, head_size(config)
        )
        if f"self_attn.{name}_norm.weight" in layer:
            y = rms_norm(y, layer[f"self_attn.{name}_norm.weight"], config["rms_norm_eps"])
        return y.transpose(1, 2)

    frequency = rope_frequencies(config, x.device)
    q, k, v = rotate(heads("q"), frequency), rotate(heads("k"), frequency), heads("v")
    repeats = q.shape[1] // k.shape[1]
    y = F.scaled_dot_product_attention(
        q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1), is_causal=True
    )
    return linear(layer, "self_attn.o_proj", y.transpose(1, 2).reshape(batch, count, -1), observe)


def mlp(layer, name, x, observe):
    gate = linear(layer, f"{name}.gate_proj", x, observe)
    up = linear(layer, f"{name}.up_proj", x, observe)
    return linear(layer, f"{name}.down_proj", F.silu(gate) * up, observe)


def experts(config, layer, x, observe):
    flat = x.reshape(-1, x.shape[-1])
    probability = linear(layer, "mlp.gate", flat, observe).softmax(-1)
    weight, chosen = probability.topk(config["num_experts_per_tok"])
    if config["norm_topk_prob"]:
        weight = weight / weight.sum(-1, keepdim=True)
    y = torch.zeros_like(flat)
    for e in range(config["num_experts"]):
        token, slot = (chosen == e).nonzero(as_tuple=True)
        y.index_add_(
            0,
            token,
            mlp(layer, f"mlp.experts.{e}", flat[token], observe) * weight[token, slot, None],
        )
    return y.reshape(x.shape)


def decoder_layer(config, layer, x, observe=None):
    """One layer's output. `observe(name, x)` sees what enters each linear layer, [tokens, in]."""
    eps = config["rms_norm_eps"]
    x = x + attention(config, layer, rms_norm(x, layer["input_layernorm.weight"], eps), observe)
    y = rms_norm(x, layer["post_attention_layernorm.weight"], eps)
    return x + (
        experts(config, layer, y, observe)
        if "mlp.gate.weight" in layer
        else mlp(layer, "mlp", y, observe)
    )


def windows(ids, bos, size):
    """Pieces of size - 1 tokens, each after the begin token: every token is predicted once."""
    step = size - 1
    return [torch.cat((torch.tensor([bos]), ids[i : i + step])) for i in range(0, len(ids), step)]


@torch.no_grad()
def negative_log_likelihood(checkpoint, ids, size=512, batch=16):
    """Of each of `ids` (int64, no special tokens), in the windows above."""
    config = checkpoint.config
    pieces = windows(ids, config["bos_token_id"], size)
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    # Causal attention does not see the padding behind a short last piece.
    padded = torch.stack([F.pad(piece, (0, size - len(piece))) for piece in pieces]).to(
        checkpoint.device
    )
    states = [embedding[part] for part in padded.split(batch)]
    for i in range(config["num_hidden_layers"]):
        layer = checkpoint.layer(i)
        states = [decoder_layer(config, layer, x) for x in states]
    norm, head = checkpoint.tensor("model.norm.weight"), checkpoint.lm_head()
    losses = []
    for x, part in zip(states, padded.split(batch)):
        logits = F.linear(rms_norm(x, norm, config["rms_norm_eps"]), head)[:, :-1]
        losses.append(F.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none"))
    return torch.cat(losses).flatten()[: len(ids)].cpu()
