#!/usr/bin/env python3
"""Makes the small tokenizers of runtime/tokenizer/testdata and their reference outputs.

    tools/checkpoints/make_tokenizer_fixtures.py --out runtime/tokenizer/testdata \\
        --corpus .cache/corpus/documents.jsonl --templates .cache/templates

--templates is a folder with the chat templates as the models' makers publish them: `llama3.jinja`
of meta-llama/Llama-3.1-8B-Instruct and `qwen3.jinja` of Qwen/Qwen3-8B (their tokenizer_config.json,
"chat_template"). They are used to render the references and are not copied: the fixtures'
tokenizer_config.json hold shorter templates, written for this project, that render the same.

README.md of that folder describes the files. Needs tokenizers and transformers.
"""

import argparse
import json
import pathlib
import shutil

import tokenizers
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tokenizer_texts import CODE, MULTILINGUAL, TEXTS

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")
VOCABULARY = 3072  # without the added tokens
CORPUS_BYTES = 1_500_000

# In Llama 3's order.
LLAMA3_ADDED = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|reserved_special_token_3|>",
    "<|reserved_special_token_4|>",
]
# In Qwen3's order; those in QWEN3_PLAIN are added tokens that are not special.
QWEN3_ADDED = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN3_PLAIN = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]

# Whole words that merges do not lead to; only `ignore_merges` finds them. As bytes-to-unicode text.
UNREACHABLE = ["fabricast", "Ġfabricast", "qwertz", "Ġpipelineparallel", "zyxwvu", "ãĥŃãĤ±ãĥĥãĥĪ"]

UNREACHABLE_WORDS = ["fabricast", "qwertz", "pipelineparallel", "zyxwvu", "ロケット"]

LLAMA3_TEXTS = [
    "<|begin_of_text|>",
    "<|begin_of_text|>Hello<|end_of_text|>",
    "Hello<|eot_id|>world",
    "Hello <|eot_id|> world",
    "<|eot_id|><|eot_id|><|eom_id|>",
    "<|eot_id",
    "|eot_id|>",
    "<|eot_id|",
    "<<|eot_id|>>",
    "<|EOT_ID|>",
    "< |eot_id|>",
    "<|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "\n<|eot_id|>\n",
    "a\n\n<|eot_id|>\n\nb",
    "12345<|eot_id|>67890",
    "<|reserved_special_token_0|>" "<|reserved_special_token_1|>",
    "<|reserved_special_token_999|>",
    "你好<|eot_id|>世界",
    "<|im_start|>user",
    "<|python_tag|>print(1)<|eom_id|>",
    "fabricast<|eot_id|>fabricast",
    "'s<|eot_id|>'s",
]
QWEN3_TEXTS = [
    "<|im_start|>",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "Hello<|im_end|>world",
    "Hello <|im_end|> world",
    "<|im_end|><|im_end|><|endoftext|>",
    "<|im_end",
    "|im_end|>",
    "<|im_end|",
    "<<|im_end|>>",
    "<|IM_END|>",
    "<think>\nHmm, 12.\n</think>\n\nFour.",
    "<think>",
    "</think>",
    "<think></think>",
    "<think",
    "< think>",
    "</think>\n\n",
    '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    "<tool_response>\n4\n" "</tool_response>",
    "<|fim_prefix|>def f(<|fim_suffix|>):<|fim_middle|>",
    "\n<|im_end|>\n",
    "12345<|im_end|>67890",
    "cafe\u0301<|im_end|>e\u0301",
    "你好<|im_end|>世界",
    "<|eot_id|>",
    "e<|im_end|>\u0301",
    "<|vision_start|><|image_pad|>" "<|vision_end|>",
    "a</think>b<think>c",
]
# The added tokens of the third tokenizer, and texts on which their flags show.
FLAGGED = [
    dict(content="<plain>"),
    dict(content="<left>", lstrip=True),
    dict(content="<right>", rstrip=True),
    dict(content="<both>", lstrip=True, rstrip=True),
    dict(content="word", single_word=True),
    dict(content="<word>", single_word=True),
    dict(content="caf\u00e9", normalized=True),
    dict(content="na\u00efve", normalized=False),
    dict(content="<pre>"),
    dict(content="<pre><fix>"),
    dict(content="<special>", special=True),
    dict(content="<special left>", lstrip=True, special=True),
    dict(content="\n\n"),
    dict(content="emoji 😀"),
]
FLAGGED_TEXTS = [
    "",
    "a<plain>b",
    "a <plain> b",
    "a  <left>  b",
    "a\n\t <left>\n b",
    "<left>",
    "  <left>",
    "<left>  ",
    "a  <right>  b",
    "<right>\n\n\nb",
    "<right>",
    "  <right>  ",
    "a  <both>  b",
    "a\u00a0<both>\u3000b",
    "<both><both>",
    "<both>  <both>",
    "<left> <left>",
    "<right> <left>",
    "<left> <right>",
    "<right> <right>",
    "<plain> <left> <plain>",
    "word",
    "a word b",
    "words",
    "sword",
    "word.",
    "(word)",
    "word word",
    "wordword",
    "word_",
    "_word",
    "word1",
    "1word",
    "éword",
    "wordé",
    "word<plain>",
    "<plain>word",
    "word's",
    "-word-",
    "a<word>b",
    "a <word> b",
    "<word><word>",
    "<word>",
    "1<word>",
    "<word>_",
    "é<word>",
    "caf\u00e9",
    "cafe\u0301",
    "CAF\u00c9",
    "na\u00efve",
    "nai\u0308ve",
    "<pre>",
    "<pre><fix>",
    "<pre><pre><fix>",
    "<pre><fix",
    "<fix>",
    "a<special>b",
    "a  <special left>  b",
    "<special left>",
    "a\n\nb",
    "a\n\n\nb",
    "a\n\n\n\nb",
    "\n",
    "emoji 😀",
    "emoji 😀😀",
    "emoji  😀",
    "😀",
    "mixed <left>word<right> <both> caf\u00e9",
]

LLAMA3_TEMPLATE = """{{- bos_token }}
{%- set has_system = messages[0].role == 'system' %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + date_string | default('26 Jul 2024') }}
{{- '\\n\\n' + (messages[0].content | trim if has_system else '') + '<|eot_id|>' }}
{%- for message in (messages[1:] if has_system else messages) %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

QWEN3_TEMPLATE = """{%- set last = namespace(query=messages | length - 1, found=false) %}
{%- for message in messages | reverse %}
    {%- if message.role == 'user' and not last.found %}
        {%- set last.query = messages | length - loop.index %}
        {%- set last.found = true %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > last.query and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
            {%- set content = content.lstrip('\\n') %}
        {%- endif %}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def conversation(*turns):
    """conversation("s: be brief", "u: hi", "a: hello") as messages."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[3:]} for turn in turns]


CONVERSATIONS = [
    conversation("u: Hello!"),
    conversation("s: You are a helpful assistant.", "u: Hello!"),
    conversation("s: You are a helpful assistant.", "u: Hello!", "a: Hi. What can I do for you?"),
    conversation("u: What is 2 + 2?", "a: Four.", "u: And 3 + 3?"),
    conversation(
        "s: Be brief.", "u: What is 2 + 2?", "a: Four.", "u: And 3 + 3?", "a: Six.", "u: Thanks."
    ),
    conversation(
        "s:   Trim me.  \n", "u: \n\n  spaces around  \n", "a:  reply \n\n", "u: \tand a tab\t"
    ),
    conversation("s: ", "u: An empty system prompt."),
    conversation("u: "),
    conversation("u: Line one.\nLine two.\n\nLine four."),
    conversation("s: 你是一个助手。", "u: 你好，世界！🙂", "a: 你好！", "u: Comment ça va?"),
    conversation("u: Is <|eot_id|> special? And <|im_end|>?"),
    conversation("u: def f(x):\n    return x  # code", "a: ```python\nprint(1)\n```", "u: ok"),
    conversation(
        "u: What is 2 + 2?", "a: <think>\nTwo and two.\n</think>\n\nFour.", "u: And 3 + 3?"
    ),
    conversation("s: Think.", "u: What is 2 + 2?", "a: <think>\nTwo and two.\n</think>\n\nFour."),
    conversation(
        "u: 1?", "a: <think>\nA\n</think>\n\nB", "u: 2?", "a: <think>\nC\n\nD\n</think>\n\nE\n"
    ),
    conversation(
        "u: 1?",
        "a: <think>\n\n</think>\n\nNo thoughts.",
        "u: 2?",
        "a: <think>\n\n</think>\n\nNone.",
    ),
    conversation("u: 1?", "a: Thought without a start.\n</think>\n\nAnswer.", "u: 2?"),
    conversation(
        "u: 1?", "a: First.", "a: Second in a row.", "u: 2?", "a: <think>x</think>y", "a: z"
    ),
    conversation("u: a", "u: b", "a: c"),
    conversation("s: First.", "u: Hi", "s: A later system turn.", "u: Again"),
    conversation("u: Answer /no_think", "a: <think>\n\n</think>\n\nDone.", "u: Again /think"),
    conversation("a: The assistant begins."),
]


def training_texts(corpus):
    # Often enough to earn merges beside the corpus; but not the words that merges shall not reach.
    known = [text for text in TEXTS if not any(word in text.lower() for word in UNREACHABLE_WORDS)]
    texts = (MULTILINGUAL + CODE) * 60 + known * 20
    size = 0
    with open(corpus) as documents:
        # Every 17th document, its first 20 kB: all sources have a share.
        for i, line in enumerate(documents):
            document = json.loads(line)
            if i % 17 == 0 and document["split"] == "train" and size < CORPUS_BYTES:
                texts.append(document["text"][:20_000])
                size += len(texts[-1])
    return texts


def splitter(regex, trim_offsets):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(
                add_prefix_space=False, trim_offsets=trim_offsets, use_regex=False
            ),
        ]
    )


def train(regex, normalizer, texts, size, trim_offsets):
    """A byte-level BPE with every byte in its vocabulary, as tokenizer.json's dictionary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter(regex, trim_offsets)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return json.loads(tokenizer.to_str())


def added_token(index, **fields):
    return {
        "id": index,
        "content": "",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
        **fields,
    }


def byte_level(add_prefix_space, trim_offsets, use_regex):
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    }


def llama3_tokenizer(texts, size=VOCABULARY, unreachable=UNREACHABLE, added=LLAMA3_ADDED):
    """tokenizer.json as Llama 3.1 has it, merges as "a b" strings."""
    spec = train(LLAMA3_REGEX, None, texts, size - len(unreachable), True)
    vocabulary = spec["model"]["vocab"]
    for word in unreachable:
        assert word not in vocabulary, word
        vocabulary[word] = len(vocabulary)
    first = len(vocabulary)
    bos = {"SpecialToken": {"id": added[0], "type_id": 0}}
    second_bos = {"SpecialToken": {"id": added[0], "type_id": 1}}
    spec["added_tokens"] = [
        added_token(first + i, content=t, special=True) for i, t in enumerate(added)
    ]
    spec["post_processor"] = {
        "type": "Sequence",
        "processors": [
            byte_level(True, False, True),
            {
                "type": "TemplateProcessing",
                "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    bos,
                    {"Sequence": {"id": "A", "type_id": 0}},
                    second_bos,
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {
                    added[0]: {"id": added[0], "ids": [first], "tokens": [added[0]]}
                },
            },
        ],
    }
    spec["decoder"] = byte_level(True, True, True)
    spec["model"].update(ignore_merges=True, merges=[" ".join(pair) for pair in pairs(spec)])
    return spec


def qwen3_tokenizer(texts):
    """tokenizer.json as Qwen3 has it, merges as pairs."""
    spec = train(QWEN_REGEX, normalizers.NFC(), texts, VOCABULARY, False)
    first = len(spec["model"]["vocab"])
    spec["added_tokens"] = [
        added_token(first + i, content=t, special=t in QWEN3_ADDED)
        for i, t in enumerate(QWEN3_ADDED + QWEN3_PLAIN)
    ]
    spec["post_processor"] = spec["decoder"] = byte_level(False, False, False)
    spec["model"].update(
        continuing_subword_prefix="",
        end_of_word_suffix="",
        ignore_merges=False,
        merges=[list(pair) for pair in pairs(spec)],
    )
    return spec


def flagged_tokenizer():
    """A tokenizer of nothing but bytes, a few merges, and added tokens with every flag."""
    spec = train(QWEN_REGEX, normalizers.NFC(), MULTILINGUAL[:4], 300, False)
    first = len(spec["model"]["vocab"])
    spec["added_tokens"] = [added_token(first + i, **fields) for i, fields in enumerate(FLAGGED)]
    spec["post_processor"] = spec["decoder"] = byte_level(False, False, False)
    spec["model"].update(merges=[list(pair) for pair in pairs(spec)])
    return spec


def pairs(spec):
    """The merges, in whichever of the two formats this version of tokenizers writes."""
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in spec["model"]["merges"]]


def encode_all(tokenizer, texts):
    rows = []
    for text in texts:
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append(
            {
                "text": text,
                "ids": bare,
                "ids_with_special": tokenizer.encode(text, add_special_tokens=True).ids,
                "pieces": [tokenizer.decode([i], skip_special_tokens=False) for i in bare],
                "decoded": tokenizer.decode(bare, skip_special_tokens=False),
                "decoded_skipping_special": tokenizer.decode(bare, skip_special_tokens=True),
            }
        )
    return rows


def render_all(tokenizer, official, own, options):
    """Every conversation with every one of `options`, by the official template; ours must agree."""
    rows = []
    for messages in CONVERSATIONS:
        for option in options:

            def render(template):
                return tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, **option
                )

            text = render(official)
            assert render(own) == text, (messages, option, text, render(own))
            rows.append({"messages": messages, **option, "text": text})
    return rows


def write(out, name, spec, config, texts, render):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n")
    if config:
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference = {"texts": encode_all(tokenizer, texts)}
    if render:
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"),
            **{key: config[key] for key in ("bos_token", "eos_token") if config[key]},
        )
        reference["chats"] = render_all(fast, *render)
    lines = [
        f' "{key}": [\n'
        + ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
        + "\n ]"
        for key, rows in reference.items()
    ]
    (folder / "reference.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(
        name,
        {f.name: f.stat().st_size for f in folder.iterdir()},
        {key: len(rows) for key, rows in reference.items()},
        "vocabulary",
        len(spec["model"]["vocab"]),
    )
    return tokenizer


def check_ignore_merges(spec, tokenizer):
    """The flag matters: without it the unreachable words come apart."""
    without = Tokenizer.from_str(
        json.dumps({**spec, "model": {**spec["model"], "ignore_merges": False}})
    )
    for word in ("fabricast", " fabricast", "zyxwvu"):
        assert len(tokenizer.encode(word, add_special_tokens=False).ids) == 1
        assert len(without.encode(word, add_special_tokens=False).ids) > 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runtime/tokenizer/testdata")
    )
    parser.add_argument(
        "--corpus", type=pathlib.Path, default=pathlib.Path(".cache/corpus/documents.jsonl")
    )
    parser.add_argument("--templates", type=pathlib.Path, default=pathlib.Path(".cache/templates"))
    args = parser.parse_args()
    print(f"tokenizers {tokenizers.__version__}, transformers {transformers.__version__}")
    texts = training_texts(args.corpus)

    spec = llama3_tokenizer(texts)
    config = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": LLAMA3_TEMPLATE,
    }
    official = (args.templates / "llama3.jinja").read_text()
    tokenizer = write(
        args.out,
        "llama3",
        spec,
        config,
        TEXTS + LLAMA3_TEXTS,
        (official, LLAMA3_TEMPLATE, [{"add_generation_prompt": g} for g in (False, True)]),
    )
    check_ignore_merges(spec, tokenizer)

    config = {
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        "chat_template": QWEN3_TEMPLATE,
    }
    official = (args.templates / "qwen3.jinja").read_text()
    write(
        args.out,
        "qwen3",
        qwen3_tokenizer(texts),
        config,
        TEXTS + QWEN3_TEXTS,
        (
            official,
            QWEN3_TEMPLATE,
            [
                {"add_generation_prompt": False},
                {"add_generation_prompt": True},
                {"add_generation_prompt": True, "enable_thinking": True},
                {"add_generation_prompt": True, "enable_thinking": False},
            ],
        ),
    )

    write(args.out, "added_tokens", flagged_tokenizer(), None, FLAGGED_TEXTS, None)


if __name__ == "__main__":
    main()
