#include "match_detections.h"

namespace py = pybind11;

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side loops of data loading and evaluation: NumPy in and out, no torch.";
  m.def("match_detections", &ssdkern::match_detections, py::arg("boxes"), py::arg("offsets"),
        py::arg("gt_boxes"), py::arg("gt_ignore"), py::arg("gt_offsets"), py::arg("iou_threshold"),
        py::arg("plus_one"),
        "See ssdkern.metrics.match_detections. Returns (outcome int8 [D], matched int64 [D]).");
}
