// Boxes in the order in which suppression takes them: by group, then score, then index.
#pragma once

#include "select.cuh"

namespace ssdkern {

using Bits = unsigned long long;

constexpr int kPanel = 8192, kRankThreads = 256;

// Positions are those of the order by group and score; ranks those of the order by score alone,
// which is the order of the result.
template <typename S>
struct Sorted {
  Box<S>* boxes;       // by position
  int64_t* groups;     // by position; null where there is one group
  int* rank;           // by position; null where positions are ranks
  int64_t* index;      // of the box, by rank
  unsigned* removed;   // a bit for each position
  Bits* kept;          // by position
  Bits* kept_by_rank;  // null where positions are ranks
  int64_t* result;
  int64_t* count;

  // Once for each box, position by position.
  __device__ void place(int position, int by_score, int64_t box, const S* from,
                        int64_t group) const {
    boxes[position] = load_box<S>(from, box);
    index[by_score] = box;
    if (groups) groups[position] = group, rank[position] = by_score;
    if (position % 32 == 0) removed[position / 32] = 0;
    if (position % 64 == 0 && kept_by_rank) kept_by_rank[position / 64] = 0;
  }
};

// Sorts up to kPanel boxes in one launch: a box's rank is the number of boxes before it.
// Four threads share a box, each with a quarter of the others.
template <typename S, bool GROUPED>
__global__ void __launch_bounds__(kRankThreads)
    rank_kernel(const S* boxes, const S* scores, const int64_t* groups, int count,
                Sorted<S> sorted) {
  using Key = decltype(order_key(S()));
  __shared__ Key keys[kRankThreads];
  __shared__ int64_t others[GROUPED ? kRankThreads : 1];
  const int part = threadIdx.x % 4, box = blockIdx.x * (kRankThreads / 4) + threadIdx.x / 4;
  const int mine = box < count ? box : count - 1;
  const Key key = order_key(scores[mine]);
  const int64_t group = GROUPED ? groups[mine] : 0;
  int by_score = 0, position = 0;
  for (int base = 0; base < count; base += kRankThreads) {
    __syncthreads();
    const int other = base + threadIdx.x;
    if (other < count) keys[threadIdx.x] = order_key(scores[other]);
    if (GROUPED && other < count) others[threadIdx.x] = groups[other];
    __syncthreads();
    const int size = min(kRankThreads, count - base);
    for (int i = part; i < size; i += 4) {
      const bool before = keys[i] > key || (keys[i] == key && base + i < mine);
      by_score += before;
      if (GROUPED) position += others[i] < group || (others[i] == group && before);
    }
  }
#pragma unroll
  for (int d = 1; d < 4; d *= 2) {
    by_score += __shfl_xor_sync(kAllLanes, by_score, d);
    if (GROUPED) position += __shfl_xor_sync(kAllLanes, position, d);
  }
  if (part == 0 && box < count)
    sorted.place(GROUPED ? position : by_score, by_score, box, boxes, group);
}

// Signed integers that order as scores do: torch's sort of floats puts NaNs last whose sign is set.
template <typename S>
using SortKey = std::conditional_t<sizeof(S) == 8, int64_t, int>;

template <typename S>
__global__ void __launch_bounds__(kRankThreads)
    key_kernel(const S* scores, int count, SortKey<S>* keys) {
  const int i = blockIdx.x * kRankThreads + threadIdx.x;
  if (i < count) keys[i] = SortKey<S>(order_key(scores[i]) ^ OrderKey<S>(1) << (sizeof(S) * 8 - 1));
}

// For more boxes, that torch has sorted: `by_rank` gives the box, `by_position` the rank.
template <typename S, bool GROUPED>
__global__ void __launch_bounds__(kRankThreads)
    place_kernel(const S* boxes, const int64_t* groups, const int64_t* by_rank,
                 const int64_t* by_position, int count, Sorted<S> sorted) {
  const int position = blockIdx.x * kRankThreads + threadIdx.x;
  if (position >= count) return;
  const int rank = GROUPED ? int(by_position[position]) : position;
  sorted.place(position, rank, by_rank[rank], boxes, GROUPED ? groups[position] : 0);
}

inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& values, bool descending) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(values), from(std::optional<bool>(true)), from(int64_t(0)),
                                    from(descending)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

inline Tensor pick(const Tensor& values, const Tensor& index) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(values), from(int64_t(0)), from(index)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Fills `sorted`: in one launch, or after torch's sort where there are many boxes.
template <typename S, bool GROUPED>
void bring_into_order(const Stream& stream, const Tensor& boxes, const Tensor& scores,
                      const Tensor& groups, const Sorted<S>& sorted) {
  const int total = int(boxes.size(0));
  if (total <= kPanel) {
    stream.launch<rank_kernel<S, GROUPED>>(
        ceil_div(total, kRankThreads / 4), kRankThreads, 0, data<S>(boxes), data<S>(scores),
        GROUPED ? data<int64_t>(groups) : nullptr, total, sorted);
    return;
  }
  const auto type = sizeof(S) == 8 ? ScalarType::Long : ScalarType::Int;
  Tensor keys = torch::stable::new_empty(scores, {total}, type);
  stream.launch<key_kernel<S>>(ceil_div(total, kRankThreads), kRankThreads, 0, data<S>(scores),
                               total, data<SortKey<S>>(keys));
  const Tensor by_rank = std::get<1>(stable_sort(keys, true));
  Tensor of_position, by_position;
  if constexpr (GROUPED)
    std::tie(of_position, by_position) = stable_sort(pick(groups, by_rank), false);
  stream.launch<place_kernel<S, GROUPED>>(
      ceil_div(total, kRankThreads), kRankThreads, 0, data<S>(boxes),
      GROUPED ? data<int64_t>(of_position) : nullptr, data<int64_t>(by_rank),
      GROUPED ? data<int64_t>(by_position) : nullptr, total, sorted);
}

}  // namespace ssdkern
