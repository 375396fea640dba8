// IoU of every pair of boxes: each row of the matrix in tiles, 16 columns at a time.
#include "tensors.h"
#define SSDKERN_KERNELS "box_iou.h"
#include "isa.h"

namespace ssdkern {
namespace {

constexpr int64_t kTile = 8192;    // columns: 160 KB of boxes stay in the second-level cache
constexpr int64_t kGrain = 32768;  // pairs that are worth a thread

template <typename S>
void fill_matrix(const S* rows, const S* boxes, int64_t n, int64_t m, S* out) {
  const auto run = SSDKERN_PICK(box_iou_row<S>);
  const Columns<S> columns(boxes, m);
  const int64_t tiles = ceil_div(m, kTile), grain = std::max<int64_t>(1, kGrain * tiles / m);
  torch::stable::parallel_for(0, n * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / tiles, from = task % tiles * kTile;
      run(rows + 4 * row, columns, from, std::min(m, from + kTile), out + row * m);
    }
  });
}

template <typename S>
void fill_grads(const S* grad, const S* rows, const S* boxes, int64_t n, int64_t m, S* grad1,
                S* grad2) {
  const auto by_row = SSDKERN_PICK(box_iou_row_backward<S>);
  const auto by_column = SSDKERN_PICK(box_iou_columns_backward<S>);
  const Columns<S> columns(boxes, m, {0, 0, 1, 1});  // with gradient 0, so nothing is added
  torch::stable::parallel_for(0, n, ceil_div(kGrain, m + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      by_row(rows + 4 * i, columns, grad + i * m, grad1 + 4 * i);
  });
  const int64_t blocks = ceil_div(m, 16);
  torch::stable::parallel_for(0, blocks, ceil_div(kGrain, 16 * n + 1), [&](int64_t b, int64_t e) {
    for (int64_t block = b; block < e; ++block)
      by_column(rows, n, columns, 16 * block, grad, grad2);
  });
}

}  // namespace

Tensor box_iou_cpu(const Tensor& boxes1, const Tensor& boxes2) {
  check_pair(boxes1, boxes2);
  const int64_t images = boxes1.size(0), n = boxes1.size(1), m = boxes2.size(1);
  const ScalarType type = compute_type(boxes1, boxes2);
  const Tensor a = as(boxes1, type), b = as(boxes2, type);
  Tensor out = torch::stable::new_empty(a, {images, n, m});
  if (out.numel() == 0) return out;
  with_compute(type, [&](auto kind) {
    using S = decltype(kind);
    for (int64_t i = 0; i < images; ++i)
      fill_matrix(data<S>(a) + 4 * i * n, data<S>(b) + 4 * i * m, n, m, data<S>(out) + i * n * m);
  });
  return out;
}

std::tuple<Tensor, Tensor> box_iou_backward_cpu(const Tensor& grad, const Tensor& boxes1,
                                                const Tensor& boxes2) {
  check_pair(boxes1, boxes2);
  const int64_t images = boxes1.size(0), n = boxes1.size(1), m = boxes2.size(1);
  check_floats(grad, "grad", {images, n, m});
  const ScalarType type = compute_type(boxes1, boxes2);
  const Tensor g = as(grad, type), a = as(boxes1, type), b = as(boxes2, type);
  Tensor grad1 = torch::stable::new_zeros(a, a.sizes());
  Tensor grad2 = torch::stable::new_zeros(b, b.sizes());
  if (g.numel() == 0) return {grad1, grad2};
  with_compute(type, [&](auto kind) {
    using S = decltype(kind);
    for (int64_t i = 0; i < images; ++i)
      fill_grads(data<S>(g) + i * n * m, data<S>(a) + 4 * i * n, data<S>(b) + 4 * i * m, n, m,
                 data<S>(grad1) + 4 * i * n, data<S>(grad2) + 4 * i * m);
  });
  return {grad1, grad2};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def("box_iou(Tensor boxes1, Tensor boxes2) -> Tensor");
  m.def("box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) {
  m.impl("box_iou", TORCH_BOX(&box_iou_cpu));
  m.impl("box_iou_backward", TORCH_BOX(&box_iou_backward_cpu));
}

}  // namespace ssdkern
