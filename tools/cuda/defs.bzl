"""cuda_library: .cu files compiled by nvcc, linked like a cc_library."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@local_cuda//:config.bzl", "CUDA_ROOT")
load("//tools/cuda:flags.bzl", "FlagValue")

# target_compatible_with of any target that needs CUDA: builds of //... skip it where there is none.
REQUIRES_CUDA = select({
    "//conditions:default": ["@platforms//:incompatible"],
    "@local_cuda//:enabled": [],
})

_MODE_FLAGS = {
    "dbg": ["-O0", "-g"],
    "fastbuild": ["-O1"],
    "opt": ["-O3", "-DNDEBUG"],
}

def _gencode(archs):
    """'90a,compute_90': machine code for sm_90a and PTX for compute_90."""
    flags = []
    for arch in archs.split(","):
        if arch.startswith("compute_"):
            flags.append("-gencode=arch=%s,code=%s" % (arch, arch))
        else:
            flags.append("-gencode=arch=compute_%s,code=sm_%s" % (arch, arch))
    return flags

def _compile(ctx, toolchain, context, src):
    """Compiles one .cu file and returns the object."""
    output = ctx.actions.declare_file("_objs/%s/%s.o" % (ctx.label.name, src.basename))
    args = ctx.actions.args()
    args.add_all(["-c", src, "-o", output, "-std=c++20", "-ccbin", toolchain.compiler_executable])
    args.add_all(_gencode(ctx.attr._archs[FlagValue].value))
    args.add_all(_MODE_FLAGS[ctx.var["COMPILATION_MODE"]])
    args.add_all(["--expt-relaxed-constexpr", "-lineinfo", "--threads=2"])

    # Not in /tmp: its names hold the process id, and in sandboxes of their own all are number 2.
    args.add("--objdir-as-tempdir")
    args.add_all(["-Werror=all-warnings", "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror"])
    args.add_all(depset(ctx.attr.defines, transitive = [context.defines]), before_each = "-D")
    args.add_all([".", ctx.bin_dir.path], before_each = "-I")
    args.add_all(context.includes, before_each = "-isystem")
    args.add_all(context.quote_includes, before_each = "-I")
    args.add_all(context.system_includes, before_each = "-isystem")
    args.add_all(ctx.attr.copts)
    ctx.actions.run(
        executable = CUDA_ROOT + "/bin/nvcc",
        arguments = [args],
        inputs = depset(
            [src, ctx.file._version] + ctx.files.hdrs,
            transitive = [context.headers, toolchain.all_files],
        ),
        outputs = [output],
        mnemonic = "CudaCompile",
        progress_message = "Compiling %s with nvcc" % src.short_path,
        use_default_shell_env = True,
    )
    return output

def _cuda_library_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    deps = cc_common.merge_cc_infos(cc_infos = [dep[CcInfo] for dep in ctx.attr.deps])
    objects = depset([_compile(ctx, toolchain, deps.compilation_context, src) for src in ctx.files.srcs])

    linking_context, _ = cc_common.create_linking_context_from_compilation_outputs(
        name = ctx.label.name,
        actions = ctx.actions,
        feature_configuration = features,
        cc_toolchain = toolchain,
        compilation_outputs = cc_common.create_compilation_outputs(
            objects = objects,
            pic_objects = objects,
        ),
        linking_contexts = [deps.linking_context],
        disallow_dynamic_library = True,
        alwayslink = ctx.attr.alwayslink,
    )
    own = CcInfo(
        compilation_context = cc_common.create_compilation_context(
            headers = depset(ctx.files.hdrs),
            defines = depset(ctx.attr.defines),
            quote_includes = depset([".", ctx.bin_dir.path]),
        ),
        linking_context = linking_context,
    )
    return [
        DefaultInfo(files = objects),
        cc_common.merge_cc_infos(
            direct_cc_infos = [own],
            cc_infos = [CcInfo(compilation_context = deps.compilation_context)],
        ),
    ]

_cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = {
        "alwayslink": attr.bool(),
        "copts": attr.string_list(),
        "defines": attr.string_list(),
        "deps": attr.label_list(providers = [CcInfo]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "srcs": attr.label_list(allow_files = [".cu"]),
        "_archs": attr.label(default = "@local_cuda//:archs"),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
        # A new toolkit compiles everything again.
        "_version": attr.label(
            allow_single_file = True,
            default = "@local_cuda//:version.txt",
        ),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

def cuda_library(name, deps = [], target_compatible_with = [], **kwargs):
    """A cc_library out of .cu files; skipped where there is no CUDA.

    Headers that callers without nvcc include hold no CUDA syntax.

    Args:
      name: of the library.
      deps: cc_library and cuda_library targets; the CUDA runtime (static) is always one.
      target_compatible_with: further constraints.
      **kwargs: srcs (.cu), hdrs (.h; .cuh for other .cu files), copts (for nvcc), defines, alwayslink, visibility, ...
    """
    _cuda_library(
        name = name,
        target_compatible_with = target_compatible_with + REQUIRES_CUDA,
        deps = deps + ["@local_cuda//:cudart"],
        **kwargs
    )

def gpu_programs_build_test(name):
    """A test that needs no GPU: the package's tests tagged gpu, and its programs, compile and link.

    Stands at the end of a BUILD file, since it takes what is declared before it. `bazel test` does not build tests
    that its filters leave out.

    Args:
      name: of the test.
    """
    native.sh_test(
        name = name,
        size = "small",
        srcs = ["//tools/cuda:built.sh"],
        data = [
            ":" + rule
            for rule, attributes in native.existing_rules().items()
            if "gpu" in attributes["tags"] or attributes["kind"] == "cc_binary"
        ],
        target_compatible_with = REQUIRES_CUDA,
    )
