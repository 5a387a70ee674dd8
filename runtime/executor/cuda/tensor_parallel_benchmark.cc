// What a second GPU gives a stage of the Llama 3.1 405B (AWQ, synthetic weights): time of a decode
// step on one GPU, of half the stage on one GPU without sums, which is the best that two can do,
// and on two; and times of sums between two GPUs, NCCL's and our own. Needs two GPUs.
//
//   tensor_parallel_benchmark [LAYERS [REQUESTS]]
//
// Of 1, 8, 16 and 64 requests at most so many. All have prompts to compute before; 42 layers, a
// third of the model, take 90 GB.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "runtime/check.h"
#include "runtime/executor/cpu/test_pipeline.h"
#include "runtime/executor/cuda/cuda_executor.h"
#include "runtime/executor/cuda/tensor_parallel_executor.h"
#include "runtime/executor/cuda/tensor_parallel_group.h"
#include "runtime/executor/device_executor.h"
#include "runtime/executor/gpu_stage.h"
#include "runtime/model/decoder_config.h"
#include "runtime/nccl/nccl.h"

namespace fabricast {
namespace {

constexpr char kModel[] = "llama-3.1-405b-instruct-awq-int4";
constexpr int64_t kContext = 1024;
constexpr int kSteps = 40;
constexpr int kWarmUp = 5;

template <typename T>
T Sure(absl::StatusOr<T> value) {
  FABRICAST_CHECK(value.ok()) << value.status().ToString();
  return *std::move(value);
}
void Sure(const absl::Status& status) { FABRICAST_CHECK(status.ok()) << status.ToString(); }
void Sure(cudaError_t error) { FABRICAST_CHECK(error == cudaSuccess) << cudaGetErrorString(error); }

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Sums of 16 in a graph, five of them at a time.
void MeasureSums(int64_t hidden) {
  constexpr int kSums = 16;
  constexpr int kGraphs = 5;
  const std::vector<int64_t> all_tokens = {1, 2, 4, 8, 16, 32, 64, 256, 1024};
  const std::shared_ptr<Nccl> nccl = Sure(Nccl::Load());
  std::vector<std::vector<double>> us(2);
  for (const bool own : {false, true}) {
    const int64_t peer_sum_count = own ? all_tokens.back() * hidden : 0;
    TensorParallelGroup group(nccl, Sure(nccl->NewId()), {0, 1}, peer_sum_count);
    std::barrier meeting(2);
    const auto measure = [&](int rank) {
      Sure(cudaSetDevice(rank));
      NcclCommunicator* const communicator = Sure(group.Join(rank));
      cudaStream_t stream = nullptr;
      cudaEvent_t start = nullptr;
      cudaEvent_t end = nullptr;
      void* data = nullptr;
      Sure(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      Sure(cudaEventCreate(&start));
      Sure(cudaEventCreate(&end));
      Sure(cudaMalloc(&data, all_tokens.back() * hidden * sizeof(float)));
      Sure(cudaMemset(data, 0, all_tokens.back() * hidden * sizeof(float)));
      Sure(cudaDeviceSynchronize());
      for (const int64_t tokens : all_tokens) {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t sums = nullptr;
        Sure(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        for (int i = 0; i < kSums; ++i) {
          Sure(communicator->SumF32(static_cast<float*>(data), tokens * hidden, stream));
        }
        Sure(cudaStreamEndCapture(stream, &graph));
        Sure(cudaGraphInstantiate(&sums, graph, 0));
        std::vector<double> times;
        for (int repeat = 0; repeat < 9; ++repeat) {
          Sure(cudaGraphLaunch(sums, stream));
          Sure(cudaStreamSynchronize(stream));
          meeting.arrive_and_wait();
          Sure(cudaEventRecord(start, stream));
          for (int i = 0; i < kGraphs; ++i) Sure(cudaGraphLaunch(sums, stream));
          Sure(cudaEventRecord(end, stream));
          Sure(cudaStreamSynchronize(stream));
          float ms = 0;
          Sure(cudaEventElapsedTime(&ms, start, end));
          times.push_back(1e3 * ms / (kSums * kGraphs));
        }
        Sure(cudaGraphExecDestroy(sums));
        Sure(cudaGraphDestroy(graph));
        if (rank == 0) us[own ? 1 : 0].push_back(Median(times));
      }
      meeting.arrive_and_wait();
      Sure(cudaFree(data));
      Sure(cudaEventDestroy(start));
      Sure(cudaEventDestroy(end));
      Sure(cudaStreamDestroy(stream));
    };
    std::thread other(measure, 1);
    measure(0);
    other.join();
  }
  std::printf("\nSums of [tokens, %d] FP32 between two GPUs, in a graph (%s)\n\n",
              static_cast<int>(hidden), nccl->name().c_str());
  std::printf("| tokens | KiB | NCCL us | own us |\n| ---: | ---: | ---: | ---: |\n");
  for (size_t i = 0; i < all_tokens.size(); ++i) {
    std::printf("| %d | %d | %.1f | %.1f |\n", static_cast<int>(all_tokens[i]),
                static_cast<int>(all_tokens[i] * hidden * 4 / 1024), us[0][i], us[1][i]);
  }
}

// Of requests 0, 1, ...: their next `tokens` tokens each.
Step NextStep(int first_request, int requests, int64_t tokens, std::vector<int64_t>& lengths) {
  std::vector<TestEntry> entries;
  for (int r = first_request; r < first_request + requests; ++r) {
    TestEntry entry = {.request = r, .first_token = lengths[r], .tokens = {}, .samples = false};
    for (int64_t i = 0; i < tokens; ++i) {
      entry.tokens.push_back(static_cast<int32_t>((lengths[r] + i) * 131 % 100'000 + r));
    }
    lengths[r] += tokens;
    entries.push_back(std::move(entry));
  }
  return MakeStep(entries);
}

// Of decode steps, two of which are always enqueued: from one's end to the next one's, in ms.
std::vector<double> MeasureSteps(DeviceExecutor& stage, const std::vector<int>& all_requests) {
  constexpr int kAhead = 2;
  std::vector<int64_t> lengths(all_requests.back());
  int filled = 0;
  std::vector<SampledToken> sampled;
  DeviceExecutor::Times times;
  std::vector<double> medians;
  for (const int requests : all_requests) {
    for (; filled < requests; ++filled) {
      const Step prompt = NextStep(filled, 1, kContext, lengths);
      Sure(stage.Enqueue(prompt));
      Sure(stage.Finish(prompt, sampled, times));
    }
    std::vector<Step> steps;
    std::vector<double> ms;
    DeviceExecutor::Times before;
    for (int i = 0; i < kSteps + kAhead; ++i) {
      if (i >= kAhead) {
        Sure(stage.Finish(steps[i - kAhead], sampled, times));
        const std::chrono::duration<double, std::milli> step = times.computed - before.computed;
        if (i >= kAhead + kWarmUp) ms.push_back(step.count());
        before = times;
      }
      if (i >= kSteps) continue;
      steps.push_back(NextStep(0, requests, 1, lengths));
      Sure(stage.Enqueue(steps.back()));
    }
    medians.push_back(Median(ms));
  }
  return medians;
}

void Benchmark(int layers, int most_requests) {
  const DecoderConfig config = Sure(LoadDecoderConfig(kModel));
  const StageShare share = {.first_layer = 0, .num_layers = layers, .embedding = true};
  std::vector<int> requests = {1, 8, 16, 64};
  while (requests.size() > 1 && requests.back() > most_requests) requests.pop_back();
  GpuStageOptions options;
  options.name = "stage";
  options.kv_blocks = requests.back() * (kContext / options.kv_block_tokens + 16);
  options.max_batch_tokens = kContext;
  options.max_running = requests.back();
  const auto measure = [&](std::unique_ptr<DeviceExecutor> stage) {
    return MeasureSteps(*stage, requests);
  };
  const std::vector<double> one =
      measure(Sure(MakeSyntheticCudaExecutor(config, share, 1, options)));
  const TensorParallelMember alone = {.rank = {.rank = 0, .ranks = 2}};
  const std::vector<double> half =
      measure(Sure(MakeSyntheticCudaExecutor(config, share, 1, options, alone)));
  options.devices = {0, 1};
  const std::vector<double> two =
      measure(Sure(MakeSyntheticTensorParallelExecutor(config, share, 1, options)));
  std::printf("\n%s: a decode step of %d layers and the embedding, %d tokens of context\n\n",
              kModel, layers, static_cast<int>(kContext));
  std::printf("| requests | one GPU ms | half of it ms | two GPUs ms | faster | without sums |\n");
  std::printf("| ---: | ---: | ---: | ---: | ---: | ---: |\n");
  for (size_t i = 0; i < requests.size(); ++i) {
    std::printf("| %d | %.2f | %.2f | %.2f | %.2f x | %.2f x |\n", requests[i], one[i], half[i],
                two[i], one[i] / two[i], one[i] / half[i]);
  }
  MeasureSums(config.hidden);
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  int layers = 42;
  int requests = 16;
  int gpus = 0;
  if (argc > 3 || (argc > 1 && (!absl::SimpleAtoi(argv[1], &layers) || layers < 1)) ||
      (argc > 2 && (!absl::SimpleAtoi(argv[2], &requests) || requests < 1))) {
    std::fprintf(stderr, "usage: tensor_parallel_benchmark [LAYERS [REQUESTS]]\n");
    return 2;
  }
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 2) {
    std::fprintf(stderr, "tensor_parallel_benchmark needs two GPUs, and here are %d\n", gpus);
    return 1;
  }
  fabricast::Benchmark(layers, requests);
}
