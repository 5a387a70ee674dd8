#include "runtime/nccl/nccl.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/gpu/dynamic_library.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

static_assert(sizeof(NcclId) == sizeof(ncclUniqueId));

// The first with minCTAs and maxCTAs, which links are joined with.
constexpr int kOldestVersion = 21700;
// The largest message with which a group sets itself up. NCCL's last change of algorithm or
// protocol comes at a few MiB for few ranks.
constexpr int64_t kWarmUpBytes = int64_t{32} << 20;
// Between looks at a stream that waits for peers.
constexpr absl::Duration kPause = absl::Microseconds(200);
// Longer than NCCL takes to end on this side. What a dead peer's half keeps is left behind.
constexpr absl::Duration kAbortPatience = absl::Seconds(3);
// A call of NCCL takes some 10 us; one that takes longer is stuck on what Abort is to end.
constexpr std::chrono::milliseconds kCallPatience{100};

struct Functions {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
};

std::string VersionText(int version) {
  // Up to 2.8 the code was 2804, from 2.9 on it is 20900.
  const int unit = version < 10'000 ? 1'000 : 10'000;
  return absl::StrCat(version / unit, ".", version % unit / 100, ".", version % 100);
}

absl::StatusOr<Functions> LoadFunctions(const std::vector<std::string>& libraries) {
  absl::StatusOr<DynamicLibrary> library = DynamicLibrary::Open(
      libraries, "NCCL",
      "install NVIDIA's libnccl2 (or pip's nvidia-nccl-cu13), and if it is in another folder, name "
      "that in LD_LIBRARY_PATH");
  if (!library.ok()) return library.status();
  constexpr char kWhat[] = "NCCL 2.17 or newer";
  Functions functions;
  library->Find("ncclGetVersion", functions.get_version);
  if (absl::Status status = library->Complete(kWhat); !status.ok()) return status;
  int version = 0;
  if (functions.get_version(&version) != ncclSuccess || version < kOldestVersion) {
    return absl::UnavailableError(absl::StrCat(library->path(), " is NCCL ", VersionText(version),
                                               "; install 2.17 or newer (NVIDIA's libnccl2)"));
  }
  library->Find("ncclGetUniqueId", functions.get_unique_id);
  library->Find("ncclCommInitRankConfig", functions.comm_init_rank_config);
  library->Find("ncclCommAbort", functions.comm_abort);
  library->Find("ncclCommGetAsyncError", functions.comm_get_async_error);
  library->Find("ncclGetErrorString", functions.get_error_string);
  library->Find("ncclGetLastError", functions.get_last_error);
  library->Find("ncclAllReduce", functions.all_reduce);
  library->Find("ncclAllGather", functions.all_gather);
  library->Find("ncclBroadcast", functions.broadcast);
  library->Find("ncclSend", functions.send);
  library->Find("ncclRecv", functions.receive);
  if (absl::Status status = library->Complete(kWhat); !status.ok()) return status;
  return functions;
}

absl::Status ToStatus(const Functions& functions, ncclResult_t result, const std::string& what,
                      ncclComm_t comm) {
  if (result == ncclSuccess) return absl::OkStatus();
  const char* const last = functions.get_last_error(comm);
  const std::string message =
      absl::StrCat(what, ": ", functions.get_error_string(result), " (", result, ")",
                   last == nullptr || *last == 0 ? "" : ": ", last == nullptr ? "" : last);
  switch (result) {
    case ncclSystemError:
    case ncclRemoteError:
      return absl::UnavailableError(message);
    default:
      return absl::InternalError(message);
  }
}

// Something that a thread waits for, which may give up.
class Event {
 public:
  void Set() {
    const std::lock_guard<std::mutex> lock(mutex_);
    set_ = true;
    changed_.notify_all();
  }
  bool WaitUntil(absl::Time deadline) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_until(lock, absl::ToChronoTime(deadline), [this] { return set_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool set_ = false;
};

class Stream {
 public:
  Stream() = default;
  ~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  absl::Status Create() {
    return fabricast::ToStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                               "cudaStreamCreateWithFlags");
  }
  absl::Status WaitUntil(absl::Time deadline) const {
    while (true) {
      const cudaError_t state = cudaStreamQuery(stream_);
      if (state != cudaErrorNotReady) return fabricast::ToStatus(state, "cudaStreamQuery");
      if (absl::Now() >= deadline) {
        return absl::DeadlineExceededError("the other ranks' GPUs do not come");
      }
      absl::SleepFor(kPause);
    }
  }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Communicator final : public NcclCommunicator {
 public:
  Communicator(const Functions& functions, int ranks, int rank, int device)
      : functions_(functions), ranks_(ranks), rank_(rank), device_(device) {}
  ~Communicator() override {
    Abort();
    if (aborted_ != nullptr) (void)aborted_->WaitUntil(absl::Now() + kAbortPatience);
  }

  // Waits for the other ranks, for ever.
  absl::Status Init(const NcclId& id, int channels) {
    ncclUniqueId unique;
    std::memcpy(&unique, id.data(), sizeof(unique));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    if (channels > 0) config.minCTAs = config.maxCTAs = channels;
    ncclComm_t comm = nullptr;
    const ncclResult_t result =
        functions_.comm_init_rank_config(&comm, ranks_, unique, rank_, &config);
    if (result == ncclSuccess) comm_ = comm;
    return ToStatus(functions_, result, Named("ncclCommInitRankConfig"), nullptr);
  }

  // Makes every collective call with sizes of all magnitudes: which algorithm and protocol, and so
  // which connections, a call takes depends on its size.
  absl::Status SetUpCollectives(absl::Time deadline) {
    void* buffer = nullptr;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaMalloc(&buffer, kWarmUpBytes));
    Stream stream;
    absl::Status status = stream.Create();
    for (int64_t bytes = 4 * ranks_; status.ok() && bytes <= kWarmUpBytes; bytes *= 8) {
      const int64_t each = bytes / ranks_;
      status = SumF32(static_cast<float*>(buffer), bytes / 4, stream.get());
      if (status.ok()) {
        status = AllGather(static_cast<char*>(buffer) + rank_ * each, each, buffer, stream.get());
      }
      if (status.ok()) status = Broadcast(buffer, bytes, 0, stream.get());
    }
    return Finish(stream, status, deadline, buffer);
  }

  absl::Status SetUpLink(absl::Time deadline) {
    void* buffer = nullptr;
    constexpr int64_t kBytes = int64_t{1} << 20;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaMalloc(&buffer, kBytes));
    Stream stream;
    absl::Status status = stream.Create();
    for (const int64_t bytes : {int64_t{1}, kBytes}) {
      if (!status.ok()) break;
      status = rank_ == 0 ? Send(buffer, bytes, 1, stream.get())
                          : Receive(buffer, bytes, 0, stream.get());
    }
    return Finish(stream, status, deadline, buffer);
  }

  int rank() const override { return rank_; }
  int ranks() const override { return ranks_; }

  absl::Status SumF32(float* data, int64_t count, GpuStream stream) override {
    return Call("ncclAllReduce", [&](ncclComm_t comm) {
      return functions_.all_reduce(data, data, static_cast<size_t>(count), ncclFloat32, ncclSum,
                                   comm, stream);
    });
  }
  absl::Status AllGather(const void* from, int64_t bytes, void* to, GpuStream stream) override {
    return Call("ncclAllGather", [&](ncclComm_t comm) {
      return functions_.all_gather(from, to, static_cast<size_t>(bytes), ncclInt8, comm, stream);
    });
  }
  absl::Status Broadcast(void* data, int64_t bytes, int root, GpuStream stream) override {
    return Call("ncclBroadcast", [&](ncclComm_t comm) {
      return functions_.broadcast(data, data, static_cast<size_t>(bytes), ncclInt8, root, comm,
                                  stream);
    });
  }
  absl::Status Send(const void* data, int64_t bytes, int to, GpuStream stream) override {
    return Call("ncclSend", [&](ncclComm_t comm) {
      return functions_.send(data, static_cast<size_t>(bytes), ncclInt8, to, comm, stream);
    });
  }
  absl::Status Receive(void* data, int64_t bytes, int from, GpuStream stream) override {
    return Call("ncclRecv", [&](ncclComm_t comm) {
      return functions_.receive(data, static_cast<size_t>(bytes), ncclInt8, from, comm, stream);
    });
  }

  absl::Status CheckAsync() override {
    const std::unique_lock<std::timed_mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return absl::OkStatus();  // a call is under way
    if (comm_ == nullptr) return Aborted();
    ncclResult_t state = ncclSuccess;
    const ncclResult_t result = functions_.comm_get_async_error(comm_, &state);
    return ToStatus(functions_, result == ncclSuccess ? state : result, Named("NCCL"), comm_);
  }

  void Abort() override {
    // Without it, if a call waits for what only Abort can end.
    const std::unique_lock<std::timed_mutex> lock(mutex_, kCallPatience);
    const ncclComm_t comm = comm_.exchange(nullptr);
    if (comm == nullptr) return;
    // It first tells the kernels, then waits for them.
    aborted_ = std::make_shared<Event>();
    std::thread([abort = functions_.comm_abort, comm, device = device_, aborted = aborted_] {
      // NCCL goes back to the thread's device, and would make a context on GPU 0.
      cudaSetDevice(device);
      abort(comm);
      aborted->Set();
    }).detach();
  }

 private:
  std::string Named(absl::string_view what) const {
    return absl::StrCat("rank ", rank_, " of ", ranks_, ": ", what);
  }

  template <typename F>
  absl::Status Call(const char* what, const F& call) {
    const std::lock_guard<std::timed_mutex> lock(mutex_);
    const ncclComm_t comm = comm_;
    if (comm == nullptr) return Aborted();
    const ncclResult_t result = call(comm);
    return result == ncclSuccess ? absl::OkStatus()
                                 : ToStatus(functions_, result, Named(what), comm);
  }

  absl::Status Aborted() const {
    return absl::CancelledError(Named("NCCL's communicator was aborted"));
  }

  // Of a set-up that put its work into `stream`.
  absl::Status Finish(const Stream& stream, absl::Status status, absl::Time deadline,
                      void* buffer) {
    if (status.ok()) {
      status = stream.WaitUntil(deadline);
      if (status.code() == absl::StatusCode::kDeadlineExceeded) {
        status = absl::DeadlineExceededError(Named(status.message()));
      }
    }
    if (!status.ok()) Abort();
    cudaFree(buffer);
    return status;
  }

  const Functions functions_;
  const int ranks_;
  const int rank_;
  const int device_;
  std::timed_mutex mutex_;                  // one call of NCCL at a time
  std::atomic<ncclComm_t> comm_ = nullptr;  // null once aborted
  std::shared_ptr<Event> aborted_;          // null while it has not been
};

class LoadedNccl final : public Nccl {
 public:
  explicit LoadedNccl(const Functions& functions) : functions_(functions) {
    FABRICAST_CHECK(functions_.get_version(&version_) == ncclSuccess);
  }

  int version() const override { return version_; }
  std::string name() const override { return absl::StrCat("NCCL ", VersionText(version_)); }

  absl::StatusOr<NcclId> NewId() override {
    ncclUniqueId unique;
    const absl::Status status =
        ToStatus(functions_, functions_.get_unique_id(&unique), "ncclGetUniqueId", nullptr);
    if (!status.ok()) return status;
    NcclId id;
    std::memcpy(id.data(), &unique, sizeof(unique));
    return id;
  }

  absl::StatusOr<std::unique_ptr<NcclCommunicator>> Join(const NcclId& id, int ranks, int rank,
                                                         absl::Time deadline) override {
    FABRICAST_CHECK(0 <= rank && rank < ranks) << rank << " of " << ranks;
    return JoinBy(deadline, id, ranks, rank, /*channels=*/0, &Communicator::SetUpCollectives);
  }

  absl::StatusOr<std::unique_ptr<NcclCommunicator>> JoinLink(const NcclId& id, int rank,
                                                             int channels,
                                                             absl::Time deadline) override {
    FABRICAST_CHECK(rank == 0 || rank == 1) << rank;
    FABRICAST_CHECK(channels >= 1 && (channels & (channels - 1)) == 0) << channels;
    return JoinBy(deadline, id, 2, rank, channels, &Communicator::SetUpLink);
  }

 private:
  // On a thread of its own, since NCCL waits for ranks that do not come without an end. That
  // thread is left behind then, and holds nothing but a few connections.
  absl::StatusOr<std::unique_ptr<NcclCommunicator>> JoinBy(
      absl::Time deadline, const NcclId& id, int ranks, int rank, int channels,
      absl::Status (Communicator::*set_up)(absl::Time)) {
    int device = 0;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDevice(&device));
    struct Joining {
      Event over;
      absl::Status status;
      std::unique_ptr<Communicator> communicator;
    };
    const auto joining = std::make_shared<Joining>();
    joining->communicator = std::make_unique<Communicator>(functions_, ranks, rank, device);
    std::thread([joining, deadline, id, channels, device, set_up] {
      cudaSetDevice(device);
      Communicator& communicator = *joining->communicator;
      joining->status = communicator.Init(id, channels);
      if (joining->status.ok()) joining->status = (communicator.*set_up)(deadline);
      joining->over.Set();
    }).detach();
    // The set-up has the same deadline, and a little time to say what it waited for.
    if (!joining->over.WaitUntil(deadline + absl::Milliseconds(100))) {
      return absl::DeadlineExceededError(
          absl::StrCat("rank ", rank, " of ", ranks,
                       ": the others have not joined NCCL's communicator in time"));
    }
    if (!joining->status.ok()) return joining->status;
    return std::move(joining->communicator);
  }

  const Functions functions_;
  int version_ = 0;
};

}  // namespace

std::vector<std::string> Nccl::Libraries() {
  std::vector<std::string> libraries = {"libnccl.so.2"};
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* root = std::getenv(variable); root != nullptr && *root != 0) {
      libraries.push_back(absl::StrCat(root, "/lib64/libnccl.so.2"));
    }
  }
  libraries.push_back("/usr/local/cuda/lib64/libnccl.so.2");
  return libraries;
}

absl::StatusOr<std::shared_ptr<Nccl>> Nccl::Load(const std::vector<std::string>& libraries) {
  const absl::StatusOr<Functions> functions = LoadFunctions(libraries);
  if (!functions.ok()) return functions.status();
  return std::make_shared<LoadedNccl>(*functions);
}

}  // namespace fabricast
