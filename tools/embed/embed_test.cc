#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "tools/embed/example_files.h"

namespace fabricast {
namespace {

TEST(EmbedTest, ListsFilesByPathFromTheTopOfTheWorkspace) {
  ASSERT_EQ(ExampleFiles().size(), 2);
  EXPECT_EQ(ExampleFiles()[0].path, "tools/embed/testdata/empty.txt");
  EXPECT_EQ(ExampleFiles()[1].path, "tools/embed/testdata/quotes.txt");
}

TEST(EmbedTest, KeepsEveryByte) {
  EXPECT_EQ(ExampleFiles()[0].contents, "");
  EXPECT_EQ(ExampleFiles()[1].contents, "first\nsecond \"quoted\" \\ )\" line\n");
}

}  // namespace
}  // namespace fabricast
