#!/usr/bin/env python3
"""Trains the small Llama of runtime/model/checkpoints on the corpus of prepare_corpus.py.

    tools/checkpoints/train_small_llama.py --corpus .cache/corpus --out FOLDER --seconds 480 \\
        --trials 0.1x8 0.2x16 0.3x32

Writes a Hugging Face folder: config.json, generation_config.json, model.safetensors (BF16),
tokenizer.json and tokenizer_config.json, and train_log.txt. The corpus is small, so the model sees
it many times and overfits if left alone: each trial is a dropout x a number of epochs, and the
checkpoint of all trials that is best on the validation documents is kept. Trials run in order until
the seconds are used up.

Needs PyTorch 2.4 or newer, tokenizers, safetensors and a GPU.
"""

import argparse
import json
import math
import pathlib
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

from make_tokenizer_fixtures import LLAMA3_ADDED, llama3_tokenizer

VOCABULARY = 4096  # with the added tokens
WINDOW = 1024  # tokens the model sees at once in training
BATCH = 48  # windows a step
PEAK_RATE, LAST_RATE, WARM_UP = 2e-3, 1e-4, 150  # of AdamW; steps
WEIGHT_DECAY = 0.1  # on matrices

FIRST_ADDED = VOCABULARY - len(LLAMA3_ADDED)
BEGIN, END = (FIRST_ADDED + LLAMA3_ADDED.index(t) for t in ("<|begin_of_text|>", "<|end_of_text|>"))

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 384,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": WINDOW,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 6,
    "num_hidden_layers": 9,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.size, width = c["head_dim"], c["num_attention_heads"] * c["head_dim"]
        self.q_proj = nn.Linear(c["hidden_size"], width, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], c["num_key_value_heads"] * self.size, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], c["num_key_value_heads"] * self.size, bias=False)
        self.o_proj = nn.Linear(width, c["hidden_size"], bias=False)

    def forward(self, x, cos, sin):
        batch, count, _ = x.shape
        q, k, v = (
            p(x).view(batch, count, -1, self.size).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )

        def rotate(y):
            a, b = y.float().chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(v.dtype)

        repeats = q.shape[1] // k.shape[1]
        k, v = rotate(k).repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        y = F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, count, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = Mlp(c)

    def forward(self, x, cos, sin, drop):
        x = x + drop(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + drop(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Llama(nn.Module):
    """The parameters' names are those of a Hugging Face checkpoint."""

    def __init__(self, c):
        super().__init__()
        self.model = Decoder(c)
        # The share of activations dropped; a tensor, so that trials share the compiled code.
        self.register_buffer("dropout", torch.zeros(()), persistent=False)
        frequency = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"])
        angle = torch.arange(WINDOW)[:, None] * frequency
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    @torch.no_grad()
    def initialise(self, c):
        for name, p in self.named_parameters():
            if p.dim() == 1:
                p.fill_(1)
            elif "o_proj" in name or "down_proj" in name:
                p.normal_(std=c["initializer_range"] / math.sqrt(2 * c["num_hidden_layers"]))
            else:
                p.normal_(std=c["initializer_range"])

    def forward(self, x, y):
        def drop(z):
            if not self.training:
                return z
            return (
                z
                * (torch.rand_like(z, dtype=torch.float32) >= self.dropout).to(z.dtype)
                / (1 - self.dropout)
            )

        z = drop(self.model.embed_tokens(x))
        for layer in self.model.layers:
            z = layer(z, self.cos, self.sin, drop)
        logits = F.linear(self.model.norm(z), self.model.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())


def make_tokenizer(documents, out):
    """Byte-level BPE in Llama 3's structure, trained on the training documents."""
    spec = llama3_tokenizer(documents, FIRST_ADDED, unreachable=[])
    assert len(spec["model"]["vocab"]) == FIRST_ADDED and spec["added_tokens"][0]["id"] == BEGIN
    (out / "tokenizer.json").write_text(
        json.dumps(spec, ensure_ascii=False, separators=(",", ":")) + "\n"
    )
    config = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": WINDOW,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return Tokenizer.from_file(str(out / "tokenizer.json"))


def encode(tokenizer, documents):
    """All documents in a row, each between the begin and the end token."""
    ids = []
    for e in tokenizer.encode_batch(documents, add_special_tokens=True):
        ids += e.ids + [END]
    return torch.tensor(ids)


def training_windows(ids):
    """BATCH windows from random places; the begin token stands before each, as it will in use."""
    start = torch.randint(0, len(ids) - WINDOW, (BATCH, 1), device=ids.device)
    y = ids[start + torch.arange(WINDOW, device=ids.device)]
    return F.pad(y[:, :-1], (1, 0), value=BEGIN), y


def validation_loss(model, ids):
    model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        y = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        x = F.pad(y[:, :-1], (1, 0), value=BEGIN)
        loss = torch.stack(
            [model(a, b) for a, b in zip(x.split(8), y.split(8)) if len(a) == 8]
        ).mean()
    model.train()
    return float(loss)


def train(trial, model, compiled, train_ids, valid_ids, best, deadline, log):
    """Trains from scratch, keeping in `best` the best state so far of any trial."""
    dropout, epochs = (float(part) for part in trial.split("x"))
    torch.manual_seed(1)
    model.initialise(CONFIG)
    model.dropout.fill_(dropout)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    gains = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": gains, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    steps = int(epochs * len(train_ids) / (BATCH * WINDOW))
    started, running, worse = time.monotonic(), [], 0
    own_best = math.inf
    for step in range(1, steps + 1):
        share = min(1, step / WARM_UP)
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = share * (LAST_RATE + (PEAK_RATE - LAST_RATE) * cosine)
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(*training_windows(train_ids))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running.append(loss.detach())
        if step % max(1, steps // 20) == 0 or step == steps:
            valid = validation_loss(model, valid_ids)
            seconds = time.monotonic() - started
            log(
                f"dropout {dropout} epochs {epochs:g} step {step}/{steps} "
                f"tokens {step * BATCH * WINDOW / 1e6:.1f} M "
                f"train {torch.stack(running).mean():.4f} valid {valid:.4f} {seconds:.0f} s"
            )
            running, worse = [], 0 if valid < own_best else worse + 1
            own_best = min(own_best, valid)
            if valid < best["valid"]:
                best.update(
                    valid=valid,
                    trial=trial,
                    step=step,
                    tokens=step * BATCH * WINDOW,
                    seconds=seconds,
                    state={
                        k: v.detach().to(torch.bfloat16).cpu()
                        for k, v in model.state_dict().items()
                    },
                )
            if worse == 4 or time.monotonic() > deadline:
                log("stopped early: " + ("validation loss rises" if worse == 4 else "time is up"))
                return


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=pathlib.Path, default=pathlib.Path(".cache/corpus"))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument(
        "--trials", nargs="+", default=["0.1x8", "0.2x16", "0.3x32"], help="dropout x epochs"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    log_file = open(args.out / "train_log.txt", "w")

    def log(line):
        print(line, flush=True)
        print(line, file=log_file, flush=True)

    documents = {"train": [], "valid": [], "held_out": []}
    with open(args.corpus / "documents.jsonl") as lines:
        for line in lines:
            document = json.loads(line)
            documents[document["split"]].append(document["text"])
    tokenizer = make_tokenizer(documents["train"], args.out)
    train_ids, valid_ids = (
        encode(tokenizer, documents[split]).cuda() for split in ("train", "valid")
    )
    size = sum(len(text.encode()) for text in documents["train"])
    model = Llama(CONFIG).cuda()
    compiled = torch.compile(model, dynamic=False)
    log(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {size / 1e6:.2f} MB, "
        f"{len(train_ids) / 1e6:.2f} M training tokens, "
        f"{len(valid_ids) / 1e3:.1f} k validation tokens; "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; "
        f"tokenizer and encoding took {time.monotonic() - started:.0f} s"
    )

    best = {"valid": math.inf}
    for trial in args.trials:
        if time.monotonic() - started < args.seconds:
            train(trial, model, compiled, train_ids, valid_ids, best, started + args.seconds, log)
    state = best.pop("state")
    log(f"kept: {best}; {time.monotonic() - started:.0f} s in all")
    save_file(state, args.out / "model.safetensors", {"format": "pt"})
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    generation = {
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "do_sample": False,
        "transformers_version": "4.43.0",
    }
    (args.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


if __name__ == "__main__":
    main()
