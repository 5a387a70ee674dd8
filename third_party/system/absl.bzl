"""Wraps the installed Abseil: one target per component, as @com_google_absl//:<component>."""

load("//third_party/system:package.bzl", "INCLUDE_DIR", "lib_dir", "link", "require")

_HEADER = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "headers",
    hdrs = glob(["include/absl/**/*.h", "include/absl/**/*.inc"]),
    includes = ["include"],
)
"""

_COMPONENT = """
cc_library(
    name = "{name}",
    srcs = {srcs},
    linkopts = {linkopts},
    deps = {deps},
)
"""

def _fields(text):
    """'Requires: a, b' lines of a .pc file as {"Requires": "a, b"}."""
    fields = {}
    for line in text.split("\n"):
        key, colon, value = line.partition(":")
        if colon:
            fields[key] = value.strip()
    return fields

def _component(rctx, libs, name, fields):
    deps = [":headers"]
    for requirement in fields.get("Requires", "").split(","):
        package = requirement.strip().split(" ")[0]
        if package.startswith("absl_"):
            deps.append(":" + package[len("absl_"):])
    srcs = []
    linkopts = []
    for flag in fields.get("Libs", "").split(" "):
        if flag.startswith("-labsl_"):
            archive = "lib%s.a" % flag[len("-l"):]
            link(rctx, libs + "/" + archive, "lib/" + archive)
            srcs.append("lib/" + archive)
        elif flag and not flag.startswith("-L"):
            linkopts.append(flag)
    return _COMPONENT.format(name = name, srcs = srcs, linkopts = linkopts, deps = deps)

def _absl_package_impl(rctx):
    require(rctx, INCLUDE_DIR + "/absl")
    rctx.symlink(INCLUDE_DIR + "/absl", "include/absl")
    libs = lib_dir(rctx)
    build = _HEADER

    # pkg-config's files know which component needs which, so archives link in the right order.
    for pc in sorted([path.basename for path in rctx.path(libs + "/pkgconfig").readdir()]):
        if pc.startswith("absl_") and pc.endswith(".pc"):
            name = pc[len("absl_"):-len(".pc")]
            build += _component(rctx, libs, name, _fields(rctx.read(libs + "/pkgconfig/" + pc)))
    rctx.file("BUILD", build)

absl_package = repository_rule(
    implementation = _absl_package_impl,
    attrs = {"debs": attr.string_list(default = ["libabsl-dev"])},
    local = True,
)
