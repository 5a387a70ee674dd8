"""Wraps one installed -dev package as an external repository."""

INCLUDE_DIR = "/usr/include"

def lib_dir(rctx):
    """The folder of this machine's libraries, e.g. /usr/lib/x86_64-linux-gnu."""
    machine = rctx.execute(["uname", "-m"]).stdout.strip()
    return "/usr/lib/%s-linux-gnu" % machine

def link(rctx, source, target):
    """Links `source`, a file or folder of the system, in as `target`, or says which package has it."""
    require(rctx, source)
    rctx.symlink(source, target)

def require(rctx, source):
    if not rctx.path(source).exists:
        fail("@%s: %s is missing; run tools/setup, or: apt-get install -y --no-install-recommends %s" %
             (rctx.name, source, " ".join(rctx.attr.debs)))

def _system_package_impl(rctx):
    for header in rctx.attr.headers:
        link(rctx, INCLUDE_DIR + "/" + header, "include/" + header)
    for lib in rctx.attr.libs:
        link(rctx, lib_dir(rctx) + "/" + lib, "lib/" + lib)
    for binary in rctx.attr.bins:
        link(rctx, "/usr/bin/" + binary, "bin/" + binary)
    for header in rctx.attr.present:
        require(rctx, INCLUDE_DIR + "/" + header)
    rctx.symlink(rctx.attr.build_file, "BUILD")

system_package = repository_rule(
    implementation = _system_package_impl,
    attrs = {
        "bins": attr.string_list(doc = "programs of /usr/bin, linked in as bin/*"),
        "build_file": attr.label(mandatory = True, allow_single_file = True),
        "debs": attr.string_list(mandatory = True, doc = "the Debian packages, for the message when they are missing"),
        "headers": attr.string_list(doc = "files and folders of /usr/include, linked in as include/*"),
        "libs": attr.string_list(doc = "libraries, linked in as lib/*"),
        "present": attr.string_list(doc = "headers of /usr/include that must be there, but are not linked in"),
    },
    local = True,
)
