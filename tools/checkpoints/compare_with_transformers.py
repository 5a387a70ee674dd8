#!/usr/bin/env python3
"""Sets `fabricast run` beside transformers on this machine's processor, at the size of Llama 3.2 1B.

    tools/checkpoints/compare_with_transformers.py --fabricast BINARY --threads 16 [--awq]

Makes a random checkpoint of that shape (1.24 billion parameters, BF16 or AWQ-INT4), then compares a
greedy continuation and its log-probabilities with transformers in float32, and the time of prefill
and decode with transformers in float32 and BF16 (AWQ: in float32 only, on dequantised weights).
Prints a table. Needs 20 GB of memory and 10 GB of disk; takes some minutes.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

import torch
from tokenizers import Tokenizer

import make_model_fixtures as fixtures

PROMPT = 512  # tokens, of the timings
OUTPUT = 32
BATCHES = (1, 8)
TEXT = "The quick brown fox jumps over the lazy dog, and then it rests for a while. " * 6
TOKENIZER = (
    pathlib.Path(__file__).parents[2] / "runtime/tokenizer/testdata/llama3/tokenizer.json"
)


def one_billion(quantised):
    """Llama 3.2 1B's config.json."""
    config = fixtures.llama(
        head_dim=64,
        hidden_size=2048,
        intermediate_size=8192,
        max_position_embeddings=131072,
        num_attention_heads=32,
        num_hidden_layers=16,
        num_key_value_heads=8,
        rope_scaling={
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        tie_word_embeddings=True,
        vocab_size=128256,
    )
    return fixtures.awq(config) if quantised else config


@torch.inference_mode()
def continuation(model, ids, count):
    """Greedy tokens, their log-probabilities, and the gaps to the second choice."""
    tokens, logprobs, gaps = [], [], []
    past, step = None, torch.tensor([ids])
    for _ in range(count):
        out = model(step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        logits = out.logits[0, -1].float()
        best = logits.topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        logprobs.append(float(logits.log_softmax(-1)[tokens[-1]]))
        step = best.indices[:1].unsqueeze(0)
    return tokens, logprobs, gaps


@torch.inference_mode()
def transformers_times(model, batch):
    """Seconds of a prefill of PROMPT tokens of one request, and of a decode step of `batch`."""
    ids = torch.randint(0, 3000, (batch, PROMPT))
    start = time.perf_counter()
    model(ids[:1], use_cache=True)
    prefill = time.perf_counter() - start
    out = model(ids, use_cache=True)
    steps = []
    for _ in range(OUTPUT):
        step = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        out = model(step, past_key_values=out.past_key_values, use_cache=True)
        steps.append(time.perf_counter() - start)
    return prefill, statistics.median(steps)


def fabricast(args, folder, *words, stages=1):
    command = [args.fabricast, "run", "--topology", "local_cpu", "--model", str(folder)]
    command += ["--stages", str(stages), "--threads", str(args.threads), "--format", "json", *words]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def fabricast_times(args, folder, batch):
    workload = f"closed:concurrency={batch},requests={batch},input={PROMPT},output={OUTPUT + 1}"
    alone = fabricast(
        args, folder, "--workload", f"closed:concurrency=1,requests=3,input={PROMPT},output=1"
    )
    result = fabricast(args, folder, "--workload", workload)
    return alone["ttft"]["p50"], result["itl"]["p50"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fabricast", required=True, help="the binary")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--awq", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = one_billion(args.awq)
    kind = "AWQ-INT4" if args.awq else "BF16"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        stored, exact = fixtures.make_tensors(config, seed=1)
        fixtures.write_config(folder, config)
        fixtures.write_shards(folder, stored, 1_000_000_000)
        shutil.copy(TOKENIZER, folder)
        del stored
        model = fixtures.reference_model(config, exact, "cpu")
        del exact

        ids = Tokenizer.from_file(str(TOKENIZER)).encode(TEXT).ids
        tokens, logprobs, gaps = continuation(model, ids, 48)
        for stages in (1, 3):
            words = ["--prompt", TEXT, "--max-output-tokens", "48", "--ignore-eos"]
            ours = fabricast(args, folder, *words, "--logprobs", "0", stages=stages)
            same = [t["id"] for t in ours["tokens"]] == tokens
            difference = max(abs(t["logprob"] - l) for t, l in zip(ours["tokens"], logprobs))
            print(
                f"{kind}, {stages} stages, {len(ids)} + 48 tokens: same greedy tokens: {same}, "
                f"log-probabilities differ by at most {difference:.1e} nats, least gap "
                f"{min(gaps):.1e}",
                flush=True,
            )

        print(f"{kind}, {args.threads} threads: prefill of {PROMPT} tokens, decode step by batch")
        for batch in BATCHES:
            prefill, step = fabricast_times(args, folder, batch)
            print(f"  fabricast            {prefill:8.3f} s  batch {batch}: {1e3 * step:7.1f} ms")
            prefill, step = transformers_times(model, batch)
            print(f"  transformers float32 {prefill:8.3f} s  batch {batch}: {1e3 * step:7.1f} ms")
        if args.awq:
            return
        model = model.to(torch.bfloat16)
        for batch in BATCHES:
            prefill, step = transformers_times(model, batch)
            print(f"  transformers BF16    {prefill:8.3f} s  batch {batch}: {1e3 * step:7.1f} ms")


if __name__ == "__main__":
    main()
