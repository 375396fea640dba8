// Included by isa.h, once per instruction set.
#include "vec_select.h"

// One image; `keys` has room for `count` rounded up to 16.
template <typename T>
void mine_image(const T* loss, const bool* positive, int64_t count, double neg_pos_ratio,
                LaneInt<Compute<T>>* keys, bool* mined) {
  using S = Compute<T>;
  int64_t positives = 0;
  for (int64_t i = 0; i < count; ++i) positives += positive[i];
  for (int64_t i = 0; i < count; i += kLanes) {
    const int left = int(std::min<int64_t>(kLanes, count - i));
    LaneInt<S> out[kLanes];
    for (int j = 0; j < kLanes; ++j) out[j] = j < left ? -LaneInt<S>(positive[i + j]) : -1;
    const auto value = load_part_as(loss + i, left, S(0));
    store_ints<S>(keys + i, sort_keys(value, load_ints<S>(out)));
  }
  mark_largest<S>(keys, count, int64_t(double(positives) * neg_pos_ratio), mined);
}
