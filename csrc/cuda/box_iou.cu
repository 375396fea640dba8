// IoU of every pair of boxes: a thread keeps kColumns columns in registers and walks down the rows.
#include "overlap.cuh"
#include "reduce.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 128, kColumns = 4, kRows = 8, kGradThreads = 256;

// Tiles of one or more thread rows of `width` threads, `width` a power of two.
struct Tiles {
  int64_t across, down;
  int width;

  Tiles(int64_t n, int64_t m) : width(1) {
    while (width < kThreads && width * kColumns < m) width *= 2;
    across = ceil_div(m, width * kColumns);
    down = ceil_div(n, kThreads / width * kRows);
  }
};

template <typename S>
__global__ void __launch_bounds__(kThreads)
    box_iou_kernel(const S* boxes1, const S* boxes2, int64_t n, int64_t m, Tiles tiles, S* out) {
  const int64_t across = blockIdx.x % tiles.across, rest = blockIdx.x / tiles.across;
  const int64_t down = rest % tiles.down, list = rest / tiles.down;
  const int width = tiles.width, height = kThreads / width;
  const int64_t first = across * width * kColumns + threadIdx.x % width;
  Box<S> columns[kColumns];
  S areas[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    columns[i] = load_box<S>(boxes2, list * m + min(first + i * width, m - 1));
    areas[i] = area(columns[i]);
  }
  const int64_t end = min(n, (down + 1) * height * kRows), step = height * m;
  int64_t row = down * height * kRows + threadIdx.x / width;
  const int left = int(min(m - first, int64_t(kColumns) * width));
  for (S* to = out + (list * n + row) * m + first; row < end; row += height, to += step) {
    const Box<S> box = load_box<S>(boxes1, list * n + row);
    const S box_area = area(box);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const S inter = overlap(box, columns[i]), joint = box_area + areas[i] - inter;
      S value = 0;  // as mostly, without a division
      if (!(inter == 0 && joint > 0)) value = inter / joint;
      if (i * width < left) to[i * width] = value;
    }
  }
}

// Of two equal coordinates, minimum and maximum give each half of the gradient; clamp passes none
// at its bound.
template <typename S>
__device__ S share(S mine, S other) {
  return mine > other ? S(1) : mine == other ? S(0.5) : S(0);
}

// Adds the gradient of iou(a, b) in a.
template <typename S>
__device__ void add_gradient(const Box<S>& a, const Box<S>& b, S grad, Box<S>& sum) {
  const S dx = fmin(a.x2, b.x2) - fmax(a.x1, b.x1), dy = fmin(a.y2, b.y2) - fmax(a.y1, b.y1);
  const S w = fmax(dx, S(0)), h = fmax(dy, S(0)), inter = w * h;
  const S joint = area(a) + area(b) - inter;
  grad /= joint;  // not over its square, which leaves the range of float before this does
  const S by_area = -grad * (inter / joint), by_inter = grad - by_area;
  const S by_w = dx > 0 ? by_inter * h : S(0), by_h = dy > 0 ? by_inter * w : S(0);
  const S width = a.x2 - a.x1, height = a.y2 - a.y1;
  sum.x1 -= by_w * share(a.x1, b.x1) + by_area * height;
  sum.y1 -= by_h * share(a.y1, b.y1) + by_area * width;
  sum.x2 += by_w * share(b.x2, a.x2) + by_area * height;
  sum.y2 += by_h * share(b.y2, a.y2) + by_area * width;
}

// A block for each box: `steps` leads from one gradient of a box to the next, and of a list's
// boxes to the next box.
template <typename S>
__global__ void __launch_bounds__(kGradThreads)
    box_iou_backward_kernel(const S* grad, const S* boxes, const S* others, int64_t count,
                            int64_t other_count, int64_t box_step, int64_t other_step, S* out) {
  __shared__ S parts[kGradThreads / 32];
  const int64_t list = blockIdx.x / count, i = blockIdx.x % count;
  const Box<S> box = load_box<S>(boxes, blockIdx.x);
  const S* const from = grad + list * count * other_count + i * box_step;
  Box<S> sum = {S(0), S(0), S(0), S(0)};
  for (int64_t j = threadIdx.x; j < other_count; j += kGradThreads)
    add_gradient(box, load_box<S>(others, list * other_count + j), from[j * other_step], sum);
  sum = {block_sum(sum.x1, parts), block_sum(sum.y1, parts), block_sum(sum.x2, parts),
         block_sum(sum.y2, parts)};
  if (threadIdx.x == 0) store_box(out, blockIdx.x, sum);
}

}  // namespace

Tensor box_iou_cuda(const Tensor& boxes1, const Tensor& boxes2) {
  check_device(boxes1, boxes2);
  check_pair(boxes1, boxes2);
  const int64_t lists = boxes1.size(0), n = boxes1.size(1), m = boxes2.size(1);
  const ScalarType type = compute_type(boxes1, boxes2);
  const Tensor a = packed(boxes1, type), b = packed(boxes2, type);
  Tensor out = torch::stable::new_empty(a, {lists, n, m});
  if (out.numel() == 0) return out;
  const Stream stream(a);
  const Tiles tiles(n, m);
  with_compute(type, [&](auto kind) {
    using S = decltype(kind);
    stream.launch<box_iou_kernel<S>>(lists * tiles.across * tiles.down, kThreads, 0, data<S>(a),
                                     data<S>(b), n, m, tiles, data<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> box_iou_backward_cuda(const Tensor& grad, const Tensor& boxes1,
                                                 const Tensor& boxes2) {
  check_device(boxes1, boxes2, grad);
  check_pair(boxes1, boxes2);
  const int64_t lists = boxes1.size(0), n = boxes1.size(1), m = boxes2.size(1);
  check_floats(grad, "grad", {lists, n, m});
  const ScalarType type = compute_type(boxes1, boxes2);
  const Tensor g = as(grad, type), a = packed(boxes1, type), b = packed(boxes2, type);
  Tensor grad1 = torch::stable::new_empty(a, a.sizes());
  Tensor grad2 = torch::stable::new_empty(b, b.sizes());
  const Stream stream(a);
  with_compute(type, [&](auto kind) {
    using S = decltype(kind);
    if (lists * n > 0)
      stream.launch<box_iou_backward_kernel<S>>(lists * n, kGradThreads, 0, data<S>(g), data<S>(a),
                                                data<S>(b), n, m, m, int64_t(1), data<S>(grad1));
    if (lists * m > 0)
      stream.launch<box_iou_backward_kernel<S>>(lists * m, kGradThreads, 0, data<S>(g), data<S>(b),
                                                data<S>(a), m, n, int64_t(1), m, data<S>(grad2));
  });
  return {grad1, grad2};
}

SSDKERN_CUDA_IMPL(m) {
  m.impl("box_iou", TORCH_BOX(&box_iou_cuda));
  m.impl("box_iou_backward", TORCH_BOX(&box_iou_backward_cuda));
}

}  // namespace ssdkern
