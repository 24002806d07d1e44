// Rows of activations as kernels read them: in words of 32 bits, of which one is broadcast at a time.
//
// A word is an input in float32, or the inputs that an integer product takes at once. Rows are shared out over tiles of nearly
// equal size, and of a tile the words of all its rows for one place lie next to each other: rows that are a power of two apart
// would compete for the same few lines of the first-level cache.
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

constexpr int kMostRows = 6;  // of one tile: with 16 (eight lanes) or 64 outputs (sixteen) their sums fill the registers

// Calls run(integral_constant<rows>) for 1 to kMostRows rows.
template <class Run>
inline void with_rows(int rows, const Run& run) {
  switch (rows) {
    case 1: run(std::integral_constant<int, 1>()); break;
    case 2: run(std::integral_constant<int, 2>()); break;
    case 3: run(std::integral_constant<int, 3>()); break;
    case 4: run(std::integral_constant<int, 4>()); break;
    case 5: run(std::integral_constant<int, 5>()); break;
    default: run(std::integral_constant<int, kMostRows>()); break;
  }
}

struct RowTiles {
  int64_t rows;
  int64_t count;

  explicit RowTiles(int64_t rows) : rows(rows), count((rows + kMostRows - 1) / kMostRows) {}
  // Less than a whole tile: rows that wait for the memory. Others reuse what was read and widened for one strip.
  bool few() const { return rows < kMostRows; }
  // The first row of tile `t`; of t = count the number of rows.
  int64_t first(int64_t t) const { return t * rows / count; }
};

// Fetches a share of what is read after the strips that tiles of rows are meeting: before tile `t` its share of `bytes`.
inline void fetch_ahead(const RowTiles& tiles, int64_t t, const uint8_t* data, int64_t bytes) {
  const int64_t lines = bytes / 64;
  for (int64_t i = t * lines / tiles.count; i < (t + 1) * lines / tiles.count; ++i) prefetch(data + i * 64);
}

// words: of one row. stride: bytes from row to row. to [rows * words].
inline void pack_words(const RowTiles& tiles, const uint8_t* from, int64_t stride, int64_t words, uint32_t* to) {
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t first = tiles.first(t);
    with_rows(int(tiles.first(t + 1) - first), [&](auto rows) {
      constexpr int R = decltype(rows)::value;
      const uint8_t* row[R];
      for (int r = 0; r < R; ++r) row[r] = from + (first + r) * stride;
      uint32_t* place = to + first * words;
      for (int64_t i = 0; i < words; ++i)
        for (int r = 0; r < R; ++r) std::memcpy(place + i * R + r, row[r] + 4 * i, 4);
    });
  }
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
