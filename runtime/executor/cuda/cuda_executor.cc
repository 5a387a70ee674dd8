#include "runtime/executor/cuda/cuda_executor.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/attention/kv_cache.h"
#include "kernels/gpu/cuda_status.h"
#include "runtime/check.h"
#include "runtime/executor/cuda/cuda_device.h"
#include "runtime/executor/cuda/cuda_weights.h"
#include "runtime/executor/cuda/device_memory.h"
#include "runtime/executor/cuda/gpu_clock.h"
#include "runtime/executor/cuda/stage_limits.h"
#include "runtime/executor/cuda/stage_requests.h"
#include "runtime/executor/cuda/step_buffer.h"

namespace fabricast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kGb = 1e9;

// Launching a graph takes some 0.25 us a node before its first kernel runs, and a layer has ten (42
// layers on an H200: 0.1 ms less a step in parts of 8). So a step is several graphs: the GPU waits
// for the first only, and computes it while the others are launched.
constexpr size_t kLayersOfGraph = 8;
constexpr int64_t kBf16Bytes = 2;

// While one step is computed the next is there and the one after it arrives.
constexpr int kSlots = 3;

// What joining others takes: NCCL 2.28 0.91 GB between two H200s, mailboxes 0.07
// (tensor_parallel_sum).
constexpr int64_t kGroupBytes = 1'000'000'000;

// The first ones find caches cold.
constexpr int kAnchorTries = 5;

#define FABRICAST_RETURN_IF_ERROR(expression) \
  if (absl::Status status = (expression); !status.ok()) return status

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What a step has for itself from Enqueue to Finish.
struct SlotState {
  absl::Span<std::byte> step;  // page-locked
  std::byte* found = nullptr;  // page-locked
  void* input = nullptr;       // the GPU's, [max_tokens, hidden] BF16
  void* output = nullptr;      // the same
  cudaEvent_t arrived = nullptr;
  cudaEvent_t computed = nullptr;
  cudaEvent_t finished = nullptr;  // `found` is there too
  StepShape shape;
  bool decode = false;  // and so was the step before
  // Of a step with log-probabilities: they are computed before others overwrite the logits.
  std::optional<absl::StatusOr<std::vector<SampledToken>>> sampled;
};

// When a step's work on the GPU began and ended. Kept for one step more than there are slots: times
// are counted from the step before.
struct StepTimes {
  cudaEvent_t started = nullptr;
  cudaEvent_t computed = nullptr;
};

double SecondsBetween(cudaEvent_t from, cudaEvent_t to) {
  float ms = 0;
  if (cudaEventElapsedTime(&ms, from, to) != cudaSuccess) cudaGetLastError();  // only of interest
  return ms / 1e3;
}

class CudaExecutor : public DeviceExecutor {
 public:
  CudaExecutor(const DecoderConfig& config, const StageShape& shape, const GpuStageOptions& options,
               const TensorParallelMember& member, const CudaDevice& device)
      : config_(config),
        shape_(shape),
        options_(options),
        member_(member),
        device_(device),
        gpu_(device.Label()),
        where_(absl::StrCat(options.name, options.name.empty() ? "" : " on ", gpu_)),
        samples_(shape.lm_head.has_value()),
        receives_(!shape.embedding && member.rank.rank == 0),
        gives_(!samples_ && member.rank.rank == 0),
        requests_({.vocabulary = config.vocabulary,
                   .samples = samples_,
                   .kv_blocks = KvBlocks(options),
                   .max_running = MaxEntries(options)}) {}

  ~CudaExecutor() override {
    cudaSetDevice(device_.index);
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    for (const auto& [bucket, parts] : graphs_) {
      for (const cudaGraphExec_t part : parts) cudaGraphExecDestroy(part);
    }
    for (const cudaEvent_t event : made_events_) cudaEventDestroy(event);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  // `fill` makes the weights in the memory that it is given.
  template <typename Fill>
  absl::Status Load(const Fill& fill, std::unique_ptr<CublasLt> cublas);

  int64_t activation_bytes_per_token() const override { return shape_.hidden * kBf16Bytes; }

  absl::Status Run(const Step& step, absl::Span<const std::byte> input,
                   absl::Span<std::byte> output, std::vector<SampledToken>& sampled) override;

  absl::Status UseDevice() const override {
    return ExplainCudaError(ToStatus(cudaSetDevice(device_.index), "cudaSetDevice"), gpu_);
  }
  int slots() const override { return kSlots; }
  Slot slot(int index) const override;
  absl::Status Enqueue(const Step& step) override;
  absl::Status Finish(const Step& step, std::vector<SampledToken>& sampled, Times& times) override;

  void Reset() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto prepare = [this]() -> absl::Status {
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaSetDevice(device_.index));
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream_));
      FABRICAST_RETURN_IF_ERROR(decoder_->ClearCache(stream_));
      return AnchorClock();
    };
    usable_ = ExplainCudaError(prepare(), gpu_);
    requests_.Clear();
    previous_was_decode_ = false;
    enqueued_ = 0;
    finished_ = 0;
  }
  absl::Status usable() const override { return usable_; }

  static int64_t KvBlocks(const GpuStageOptions& options) {
    return options.kv_blocks * (options.kv_block_tokens / kKvBlockTokens);
  }
  // Room for a graph's padding.
  static int64_t MaxEntries(const GpuStageOptions& options) {
    const int64_t most = std::min(options.max_running, options.max_batch_tokens);
    const int bucket = GraphBucket(static_cast<int>(most), GraphBuckets().back());
    return std::max<int64_t>(most, bucket);
  }
  int64_t BoundaryBytes() const {
    return DecoderOptions(options_, config_.max_context).max_tokens * activation_bytes_per_token();
  }
  static CudaDecoderOptions DecoderOptions(const GpuStageOptions& options, int64_t max_context) {
    const int64_t entries = MaxEntries(options);
    const int64_t longest = (max_context + kKvBlockTokens - 1) / kKvBlockTokens;
    return {.max_tokens = std::max(options.max_batch_tokens, entries),
            .max_entries = entries,
            .kv_blocks = KvBlocks(options),
            .max_table = std::min(KvBlocks(options), entries * longest)};
  }

 private:
  void CheckSizes(const Step& step) const;
  absl::Status CheckCapacity(const Step& step) const;
  absl::Status CreateHandles();
  // Computes steps of nothing, so that all kernels are loaded, meets the others, and captures the
  // graphs.
  absl::Status WarmUp();
  absl::Status RunEmpty(const StepShape& shape);
  absl::Status Capture(int bucket);
  // What `enqueue` puts into the stream, as a graph.
  template <typename Work>
  absl::StatusOr<cudaGraphExec_t> CaptureGraph(const Work& enqueue);
  // Enqueues all of a step's work, copies of the step and of what is found included.
  absl::Status Launch(SlotState& slot, int bucket);
  absl::Status UploadStep(const SlotState& slot);
  absl::Status DownloadFound(const SlotState& slot);
  // The stream is empty.
  absl::Status AnchorClock();
  Times TimesOf(const SlotState& slot, Clock::time_point seen);
  absl::StatusOr<std::vector<SampledToken>> SampledOf(const Step& step, const SlotState& slot);
  // Of a step whose residual stream is not finite: computes it again, and says where it is not.
  absl::Status LocateNotFinite(const Step& step, const SlotState& slot);
  absl::Status NotFinite(const Step& step, int32_t row, const std::string& after) const;
  static int32_t FirstBadRow(const SlotState& slot) {
    int32_t row;
    std::memcpy(&row, slot.found, sizeof(row));
    return row;
  }
  absl::Status MakeEvent(unsigned flags, cudaEvent_t& event);
  void Log(const std::string& line) const {
    if (options_.log != nullptr) options_.log(line);
  }

  const DecoderConfig config_;
  const StageShape shape_;
  const GpuStageOptions options_;
  const TensorParallelMember member_;
  const CudaDevice device_;
  const std::string gpu_;    // for messages; whoever runs the stage says which it is
  const std::string where_;  // the stage too: while it is loaded
  const bool samples_;
  const bool receives_;  // what the stage gets comes to this GPU; and leaves it
  const bool gives_;
  StageRequests requests_;

  // What goes first was made last.
  std::unique_ptr<CublasLt> cublas_;
  DeviceMemory memory_;
  CudaWeights weights_;
  std::unique_ptr<CudaDecoder> decoder_;
  GpuStream stream_ = nullptr;
  std::map<int, std::vector<cudaGraphExec_t>> graphs_;  // by bucket; of a step, one after another

  std::array<SlotState, kSlots> slots_;
  std::array<StepTimes, kSlots + 1> times_;
  std::vector<cudaEvent_t> made_events_;
  // Page-locked; Run's, and where logits are sampled.
  std::byte* input_ = nullptr;
  std::byte* output_ = nullptr;
  float* logits_row_ = nullptr;

  absl::Status usable_;
  std::mutex mutex_;  // who enqueues
  int64_t enqueued_ = 0;
  bool previous_was_decode_ = false;

  // Of who finishes.
  int64_t finished_ = 0;
  GpuClock clock_;
  cudaEvent_t anchor_ = nullptr;
};

bool AnyLogprobs(const Step& step) {
  for (const SamplingParams& params : step.sampling) {
    if (params.logprobs >= 0) return true;
  }
  return false;
}

template <typename Fill>
absl::Status CudaExecutor::Load(const Fill& fill, std::unique_ptr<CublasLt> cublas) {
  cublas_ = std::move(cublas);
  const CudaDecoderOptions decoder_options = DecoderOptions(options_, config_.max_context);
  absl::StatusOr<CudaDecoder::Bytes> needed =
      CudaDecoder::BytesNeeded(shape_, decoder_options, device_, *cublas_);
  if (!needed.ok()) return needed.status();
  const int boundaries = (receives_ ? 1 : 0) + (gives_ ? 1 : 0);
  needed->buffers += kSlots * boundaries * BoundaryBytes();
  if (member_.join != nullptr) needed->buffers += kGroupBytes;
  FABRICAST_RETURN_IF_ERROR(
      CheckFits(shape_, *needed, options_, device_.free_bytes, device_.total_bytes, where_));
  GpuStageFigures::Values values;
  const int64_t cublas_version = cublas_->version();
  values.gpu = absl::StrFormat("%s, driver %s, CUDA %s, cuBLASLt %d.%d.%d", device_.name,
                               device_.driver.empty()
                                   ? absl::StrCat("of CUDA ", CudaVersion(device_.driver_cuda))
                                   : device_.driver,
                               CudaVersion(device_.runtime_cuda), cublas_version / 10000,
                               cublas_version / 100 % 100, cublas_version % 100);
  values.weight_bytes = shape_.weight_bytes();
  values.planned_bytes = values.weight_bytes + needed->kv_cache + needed->buffers;

  Clock::time_point start = Clock::now();
  absl::StatusOr<CudaWeights> weights = fill(memory_);
  if (!weights.ok()) return ExplainCudaError(weights.status(), where_);
  weights_ = *std::move(weights);
  values.load_seconds = SecondsSince(start);
  Log(absl::StrFormat("%s: %s: %.2f GB of weights in %.2f s (%.1f GB/s)", where_, values.gpu,
                      values.weight_bytes / kGb, values.load_seconds,
                      values.weight_bytes / kGb / values.load_seconds));

  absl::StatusOr<std::unique_ptr<CudaDecoder>> decoder =
      CudaDecoder::Make(config_, shape_, weights_, decoder_options, device_, *cublas_, memory_);
  if (!decoder.ok()) return ExplainCudaError(decoder.status(), where_);
  decoder_ = *std::move(decoder);
  FABRICAST_RETURN_IF_ERROR(ExplainCudaError(CreateHandles(), where_));
  memory_.Seal();
  start = Clock::now();
  FABRICAST_RETURN_IF_ERROR(ExplainCudaError(WarmUp(), where_));
  values.graph_buckets = static_cast<int>(graphs_.size());
  values.graph_seconds = SecondsSince(start);
  size_t free = 0;
  size_t total = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemGetInfo(&free, &total));
  values.used_bytes = device_.free_bytes - static_cast<int64_t>(free);
  Log(
      absl::StrFormat("%s: graphs for %d numbers of requests in %.2f s; memory planned %.2f GB "
                      "(weights %.2f, KV cache %.2f, buffers "
                      "%.2f), used %.2f, free %.2f of %.2f",
                      where_, values.graph_buckets, values.graph_seconds,
                      values.planned_bytes / kGb, values.weight_bytes / kGb, needed->kv_cache / kGb,
                      needed->buffers / kGb, values.used_bytes / kGb, free / kGb, total / kGb));
  if (options_.figures != nullptr) {
    options_.figures->Update([&](GpuStageFigures::Values& out) { out = values; });
  }
  return absl::OkStatus();
}

absl::Status CudaExecutor::CreateHandles() {
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  const CudaDecoderOptions sizes = DecoderOptions(options_, config_.max_context);
  const int64_t step_bytes = StepBufferBytes(sizes.max_tokens, sizes.max_entries, sizes.max_table);
  StepShape largest;
  largest.sampled = static_cast<int>(sizes.max_entries);
  const auto pinned = [this](int64_t bytes, const char* what, auto*& pointer) {
    absl::StatusOr<void*> memory = memory_.AllocatePinned(bytes, what);
    if (!memory.ok()) return memory.status();
    pointer = static_cast<std::remove_reference_t<decltype(pointer)>>(*memory);
    return absl::OkStatus();
  };
  const auto boundary = [this](const char* what, void*& pointer) {
    absl::StatusOr<void*> memory = memory_.Allocate(BoundaryBytes(), what);
    if (!memory.ok()) return memory.status();
    pointer = *memory;
    return absl::OkStatus();
  };
  // Only the last stage's results are waited for by others.
  const unsigned wait = cudaEventDisableTiming | (samples_ ? 0 : cudaEventBlockingSync);
  for (SlotState& slot : slots_) {
    std::byte* step = nullptr;
    FABRICAST_RETURN_IF_ERROR(pinned(step_bytes, "step buffer", step));
    slot.step = {step, static_cast<size_t>(step_bytes)};
    FABRICAST_RETURN_IF_ERROR(
        pinned(StepLayout(largest).found_bytes, "buffer for sampled tokens", slot.found));
    if (receives_) FABRICAST_RETURN_IF_ERROR(boundary("input of the stage", slot.input));
    if (gives_) FABRICAST_RETURN_IF_ERROR(boundary("output of the stage", slot.output));
    FABRICAST_RETURN_IF_ERROR(MakeEvent(cudaEventDefault, slot.arrived));
    FABRICAST_RETURN_IF_ERROR(MakeEvent(cudaEventDisableTiming, slot.computed));
    FABRICAST_RETURN_IF_ERROR(MakeEvent(wait, slot.finished));
  }
  for (StepTimes& times : times_) {
    FABRICAST_RETURN_IF_ERROR(MakeEvent(cudaEventDefault, times.started));
    FABRICAST_RETURN_IF_ERROR(MakeEvent(cudaEventDefault, times.computed));
  }
  FABRICAST_RETURN_IF_ERROR(MakeEvent(cudaEventDefault, anchor_));
  if (receives_) FABRICAST_RETURN_IF_ERROR(pinned(BoundaryBytes(), "input", input_));
  if (gives_) FABRICAST_RETURN_IF_ERROR(pinned(BoundaryBytes(), "output", output_));
  if (!samples_) return absl::OkStatus();
  return pinned(shape_.vocabulary * static_cast<int64_t>(sizeof(float)), "logits", logits_row_);
}

absl::Status CudaExecutor::MakeEvent(unsigned flags, cudaEvent_t& event) {
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventCreateWithFlags(&event, flags));
  made_events_.push_back(event);
  return absl::OkStatus();
}

absl::Status CudaExecutor::AnchorClock() {
  for (int i = 0; i < kAnchorTries; ++i) {
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(anchor_, stream_));
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventSynchronize(anchor_));
    clock_.Anchor(Clock::now());
  }
  return absl::OkStatus();
}

absl::Status CudaExecutor::WarmUp() {
  const CudaDecoderOptions sizes = DecoderOptions(options_, config_.max_context);
  const int64_t chunk = std::min(sizes.max_tokens, sizes.max_table * kKvBlockTokens);
  if (chunk >= 2) {
    FABRICAST_RETURN_IF_ERROR(RunEmpty(EmptyChunkShape(static_cast<int>(chunk), samples_ ? 1 : 0)));
  }
  for (const int bucket : GraphBuckets()) {
    if (bucket > sizes.max_entries) break;
    FABRICAST_RETURN_IF_ERROR(RunEmpty(EmptyDecodeShape(bucket, samples_)));
  }
  if (samples_) {
    FABRICAST_RETURN_IF_ERROR(
        decoder_->RecordHistories(EmptyDecodeShape(1, samples_), {}, stream_));
  }
  if (member_.join != nullptr) {
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream_));
    absl::StatusOr<NcclCommunicator*> group = member_.join();
    if (!group.ok()) return group.status();
    decoder_->Join(*group);
  }
  for (const int bucket : GraphBuckets()) {
    if (bucket > sizes.max_entries || !options_.graphs) break;
    FABRICAST_RETURN_IF_ERROR(Capture(bucket));
  }
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream_));
  return AnchorClock();
}

absl::Status CudaExecutor::RunEmpty(const StepShape& shape) {
  SlotState& slot = slots_[0];
  slot.shape = shape;
  PackEmpty(shape, slot.step);
  FABRICAST_RETURN_IF_ERROR(UploadStep(slot));
  FABRICAST_RETURN_IF_ERROR(decoder_->Compute(shape, slot.input, slot.output, stream_));
  return ToStatus(cudaStreamSynchronize(stream_), "a step of no requests");
}

template <typename Work>
absl::StatusOr<cudaGraphExec_t> CudaExecutor::CaptureGraph(const Work& enqueue) {
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  const absl::Status captured = enqueue();
  cudaGraph_t graph = nullptr;
  const absl::Status ended =
      ToStatus(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
  if (!captured.ok()) {
    if (graph != nullptr) cudaGraphDestroy(graph);
    return captured;
  }
  FABRICAST_RETURN_IF_ERROR(ended);
  cudaGraphExec_t executable = nullptr;
  const absl::Status made =
      ToStatus(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  cudaGraphDestroy(graph);
  FABRICAST_RETURN_IF_ERROR(made);
  return executable;
}

absl::Status CudaExecutor::Capture(int bucket) {
  const StepShape shape = EmptyDecodeShape(bucket, samples_);
  const size_t layers = decoder_->layers();
  for (size_t first = 0; first == 0 || first < layers; first += kLayersOfGraph) {
    absl::StatusOr<cudaGraphExec_t> graph = CaptureGraph([&]() -> absl::Status {
      const size_t end = std::min(layers, first + kLayersOfGraph);
      for (size_t layer = first; layer < end; ++layer) {
        FABRICAST_RETURN_IF_ERROR(decoder_->ComputeLayer(shape, layer, stream_));
      }
      if (end < layers) return absl::OkStatus();
      FABRICAST_RETURN_IF_ERROR(decoder_->FindNotFiniteRow(shape, stream_));
      return samples_ ? decoder_->ComputeOutput(shape, nullptr, stream_) : absl::OkStatus();
    });
    if (!graph.ok()) return graph.status();
    graphs_[bucket].push_back(*graph);
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaGraphUpload(*graph, stream_));
  }
  return absl::OkStatus();
}

absl::Status CudaExecutor::Run(const Step& step, absl::Span<const std::byte> input,
                               absl::Span<std::byte> output, std::vector<SampledToken>& sampled) {
  const int64_t bytes = step.micro_batch.tokens() * activation_bytes_per_token();
  FABRICAST_CHECK(static_cast<int64_t>(input.size()) == (receives_ ? bytes : 0))
      << "input has " << input.size() << " bytes, " << step.tokens.size() << " tokens are "
      << bytes;
  FABRICAST_CHECK(static_cast<int64_t>(output.size()) == (gives_ ? bytes : 0))
      << "output has " << output.size() << " bytes, " << step.tokens.size() << " tokens are "
      << bytes;
  sampled.clear();
  FABRICAST_RETURN_IF_ERROR(CheckCapacity(step));
  const SlotState& slot = slots_[enqueued_ % kSlots];
  const auto copy_input = [&]() -> absl::Status {
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaSetDevice(device_.index));
    if (input.empty()) return absl::OkStatus();
    std::memcpy(input_, input.data(), input.size());
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaMemcpyAsync(slot.input, input_, input.size(), cudaMemcpyHostToDevice, stream_));
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(slot.arrived, stream_));
    return absl::OkStatus();
  };
  const auto copy_output = [&]() -> absl::Status {
    if (output.empty()) return absl::OkStatus();
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaMemcpyAsync(output_, slot.output, output.size(), cudaMemcpyDeviceToHost, stream_));
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream_));
    return absl::OkStatus();
  };
  FABRICAST_RETURN_IF_ERROR(ExplainCudaError(copy_input(), gpu_));
  FABRICAST_RETURN_IF_ERROR(Enqueue(step));
  FABRICAST_RETURN_IF_ERROR(ExplainCudaError(copy_output(), gpu_));
  Times times;
  FABRICAST_RETURN_IF_ERROR(Finish(step, sampled, times));
  if (!output.empty()) std::memcpy(output.data(), output_, output.size());
  return absl::OkStatus();
}

DeviceExecutor::Slot CudaExecutor::slot(int index) const {
  const SlotState& slot = slots_[index];
  const auto room = [this](void* pointer) -> absl::Span<std::byte> {
    if (pointer == nullptr) return {};
    return {static_cast<std::byte*>(pointer), static_cast<size_t>(BoundaryBytes())};
  };
  return {.input = room(slot.input),
          .output = room(slot.output),
          .arrived = slot.arrived,
          .computed = slot.computed};
}

absl::Status CudaExecutor::Enqueue(const Step& step) {
  const std::lock_guard<std::mutex> lock(mutex_);
  CheckSizes(step);
  FABRICAST_RETURN_IF_ERROR(CheckCapacity(step));
  FABRICAST_RETURN_IF_ERROR(requests_.Take(step));
  FABRICAST_RETURN_IF_ERROR(
      ExplainCudaError(ToStatus(cudaSetDevice(device_.index), "cudaSetDevice"), gpu_));
  int bucket = 0;
  if (IsDecodeStep(step, samples_) && !graphs_.empty()) {
    bucket =
        GraphBucket(static_cast<int>(step.micro_batch.entries.size()), graphs_.rbegin()->first);
  }
  SlotState& slot = slots_[enqueued_ % kSlots];
  slot.shape = ShapeOf(step, samples_, requests_, bucket);
  slot.decode = bucket > 0 && previous_was_decode_;
  previous_was_decode_ = bucket > 0;
  slot.sampled.reset();
  PackStep(step, samples_, requests_, slot.shape, slot.step);
  FABRICAST_RETURN_IF_ERROR(ExplainCudaError(Launch(slot, bucket), gpu_));
  ++enqueued_;
  if (!samples_ || !AnyLogprobs(step)) return absl::OkStatus();
  FABRICAST_RETURN_IF_ERROR(ExplainCudaError(
      ToStatus(cudaEventSynchronize(slot.finished), "cudaEventSynchronize"), gpu_));
  // A step that is not finite is Finish's to tell.
  if (FirstBadRow(slot) >= step.micro_batch.tokens()) slot.sampled = SampledOf(step, slot);
  return absl::OkStatus();
}

absl::Status CudaExecutor::Finish(const Step& step, std::vector<SampledToken>& sampled,
                                  Times& times) {
  sampled.clear();
  SlotState& slot = slots_[finished_ % kSlots];
  FABRICAST_RETURN_IF_ERROR(
      ExplainCudaError(ToStatus(cudaSetDevice(device_.index), "cudaSetDevice"), gpu_));
  FABRICAST_RETURN_IF_ERROR(ExplainCudaError(
      ToStatus(cudaEventSynchronize(slot.finished), "cudaEventSynchronize"), gpu_));
  times = TimesOf(slot, Clock::now());
  ++finished_;
  // Padding may hold anything, and comes last.
  if (FirstBadRow(slot) < step.micro_batch.tokens()) return LocateNotFinite(step, slot);
  if (!samples_) return absl::OkStatus();
  absl::StatusOr<std::vector<SampledToken>> result =
      slot.sampled.has_value() ? *std::move(slot.sampled) : SampledOf(step, slot);
  if (!result.ok()) return result.status();
  sampled = *std::move(result);
  return absl::OkStatus();
}

DeviceExecutor::Times CudaExecutor::TimesOf(const SlotState& slot, Clock::time_point seen) {
  const auto& events = times_[finished_ % times_.size()];
  const cudaEvent_t before =
      finished_ == 0 ? anchor_ : times_[(finished_ - 1) % times_.size()].computed;
  const GpuClock::Seconds since(SecondsBetween(before, events.computed));
  const GpuClock::Seconds busy(SecondsBetween(events.started, events.computed));
  clock_.Advance(since);
  clock_.Seen(seen);
  if (slot.decode && options_.figures != nullptr) {
    options_.figures->Update([&](GpuStageFigures::Values& values) {
      ++values.decode_steps;
      values.decode_seconds += since.count();
      values.idle_seconds += (since - busy).count();
    });
  }
  Times times = {.arrived = {}, .started = clock_.At(busy), .computed = clock_.At()};
  if (receives_) {
    times.arrived = clock_.At(GpuClock::Seconds(SecondsBetween(slot.arrived, events.computed)));
  }
  return times;
}

void CudaExecutor::CheckSizes(const Step& step) const {
  const int64_t tokens = step.micro_batch.tokens();
  FABRICAST_CHECK(static_cast<int64_t>(step.tokens.size()) == tokens)
      << step.tokens.size() << " token ids for " << tokens << " tokens";
  FABRICAST_CHECK(!samples_ || step.sampling.size() == step.micro_batch.entries.size())
      << step.sampling.size() << " for " << step.micro_batch.entries.size() << " entries";
}

absl::Status CudaExecutor::CheckCapacity(const Step& step) const {
  const int64_t tokens = step.micro_batch.tokens();
  const int64_t entries = static_cast<int64_t>(step.micro_batch.entries.size());
  if (tokens <= options_.max_batch_tokens && entries <= options_.max_running) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(absl::StrFormat(
      "micro-batch %d has %d tokens of %d requests, and this stage was made for %d and %d: give it "
      "the scheduler's max_batch_tokens and max_running",
      step.micro_batch.id, tokens, entries, options_.max_batch_tokens, options_.max_running));
}

absl::Status CudaExecutor::UploadStep(const SlotState& slot) {
  return ToStatus(cudaMemcpyAsync(decoder_->step_buffer(), slot.step.data(),
                                  StepLayout(slot.shape).bytes, cudaMemcpyHostToDevice, stream_),
                  "copy of the step");
}

absl::Status CudaExecutor::DownloadFound(const SlotState& slot) {
  return ToStatus(
      cudaMemcpyAsync(slot.found, decoder_->step_buffer(), StepLayout(slot.shape).found_bytes,
                      cudaMemcpyDeviceToHost, stream_),
      "copy of sampled tokens");
}

absl::Status CudaExecutor::Launch(SlotState& slot, int bucket) {
  const StepTimes& times = times_[enqueued_ % times_.size()];
  // The step itself is there before its activations are.
  if (!receives_) FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(times.started, stream_));
  FABRICAST_RETURN_IF_ERROR(UploadStep(slot));
  if (receives_) {
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamWaitEvent(stream_, slot.arrived));
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(times.started, stream_));
  }
  if (slot.shape.histories) {
    FABRICAST_RETURN_IF_ERROR(
        decoder_->RecordHistories(slot.shape, requests_.fresh_histories(), stream_));
  }
  if (bucket > 0) {
    FABRICAST_RETURN_IF_ERROR(decoder_->ComputeInput(slot.shape, slot.input, stream_));
    for (const cudaGraphExec_t part : graphs_.at(bucket)) {
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaGraphLaunch(part, stream_));
    }
    if (!samples_) {
      FABRICAST_RETURN_IF_ERROR(decoder_->ComputeOutput(slot.shape, slot.output, stream_));
    }
  } else {
    FABRICAST_RETURN_IF_ERROR(decoder_->Compute(slot.shape, slot.input, slot.output, stream_));
  }
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(slot.computed, stream_));
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(times.computed, stream_));
  FABRICAST_RETURN_IF_ERROR(DownloadFound(slot));
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(slot.finished, stream_));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SampledToken>> CudaExecutor::SampledOf(const Step& step,
                                                                  const SlotState& slot) {
  const GpuSampledToken* const found =
      reinterpret_cast<const GpuSampledToken*>(slot.found + StepLayout(slot.shape).sampled_tokens);
  std::vector<SampledToken> sampled;
  for (size_t i = 0; i < step.micro_batch.entries.size(); ++i) {
    const BatchEntry& entry = step.micro_batch.entries[i];
    if (!entry.samples) continue;
    const int64_t position = entry.first_token + entry.tokens;
    const int64_t row = static_cast<int64_t>(sampled.size());
    const GpuSampledToken& token = found[row];
    absl::StatusOr<SampledToken> result = SampledToken();
    result->token = token.token;
    if (step.sampling[i].logprobs >= 0) {
      const absl::Span<float> to(logits_row_, shape_.vocabulary);
      const float* const logits = decoder_->logits() + row * decoder_->logits_stride();
      const auto copy = [&]() -> absl::Status {
        FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpyAsync(to.data(), logits, to.size() * sizeof(float),
                                                       cudaMemcpyDeviceToHost, stream_));
        FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream_));
        return absl::OkStatus();
      };
      FABRICAST_RETURN_IF_ERROR(ExplainCudaError(copy(), gpu_));
      result = Sample(step.sampling[i], position, requests_.history(entry.request), to);
    } else if (token.valid == 0) {
      result =
          absl::InternalError(absl::StrCat("the logits at position ", position,
                                           " are not finite (the largest is ", token.largest, ")"));
    }
    if (!result.ok()) {
      return absl::Status(
          result.status().code(),
          absl::StrCat("request ", entry.request, ": ", result.status().message(),
                       "; what the last layer computed is: look at final norm and lm_head"));
    }
    sampled.push_back(*std::move(result));
  }
  return sampled;
}

absl::Status CudaExecutor::NotFinite(const Step& step, int32_t row,
                                     const std::string& after) const {
  int64_t first_row = 0;
  for (const BatchEntry& entry : step.micro_batch.entries) {
    if (row < first_row + entry.tokens) {
      return absl::InternalError(
          absl::StrCat("request ", entry.request, ": the hidden state at position ",
                       entry.first_token + row - first_row, " is not finite ", after));
    }
    first_row += entry.tokens;
  }
  FABRICAST_CHECK(false) << "row=" << row << " of " << first_row;
  return absl::OkStatus();
}

absl::Status CudaExecutor::LocateNotFinite(const Step& step, const SlotState& slot) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int32_t row_of_step = FirstBadRow(slot);
  if (member_.join != nullptr) {
    // The others would have to compute it again as well, in the midst of steps that came since.
    return NotFinite(step, row_of_step,
                     "after this stage's layers: are the weights? A stage on one GPU says which");
  }
  // Computing it again writes the same keys and values once more; no later step has been given its
  // slot.
  const auto find = [&](absl::Status launched) -> absl::StatusOr<bool> {
    FABRICAST_RETURN_IF_ERROR(std::move(launched));
    FABRICAST_RETURN_IF_ERROR(decoder_->FindNotFiniteRow(slot.shape, stream_));
    FABRICAST_RETURN_IF_ERROR(DownloadFound(slot));
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream_));
    return FirstBadRow(slot) < step.micro_batch.tokens();
  };
  absl::Status uploaded = UploadStep(slot);
  absl::StatusOr<bool> found =
      find(uploaded.ok() ? decoder_->ComputeInput(slot.shape, slot.input, stream_)
                         : std::move(uploaded));
  std::string after =
      shape_.embedding ? "after the embedding: are the weights?" : "as the stage before sent it";
  for (size_t i = 0; found.ok() && !*found && i < decoder_->layers(); ++i) {
    after = absl::StrCat("after layer ", i + 1, " of this stage's ", decoder_->layers(),
                         " (model.layers.", options_.first_layer + static_cast<int64_t>(i),
                         "): are the weights?");
    found = find(decoder_->ComputeLayer(slot.shape, i, stream_));
  }
  if (!found.ok()) return ExplainCudaError(found.status(), gpu_);
  if (*found) return NotFinite(step, FirstBadRow(slot), after);
  return NotFinite(step, row_of_step,
                   absl::StrCat("after the last layer, and is when it is computed again: ", gpu_,
                                " may be failing: nvidia-smi -q -d ECC, dmesg | grep Xid"));
}

template <typename Fill>
absl::StatusOr<std::unique_ptr<DeviceExecutor>> Make(const DecoderConfig& config,
                                                     const StageShape& shape,
                                                     const GpuStageOptions& options,
                                                     const TensorParallelMember& member,
                                                     const Fill& fill) {
  FABRICAST_RETURN_IF_ERROR(CheckOptions(options));
  absl::StatusOr<CudaDevice> device = OpenCudaDevice(options.devices[0]);
  if (!device.ok()) return device.status();
  absl::StatusOr<std::unique_ptr<CublasLt>> cublas = CublasLt::Load();
  if (!cublas.ok()) return cublas.status();
  auto executor = std::make_unique<CudaExecutor>(config, shape, options, member, *device);
  FABRICAST_RETURN_IF_ERROR(executor->Load(fill, *std::move(cublas)));
  return executor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeCudaExecutor(
    const DecoderConfig& config, StageWeights weights, const GpuStageOptions& options,
    const TensorParallelMember& member) {
  absl::StatusOr<StageShape> shape = ShapeOfStage(config, weights, member.rank);
  if (!shape.ok()) return shape.status();
  return Make(config, *shape, options, member, [&](DeviceMemory& memory) {
    return LoadCudaWeights(*shape, weights, options.threads, memory);
  });
}

absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeSyntheticCudaExecutor(
    const DecoderConfig& config, const StageShare& share, uint64_t seed,
    const GpuStageOptions& options, const TensorParallelMember& member) {
  absl::StatusOr<StageShape> shape = ShapeOfSyntheticStage(config, share, member.rank);
  if (!shape.ok()) return shape.status();
  return Make(config, *shape, options, member, [&](DeviceMemory& memory) {
    return MakeSyntheticCudaWeights(*shape, share.first_layer, seed, memory);
  });
}

}  // namespace fabricast
