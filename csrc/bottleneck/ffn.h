// A layer behind its attention, on one tile of rows. For .cpp files.
#pragma once

#include <optional>

#include "bottleneck/tiles.h"
#include "common/cpu/draw.h"

namespace encoders_fast::bottleneck {

struct Ffn {
  struct Memory { float *sums, *stream, *room; char *attention, *operand, *hidden; };

  const char *attention, *u0, *h;  // h is null where there is no bottleneck
  char* y;
  int64_t H, D, A, F, blocks;
  Product output, expand, contract;
  const Vectors* vectors;
  const std::vector<double>* eps;
  std::optional<Dropout> at_attention, at_end;
  Storage storage;
  Gather *gather, *widen;
  Activated* activate;
  Normalized* normalize;

  int64_t operand_bytes(int64_t width) const { return operand_width(width, output.operand) * bytes_of(output.operand); }
  int64_t row_bytes() const { return bytes_of(storage); }

  void lay_out(Parts& parts, Memory& m) const {
    m.sums = parts.take<float>(most_rows * std::max(padded(D), padded(H)) * 4);
    m.stream = parts.take<float>(most_rows * padded(D) * 4);
    m.room = parts.take<float>((2 * std::max(D, H) + 128) * 4);
    m.attention = parts.take(most_rows * operand_bytes(A));
    m.operand = parts.take(most_rows * operand_bytes(D));
    m.hidden = parts.take(most_rows * operand_bytes(F));
  }

  void run(Tile tile, const Memory& m) const {
    gather(attention + tile.first * A * row_bytes(), tile.count, A, m.attention, operand_width(A, output.operand));
    widen(u0 + tile.first * D * row_bytes(), tile.count, D, m.stream, padded(D));
    output(tile, m.attention, 0, panels_of(D), m.sums, padded(D));
    narrow_norm(0, tile, m);
    for (int64_t block = 1; block <= blocks; block++) {
      hidden(block, tile, m);
      contract(tile, m.hidden, (block - 1) * panels_of(D), panels_of(D), m.sums, padded(D));
      narrow_norm(block, tile, m);
    }
    if (!h) return;
    expand(tile, m.operand, blocks * panels_of(F), panels_of(H), m.sums, padded(H));
    const int64_t at = tile.first * H * row_bytes();
    normalize({m.sums, padded(H), vectors->bias(2 * blocks + 1), vectors->weight(blocks + 1), vectors->shift(blocks + 1),
               float((*eps)[blocks + 1]), tile.count, H, at_end ? &*at_end : nullptr, tile.first, m.room, nullptr, h + at, nullptr,
               nullptr, 0, y + at});
  }

  // A panel of sums at a time: it is activated while it is in the first-level cache.
  void hidden(int64_t block, Tile tile, const Memory& m) const {
    const int64_t width = operand_width(F, output.operand), first = (block - 1) * panels_of(F);
    for (int64_t i = 0; i < panels_of(F); i++) {
      const int64_t panel = tile.in_turn(i, panels_of(F)), column = panel * panel_columns;
      expand(tile, m.operand, first + panel, 1, m.sums, panel_columns);
      activate({m.sums, panel_columns, vectors->bias(2 * block - 1) + column, tile.count, std::min(panel_columns, width - column),
                m.hidden + column * bytes_of(output.operand), width});
    }
  }

  // u = N_i(dropout(sums + bias) + u): the stream and its operand, or where it is the layer's result, that.
  void narrow_norm(int64_t i, Tile tile, const Memory& m) const {
    const bool last = !h && i == blocks;
    const std::optional<Dropout>& dropout = i == 0 ? at_attention : at_end;
    normalize({m.sums, padded(D), vectors->bias(2 * i), vectors->weight(i), vectors->shift(i), float((*eps)[i]), tile.count, D,
               !h && (i == 0 || last) && dropout ? &*dropout : nullptr, tile.first, m.room, m.stream, nullptr,
               last ? nullptr : m.stream, last ? nullptr : m.operand, operand_width(D, output.operand),
               last ? y + tile.first * D * row_bytes() : nullptr});
  }
};

}  // namespace encoders_fast::bottleneck
