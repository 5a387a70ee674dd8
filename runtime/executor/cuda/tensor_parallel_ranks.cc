#include "runtime/executor/cuda/tensor_parallel_ranks.h"

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace fabricast {
namespace {

// A thread that does one thing after another.
class Lane {
 public:
  Lane() : thread_([this] { Work(); }) {}
  ~Lane() {
    Do(nullptr);
    thread_.join();
  }

  void Do(std::function<void()> work) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(work));
    }
    not_empty_.notify_one();
  }

 private:
  void Work() {
    for (;;) {
      std::function<void()> work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        not_empty_.wait(lock, [this] { return !queue_.empty(); });
        work = std::move(queue_.front());
        queue_.pop_front();
      }
      if (work == nullptr) return;
      work();
    }
  }

  std::mutex mutex_;
  std::condition_variable not_empty_;
  std::deque<std::function<void()>> queue_;
  std::thread thread_;  // last: it uses the others
};

class TensorParallelRanks : public DeviceExecutor {
 public:
  explicit TensorParallelRanks(const TensorParallelRanksOptions& options)
      : options_(options),
        executors_(options.ranks),
        enqueuing_(options.ranks),
        finishing_(options.ranks) {}

  absl::Status Make() {
    return OnAll(enqueuing_, [this](int rank) {
      absl::StatusOr<std::unique_ptr<DeviceExecutor>> made = options_.make(rank);
      if (made.ok()) executors_[rank] = *std::move(made);
      return made.status();
    });
  }

  int64_t activation_bytes_per_token() const override {
    return executors_[0]->activation_bytes_per_token();
  }
  absl::Status UseDevice() const override { return executors_[0]->UseDevice(); }
  int slots() const override { return executors_[0]->slots(); }
  Slot slot(int index) const override { return executors_[0]->slot(index); }

  absl::Status Run(const Step& step, absl::Span<const std::byte> input,
                   absl::Span<std::byte> output, std::vector<SampledToken>& sampled) override {
    return Sampling(sampled, [&](int rank, std::vector<SampledToken>& tokens) {
      return rank == 0 ? executors_[0]->Run(step, input, output, tokens)
                       : executors_[rank]->Run(step, {}, {}, tokens);
    });
  }

  absl::Status Enqueue(const Step& step) override {
    if (absl::Status status = broken(); !status.ok()) return status;
    return OnAll(enqueuing_, [&](int rank) { return executors_[rank]->Enqueue(step); });
  }

  absl::Status Finish(const Step& step, std::vector<SampledToken>& sampled, Times& times) override {
    return Sampling(sampled, [&](int rank, std::vector<SampledToken>& tokens) {
      Times others;
      return executors_[rank]->Finish(step, tokens, rank == 0 ? times : others);
    });
  }

  void Reset() override {
    OnAll(finishing_, [this](int rank) {
      executors_[rank]->Reset();
      return absl::OkStatus();
    }).IgnoreError();
  }

  absl::Status usable() const override {
    absl::Status status = broken();
    for (const auto& executor : executors_) {
      if (status.ok()) status = executor->usable();
    }
    return status;
  }

 private:
  // `work` on all ranks, of which each gives tokens; rank 0's, if they are the same.
  template <typename Work>
  absl::Status Sampling(std::vector<SampledToken>& sampled, const Work& work) {
    sampled.clear();
    if (absl::Status status = broken(); !status.ok()) return status;
    std::vector<std::vector<SampledToken>> tokens(executors_.size());
    if (absl::Status status = OnAll(finishing_, [&](int rank) { return work(rank, tokens[rank]); });
        !status.ok()) {
      return status;
    }
    for (size_t rank = 1; rank < tokens.size(); ++rank) {
      for (size_t i = 0; i < tokens[0].size(); ++i) {
        if (i < tokens[rank].size() && tokens[rank][i].token == tokens[0][i].token) continue;
        return Break(absl::InternalError(absl::StrCat(
            "the GPUs of this stage disagree: GPU ", rank + 1, " of ", tokens.size(),
            " has sampled another token than the first; one of them may be failing: nvidia-smi -q "
            "-d ECC, dmesg | grep Xid")));
      }
    }
    sampled = std::move(tokens[0]);
    return absl::OkStatus();
  }

  // Does `work` on every rank's thread of `lanes`, and returns when all are done.
  absl::Status OnAll(std::vector<Lane>& lanes, const std::function<absl::Status(int)>& work) {
    struct {
      std::mutex mutex;
      std::condition_variable changed;
      size_t left;
      size_t failed = 0;
      size_t first = 0;  // that failed
      absl::Status status;
    } all;
    const size_t ranks = lanes.size();
    all.left = ranks;
    for (size_t rank = 0; rank < ranks; ++rank) {
      lanes[rank].Do([&, rank] {
        absl::Status status = work(static_cast<int>(rank));
        const std::lock_guard<std::mutex> lock(all.mutex);
        --all.left;
        if (!status.ok() && all.failed++ == 0) {
          all.first = rank;
          all.status = std::move(status);
        }
        // Under the lock: `all` is gone as soon as the last has let go of it.
        all.changed.notify_one();
      });
    }
    std::unique_lock<std::mutex> lock(all.mutex);
    const auto done = [&] { return all.left == 0; };
    all.changed.wait(lock, [&] { return done() || all.failed > 0; });
    const bool in_time =
        all.changed.wait_for(lock, absl::ToChronoNanoseconds(options_.grace), done);
    if (all.failed == 0 || (in_time && all.failed == ranks)) return all.status;
    const absl::Status status = Break(
        absl::Status(all.status.code(), absl::StrCat("GPU ", all.first + 1, " of the ", ranks,
                                                     " of this stage: ", all.status.message())));
    all.changed.wait(lock, done);
    return status;
  }

  absl::Status Break(absl::Status status) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!broken_.ok()) return broken_;
      broken_ = status;
    }
    options_.abort();
    return status;
  }
  absl::Status broken() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return broken_;
  }

  const TensorParallelRanksOptions options_;
  mutable std::mutex mutex_;
  absl::Status broken_;  // once a rank has failed alone

  std::vector<std::unique_ptr<DeviceExecutor>> executors_;
  std::vector<Lane> enqueuing_;
  std::vector<Lane> finishing_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeTensorParallelRanks(
    const TensorParallelRanksOptions& options) {
  auto ranks = std::make_unique<TensorParallelRanks>(options);
  if (absl::Status status = ranks->Make(); !status.ok()) return status;
  return ranks;
}

}  // namespace fabricast
