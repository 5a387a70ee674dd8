"""cc_embed: text files compiled into a cc_library."""

load("@rules_cc//cc:defs.bzl", "cc_library")

def cc_embed(name, srcs, function, testonly = False, visibility = None):
    """Makes "<package>/<name>.h", which declares `absl::Span<const EmbeddedFile> <function>()`.

    The function is in namespace fabricast and returns the files sorted by path; see tools/embed/embedded_file.h.

    Args:
      name: of the cc_library and the header.
      srcs: text files, at least one; their paths are relative to the top of the workspace.
      function: what the generated function is called.
      testonly: as everywhere.
      visibility: of the cc_library.
    """
    header = name + ".h"
    source = name + ".cc"
    generator = "//tools/embed:embed_files"
    native.genrule(
        name = name + "_gen",
        testonly = testonly,
        srcs = srcs,
        outs = [
            header,
            source,
        ],
        cmd = "$(location %s) $(location %s) $(location %s) %s %s $(BINDIR) $(SRCS)" % (
            generator,
            header,
            source,
            (native.package_name() + "/" + header).lstrip("/"),
            function,
        ),
        tools = [generator],
    )
    cc_library(
        name = name,
        testonly = testonly,
        srcs = [source],
        hdrs = [header],
        visibility = visibility,
        deps = ["//tools/embed:embedded_file"],
    )
