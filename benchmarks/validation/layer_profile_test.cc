#include "benchmarks/validation/layer_profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

// Every product at 10 us, and 1 us for anything else; at twice the tokens twice the time.
std::string Dense() {
  std::string text = "layer,tokens,time_us\n";
  for (const char* product : {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}) {
    absl::StrAppend(&text, product, ",8,10\n", product, ",16,20\n");
  }
  for (const char* other : {"layernorm", "rotary_emb", "act_fn", "embedding", "final_layernorm"}) {
    absl::StrAppend(&text, other, ",8,1\n", other, ",16,2\n");
  }
  return text;
}

constexpr char kPerSequence[] =
    "layer,sequences,time_us\nlm_head,1,100\nlm_head,2,110\nsampler,1,5\nsampler,2,5\n";
constexpr char kAttention[] =
    "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\r\n"
    "0,0,1,16,10\r\n0,0,1,32,20\r\n0,0,2,16,30\r\n0,0,2,32,40\r\n"
    "16,0,0,0,50\r\n32,0,0,0,60\r\n16,0,1,16,70\r\n32,0,1,16,90\r\n";

LayerProfile MustParse() { return LayerProfile::Parse(Dense(), kPerSequence, kAttention).value(); }

TEST(LayerProfileTest, InterpolatesAttentionBetweenPowersOfTwo) {
  const LayerProfile profile = MustParse();
  EXPECT_NEAR(profile.AttentionSeconds(0, 0, 1, 16), 10e-6, 1e-12);
  EXPECT_NEAR(profile.AttentionSeconds(0, 0, 1, 24), 15e-6, 1e-12);
  EXPECT_NEAR(profile.AttentionSeconds(0, 0, 1.5, 24), 25e-6, 1e-12);
  EXPECT_NEAR(profile.AttentionSeconds(24, 0, 0, 0), 55e-6, 1e-12);
  EXPECT_NEAR(profile.AttentionSeconds(24, 0, 1, 16), 80e-6, 1e-12);
  // Constant below the grid.
  EXPECT_NEAR(profile.AttentionSeconds(0, 0, 1, 3), 10e-6, 1e-12);
}

TEST(LayerProfileTest, AddsUpTheRestOfAStep) {
  const LayerProfile profile = MustParse();
  // 3 layers of 4 x 10 + (2 norms + rotary + activation) x 1; embedding and final norm; lm_head and
  // sampler of one sequence.
  EXPECT_NEAR(profile.OtherSeconds(3, 8, 1), (3 * 44 + 2 + 105) * 1e-6, 1e-12);
  EXPECT_NEAR(profile.OtherSeconds(3, 12, 0), 1.5 * (3 * 44 + 2) * 1e-6, 1e-12);
  EXPECT_LT(profile.OtherSeconds(3, 17, 1), 0);  // not profiled
}

TEST(LayerProfileTest, NamesWhatIsWrong) {
  EXPECT_THAT(LayerProfile::Parse("", kPerSequence, kAttention).status().message(),
              HasSubstr("no header"));
  EXPECT_THAT(LayerProfile::Parse("layer,time_us\n", kPerSequence, kAttention).status().message(),
              HasSubstr("no column 'tokens'"));
  EXPECT_THAT(LayerProfile::Parse("layer,tokens,time_us\na,1\n", kPerSequence, kAttention)
                  .status()
                  .message(),
              HasSubstr("line 2: 2 fields, the header has 3"));
  EXPECT_THAT(LayerProfile::Parse("layer,tokens,time_us\na,1,x\n", kPerSequence, kAttention)
                  .status()
                  .message(),
              HasSubstr("time_us: 'x' is no number"));
}

}  // namespace
}  // namespace fabricast
