#include "runtime/cost/stage_cost.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {

namespace {

constexpr double kFloatBytes = 4;

// Token i of a chunk attends to past + i + 1 tokens, i = 0 ... tokens-1.
double Attended(int64_t tokens, int64_t past) {
  const double n = static_cast<double>(tokens);
  return n * static_cast<double>(past) + n * (n + 1) / 2;
}

}  // namespace

BatchShape BatchShape::Of(const MicroBatch& micro_batch) {
  BatchShape shape;
  for (const BatchEntry& entry : micro_batch.entries) {
    shape.tokens += entry.tokens;
    shape.sampled += entry.samples ? 1 : 0;
    if (entry.decode) {
      ++shape.decodes;
      shape.decode_context += entry.first_token + 1;
    } else {
      shape.chunks_attended.push_back(Attended(entry.tokens, entry.first_token));
    }
  }
  return shape;
}

BatchShape BatchShape::Decode(int64_t requests, int64_t context) {
  return {.tokens = requests,
          .sampled = requests,
          .decodes = requests,
          .decode_context = requests * context,
          .chunks_attended = {}};
}

BatchShape BatchShape::Prefill(int64_t tokens, int64_t past, bool samples) {
  return {.tokens = tokens,
          .sampled = samples ? 1 : 0,
          .decodes = 0,
          .decode_context = 0,
          .chunks_attended = {Attended(tokens, past)}};
}

StageCost::Curve::Curve(const google::protobuf::RepeatedPtrField<EfficiencyPoint>& points) {
  for (const EfficiencyPoint& point : points) {
    log2_x_.push_back(std::log2(point.x()));
    efficiency_.push_back(point.efficiency());
  }
}

double StageCost::Curve::At(double x) const {
  if (efficiency_.empty()) return 1;
  const double wanted = std::log2(std::max(x, 1e-9));
  const auto above = std::upper_bound(log2_x_.begin(), log2_x_.end(), wanted);
  if (above == log2_x_.begin()) return efficiency_.front();
  if (above == log2_x_.end()) return efficiency_.back();
  const size_t i = above - log2_x_.begin();
  const double share = (wanted - log2_x_[i - 1]) / (log2_x_[i] - log2_x_[i - 1]);
  return efficiency_[i - 1] + share * (efficiency_[i] - efficiency_[i - 1]);
}

int StageCost::CurveFor(const KernelCalibration& kernels, absl::string_view format) {
  for (size_t i = 0; i < gemm_curves_.size(); ++i) {
    if (gemm_curves_[i].format == format) return static_cast<int>(i);
  }
  for (const GemmCurve& curve : kernels.gemms()) {
    if (format != curve.weight_format()) continue;
    gemm_curves_.push_back(
        {curve.weight_format(), curve.overhead_us() * 1e-6, Curve(curve.points())});
    return static_cast<int>(gemm_curves_.size()) - 1;
  }
  FABRICAST_CHECK(false) << "calibration " << kernels.name() << " has no curve for " << format
                         << " weights; CheckCalibration() says so earlier";
  return -1;
}

absl::Status CheckCalibration(const Model& model, const KernelCalibration& kernels) {
  std::vector<absl::string_view> wanted = {WeightFormatName(model.layer_format)};
  // lm_head, and the router of experts, whatever the layers are.
  if (model.lm_head_bytes > 0) wanted.push_back(WeightFormatName(WeightFormat::kBf16));
  for (absl::string_view format : wanted) {
    const bool found =
        std::any_of(kernels.gemms().begin(), kernels.gemms().end(),
                    [&](const GemmCurve& curve) { return format == curve.weight_format(); });
    if (!found) {
      return absl::NotFoundError(absl::StrCat(
          "calibration ", kernels.name(), ": no curve for ", format, " weights, which ", model.name,
          " has: add a `gemms` entry with weight_format: \"", format, "\""));
    }
  }
  return absl::OkStatus();
}

StageCost::StageCost(const Model& model, const GpuSpec& gpu, const KernelCalibration& kernels,
                     StageCostOptions options)
    : bandwidth_(gpu.memory_bandwidth_gb_s() * 1e9),
      peak_(gpu.bf16_tflops() * 1e12 *
            (gpu.has_sustained_compute_fraction() ? gpu.sustained_compute_fraction() : 1)),
      options_(std::move(options)),
      decode_curve_(kernels.decode_attention().points()),
      prefill_curve_(kernels.prefill_attention().points()),
      decode_overhead_s_(kernels.decode_attention().overhead_us() * 1e-6),
      prefill_overhead_s_(kernels.prefill_attention().overhead_us() * 1e-6),
      elementwise_efficiency_(kernels.elementwise_efficiency()),
      elementwise_overhead_s_(kernels.elementwise_overhead_us() * 1e-6),
      step_overhead_s_(kernels.step_overhead_us() * 1e-6) {
  FABRICAST_CHECK(options_.first_layer >= 0 && options_.num_layers >= 0 &&
                  options_.first_layer + options_.num_layers <= model.num_layers())
      << "layers " << options_.first_layer << "+" << options_.num_layers << " of "
      << model.num_layers();
  const double tp = options_.tensor_parallel;
  FABRICAST_CHECK(tp == 1 || (options_.all_reduce != nullptr &&
                              (!options_.lm_head || options_.all_gather != nullptr)))
      << "tensor_parallel=" << tp;

  for (size_t kind = 0; kind < model.kinds.size(); ++kind) {
    double layers = 0;
    for (int i = 0; i < options_.num_layers; ++i) {
      layers += model.layers[options_.first_layer + i] == static_cast<int>(kind) ? 1 : 0;
    }
    if (layers == 0) continue;
    for (const Operator& op : model.kinds[kind].operators) {
      if (const auto* linear = std::get_if<LinearOp>(&op)) {
        gemms_.push_back({
            .count = layers,
            .weight_bytes =
                static_cast<double>(WeightBytes(linear->format, linear->in, linear->out)) / tp,
            .flops_per_token =
                2.0 * static_cast<double>(linear->in) * static_cast<double>(linear->out) / tp,
            .curve = CurveFor(kernels, WeightFormatName(linear->format)),
        });
      } else if (const auto* experts = std::get_if<RoutedExpertsOp>(&op)) {
        // A grouped kernel for gate and up, one for down.
        for (const auto& [in, out] :
             {std::pair(experts->in, 2 * experts->ffn), std::pair(experts->ffn, experts->in)}) {
          gemms_.push_back({
              .count = layers,
              .weight_bytes = static_cast<double>(WeightBytes(experts->format, in, out)) / tp,
              .flops_per_token = 2.0 * static_cast<double>(in) * static_cast<double>(out) / tp,
              .curve = CurveFor(kernels, WeightFormatName(experts->format)),
              .experts = experts->experts,
              .per_token = experts->per_token,
          });
        }
      } else if (const auto* attention = std::get_if<AttentionOp>(&op)) {
        // Fewer KV heads than GPUs: every GPU keeps a copy of the one that it needs.
        const double kv_heads = std::max(1.0, static_cast<double>(attention->kv_heads) / tp);
        attentions_.push_back({
            .count = layers,
            .kv_bytes_per_token = 2.0 * kv_heads * static_cast<double>(attention->head_dim) *
                                  static_cast<double>(attention->kv_bytes_per_element),
            // Q K^T and P V, a multiply-add each for every element of the head.
            .flops_per_pair = 4.0 * static_cast<double>(attention->heads) / tp *
                              static_cast<double>(attention->head_dim),
        });
        // One after attention, one after the feed-forward part.
        all_reduces_ += tp > 1 ? 2 * static_cast<int>(layers) : 0;
      } else if (const auto* elementwise = std::get_if<ElementwiseOp>(&op)) {
        elementwise_kernels_ += layers;
        elementwise_bytes_per_token_ +=
            layers * elementwise->elements_per_token * static_cast<double>(model.activation_bytes);
      }
    }
  }
  all_reduce_bytes_per_token_ = kFloatBytes * static_cast<double>(model.hidden);
  logits_bytes_per_row_ = kFloatBytes * static_cast<double>(model.vocabulary);
  if (options_.embedding) {
    // A row of the table is read and written as an activation.
    elementwise_kernels_ += 1;
    elementwise_bytes_per_token_ += 2.0 * static_cast<double>(model.boundary_bytes_per_token());
  }
  if (options_.lm_head) {
    lm_head_ = {
        .count = 1,
        .weight_bytes =
            2.0 * static_cast<double>(model.hidden) * static_cast<double>(model.vocabulary) / tp,
        .flops_per_token =
            2.0 * static_cast<double>(model.hidden) * static_cast<double>(model.vocabulary) / tp,
        .curve = CurveFor(kernels, WeightFormatName(WeightFormat::kBf16)),
    };
    sampling_s_ = kernels.sampling_us() * 1e-6;
  }
}

void StageCost::AddGemm(const Gemm& gemm, int64_t tokens, MatrixTime& time) const {
  // A dense matrix is an expert that all tokens go to: touched = 1, rows = tokens.
  const double pairs = static_cast<double>(tokens * gemm.per_token);
  const double touched =
      ExpectedExpertsTouched(gemm.experts, gemm.per_token, static_cast<double>(tokens));
  const FormatCurve& curve = gemm_curves_[gemm.curve];
  const double efficiency = curve.efficiency.At(pairs / touched);
  const double read_s = touched * gemm.weight_bytes / bandwidth_ / efficiency;
  const double compute_s = pairs * gemm.flops_per_token / peak_ / efficiency;
  (read_s >= compute_s ? time.read_s : time.compute_s) += gemm.count * std::max(read_s, compute_s);
  time.overhead_s += gemm.count * curve.overhead_s;
}

const StageCost::MatrixTime& StageCost::LayerMatrices(int64_t tokens) const {
  if (tokens >= static_cast<int64_t>(by_tokens_.size())) by_tokens_.resize(tokens + 1);
  std::optional<MatrixTime>& memo = by_tokens_[tokens];
  if (!memo.has_value()) {
    memo.emplace();
    for (const Gemm& gemm : gemms_) AddGemm(gemm, tokens, *memo);
  }
  return *memo;
}

ComputeTime StageCost::Explain(const BatchShape& batch) const {
  ComputeTime time;
  if (batch.tokens == 0) return time;
  MatrixTime matrices = LayerMatrices(batch.tokens);
  double overhead_s = step_overhead_s_;
  if (options_.lm_head && batch.sampled > 0) {
    AddGemm(lm_head_, batch.sampled, matrices);
    overhead_s += sampling_s_;
  }
  overhead_s += matrices.overhead_s;

  double decode_s = 0;
  double prefill_s = 0;
  for (const Attention& attention : attentions_) {
    if (batch.decodes > 0) {
      const double bytes = static_cast<double>(batch.decode_context) * attention.kv_bytes_per_token;
      decode_s += attention.count * bytes / bandwidth_ / decode_curve_.At(bytes);
      overhead_s += attention.count * decode_overhead_s_;
    }
    // A kernel a request: the calibration is by the work of one.
    for (double attended : batch.chunks_attended) {
      const double flops = attended * attention.flops_per_pair;
      prefill_s += attention.count * flops / peak_ / prefill_curve_.At(flops);
      overhead_s += attention.count * prefill_overhead_s_;
    }
  }
  const double tokens = static_cast<double>(batch.tokens);
  time.set_weight_read_s(matrices.read_s);
  time.set_matrix_compute_s(matrices.compute_s);
  time.set_decode_attention_s(decode_s);
  time.set_prefill_attention_s(prefill_s);
  time.set_elementwise_s(tokens * elementwise_bytes_per_token_ / bandwidth_ /
                             elementwise_efficiency_ +
                         elementwise_kernels_ * elementwise_overhead_s_);
  if (all_reduces_ > 0) {
    double collective_s = all_reduces_ * options_.all_reduce(tokens * all_reduce_bytes_per_token_);
    if (options_.lm_head && batch.sampled > 0) {
      collective_s +=
          options_.all_gather(static_cast<double>(batch.sampled) * logits_bytes_per_row_);
    }
    time.set_collective_s(collective_s);
  }
  time.set_overhead_s(overhead_s);
  return time;
}

}  // namespace fabricast
