// A profile of one model's layers on one GPU, kernel by kernel, as LLMServingSim's profiler writes
// it: dense.csv (layer,tokens,time_us), per_sequence.csv (layer,sequences,time_us), attention.csv
// (prefill_chunk,kv_prefill,n_decode,kv_decode,time_us: one kernel that does a chunk after
// kv_prefill tokens and n_decode decodes with kv_decode tokens each).
#ifndef FABRICAST_BENCHMARKS_VALIDATION_LAYER_PROFILE_H_
#define FABRICAST_BENCHMARKS_VALIDATION_LAYER_PROFILE_H_

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fabricast {

// Rows of a CSV file with a header, by column. kInvalidArgument names the line.
class CsvTable {
 public:
  static absl::StatusOr<CsvTable> Parse(absl::string_view text);

  size_t rows() const { return rows_.size(); }
  // kNotFound if there is no such column.
  absl::StatusOr<size_t> Column(absl::string_view name) const;
  const std::string& Text(size_t row, size_t column) const { return rows_[row][column]; }
  // kInvalidArgument names the line if it is no number.
  absl::StatusOr<double> Number(size_t row, size_t column) const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

struct AttentionShape {
  int64_t chunk = 0;
  int64_t chunk_past = 0;
  int64_t decodes = 0;
  int64_t decode_context = 0;  // of each
};

struct AttentionRow {
  AttentionShape shape;
  double seconds = 0;
};

class LayerProfile {
 public:
  static absl::StatusOr<LayerProfile> Parse(absl::string_view dense, absl::string_view per_sequence,
                                            absl::string_view attention);

  // All rows, as they were measured.
  const std::vector<AttentionRow>& attention() const { return attention_; }

  // Of the attention kernel: linear in each of the four between the profile's powers of two,
  // constant beyond them. `decode_context` need not be whole.
  double AttentionSeconds(double chunk, double chunk_past, double decodes,
                          double decode_context) const;

  // Everything else of a step: a layer's products, norms, rotary embedding and activation, `layers`
  // times, embedding, final norm, lm_head and sampling. Linear between the sizes profiled. Negative
  // if the sizes lie beyond the profile's.
  double OtherSeconds(int layers, int64_t tokens, int64_t sequences) const;

 private:
  using Curve = std::map<double, double>;  // size -> seconds

  std::vector<AttentionRow> attention_;
  std::map<std::array<int64_t, 4>, double> attention_seconds_;
  std::map<std::string, Curve> curves_;
};

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_VALIDATION_LAYER_PROFILE_H_
