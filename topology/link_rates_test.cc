#include "topology/link_rates.h"

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(LinkRatesTest, RoceLosesHeadersByPathMtu) {
  // 1024 / (1024 + 82), 4096 / (4096 + 82).
  EXPECT_NEAR(RocePayloadShare(1024), 0.92586, 1e-5);
  EXPECT_NEAR(RocePayloadShare(4096), 0.98037, 1e-5);
  // 200 Gbps: what one NIC's NCCL all-reduce was published at is 23.0 and 24.0 GB/s.
  EXPECT_NEAR(BytesPerSecond(200) * RocePayloadShare(1024), 23.15e9, 0.01e9);
  EXPECT_NEAR(BytesPerSecond(200) * RocePayloadShare(4096), 24.51e9, 0.01e9);
}

TEST(LinkRatesTest, TcpLosesHeadersByEthernetMtu) {
  // (9000 - 52) / (9000 + 38): 198 of 200 Gbps, the paper's figure. (1500 - 52) / (1500 + 38).
  EXPECT_NEAR(200 * TcpPayloadShare(9000), 198.0, 0.05);
  EXPECT_NEAR(TcpPayloadShare(1500), 0.94148, 1e-5);
}

TEST(LinkRatesTest, PcieDoublesWithEachGeneration) {
  // 2.5e9 x 8/10 x 16 / 8 = 4.0 GB/s.
  EXPECT_NEAR(PcieBytesPerSecond(1, 16), 4.0e9, 1);
  EXPECT_NEAR(PcieBytesPerSecond(2, 16), 8.0e9, 1);
  // 8e9 x 128/130 x 16 / 8 = 15.754 GB/s.
  EXPECT_NEAR(PcieBytesPerSecond(3, 16) / 1e9, 15.754, 0.001);
  EXPECT_NEAR(PcieBytesPerSecond(4, 16) / 1e9, 31.508, 0.001);
  EXPECT_NEAR(PcieBytesPerSecond(5, 16) / 1e9, 63.015, 0.001);
  // 64e9 x 242/256 x 16 / 8 = 121 GB/s.
  EXPECT_NEAR(PcieBytesPerSecond(6, 16) / 1e9, 121.0, 0.001);
  EXPECT_NEAR(PcieBytesPerSecond(5, 8) / 1e9, 31.508, 0.001);
}

TEST(LinkRatesTest, PciePayloadIsJustAboveWhatWasMeasured) {
  // 256-byte packets with 24 bytes around them. Measured on PCIe 5 x16: 53 to 56.6 GB/s.
  const double payload = PcieBytesPerSecond(5, 16) * kPciePayloadShare / 1e9;
  EXPECT_GT(payload, 56.6);
  EXPECT_LT(payload, 57.7);
}

}  // namespace
}  // namespace fabricast
