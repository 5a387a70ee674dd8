#!/usr/bin/env python3
"""Records what transformers computes in float32 from a checkpoint folder, AWQ or not.

    tools/checkpoints/measure_checkpoint.py --model FOLDER --held-out held_out.txt \\
        [--before UNQUANTISED_FOLDER]

Writes reference.safetensors and reference.json into the folder; its README.md describes them. AWQ
weights are taken as (q - z) * s in float32.
"""

import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer

from float_decoder import Checkpoint, negative_log_likelihood, windows
from make_model_fixtures import reference_model

WINDOW = 512
TOKENS = 48  # of a greedy continuation
# Greedy choices after these stay well away from a tie (greedy_K.gaps).
PROMPTS = ["Let us work together to", "Elizabeth", "Captain Ahab stood"]


@torch.no_grad()
def loss_per_token(model, ids, bos, device):
    losses = []
    for piece in windows(ids, bos, WINDOW):
        logits = model(piece[None].to(device), use_cache=False).logits[0]
        losses.append(
            torch.nn.functional.cross_entropy(logits[:-1], piece[1:].to(device), reduction="none")
        )
    return torch.cat(losses).cpu()


@torch.no_grad()
def greedy(model, ids, device):
    ids, start, gaps = list(ids), len(ids), []
    for _ in range(TOKENS):
        best = model(torch.tensor([ids], device=device), use_cache=False).logits[0, -1].topk(2)
        ids.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
    return ids[start:], gaps


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--held-out", type=pathlib.Path, required=True)
    parser.add_argument("--before", type=pathlib.Path, help="the same model before quantisation")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    text = args.held_out.read_text()
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    checkpoint = Checkpoint(args.model, device)
    bos = checkpoint.config["bos_token_id"]

    def measure(folder):
        source = Checkpoint(folder)
        model = reference_model(
            source.config, {n: source.tensor(n).contiguous() for n in source.names()}, device
        )
        return model, loss_per_token(model, ids, bos, device)

    model, nll = measure(args.model)
    # The plain decoder that quantises and transformers agree.
    other = negative_log_likelihood(checkpoint, ids, WINDOW)
    assert torch.allclose(nll, other, atol=2e-3), float((nll - other).abs().max())
    tensors = {"held_out.ids": ids.int(), "held_out.nll": nll}
    summary = {
        "window": WINDOW,
        "tokens": len(ids),
        "bytes": len(text.encode()),
        "perplexity": float(nll.double().mean().exp()),
        "nats_per_token": float(nll.double().mean()),
        "bits_per_byte": float(
            nll.double().sum() / torch.log(torch.tensor(2.0)) / len(text.encode())
        ),
    }
    if args.before:
        summary["perplexity_before_quantisation"] = float(
            measure(args.before)[1].double().mean().exp()
        )
    summary["continuations"] = []
    for i, prompt in enumerate(PROMPTS):
        prompt_ids = tokenizer.encode(prompt).ids
        new, gaps = greedy(model, prompt_ids, device)
        tensors[f"greedy_{i}.prompt_ids"] = torch.tensor(prompt_ids, dtype=torch.int32)
        tensors[f"greedy_{i}.ids"] = torch.tensor(new, dtype=torch.int32)
        tensors[f"greedy_{i}.gaps"] = torch.tensor(gaps)
        summary["continuations"].append(
            {"prompt": prompt, "text": tokenizer.decode(new), "least_gap": min(gaps)}
        )
    save_file(tensors, args.model / "reference.safetensors")
    (args.model / "reference.json").write_text(
        json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    )
    print(
        json.dumps(summary, indent=1),
        f"transformers {transformers.__version__}, torch {torch.__version__}",
    )


if __name__ == "__main__":
    main()
