"""AWQ-INT4 in AutoAWQ's "GEMM" layout: quantising a weight to it, packing, unpacking.

A linear layer's weight [out, in] becomes three tensors:

    qweight  int32   [in, out / 8]      eight 4-bit values a word
    qzeros   int32   [in / group, out / 8]
    scales   float16 [in / group, out]

Nibble i of a word (bits 4i..4i+3) of column c holds output column 8c + ORDER[i].
The weight is (q - z) * s; unlike GPTQ there is no +1 on z.
"""

import torch

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GROUP = 128


def quantize(weight, group=GROUP, clip=None):
    """q [out, in] and z [out, in / group], int32 in 0..15, and s [out, in / group], float16.

    Each group of a row spans its least to its greatest value; `clip` [out, in / group, 1], if
    given, bounds the values' magnitude first. q is rounded against the stored, float16 scale.
    """
    rows, columns = weight.shape
    assert columns % group == 0, f"input width {columns} is not a multiple of the group, {group}"
    w = weight.float().reshape(rows, columns // group, group)
    if clip is not None:
        w = torch.clamp(w, -clip, clip)
    least, most = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    s = ((most - least).clamp(min=1e-5) / 15).half()
    z = (-torch.round(least / s.float())).clamp(0, 15)
    q = (torch.round(w / s.float()) + z).clamp(0, 15)
    return q.int().reshape(rows, columns), z.int().squeeze(-1), s.squeeze(-1)


def dequantize(q, z, s, group=GROUP):
    """(q - z) * s in float32, [out, in]."""
    return (q - z.repeat_interleave(group, 1)).float() * s.float().repeat_interleave(group, 1)


def pack(values):
    """[rows, columns] of 0..15 to int32 [rows, columns / 8]."""
    rows, columns = values.shape
    nibbles = values.long().reshape(rows, columns // 8, 8)[..., list(ORDER)]
    words = (nibbles << (4 * torch.arange(8, device=values.device))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack(words):
    """The inverse of pack."""
    nibbles = (words.long().unsqueeze(-1) >> (4 * torch.arange(8, device=words.device))) & 15
    values = torch.empty_like(nibbles)
    values[..., list(ORDER)] = nibbles
    return values.flatten(1).int()


def tensors(name, q, z, s):
    """The three tensors of the linear layer `name`, say "model.layers.0.mlp.up_proj"."""
    return {
        f"{name}.qweight": pack(q.t()).contiguous(),
        f"{name}.qzeros": pack(z.t()).contiguous(),
        f"{name}.scales": s.t().contiguous(),
    }


def quantization_config(not_converted=None):
    """What config.json says of such a checkpoint."""
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": not_converted,
    }
