// Products on the matrix unit. One order for any number of rows: tiles of 32 inputs (64 of bytes) one after the other, each added to
// sums of 16 by 16; one row is the first row of a tile of which no others are loaded.
//
// Tiles of weights are strips as they are packed (bfloat16 pairs, quads of bytes), or are widened into scratch first.
// With more than 16 rows, two tiles of inputs meet two of weights, four products for four loads. Sums are stored and loaded
// again only every few blocks of inputs, so many as a pair of strips and 32 rows of inputs fit in the first caches.
#include <cstdint>

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

enum class TileKind { bf16, i8, u8 };

template <TileKind kind, int Sum, int Inputs, int Weights>
inline void tile_add_one() {
  if constexpr (kind == TileKind::bf16)
    tile_add_bf16<Sum, Inputs, Weights>();
  else if constexpr (kind == TileKind::i8)
    tile_add_i8<Sum, Inputs, Weights>();
  else
    tile_add_u8<Sum, Inputs, Weights>();
}

// Tiles of weights of some blocks of inputs.
struct TileRun {
  const uint8_t* data;     // first block, first strip
  int64_t block_bytes;     // from block to block
  int64_t strip_bytes;     // from strip to strip, in whole blocks; `last_strip_bytes` in the last one
  int64_t last_strip_bytes;
  int blocks;
  int tiles;               // tiles of a strip of a whole block; `last_tiles` of the last one
  int last_tiles;
  int tile_bytes;          // of weights; inputs of a tile take a sixteenth of it in each row
  int64_t ahead;           // bytes to what is read next, 0: nothing to fetch

  int tiles_of(int block) const { return block == blocks - 1 ? last_tiles : tiles; }
  int64_t strip_of(int block) const { return block == blocks - 1 ? last_strip_bytes : strip_bytes; }
};

inline void fetch_tile(const uint8_t* from, int bytes) {
  for (int i = 0; i < bytes; i += 64) prefetch(from + i);
}

// Up to 16 rows with four strips. The tiles must be configured for the rows. sums: row stride kUnitFloats.
template <TileKind kind>
inline void few_rows(const TileRun& run, const uint8_t* x, int64_t row_bytes, uint8_t* sums, bool start) {
  if (start) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  } else {
    tile_load<0>(sums, kUnitFloats), tile_load<1>(sums + 64, kUnitFloats);
    tile_load<2>(sums + 128, kUnitFloats), tile_load<3>(sums + 192, kUnitFloats);
  }
  const int input_bytes = run.tile_bytes / 16;
  for (int b = 0; b < run.blocks; ++b) {
    const uint8_t* block = run.data + b * run.block_bytes;
    const int64_t strip = run.strip_of(b);
    const int count = run.tiles_of(b);
    // Strip after strip, as they lie in memory; the inputs come from the first-level cache four times.
    const auto strip_of_weights = [&](auto index) {
      constexpr int s = decltype(index)::value;
      const uint8_t* tile = block + s * strip;
      for (int t = 0; t < count; ++t, tile += run.tile_bytes) {
        if (run.ahead) fetch_tile(tile + run.ahead, run.tile_bytes);
        tile_load<4>(x + t * input_bytes, row_bytes);
        tile_load<6>(tile, 64);
        tile_add_one<kind, s, 4, 6>();
      }
    };
    strip_of_weights(std::integral_constant<int, 0>());
    strip_of_weights(std::integral_constant<int, 1>());
    strip_of_weights(std::integral_constant<int, 2>());
    strip_of_weights(std::integral_constant<int, 3>());
    x += count * input_bytes;
  }
  tile_store<0>(sums, kUnitFloats), tile_store<1>(sums + 64, kUnitFloats);
  tile_store<2>(sums + 128, kUnitFloats), tile_store<3>(sums + 192, kUnitFloats);
}

// 17 to 32 rows with two strips, from strip `first` on.
template <TileKind kind>
inline void many_rows(const TileRun& run, int first, const uint8_t* x, int64_t row_bytes, uint8_t* sums, bool start) {
  uint8_t* upper = sums + first * 64;
  uint8_t* lower = upper + 16 * kUnitFloats;
  if (start) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  } else {
    tile_load<0>(upper, kUnitFloats), tile_load<1>(upper + 64, kUnitFloats);
    tile_load<2>(lower, kUnitFloats), tile_load<3>(lower + 64, kUnitFloats);
  }
  const int input_bytes = run.tile_bytes / 16;
  for (int b = 0; b < run.blocks; ++b) {
    const int64_t strip = run.strip_of(b);
    const uint8_t* tile = run.data + b * run.block_bytes + first * strip;
    const int count = run.tiles_of(b);
    for (int t = 0; t < count; ++t, tile += run.tile_bytes, x += input_bytes) {
      tile_load<4>(x, row_bytes);
      tile_load<6>(tile, 64);
      tile_load<5>(x + 16 * row_bytes, row_bytes);
      tile_load<7>(tile + strip, 64);
      tile_add_one<kind, 0, 4, 6>();
      tile_add_one<kind, 1, 4, 7>();
      tile_add_one<kind, 2, 5, 6>();
      tile_add_one<kind, 3, 5, 7>();
    }
  }
  tile_store<0>(upper, kUnitFloats), tile_store<1>(upper + 64, kUnitFloats);
  tile_store<2>(lower, kUnitFloats), tile_store<3>(lower + 64, kUnitFloats);
}

// All rows with all strips of some blocks. `last`: what the tiles were configured for, kept between calls of one product.
template <TileKind kind>
inline void multiply_tiles(const TileRun& run, const uint8_t* x, int64_t row_bytes, int64_t rows, float* sums, bool start,
                           int& last) {
  const int input_bytes = run.tile_bytes / 16;
  const auto configure = [&](int first, int second) {
    const int wanted = (first * 32 + second) * 128 + input_bytes;
    if (wanted == last) return;
    tile_configure(tile_config(first, second, input_bytes));
    last = wanted;
  };
  int64_t row = 0;
  const auto pair_of_strips = [&](int first) {
    for (row = 0; rows - row > 16; row += 32) {
      configure(16, int(smaller(16, rows - row - 16)));
      many_rows<kind>(run, first, x + row * row_bytes, row_bytes, reinterpret_cast<uint8_t*>(sums + row * kUnit), start);
    }
  };
  pair_of_strips(0);
  pair_of_strips(2);
  if (row < rows) {
    configure(int(rows - row), 0);
    few_rows<kind>(run, x + row * row_bytes, row_bytes, reinterpret_cast<uint8_t*>(sums + row * kUnit), start);
  }
}

// Blocks whose sums stay in tiles: 512 inputs.
constexpr int kTileBlocks = 4;

inline int64_t tile_scratch_bytes(Method method) {
  switch (method) {
    case Method::i8_tile: return kTileBlocks * kBlock * kUnit * 2;
    case Method::i4_tile: return kBlock * kUnit * 2;
    case Method::i4_dot_tile: return kBlock * kUnit;
    default: return 0;
  }
}

// sums [rows][kUnit] of one unit; `scratch` of tile_scratch_bytes, and for 4-bit matrices `group` [rows][kUnit] for the sums of a
// group. The lines that 8-bit integer products leave in `sums` are integers.
inline void multiply_unit_tiles(const MatrixShape& shape, Method method, const Layout& layout, const uint8_t* unit,
                                const uint8_t* prepared, int64_t row_bytes, int64_t rows, float* sums, uint8_t* scratch,
                                float* group, int& last) {
  const bool fetch = rows <= 32;
  if (method == Method::bf16_tile || method == Method::i8_dot_tile) {
    const bool narrow = method == Method::i8_dot_tile;
    const int64_t weight = narrow ? 1 : 2, inputs_of_tile = narrow ? 64 : 32;
    for (int64_t b = 0; b < layout.blocks; b += kTileBlocks) {
      const int count = int(smaller(kTileBlocks, layout.blocks - b));
      const int64_t end = b + count - 1;
      TileRun run;
      run.data = unit + layout.offset(b);
      run.block_bytes = layout.block_bytes;
      run.strip_bytes = layout.strip_bytes(b);
      run.last_strip_bytes = layout.strip_bytes(end);
      run.blocks = count;
      run.tile_bytes = 1024;
      run.tiles = int(layout.block / inputs_of_tile);
      run.last_tiles = int(run.last_strip_bytes / 1024);
      run.ahead = fetch ? layout.block_bytes : 0;
      const uint8_t* x = prepared + (narrow ? 64 : 0) + b * layout.block * weight;
      if (narrow)
        multiply_tiles<TileKind::i8>(run, x, row_bytes, rows, sums, b == 0, last);
      else
        multiply_tiles<TileKind::bf16>(run, x, row_bytes, rows, sums, b == 0, last);
    }
    return;
  }
  if (method == Method::i8_tile) {
    for (int64_t b = 0; b < layout.blocks; b += kTileBlocks) {
      const int count = int(smaller(kTileBlocks, layout.blocks - b));
      const int64_t wide_block = 2 * layout.block_bytes;
      for (int i = 0; i < count; ++i) {
        const uint8_t* from = unit + layout.offset(b + i);
        const int64_t lines = kStrips * layout.strip_bytes(b + i) / 32;
        for (int64_t line = 0; line < lines; ++line) {
          if (fetch && line % 2 == 0) prefetch(from + layout.block_bytes + line * 32);
          pairs_to_bf16(from + line * 32, scratch + i * wide_block + line * 64);
        }
      }
      const int64_t end = b + count - 1;
      TileRun run;
      run.data = scratch;
      run.block_bytes = wide_block;
      run.strip_bytes = 2 * layout.strip_bytes(b);
      run.last_strip_bytes = 2 * layout.strip_bytes(end);
      run.blocks = count;
      run.tile_bytes = 1024;
      run.tiles = int(layout.block / 32);
      run.last_tiles = int(run.last_strip_bytes / 1024);
      run.ahead = 0;
      multiply_tiles<TileKind::bf16>(run, prepared + b * layout.block * 2, row_bytes, rows, sums, b == 0, last);
    }
    return;
  }
  // 4 bits: group by group.
  const bool dots = method == Method::i4_dot_tile;
  const int64_t groups_bytes = layout.blocks * int64_t(sizeof(BlockOfRow));
  const int64_t words = layout.block / 8;  // lines of 16 words of a strip
  for (int64_t b = 0; b < layout.blocks; ++b) {
    const uint8_t* data = unit + layout.offset(b);
    const Scales scales = {data, layout.scales};
    const int8_t* zeros = shape.zero_points ? reinterpret_cast<const int8_t*>(data + layout.scales_bytes) : nullptr;
    const int64_t strip = layout.strip_bytes(b);
    for (int s = 0; s < kStrips; ++s) {
      const uint8_t* from = data + layout.block_head + s * strip;
      const NibbleOffsets offsets = nibble_offsets(zeros ? zeros + s * kStrip : nullptr);
      for (int64_t line = 0; line < words; ++line) {
        if (fetch) prefetch(from + layout.block_bytes + line * 64);
        if (dots)
          nibbles_to_bytes(from + line * 64, scratch + (s * words + line) * 128);
        else
          nibbles_to_bf16(from + line * 64, offsets, scratch + (s * words + line) * 256);
      }
    }
    TileRun run;
    run.data = scratch;
    run.block_bytes = 0;
    run.strip_bytes = run.last_strip_bytes = words * (dots ? 128 : 256);
    run.blocks = 1;
    run.tile_bytes = dots && layout.block == 32 ? 512 : 1024;
    run.tiles = run.last_tiles = int(run.strip_bytes / run.tile_bytes);
    run.ahead = 0;
    if (dots)
      multiply_tiles<TileKind::u8>(run, prepared + groups_bytes + b * layout.block, row_bytes, rows, group, true, last);
    else
      multiply_tiles<TileKind::bf16>(run, prepared + b * layout.block * 2, row_bytes, rows, group, true, last);
    for (int64_t row = 0; row < rows; ++row) {
      BlockOfRow of_row = {1.f, 0};
      if (dots) std::memcpy(&of_row, prepared + row * row_bytes + b * int64_t(sizeof of_row), sizeof of_row);
      for (int j = 0; j < kUnit; j += Vec::N) {
        const float* found = group + row * kUnit + j;
        float* to = sums + row * kUnit + j;
        const Vec before = b ? Vec::load(to) : Vec::zero();
        if (dots) {
          const Vec zero = zeros ? Vec::load_i8(zeros + j) : Vec::set(8.f);
          const Vec sum = Integers::load(reinterpret_cast<const int32_t*>(found)).floats();
          const Vec term = sum - zero * Vec::set(float(of_row.sum));
          Vec::fma(term, scales.load(j) * Vec::set(of_row.scale), before).store(to);
        } else {
          Vec::fma(Vec::load(found), scales.load(j), before).store(to);
        }
      }
    }
  }
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
