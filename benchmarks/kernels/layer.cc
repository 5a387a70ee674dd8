#include "benchmarks/kernels/layer.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "benchmarks/kernels/random_array.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/kv_cache.h"
#include "kernels/dense/int4_many_tokens.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/int4/activations.h"
#include "kernels/int4/gemm_output.h"
#include "kernels/int4/int4_gemm.h"
#include "kernels/int4/int4_matrix.h"
#include "kernels/timing/device_array.h"

namespace fabricast {
namespace {

// Ten times an H200's L2 cache, four times an RTX PRO 6000's.
constexpr int64_t kRotatedBytes = 500'000'000;
constexpr int kLeastCopies = 3;
// Of the caches of all layers together: those of larger steps are shared by the layers, each of
// them being far beyond the L2 cache by itself.
constexpr int64_t kRotatedCacheBytes = int64_t{4} << 30;
// Llama 3.1's rope_theta and rms_norm_eps.
constexpr double kRopeTheta = 500'000;
constexpr float kEpsilon = 1e-5f;

template <typename T>
absl::Status Assign(absl::StatusOr<DeviceArray<T>> from, DeviceArray<T>& to) {
  if (!from.ok()) return from.status();
  to = *std::move(from);
  return absl::OkStatus();
}

// Packed weights with their memory.
struct Weights {
  DeviceArray<char> blocks;
  DeviceArray<float> row_scale;
  Int4Matrix matrix;

  absl::Status Fill(int64_t outputs, int64_t inputs, uint64_t seed, GpuStream stream) {
    matrix.outputs = outputs;
    matrix.inputs = inputs;
    absl::Status status =
        Assign(DeviceArray<char>::Allocate(matrix.block_bytes(), "INT4 weights"), blocks);
    status.Update(
        Assign(DeviceArray<float>::Allocate(matrix.row_scale_bytes() / 4, "the weights' scales"),
               row_scale));
    if (!status.ok()) return status;
    matrix.blocks = blocks.get();
    matrix.row_scale = row_scale.get();
    return FillSyntheticInt4(seed, matrix, {.stream = stream});
  }
};

struct Layer {
  Weights qkv, o, gate_up, down;
};

// A product's input with its memory.
struct Input {
  DeviceArray<char> data;
  DeviceArray<float> token_scale;
  Activations activations;

  absl::Status Allocate(ActivationFormat format, int tokens, int64_t inputs) {
    activations.layout = {.format = format, .tokens = tokens, .inputs = inputs};
    absl::Status status =
        Assign(DeviceArray<char>::Allocate(activations.layout.bytes(), "a product's input"), data);
    status.Update(Assign(DeviceArray<float>::Allocate(tokens), token_scale));
    if (!status.ok()) return status;
    activations.data = data.get();
    activations.token_scale = token_scale.get();
    return data.FillBytes(0);
  }
};

class GpuLayer : public LayerBenchmark {
 public:
  GpuLayer(const LayerShape& shape, CublasLt* cublas, GpuStream stream)
      : shape_(shape), cublas_(cublas), stream_(stream) {}

  absl::Status Initialize() {
    int device = 0, major = 0, minor = 0;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDevice(&device));
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    compute_capability_ = 10 * major + minor;

    const Int4Matrix whole = {
        .outputs = shape_.qkv_outputs() + shape_.attention_outputs() + int64_t{3} * shape_.ffn,
        .inputs = shape_.hidden};
    layers_.resize(static_cast<size_t>(
        std::max<int64_t>(kLeastCopies, (kRotatedBytes + whole.bytes() - 1) / whole.bytes())));
    uint64_t seed = 1;
    for (Layer& layer : layers_) {
      absl::Status status = layer.qkv.Fill(shape_.qkv_outputs(), shape_.hidden, seed++, stream_);
      status.Update(layer.o.Fill(shape_.hidden, shape_.attention_outputs(), seed++, stream_));
      status.Update(layer.gate_up.Fill(int64_t{2} * shape_.ffn, shape_.hidden, seed++, stream_));
      status.Update(layer.down.Fill(shape_.hidden, shape_.ffn, seed++, stream_));
      if (!status.ok()) return status;
    }

    std::vector<float> frequencies(static_cast<size_t>(shape_.head_dim / 2));
    for (size_t i = 0; i < frequencies.size(); ++i) {
      frequencies[i] =
          static_cast<float>(std::pow(kRopeTheta, -2.0 * static_cast<double>(i) / shape_.head_dim));
    }
    absl::Status status = Assign(DeviceArray<float>::CopyOf(frequencies), frequencies_);
    status.Update(Assign(
        DeviceArray<float>::CopyOf(std::vector<float>(static_cast<size_t>(shape_.hidden), 1.f)),
        gain_));
    status.Update(Assign(DeviceArray<int32_t>::Allocate(1), first_bad_row_));
    status.Update(Zeros(Int4GemmMmaWorkspaceBytes(), mma_workspace_));
    status.Update(Zeros(Int4GemmWgmmaWorkspaceBytes(), wgmma_workspace_));
    if (cublas_ != nullptr) status.Update(Zeros(cublas_->workspace_bytes(), cublas_workspace_));
    status.Update(ToStatus(cudaDeviceSynchronize(), "filling the weights"));
    return status;
  }

  absl::Status SetStep(const LayerStep& step, int64_t cache_limit) override {
    step_ = step;
    Free();
    const int tokens = step.tokens();
    absl::Status status = Assign(
        DeviceArray<float>::Allocate(int64_t{tokens} * shape_.hidden, "the residual stream"), h_);
    status.Update(Assign(
        DeviceArray<uint16_t>::Allocate(tokens * shape_.qkv_outputs(), "queries, keys, values"),
        qkv_));
    status.Update(Assign(
        DeviceArray<uint16_t>::Allocate(tokens * shape_.attention_outputs(), "attention's output"),
        attended_));
    status.Update(
        Assign(DeviceArray<uint16_t>::Allocate(int64_t{2} * tokens * shape_.ffn, "gate and up"),
               gate_up_));
    status.Update(qkv_input_.Allocate(FormatOf(LayerKernel::kQkv), tokens, shape_.hidden));
    status.Update(o_input_.Allocate(FormatOf(LayerKernel::kO), tokens, shape_.attention_outputs()));
    status.Update(gate_up_input_.Allocate(FormatOf(LayerKernel::kGateUp), tokens, shape_.hidden));
    status.Update(down_input_.Allocate(FormatOf(LayerKernel::kDown), tokens, shape_.ffn));
    if (o_input_.activations.layout.format == ActivationFormat::kBf16Rows) {
      o_input_.activations.data = attended_.get();
    }
    int64_t scratch_bytes = 0;
    for (const LayerKernel product :
         {LayerKernel::kQkv, LayerKernel::kO, LayerKernel::kGateUp, LayerKernel::kDown}) {
      if (KindOf(product) != Int4Kind::kManyTokens) continue;
      if (cublas_ == nullptr) return absl::UnavailableError("this many tokens need cuBLASLt");
      scratch_bytes =
          std::max(scratch_bytes, Int4ManyTokensScratchBytes(MatrixOf(layers_[0], product).inputs));
    }
    status.Update(Assign(DeviceArray<char>::Allocate(scratch_bytes, "dequantised rows"), scratch_));
    if (!status.ok()) return status;
    if (status = SetCaches(cache_limit); !status.ok()) return status;
    return Reset();
  }

  absl::Status Enqueue(int64_t index, LayerKernels kernels, const LaunchOptions& options) override {
    const Layer& layer = layers_[static_cast<size_t>(index) % layers_.size()];
    for (int i = 0; i < kLayerKernels; ++i) {
      const LayerKernel kernel = static_cast<LayerKernel>(i);
      if ((kernels & Only(kernel)) == 0) continue;
      const absl::Status status = IsProduct(kernel) ? EnqueueProduct(kernel, layer, options)
                                                    : EnqueueOther(kernel, index, options);
      if (!status.ok()) {
        return absl::Status(status.code(),
                            absl::StrFormat("%s: %s", NameOf(kernel), status.message()));
      }
    }
    return absl::OkStatus();
  }

  LayerWork WorkOf(LayerKernel kernel) const override {
    const double tokens = step_.tokens();
    if (IsProduct(kernel)) {
      const Int4Matrix& matrix = MatrixOf(layers_[0], kernel);
      const char* name = nullptr;
      switch (KindOf(kernel)) {
        case Int4Kind::kMma:
          name = "int4_gemm_mma";
          break;
        case Int4Kind::kWgmma:
          name = "int4_gemm_wgmma";
          break;
        case Int4Kind::kManyTokens:
          name = "int4_many_tokens";
          break;
      }
      return {.kernel = name,
              .outputs = matrix.outputs,
              .inputs = matrix.inputs,
              .bytes = static_cast<double>(matrix.bytes()),
              .operations = 2 * tokens * static_cast<double>(matrix.outputs * matrix.inputs)};
    }
    const double hidden = tokens * shape_.hidden, ffn = tokens * shape_.ffn;
    switch (kernel) {
      case LayerKernel::kAttentionNorm:
      case LayerKernel::kFfnNorm:
        return {.kernel = "rms_norm", .bytes = 6 * hidden};
      case LayerKernel::kRope:
        // Queries come and go; keys and values go to the cache.
        return {.kernel = "rope_and_append",
                .bytes = tokens * 4 * static_cast<double>(shape_.qkv_outputs())};
      case LayerKernel::kAttention: {
        // Of row r of a request: past + r + 1 positions.
        const double rows = step_.rows;
        const double scores =
            step_.requests * (rows * static_cast<double>(step_.past) + rows * (rows + 1) / 2);
        return {.kernel = step_.rows == 1 ? "decode_attention" : "prefill_attention",
                .bytes = static_cast<double>(step_.requests * step_.context() * shape_.kv_bytes()),
                .operations = 4 * scores * static_cast<double>(shape_.attention_outputs())};
      }
      case LayerKernel::kPack:
        return {.kernel = "pack_rows",
                .bytes = tokens * 4 * static_cast<double>(shape_.attention_outputs()),
                .runs = o_input_.activations.layout.packed()};
      default:
        return {.kernel = "swiglu", .bytes = 6 * ffn};
    }
  }

  int copies() const override { return static_cast<int>(layers_.size()); }

  absl::Status CheckFinite() override {
    absl::Status status = Reset();
    for (int layer = 0; layer < copies() && status.ok(); ++layer) {
      status.Update(Enqueue(layer, kAllLayerKernels, {.stream = stream_}));
    }
    int32_t first = INT_MAX;
    if (status.ok()) status.Update(first_bad_row_.CopyFrom({&first, 1}));
    if (status.ok()) {
      status.Update(FindNotFinite(h_.get(), step_.tokens(), shape_.hidden, first_bad_row_.get(),
                                  {.stream = stream_}));
    }
    if (!status.ok()) return status;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream_));
    const absl::StatusOr<std::vector<int32_t>> found = first_bad_row_.ToHost();
    if (!found.ok()) return found.status();
    if (found->front() == INT_MAX) return absl::OkStatus();
    return absl::DataLossError(absl::StrFormat("row %d of %d is not finite after %d layers",
                                               found->front(), step_.tokens(), copies()));
  }

 private:
  static absl::Status Zeros(int64_t bytes, DeviceArray<char>& to) {
    absl::Status status = Assign(DeviceArray<char>::Allocate(bytes, "a workspace"), to);
    if (status.ok()) status.Update(to.FillBytes(0));
    return status;
  }

  // Before the next step's are allocated.
  void Free() {
    h_ = {};
    for (DeviceArray<uint16_t>* const array : {&qkv_, &attended_, &gate_up_, &cache_}) *array = {};
    for (Input* const input : {&qkv_input_, &o_input_, &gate_up_input_, &down_input_}) *input = {};
    for (DeviceArray<char>* const array : {&scratch_, &attention_workspace_}) *array = {};
  }

  static const Int4Matrix& MatrixOf(const Layer& layer, LayerKernel product) {
    switch (product) {
      case LayerKernel::kQkv:
        return layer.qkv.matrix;
      case LayerKernel::kO:
        return layer.o.matrix;
      case LayerKernel::kGateUp:
        return layer.gate_up.matrix;
      default:
        return layer.down.matrix;
    }
  }

  Int4Kind KindOf(LayerKernel product) const {
    const Int4Matrix& matrix = MatrixOf(layers_[0], product);
    return ChooseInt4(step_.tokens(), matrix.outputs, matrix.inputs, compute_capability_);
  }
  ActivationFormat FormatOf(LayerKernel product) const { return FormatFor(KindOf(product)); }

  // The residual stream as it comes in.
  absl::Status Reset() { return FillNormal(h_); }

  // Block tables in random order, and random keys and values.
  absl::Status SetCaches(int64_t cache_limit) {
    const int64_t blocks_each = (step_.context() + kKvBlockTokens - 1) / kKvBlockTokens;
    const int64_t blocks = blocks_each * step_.requests;
    view_ = {.blocks = blocks, .kv_heads = shape_.kv_heads, .head_dim = shape_.head_dim};
    caches_ = std::clamp<int64_t>(kRotatedCacheBytes / view_.bytes(), 1, copies());
    if (view_.bytes() * caches_ > cache_limit) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("%d requests of %d tokens: a cache of %.1f GB, more than %.1f GB",
                          step_.requests, step_.context(), static_cast<double>(view_.bytes()) / 1e9,
                          static_cast<double>(cache_limit) / 1e9));
    }
    absl::Status status = Assign(
        DeviceArray<uint16_t>::Allocate(caches_ * view_.bytes() / 2, "the KV cache"), cache_);
    if (!status.ok()) return status;
    if (status = FillNormal(cache_); !status.ok()) return status;

    std::vector<int32_t> table(static_cast<size_t>(blocks));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(5));
    std::vector<int32_t> first_row, rows, first_position, table_start, positions, slots;
    for (int request = 0; request < step_.requests; ++request) {
      first_row.push_back(request * step_.rows);
      rows.push_back(step_.rows);
      first_position.push_back(static_cast<int32_t>(step_.past));
      table_start.push_back(static_cast<int32_t>(request * blocks_each));
      for (int64_t position = step_.past; position < step_.context(); ++position) {
        const int32_t block =
            table[static_cast<size_t>(request * blocks_each + position / kKvBlockTokens)];
        positions.push_back(static_cast<int32_t>(position));
        slots.push_back(static_cast<int32_t>(block * kKvBlockTokens + position % kKvBlockTokens));
      }
    }
    status.Update(Assign(DeviceArray<int32_t>::CopyOf(table), block_table_));
    status.Update(Assign(DeviceArray<int32_t>::CopyOf(first_row), first_row_));
    status.Update(Assign(DeviceArray<int32_t>::CopyOf(rows), rows_));
    status.Update(Assign(DeviceArray<int32_t>::CopyOf(first_position), first_position_));
    status.Update(Assign(DeviceArray<int32_t>::CopyOf(table_start), table_start_));
    status.Update(Assign(DeviceArray<int32_t>::CopyOf(positions), positions_));
    status.Update(Assign(DeviceArray<int32_t>::CopyOf(slots), slots_));
    const int64_t workspace =
        DecodeAttentionWorkspaceBytes(step_.requests, shape_.heads, shape_.head_dim);
    if (status.ok()) status.Update(Zeros(workspace, attention_workspace_));
    return status;
  }

  absl::Status EnqueueProduct(LayerKernel kernel, const Layer& layer,
                              const LaunchOptions& options) {
    const Int4Matrix& matrix = MatrixOf(layer, kernel);
    const Activations* input = nullptr;
    GemmOutput output;
    switch (kernel) {
      case LayerKernel::kQkv:
        input = &qkv_input_.activations;
        output = {OutputKind::kBf16, qkv_.get(), matrix.outputs};
        break;
      case LayerKernel::kO:
        input = &o_input_.activations;
        output = {OutputKind::kAddF32, h_.get(), matrix.outputs};
        break;
      case LayerKernel::kGateUp:
        input = &gate_up_input_.activations;
        output = {OutputKind::kBf16, gate_up_.get(), matrix.outputs};
        break;
      default:
        input = &down_input_.activations;
        output = {OutputKind::kAddF32, h_.get(), matrix.outputs};
        break;
    }
    switch (KindOf(kernel)) {
      case Int4Kind::kMma:
        return Int4GemmMma(matrix, *input, output, mma_workspace_.get(), options);
      case Int4Kind::kWgmma:
        return Int4GemmWgmma(matrix, *input, output, wgmma_workspace_.get(), options);
      case Int4Kind::kManyTokens:
        break;
    }
    return Int4ManyTokens(*cublas_, matrix, *input, output, scratch_.get(), scratch_.size(),
                          cublas_workspace_.get(), options);
  }

  absl::Status EnqueueOther(LayerKernel kernel, int64_t index, const LaunchOptions& options) {
    KvCacheView cache = view_;
    cache.data = cache_.get() + index % caches_ * (view_.bytes() / 2);
    switch (kernel) {
      case LayerKernel::kAttentionNorm:
        return RmsNorm(h_.get(), nullptr, gain_.get(), kEpsilon, qkv_input_.activations, options);
      case LayerKernel::kFfnNorm:
        return RmsNorm(h_.get(), nullptr, gain_.get(), kEpsilon, gate_up_input_.activations,
                       options);
      case LayerKernel::kRope:
        return RopeAndAppend({.qkv = qkv_.get(),
                              .stride = shape_.qkv_outputs(),
                              .rows = step_.tokens(),
                              .heads = shape_.heads,
                              .positions = positions_.get(),
                              .cache_slots = slots_.get(),
                              .frequencies = frequencies_.get(),
                              .cache = cache},
                             options);
      case LayerKernel::kAttention: {
        const AttentionArguments arguments = {
            .batch = {.entries = step_.requests,
                      .first_row = first_row_.get(),
                      .rows = rows_.get(),
                      .first_position = first_position_.get(),
                      .block_table = block_table_.get(),
                      .table_start = table_start_.get()},
            .cache = cache,
            .queries = qkv_.get(),
            .query_stride = shape_.qkv_outputs(),
            .output = attended_.get(),
            .heads = shape_.heads,
            .scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim)),
            .workspace = attention_workspace_.get()};
        if (step_.rows == 1) return DecodeAttention(arguments, options);
        return PrefillAttention(arguments, step_.rows, step_.tokens(), options);
      }
      case LayerKernel::kPack:
        if (!o_input_.activations.layout.packed()) return absl::OkStatus();
        return PackRows(attended_.get(), shape_.attention_outputs(), o_input_.activations, options);
      default:
        return SwiGlu(gate_up_.get(), int64_t{2} * shape_.ffn, down_input_.activations, options);
    }
  }

  const LayerShape shape_;
  CublasLt* const cublas_;
  const GpuStream stream_;
  int compute_capability_ = 0;
  std::vector<Layer> layers_;
  DeviceArray<float> frequencies_, gain_;
  DeviceArray<int32_t> first_bad_row_;
  DeviceArray<char> mma_workspace_, wgmma_workspace_, cublas_workspace_;

  // Of the step.
  LayerStep step_;
  DeviceArray<float> h_;
  DeviceArray<uint16_t> qkv_, attended_, gate_up_;
  Input qkv_input_, o_input_, gate_up_input_, down_input_;
  DeviceArray<char> scratch_, attention_workspace_;
  KvCacheView view_;  // of a layer's cache, without its place
  int64_t caches_ = 0;
  DeviceArray<uint16_t> cache_;
  DeviceArray<int32_t> block_table_, table_start_, first_row_, rows_, first_position_;
  DeviceArray<int32_t> positions_, slots_;
};

}  // namespace

std::vector<LayerShape> Llama31Layers() {
  return {
      {.model = "llama-3.1-405b",
       .hidden = 16384,
       .ffn = 53248,
       .heads = 128,
       .kv_heads = 8,
       .head_dim = 128},
      {.model = "llama-3.1-70b",
       .hidden = 8192,
       .ffn = 28672,
       .heads = 64,
       .kv_heads = 8,
       .head_dim = 128},
      {.model = "llama-3.1-8b",
       .hidden = 4096,
       .ffn = 14336,
       .heads = 32,
       .kv_heads = 8,
       .head_dim = 128},
  };
}

const char* NameOf(LayerKernel kernel) {
  switch (kernel) {
    case LayerKernel::kAttentionNorm:
      return "attention_norm";
    case LayerKernel::kQkv:
      return "qkv";
    case LayerKernel::kRope:
      return "rope";
    case LayerKernel::kAttention:
      return "attention";
    case LayerKernel::kPack:
      return "pack";
    case LayerKernel::kO:
      return "o";
    case LayerKernel::kFfnNorm:
      return "ffn_norm";
    case LayerKernel::kGateUp:
      return "gate_up";
    case LayerKernel::kSwiGlu:
      return "swiglu";
    case LayerKernel::kDown:
      return "down";
  }
  return "";
}

bool IsProduct(LayerKernel kernel) {
  return kernel == LayerKernel::kQkv || kernel == LayerKernel::kO ||
         kernel == LayerKernel::kGateUp || kernel == LayerKernel::kDown;
}

absl::StatusOr<std::unique_ptr<LayerBenchmark>> LayerBenchmark::Create(const LayerShape& shape,
                                                                       CublasLt* cublas,
                                                                       GpuStream stream) {
  auto layer = std::make_unique<GpuLayer>(shape, cublas, stream);
  if (absl::Status status = layer->Initialize(); !status.ok()) return status;
  return layer;
}

}  // namespace fabricast
