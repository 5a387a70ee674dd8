// How calls of a transport end, for tests that wait for it.
#ifndef FABRICAST_RUNTIME_TRANSPORT_CONFORMANCE_OUTCOME_H_
#define FABRICAST_RUNTIME_TRANSPORT_CONFORMANCE_OUTCOME_H_

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/transport/stage_transport.h"

namespace fabricast {

// Keeps the statuses of one or more `done`s in the order in which they ran. Thread-safe; may be
// gone when they run.
class Outcome {
 public:
  // Far longer than anything takes: a test that hangs says where.
  static constexpr std::chrono::seconds kPatience{120};

  StageTransport::Done done() {
    return [record = record_](absl::Status status) {
      const std::lock_guard<std::mutex> lock(record->mutex);
      record->statuses.push_back(std::move(status));
      record->changed.notify_all();
    };
  }

  // Waits for that many; whether they came.
  bool Came(size_t count) {
    std::unique_lock<std::mutex> lock(record_->mutex);
    return record_->changed.wait_for(lock, kPatience,
                                     [&] { return record_->statuses.size() >= count; });
  }

  // Waits for that many; the first that is not OK, if any.
  absl::Status Wait(size_t count = 1) {
    const bool came = Came(count);
    const std::vector<absl::Status> statuses = this->statuses();
    if (!came) {
      return absl::DeadlineExceededError(
          absl::StrCat(statuses.size(), " of ", count, " calls of done came"));
    }
    for (const absl::Status& status : statuses) {
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  std::vector<absl::Status> statuses() const {
    const std::lock_guard<std::mutex> lock(record_->mutex);
    return record_->statuses;
  }
  size_t times() const { return statuses().size(); }

 private:
  struct Record {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<absl::Status> statuses;
  };
  std::shared_ptr<Record> record_ = std::make_shared<Record>();
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_CONFORMANCE_OUTCOME_H_
