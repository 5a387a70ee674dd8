#include "runtime/executor/cuda/cuda_decoder.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/dense/int4_many_tokens.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/int4/int4_choice.h"
#include "kernels/int4/int4_gemm.h"
#include "kernels/sampling/sampling.h"
#include "runtime/check.h"
#include "runtime/executor/cpu/elementwise.h"
#include "runtime/executor/cuda/stage_kernels.h"

namespace fabricast {
namespace {

constexpr int64_t kBf16Bytes = 2;
constexpr int64_t kF32Bytes = 4;

#define FABRICAST_RETURN_IF_ERROR(expression) \
  if (absl::Status status = (expression); !status.ok()) return status

// Of rows of logits: what a matrix product's output is in multiples of.
int64_t StrideFor(int64_t outputs) {
  constexpr int64_t kMultiple = 4;
  return (outputs + kMultiple - 1) / kMultiple * kMultiple;
}

std::vector<const CudaMatrix*> MatricesOf(const CudaLayer& layer) {
  return {&layer.qkv, &layer.o, &layer.gate_up, &layer.down};
}

// A matrix without memory, to know what its products need.
CudaMatrix Unallocated(const MatrixShape& shape) {
  CudaMatrix matrix;
  matrix.format = shape.format;
  matrix.int4.outputs = matrix.dense.outputs = shape.outputs();
  matrix.int4.inputs = matrix.dense.inputs = shape.inputs;
  matrix.dense.type = shape.format == MatrixFormat::kF16 ? DenseType::kF16 : DenseType::kBf16;
  return matrix;
}

CudaWeights Unallocated(const StageShape& shape) {
  CudaWeights weights;
  for (const LayerShape& layer : shape.layers) {
    CudaLayer& to = weights.layers.emplace_back();
    to.qkv = Unallocated(layer.qkv);
    to.o = Unallocated(layer.o);
    to.gate_up = Unallocated(layer.gate_up);
    to.down = Unallocated(layer.down);
  }
  if (shape.lm_head) weights.lm_head = Unallocated(*shape.lm_head);
  return weights;
}

}  // namespace

CudaDecoder::CudaDecoder(const DecoderConfig& config, const StageShape& shape,
                         const CudaWeights& weights, const CudaDecoderOptions& options,
                         const CudaDevice& device, CublasLt& cublas)
    : config_(config),
      shape_(shape),
      weights_(weights),
      options_(options),
      compute_capability_(device.compute_capability),
      cublas_(cublas) {}

std::vector<CudaDecoder::Buffer> CudaDecoder::Buffers() {
  const int64_t tokens = options_.max_tokens;
  const int64_t entries = options_.max_entries;
  const int64_t attended = shape_.heads * shape_.head_dim;
  int64_t activations = 0;
  int64_t products = 0;
  int64_t f32_products = 0;
  dequantized_bytes_ = 0;
  bool mma = false;
  bool wgmma = false;
  // Layers are alike: the first of each kind says it all, and most stages have one kind.
  const auto input = [&](const CudaMatrix& matrix, int64_t most_tokens) {
    for (int t = 1; t <= most_tokens; ++t) {
      const ActivationLayout layout = LayoutFor(matrix, t);
      activations = std::max(activations, layout.bytes());
      if (matrix.format != MatrixFormat::kInt4) continue;
      mma = mma || layout.format == ActivationFormat::kMma;
      wgmma = wgmma || layout.format == ActivationFormat::kWgmma;
      if (!layout.packed()) {
        dequantized_bytes_ =
            std::max(dequantized_bytes_, Int4ManyTokensScratchBytes(matrix.int4.inputs));
      }
    }
  };
  const CudaLayer* previous = nullptr;
  for (const CudaLayer& layer : weights_.layers) {
    const auto same = [&] {
      for (size_t i = 0; i < MatricesOf(layer).size(); ++i) {
        if (MatricesOf(layer)[i]->format != MatricesOf(*previous)[i]->format) return false;
      }
      return true;
    };
    if (previous != nullptr && same()) continue;
    previous = &layer;
    for (const CudaMatrix* matrix : MatricesOf(layer)) input(*matrix, tokens);
    for (const CudaMatrix* matrix : {&layer.qkv, &layer.gate_up}) {
      products = std::max(products, tokens * matrix->outputs() * kBf16Bytes);
      if (matrix->format == MatrixFormat::kF16) {
        f32_products = std::max(f32_products, tokens * matrix->outputs() * kF32Bytes);
      }
    }
  }
  const bool last = shape_.lm_head.has_value();
  if (last) input(weights_.lm_head, entries);
  const int vocabulary = static_cast<int>(shape_.vocabulary);
  const auto at = [](auto*& pointer) { return reinterpret_cast<void**>(&pointer); };
  std::vector<Buffer> buffers = {
      {"step buffer", StepBufferBytes(tokens, entries, options_.max_table), at(step_buffer_)},
      {"residual stream", tokens * shape_.hidden * kF32Bytes, at(hidden_)},
      {"inputs of matrix products", activations, &activations_},
      {"scales of tokens", tokens * kF32Bytes, at(token_scale_)},
      {"outputs of matrix products", products, &products_},
      {"outputs of matrix products, FP32", f32_products, at(f32_products_)},
      {"output of attention", tokens * attended * kBf16Bytes, &attended_},
      {"frequencies of RoPE", shape_.head_dim / 2 * kF32Bytes, at(frequencies_)},
      {"workspace of attention",
       DecodeAttentionWorkspaceBytes(static_cast<int>(entries), static_cast<int>(shape_.heads),
                                     static_cast<int>(shape_.head_dim)),
       &attention_workspace_},
      {"workspace of INT4 products", mma ? Int4GemmMmaWorkspaceBytes() : 0, &mma_workspace_},
      {"workspace of INT4 products by wgmma", wgmma ? Int4GemmWgmmaWorkspaceBytes() : 0,
       &wgmma_workspace_},
      {"dequantised weights", dequantized_bytes_, &dequantized_},
      {"workspace of cuBLASLt", cublas_.workspace_bytes(), &cublas_workspace_},
  };
  if (last) {
    buffers.push_back({"logits", entries * logits_stride() * kF32Bytes, at(logits_)});
    if (shape_.vocabulary_divided()) {
      buffers.push_back(
          {"parts of logits",
           shape_.rank.ranks * entries * StrideFor(shape_.lm_head->outputs()) * kF32Bytes,
           at(divided_logits_)});
    }
    buffers.push_back(
        {"histories", entries * HistoryWords(vocabulary) * kF32Bytes, at(histories_)});
  }
  return buffers;
}

int64_t CudaDecoder::logits_stride() const { return StrideFor(shape_.vocabulary); }

absl::StatusOr<CudaDecoder::Bytes> CudaDecoder::BytesNeeded(const StageShape& shape,
                                                            const CudaDecoderOptions& options,
                                                            const CudaDevice& device,
                                                            CublasLt& cublas) {
  // Its size is all that is asked for.
  CudaDecoder decoder({}, shape, Unallocated(shape), options, device, cublas);
  Bytes bytes;
  for (const Buffer& buffer : decoder.Buffers()) bytes.buffers += buffer.bytes;
  bytes.kv_cache = options.kv_blocks * kKvBlockTokens * shape.kv_bytes_per_token();
  return bytes;
}

absl::StatusOr<std::unique_ptr<CudaDecoder>> CudaDecoder::Make(
    const DecoderConfig& config, const StageShape& shape, const CudaWeights& weights,
    const CudaDecoderOptions& options, const CudaDevice& device, CublasLt& cublas,
    DeviceMemory& memory) {
  std::unique_ptr<CudaDecoder> decoder(
      new CudaDecoder(config, shape, weights, options, device, cublas));
  for (const Buffer& buffer : decoder->Buffers()) {
    absl::StatusOr<void*> pointer = memory.Allocate(buffer.bytes, buffer.name);
    if (!pointer.ok()) return pointer.status();
    *buffer.pointer = *pointer;
  }
  absl::StatusOr<void*> cache =
      memory.Allocate(options.kv_blocks * kKvBlockTokens * shape.kv_bytes_per_token(), "KV cache");
  if (!cache.ok()) return cache.status();
  decoder->kv_cache_ = static_cast<std::byte*>(*cache);
  const std::vector<float> frequencies = RopeFrequencies(config);
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpy(decoder->frequencies_, frequencies.data(),
                                            frequencies.size() * sizeof(float),
                                            cudaMemcpyHostToDevice));
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaDeviceSynchronize());
  return decoder;
}

void CudaDecoder::Join(NcclCommunicator* group) {
  FABRICAST_CHECK(group == nullptr ||
                  (group->rank() == shape_.rank.rank && group->ranks() == shape_.rank.ranks))
      << group->rank() << " of " << group->ranks();
  group_ = group;
}

KvCacheView CudaDecoder::Cache(size_t layer) const {
  KvCacheView view;
  view.blocks = options_.kv_blocks;
  view.kv_heads = static_cast<int>(shape_.kv_heads);
  view.head_dim = static_cast<int>(shape_.head_dim);
  view.data = kv_cache_ + static_cast<int64_t>(layer) * view.bytes();
  return view;
}

ActivationLayout CudaDecoder::LayoutFor(const CudaMatrix& matrix, int tokens) const {
  ActivationLayout layout;
  layout.tokens = tokens;
  layout.inputs = matrix.inputs();
  switch (matrix.format) {
    case MatrixFormat::kInt4:
      layout.format = FormatFor(
          ChooseInt4(tokens, matrix.int4.outputs, matrix.int4.inputs, compute_capability_));
      break;
    case MatrixFormat::kBf16:
      layout.format = ActivationFormat::kBf16Rows;
      break;
    case MatrixFormat::kF16:
      layout.format = ActivationFormat::kF16Rows;
      break;
  }
  return layout;
}

Activations CudaDecoder::InputOf(const CudaMatrix& matrix, int tokens) const {
  return {.layout = LayoutFor(matrix, tokens), .data = activations_, .token_scale = token_scale_};
}

absl::Status CudaDecoder::Multiply(const CudaMatrix& matrix, const Activations& input,
                                   OutputKind kind, void* output, int64_t stride,
                                   const LaunchOptions& launch) {
  const int tokens = input.layout.tokens;
  const GemmOutput to = {.kind = kind, .data = output, .stride = stride};
  switch (input.layout.format) {
    case ActivationFormat::kMma:
      return Int4GemmMma(matrix.int4, input, to, mma_workspace_, launch);
    case ActivationFormat::kWgmma:
      return Int4GemmWgmma(matrix.int4, input, to, wgmma_workspace_, launch);
    case ActivationFormat::kBf16Rows:
      if (matrix.format == MatrixFormat::kInt4) {
        return Int4ManyTokens(cublas_, matrix.int4, input, to, dequantized_, dequantized_bytes_,
                              cublas_workspace_, launch);
      }
      return cublas_.Multiply(matrix.dense, input, to, cublas_workspace_, launch.stream);
    case ActivationFormat::kF16Rows:
      break;
  }
  if (kind != OutputKind::kBf16) {
    return cublas_.Multiply(matrix.dense, input, to, cublas_workspace_, launch.stream);
  }
  // cuBLAS has no products of FP16 that are rounded to BF16.
  FABRICAST_CHECK(stride == matrix.outputs()) << stride << " " << matrix.outputs();
  FABRICAST_RETURN_IF_ERROR(cublas_.Multiply(
      matrix.dense, input, {.kind = OutputKind::kF32, .data = f32_products_, .stride = stride},
      cublas_workspace_, launch.stream));
  return ToBf16(f32_products_, tokens * stride, output, launch);
}

absl::Status CudaDecoder::ClearCache(GpuStream stream) {
  const int64_t bytes = Cache(0).bytes() * static_cast<int64_t>(layers());
  return ToStatus(cudaMemsetAsync(kv_cache_, 0, bytes, stream), "cudaMemsetAsync");
}

absl::Status CudaDecoder::RecordHistories(const StepShape& shape, absl::Span<const int32_t> fresh,
                                          GpuStream stream) {
  const int vocabulary = static_cast<int>(shape_.vocabulary);
  const int64_t words = HistoryWords(vocabulary);
  for (const int32_t index : fresh) {
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaMemsetAsync(histories_ + index * words, 0, words * sizeof(uint32_t), stream));
  }
  const StepLayout at(shape);
  return RecordHistory(InStep<int32_t>(at.tokens), InStep<int32_t>(at.token_history), shape.tokens,
                       vocabulary, histories_, {.stream = stream});
}

absl::Status CudaDecoder::Compute(const StepShape& shape, const void* input, void* output,
                                  GpuStream stream) {
  FABRICAST_RETURN_IF_ERROR(ComputeInput(shape, input, stream));
  for (size_t layer = 0; layer < layers(); ++layer) {
    FABRICAST_RETURN_IF_ERROR(ComputeLayer(shape, layer, stream));
  }
  FABRICAST_RETURN_IF_ERROR(FindNotFiniteRow(shape, stream));
  return ComputeOutput(shape, output, stream);
}

absl::Status CudaDecoder::ComputeOutput(const StepShape& shape, void* output, GpuStream stream) {
  if (shape_.lm_head) return Sample(shape, stream);
  if (shape_.rank.rank != 0) return absl::OkStatus();
  return ToBf16(hidden_, shape.tokens * shape_.hidden, output,
                {.stream = stream, .overlap_previous = true});
}

absl::Status CudaDecoder::ComputeInput(const StepShape& shape, const void* input,
                                       GpuStream stream) {
  // The first kernel follows a copy, which it cannot overlap with.
  const LaunchOptions launch = {.stream = stream};
  if (weights_.embedding == nullptr) {
    const int64_t elements = shape.tokens * shape_.hidden;
    FABRICAST_RETURN_IF_ERROR(shape_.rank.rank == 0 ? FromBf16(input, elements, hidden_, launch)
                                                    : FillF32(0, elements, hidden_, launch));
    return SumResidual(shape.tokens, stream);
  }
  return Embed(weights_.embedding, weights_.embedding_type,
               InStep<int32_t>(StepLayout(shape).tokens), shape.tokens,
               static_cast<int>(shape_.hidden), hidden_, launch);
}

absl::Status CudaDecoder::FindNotFiniteRow(const StepShape& shape, GpuStream stream) {
  return FindNotFinite(hidden_, shape.tokens, static_cast<int>(shape_.hidden),
                       InStep<int32_t>(StepLayout(shape).first_bad_row),
                       AfterResidual(shape.tokens, stream));
}

absl::Status CudaDecoder::ComputeLayer(const StepShape& shape, size_t index, GpuStream stream) {
  const LaunchOptions launch = {.stream = stream, .overlap_previous = true};
  const CudaLayer& layer = weights_.layers[index];
  const int tokens = shape.tokens;
  const float epsilon = static_cast<float>(config_.rms_norm_eps);

  const Activations qkv_input = InputOf(layer.qkv, tokens);
  FABRICAST_RETURN_IF_ERROR(RmsNorm(hidden_, nullptr, layer.input_norm, epsilon, qkv_input,
                                    AfterResidual(tokens, stream)));
  FABRICAST_RETURN_IF_ERROR(
      Multiply(layer.qkv, qkv_input, OutputKind::kBf16, products_, layer.qkv.outputs(), launch));
  const StepLayout at(shape);
  FABRICAST_RETURN_IF_ERROR(RopeAndAppend({.qkv = products_,
                                           .stride = layer.qkv.outputs(),
                                           .rows = tokens,
                                           .heads = static_cast<int>(shape_.heads),
                                           .positions = InStep<int32_t>(at.positions),
                                           .cache_slots = InStep<int32_t>(at.cache_slots),
                                           .frequencies = frequencies_,
                                           .bias = layer.qkv.bias,
                                           .q_gain = layer.q_norm,
                                           .k_gain = layer.k_norm,
                                           .epsilon = epsilon,
                                           .cache = Cache(index)},
                                          launch));
  FABRICAST_RETURN_IF_ERROR(Attend(shape, index, launch));
  Activations o_input = InputOf(layer.o, tokens);
  if (o_input.layout.format == ActivationFormat::kBf16Rows) {
    o_input.data = attended_;
  } else {
    FABRICAST_RETURN_IF_ERROR(PackRows(attended_, layer.o.inputs(), o_input, launch));
  }
  FABRICAST_RETURN_IF_ERROR(AddToResidual(layer.o, o_input, stream));

  const Activations gate_up_input = InputOf(layer.gate_up, tokens);
  FABRICAST_RETURN_IF_ERROR(RmsNorm(hidden_, nullptr, layer.post_attention_norm, epsilon,
                                    gate_up_input, AfterResidual(tokens, stream)));
  const int64_t gate_up = layer.gate_up.outputs();
  FABRICAST_RETURN_IF_ERROR(
      Multiply(layer.gate_up, gate_up_input, OutputKind::kBf16, products_, gate_up, launch));
  if (layer.gate_up.bias != nullptr) {
    FABRICAST_RETURN_IF_ERROR(AddBiasBf16(layer.gate_up.bias, tokens, gate_up, products_, launch));
  }
  const Activations down_input = InputOf(layer.down, tokens);
  FABRICAST_RETURN_IF_ERROR(SwiGlu(products_, gate_up, down_input, launch));
  return AddToResidual(layer.down, down_input, stream);
}

absl::Status CudaDecoder::AddToResidual(const CudaMatrix& matrix, const Activations& input,
                                        GpuStream stream) {
  const LaunchOptions launch = {.stream = stream, .overlap_previous = true};
  const int tokens = input.layout.tokens;
  const OutputKind kind = shape_.rank.rank == 0 ? OutputKind::kAddF32 : OutputKind::kF32;
  FABRICAST_RETURN_IF_ERROR(Multiply(matrix, input, kind, hidden_, shape_.hidden, launch));
  if (matrix.bias != nullptr) {
    FABRICAST_RETURN_IF_ERROR(AddBiasF32(matrix.bias, tokens, shape_.hidden, hidden_, launch));
  }
  return SumResidual(tokens, stream);
}

absl::Status CudaDecoder::SumResidual(int tokens, GpuStream stream) {
  if (group_ == nullptr) return absl::OkStatus();
  return group_->SumF32(hidden_, tokens * shape_.hidden, stream);
}

absl::Status CudaDecoder::Attend(const StepShape& shape, size_t layer,
                                 const LaunchOptions& launch) {
  const StepLayout at(shape);
  AttentionArguments arguments;
  arguments.batch = {.entries = shape.entries,
                     .first_row = InStep<int32_t>(at.first_row),
                     .rows = InStep<int32_t>(at.rows),
                     .first_position = InStep<int32_t>(at.first_position),
                     .block_table = InStep<int32_t>(at.block_table),
                     .table_start = InStep<int32_t>(at.table_start)};
  arguments.cache = Cache(layer);
  arguments.queries = products_;
  arguments.query_stride = weights_.layers[layer].qkv.outputs();
  arguments.output = attended_;
  arguments.heads = static_cast<int>(shape_.heads);
  arguments.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  arguments.workspace = attention_workspace_;
  if (shape.singles > 0) {
    FABRICAST_RETURN_IF_ERROR(DecodeAttention(arguments, launch));
  }
  if (shape.chunk_tokens == 0) return absl::OkStatus();
  return PrefillAttention(arguments, shape.longest_chunk, shape.chunk_tokens, launch);
}

absl::Status CudaDecoder::Sample(const StepShape& shape, GpuStream stream) {
  if (shape.sampled == 0) return absl::OkStatus();
  const LaunchOptions launch = {.stream = stream, .overlap_previous = true};
  const StepLayout at(shape);
  const Activations input = InputOf(weights_.lm_head, shape.sampled);
  FABRICAST_RETURN_IF_ERROR(RmsNorm(hidden_, InStep<int32_t>(at.sampled_rows), weights_.final_norm,
                                    static_cast<float>(config_.rms_norm_eps), input, launch));
  const bool divided = shape_.vocabulary_divided();
  FABRICAST_RETURN_IF_ERROR(divided ? ComputeDividedLogits(input, stream)
                                    : Multiply(weights_.lm_head, input, OutputKind::kF32, logits_,
                                               logits_stride(), launch));
  // A kernel cannot overlap with a copy.
  return SampleTokens(logits_, logits_stride(), shape.sampled, static_cast<int>(shape_.vocabulary),
                      InStep<GpuSamplingRow>(at.sampling), histories_,
                      InStep<GpuSampledToken>(at.sampled_tokens),
                      {.stream = stream, .overlap_previous = !divided});
}

absl::Status CudaDecoder::ComputeDividedLogits(const Activations& input, GpuStream stream) {
  const int64_t rows = input.layout.tokens;
  const int64_t part = weights_.lm_head.outputs();
  const int64_t stride = StrideFor(part);
  float* const own = divided_logits_ + shape_.rank.rank * rows * stride;
  FABRICAST_RETURN_IF_ERROR(Multiply(weights_.lm_head, input, OutputKind::kF32, own, stride,
                                     {.stream = stream, .overlap_previous = true}));
  if (group_ != nullptr) {
    FABRICAST_RETURN_IF_ERROR(
        group_->AllGather(own, rows * stride * kF32Bytes, divided_logits_, stream));
  }
  for (int rank = 0; rank < shape_.rank.ranks; ++rank) {
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpy2DAsync(
        logits_ + rank * part, logits_stride() * kF32Bytes, divided_logits_ + rank * rows * stride,
        stride * kF32Bytes, part * kF32Bytes, rows, cudaMemcpyDeviceToDevice, stream));
  }
  return absl::OkStatus();
}

}  // namespace fabricast
