"""@local_cuda: the CUDA toolkit of the machine, or stand-ins that every target depending on them is skipped for.

Looks at CUDA_HOME, CUDA_PATH and /usr/local/cuda. Libraries other than the (static) runtime are headers only:
NCCL, cuBLAS, NVML and libcuda are loaded with dlopen, so that one binary runs with and without them.
"""

_SETTINGS = """
load("@fabricast//tools/cuda:flags.bzl", "bool_flag", "string_flag")

package(default_visibility = ["//visibility:public"])

exports_files(["version.txt"])

# --@local_cuda//:enable, or --config=cuda and --config=nocuda.
bool_flag(
    name = "enable",
    build_setting_default = {enable},
)

config_setting(
    name = "enabled",
    flag_values = {{":enable": "True"}},
)

# Which GPUs get machine code (80: A100; 90a: H100 and H200; 120a: RTX PRO 6000 Blackwell) and which PTX for others.
string_flag(
    name = "archs",
    build_setting_default = "80,90a,120a,compute_90",
)
"""

_FOUND = """
# nvcc finds the rest, CCCL's thousands, by itself.
cc_library(
    name = "headers",
    hdrs = glob([
        "include/*.h",
        "include/*.hpp",
        "include/crt/**",
        "include/nccl_device/**",
        "include/nv/**",
    ]),
    includes = ["include"],
)

cc_library(
    name = "cudart",
    srcs = ["lib/libcudart_static.a"],
    linkopts = [
        "-ldl",
        "-lpthread",
        "-lrt",
    ],
    deps = [":headers"],
)
"""

_ABSENT = """
[cc_library(
    name = name,
    target_compatible_with = ["@platforms//:incompatible"],
) for name in [
    "cudart",
    "headers",
]]
"""

def _find_toolkit(rctx):
    env = rctx.os.environ
    for root in [env.get("CUDA_HOME"), env.get("CUDA_PATH"), "/usr/local/cuda"]:
        if root and rctx.path(root + "/bin/nvcc").exists:
            return root
    return None

def _cuda_configure_impl(rctx):
    root = _find_toolkit(rctx)
    build = _SETTINGS.format(enable = root != None)
    version = "none\n"
    if root:
        rctx.symlink(root + "/include", "include")
        rctx.symlink(root + "/lib64/libcudart_static.a", "lib/libcudart_static.a")
        version = rctx.execute([root + "/bin/nvcc", "--version"]).stdout
        build += _FOUND
    else:
        build += _ABSENT
    rctx.file("BUILD", build)
    rctx.file("config.bzl", "CUDA_ROOT = \"%s\"\n" % (root or ""))
    rctx.file("version.txt", version)

cuda_configure = repository_rule(
    implementation = _cuda_configure_impl,
    environ = [
        "CUDA_HOME",
        "CUDA_PATH",
    ],
    local = True,
)
