"""Third-party libraries, taken from the Debian packages of the machine.

README.md beside this file lists them with versions, licences and reasons.
"""

load("//third_party/system:absl.bzl", "absl_package")
load("//third_party/system:package.bzl", "system_package")

def system_packages():
    """Declares one external repository per dependency. Each is looked at only when a build needs it."""
    absl_package(name = "com_google_absl")

    system_package(
        name = "com_google_protobuf",
        bins = ["protoc"],
        build_file = "//third_party/system:protobuf.BUILD",
        debs = [
            "libprotobuf-dev",
            "protobuf-compiler",
            "zlib1g-dev",
        ],
        headers = ["google/protobuf"],
        libs = [
            "libprotobuf.a",
            "libz.a",
        ],
    )

    system_package(
        name = "com_google_googletest",
        build_file = "//third_party/system:googletest.BUILD",
        debs = [
            "libgtest-dev",
            "libgmock-dev",
        ],
        headers = [
            "gmock",
            "gtest",
        ],
        libs = [
            "libgmock.a",
            "libgmock_main.a",
            "libgtest.a",
        ],
    )

    system_package(
        name = "com_google_benchmark",
        build_file = "//third_party/system:benchmark.BUILD",
        debs = ["libbenchmark-dev"],
        headers = ["benchmark"],
        libs = ["libbenchmark_main.a"],
    )

    system_package(
        name = "simgrid",
        build_file = "//third_party/system:simgrid.BUILD",
        debs = [
            "libsimgrid-dev",
            "libboost-dev",
        ],
        headers = [
            "simgrid",
            "xbt",
            "xbt.h",
        ],
    )

    system_package(
        name = "rdma_core",
        build_file = "//third_party/system:rdma_core.BUILD",
        debs = [
            "libibverbs-dev",
            "librdmacm-dev",
        ],
        headers = [
            "infiniband",
            "rdma",
        ],
    )

    system_package(
        name = "nlohmann_json",
        build_file = "//third_party/system:nlohmann_json.BUILD",
        debs = ["nlohmann-json3-dev"],
        headers = ["nlohmann"],
    )

    system_package(
        name = "cli11",
        build_file = "//third_party/system:cli11.BUILD",
        debs = ["libcli11-dev"],
        headers = ["CLI"],
    )

    system_package(
        name = "boost",
        build_file = "//third_party/system:boost.BUILD",
        debs = ["libboost-dev"],
        present = ["boost/random.hpp"],
    )

    system_package(
        name = "highway",
        build_file = "//third_party/system:highway.BUILD",
        debs = ["libhwy-dev"],
        headers = ["hwy"],
    )

    system_package(
        name = "pcre2",
        build_file = "//third_party/system:pcre2.BUILD",
        debs = ["libpcre2-dev"],
        headers = ["pcre2.h"],
        libs = ["libpcre2-8.a"],
    )

    system_package(
        name = "utf8proc",
        build_file = "//third_party/system:utf8proc.BUILD",
        debs = ["libutf8proc-dev"],
        headers = ["utf8proc.h"],
        libs = ["libutf8proc.a"],
    )

    system_package(
        name = "com_github_grpc_grpc",
        bins = ["grpc_cpp_plugin"],
        build_file = "//third_party/system:grpc.BUILD",
        debs = [
            "libgrpc++-dev",
            "protobuf-compiler-grpc",
        ],
        headers = [
            "grpc",
            "grpcpp",
        ],
        libs = [
            "libaddress_sorting.a",
            "libcares.a",
            "libgpr.a",
            "libgrpc++_unsecure.a",
            "libgrpc_unsecure.a",
            "libupb.a",
        ],
    )

    system_package(
        name = "openssl",
        build_file = "//third_party/system:openssl.BUILD",
        debs = ["libssl-dev"],
        headers = ["openssl"],
        libs = ["libcrypto.a"],
    )
