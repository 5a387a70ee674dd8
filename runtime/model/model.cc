#include "runtime/model/model.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fabricast {
namespace {

constexpr int64_t kBf16Bytes = 2;
constexpr int64_t kGroup = 128;         // inputs that share a scale in INT4
constexpr int kLargestSuggestedTp = 8;  // GPUs of one host

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

// Why `op` cannot be split over `tp` GPUs; empty if it can. Attention is split by heads; "qkv" and
// "gate_up" by their outputs, "o" and "down" by their inputs, so that one all-reduce follows each
// of the latter.
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
    if (linear->in % tp != 0) {
      return absl::StrFormat("%s's %d inputs do not divide by %d",
                             linear->name == "down" ? "the FFN" : linear->name, linear->in, tp);
    }
    if (linear->format == WeightFormat::kInt4Group128 && (linear->in / tp) % kGroup != 0) {
      return absl::StrFormat(
          "%s's %d inputs over %d GPUs are %d each, which cuts an INT4 group of %d", linear->name,
          linear->in, tp, linear->in / tp, kGroup);
    }
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

int64_t Parameters(const Operator& op) {
  return std::visit(
      Overloaded{
          [](const LinearOp& o) { return o.in * o.out + (o.bias ? o.out : 0); },
          [](const AttentionOp&) { return int64_t{0}; },
          [](const ElementwiseOp& o) { return static_cast<int64_t>(o.weight_elements); },
      },
      op);
}

int64_t WeightBytes(const Operator& op) {
  return std::visit(Overloaded{
                        [](const LinearOp& o) {
                          return WeightBytes(o.format, o.in, o.out) +
                                 (o.bias ? kBf16Bytes * o.out : 0);
                        },
                        [](const AttentionOp&) { return int64_t{0}; },
                        [](const ElementwiseOp& o) {
                          return static_cast<int64_t>(kBf16Bytes * o.weight_elements);
                        },
                    },
                    op);
}

int64_t KvBytesPerToken(const Operator& op) {
  const auto* attention = std::get_if<AttentionOp>(&op);
  if (attention == nullptr) return 0;
  return 2 * attention->kv_heads * attention->head_dim * attention->kv_bytes_per_element;
}

double FlopsPerToken(const Operator& op, int64_t context) {
  return std::visit(Overloaded{
                        [](const LinearOp& o) { return 2.0 * o.in * o.out; },
                        [=](const AttentionOp& o) { return 4.0 * o.heads * o.head_dim * context; },
                        [](const ElementwiseOp&) { return 0.0; },
                    },
                    op);
}

double ActivationBytesPerToken(const Operator& op) {
  return std::visit(
      Overloaded{
          [](const LinearOp& o) { return static_cast<double>(kBf16Bytes * (o.in + o.out)); },
          [](const AttentionOp& o) {
            return static_cast<double>(kBf16Bytes * 2 * o.heads * o.head_dim);
          },
          [](const ElementwiseOp& o) { return o.bytes_per_token; },
      },
      op);
}

int64_t LayerKind::parameters() const {
  int64_t sum = 0;
  for (const Operator& op : operators) sum += Parameters(op);
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
  double activations = 0;
  for (const Operator& op : operators) activations += ActivationBytesPerToken(op);
  const double kv = static_cast<double>(kv_bytes_per_token()) * context;
  return weight_bytes() + requests * (kv + activations);
}

int64_t Model::parameters() const {
  int64_t sum = hidden * vocabulary * (tied_embeddings ? 1 : 2) + final_norm_elements;
  for (int i = 0; i < num_layers(); ++i) sum += layer(i).parameters();
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

}  // namespace fabricast
