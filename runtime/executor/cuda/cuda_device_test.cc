#include "runtime/executor/cuda/cuda_device.h"

#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/gpu/cuda_status.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A machine with one H200 on which all is well.
CudaQueries SoundMachine() {
  return {.driver_version =
              [](int* version) {
                *version = 13000;
                return cudaSuccess;
              },
          .runtime_version =
              [](int* version) {
                *version = 13000;
                return cudaSuccess;
              },
          .device_count =
              [](int* count) {
                *count = 1;
                return cudaSuccess;
              },
          .properties =
              [](int, cudaDeviceProp* properties) {
                std::strcpy(properties->name, "NVIDIA H200");
                properties->major = 9;
                properties->minor = 0;
                properties->multiProcessorCount = 132;
                properties->totalGlobalMem = 150;
                return cudaSuccess;
              },
          .compute_mode =
              [](int, int* mode) {
                *mode = cudaComputeModeDefault;
                return cudaSuccess;
              },
          .set_device = [](int) { return cudaSuccess; },
          .find_code = [] { return cudaSuccess; },
          .memory =
              [](size_t* free, size_t* total) {
                *free = 149;
                *total = 150;
                return cudaSuccess;
              }};
}

void ExpectError(const CudaQueries& queries, absl::StatusCode code, const std::string& what,
                 const std::string& mend, int index = 0) {
  const absl::Status status = OpenCudaDevice(index, queries).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(what), HasSubstr(mend)));
}

TEST(CudaDeviceTest, ASoundGpuIsDescribed) {
  const absl::StatusOr<CudaDevice> device = OpenCudaDevice(0, SoundMachine());
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->name, "NVIDIA H200");
  EXPECT_EQ(device->Label(), "GPU 0 (NVIDIA H200)");
  EXPECT_EQ(device->compute_capability, 90);
  EXPECT_EQ(device->multiprocessors, 132);
  EXPECT_EQ(device->free_bytes, 149);
  EXPECT_EQ(device->total_bytes, 150);
  EXPECT_EQ(CudaVersion(device->runtime_cuda), "13.0");
  EXPECT_EQ(CudaVersion(12080), "12.8");
}

TEST(CudaDeviceTest, FindingAGpuTakesNothingOfIt) {
  CudaQueries queries = SoundMachine();
  queries.set_device = [](int) { return cudaErrorUnknown; };
  const absl::StatusOr<CudaDevice> device = FindCudaDevice(0, queries);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->name, "NVIDIA H200");
  EXPECT_EQ(device->total_bytes, 150);
}

TEST(CudaDeviceTest, WithoutADriver) {
  CudaQueries queries = SoundMachine();
  queries.driver_version = [](int* version) {
    *version = 0;
    return cudaSuccess;
  };
  ExpectError(queries, absl::StatusCode::kUnavailable, "no NVIDIA driver", "install");
}

TEST(CudaDeviceTest, ADriverThatIsTooOld) {
  CudaQueries queries = SoundMachine();
  queries.driver_version = [](int* version) {
    *version = 12080;
    return cudaSuccess;
  };
  ExpectError(queries, absl::StatusCode::kUnavailable,
              "driver supports CUDA 12.8, and this program needs 13.0",
              "install driver 580 or later, or build with a toolkit of CUDA 12");
  queries = SoundMachine();
  queries.device_count = [](int*) { return cudaErrorInsufficientDriver; };
  ExpectError(queries, absl::StatusCode::kUnavailable, "driver supports CUDA",
              "install driver 580");
}

TEST(CudaDeviceTest, WithoutAGpu) {
  CudaQueries queries = SoundMachine();
  queries.device_count = [](int*) { return cudaErrorNoDevice; };
  ExpectError(queries, absl::StatusCode::kUnavailable, "no NVIDIA GPU", "--topology local_cpu");
  queries.device_count = [](int* count) {
    *count = 0;
    return cudaSuccess;
  };
  ExpectError(queries, absl::StatusCode::kUnavailable, "no NVIDIA GPU", "CUDA_VISIBLE_DEVICES");
}

TEST(CudaDeviceTest, AGpuThatIsNotThere) {
  ExpectError(SoundMachine(), absl::StatusCode::kInvalidArgument,
              "GPU 2 of this machine is asked for, and it has 1", "use a topology with at most 1",
              2);
}

TEST(CudaDeviceTest, AGpuThatOthersKeepForThemselves) {
  CudaQueries queries = SoundMachine();
  queries.compute_mode = [](int, int* mode) {
    *mode = cudaComputeModeProhibited;
    return cudaSuccess;
  };
  ExpectError(queries, absl::StatusCode::kUnavailable, "compute mode is Prohibited",
              "sudo nvidia-smi -i 0 -c DEFAULT");
  queries.compute_mode = [](int, int* mode) {
    *mode = cudaComputeModeExclusiveProcess;
    return cudaSuccess;
  };
  queries.set_device = [](int) { return cudaErrorDevicesUnavailable; };
  ExpectError(queries, absl::StatusCode::kUnavailable, "Exclusive_Process", "end that process");
}

TEST(CudaDeviceTest, AnArchitectureThatTheProgramLacks) {
  for (const cudaError_t error : {cudaErrorNoKernelImageForDevice, cudaErrorUnsupportedPtxVersion,
                                  cudaErrorInvalidDeviceFunction}) {
    CudaQueries queries = SoundMachine();
    queries.find_code = [error] { return error; };
    ExpectError(queries, absl::StatusCode::kUnimplemented, "it has compute capability 9.0",
                "--@local_cuda//:archs=90a");
  }
}

TEST(CudaDeviceTest, WhatFailsOnTheGpuIsExplained) {
  const auto explained = [](cudaError_t error) {
    return ExplainCudaError(ToStatus(error, "cudaStreamSynchronize"),
                            "stage 1 on GPU 0 (NVIDIA H200)");
  };
  EXPECT_TRUE(explained(cudaSuccess).ok());

  const absl::Status ecc = explained(cudaErrorECCUncorrectable);
  EXPECT_EQ(ecc.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(ecc.message()),
              AllOf(HasSubstr("stage 1 on GPU 0 (NVIDIA H200): cudaStreamSynchronize"),
                    HasSubstr("nvidia-smi -q -d ECC"), HasSubstr("dmesg | grep Xid")));
  for (const cudaError_t error : {cudaErrorIllegalAddress, cudaErrorLaunchFailure,
                                  cudaErrorHardwareStackError, cudaErrorUnknown}) {
    const absl::Status status = explained(error);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(status.message()), HasSubstr("dmesg | grep Xid")) << error;
  }
  const absl::Status gone = explained(cudaErrorDevicesUnavailable);
  EXPECT_EQ(gone.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(gone.message()), HasSubstr("fell off the bus"));
  EXPECT_THAT(std::string(explained(cudaErrorMemoryAllocation).message()),
              HasSubstr("--reserve-gb"));
}

}  // namespace
}  // namespace fabricast
