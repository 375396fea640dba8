#include "taps.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace ssdkern {
namespace {

double sinc(double x) {
  if (x == 0) return 1;
  const double angle = 3.14159265358979323846 * x;
  return std::sin(angle) / angle;
}

double triangle(double x) { return std::max(0.0, 1 - std::abs(x)); }

double box(double x) { return x > -0.5 && x <= 0.5 ? 1 : 0; }

double cubic(double x) {  // Keys, a = -0.5
  x = std::abs(x);
  if (x >= 2) return 0;
  return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2;
}

double lanczos(double x) { return std::abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0; }

struct Filter {
  const char* name;
  double support;
  double (*weight)(double);
};

constexpr Filter kFilters[] = {
    {"bilinear", 1, triangle}, {"area", 0.5, box}, {"bicubic", 2, cubic}, {"lanczos", 3, lanczos}};

void fill_nearest(int64_t inputs, int64_t outputs, Taps& taps) {
  taps.width = 1;
  taps.count.assign(outputs, 1);
  taps.weights.assign(outputs, 1);
  taps.first.resize(outputs);
  for (int64_t i = 0; i < outputs; ++i) taps.first[i] = (2 * i + 1) * inputs / (2 * outputs);
}

void fill(int64_t inputs, int64_t outputs, const Filter& filter, Taps& taps) {
  const double scale = double(inputs) / double(outputs);
  const double stretch = std::max(scale, 1.0), support = filter.support * stretch;
  const int64_t most = 2 * int64_t(std::ceil(support)) + 2;
  std::vector<double> exact(outputs * most);
  taps.first.resize(outputs);
  taps.count.resize(outputs);
  for (int64_t i = 0; i < outputs; ++i) {
    const double centre = (double(i) + 0.5) * scale;
    int64_t first = std::max(int64_t(std::floor(centre - support)), int64_t(0));
    int64_t last = std::min(int64_t(std::ceil(centre + support)), inputs);
    double* weights = &exact[i * most];
    const auto weight = [&](int64_t j) {
      return filter.weight((double(j) + 0.5 - centre) / stretch);
    };
    while (first < last - 1 && weight(first) == 0) ++first;  // zeros only cost time
    while (first < last - 1 && weight(last - 1) == 0) --last;
    double sum = 0;
    for (int64_t j = first; j < last; ++j) sum += weights[j - first] = weight(j);
    for (int64_t j = first; j < last; ++j) weights[j - first] /= sum;
    taps.first[i] = first;
    taps.count[i] = last - first;
  }
  taps.width = *std::max_element(taps.count.begin(), taps.count.end());
  taps.weights.assign(outputs * taps.width, 0);
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t back = std::max(taps.first[i] + taps.width - inputs, int64_t(0));
    std::copy_n(&exact[i * most], taps.count[i], &taps.weights[i * taps.width + back]);
    taps.first[i] -= back;
    taps.count[i] += back;
  }
}

}  // namespace

Taps make_taps(int64_t inputs, int64_t outputs, const std::string& interpolation, bool flip) {
  Taps taps;
  if (interpolation == "nearest-exact" || inputs == outputs) {
    fill_nearest(inputs, outputs, taps);
  } else {
    const auto* filter =
        std::find_if(std::begin(kFilters), std::end(kFilters),
                     [&](const Filter& candidate) { return interpolation == candidate.name; });
    if (filter == std::end(kFilters))
      throw std::invalid_argument(
          "want interpolation of bilinear, area, nearest-exact, bicubic, lanczos, got " +
          interpolation);
    fill(inputs, outputs, *filter, taps);
  }
  if (flip) {
    std::reverse(taps.first.begin(), taps.first.end());
    std::reverse(taps.count.begin(), taps.count.end());
    for (int64_t i = 0, j = outputs - 1; i < j; ++i, --j)
      std::swap_ranges(&taps.weights[i * taps.width], &taps.weights[i * taps.width] + taps.width,
                       &taps.weights[j * taps.width]);
  }
  return taps;
}

}  // namespace ssdkern
