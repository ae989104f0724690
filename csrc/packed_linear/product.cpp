#include "packed_linear/product.h"

#include <sys/mman.h>

#include <algorithm>
#include <optional>

namespace encoders_fast::packed_linear {
namespace {

// From here on the C library maps every block anew, whatever else the process does, and each 4 KB of it fault: 170 GFLOP/s
// where large pages give 204 for (4096, 768, 3072) in float32. With that mapping the advice to use them goes too, and they
// take no memory that the matrix does not fill.
constexpr uintptr_t mapped_bytes = 32 << 20;

// Where a panel's columns belong.
struct Place {
  const Output* output;
  int64_t column;
};

std::vector<Place> places_of(const std::vector<Output>& outputs) {
  std::vector<Place> places;
  for (const Output& output : outputs)
    for (int64_t column = 0; column < output.columns; column += tile_columns) places.push_back({&output, column});
  return places;
}

}  // namespace

torch::stable::Tensor new_matrix(const torch::stable::Tensor& like, int64_t M, int64_t N) {
  torch::stable::Tensor y = torch::stable::new_empty(like, {M, N});
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t bytes = M * N * bytes_of(storage_of(like, "packed_linear"));
  if (bytes >= mapped_bytes) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(y.mutable_data_ptr()), begin = (at + page - 1) / page * page;
    madvise(reinterpret_cast<void*>(begin), (at + bytes) / page * page - begin, MADV_HUGEPAGE);
  }
#endif
  return y;
}

// A kernel is generated at the first call of each shape in each thread (50 us), so there are few: 64, 32 and 16 rows, and
// what is left comes with rows above it that are computed once more. Only a whole product of less than 16 rows has its own.
std::vector<Rows> row_tiles(int64_t M) {
  std::vector<Rows> tiles;
  int64_t row = 0;
  for (int64_t count : {64, 32, 16})
    for (; row + count <= M; row += count) tiles.push_back({row, count, row});
  if (row < M) tiles.push_back(M < 16 ? Rows{0, M, 0} : Rows{M - 16, 16, row});
  return tiles;
}

int64_t Product::panel_bytes() const {
  int64_t terms = 0;
  for (const Factor& factor : factors) terms += factor.terms;
  return terms * tile_columns * bytes_of(storage);
}

void Product::tile(Rows rows, const Output& output, int64_t column, const char* panel, float* sums) const {
  const bool vnni = storage == Storage::bfloat16;
  const int64_t bytes = bytes_of(storage);
  bool add = false;
  for (const Factor& factor : factors) {
    const int64_t step = depth(storage, factor.terms);
    for (int64_t k = 0; k < factor.terms; k += step, add = true)
      (vnni ? brgemm_bfloat16 : brgemm_float32)(
          rows.count, tile_columns, std::min(step, factor.terms - k), factor.stride, tile_columns, tile_columns, add,
          factor.a + (rows.first * factor.stride + k) * bytes, panel + k * tile_columns * bytes, sums, vnni);
    panel += factor.terms * tile_columns * bytes;
  }
  const int64_t at = (rows.wanted * output.columns + column) * bytes;
  finish({sums + (rows.wanted - rows.first) * tile_columns, output.bias + column,
          output.residual ? output.residual + at : nullptr, output.y + at, output.columns,
          rows.first + rows.count - rows.wanted, std::min(tile_columns, output.columns - column)});
}

void Product::run(const torch::stable::Tensor& like) const {
  const std::vector<Rows> tiles = row_tiles(M);
  const std::vector<Place> places = places_of(outputs);
  const int64_t down = tiles.size(), panels = places.size(), items = down * panels, bytes = panel_bytes();
  const int64_t workers = std::min(items, workers_for_elements(M * panels * tile_columns * 4));
  const int64_t group = std::clamp<int64_t>(panel_group_bytes / bytes, 1, std::max<int64_t>(1, panels / workers));
  std::optional<torch::stable::Tensor> memory;  // a tensor costs 2 us
  if (!packed) memory = floats(like, workers * group * bytes / 4);
  char* const scratch = packed ? nullptr : static_cast<char*>(memory->mutable_data_ptr());
  on_each_worker(workers, [&](int64_t worker) {
    alignas(64) float sums[64 * tile_columns];
    char* const own = scratch + worker * group * bytes;
    int64_t packed_group = -1;
    for (int64_t item = items * worker / workers; item < items * (worker + 1) / workers; item++) {
      const int64_t g = item / (group * down), first = g * group, wide = std::min(group, panels - first);
      const int64_t within = item - first * down, panel = first + within % wide;
      if (!packed && g != packed_group) {
        for (int64_t p = 0; p < wide; p++) pack(first + p, own + p * bytes);
        packed_group = g;
      }
      const char* b = packed ? packed + panel * bytes : own + (panel - first) * bytes;
      tile(tiles[within / wide], *places[panel].output, places[panel].column, b, sums);
    }
    brgemm_release(storage == Storage::bfloat16);
  });
}

}  // namespace encoders_fast::packed_linear
