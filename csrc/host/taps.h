// Which input pixels one output pixel is made of, along one axis.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ssdkern {

struct Taps {
  int64_t width;               // weights of one output
  std::vector<int64_t> first;  // [outputs] first input; there are `width` from there on
  std::vector<int64_t> count;  // [outputs] how many of them weigh anything, those after do not
  std::vector<float> weights;  // [outputs, width], their sum is one
};

// From `inputs` pixels to `outputs`, antialiased where there are fewer; `flip` mirrors the outputs.
// The names and filters are those of torch.nn.functional.interpolate.
Taps make_taps(int64_t inputs, int64_t outputs, const std::string& interpolation, bool flip);

}  // namespace ssdkern
