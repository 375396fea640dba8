// The negatives of highest loss of each image, by selection.
#include <limits>
#include <memory>
#include <numeric>

#include "tensors.h"
#define SSDKERN_KERNELS "mine_hard_negatives.h"
#include "isa.h"

namespace ssdkern {

Tensor mine_hard_negatives_cpu(const Tensor& loss, const Tensor& positive, double neg_pos_ratio) {
  check_mining(loss, positive);
  STD_TORCH_CHECK(positive.scalar_type() == ScalarType::Bool, "want positive of dtype bool, got ",
                  positive.scalar_type());
  check_ratio(neg_pos_ratio);
  const Tensor from = torch::stable::contiguous(loss), where = torch::stable::contiguous(positive);
  Tensor mined = torch::stable::new_empty(where, where.sizes());
  const int64_t count = from.size(1);
  if (mined.numel() == 0) return mined;
  with_float(from, [&](auto kind) {
    using T = decltype(kind);
    const auto run = SSDKERN_PICK(mine_image<T>);
    torch::stable::parallel_for(0, from.size(0), 1, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<LaneInt<Compute<T>>[]> keys(new LaneInt<Compute<T>>[count + kLanes]);
      for (int64_t b = begin; b < end; ++b)
        run(data<T>(from) + b * count, data<bool>(where) + b * count, count, neg_pos_ratio,
            keys.get(), data<bool>(mined) + b * count);
    });
  });
  return mined;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def("mine_hard_negatives(Tensor loss, Tensor positive, float neg_pos_ratio) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) {
  m.impl("mine_hard_negatives", TORCH_BOX(&mine_hard_negatives_cpu));
}

}  // namespace ssdkern
