// Keys and values of bfloat16 in pairs: which of the loops takes which rows, and the copies that they read.
//
// Queries are rounded to bfloat16, and so are weights, of which the rounded ones are summed. Few rows read the cache's own blocks.
// More read keys there and a copy of the values; both are copied where blocks or heads are no whole vectors.
//
// On the matrix unit a row goes through tiles where it sees all of a piece, however few rows do, and else through vectors: the
// unit adds in another order (even dimensions and odd ones by themselves, 32 at a time), so that nothing but what the row itself
// sees may choose. There both keys and values are copied, as tiles read them.
#pragma once
#include "attention_pair_tiles.inl"
#include "attention_piece.inl"

#if defined(ARMILLARY_PAIRED_ATTENTION)

namespace armillary {
namespace ARMILLARY_PATH {

// Calls rows(begin, end, tiles) for all rows that see anything, in order, neighbours on the same way together.
template <class Rows>
inline void Pieces::each_span(const Rows& rows) const {
  for (int begin = 0; begin < rows_;) {
    const bool seen = first(begin) < last(begin), tiles = on_tiles(begin);
    int end = whole_ ? rows_ : begin + 1;
    while (end < rows_ && (first(end) < last(end)) == seen && on_tiles(end) == tiles) ++end;
    if (seen) rows(begin, end, tiles);
    begin = end;
  }
}

// Visible keys as panels of 16 positions, one a line of pairs of dimensions, filled up with zeros to the desk's width.
inline void Pieces::copy_keys_paired() {
  const int64_t panel_bytes = desk_.width / 2 * kLine;
  uint8_t* copy = reinterpret_cast<uint8_t*>(desk_.keys);
  if (blocks_in_panels()) {
    const int used = dim_ / 2 * kLine;
    for (int i = 0; i < run_count_; ++i) {
      const int32_t offset = places_[i].offset, shift = runs_[i].first - offset;
      for (int32_t at = offset / kPanel * kPanel; at < offset + runs_[i].count; at += kPanel) {
        uint8_t* to = copy + (at + shift) / kPanel * panel_bytes;
        const uint8_t* from = places_[i].keys + layout_.key_at(at, 0) * 2;
        const uint8_t* soon = runs_[i].ahead + int64_t(at - offset) * dim_ * 2;
        for (int byte = 0; byte < used; byte += kLine) {
          if (few()) __builtin_prefetch(soon + byte, 0, 2);
          std::memcpy(to + byte, from + byte, kLine);
        }
        std::memset(to + used, 0, size_t(panel_bytes - used));
      }
    }
    return;
  }
  uint16_t* numbers = reinterpret_cast<uint16_t*>(copy);
  for (int i = 0; i < run_count_; ++i)
    for (int32_t n = 0; n < runs_[i].count; ++n) {
      const int32_t at = runs_[i].first + n;
      const uint16_t* keys = reinterpret_cast<const uint16_t*>(places_[i].keys);
      uint16_t* to = numbers + at / kPanel * panel_bytes / 2 + at % kPanel * 2;
      for (int d = 0; d < desk_.width; ++d)
        to[d / 2 * kLine / 2 + d % 2] = d < dim_ ? keys[layout_.key_at(places_[i].offset + n, d)] : 0;
    }
}

// Visible values as strips of one vector of dimensions, a line a pair of positions, filled up with strips of zeros.
inline void Pieces::copy_values_paired() {
  uint8_t* copy = reinterpret_cast<uint8_t*>(desk_.values);
  constexpr int kUnitDims = kOnTiles ? 64 : 32;
  const int dims = (dim_ + kUnitDims - 1) / kUnitDims * kUnitDims;
  if (layout_.paired) {
    const int used = dim_ * 4;
    for (int i = 0; i < run_count_; ++i) {
      const int32_t begin = places_[i].offset / 2, end = (places_[i].offset + runs_[i].count + 1) / 2;
      for (int32_t pair = begin; pair < end; ++pair) {
        const uint8_t* from = places_[i].values + int64_t(pair) * used;
        const uint8_t* soon = places_[i].ahead + int64_t(pair - begin) * used;
        uint8_t* to = copy + (runs_[i].first / 2 + pair - begin) * kLine;
        int byte = 0;
        for (; byte + kLine <= used; byte += kLine, to += kStripBytes) {
          if (few()) __builtin_prefetch(soon + byte, 0, 2);
          std::memcpy(to, from + byte, kLine);
        }
        for (; byte < dims * 4; byte += kLine, to += kStripBytes) {
          std::memset(to, 0, kLine);
          if (byte < used) std::memcpy(to, from + byte, size_t(used - byte));
        }
      }
    }
    return;
  }
  for (int i = 0; i < run_count_; ++i)
    for (int32_t n = 0; n < runs_[i].count; ++n) {
      const int32_t at = runs_[i].first + n;
      const uint16_t* values = reinterpret_cast<const uint16_t*>(places_[i].values);
      for (int d = 0; d < dims; ++d) {
        uint16_t* strip = reinterpret_cast<uint16_t*>(copy + d / Vec::N * kStripBytes);
        strip[(at / 2 * Vec::N + d % Vec::N) * 2 + at % 2] = d < dim_ ? values[layout_.value_at(places_[i].offset + n, d)] : 0;
      }
    }
}

// The panels that hold visible keys, of the cache or of the copy; how many.
inline int Pieces::find_panels(KeyPanel* panels) const {
  int count = 0;
  if (kOnTiles || !blocks_in_panels()) {
    const uint8_t* copy = reinterpret_cast<const uint8_t*>(desk_.keys);
    for (int from = low_ / kPanel * kPanel; from < high_; from += kPanel, ++count) {
      const uint8_t* keys = copy + from / kPanel * (desk_.width / 2 * kLine);
      panels[count] = {keys, keys, from};
    }
    return count;
  }
  for (int i = 0; i < run_count_; ++i) {
    const int32_t offset = places_[i].offset;
    for (int32_t at = offset / kPanel * kPanel; at < offset + runs_[i].count; at += kPanel)
      panels[count++] = {places_[i].keys + layout_.key_at(at, 0) * 2, places_[i].values + layout_.value_at(at, 0) * 2,
                         runs_[i].first - offset + at};
  }
  return count;
}

// Scores of rows [begin, end) against the panels, up to Most rows by Wide panels at a time.
template <int Most, int Wide, bool Fetch>
inline void Pieces::score_span(int begin, int end, const KeyPanel* panels, int count) const {
  const uint16_t* queries = reinterpret_cast<const uint16_t*>(desk_.query);
  for (int p = 0; p < count;) {
    int taken = 1;
    with_count<Wide>(count - p, [&](auto wide) {
      constexpr int W = decltype(wide)::value == 3 ? 2 : decltype(wide)::value;
      taken = W;
      const int from = panels[p].place, to = panels[p + W - 1].place + kPanel;
      for (int row = begin; row < end; row += Most)
        if (sees(row, row + Most < end ? row + Most : end, from, to))
          with_count<Most>(end - row, [&](auto rows) {
            score_panels_paired<decltype(rows)::value, W, Fetch>(queries + row * desk_.width, desk_.width, panels + p,
                                                                 (dim_ + 1) / 2, desk_.scores + row * kPiece);
          });
    });
    p += taken;
  }
}

inline void Pieces::weigh_up_pairs(const Next& next) {
  if (kOnTiles || !blocks_in_panels()) copy_keys_paired();
  KeyPanel panels[kPiece / kPanel];
  const int count = find_panels(panels);
  each_span([&](int begin, int end, bool tiles) {
#if defined(ARMILLARY_TILES)
    if (tiles) return multiply_on_tiles(begin, end, desk_.query, desk_.width, desk_.keys, int(desk_.width / 32));
#endif
    if (direct_)
      score_span<kDirectRows, 4, true>(begin, end, panels, count);
    else
      score_span<kPairedRows, 2, false>(begin, end, panels, count);
  });
  const float factor = shape_.scale * kBase2;
  const ScoreRules rules = {shape_.softcap, nullptr};
  const auto soften = [&](auto whole, auto plain) {
    for (int r = 0; r < rows_; ++r) {
      // What comes next is fetched a little at a time, as fast as memory gives it while this is computed.
      if (!few()) fetch(next, kPiece * r / rows_, kPiece * (r + 1) / rows_);
      desk_.piece_total[r] = soften_paired<decltype(whole)::value == 1, decltype(plain)::value == 1>(
          desk_.scores + r * kPiece, first(r), last(r), factor, rules, desk_.piece_top[r], weights_of(r));
    }
  };
  if (shape_.softcap > 0)
    whole_ ? soften(Count<1>(), Count<0>()) : soften(Count<0>(), Count<0>());
  else
    whole_ ? soften(Count<1>(), Count<1>()) : soften(Count<0>(), Count<1>());
}

// Sums from the blocks themselves, for few rows, of vectors from `column` on while there are W of them.
template <int W>
inline void Pieces::sum_blocks(const Target& target, const PairRun* runs, int& column) const {
  const int passes = (dim_ / Vec::N - column) / W;
  if (!passes) return;
  each_tile<kDirectRows>(target, 0, rows_, [&](auto rows, int row, const Sight& sight, const Target& to) {
    weigh_paired<decltype(rows)::value, W, false>(weights_of(row), runs, dim_ * 4, column, passes, sight, to);
  });
  column += passes * W;
}

inline void Pieces::sum_pairs(const Target& target) {
  PairRun runs[kPiece];
  if (direct_) {
    for (int i = 0; i < run_count_; ++i) {
      const int32_t begin = places_[i].offset / 2, end = (places_[i].offset + runs_[i].count + 1) / 2;
      runs[i] = {places_[i].values + int64_t(begin) * dim_ * 4, runs_[i].first / 2, end - begin, runs_[i].ahead};
    }
    int column = 0;
    sum_blocks<4>(target, runs, column);
    sum_blocks<2>(target, runs, column);
    return sum_blocks<1>(target, runs, column);
  }
  copy_values_paired();
  const uint8_t* copy = reinterpret_cast<const uint8_t*>(desk_.values);
  runs[0] = {copy, 0, kPiece / 2, copy};
  each_span([&](int begin, int end, bool tiles) {
#if defined(ARMILLARY_TILES)
    if (tiles) return sum_on_tiles(begin, end, target);
#endif
    for (int column = 0; column * Vec::N < dim_; column += 2)
      each_tile<kPairedRows>(target, begin, end, [&](auto rows, int row, const Sight& sight, const Target& to) {
        weigh_paired<decltype(rows)::value, 2, true>(weights_of(row), runs, kLine, column, 1, sight, to);
      });
  });
}

#if defined(ARMILLARY_TILES)

// products [rows][kPiece], into the desk's scores, of rows [begin, end) of bfloat16, `width` numbers apart, with four strips of
// `tiles` tiles of pairs.
inline void Pieces::multiply_on_tiles(int begin, int end, const void* rows, int64_t width, const void* strips, int tiles) {
  packed::TileRun run;
  run.data = static_cast<const uint8_t*>(strips);
  run.block_bytes = 0;
  run.blocks = 1;
  run.tile_bytes = 1024;
  run.tiles = run.last_tiles = tiles;
  run.strip_bytes = run.last_strip_bytes = int64_t(tiles) * run.tile_bytes;
  run.ahead = 0;
  packed::multiply_tiles<packed::TileKind::bf16>(run, static_cast<const uint8_t*>(rows) + begin * width * 2, width * 2,
                                                 end - begin, desk_.scores + begin * kPiece, true, configured_);
}

// Sums of rows that see all of the piece, 64 dimensions at a time, by way of the scores, which nobody needs any more.
inline void Pieces::sum_on_tiles(int begin, int end, const Target& target) {
  const uint8_t* copy = reinterpret_cast<const uint8_t*>(desk_.values);
  for (int column = 0; column < dim_; column += packed::kUnit) {
    multiply_on_tiles(begin, end, desk_.weights, kPiece, copy + column / Vec::N * kStripBytes, kPiece / 32);
    for (int r = begin; r < end; ++r)
      for (int at = column; at < desk_.width && at < column + packed::kUnit; at += 2 * Vec::N) {
        const float* from = desk_.scores + r * kPiece + at - column;
        Vec sums[1][2] = {{Vec::load(from), Vec::load(from + Vec::N)}};
        put<Element::f32, 1, 2>(sums, row_of(target, r), at);
      }
  }
}

#endif

}  // namespace ARMILLARY_PATH
}  // namespace armillary

#endif
