// Messages and collectives over clusters whose NCCL has round constants.
#include "runtime/cost/communication_cost.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr double kUs = 1e-6;

// Messages take 10 us up to 1 KiB and 30 us from 4 KiB on. "Simple" has a base of 8 us and steps of
// 2 us; "LL" carries half data, half flags, and ends at 64 KiB; "auto" is PCIe's only protocol.
constexpr char kRoundNccl[] = R"(# proto-message: fabricast.NcclCalibration
name: "round"
sends {
  path: PATH_KIND_NETWORK_RDMA
  points { bytes: 1024 latency_us: 10 }
  points { bytes: 4096 latency_us: 30 }
  chunk_step_us: 10
}
sends {
  path: PATH_KIND_PCIE_PEER
  points { bytes: 1024 latency_us: 5 }
  max_gb_s: 25
}
collectives {
  path: PATH_KIND_NETWORK_RDMA protocol: "Simple" base_us: 8 rate_fraction: 1
  step { bytes: 1 latency_us: 2 }
}
collectives {
  path: PATH_KIND_NETWORK_RDMA protocol: "LL" base_us: 6 rate_fraction: 0.5 max_bytes: 65536
  step { bytes: 1 latency_us: 1 }
}
collectives {
  path: PATH_KIND_PCIE_PEER protocol: "auto" base_us: 8 rate_fraction: 1
  step { bytes: 1024 latency_us: 4 } step { bytes: 4096 latency_us: 8 }
}
host_staging_gb_s: 6
)";

// `hosts` hosts around one switch, each with `gpus` GPUs and a NIC of 400 Gbps. GPU i of host h has
// index h x gpus + i.
Topology Hosts(int hosts, int gpus, const std::vector<Override>& overrides = {}) {
  SpecLibrary specs = SpecLibrary::Bundled();
  const absl::Status added = specs.AddText("round.txtpb", kRoundNccl);
  EXPECT_TRUE(added.ok()) << added;
  std::string text = "name: \"star\"\n";
  for (int h = 0; h < hosts; ++h) {
    absl::StrAppend(&text, "hosts {\n  name: \"h", h, "\" spec: \"trinity_host_a\"\n");
    for (int g = 0; g < gpus; ++g) {
      absl::StrAppend(&text, "  gpus { name: \"gpu", g,
                      "\" spec: \"rtx_pro_6000_blackwell_workstation\" slot: \"slot", g + 1,
                      "\" }\n");
    }
    absl::StrAppend(&text,
                    "  nics { name: \"nic0\" spec: \"connectx7_400g\" slot: \"slot7\" }\n}\n",
                    "links { a: \"h", h, ".nic0\" b: \"leaf.port", h + 1, "\" }\n");
  }
  absl::StrAppend(&text,
                  "switches { name: \"leaf\" spec: \"leaf_400g\" }\n"
                  "communication { calibration: \"round\" gdr_level: PCIE_DISTANCE_SYS }\n");
  absl::StatusOr<Topology> topology = Topology::Parse("star.txtpb", text, overrides, specs);
  if (!topology.ok()) ADD_FAILURE() << topology.status();
  return *std::move(topology);
}

Topology Bundled(const std::string& name, const std::vector<Override>& overrides = {}) {
  absl::StatusOr<Topology> topology = Topology::Load(name, overrides);
  if (!topology.ok()) ADD_FAILURE() << topology.status();
  return *std::move(topology);
}

SendCost Send(const Topology& topology, int from, int to) {
  absl::StatusOr<SendCost> cost = SendCost::For(topology, topology.route(from, to));
  if (!cost.ok()) ADD_FAILURE() << cost.status();
  return *std::move(cost);
}

std::vector<int> Range(int n) {
  std::vector<int> gpus(n);
  std::iota(gpus.begin(), gpus.end(), 0);
  return gpus;
}

// The only candidate.
CollectiveCandidate Candidate(const Topology& topology, CollectiveOp op,
                              const std::vector<int>& gpus, double bytes,
                              absl::string_view algorithm, absl::string_view protocol) {
  absl::StatusOr<std::vector<CollectiveCandidate>> candidates =
      CollectiveCandidates(topology, op, gpus, bytes, algorithm, protocol);
  if (!candidates.ok() || candidates->size() != 1) {
    ADD_FAILURE() << candidates.status() << ", or several";
    return {};
  }
  return candidates->front();
}

using Edges = std::map<std::pair<int, int>, double>;

Edges EdgesOf(const CollectiveCandidate& candidate) {
  Edges edges;
  for (const CollectiveFlow& flow : candidate.flows) edges[{flow.from, flow.to}] += flow.bytes;
  EXPECT_EQ(edges.size(), candidate.flows.size()) << "two flows between the same GPUs";
  return edges;
}

TEST(BusBandwidthTest, FactorsAreThoseOfNcclTests) {
  // 2 (n-1) / n, twice (n-1) / n, and 1.
  const struct {
    int ranks;
    double all_reduce, half;
  } cases[] = {{2, 1, 0.5}, {3, 4.0 / 3, 2.0 / 3}, {4, 1.5, 0.75}, {8, 1.75, 0.875}};
  for (const auto& c : cases) {
    EXPECT_DOUBLE_EQ(BusBandwidthFactor(COLLECTIVE_OP_ALL_REDUCE, c.ranks), c.all_reduce);
    EXPECT_DOUBLE_EQ(BusBandwidthFactor(COLLECTIVE_OP_ALL_GATHER, c.ranks), c.half);
    EXPECT_DOUBLE_EQ(BusBandwidthFactor(COLLECTIVE_OP_REDUCE_SCATTER, c.ranks), c.half);
    EXPECT_EQ(BusBandwidthFactor(COLLECTIVE_OP_SEND_RECV, c.ranks), 1);
  }
}

TEST(CollectiveOpTest, NamesAreThoseOfNcclTestsPrograms) {
  for (const auto& [op, name] : {std::pair(COLLECTIVE_OP_ALL_REDUCE, "all_reduce"),
                                 {COLLECTIVE_OP_ALL_GATHER, "all_gather"},
                                 {COLLECTIVE_OP_REDUCE_SCATTER, "reduce_scatter"},
                                 {COLLECTIVE_OP_SEND_RECV, "sendrecv"}}) {
    EXPECT_EQ(CollectiveOpName(op), name);
    const absl::StatusOr<CollectiveOp> parsed = ParseCollectiveOp(name);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, op);
  }
  const absl::StatusOr<CollectiveOp> unknown = ParseCollectiveOp("allreduce");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(unknown.status().message(),
            "no collective is called 'allreduce': use one of all_reduce, all_gather, "
            "reduce_scatter, sendrecv");
}

TEST(PathKindTest, EveryKindHasAName) {
  EXPECT_EQ(PathKindName(PATH_KIND_NVLINK), "NVLink");
  EXPECT_EQ(PathKindName(PATH_KIND_PCIE_PEER), "PCIe peer");
  EXPECT_EQ(PathKindName(PATH_KIND_HOST_MEMORY), "host memory");
  EXPECT_EQ(PathKindName(PATH_KIND_NETWORK_RDMA), "network, RDMA");
  EXPECT_EQ(PathKindName(PATH_KIND_NETWORK_TCP), "network, TCP");
}

TEST(LatencyTest, IsLinearInTheLogarithmAndConstantBeyondTheEnds) {
  google::protobuf::RepeatedPtrField<LatencyPoint> points;
  const auto add = [&](double bytes, double latency_us) {
    LatencyPoint& point = *points.Add();
    point.set_bytes(bytes);
    point.set_latency_us(latency_us);
  };
  EXPECT_EQ(InterpolateLatencySeconds(points, 1e6), 0);
  add(1024, 10);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 1), 10 * kUs);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 1e9), 10 * kUs);
  add(4096, 30);
  add(65536, 10);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 0), 10 * kUs);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 1024), 10 * kUs);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 2048), 20 * kUs);  // 11 of 10 ... 12
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 4096), 30 * kUs);
  // NCCL changes protocol with size: time may fall. 13 of 12 ... 16.
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 8192), 25 * kUs);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 65536), 10 * kUs);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 1e12), 10 * kUs);
}

TEST(LatencyTest, APointAtZeroBytesCountsAsOneByte) {
  google::protobuf::RepeatedPtrField<LatencyPoint> points;
  LatencyPoint& zero = *points.Add();
  zero.set_latency_us(2);
  LatencyPoint& kib = *points.Add();
  kib.set_bytes(1024);
  kib.set_latency_us(12);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 0), 2 * kUs);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 1), 2 * kUs);
  EXPECT_DOUBLE_EQ(InterpolateLatencySeconds(points, 32), 7 * kUs);  // 5 of 0 ... 10
}

TEST(SendCostTest, OneChunkAStepIsTheMostThatAStreamCarries) {
  const SendCost send = Send(Hosts(2, 1), 0, 1);
  // NCCL's 131,072 B every 10 us, on a wire of more than 46 GB/s.
  EXPECT_DOUBLE_EQ(send.max_bytes_per_s(), 13.1072e9);
  EXPECT_THAT(send.limit(), AllOf(HasSubstr("131072 bytes"), HasSubstr("13.1 GB/s")));
  // NCCL_P2P_NET_CHUNKSIZE four times as large.
  const SendCost larger =
      Send(Hosts(2, 1, {{"communication.p2p_net_chunk_bytes", "524288"}}), 0, 1);
  EXPECT_DOUBLE_EQ(larger.max_bytes_per_s(), 4 * 13.1072e9);
}

TEST(SendCostTest, OneStreamInsideAHostHasItsOwnCap) {
  const SendCost send = Send(Hosts(1, 2), 0, 1);
  EXPECT_EQ(send.max_bytes_per_s(), 25e9);
  EXPECT_THAT(send.limit(), AllOf(HasSubstr("25.0 GB/s"), HasSubstr("PCIe peer")));
}

TEST(SendCostTest, WithoutACapOnlyTheWireLimits) {
  const Topology topology = Bundled("h200_x4");
  const SendCost send = Send(topology, 0, 1);
  EXPECT_EQ(send.max_bytes_per_s(), std::numeric_limits<double>::infinity());
  EXPECT_THAT(send.limit(), IsEmpty());
  // 1 GB at the route's rate, beside some microseconds.
  const double wire_s = 1e9 / topology.route(0, 1).payload_bytes_per_s;
  EXPECT_NEAR(send.LoneSeconds(1e9), wire_s, 0.05 * wire_s);
  EXPECT_GE(send.LoneSeconds(1e9), wire_s);
}

TEST(SendCostTest, TheMeasuredChunkStepLimitsTrinityAt400Gbps) {
  const Topology topology = Bundled("trinity_400g");
  const SendCost send = Send(topology, 1, 2);
  // 131,072 B / 5.263 us; 24.5 to 24.9 GB/s were measured where the wire could carry 46.
  EXPECT_NEAR(send.max_bytes_per_s() / 1e9, 24.9, 0.1);
  EXPECT_LT(send.max_bytes_per_s(), topology.route(1, 2).payload_bytes_per_s);
  // At 200 Gbps the wire's 23.1 GB/s are less.
  const Topology at_200 = Bundled("trinity_200g");
  EXPECT_GT(Send(at_200, 1, 2).max_bytes_per_s(), at_200.route(1, 2).payload_bytes_per_s);
}

TEST(SendCostTest, LoneSecondsAreLatencyAndBytesAtTheLowerRate) {
  const SendCost capped = Send(Hosts(2, 1), 0, 1);
  EXPECT_DOUBLE_EQ(capped.LatencySeconds(2048), 20 * kUs);
  // 13,107,200 B at 13.1072 GB/s: 1 ms.
  EXPECT_DOUBLE_EQ(capped.LoneSeconds(13'107'200), 30 * kUs + 1e-3);
  const Topology topology = Hosts(2, 1, {{"communication.p2p_net_chunk_bytes", "524288"}});
  EXPECT_DOUBLE_EQ(Send(topology, 0, 1).LoneSeconds(1e9),
                   30 * kUs + 1e9 / topology.route(0, 1).payload_bytes_per_s);
}

TEST(SendCostTest, NoMessageIsFasterThanTheHardware) {
  // A switch that takes 1 ms, far more than the software's 30 us.
  const Topology topology = Hosts(2, 1, {{"leaf.latency_ns", "1000000"}});
  EXPECT_EQ(Send(topology, 0, 1).LatencySeconds(4096), topology.route(0, 1).latency_s);
  EXPECT_GT(topology.route(0, 1).latency_s, 1e-3);
}

TEST(SendCostTest, APathWithoutPricesIsNamed) {
  const Topology topology = Hosts(2, 1, {{"communication.transport", "TRANSPORT_TCP"}});
  const absl::Status status = SendCost::For(topology, topology.route(0, 1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(),
            "calibration round: no `sends` entry for the path kind PATH_KIND_NETWORK_TCP: add one");
}

TEST(RingTest, EveryEdgeCarriesTheBusBytesOfTheVector) {
  const Topology topology = Hosts(5, 1);
  // 1 MB over 5 ranks: 2 x 4/5 for all-reduce; 4/5 for its halves; the message itself.
  const struct {
    CollectiveOp op;
    double edge;
    int steps;
  } cases[] = {{COLLECTIVE_OP_ALL_REDUCE, 1.6e6, 8},
               {COLLECTIVE_OP_ALL_GATHER, 0.8e6, 4},
               {COLLECTIVE_OP_REDUCE_SCATTER, 0.8e6, 4}};
  for (const auto& c : cases) {
    const CollectiveCandidate ring =
        Candidate(topology, c.op, {3, 1, 0, 2, 4}, 1e6, "ring", "Simple");
    EXPECT_EQ(ring.algorithm, "ring");
    EXPECT_EQ(ring.protocol, "Simple");
    // 8 us and 2 us a step.
    EXPECT_DOUBLE_EQ(ring.fixed_s, (8 + 2 * c.steps) * kUs);
    // In the order that was asked for, and closed.
    EXPECT_EQ(EdgesOf(ring), (Edges{{{3, 1}, c.edge},
                                    {{1, 0}, c.edge},
                                    {{0, 2}, c.edge},
                                    {{2, 4}, c.edge},
                                    {{4, 3}, c.edge}}));
  }
}

TEST(RingTest, FlagsTakeTheirShareOfTheWire) {
  const Topology topology = Hosts(2, 1);
  const CollectiveCandidate simple =
      Candidate(topology, COLLECTIVE_OP_ALL_REDUCE, {0, 1}, 65536, "ring", "Simple");
  const CollectiveCandidate ll =
      Candidate(topology, COLLECTIVE_OP_ALL_REDUCE, {0, 1}, 65536, "ring", "LL");
  EXPECT_EQ(simple.flows[0].bytes, 65536);
  EXPECT_EQ(ll.flows[0].bytes, 2 * 65536);
  // 6 us and two steps of 1 us.
  EXPECT_DOUBLE_EQ(ll.fixed_s, 8 * kUs);
}

TEST(RingTest, StepsArePricedByTheSizeOfTheVector) {
  // 2 (4-1) steps of 4 us up to 1 KiB, 6 us at 2 KiB.
  const Topology topology = Hosts(1, 4);
  EXPECT_DOUBLE_EQ(Candidate(topology, COLLECTIVE_OP_ALL_REDUCE, Range(4), 512, "", "").fixed_s,
                   (8 + 6 * 4) * kUs);
  EXPECT_DOUBLE_EQ(Candidate(topology, COLLECTIVE_OP_ALL_REDUCE, Range(4), 2048, "", "").fixed_s,
                   (8 + 6 * 6) * kUs);
}

TEST(CandidatesTest, TheSlowestPathOfTheRingPricesAllSteps) {
  // GPUs 0 and 1 share a host; the way to 2 is the network, whose protocols are Simple and LL. It
  // is so wherever in the ring the step inside the host is.
  const Topology topology = Hosts(2, 2);
  for (const std::vector<int>& gpus : {std::vector<int>{0, 1, 2}, {2, 0, 1}, {1, 2, 0}}) {
    const absl::StatusOr<std::vector<CollectiveCandidate>> candidates =
        CollectiveCandidates(topology, COLLECTIVE_OP_ALL_REDUCE, gpus, 1024);
    ASSERT_TRUE(candidates.ok()) << candidates.status();
    std::vector<std::string> names;
    for (const CollectiveCandidate& candidate : *candidates) {
      names.push_back(absl::StrCat(candidate.algorithm, " ", candidate.protocol));
    }
    EXPECT_THAT(names, ElementsAre("ring Simple", "tree Simple", "ring LL", "tree LL"));
  }
}

TEST(CandidatesTest, ProtocolsEndAtTheirLargestSize) {
  const Topology topology = Hosts(2, 1);
  const auto count = [&](double bytes) {
    const absl::StatusOr<std::vector<CollectiveCandidate>> candidates =
        CollectiveCandidates(topology, COLLECTIVE_OP_ALL_REDUCE, Range(2), bytes, "ring");
    return candidates.ok() ? candidates->size() : 0;
  };
  EXPECT_EQ(count(65536), 2u);
  EXPECT_EQ(count(65537), 1u);
}

TEST(CandidatesTest, ErrorsListWhatThereIs) {
  const Topology topology = Hosts(2, 2);
  const auto error = [&](CollectiveOp op, const std::vector<int>& gpus, absl::string_view algorithm,
                         absl::string_view protocol) {
    const absl::Status status =
        CollectiveCandidates(topology, op, gpus, 1e6, algorithm, protocol).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(error(COLLECTIVE_OP_ALL_REDUCE, {0, 2}, "", "LL128"),
            "calibration round prices no all_reduce over network, RDMA with algorithm '' and "
            "protocol 'LL128' at this size; algorithms: ring, tree; protocols: LL, Simple");
  EXPECT_THAT(error(COLLECTIVE_OP_ALL_REDUCE, {0, 2}, "butterfly", ""),
              HasSubstr("algorithms: ring, tree;"));
  // There are trees between hosts only, and only for all-reduce.
  EXPECT_THAT(error(COLLECTIVE_OP_ALL_REDUCE, {0, 1}, "tree", ""),
              AllOf(HasSubstr("over PCIe peer"), HasSubstr("algorithms: ring; protocols: auto")));
  EXPECT_THAT(error(COLLECTIVE_OP_ALL_GATHER, {0, 2}, "tree", ""), HasSubstr("algorithms: ring;"));
  // Messages go by `sends`, whatever protocols collectives have.
  EXPECT_THAT(error(COLLECTIVE_OP_SEND_RECV, {0, 2}, "", "LL"),
              AllOf(HasSubstr("prices no sendrecv"), HasSubstr("protocols: Simple")));
  EXPECT_THAT(error(COLLECTIVE_OP_SEND_RECV, {0, 2}, "", "LL"), Not(HasSubstr("LL, Simple")));
  EXPECT_EQ(CollectiveCandidates(topology, COLLECTIVE_OP_ALL_REDUCE, {0}, 1e6).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CandidatesTest, APathWithoutCollectivesHasNone) {
  const Topology topology = Hosts(2, 1, {{"communication.transport", "TRANSPORT_TCP"}});
  const absl::Status status =
      CollectiveCandidates(topology, COLLECTIVE_OP_ALL_REDUCE, Range(2), 1e6).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("network, TCP"), HasSubstr("protocols: none")));
}

// Parents in NCCL's first tree by rank, for each number of ranks. The root is 0, odd ranks are
// leaves, 2 stands over 1 and 3, 4 over 2 and 6, 8 over 4; a rank whose parent would be beyond the
// last hangs on its grandparent.
const std::map<int, std::vector<int>> kFirstTree = {
    {2, {-1, 0}},
    {3, {-1, 2, 0}},
    {4, {-1, 2, 0, 2}},
    {5, {-1, 2, 4, 2, 0}},
    {6, {-1, 2, 4, 2, 0, 4}},
    {7, {-1, 2, 4, 2, 0, 6, 4}},
    {8, {-1, 2, 4, 2, 0, 6, 4, 6}},
    {9, {-1, 2, 4, 2, 8, 6, 4, 6, 0}},
};

TEST(TreeTest, EveryRankButTheRootSendsHalfUpAndGetsHalfDownInEachOfTwoTrees) {
  constexpr double kBytes = 1e6;
  const Topology topology = Hosts(9, 1);
  for (const auto& [n, parents] : kFirstTree) {
    // The second tree is the first mirrored if n is even, shifted by one if n is odd.
    const auto second = [n = n](int rank) { return n % 2 == 0 ? n - 1 - rank : (rank + 1) % n; };
    Edges expected;
    for (int rank = 1; rank < n; ++rank) {
      for (const auto& [child, parent] :
           {std::pair(rank, parents[rank]), {second(rank), second(parents[rank])}}) {
        expected[{child, parent}] += kBytes / 2;
        expected[{parent, child}] += kBytes / 2;
      }
    }
    const CollectiveCandidate tree =
        Candidate(topology, COLLECTIVE_OP_ALL_REDUCE, Range(n), kBytes, "tree", "Simple");
    const Edges edges = EdgesOf(tree);
    EXPECT_EQ(edges, expected) << n << " ranks";

    // Two trees of n-1 edges carry half of the vector up and down: 2 (n-1) vectors, as a ring does.
    double total = 0;
    std::vector<double> sent(n, 0);
    for (const auto& [edge, bytes] : edges) {
      total += bytes;
      sent[edge.first] += bytes;
    }
    EXPECT_DOUBLE_EQ(total, 2 * (n - 1) * kBytes) << n << " ranks";
    // A rank has up to three neighbours in one tree and one in the other, of half a vector each.
    EXPECT_LE(*std::max_element(sent.begin(), sent.end()), 2 * kBytes) << n << " ranks";
  }
}

TEST(TreeTest, TakesTwiceItsDepthInSteps) {
  const Topology topology = Hosts(9, 1);
  // 8 us + 2 x ceil(log2 n) x 2 us.
  for (const auto& [n, us] : {std::pair(2, 12), {3, 16}, {4, 16}, {5, 20}, {8, 20}, {9, 24}}) {
    EXPECT_DOUBLE_EQ(
        Candidate(topology, COLLECTIVE_OP_ALL_REDUCE, Range(n), 1e6, "tree", "Simple").fixed_s,
        us * kUs)
        << n << " ranks";
  }
}

TEST(TreeTest, RanksAreThoseThatWereGiven) {
  const Topology topology = Hosts(3, 2);
  // Ranks 0, 1, 2 are GPUs 4, 0, 2: 1->2->0 is 0->2->4, and shifted by one 2->0->1 is 2->4->0.
  const CollectiveCandidate tree =
      Candidate(topology, COLLECTIVE_OP_ALL_REDUCE, {4, 0, 2}, 1e6, "tree", "Simple");
  EXPECT_EQ(EdgesOf(tree), (Edges{{{0, 2}, 0.5e6},
                                  {{2, 0}, 0.5e6},
                                  {{2, 4}, 1e6},
                                  {{4, 2}, 1e6},
                                  {{4, 0}, 0.5e6},
                                  {{0, 4}, 0.5e6}}));
}

TEST(SendRecvTest, EveryRankSendsToTheNextAtTheCostOfItsRoute) {
  const Topology topology = Hosts(2, 2);
  // 0 -> 1 inside the host at 5 us, 1 -> 2 and 2 -> 0 over the network at 20 us; the slowest
  // counts.
  const CollectiveCandidate ring =
      Candidate(topology, COLLECTIVE_OP_SEND_RECV, Range(3), 2048, "", "");
  EXPECT_DOUBLE_EQ(ring.fixed_s, 20 * kUs);
  EXPECT_EQ(EdgesOf(ring), (Edges{{{0, 1}, 2048}, {{1, 2}, 2048}, {{2, 0}, 2048}}));
}

double LoneSeconds(const Topology& topology, CollectiveOp op, const std::vector<int>& gpus,
                   double bytes) {
  const absl::StatusOr<double> seconds = LoneCollectiveSeconds(topology, op, gpus, bytes);
  EXPECT_TRUE(seconds.ok()) << seconds.status();
  return seconds.ok() ? *seconds : 0;
}

TEST(LoneCollectiveTest, FlowsShareTheSegmentsThatTheyHaveInCommon) {
  const Topology topology = Hosts(2, 2);
  const double nic = topology.route(0, 2).payload_bytes_per_s;
  // All-reduce of 1 GB over four ranks: 1.5 GB on every edge of a ring, and 0, 1 | 2, 3 crosses
  // each NIC once in each direction. (The trees put 2 GB on a NIC.) All-gather: 0.75 GB, and 0 | 2
  // | 1 | 3 goes out of host 0 twice.
  const double together_s = LoneSeconds(topology, COLLECTIVE_OP_ALL_REDUCE, {0, 1, 2, 3}, 1e9);
  EXPECT_DOUBLE_EQ(together_s, (8 + 6 * 2) * kUs + 1.5e9 / nic);
  const double torn_s = LoneSeconds(topology, COLLECTIVE_OP_ALL_GATHER, {0, 2, 1, 3}, 1e9);
  EXPECT_DOUBLE_EQ(torn_s, (8 + 3 * 2) * kUs + 2 * 0.75e9 / nic);
}

TEST(LoneCollectiveTest, TheFastestCandidateCounts) {
  const Topology topology = Hosts(9, 1);
  const double nic = topology.route(0, 1).payload_bytes_per_s;
  // 16 B over 9 ranks: ring 8 + 16 x 2 and 6 + 16 x 1 us; trees 8 + 8 x 2 and, best, 6 + 8 x 1 us.
  // Up to four half vectors, twice as long for flags, go out of one NIC.
  EXPECT_NEAR(LoneSeconds(topology, COLLECTIVE_OP_ALL_REDUCE, Range(9), 16),
              14 * kUs + 4 * 0.5 * 16 * 2 / nic, 1e-12);
  // 100 MB: bytes count, and no edge of a ring carries more than 16/9 of them; LL is not for it.
  EXPECT_DOUBLE_EQ(LoneSeconds(topology, COLLECTIVE_OP_ALL_REDUCE, Range(9), 1e8),
                   40 * kUs + 16.0 / 9 * 1e8 / nic);
}

TEST(LoneCollectiveTest, MessagesAreNoFasterThanTheirSender) {
  const Topology topology = Hosts(2, 1);
  // 13,107,200 B at 131,072 B every 10 us, as SendCost has it.
  EXPECT_DOUBLE_EQ(LoneSeconds(topology, COLLECTIVE_OP_SEND_RECV, {0, 1}, 13'107'200),
                   Send(topology, 0, 1).LoneSeconds(13'107'200));
}

TEST(LoneCollectiveTest, ErrorsAreThoseOfTheCandidates) {
  const Topology topology = Hosts(2, 1, {{"communication.transport", "TRANSPORT_TCP"}});
  EXPECT_EQ(LoneCollectiveSeconds(topology, COLLECTIVE_OP_ALL_REDUCE, {0, 1}, 1e6).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(LoneCollectiveTest, LargeAllReducesOnTrinityReachThePapers23GBPerSecond) {
  constexpr double kGib = 1 << 30;
  const double seconds =
      LoneSeconds(Bundled("trinity_200g"), COLLECTIVE_OP_ALL_REDUCE, Range(3), kGib);
  EXPECT_NEAR(kGib / seconds * BusBandwidthFactor(COLLECTIVE_OP_ALL_REDUCE, 3) / 1e9, 23.0, 0.3);
}

}  // namespace
}  // namespace fabricast
