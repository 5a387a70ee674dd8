#include "runtime/model/model.h"

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fabricast {
namespace {

constexpr int64_t kBf16Bytes = 2;
constexpr int64_t kGroup = 128;         // inputs that share a scale in INT4
constexpr int kLargestSuggestedTp = 8;  // GPUs of one host
constexpr int64_t kExpertMatrices = 3;  // gate, up, down

// std::visit's argument made of lambdas.
template <typename... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// "1, 2, 4 or 8".
std::string Alternatives(const std::vector<int>& values) {
  std::string text;
  for (size_t i = 0; i < values.size(); ++i) {
    if (i > 0) text += i + 1 == values.size() ? " or " : ", ";
    absl::StrAppend(&text, values[i]);
  }
  return text;
}

// Bytes of one expert's matrices.
int64_t ExpertBytes(const RoutedExpertsOp& op) {
  return WeightBytes(op.format, op.in, 2 * op.ffn) + WeightBytes(op.format, op.ffn, op.in);
}

// Why a matrix of `in` inputs cannot be split by them over `tp` GPUs; empty if it can.
std::string WhyNotSplitInputs(absl::string_view name, int64_t in, WeightFormat format, int tp) {
  if (in % tp != 0) {
    return absl::StrFormat("%s's %d inputs do not divide by %d", name == "down" ? "the FFN" : name,
                           in, tp);
  }
  if (format == WeightFormat::kInt4Group128 && (in / tp) % kGroup != 0) {
    return absl::StrFormat(
        "%s's %d inputs over %d GPUs are %d each, which cuts an INT4 group of %d", name, in, tp,
        in / tp, kGroup);
  }
  return "";
}

// Why `op` cannot be split over `tp` GPUs; empty if it can. Attention is split by heads; "qkv" and
// "gate_up" by their outputs, "o" and "down" by their inputs, so that one all-reduce follows each
// of the latter; each expert like a feed-forward part.
std::string WhyNotSplit(const Operator& op, int tp) {
  if (const auto* attention = std::get_if<AttentionOp>(&op)) {
    if (attention->heads % tp != 0) {
      return absl::StrFormat("%d heads do not divide by %d", attention->heads, tp);
    }
    if (attention->kv_heads % tp != 0 && tp % attention->kv_heads != 0) {
      return absl::StrFormat("%d KV heads neither divide by %d nor divide it", attention->kv_heads,
                             tp);
    }
  }
  if (const auto* linear = std::get_if<LinearOp>(&op)) {
    if (linear->name != "o" && linear->name != "down") return "";
    return WhyNotSplitInputs(linear->name, linear->in, linear->format, tp);
  }
  if (const auto* experts = std::get_if<RoutedExpertsOp>(&op)) {
    return WhyNotSplitInputs("an expert", experts->ffn, experts->format, tp);
  }
  return "";
}

std::string WhyNotSplit(const Model& model, int tp) {
  for (const LayerKind& kind : model.kinds) {
    for (const Operator& op : kind.operators) {
      std::string reason = WhyNotSplit(op, tp);
      if (!reason.empty()) return reason;
    }
  }
  return "";
}

}  // namespace

absl::string_view WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kFp8:
      return "fp8";
    case WeightFormat::kInt4Group128:
      return "int4";
  }
  return "unknown";
}

int64_t WeightBytes(WeightFormat format, int64_t in, int64_t out) {
  switch (format) {
    case WeightFormat::kBf16:
      return kBf16Bytes * in * out;
    case WeightFormat::kFp8:
      return in * out;
    case WeightFormat::kInt4Group128:
      // Half a byte a weight; 2 B of scale and half a byte of zero for each column of each group.
      return CeilDiv(in * out, 2) + CeilDiv(CeilDiv(in, kGroup) * out * 5, 2);
  }
  return 0;
}

double ExpectedExpertsTouched(int64_t experts, int64_t per_token, double tokens) {
  const double missed = 1 - static_cast<double>(per_token) / static_cast<double>(experts);
  return static_cast<double>(experts) * (1 - std::pow(missed, tokens));
}

int64_t Parameters(const Operator& op) {
  return std::visit(
      Overloaded{
          [](const LinearOp& o) { return o.in * o.out + (o.bias ? o.out : 0); },
          [](const RoutedExpertsOp& o) { return o.experts * kExpertMatrices * o.in * o.ffn; },
          [](const AttentionOp&) { return int64_t{0}; },
          [](const ElementwiseOp& o) { return static_cast<int64_t>(o.weight_elements); },
      },
      op);
}

int64_t ActiveParameters(const Operator& op) {
  const auto* experts = std::get_if<RoutedExpertsOp>(&op);
  if (experts == nullptr) return Parameters(op);
  return experts->per_token * kExpertMatrices * experts->in * experts->ffn;
}

int64_t WeightBytes(const Operator& op) {
  return std::visit(Overloaded{
                        [](const LinearOp& o) {
                          return WeightBytes(o.format, o.in, o.out) +
                                 (o.bias ? kBf16Bytes * o.out : 0);
                        },
                        [](const RoutedExpertsOp& o) { return o.experts * ExpertBytes(o); },
                        [](const AttentionOp&) { return int64_t{0}; },
                        [](const ElementwiseOp& o) {
                          return static_cast<int64_t>(kBf16Bytes * o.weight_elements);
                        },
                    },
                    op);
}

double WeightBytesRead(const Operator& op, double tokens) {
  const auto* experts = std::get_if<RoutedExpertsOp>(&op);
  if (experts == nullptr) return static_cast<double>(WeightBytes(op));
  return ExpectedExpertsTouched(experts->experts, experts->per_token, tokens) *
         static_cast<double>(ExpertBytes(*experts));
}

int64_t KvBytesPerToken(const Operator& op) {
  const auto* attention = std::get_if<AttentionOp>(&op);
  if (attention == nullptr) return 0;
  return 2 * attention->kv_heads * attention->head_dim * attention->kv_bytes_per_element;
}

double FlopsPerToken(const Operator& op, int64_t context) {
  return std::visit(Overloaded{
                        [](const LinearOp& o) { return 2.0 * o.in * o.out; },
                        [](const RoutedExpertsOp& o) {
                          return 2.0 * o.per_token * kExpertMatrices * o.in * o.ffn;
                        },
                        [=](const AttentionOp& o) { return 4.0 * o.heads * o.head_dim * context; },
                        [](const ElementwiseOp&) { return 0.0; },
                    },
                    op);
}

double ActivationElementsPerToken(const Operator& op) {
  return std::visit(
      Overloaded{
          [](const LinearOp& o) { return static_cast<double>(o.in + o.out); },
          // gate_up: in to 2 ffn; down: ffn to in.
          [](const RoutedExpertsOp& o) {
            return static_cast<double>(o.per_token * (2 * o.in + 3 * o.ffn));
          },
          [](const AttentionOp& o) { return static_cast<double>(2 * o.heads * o.head_dim); },
          [](const ElementwiseOp& o) { return o.elements_per_token; },
      },
      op);
}

int64_t LayerKind::parameters() const {
  int64_t sum = 0;
  for (const Operator& op : operators) sum += Parameters(op);
  return sum;
}

int64_t LayerKind::active_parameters() const {
  int64_t sum = 0;
  for (const Operator& op : operators) sum += ActiveParameters(op);
  return sum;
}

int64_t LayerKind::weight_bytes() const {
  int64_t sum = 0;
  for (const Operator& op : operators) sum += WeightBytes(op);
  return sum;
}

int64_t LayerKind::kv_bytes_per_token() const {
  int64_t sum = 0;
  for (const Operator& op : operators) sum += KvBytesPerToken(op);
  return sum;
}

double LayerKind::flops_per_token(int64_t context) const {
  double sum = 0;
  for (const Operator& op : operators) sum += FlopsPerToken(op, context);
  return sum;
}

double LayerKind::decode_bytes(int64_t requests, int64_t context) const {
  double weights = 0;
  double activations = 0;
  for (const Operator& op : operators) {
    weights += WeightBytesRead(op, static_cast<double>(requests));
    activations += ActivationElementsPerToken(op) * static_cast<double>(activation_bytes);
  }
  const double kv = static_cast<double>(kv_bytes_per_token()) * context;
  return weights + requests * (kv + activations);
}

int64_t Model::parameters() const {
  int64_t sum = hidden * vocabulary * (tied_embeddings ? 1 : 2) + final_norm_elements;
  for (int i = 0; i < num_layers(); ++i) sum += layer(i).parameters();
  return sum;
}

int64_t Model::active_parameters() const {
  int64_t sum = hidden * vocabulary * (tied_embeddings ? 1 : 2) + final_norm_elements;
  for (int i = 0; i < num_layers(); ++i) sum += layer(i).active_parameters();
  return sum;
}

int64_t Model::weight_bytes() const {
  int64_t sum =
      embedding_bytes + (tied_embeddings ? 0 : lm_head_bytes) + kBf16Bytes * final_norm_elements;
  for (int i = 0; i < num_layers(); ++i) sum += layer(i).weight_bytes();
  return sum;
}

int64_t Model::kv_bytes_per_token() const {
  int64_t sum = 0;
  for (int i = 0; i < num_layers(); ++i) sum += layer(i).kv_bytes_per_token();
  return sum;
}

double Model::flops_per_token(int64_t context) const {
  double sum = 2.0 * hidden * vocabulary;
  for (int i = 0; i < num_layers(); ++i) sum += layer(i).flops_per_token(context);
  return sum;
}

absl::Status Model::CheckTensorParallel(int tp) const {
  const std::string reason =
      tp < 1 ? absl::StrFormat("a tensor-parallel size of %d is less than 1", tp)
             : WhyNotSplit(*this, tp);
  if (reason.empty()) return absl::OkStatus();
  std::vector<int> possible;
  for (int size = 1; size <= kLargestSuggestedTp; ++size) {
    if (WhyNotSplit(*this, size).empty()) possible.push_back(size);
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: %s: use %s", name, reason, Alternatives(possible)));
}

Model WithActivationBytes(Model model, int64_t bytes) {
  if (bytes == model.activation_bytes) return model;
  model.activation_bytes = bytes;
  for (LayerKind& kind : model.kinds) {
    kind.activation_bytes = bytes;
    for (Operator& op : kind.operators) {
      if (auto* attention = std::get_if<AttentionOp>(&op)) attention->kv_bytes_per_element = bytes;
    }
  }
  return model;
}

}  // namespace fabricast
