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
    weights.lm_head.dense = {.type = TypeOf(shape.lm_head->format),
                             .outputs = shape.vocabulary,
                             .inputs = shape.hidden,
                             .data = weights.embedding};
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

  // Returns when `bytes` has been read, though not all of it may be at `to` yet.
  absl::Status Upload(absl::Span<const std::byte> bytes, void* to) {
    for (size_t at = 0; at < bytes.size(); at += kBufferBytes) {
      const absl::Span<const std::byte> part = bytes.subspan(at, kBufferBytes);
      Buffer& buffer = buffers_[next_];
      next_ ^= 1;
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventSynchronize(buffer.event));
      Read(part, buffer.bytes);
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpyAsync(static_cast<std::byte*>(to) + at, buffer.bytes,
                                                     part.size(), cudaMemcpyHostToDevice, stream_));
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(buffer.event, stream_));
    }
    return absl::OkStatus();
  }

  template <typename T>
  absl::Status Upload(const std::vector<T>& values, void* to) {
    return Upload({reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(T)},
                  to);
  }

 private:
  struct Buffer {
    std::byte* bytes = nullptr;
    cudaEvent_t event = nullptr;
  };

  // Several threads, because each page is a fault, and a file's disk answers several at a time.
  void Read(absl::Span<const std::byte> from, std::byte* to) const {
    const size_t share = (from.size() + threads_ - 1) / threads_;
    std::vector<std::future<void>> others;
    for (size_t at = share; at < from.size(); at += share) {
      others.push_back(std::async(std::launch::async, [part = from.subspan(at, share), to, at] {
        std::memcpy(to + at, part.data(), part.size());
      }));
    }
    std::memcpy(to, from.data(), std::min(share, from.size()));
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
    if (from_.embedding) {
      FABRICAST_RETURN_IF_ERROR(uploader_.Upload(from_.embedding->bytes, Writable(to.embedding)));
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
    return uploader_.Upload(ToFloats(tensor), Writable(to));
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
    for (const LinearWeights* part : parts) {
      FABRICAST_CHECK(part->in == shape.inputs) << part->in << " " << shape.inputs;
      if (shape.format == MatrixFormat::kInt4) {
        FABRICAST_RETURN_IF_ERROR(Int4Rows(*part, row, to.int4));
      } else {
        FABRICAST_RETURN_IF_ERROR(
            DenseRows(*part, shape.format,
                      static_cast<std::byte*>(Writable(to.dense.data)) + row * shape.inputs * 2));
      }
      // Without a bias of its own a part has the zeros that are there.
      if (part->bias) FABRICAST_RETURN_IF_ERROR(Floats(*part->bias, to.bias + row));
      row += part->out;
    }
    return absl::OkStatus();
  }

  absl::Status Int4Rows(const LinearWeights& from, int64_t row, const Int4Matrix& to) {
    // The stream runs copies and kernels in order: one buffer serves one matrix after another.
    std::byte* at = static_cast<std::byte*>(awq_);
    const auto upload = [&](const Tensor& tensor) -> absl::StatusOr<const void*> {
      const void* const here = at;
      FABRICAST_RETURN_IF_ERROR(uploader_.Upload(tensor.bytes, at));
      at += StagedBytes(tensor);
      Release(tensor);
      return here;
    };
    AwqTensors awq;
    awq.outputs = from.out;
    awq.inputs = from.in;
    FABRICAST_ASSIGN(awq.qweight, upload(from.awq->qweight));
    FABRICAST_ASSIGN(awq.qzeros, upload(from.awq->qzeros));
    FABRICAST_ASSIGN(awq.scales, upload(from.awq->scales));
    return PackInt4(awq, row, to, {.stream = stream_});
  }

  absl::Status DenseRows(const LinearWeights& from, MatrixFormat format, void* to) {
    if (from.awq) {
      FABRICAST_RETURN_IF_ERROR(
          uploader_.Upload(ToHalves(Dequantize(*from.awq, from.in, from.out), format), to));
      Release(from.awq->qweight);
      return absl::OkStatus();
    }
    const DType as_is = format == MatrixFormat::kF16 ? DType::kF16 : DType::kBf16;
    FABRICAST_RETURN_IF_ERROR(from.dense->dtype == as_is
                                  ? uploader_.Upload(from.dense->bytes, to)
                                  : uploader_.Upload(ToHalves(ToFloats(*from.dense), format), to));
    Release(*from.dense);
    return absl::OkStatus();
  }

 public:
  // In the staging buffer, so that the next tensor is aligned.
  static int64_t StagedBytes(const Tensor& tensor) {
    return (static_cast<int64_t>(tensor.bytes.size()) + 255) / 256 * 256;
  }

 private:
  const StageWeights& from_;
  Uploader& uploader_;
  const GpuStream stream_;
  DeviceMemory staging_;
  void* awq_ = nullptr;
};

int64_t LargestAwq(const StageWeights& weights) {
  int64_t largest = 0;
  for (const LayerWeights& layer : weights.layers) {
    const FeedForwardWeights& feed_forward = *layer.feed_forward;
    for (const LinearWeights* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &feed_forward.gate,
                                        &feed_forward.up, &feed_forward.down}) {
      if (!linear->awq) continue;
      largest = std::max(largest, Loader::StagedBytes(linear->awq->qweight) +
                                      Loader::StagedBytes(linear->awq->qzeros) +
                                      Loader::StagedBytes(linear->awq->scales));
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
  uint64_t next = seed + kMatricesOfLayer * static_cast<uint64_t>(first_layer);
  const auto matrix = [&](const CudaMatrix& matrix) {
    const uint64_t seed = next++;
    if (matrix.format == MatrixFormat::kInt4) {
      return FillSyntheticInt4(seed, matrix.int4, options);
    }
    const DenseMatrix& dense = matrix.dense;
    return FillSyntheticDense(seed, dense.type, dense.outputs * dense.inputs,
                              1.0f / std::sqrt(static_cast<float>(dense.inputs)),
                              Writable(dense.data), options);
  };
  for (const CudaLayer& layer : to.layers) {
    FABRICAST_RETURN_IF_ERROR(ones(layer.input_norm, shape.hidden));
    FABRICAST_RETURN_IF_ERROR(ones(layer.post_attention_norm, shape.hidden));
    FABRICAST_RETURN_IF_ERROR(ones(layer.q_norm, shape.head_dim));
    FABRICAST_RETURN_IF_ERROR(ones(layer.k_norm, shape.head_dim));
    FABRICAST_RETURN_IF_ERROR(matrix(layer.qkv));
    FABRICAST_RETURN_IF_ERROR(matrix(layer.o));
    FABRICAST_RETURN_IF_ERROR(matrix(layer.gate_up));
    FABRICAST_RETURN_IF_ERROR(matrix(layer.down));
  }
  next = ~seed;  // no layer's
  if (to.final_norm != nullptr) {
    FABRICAST_RETURN_IF_ERROR(ones(to.final_norm, shape.hidden));
    FABRICAST_RETURN_IF_ERROR(matrix(to.lm_head));
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
