"""cc_fuzz_test: a fuzz target that is an ordinary test, and libFuzzer's under --config=fuzz."""

load("@rules_cc//cc:defs.bzl", "cc_test")

def cc_fuzz_test(name, srcs, corpus = [], deps = [], runs = 20000, size = "small", **kwargs):
    """Feeds LLVMFuzzerTestOneInput, which `srcs` define, its corpus and mutations of it.

    By default tools/fuzz/standalone_driver.cc replays the corpus and `runs` mutations that are the same every time.
    To search further: bazel run --config=fuzz <target> -- -runs=-1 -max_total_time=60 $PWD/<folder for new inputs>

    Args:
      name: of the test.
      srcs: define `extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size)`.
      corpus: files, each one input. An empty input is always tried too.
      deps: of the test.
      runs: how many mutations to try.
      size: of the test.
      **kwargs: go to the cc_test.
    """
    paths = ["$(rootpath %s)" % file for file in corpus]
    cc_test(
        name = name,
        size = size,
        srcs = srcs,
        args = select({
            "//conditions:default": ["--runs=%d" % runs] + paths,
            "//tools/fuzz:libfuzzer": ["-runs=%d" % runs, "-seed=1"] +
                                      (["-seed_inputs=" + ",".join(paths)] if paths else []),
        }),
        data = corpus,
        linkopts = select({
            "//conditions:default": [],
            "//tools/fuzz:libfuzzer": ["-fsanitize=fuzzer"],
        }),
        deps = deps + select({
            "//conditions:default": ["//tools/fuzz:standalone_driver"],
            "//tools/fuzz:libfuzzer": [],
        }),
        **kwargs
    )
