#include <stdexcept>

#include "render.h"

namespace py = pybind11;

namespace ssdkern {
namespace {

// The Arrow C data interface, whose layout is fixed for good.
struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void** buffers;
  ArrowArray** children;
  ArrowArray* dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};

}  // namespace

py::array_t<uint8_t> arrow_pixels(const py::capsule& array, int64_t height, int64_t width) {
  if (array.name() == nullptr || std::string(array.name()) != "arrow_array")
    throw std::invalid_argument("want a capsule named arrow_array, got another");
  const auto* pixels = array.get_pointer<ArrowArray>();
  const bool listed = pixels->release != nullptr && pixels->n_children == 1 &&
                      pixels->length == height * width && pixels->offset == 0;
  const ArrowArray* levels = listed ? pixels->children[0] : nullptr;
  if (levels == nullptr || levels->length != 4 * height * width || levels->n_buffers != 2 ||
      levels->offset != 0)
    throw std::invalid_argument("want an array of " + std::to_string(height * width) +
                                " pixels of four bytes, got another");
  // the capsule owns the memory: as base of the array it lives as long as that
  py::array_t<uint8_t> view({height, width, int64_t{4}},
                            static_cast<const uint8_t*>(levels->buffers[1]), array);
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

}  // namespace ssdkern
