#include "runtime/transport/shared_counters.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/gpu/cuda_status.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

// Two caches' lines apart, so that who polls one is not disturbed by who writes another.
constexpr size_t kStride = 128;
constexpr size_t kBytes = 4096;
static_assert(SharedCounters::kCounters * kStride <= kBytes);

// The driver's, which the runtime finds: nothing is linked with it.
struct StreamMemoryCalls {
  decltype(&cuStreamWaitValue32) wait = nullptr;
  decltype(&cuStreamWriteValue32) write = nullptr;
};

absl::StatusOr<StreamMemoryCalls> FindCalls() {
  StreamMemoryCalls calls;
  const auto find = [](const char* symbol, auto& function) -> absl::Status {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    // 12.0: the first whose streams wait for memory without a module parameter of the driver.
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaGetDriverEntryPointByVersion(symbol, &found, 12000, cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess || found == nullptr) {
      return absl::UnavailableError(absl::StrCat("the GPU's driver lacks ", symbol));
    }
    function = reinterpret_cast<std::decay_t<decltype(function)>>(found);
    return absl::OkStatus();
  };
  if (absl::Status status = find("cuStreamWaitValue32", calls.wait); !status.ok()) return status;
  if (absl::Status status = find("cuStreamWriteValue32", calls.write); !status.ok()) return status;
  return calls;
}

const absl::StatusOr<StreamMemoryCalls>& Calls() {
  static const auto* const calls = new absl::StatusOr<StreamMemoryCalls>(FindCalls());
  return *calls;
}

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

absl::Status DriverError(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": CUDA driver error ", result));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedCounters>> SharedCounters::Create() {
  std::array<char, 16> random;
  if (getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
    return SystemError("getrandom");
  }
  const std::string name =
      absl::StrCat("/fabricast-", absl::BytesToHexString({random.data(), random.size()}));
  const int fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (fd < 0) return SystemError("shared memory (/dev/shm)");
  std::unique_ptr<SharedCounters> counters(new SharedCounters(name, /*owner=*/true));
  if (absl::Status status = counters->Map(fd, /*create=*/true); !status.ok()) return status;
  return counters;
}

absl::StatusOr<std::unique_ptr<SharedCounters>> SharedCounters::Open(const std::string& name) {
  const int fd = shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0);
  if (fd < 0) return SystemError(name);
  std::unique_ptr<SharedCounters> counters(new SharedCounters(name, /*owner=*/false));
  if (absl::Status status = counters->Map(fd, /*create=*/false); !status.ok()) return status;
  return counters;
}

absl::Status SharedCounters::Map(int fd, bool create) {
  const bool sized = !create || ftruncate(fd, kBytes) == 0;
  struct stat found = {};
  // A page that is not there would be a signal.
  if (!sized || fstat(fd, &found) != 0 || found.st_size != kBytes) {
    const absl::Status status = SystemError(absl::StrCat(name_, " of ", kBytes, " bytes"));
    close(fd);
    return status;
  }
  void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  const absl::Status status = SystemError("mmap");
  close(fd);
  if (memory == MAP_FAILED) return status;
  memory_ = memory;
  if (!Calls().ok()) return Calls().status();
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaHostRegister(memory_, kBytes, cudaHostRegisterMapped));
  registered_ = true;
  void* on_gpu = nullptr;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaHostGetDevicePointer(&on_gpu, memory_, 0));
  on_gpu_ = reinterpret_cast<uint64_t>(on_gpu);
  return absl::OkStatus();
}

SharedCounters::~SharedCounters() {
  Unlink();
  if (registered_) cudaHostUnregister(memory_);
  if (memory_ != nullptr) munmap(memory_, kBytes);
}

void SharedCounters::Unlink() {
  if (std::exchange(linked_, false)) shm_unlink(name_.c_str());
}

absl::Status SharedCounters::Set(int counter, uint32_t value, GpuStream stream) const {
  return DriverError(
      Calls()->write(stream, on_gpu_ + counter * kStride, value, CU_STREAM_WRITE_VALUE_DEFAULT),
      "cuStreamWriteValue32");
}

absl::Status SharedCounters::WaitFor(int counter, uint32_t value, GpuStream stream) const {
  return DriverError(
      Calls()->wait(stream, on_gpu_ + counter * kStride, value, CU_STREAM_WAIT_VALUE_GEQ),
      "cuStreamWaitValue32");
}

void SharedCounters::SetNow(int counter, uint32_t value) const { At(counter).store(value); }

uint32_t SharedCounters::Now(int counter) const { return At(counter).load(); }

std::atomic_ref<uint32_t> SharedCounters::At(int counter) const {
  FABRICAST_CHECK(0 <= counter && counter < kCounters) << counter;
  return std::atomic_ref<uint32_t>(
      *reinterpret_cast<uint32_t*>(static_cast<char*>(memory_) + counter * kStride));
}

}  // namespace fabricast
