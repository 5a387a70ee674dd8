// What a link carries: its raw rate, and what packet headers leave of it for messages.
#ifndef FABRICAST_TOPOLOGY_LINK_RATES_H_
#define FABRICAST_TOPOLOGY_LINK_RATES_H_

namespace fabricast {

// Bytes a second of a rate in bits: 200 Gbps = 25e9 bytes/s.
inline constexpr double BytesPerSecond(double gbps) { return gbps * 1e9 / 8; }

// Share of an Ethernet link that is left for the payload of RoCE v2 packets. A packet with a
// payload of the path MTU costs 82 bytes more on the wire: preamble 8 + Ethernet 14 + IPv4 20 + UDP
// 8 + base transport header 12 + invariant CRC 4 + frame check 4 + gap 12. (The first packet of a
// message has 16 more for the RDMA header; left out.)
//   4096: 0.9804    1024: 0.9259
// NCCL's all-reduce over one 200 Gbps NIC is published as 23.0 to 24.0 GB/s of 25: path MTU 1024
// allows 23.15, 4096 allows 24.5.
inline constexpr double RocePayloadShare(int path_mtu_bytes) {
  return path_mtu_bytes / (path_mtu_bytes + 82.0);
}

// Share that is left for the payload of TCP segments in packets of `mtu_bytes`: IPv4 20, TCP 20 and
// its timestamps 12 go off the packet, and preamble 8 + Ethernet 14 + frame check 4 + gap 12 come
// to it.
//   9000: 8948 / 9038 = 0.9900, 198 of 200 Gbps, what the paper measured
//   1500: 1448 / 1538 = 0.9415
inline constexpr double TcpPayloadShare(int mtu_bytes) {
  return (mtu_bytes - 52.0) / (mtu_bytes + 38.0);
}

// Raw rate of a PCIe link in one direction after line coding: transfers a second x lanes x 8/10
// (generations 1 and 2), 128/130 (3 to 5) or 242/256 (6: the part of a FLIT that is neither CRC nor
// error correction).
//   generation 4 x16: 31.5 GB/s    5 x16: 63.0 GB/s    6 x16: 121.0 GB/s
double PcieBytesPerSecond(int generation, int lanes);

// Share of a PCIe link that is left for the payload of write packets of 256 bytes, the size that
// hosts usually set: framing and sequence number 4 + header with 64-bit address 16 + link CRC 4.
//   256 / 280 = 0.914: generation 5 x16 carries 57.6 GB/s. Measured between RTX PRO 6000s: 53
//   to 56.6 GB/s; flow control and gaps take the rest, which is left to calibration.
inline constexpr double kPciePayloadShare = 256.0 / (256.0 + 24.0);

// Share of NVLink's nominal rate that a copy reaches. Measured: peer copies between H200s, 348 of
// 450 GB/s.
inline constexpr double kNvlinkPayloadShare = 348.0 / 450.0;

// Host memory is written by one side and read by the other: each byte that is staged crosses its
// interface twice.
inline constexpr double kStagingMemoryShare = 0.5;

// Latencies of the hardware inside a host, without software. RTX PRO 6000 over PCIe 5, kernel
// writes with peer access on: 0.36 to 0.45 us measured; the upper end.
inline constexpr double kPciePeerLatencySeconds = 0.45e-6;
// Assumed: two PCIe traversals, into host memory and out of it.
inline constexpr double kHostMemoryLatencySeconds = 2 * kPciePeerLatencySeconds;
// Assumed: between two processors of one host, cores that read what others wrote.
inline constexpr double kProcessorLatencySeconds = 0.1e-6;
// Assumed: NVLink through NVSwitch, of the order of PCIe's.
inline constexpr double kNvlinkLatencySeconds = 0.5e-6;

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_LINK_RATES_H_
