// Where a block of Int4Matrix (int4_matrix.h) keeps the q, s and z of each of its 128 x 128
// weights, as arithmetic. For the CPU and, in .cu files, the GPU.
#ifndef FABRICAST_KERNELS_INT4_INT4_BLOCK_H_
#define FABRICAST_KERNELS_INT4_INT4_BLOCK_H_

namespace fabricast {

// Byte offsets in a block.
inline constexpr int kInt4ScalesAt = 8192;
inline constexpr int kInt4ZerosAt = kInt4ScalesAt + 256;
inline constexpr int kInt4UnusedAt = kInt4ZerosAt + 64;

// A weight as a tensor core's A fragments see it.
struct Int4FragmentPlace {
  int tile;          // m16 tile, 0 ... 7
  int fragment_row;  // 0 ... 15
  int step;          // k16 step, 0 ... 7
  int quad;          // lane % 4
  int value;         // 0 ... 3: the first and second half of a0 (a1 for fragment rows of 8 and
                     // more), then those of a2 (a3)
};

constexpr int Int4Row(int tile, int fragment_row) {
  return 32 * (tile / 2) + 4 * (fragment_row % 8) + 2 * (tile % 2) + fragment_row / 8;
}
constexpr int Int4Input(int step, int quad, int value) {
  return 32 * (step / 2) + 8 * quad + 4 * (step % 2) + value;
}
// The inverse of both.
constexpr Int4FragmentPlace Int4PlaceOf(int row, int input) {
  return {.tile = row / 32 * 2 + row / 2 % 2,
          .fragment_row = row / 4 % 8 + row % 2 * 8,
          .step = input / 32 * 2 + input / 4 % 2,
          .quad = input / 8 % 4,
          .value = input % 4};
}

// A nibble: 4 bits from `shift` on of the 32-bit little-endian word at byte `at` of a block.
struct Int4Nibble {
  int at;
  int shift;
};

constexpr Int4Nibble Int4QuantAt(int row, int input) {
  const Int4FragmentPlace place = Int4PlaceOf(row, input);
  const int lane = 4 * (place.fragment_row % 8) + place.quad;
  return {.at = ((place.tile * 2 + place.step / 4) * 32 + lane) * 16 + place.step % 4 * 4,
          .shift = 8 * (place.fragment_row / 8) + 4 * (place.value / 2) + 16 * (place.value % 2)};
}
constexpr Int4Nibble Int4ZeroAt(int row) {
  const Int4FragmentPlace place = Int4PlaceOf(row, 0);
  return {.at = kInt4ZerosAt + place.tile / 4 * 32 + place.fragment_row % 8 * 4,
          .shift = 4 * (place.tile % 4) + 16 * (place.fragment_row / 8)};
}
// The byte of an FP16 scale.
constexpr int Int4ScaleAt(int row) {
  const Int4FragmentPlace place = Int4PlaceOf(row, 0);
  return kInt4ScalesAt + place.tile / 4 * 128 + place.fragment_row % 8 * 16 + place.tile % 4 * 4 +
         place.fragment_row / 8 * 2;
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_INT4_BLOCK_H_
