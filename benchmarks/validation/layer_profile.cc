#include "benchmarks/validation/layer_profile.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

// The grid on which every combination was profiled.
constexpr double kLeastChunk = 16;
constexpr double kMostChunk = 2048;
constexpr double kMostDecodes = 256;
constexpr double kLeastContext = 16;
constexpr double kMostContext = 16384;

struct Corner {
  int64_t size;
  double weight;
};

// The powers of two around `value`, from `least` to `most`, and what each counts. Below `least`
// only 0, if it is a size.
std::array<Corner, 2> Around(double value, double least, double most, bool zero) {
  if (zero && value <= 0) return {{{0, 1}, {0, 0}}};
  value = std::clamp(value, least, most);
  const double low = std::min(std::exp2(std::floor(std::log2(value))), most / 2);
  const double share = (value - low) / low;
  return {{{static_cast<int64_t>(low), 1 - share}, {static_cast<int64_t>(2 * low), share}}};
}

}  // namespace

absl::StatusOr<CsvTable> CsvTable::Parse(absl::string_view text) {
  CsvTable table;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripSuffix(line, "\r");
    if (line.empty()) continue;
    std::vector<std::string> fields = absl::StrSplit(line, ',');
    if (table.header_.empty()) {
      table.header_ = std::move(fields);
      continue;
    }
    if (fields.size() != table.header_.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "line ", number, ": ", fields.size(), " fields, the header has ", table.header_.size()));
    }
    table.rows_.push_back(std::move(fields));
  }
  if (table.header_.empty()) return absl::InvalidArgumentError("empty: no header");
  return table;
}

absl::StatusOr<size_t> CsvTable::Column(absl::string_view name) const {
  const auto found = std::find(header_.begin(), header_.end(), name);
  if (found == header_.end()) return absl::NotFoundError(absl::StrCat("no column '", name, "'"));
  return static_cast<size_t>(found - header_.begin());
}

absl::StatusOr<double> CsvTable::Number(size_t row, size_t column) const {
  double value = 0;
  if (!absl::SimpleAtod(Text(row, column), &value)) {
    return absl::InvalidArgumentError(absl::StrCat("row ", row + 1, ": ", header_[column], ": '",
                                                   Text(row, column), "' is no number"));
  }
  return value;
}

absl::StatusOr<LayerProfile> LayerProfile::Parse(absl::string_view dense,
                                                 absl::string_view per_sequence,
                                                 absl::string_view attention) {
  LayerProfile profile;
  for (const auto& [text, size_name] :
       {std::pair<absl::string_view, const char*>{dense, "tokens"}, {per_sequence, "sequences"}}) {
    absl::StatusOr<CsvTable> table = CsvTable::Parse(text);
    if (!table.ok()) return table.status();
    const absl::StatusOr<size_t> layer = table->Column("layer");
    const absl::StatusOr<size_t> size = table->Column(size_name);
    const absl::StatusOr<size_t> time = table->Column("time_us");
    for (const absl::Status& status : {layer.status(), size.status(), time.status()}) {
      if (!status.ok()) return status;
    }
    for (size_t row = 0; row < table->rows(); ++row) {
      const absl::StatusOr<double> x = table->Number(row, *size);
      const absl::StatusOr<double> y = table->Number(row, *time);
      if (!x.ok()) return x.status();
      if (!y.ok()) return y.status();
      profile.curves_[table->Text(row, *layer)][*x] = *y * 1e-6;
    }
  }
  absl::StatusOr<CsvTable> table = CsvTable::Parse(attention);
  if (!table.ok()) return table.status();
  std::array<size_t, 5> columns;
  size_t next = 0;
  for (const char* name : {"prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"}) {
    const absl::StatusOr<size_t> column = table->Column(name);
    if (!column.ok()) return column.status();
    columns[next++] = *column;
  }
  for (size_t row = 0; row < table->rows(); ++row) {
    std::array<double, 5> values;
    for (size_t i = 0; i < columns.size(); ++i) {
      const absl::StatusOr<double> value = table->Number(row, columns[i]);
      if (!value.ok()) return value.status();
      values[i] = *value;
    }
    std::array<int64_t, 4> key;
    for (size_t i = 0; i < key.size(); ++i) key[i] = std::llround(values[i]);
    profile.attention_seconds_[key] = values[4] * 1e-6;
    profile.attention_.push_back({{key[0], key[1], key[2], key[3]}, values[4] * 1e-6});
  }
  return profile;
}

double LayerProfile::AttentionSeconds(double chunk, double chunk_past, double decodes,
                                      double decode_context) const {
  double seconds = 0;
  double weights = 0;
  for (const Corner& a : Around(chunk, kLeastChunk, kMostChunk, /*zero=*/true)) {
    for (const Corner& b : Around(chunk_past, kLeastContext, kMostContext, /*zero=*/true)) {
      for (const Corner& c : Around(decodes, 1, kMostDecodes, /*zero=*/true)) {
        for (const Corner& d : Around(decode_context, kLeastContext, kMostContext, false)) {
          const double weight = a.weight * b.weight * c.weight * d.weight;
          if (weight <= 0) continue;
          const auto found = attention_seconds_.find(
              {a.size, a.size == 0 ? 0 : b.size, c.size, c.size == 0 ? 0 : d.size});
          // The profile left out a few combinations that did not fit its memory.
          if (found == attention_seconds_.end()) continue;
          seconds += weight * found->second;
          weights += weight;
        }
      }
    }
  }
  FABRICAST_CHECK(weights > 0) << chunk << " after " << chunk_past << ", " << decodes << " at "
                               << decode_context;
  return seconds / weights;
}

double LayerProfile::OtherSeconds(int layers, int64_t tokens, int64_t sequences) const {
  const auto at = [this](const char* layer, int64_t size) -> double {
    const auto curve = curves_.find(layer);
    if (curve == curves_.end()) return -1e9;
    const auto above = curve->second.lower_bound(static_cast<double>(size));
    if (above == curve->second.end()) return -1e9;
    if (above == curve->second.begin()) return above->second;
    const auto below = std::prev(above);
    const double share = (static_cast<double>(size) - below->first) / (above->first - below->first);
    return below->second + share * (above->second - below->second);
  };
  double layer_s = 2 * at("layernorm", tokens);  // before attention, before the feed-forward part
  for (const char* name :
       {"qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj"}) {
    layer_s += at(name, tokens);
  }
  double seconds = layers * layer_s + at("embedding", tokens) + at("final_layernorm", tokens);
  if (sequences > 0) seconds += at("lm_head", sequences) + at("sampler", sequences);
  return seconds;
}

}  // namespace fabricast
