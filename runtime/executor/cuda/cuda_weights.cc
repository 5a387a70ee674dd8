#include "runtime/executor/cuda/cuda_weights.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <future>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/gpu/cuda_status.h"
#include "runtime/check.h"
#include "runtime/executor/cuda/host_tensors.h"
#include "runtime/executor/cuda/stage_kernels.h"

namespace fabricast {
namespace {

// Of a page-locked buffer: at 50 GB/s, the rate of PCIe 5.0 x16, 1.3 ms, far more than it takes to
// start a copy or a thread.
constexpr int64_t kBufferBytes = int64_t{64} << 20;

constexpr uint64_t kMatricesOfLayer = 4;
// More than a model's matrices.
constexpr uint64_t kSeedsOfRank = uint64_t{1} << 32;

#define FABRICAST_ASSIGN(member, expression)             \
  do {                                                   \
    auto result = (expression);                          \
    if (!result.ok()) return std::move(result).status(); \
    member = *std::move(result);                         \
  } while (false)

#define FABRICAST_RETURN_IF_ERROR(expression) \
  if (absl::Status status = (expression); !status.ok()) return status

DenseType TypeOf(MatrixFormat format) {
  return format == MatrixFormat::kF16 ? DenseType::kF16 : DenseType::kBf16;
}

// Memory for weights, without the weights.
class Allocator {
 public:
  explicit Allocator(DeviceMemory& memory) : memory_(memory) {}

  absl::StatusOr<float*> Floats(int64_t count, absl::string_view what) {
    absl::StatusOr<void*> pointer = memory_.Allocate(count * sizeof(float), what);
    if (!pointer.ok()) return pointer.status();
    return static_cast<float*>(*pointer);
  }

  absl::StatusOr<void*> Bytes(int64_t bytes, absl::string_view what) {
    return memory_.Allocate(bytes, what);
  }

  absl::StatusOr<CudaMatrix> Matrix(const MatrixShape& shape, absl::string_view what) {
    CudaMatrix matrix;
    matrix.format = shape.format;
    if (shape.bias) FABRICAST_ASSIGN(matrix.bias, Floats(shape.outputs(), what));
    if (shape.format == MatrixFormat::kInt4) {
      matrix.int4.outputs = shape.outputs();
      matrix.int4.inputs = shape.inputs;
      FABRICAST_ASSIGN(matrix.int4.blocks, Bytes(matrix.int4.block_bytes(), what));
      FABRICAST_ASSIGN(matrix.int4.row_scale,
                       Floats(matrix.int4.row_scale_bytes() / sizeof(float), what));
      return matrix;
    }
    matrix.dense.type = TypeOf(shape.format);
    matrix.dense.outputs = shape.outputs();
    matrix.dense.inputs = shape.inputs;
    FABRICAST_ASSIGN(matrix.dense.data, Bytes(shape.outputs() * shape.inputs * 2, what));
    return matrix;
  }

  absl::StatusOr<CudaWeights> Stage(const StageShape& shape) {
    CudaWeights weights;
    if (shape.embedding) {
      weights.embedding_type = *shape.embedding;
      const int64_t element = *shape.embedding == ElementType::kF32 ? 4 : 2;
      FABRICAST_ASSIGN(weights.embedding,
                       Bytes(shape.vocabulary * shape.hidden * element, "embedding"));
    }
    for (size_t i = 0; i < shape.layers.size(); ++i) {
      const LayerShape& from = shape.layers[i];
      const std::string what = absl::StrCat("weights of layer ", i + 1, " of the stage");
      CudaLayer& layer = weights.layers.emplace_back();
      FABRICAST_ASSIGN(layer.input_norm, Floats(shape.hidden, what));
      FABRICAST_ASSIGN(layer.post_attention_norm, Floats(shape.hidden, what));
      if (shape.qk_norm) {
        FABRICAST_ASSIGN(layer.q_norm, Floats(shape.head_dim, what));
        FABRICAST_ASSIGN(layer.k_norm, Floats(shape.head_dim, what));
      }
      FABRICAST_ASSIGN(layer.qkv, Matrix(from.qkv, what));
      FABRICAST_ASSIGN(layer.o, Matrix(from.o, what));
      FABRICAST_ASSIGN(layer.gate_up, Matrix(from.gate_up, what));
      FABRICAST_ASSIGN(layer.down, Matrix(from.down, what));
    }
    if (!shape.lm_head) return weights;
    FABRICAST_ASSIGN(weights.final_norm, Floats(shape.hidden, "final norm"));
    if (!shape.tied) {
      FABRICAST_ASSIGN(weights.lm_head, Matrix(*shape.lm_head, "lm_head"));
      return weights;
    }
    weights.lm_head.format = shape.lm_head->format;
    const int64_t outputs = shape.lm_head->outputs();
    const int64_t first = shape.vocabulary_divided() ? shape.rank.rank * outputs : 0;
    weights.lm_head.dense = {
        .type = TypeOf(shape.lm_head->format),
        .outputs = outputs,
        .inputs = shape.hidden,
        .data = static_cast<const std::byte*>(weights.embedding) + first * shape.hidden * 2};
    return weights;
  }

 private:
  DeviceMemory& memory_;
};

// What was allocated above is const to all but those who fill it.
void* Writable(const void* pointer) { return const_cast<void*>(pointer); }
float* Writable(const float* pointer) { return const_cast<float*>(pointer); }

class Stream {
 public:
  Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  absl::Status Create() {
    return ToStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                    "cudaStreamCreateWithFlags");
  }
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Copies from pageable memory, such as files', through two page-locked buffers.
class Uploader {
 public:
  Uploader(GpuStream stream, int threads) : stream_(stream), threads_(std::max(1, threads)) {}
  ~Uploader() {
    for (const Buffer& buffer : buffers_) {
      if (buffer.event != nullptr) cudaEventDestroy(buffer.event);
    }
  }

  absl::Status Create() {
    for (Buffer& buffer : buffers_) {
      absl::StatusOr<void*> pinned = pinned_.AllocatePinned(kBufferBytes, "buffer for weights");
      if (!pinned.ok()) return pinned.status();
      buffer.bytes = static_cast<std::byte*>(*pinned);
      FABRICAST_RETURN_IF_CUDA_FAILS(
          cudaEventCreateWithFlags(&buffer.event, cudaEventDisableTiming));
    }
    return absl::OkStatus();
  }

  // Returns when `rows` has been read, though not all of it may be at `to` yet.
  absl::Status Upload(const ByteRows& rows, void* to) {
    for (int64_t at = 0; at < rows.bytes(); at += kBufferBytes) {
      const int64_t count = std::min(kBufferBytes, rows.bytes() - at);
      Buffer& buffer = buffers_[next_];
      next_ ^= 1;
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventSynchronize(buffer.event));
      Read(rows, at, count, buffer.bytes);
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpyAsync(static_cast<std::byte*>(to) + at, buffer.bytes,
                                                     count, cudaMemcpyHostToDevice, stream_));
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(buffer.event, stream_));
    }
    return absl::OkStatus();
  }

 private:
  struct Buffer {
    std::byte* bytes = nullptr;
    cudaEvent_t event = nullptr;
  };

  // Several threads, because each page is a fault, and a file's disk answers several at a time.
  void Read(const ByteRows& from, int64_t first, int64_t count, std::byte* to) const {
    const int64_t share = (count + threads_ - 1) / threads_;
    std::vector<std::future<void>> others;
    for (int64_t at = share; at < count; at += share) {
      others.push_back(std::async(std::launch::async, [=] {
        from.Copy(first + at, std::min(share, count - at), to + at);
      }));
    }
    from.Copy(first, std::min(share, count), to);
    for (std::future<void>& other : others) other.get();
  }

  const GpuStream stream_;
  const int threads_;
  DeviceMemory pinned_;
  Buffer buffers_[2];
  int next_ = 0;
};

class Loader {
 public:
  Loader(const StageWeights& from, Uploader& uploader, GpuStream stream)
      : from_(from), uploader_(uploader), stream_(stream) {}

  // `largest`: of the AWQ matrices, on the GPU before they are repacked.
  absl::Status Create(int64_t largest) {
    FABRICAST_ASSIGN(awq_, staging_.Allocate(largest, "buffer for AWQ"));
    return absl::OkStatus();
  }

  absl::Status Stage(const StageShape& shape, const CudaWeights& to) {
    rank_ = shape.rank.rank;
    if (from_.embedding) {
      FABRICAST_RETURN_IF_ERROR(
          uploader_.Upload(RowsOf(from_.embedding->bytes), Writable(to.embedding)));
      Release(*from_.embedding);
    }
    for (size_t i = 0; i < to.layers.size(); ++i) {
      FABRICAST_RETURN_IF_ERROR(Layer(shape.layers[i], from_.layers[i], to.layers[i]));
    }
    if (!from_.lm_head) return absl::OkStatus();
    FABRICAST_RETURN_IF_ERROR(Floats(*from_.final_norm, to.final_norm));
    if (shape.tied) return absl::OkStatus();
    return Matrix(*shape.lm_head, {&*from_.lm_head}, to.lm_head);
  }

 private:
  void Release(const Tensor& tensor) const {
    if (from_.checkpoint != nullptr) from_.checkpoint->Release(tensor);
  }

  absl::Status Floats(const Tensor& tensor, const float* to) {
    return Floats(ToFloats(tensor), to);
  }
  absl::Status Floats(absl::Span<const float> floats, const float* to) {
    return uploader_.Upload(
        RowsOf({reinterpret_cast<const std::byte*>(floats.data()), floats.size() * sizeof(float)}),
        Writable(to));
  }

  absl::Status Layer(const LayerShape& shape, const LayerWeights& from, const CudaLayer& to) {
    FABRICAST_RETURN_IF_ERROR(Floats(from.input_norm, to.input_norm));
    FABRICAST_RETURN_IF_ERROR(Floats(from.post_attention_norm, to.post_attention_norm));
    if (from.q_norm) FABRICAST_RETURN_IF_ERROR(Floats(*from.q_norm, to.q_norm));
    if (from.k_norm) FABRICAST_RETURN_IF_ERROR(Floats(*from.k_norm, to.k_norm));
    FABRICAST_RETURN_IF_ERROR(Matrix(shape.qkv, {&from.q, &from.k, &from.v}, to.qkv));
    FABRICAST_RETURN_IF_ERROR(Matrix(shape.o, {&from.o}, to.o));
    const FeedForwardWeights& feed_forward = *from.feed_forward;
    FABRICAST_RETURN_IF_ERROR(
        Matrix(shape.gate_up, {&feed_forward.gate, &feed_forward.up}, to.gate_up));
    return Matrix(shape.down, {&feed_forward.down}, to.down);
  }

  absl::Status Matrix(const MatrixShape& shape, const std::vector<const LinearWeights*>& parts,
                      const CudaMatrix& to) {
    int64_t row = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const LinearWeights& from = *parts[i];
      const LinearPart part = PartOf(from, shape.parts[i], shape.inputs, rank_);
      if (shape.format == MatrixFormat::kInt4) {
        FABRICAST_RETURN_IF_ERROR(Int4(from, part, row, to.int4));
      } else {
        FABRICAST_RETURN_IF_ERROR(
            Dense(from, part, shape.format,
                  static_cast<std::byte*>(Writable(to.dense.data)) + row * shape.inputs * 2));
      }
      // Without a bias of its own a part has the zeros that are there.
      if (shape.bias && from.bias) {
        const std::vector<float> bias = ToFloats(*from.bias);
        FABRICAST_RETURN_IF_ERROR(
            Floats(absl::MakeConstSpan(bias).subspan(part.first_out, part.out), to.bias + row));
      }
      row += part.out;
    }
    return absl::OkStatus();
  }

  absl::Status Int4(const LinearWeights& from, const LinearPart& part, int64_t row,
                    const Int4Matrix& to) {
    // The stream runs copies and kernels in order: one buffer serves one matrix after another.
    std::byte* at = static_cast<std::byte*>(awq_);
    const auto upload = [&](const ByteRows& rows, const Tensor& of) -> absl::StatusOr<const void*> {
      const void* const here = at;
      FABRICAST_RETURN_IF_ERROR(uploader_.Upload(rows, at));
      at += StagedBytes(rows.bytes());
      Release(of);
      return here;
    };
    const AwqRows rows = RowsOf(*from.awq, part);
    AwqTensors awq;
    awq.outputs = part.out;
    awq.inputs = part.in;
    FABRICAST_ASSIGN(awq.qweight, upload(rows.qweight, from.awq->qweight));
    FABRICAST_ASSIGN(awq.qzeros, upload(rows.qzeros, from.awq->qzeros));
    FABRICAST_ASSIGN(awq.scales, upload(rows.scales, from.awq->scales));
    return PackInt4(awq, row, to, {.stream = stream_});
  }

  absl::Status Dense(const LinearWeights& from, const LinearPart& part, MatrixFormat format,
                     void* to) {
    FABRICAST_RETURN_IF_ERROR(uploader_.Upload(DenseRows(from, part, format).rows(), to));
    Release(from.awq ? from.awq->qweight : *from.dense);
    return absl::OkStatus();
  }

 public:
  // In the staging buffer, so that the next tensor is aligned.
  static int64_t StagedBytes(int64_t bytes) { return (bytes + 255) / 256 * 256; }

 private:
  const StageWeights& from_;
  Uploader& uploader_;
  const GpuStream stream_;
  int rank_ = 0;
  DeviceMemory staging_;
  void* awq_ = nullptr;
};

// No rank has more of it.
int64_t LargestAwq(const StageWeights& weights) {
  const auto staged = [](const Tensor& tensor) {
    return Loader::StagedBytes(static_cast<int64_t>(tensor.bytes.size()));
  };
  int64_t largest = 0;
  for (const LayerWeights& layer : weights.layers) {
    const FeedForwardWeights& feed_forward = *layer.feed_forward;
    for (const LinearWeights* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &feed_forward.gate,
                                        &feed_forward.up, &feed_forward.down}) {
      if (!linear->awq) continue;
      largest = std::max(largest, staged(linear->awq->qweight) + staged(linear->awq->qzeros) +
                                      staged(linear->awq->scales));
    }
  }
  return largest;
}

}  // namespace

absl::StatusOr<CudaWeights> LoadCudaWeights(const StageShape& shape, const StageWeights& weights,
                                            int threads, DeviceMemory& memory) {
  CudaWeights to;
  FABRICAST_ASSIGN(to, Allocator(memory).Stage(shape));
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaDeviceSynchronize());  // what is allocated is zero by now
  Stream stream;
  FABRICAST_RETURN_IF_ERROR(stream.Create());
  Uploader uploader(stream, threads);
  FABRICAST_RETURN_IF_ERROR(uploader.Create());
  Loader loader(weights, uploader, stream);
  FABRICAST_RETURN_IF_ERROR(loader.Create(LargestAwq(weights)));
  FABRICAST_RETURN_IF_ERROR(loader.Stage(shape, to));
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream));
  return to;
}

absl::StatusOr<CudaWeights> MakeSyntheticCudaWeights(const StageShape& shape, int64_t first_layer,
                                                     uint64_t seed, DeviceMemory& memory) {
  CudaWeights to;
  FABRICAST_ASSIGN(to, Allocator(memory).Stage(shape));
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaDeviceSynchronize());
  Stream stream;
  FABRICAST_RETURN_IF_ERROR(stream.Create());
  const LaunchOptions options = {.stream = stream};
  const auto ones = [&](const float* gain, int64_t count) {
    return gain == nullptr ? absl::OkStatus() : FillF32(1.0f, count, Writable(gain), options);
  };
  // A row of the weights is 1 long: outputs of normal inputs are about normal.
  const auto matrix = [&](uint64_t seed, const CudaMatrix& matrix) {
    if (matrix.format == MatrixFormat::kInt4) {
      return FillSyntheticInt4(seed, matrix.int4, options);
    }
    const DenseMatrix& dense = matrix.dense;
    return FillSyntheticDense(seed, dense.type, dense.outputs * dense.inputs,
                              1.0f / std::sqrt(static_cast<float>(dense.inputs)),
                              Writable(dense.data), options);
  };
  const uint64_t share = kSeedsOfRank * static_cast<uint64_t>(shape.rank.rank);
  uint64_t next = seed + share + kMatricesOfLayer * static_cast<uint64_t>(first_layer);
  for (const CudaLayer& layer : to.layers) {
    FABRICAST_RETURN_IF_ERROR(ones(layer.input_norm, shape.hidden));
    FABRICAST_RETURN_IF_ERROR(ones(layer.post_attention_norm, shape.hidden));
    FABRICAST_RETURN_IF_ERROR(ones(layer.q_norm, shape.head_dim));
    FABRICAST_RETURN_IF_ERROR(ones(layer.k_norm, shape.head_dim));
    FABRICAST_RETURN_IF_ERROR(matrix(next++, layer.qkv));
    FABRICAST_RETURN_IF_ERROR(matrix(next++, layer.o));
    FABRICAST_RETURN_IF_ERROR(matrix(next++, layer.gate_up));
    FABRICAST_RETURN_IF_ERROR(matrix(next++, layer.down));
  }
  // ~seed and ~seed - 1 are no layer's. What is whole is the same on all ranks.
  if (to.final_norm != nullptr) {
    FABRICAST_RETURN_IF_ERROR(ones(to.final_norm, shape.hidden));
    CudaMatrix lm_head = to.lm_head;
    if (shape.tied) {
      lm_head.dense.data = to.embedding;
      lm_head.dense.outputs = shape.vocabulary;
    }
    const bool whole = shape.tied || !shape.vocabulary_divided();
    FABRICAST_RETURN_IF_ERROR(matrix(whole ? ~seed : ~seed - share, lm_head));
  }
  if (to.embedding != nullptr && !shape.tied) {
    const DenseType type =
        to.embedding_type == ElementType::kF16 ? DenseType::kF16 : DenseType::kBf16;
    FABRICAST_RETURN_IF_ERROR(FillSyntheticDense(~seed - 1, type, shape.vocabulary * shape.hidden,
                                                 1.0f, Writable(to.embedding), options));
  }
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream));
  return to;
}

}  // namespace fabricast
