// Tables are computed in double precision with the angle reduced modulo the length in integers, and rounded once: their
// error does not grow with the length.
#include "fourier_mixing/cpu_plan.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <list>
#include <mutex>
#include <numbers>
#include <utility>
#include <vector>

namespace encoders_fast {
namespace {

using Complex = std::complex<double>;

// Serving text meets every length up to some hundreds; beyond that many, tables (20 bytes an entry) are made anew.
constexpr size_t plans_kept = 256;

Complex root_of_unity(int64_t numerator, int64_t denominator) {
  return std::polar(1.0, -2.0 * std::numbers::pi * double(numerator % denominator) / double(denominator));
}

// As few passes over the sequence as radices up to 16 allow, of about equal size. Large ones first: they touch the whole
// sequence, later ones a cached part of it. Radix 16 only where all of it is in the first-level cache: in longer sequences
// its lines are a power of two apart and share the sets of a cache with eight ways (4096 tokens: 683 us with 16, 16, 16
// and 431 with 8, 8, 8, 8, on one 2.6 GHz Zen 4 core). Empty where a prime factor above 7 is left.
std::vector<int32_t> radices(int64_t length) {
  const bool cached = length <= 128;
  const int most = cached ? 4 : 3;
  int doublings = 0;
  for (; length % 2 == 0; length /= 2) doublings++;
  std::vector<int32_t> found;
  const auto split_odd = [&] {
    for (int32_t radix : {7, 5, 3})
      for (; length % radix == 0; length /= radix) found.push_back(radix);
  };
  if (cached) split_odd();  // they leave fewer entries with a twiddle than a large radix does
  for (int passes = (doublings + most - 1) / most; passes > 0; passes--) {
    const int now = (doublings + passes - 1) / passes;
    found.push_back(1 << now);
    doublings -= now;
  }
  split_odd();
  if (length != 1) found.clear();
  return found;
}

bool smooth(int64_t length) {
  for (int64_t prime : {2, 3, 5, 7})
    while (length % prime == 0) length /= prime;
  return length == 1;
}

struct OwnedPlan : Plan {
  std::vector<float> tables;
  std::vector<int32_t> positions;
  std::shared_ptr<const Plan> inner;

  explicit OwnedPlan(int64_t n) : Plan{} {
    length = n;
    positions.resize(n);
    if (smooth(n)) split();
    else convolve();
    position = positions.data();
  }

 private:
  void add(Complex value) {
    tables.push_back(float(value.real()));
    tables.push_back(float(value.imag()));
  }

  void split() {
    std::vector<size_t> offsets;
    int64_t rest = length;
    for (int32_t radix : radices(length)) {
      stages[stage_count++] = {radix, int32_t(rest), nullptr};
      offsets.push_back(tables.size());
      const int64_t part = rest / radix;
      for (int64_t j = 0; j < part && part > 1; j++)
        for (int32_t k = 1; k < radix; k++) add(root_of_unity(j * k, rest));
      rest = part;
    }
    for (int32_t i = 0; i < stage_count; i++) stages[i].twiddles = tables.data() + offsets[i];
    for (int64_t k = 0; k < length; k++) {
      int64_t digits = k, place = 0;
      for (int32_t i = 0; i < stage_count; i++) {
        place += digits % stages[i].radix * (stages[i].length / stages[i].radix);
        digits /= stages[i].radix;
      }
      positions[k] = int32_t(place);
    }
  }

  void convolve() {
    int64_t longer = 2 * length - 1;
    while (!smooth(longer)) longer++;
    inner = plan_for(longer);
    convolution = inner.get();
    for (int64_t k = 0; k < length; k++) positions[k] = int32_t(k);
    const auto square = [this](int64_t n) { return n * n % (2 * length); };
    for (int64_t n = 0; n < length; n++) add(root_of_unity(square(n), 2 * length));
    std::vector<Complex> response_of(longer);
    for (int64_t n = 0; n < length; n++)
      response_of[n] = response_of[(longer - n) % longer] = std::conj(root_of_unity(square(n), 2 * length)) / double(longer);
    for (Complex value : transformed(response_of)) add(value);
    chirp = tables.data();
    response = tables.data() + 2 * length;
  }

  // A plain recursive transform in double precision, radix by radix: once per plan.
  static std::vector<Complex> transformed(const std::vector<Complex>& x) {
    const int64_t n = int64_t(x.size());
    if (n == 1) return x;
    const int64_t radix = radices(n).back(), part = n / radix;
    std::vector<Complex> y(n), digits(part);
    std::vector<std::vector<Complex>> parts;
    for (int64_t r = 0; r < radix; r++) {
      for (int64_t j = 0; j < part; j++) digits[j] = x[j * radix + r];
      parts.push_back(transformed(digits));
    }
    for (int64_t k = 0; k < n; k++)
      for (int64_t r = 0; r < radix; r++) y[k] += parts[r][k % part] * root_of_unity(r * k, n);
    return y;
  }
};

struct OwnedLanePlan : LanePlan {
  OwnedLanePlan(int64_t of_width, int64_t of_lanes)
      : LanePlan{of_width, of_lanes, plan_for(of_width / of_lanes), {}} {
    const int64_t tiles = (part->length + lanes - 1) / lanes;
    storage.resize((tiles * lanes * lanes * 2 + 15) / 16);
    float* to = storage.data()->floats;
    for (int64_t tile = 0; tile < tiles; tile++)
      for (int64_t l = 0; l < lanes; l++, to += 2 * lanes)
        for (int64_t lane = 0; lane < lanes; lane++) {
          const Complex root = root_of_unity(l * (tile * lanes + lane), width);
          to[lane] = float(root.real());
          to[lanes + lane] = float(root.imag());
        }
  }
};

// The most recently used values, first the latest.
template <typename Value>
class Recent {
 public:
  template <typename Matches, typename Make>
  std::shared_ptr<const Value> get(Matches matches, Make make) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = std::find_if(values_.begin(), values_.end(), [&](const auto& value) { return matches(*value); });
      if (found != values_.end()) {
        values_.splice(values_.begin(), values_, found);
        return values_.front();
      }
    }
    std::shared_ptr<const Value> made = make();  // may ask for another: not under the lock
    const std::lock_guard lock(mutex_);
    values_.push_front(made);
    if (values_.size() > plans_kept) values_.pop_back();
    return made;
  }

 private:
  std::mutex mutex_;
  std::list<std::shared_ptr<const Value>> values_;
};

}  // namespace

std::shared_ptr<const Plan> plan_for(int64_t length) {
  static Recent<Plan> recent;
  return recent.get([&](const Plan& plan) { return plan.length == length; },
                    [&] { return std::make_shared<OwnedPlan>(length); });
}

std::shared_ptr<const LanePlan> lane_plan_for(int64_t width, int64_t lanes) {
  static Recent<LanePlan> recent;
  return recent.get([&](const LanePlan& plan) { return plan.width == width && plan.lanes == lanes; },
                    [&] { return std::make_shared<OwnedLanePlan>(width, lanes); });
}

}  // namespace encoders_fast
