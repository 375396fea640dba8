// Greedy non-maximum suppression of one set: each box, in order of score, against the kept list.
#include "kept.h"
#include "order.h"
#include "suppress.h"
#include "tensors.h"
#define SSDKERN_KERNELS "nms.h"
#include "isa.h"

namespace ssdkern {

template <typename S>
Kept<S> suppress(const Columns<S>& boxes, double iou_threshold, int64_t most) {
  // Against a kept list of this length a block is tested in parallel, then resolved within itself:
  // half a millisecond of work, where starting threads costs tens of microseconds.
  constexpr int64_t kLong = 2048, kBlock = 512, kGrain = 32;
  const auto mark = SSDKERN_PICK(mark_covered<S>);
  const auto keep = SSDKERN_PICK(keep_uncovered<S>);
  const S limit = limit_of<S>(iou_threshold);
  Kept<S> kept(std::min(most, boxes.count));
  bool covered[kBlock];
  for (int64_t block = 0; block < boxes.count && kept.count < most; block += kBlock) {
    const int64_t end = std::min(block + kBlock, boxes.count), before = kept.count;
    if (before < kLong) {
      keep(boxes, block, end, nullptr, 0, limit, most, kept);
      continue;
    }
    torch::stable::parallel_for(block, end, kGrain, [&](int64_t from, int64_t to) {
      mark(boxes, from, to, kept, limit, covered + from - block);
    });
    keep(boxes, block, end, covered, before, limit, most, kept);
  }
  return kept;
}

template Kept<float> suppress(const Columns<float>&, double, int64_t);
template Kept<double> suppress(const Columns<double>&, double, int64_t);

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_scored(boxes, scores, INT32_MAX);
  return with_compute(compute_type(boxes, scores), [&](auto kind) {
    using S = decltype(kind);
    const Tensor corners = as(boxes, scalar_type_of<S>()), rank = as(scores, scalar_type_of<S>());
    const auto keys = sorted_keys(data<S>(rank), rank.size(0));
    const auto kept = suppress(gather<S>(data<S>(corners), keys), iou_threshold, keys.size());
    Tensor out = torch::stable::new_empty(boxes, {kept.count}, ScalarType::Long);
    for (int64_t i = 0; i < kept.count; ++i)
      data<int64_t>(out)[i] = index_of<S>(keys[kept.rows[i]]);
    return out;
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) { m.impl("nms", TORCH_BOX(&nms_cpu)); }

}  // namespace ssdkern
