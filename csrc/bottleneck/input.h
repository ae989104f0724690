// A layer in front of its attention, on one tile of rows. For .cpp files.
#pragma once

#include "bottleneck/tiles.h"

namespace encoders_fast::bottleneck {

struct Input {
  struct Memory { float* sums; char *operand, *narrow; };

  const char* h;
  char *q, *k, *v, *u0;  // u0 is null where there is no bottleneck
  int64_t H, D, A;
  bool shared, from_bottleneck;
  Product wide, narrow;
  const Vectors* vectors;
  const std::vector<double>* eps;
  Storage storage;
  Gather* gather;
  Normalized* normalize;
  Activated* store;

  int64_t narrow_outputs() const { return from_bottleneck ? 3 : shared ? 2 : 0; }
  int64_t wide_panels() const { return panels_of(D) * ((u0 != nullptr) + shared) + panels_of(A) * (3 - narrow_outputs()); }

  void lay_out(Parts& parts, Memory& memory) const {
    const int64_t panels = std::max(wide_panels(), panels_of(A) * narrow_outputs());
    memory.sums = parts.take<float>(most_rows * panels * panel_columns * 4);
    memory.operand = parts.take(most_rows * operand_width(H, wide.operand) * bytes_of(wide.operand));
    memory.narrow = parts.take(most_rows * operand_width(D, wide.operand) * bytes_of(wide.operand));
  }

  // Norm i, whose sums begin at `sums`; beside rows of u0 it gives an operand, or that alone.
  void norm(int64_t i, Tile tile, float* sums, int64_t stride, char* operand, char* rows) const {
    normalize({sums, stride, vectors->bias(3 + i), vectors->weight(i), vectors->shift(i), float((*eps)[i]), tile.count, D,
               nullptr, tile.first, nullptr, nullptr, nullptr, nullptr, operand, operand_width(D, wide.operand), rows});
  }

  void run(Tile tile, const Memory& m) const {
    gather(h + tile.first * H * bytes_of(storage), tile.count, H, m.operand, operand_width(H, wide.operand));
    int64_t panels = wide_panels(), stride = panels * panel_columns;
    wide(tile, m.operand, 0, panels, m.sums, stride);
    float* sums = m.sums;
    if (u0) {
      norm(0, tile, sums, stride, from_bottleneck ? m.narrow : nullptr, u0 + tile.first * D * bytes_of(storage));
      sums += padded(D);
    }
    if (shared) {
      norm(1, tile, sums, stride, m.narrow, nullptr);
      sums += padded(D);
    }
    outputs(narrow_outputs(), 3, tile, sums, stride);
    if (!narrow_outputs()) return;
    panels = panels_of(A) * narrow_outputs(), stride = panels * panel_columns;
    narrow(tile, m.narrow, 0, panels, m.sums, stride);
    outputs(0, narrow_outputs(), tile, m.sums, stride);
  }

  // Those of q, k and v from `begin` to `end`.
  void outputs(int64_t begin, int64_t end, Tile tile, const float* sums, int64_t stride) const {
    for (int64_t i = begin; i < end; i++, sums += padded(A))
      store({sums, stride, vectors->bias(i), tile.count, A, (i == 0 ? q : i == 1 ? k : v) + tile.first * A * bytes_of(storage), A});
  }
};

}  // namespace encoders_fast::bottleneck
