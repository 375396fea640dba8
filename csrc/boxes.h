// Box geometry, one formula for CPU and CUDA. Boxes are xyxy.
#pragma once

#ifdef __CUDACC__
#define SSDKERN_HD __host__ __device__ inline
#else
#define SSDKERN_HD inline
#endif

namespace ssdkern {

constexpr double kMinSize = 1e-8;  // widths and heights count as this at least in coding

// What offsets are divided by when boxes are encoded.
struct Variances {
  double center, size;
};

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

template <typename T>
SSDKERN_HD T area(const Box<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

template <typename T>
SSDKERN_HD T positive(T value) {
  return value > T(0) ? value : (value != value ? value : T(0));
}

template <typename T>
SSDKERN_HD T intersection(const Box<T>& a, const Box<T>& b) {
  const T x1 = a.x1 < b.x1 ? b.x1 : a.x1;
  const T y1 = a.y1 < b.y1 ? b.y1 : a.y1;
  const T x2 = a.x2 < b.x2 ? a.x2 : b.x2;
  const T y2 = a.y2 < b.y2 ? a.y2 : b.y2;
  return positive(x2 - x1) * positive(y2 - y1);
}

template <typename T>
SSDKERN_HD T iou(T inter, T area_a, T area_b) {
  return inter / (area_a + area_b - inter);
}

}  // namespace ssdkern
