#!/usr/bin/env python3
"""Makes the small random checkpoints of runtime/executor/testdata and their reference outputs.

    tools/checkpoints/make_model_fixtures.py --out runtime/executor/testdata

Each checkpoint has the config.json and the tensors that a published checkpoint of its family has;
the references come from transformers' own classes in float32 (no TF32, eager attention). README.md
of that folder describes the files. Needs PyTorch, transformers and safetensors; takes a minute or
two on a GPU.
"""

import argparse
import itertools
import json
import math
import pathlib
import shutil
import tempfile

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import awq_gemm

LENGTHS = (1, 7, 33, 100)  # of the prompts
CONTINUATION = 32  # greedy tokens after each prompt
HIDDEN_PROMPT = 33  # the prompt whose hidden states are kept
SEEDS = 16  # of these, the one whose greedy choices are farthest from a tie is kept

LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}


def llama(**changes):
    """config.json as Llama 3.1's checkpoints have it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "max_position_embeddings": 256,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA3_ROPE,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0",
        "use_cache": True,
        "vocab_size": 320,
        **changes,
    }


def qwen3(**changes):
    """config.json as Qwen3's dense checkpoints have it. heads x head_dim > hidden, as there."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "max_position_embeddings": 256,
        "max_window_layers": 2,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 320,
        **changes,
    }


def qwen3_moe(**changes):
    """config.json as Qwen3's mixture-of-experts checkpoints have it."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "decoder_sparse_step": 1,
        "eos_token_id": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 192,
        "max_position_embeddings": 256,
        "max_window_layers": 3,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 320,
        **changes,
    }


def awq(config, not_converted=None):
    return {
        **config,
        "torch_dtype": "float16",
        "quantization_config": awq_gemm.quantization_config(not_converted),
    }


# name: config and the bytes a shard may have (None: one file).
FIXTURES = {
    "llama": (llama(), None),
    "llama_tied": (
        llama(
            hidden_size=96,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=16,
            intermediate_size=192,
            num_hidden_layers=2,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            rope_scaling=None,
            rope_theta=10000.0,
            torch_dtype="float16",
        ),
        160_000,
    ),
    "qwen3": (qwen3(), None),
    "qwen3_moe": (qwen3_moe(mlp_only_layers=[1], torch_dtype="float32"), None),
    "llama_awq": (
        awq(llama(hidden_size=256, head_dim=64, intermediate_size=384, num_hidden_layers=2)),
        None,
    ),
    "qwen3_awq": (awq(qwen3()), None),
    "qwen3_moe_awq": (
        awq(qwen3_moe(hidden_size=128), [f"model.layers.{i}.mlp.gate" for i in range(3)]),
        None,
    ),
}


def tensor_shapes(config):
    """name -> shape of a published checkpoint with this config, before quantisation."""
    hidden, head = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)

    def linear(name, out, inputs, bias):
        shapes[f"{name}.weight"] = (out, inputs)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def mlp(name, width):
        for part, out, inputs in (
            ("gate", width, hidden),
            ("up", width, hidden),
            ("down", hidden, width),
        ):
            linear(f"{name}.{part}_proj", out, inputs, config.get("mlp_bias", False))

    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for part, out, inputs in (
            ("q", heads * head, hidden),
            ("k", kv_heads * head, hidden),
            ("v", kv_heads * head, hidden),
            ("o", hidden, heads * head),
        ):
            linear(f"{layer}.self_attn.{part}_proj", out, inputs, config["attention_bias"])
        if config["model_type"].startswith("qwen3"):
            shapes[f"{layer}.self_attn.q_norm.weight"] = (head,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (head,)
        if "num_experts" in config and i not in config["mlp_only_layers"]:
            linear(f"{layer}.mlp.gate", config["num_experts"], hidden, False)
            for e in range(config["num_experts"]):
                mlp(f"{layer}.mlp.experts.{e}", config["moe_intermediate_size"])
        else:
            mlp(f"{layer}.mlp", config["intermediate_size"])
    return shapes


def random_tensor(name, shape, config, generator):
    """Weights far from the usual initialisation, so that every tensor shows in the logits."""
    values = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        # Gains about 1; those of q and k decide how sharp the attention is.
        return (1.3 if "q_norm" in name or "k_norm" in name else 1.0) + 0.25 * values
    if name.endswith(".bias"):
        return 0.3 * values
    if name == "lm_head.weight" or (
        name == "model.embed_tokens.weight" and config["tie_word_embeddings"]
    ):
        return 3 / math.sqrt(shape[1]) * values  # logits then have a standard deviation of about 3
    if name == "model.embed_tokens.weight":
        return values
    scale = 1.4 if any(part in name for part in ("q_proj", "k_proj", "mlp.gate.")) else 1.0
    if config["tie_word_embeddings"] and any(part in name for part in ("o_proj", "down_proj")):
        scale = 2.0  # else a tied model mostly repeats its last token
    return scale / math.sqrt(shape[1]) * values


def make_tensors(config, seed):
    """What the checkpoint stores, and the same model in float32 under unquantised names."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config["torch_dtype"])
    stored, exact = {}, {}
    for name, shape in tensor_shapes(config).items():
        values = random_tensor(name, shape, config, generator)
        if "quantization_config" in config and name.endswith("_proj.weight"):
            q, z, s = awq_gemm.quantize(values)
            packed = awq_gemm.tensors(name.removesuffix(".weight"), q, z, s)
            check_packing(packed[name.removesuffix("weight") + "qweight"], q)
            stored.update(packed)
            exact[name] = awq_gemm.dequantize(q, z, s)
        else:
            stored[name] = values.to(dtype)
            exact[name] = stored[name].float()
    return stored, exact


def check_packing(words, q):
    """The layout in plain words: nibble i of word [k, c] is row 8c + ORDER[i], column k of q."""
    for k, c, i in itertools.product((0, words.shape[0] - 1), (0, words.shape[1] - 1), range(8)):
        assert (int(words[k, c]) >> (4 * i)) & 15 == int(q[8 * c + (0, 2, 4, 6, 1, 3, 5, 7)[i], k])
    assert torch.equal(awq_gemm.unpack(words).t(), q)


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_shards(folder, tensors, limit):
    """model.safetensors, or shards of at most `limit` bytes with the index that names them."""
    metadata = {"format": "pt"}
    if limit is None:
        save_file(tensors, folder / "model.safetensors", metadata)
        return
    shards = [{}]
    for name, tensor in sorted(tensors.items()):
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > limit:
            shards.append({})
        shards[-1][name] = tensor
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": {}}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata)
        index["weight_map"].update({name: file for name in shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def load(folder, device):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.to(device).eval()


def reference_model(config, exact, device):
    """The model in transformers, from a float32 checkpoint with the tensors `exact`."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        plain = {k: v for k, v in config.items() if k != "quantization_config"}
        write_config(folder, {**plain, "torch_dtype": "float32"})
        write_shards(folder, exact, None)
        model = load(folder, device)
    check_rope(model, config)
    return model


def check_rope(model, config):
    """transformers read the classic config as it is meant: compares the rotation frequencies."""
    base, size = config["rope_theta"], config["head_dim"]
    frequency = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    scaling = config["rope_scaling"]
    if scaling:
        wavelength = 2 * math.pi / frequency
        original = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
        frequency = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
    used = model.model.rotary_emb.inv_freq.double().cpu()
    assert torch.allclose(used, frequency, rtol=1e-5), (used, frequency)


def check_published_layout(model, config, exact):
    """save_pretrained writes the tensors' names and shapes that we write (but for quantisation)."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = {}
        for file in pathlib.Path(folder).glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                saved.update({name: tensors.get_tensor(name) for name in tensors.keys()})
    if saved.keys() == exact.keys():
        assert all(torch.equal(saved[name], exact[name]) for name in exact)
        return "save_pretrained writes the same tensors"
    # Some versions write a layer's experts as one tensor; they read the classic names all the same.
    missing = sorted(exact.keys() - saved.keys())
    assert all(".experts." in name for name in missing), missing
    return f"save_pretrained fuses the experts: {sorted(saved.keys() - exact.keys())[:2]}"


@torch.no_grad()
def references(model, config, seed, device):
    generator = torch.Generator().manual_seed(seed + 1000)
    tensors = {}
    for length in LENGTHS:
        prompt = torch.randint(4, config["vocab_size"], (length,), generator=generator)
        tensors[f"prompt_{length}.ids"] = prompt.int()
        tensors[f"prompt_{length}.logits"] = (
            model(prompt[None].to(device), use_cache=False).logits[0].cpu()
        )
        if length == HIDDEN_PROMPT:
            tensors.update(hidden_states(model, prompt, device))
        ids, gaps = prompt.tolist(), []
        for _ in range(CONTINUATION):
            logits = model(torch.tensor([ids], device=device), use_cache=False).logits[0, -1]
            best = logits.topk(2)
            ids.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
        tensors[f"prompt_{length}.greedy_ids"] = torch.tensor(ids[length:], dtype=torch.int32)
        tensors[f"prompt_{length}.greedy_gaps"] = torch.tensor(gaps)
    return tensors


def hidden_states(model, prompt, device):
    """The embedding's output and every decoder layer's, before the final norm, by hooks."""
    kept, hooks = {}, []

    def keep(name):
        def hook(_module, _inputs, output):
            kept[name] = (output[0] if isinstance(output, tuple) else output)[0].cpu().clone()

        return hook

    prefix = f"prompt_{len(prompt)}"
    hooks.append(model.model.embed_tokens.register_forward_hook(keep(f"{prefix}.embedding")))
    for i, layer in enumerate(model.model.layers):
        hooks.append(layer.register_forward_hook(keep(f"{prefix}.layer_{i}")))
    model(prompt[None].to(device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return kept


def least_gap(tensors):
    return min(float(t.min()) for name, t in tensors.items() if name.endswith("greedy_gaps"))


def distinct(tensors):
    """The fewest different tokens in a continuation: 1 would be a constant one."""
    return min(t.unique().numel() for name, t in tensors.items() if name.endswith("greedy_ids"))


def make(name, out, device):
    config, limit = FIXTURES[name]
    best = None
    for seed in range(SEEDS):
        stored, exact = make_tensors(config, seed)
        model = reference_model(config, exact, device)
        tensors = references(model, config, seed, device)
        if distinct(tensors) >= 4 and (best is None or least_gap(tensors) > least_gap(best[2])):
            best = (seed, stored, tensors, exact, model)
    assert best, f"{name}: every seed's continuations repeat themselves"
    seed, stored, tensors, exact, model = best
    assert least_gap(tensors) > 1e-3, least_gap(tensors)
    layout = check_published_layout(model, config, exact)

    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_config(folder, config)
    write_shards(folder, stored, limit)
    save_file(tensors, folder / "reference.safetensors")
    if "quantization_config" not in config:
        # The folder as it lies there gives the same model.
        again = load(folder, device)
        check_rope(again, config)
        for key, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key
    logits = tensors["prompt_100.logits"]
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(
        f"{name}: seed {seed}, {size:,} bytes, logits' std {logits.std():.2f}, least gap "
        f"{least_gap(tensors):.4f}, distinct tokens {distinct(tensors)}; {layout}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runtime/executor/testdata")
    )
    parser.add_argument("names", nargs="*", help="which fixtures; all by default")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {device}")
    for name in args.names or FIXTURES:
        make(name, args.out, device)


if __name__ == "__main__":
    main()
