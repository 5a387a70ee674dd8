// Times the kernels of elementwise.h with the shapes of three models. elementwise_test verifies
// them.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/timing/benchmark_main.h"
#include "kernels/timing/device_array.h"
#include "kernels/timing/results.h"

namespace fabricast {
namespace {

struct Shape {
  const char* model;
  int hidden, ffn, heads, kv_heads, head_dim, vocabulary;
};
constexpr Shape kShapes[] = {
    {"llama-3.1-405b", 16384, 53248, 128, 8, 128, 128256},
    {"llama-3.1-70b", 8192, 28672, 64, 8, 128, 128256},
    {"llama-3.1-8b", 4096, 14336, 32, 8, 128, 128256},
};

// What the products after a kernel read: Int4GemmMma, Int4GemmWgmma; cuBLASLt, of many tokens.
std::vector<ActivationFormat> FormatsFor(int tokens) {
  if (tokens <= 16) return {ActivationFormat::kMma};
  if (tokens <= 64) return {ActivationFormat::kWgmma};
  return {ActivationFormat::kWgmma, ActivationFormat::kBf16Rows};
}

const char* NameOf(ActivationFormat format) {
  switch (format) {
    case ActivationFormat::kBf16Rows:
      return "BF16 rows";
    case ActivationFormat::kF16Rows:
      return "FP16 rows";
    case ActivationFormat::kMma:
      return "mma";
    case ActivationFormat::kWgmma:
      return "wgmma";
  }
  return "";
}

// In a layer, what these kernels read has just been written by another and lies in the L2 cache;
// weights, which were last read a step ago, do not. So inputs are used again where they fit, and
// the gains, of which there are many, are rotated.
constexpr int64_t kL2Bytes = int64_t{50} << 20;

class ElementwiseBenchmark {
 public:
  ElementwiseBenchmark(const Shape& shape, int tokens, const BenchmarkOptions& options,
                       GpuTimer& timer, KernelResults& results)
      : shape_(shape), tokens_(tokens), options_(options), timer_(timer), results_(results) {}

  absl::Status Measure() {
    const int64_t hidden = shape_.hidden, ffn = shape_.ffn;
    const int64_t qkv_width = int64_t{shape_.heads + 2 * shape_.kv_heads} * shape_.head_dim;
    const int64_t wide = std::max({2 * ffn, qkv_width, 2 * hidden});
    const int64_t gains = std::max<int64_t>(1, kL2Bytes / (4 * hidden));
    const int64_t blocks = (tokens_ + kKvBlockTokens - 1) / kKvBlockTokens;
    KvCacheView cache = {nullptr, blocks, shape_.kv_heads, shape_.head_dim};
    if (absl::Status status = Allocate(wide, gains, cache); !status.ok()) return status;
    cache.data = cache_.get();

    const double row_bytes = static_cast<double>(tokens_ * hidden);
    const RopeArguments rope = {.qkv = bf16_.get(),
                                .stride = qkv_width,
                                .rows = tokens_,
                                .heads = shape_.heads,
                                .positions = numbers_.get(),
                                .cache_slots = numbers_.get(),
                                .frequencies = gain_.get(),
                                .cache = cache};
    const double rope_bytes = 4 * static_cast<double>(tokens_ * qkv_width);

    absl::Status status;
    const auto time = [&](const char* operation, const char* note, double bytes,
                          const GpuTimer::Launch& launch) {
      if (status.ok() && options_.Wants(operation)) status = Time(operation, note, bytes, launch);
    };
    time("embed", "", row_bytes * 6, [&](int64_t, const LaunchOptions& launch) {
      return Embed(bf16_.get(), ElementType::kBf16, numbers_.get(), tokens_, shape_.hidden,
                   f32_.get(), launch);
    });
    time("from_bf16", "", row_bytes * 6, [&](int64_t, const LaunchOptions& launch) {
      return FromBf16(bf16_.get(), tokens_ * hidden, f32_.get(), launch);
    });
    time("to_bf16", "", row_bytes * 6, [&](int64_t, const LaunchOptions& launch) {
      return ToBf16(f32_.get(), tokens_ * hidden, bf16_.get(), launch);
    });
    time("rope_and_append", "", rope_bytes,
         [&](int64_t, const LaunchOptions& launch) { return RopeAndAppend(rope, launch); });
    time("find_not_finite", "", row_bytes * 4, [&](int64_t, const LaunchOptions& launch) {
      return FindNotFinite(f32_.get(), tokens_, shape_.hidden, bad_row_.get(), launch);
    });
    for (const ActivationFormat format : FormatsFor(tokens_)) {
      const Activations normed = Packed(format, hidden), gated = Packed(format, ffn);
      const double normed_bytes = static_cast<double>(normed.layout.bytes());
      const double norm = row_bytes * 4 + normed_bytes + 4. * shape_.hidden;
      const double pack = row_bytes * 2 + normed_bytes;
      const double swiglu =
          4 * static_cast<double>(tokens_ * ffn) + static_cast<double>(gated.layout.bytes());
      time("rms_norm", NameOf(format), norm, [&](int64_t index, const LaunchOptions& launch) {
        return RmsNorm(f32_.get(), nullptr, gain_.get() + index % gains * hidden, 1e-5F, normed,
                       launch);
      });
      time("pack_rows", NameOf(format), pack, [&](int64_t, const LaunchOptions& launch) {
        return PackRows(bf16_.get(), hidden, normed, launch);
      });
      time("swiglu", NameOf(format), swiglu, [&](int64_t, const LaunchOptions& launch) {
        return SwiGlu(bf16_.get(), 2 * ffn, gated, launch);
      });
      // What a layer has of these, one after another.
      const auto layer = [&](int64_t index, const LaunchOptions& launch) -> absl::Status {
        const float* const gain = gain_.get() + index % gains * hidden;
        absl::Status all = RmsNorm(f32_.get(), nullptr, gain, 1e-5F, normed, launch);
        all.Update(RopeAndAppend(rope, launch));
        all.Update(PackRows(bf16_.get(), hidden, normed, launch));
        all.Update(RmsNorm(f32_.get(), nullptr, gain, 1e-5F, normed, launch));
        all.Update(SwiGlu(bf16_.get(), 2 * ffn, gated, launch));
        return all;
      };
      time("layer_without_products", NameOf(format), 2 * norm + rope_bytes + pack + swiglu, layer);
    }
    return status;
  }

 private:
  absl::Status Allocate(int64_t wide, int64_t gains, const KvCacheView& cache) {
    const auto allocate = [](auto& array, int64_t size, const char* what) -> absl::Status {
      using Array = std::remove_reference_t<decltype(array)>;
      absl::StatusOr<Array> allocated = Array::Allocate(size, what);
      if (!allocated.ok()) return allocated.status();
      array = *std::move(allocated);
      return array.FillBytes(0x3c);  // 0.0115 as BF16 and FP32.
    };
    absl::Status status = allocate(f32_, tokens_ * int64_t{shape_.hidden}, "rows of FP32");
    status.Update(allocate(bf16_, tokens_ * wide, "rows of BF16"));
    // Any format: 16 slots at least, whole groups.
    status.Update(allocate(
        packed_, (int64_t{tokens_} + 16) * (int64_t{std::max(shape_.ffn, shape_.hidden)} + 128) * 2,
        "packed activations"));
    status.Update(allocate(scale_, tokens_, "token scales"));
    status.Update(allocate(gain_, gains * shape_.hidden, "gains"));
    status.Update(allocate(cache_, cache.bytes() / 2, "a KV cache"));
    status.Update(allocate(bad_row_, 1, "a row number"));
    std::vector<int32_t> numbers(static_cast<size_t>(tokens_));
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<int32_t>(i);
    status.Update(allocate(numbers_, tokens_, "row numbers"));
    if (status.ok()) status = numbers_.CopyFrom(numbers);
    return status;
  }

  Activations Packed(ActivationFormat format, int64_t inputs) const {
    return {{format, tokens_, inputs}, packed_.get(), scale_.get()};
  }

  absl::Status Time(const char* operation, const char* note, double bytes,
                    const GpuTimer::Launch& launch) {
    KernelTiming& timing = *results_.add_timings();
    timing.set_kernel("elementwise");
    timing.set_model(shape_.model);
    timing.set_operation(operation);
    timing.set_tokens(tokens_);
    timing.set_bytes(bytes);
    timing.set_note(note);
    return TimeKernel(timer_, launch, {.sustained_seconds = options_.sustained_seconds}, timing);
  }

  const Shape& shape_;
  const int tokens_;
  const BenchmarkOptions& options_;
  GpuTimer& timer_;
  KernelResults& results_;
  DeviceArray<float> f32_, scale_, gain_;
  DeviceArray<uint16_t> bf16_, cache_;
  DeviceArray<char> packed_;
  DeviceArray<int32_t> numbers_, bad_row_;
};

absl::Status MeasureAll(const BenchmarkOptions& options, GpuTimer& timer, KernelResults& results) {
  for (const Shape& shape : kShapes) {
    for (const int tokens : {1, 16, 64, 512, 8192}) {
      if (options.quick && (&shape != kShapes || tokens == 512)) continue;
      ElementwiseBenchmark benchmark(shape, tokens, options, timer, results);
      if (absl::Status status = benchmark.Measure(); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  return fabricast::KernelBenchmarkMain(
      argc, argv, "Times norms, RoPE, SwiGLU and conversions of a layer.", fabricast::MeasureAll);
}
