#include "kernels/dense/int4_many_tokens.h"

#include <algorithm>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"

namespace fabricast {
namespace {

// 8,448 rows of 16,384 inputs: two waves of 132 blocks of 128 outputs x 256 tokens, cuBLASLt's on
// an H200, for 1,024 tokens. Fewer rows and one wave cost more launches and ramps.
constexpr int64_t kTileRows = 8448;
constexpr int64_t kMostScratchBytes = kTileRows * 16384 * 2;
// From 2,048 tokens on one wave is enough to do, and the fewer rows are at once, the more of them
// are still in the L2 cache when they are multiplied.
constexpr int64_t kWaveOutputs = int64_t{132} * 128 * 256;
constexpr int64_t kOneWaveTokens = 2048;

constexpr int64_t RowBytes(int64_t inputs) { return inputs * 2; }
constexpr int64_t ElementBytes(OutputKind kind) { return kind == OutputKind::kBf16 ? 2 : 4; }

}  // namespace

int64_t Int4ManyTokensScratchBytes(int64_t inputs) {
  const int64_t most_rows = kMostScratchBytes / RowBytes(inputs) / kInt4BlockRows * kInt4BlockRows;
  return std::clamp(most_rows, kInt4BlockRows, kTileRows) * RowBytes(inputs);
}

absl::StatusOr<int64_t> Int4ManyTokensTileRows(int64_t outputs, int64_t inputs, int tokens,
                                               int64_t scratch_bytes) {
  const int64_t fit = scratch_bytes / RowBytes(inputs) / kInt4BlockRows * kInt4BlockRows;
  if (fit == 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "scratch of %d bytes does not hold %d rows of %d inputs in BF16, which take %d",
        scratch_bytes, kInt4BlockRows, inputs, kInt4BlockRows * RowBytes(inputs)));
  }
  int64_t rows = std::min(fit, kTileRows);
  if (tokens >= kOneWaveTokens) {
    const int64_t wave = kWaveOutputs / tokens / kInt4BlockRows * kInt4BlockRows;
    rows = std::min(rows, std::max(wave, kInt4BlockRows));
  }
  const int64_t all = (outputs + kInt4BlockRows - 1) / kInt4BlockRows * kInt4BlockRows;
  return std::min(rows, all);
}

absl::Status Int4ManyTokens(CublasLt& cublas, const Int4Matrix& weights, const Activations& input,
                            const GemmOutput& output, void* scratch, int64_t scratch_bytes,
                            void* workspace, const LaunchOptions& options) {
  const absl::StatusOr<int64_t> tile_rows =
      Int4ManyTokensTileRows(weights.outputs, weights.inputs, input.layout.tokens, scratch_bytes);
  if (!tile_rows.ok()) return tile_rows.status();
  for (int64_t row = 0; row < weights.outputs; row += *tile_rows) {
    const int64_t rows = std::min(*tile_rows, weights.outputs - row);
    const int64_t whole_blocks = (rows + kInt4BlockRows - 1) / kInt4BlockRows * kInt4BlockRows;
    if (absl::Status status = DequantizeInt4(
            weights, row, whole_blocks, scratch,
            {.stream = options.stream, .overlap_previous = options.overlap_previous || row > 0});
        !status.ok()) {
      return status;
    }
    GemmOutput columns = output;
    columns.data = static_cast<char*>(output.data) + row * ElementBytes(output.kind);
    const DenseMatrix tile = {
        .type = DenseType::kBf16, .outputs = rows, .inputs = weights.inputs, .data = scratch};
    if (absl::Status status = cublas.Multiply(tile, input, columns, workspace, options.stream);
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace fabricast
