"""A checkpoint of random weights: AWQ-INT4 (AutoAWQ's GEMM layout), of the Llama that a config.json describes.

Sharded as Hugging Face shards: a file a layer, one of the embedding, one of the last norm and lm_head. Bytes repeat
after 16 MiB. All values are finite, but the text that they give means nothing: it is to time loading.
"""

import json
import os
import struct

BLOCK_BYTES = 1 << 24


def tensors_of(config):
    """Of each shard: {name: (dtype, shape)}."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    group = config["quantization_config"]["group_size"]
    products = {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    shards = [{"model.embed_tokens.weight": ("BF16", [config["vocab_size"], hidden])}]
    for layer in range(config["num_hidden_layers"]):
        shard = {}
        for name, (inputs, outputs) in products.items():
            name = f"model.layers.{layer}.{name}"
            shard[f"{name}.qweight"] = ("I32", [inputs, outputs // 8])
            shard[f"{name}.qzeros"] = ("I32", [inputs // group, outputs // 8])
            shard[f"{name}.scales"] = ("F16", [inputs // group, outputs])
        for name in ("input_layernorm", "post_attention_layernorm"):
            shard[f"model.layers.{layer}.{name}.weight"] = ("BF16", [hidden])
        shards.append(shard)
    last = {"model.norm.weight": ("BF16", [hidden])}
    if not config.get("tie_word_embeddings"):
        last["lm_head.weight"] = ("BF16", [config["vocab_size"], hidden])
    return shards + [last]


def size_of(dtype, shape):
    size = {"BF16": 2, "F16": 2, "I32": 4}[dtype]
    for length in shape:
        size *= length
    return size


def checkpoint_bytes(config):
    return sum(size_of(*tensor) for shard in tensors_of(config) for tensor in shard.values())


def blocks():
    """Bytes to repeat, by dtype: random nibbles; BF16 of 2^-7 to 2^-5, of either sign; scales of 2^-8."""
    noise = os.urandom(BLOCK_BYTES)
    values = bytearray(noise)
    # The high byte: sign, and exponents from which no infinity comes.
    values[1::2] = noise[1::2].translate(bytes([0x3C if byte < 128 else 0xBC for byte in range(256)]))
    return {
        "I32": memoryview(noise),
        "BF16": memoryview(bytes(values)),
        "F16": memoryview(struct.pack("<H", 0x1C00) * (BLOCK_BYTES // 2)),
    }


def write(config, folder):
    """Writes the files into `folder`; returns the bytes of the tensors. They may not have reached the disk yet."""
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/config.json", "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1)
    repeated = blocks()
    shards = tensors_of(config)
    file_of, total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, offset = {}, 0
        for tensor, (dtype, shape) in shard.items():
            end = offset + size_of(dtype, shape)
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            file_of[tensor], offset = name, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(f"{folder}/{name}", "wb", buffering=0) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for dtype, shape in shard.values():
                left = size_of(dtype, shape)
                while left > 0:
                    left -= file.write(repeated[dtype][: min(left, BLOCK_BYTES)])
        total += offset
    with open(f"{folder}/model.safetensors.index.json", "w", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": file_of}, file)
    return total


def drop_from_cache(folder):
    """Of the page cache, once all has reached the disk, which may take its time."""
    for name in os.listdir(folder):
        with open(f"{folder}/{name}", "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
