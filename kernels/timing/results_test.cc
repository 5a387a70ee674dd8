#include "kernels/timing/results.h"

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/timing/kernel_results.pb.h"

namespace fabricast {
namespace {

KernelResults Example() {
  KernelResults results;
  results.mutable_environment()->set_gpu("NVIDIA H200");
  results.mutable_ceilings()->set_copy_gb_s(4000);
  KernelTiming& timing = *results.add_timings();
  timing.set_kernel("int4_gemm_mma");
  timing.set_operation("o");
  timing.set_tokens(1);
  timing.set_bytes(140e6);
  timing.set_operations(537e6);
  timing.set_single_us(40);
  timing.set_graph_us(35);
  return results;
}

TEST(ResultsTest, WhatIsWrittenIsRead) {
  const std::string path = testing::TempDir() + "/results.json";
  ASSERT_TRUE(WriteKernelResults(Example(), path).ok());
  const absl::StatusOr<KernelResults> read = ReadKernelResults(path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->SerializeAsString(), Example().SerializeAsString());
}

TEST(ResultsTest, FieldsKeepTheSchemasNames) {
  EXPECT_NE(ToJson(Example()).find("\"copy_gb_s\": 4000"), std::string::npos) << ToJson(Example());
}

TEST(ResultsTest, ABadFileIsNamed) {
  EXPECT_EQ(ReadKernelResults("/nowhere/results.json").status().code(),
            absl::StatusCode::kNotFound);
  const absl::Status status = KernelResultsFromJson("{\"timing\": []}").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("timing"), absl::string_view::npos) << status;
}

TEST(ResultsTest, ATableTellsTheShareOfTheCopysRate) {
  // In a graph: 140 MB in 35 us are 4,000 GB/s, all of the copy's.
  const std::string table = KernelTable(Example());
  EXPECT_NE(table.find(" 4000  100.0 "), std::string::npos) << table;
}

}  // namespace
}  // namespace fabricast
