#include "render.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "taps.h"

namespace ssdkern {

// One output row's constants and its scratch.
struct RowJob {
  int64_t stride;    // bytes from one source row to the next
  int64_t channels;  // bytes from one source pixel to the next: 3 or 4
  int64_t inputs;    // source pixels in a row
  int64_t padded;    // output pixels, up to whole registers
  const Taps* columns;
  Distortion distortion;
  float* blended;   // [inputs, channels] and a float more
  float* planes;    // [3, padded]
  uint8_t* levels;  // [3, padded]
};

}  // namespace ssdkern

#define SSDKERN_LOOPS "host/render_rows.h"
#include "../isa.h"

namespace py = pybind11;

namespace ssdkern {
namespace {

std::string text(const Rectangle& r) {
  std::string out = "(";
  for (int i = 0; i < 4; ++i) out += (i ? ", " : "") + std::to_string(r[i]);
  return out + ")";
}

void check_inside(const Rectangle& r, int64_t width, int64_t height, const char* name) {
  if (r[0] >= 0 && r[1] >= 0 && r[0] < r[2] && r[1] < r[3] && r[2] <= width && r[3] <= height)
    return;
  throw std::invalid_argument(std::string("want ") + name + " with pixels inside " +
                              std::to_string(width) + "x" + std::to_string(height) + ", got " +
                              text(r));
}

void check_pixels(const py::array_t<uint8_t>& pixels) {
  if (pixels.ndim() != 3 || (pixels.shape(2) != 3 && pixels.shape(2) != 4))
    throw std::invalid_argument("want pixels [H, W, 3] or [H, W, 4], got " +
                                std::string(py::str(py::tuple(pixels.attr("shape")))));
  if (pixels.strides(2) != 1 || pixels.strides(1) != pixels.shape(2) || pixels.strides(0) < 0)
    throw std::invalid_argument("want rows of pixels without gaps, got strides " +
                                std::string(py::str(py::tuple(pixels.attr("strides")))));
}

void paint(uint8_t* out, int64_t size, const Rectangle& target,
           const std::array<uint8_t, 3>& fill) {
  if (target == Rectangle{0, 0, size, size}) return;
  for (int c = 0; c < 3; ++c) std::memset(out + c * size * size, fill[c], size * size);
}

}  // namespace

py::array_t<uint8_t> render(const py::array_t<uint8_t>& pixels, const Rectangle& source,
                            const Rectangle& target, int64_t size, const std::string& interpolation,
                            const std::array<float, 5>& distortion,
                            const std::array<bool, 2>& flips, const std::array<uint8_t, 3>& fill) {
  if (size < 1) throw std::invalid_argument("want size of at least 1, got " + std::to_string(size));
  check_pixels(pixels);
  check_inside(source, pixels.shape(1), pixels.shape(0), "source");
  check_inside(target, size, size, "target");
  if (!(std::abs(distortion[3]) <= 1))
    throw std::invalid_argument("want turn from -1 to 1, got " + std::to_string(distortion[3]));

  py::array_t<uint8_t> result({int64_t{3}, size, size});
  uint8_t* out = result.mutable_data();
  const int64_t stride = pixels.strides(0), channels = pixels.shape(2);
  const uint8_t* corner = pixels.data() + source[1] * stride + source[0] * channels;
  const auto render_row = SSDKERN_PICK(render_row);
  {
    py::gil_scoped_release release;
    Rectangle place = target;
    if (flips[0]) place[0] = size - target[2], place[2] = size - target[0];
    if (flips[1]) place[1] = size - target[3], place[3] = size - target[1];
    paint(out, size, place, fill);
    const int64_t inputs = source[2] - source[0], outputs = place[2] - place[0];
    const int64_t height = place[3] - place[1], padded = (outputs + 15) / 16 * 16;
    Taps columns = make_taps(inputs, outputs, interpolation, flips[0]);
    const Taps rows = make_taps(source[3] - source[1], height, interpolation, flips[1]);
    columns.first.resize(padded);
    columns.weights.resize(padded * columns.width);
    std::vector<float> blended(inputs * channels + 1), planes(padded * 3);
    std::vector<uint8_t> levels(padded * 3);
    const RowJob job = {
        stride,         channels,
        inputs,         padded,
        &columns,       {distortion[0], distortion[1], distortion[2], distortion[3], distortion[4]},
        blended.data(), planes.data(),
        levels.data()};
    for (int64_t y = 0; y < height; ++y) {
      render_row(job, corner + rows.first[y] * stride, &rows.weights[y * rows.width],
                 rows.count[y]);
      for (int c = 0; c < 3; ++c)
        std::memcpy(out + (c * size + place[1] + y) * size + place[0], &levels[c * padded],
                    outputs);
    }
  }
  return result;
}

}  // namespace ssdkern
