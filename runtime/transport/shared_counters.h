// Counters in a host's memory by which the GPUs of two of its processes wait for one another.
//
// A GPU that waits for a counter looks at it by itself: no kernel spins, so no multiprocessor is
// taken from what computes meanwhile.
#ifndef FABRICAST_RUNTIME_TRANSPORT_SHARED_COUNTERS_H_
#define FABRICAST_RUNTIME_TRANSPORT_SHARED_COUNTERS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

// One end's view, for streams of the GPU that was current when it was made. All counters begin
// at 0. Thread-safe.
class SharedCounters {
 public:
  static constexpr int kCounters = 4;
  static constexpr size_t kMostNameBytes = 64;

  // Makes the memory, under a name that cannot be guessed and that only this user may open.
  // kUnavailable if the system has no shared memory to give, or the GPU cannot wait for it.
  static absl::StatusOr<std::unique_ptr<SharedCounters>> Create();
  // The memory of that name; kUnavailable too if it is of another host or container.
  static absl::StatusOr<std::unique_ptr<SharedCounters>> Open(const std::string& name);
  // Nothing in a stream may use it any more.
  ~SharedCounters();
  SharedCounters(const SharedCounters&) = delete;
  SharedCounters& operator=(const SharedCounters&) = delete;

  const std::string& name() const { return name_; }
  // Nobody can open it any more, and it goes with the last who has it.
  void Unlink();

  // The GPU sets `counter` when it comes there.
  absl::Status Set(int counter, uint32_t value, GpuStream stream) const;
  // The GPU goes on there once `counter` has reached `value`, or has passed it by less than 2^31.
  absl::Status WaitFor(int counter, uint32_t value, GpuStream stream) const;
  // The processor sets it, or looks at it.
  void SetNow(int counter, uint32_t value) const;
  uint32_t Now(int counter) const;

 private:
  SharedCounters(std::string name, bool owner) : name_(std::move(name)), linked_(owner) {}
  std::atomic_ref<uint32_t> At(int counter) const;
  // Takes `fd`.
  absl::Status Map(int fd, bool create);

  const std::string name_;
  bool linked_;  // the name is ours to remove
  void* memory_ = nullptr;
  bool registered_ = false;
  uint64_t on_gpu_ = 0;  // its address there
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_SHARED_COUNTERS_H_
