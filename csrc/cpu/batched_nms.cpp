// Suppression within each group: groups in parallel, their boxes in the common order of scores.
#include <unordered_map>

#include "suppress.h"

namespace ssdkern {
namespace {

// Numbers the groups from 0 and counts them.
int64_t number_groups(const int64_t* idxs, int64_t count, std::vector<int32_t>& group) {
  if (count == 0) return 0;
  const auto [low, high] = std::minmax_element(idxs, idxs + count);
  const int64_t first = *low;
  const uint64_t range = uint64_t(*high) - uint64_t(first);
  if (range < std::min<uint64_t>(uint64_t(count) * 4 + 1024, INT32_MAX)) {
    for (int64_t i = 0; i < count; ++i) group[i] = int32_t(idxs[i] - first);
    return int64_t(range) + 1;
  }
  std::unordered_map<int64_t, int32_t> numbers;
  for (int64_t i = 0; i < count; ++i)
    group[i] = numbers.try_emplace(idxs[i], int32_t(numbers.size())).first->second;
  return int64_t(numbers.size());
}

}  // namespace

Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                       double iou_threshold) {
  check_scored(boxes, scores, INT32_MAX);
  const int64_t count = boxes.size(0);
  check_shape(idxs, "idxs", {count});
  STD_TORCH_CHECK(idxs.scalar_type() == ScalarType::Long, "want idxs of dtype int64, got ",
                  idxs.scalar_type());
  return with_compute(compute_type(boxes, scores), [&](auto kind) {
    using S = decltype(kind);
    const Tensor corners = as(boxes, scalar_type_of<S>()), rank = as(scores, scalar_type_of<S>());
    const Tensor ids = torch::stable::contiguous(idxs);
    const auto keys = sorted_keys(data<S>(rank), count);
    std::vector<int32_t> group(count), places(count);
    const int64_t groups = number_groups(data<int64_t>(ids), count, group);

    // the places of each group in the order of scores: starts[g] to starts[g + 1]
    std::vector<int64_t> starts(groups + 1, 0);
    for (const int32_t g : group) ++starts[g + 1];
    for (int64_t g = 0; g < groups; ++g) starts[g + 1] += starts[g];
    std::vector<int64_t> next(starts.begin(), starts.end());
    for (int64_t i = 0; i < count; ++i) places[next[group[index_of<S>(keys[i])]]++] = int32_t(i);

    std::vector<uint8_t> keep(count, 0);
    const auto resolve = [&](int64_t g) {
      std::vector<Key<S>> own;
      for (int64_t i = starts[g]; i < starts[g + 1]; ++i) own.push_back(keys[places[i]]);
      const auto kept = suppress(gather<S>(data<S>(corners), own), iou_threshold, own.size());
      for (int64_t i = 0; i < kept.count; ++i) keep[places[starts[g] + kept.rows[i]]] = 1;
    };
    torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) resolve(g);
    });

    const int64_t total = std::count(keep.begin(), keep.end(), 1);
    Tensor out = torch::stable::new_empty(boxes, {total}, ScalarType::Long);
    int64_t* row = data<int64_t>(out);
    for (int64_t i = 0; i < count; ++i)
      if (keep[i]) *row++ = index_of<S>(keys[i]);
    return out;
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) { m.impl("batched_nms", TORCH_BOX(&batched_nms_cpu)); }

}  // namespace ssdkern
