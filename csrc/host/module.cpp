#include "find_crops.h"
#include "match_detections.h"
#include "render.h"

namespace py = pybind11;

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side loops of data loading and evaluation: NumPy in and out, no torch.";
  m.def("match_detections", &ssdkern::match_detections, py::arg("boxes"), py::arg("offsets"),
        py::arg("gt_boxes"), py::arg("gt_ignore"), py::arg("gt_offsets"), py::arg("iou_threshold"),
        py::arg("plus_one"),
        "See ssdkern.metrics.match_detections. Returns (outcome int8 [D], matched int64 [D]).");
  m.def("find_crops", &ssdkern::find_crops, py::arg("boxes"), py::arg("draws"),
        py::arg("min_scale"), "See ssdkern.data.crops.find_crops_numpy.");
  m.def("render", &ssdkern::render, py::arg("pixels").noconvert(), py::arg("source"),
        py::arg("target"), py::arg("size"), py::arg("interpolation"), py::arg("distortion"),
        py::arg("flips"), py::arg("fill"),
        "See ssdkern.data.render.render. Pixels are uint8 [H, W, 3] or [H, W, 4].");
  m.def("arrow_pixels", &ssdkern::arrow_pixels, py::arg("array"), py::arg("height"),
        py::arg("width"), "The memory behind an Arrow array of pixels, uint8 [H, W, 4].");
}
