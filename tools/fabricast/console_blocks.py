#!/usr/bin/env python3
"""Keeps the console blocks of the documentation true.

    console_blocks.py check  BINARY FILE...    fails if a block shows what the command does not print
    console_blocks.py update BINARY FILE...    rewrites the blocks

A block begins with "$ ./fabricast ...", which may go on over lines that end in a backslash. Commands that name input
files run in --data DIR and are passed over where it has no such files; all others run in the current folder, that of the
repository.
"""

import argparse
import difflib
import os
import re
import shlex
import subprocess
import sys

BLOCK = re.compile(r"^```console\n(?P<command>\$ \./fabricast (?:[^\n]*\\\n)*[^\n]*\n)(?P<output>.*?)^```$", re.M | re.S)


def arguments(command):
    """The words after ./fabricast."""
    return shlex.split(command[len("$ ./fabricast "):].replace("\\\n", " "))


def files_of(words):
    return [w for w in words if w.endswith((".csv", ".json", ".jsonl")) and "/" in w]


def printed(binary, words, data):
    return subprocess.run([binary] + words, cwd=data, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          check=True).stdout.decode().rstrip("\n") + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["check", "update"])
    parser.add_argument("binary")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--data", default=".", help="where the commands' input files are")
    args = parser.parse_args()
    binary = os.path.abspath(args.binary)
    checked = differ = 0
    for path in args.files:
        with open(path, encoding="utf-8") as f:
            text = f.read()

        def replace(match):
            nonlocal checked, differ
            words = arguments(match["command"])
            if not all(os.path.exists(os.path.join(args.data, name)) for name in files_of(words)):
                print(f"{path}: passed over, its input files are not there: {' '.join(words)}")
                return match[0]
            output = printed(binary, words, args.data if files_of(words) else ".")
            checked += 1
            if output != match["output"]:
                differ += 1
                if args.mode == "check":
                    sys.stdout.writelines(difflib.unified_diff(
                        match["output"].splitlines(True), output.splitlines(True), f"{path} shows",
                        "fabricast prints"))
            return "```console\n" + match["command"] + output + "```"

        updated = BLOCK.sub(replace, text)
        if args.mode == "update" and updated != text:
            with open(path, "w", encoding="utf-8") as f:
                f.write(updated)
    print(f"{checked} blocks, {differ} of them {'updated' if args.mode == 'update' else 'out of date'}")
    if args.mode == "check" and differ:
        print("To mend: bazel build -c opt //tools:fabricast, then tools/fabricast/console_blocks.py update "
              "BINARY README.md docs/*.md")
    return 1 if not checked or (args.mode == "check" and differ) else 0


sys.exit(main())
