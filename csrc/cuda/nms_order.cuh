// Boxes in the order in which suppression takes them: by group, then score, then index.
#pragma once

#include <cstdint>

#include "select.cuh"

namespace ssdkern {

constexpr int kPanel = 8192;
constexpr int kMostRanked = 16384;  // counting costs N^2; from here on torch's sort is no slower
constexpr int kRankThreads = 256, kRankKeys = 1024;

// Positions are those of the order by group and score; ranks those of the order by score alone,
// which is the order of the result.
template <typename S>
struct Sorted {
  Box<S>* boxes;           // by position
  int64_t* groups;         // by position; null where there is one group
  int* rank;               // by position; null where positions are ranks
  int64_t* index;          // of the box, by rank
  unsigned* removed;       // a bit for each position
  unsigned* kept;          // by position
  unsigned* kept_by_rank;  // null where positions are ranks
  int64_t* result;
  int64_t* count;

  // Once for each box, position by position.
  __device__ void place(int position, int by_score, int64_t box, const S* from,
                        int64_t group) const {
    boxes[position] = load_box<S>(from, box);
    index[by_score] = box;
    if (groups) groups[position] = group, rank[position] = by_score;
    if (position % 32 == 0) {
      removed[position / 32] = 0;
      if (kept_by_rank) kept_by_rank[position / 32] = 0;
    }
  }
};

// Sorts up to kMostRanked boxes in one launch: a box's rank is the number of boxes before it. A
// lane has a box, a warp its share of the others.
template <typename S, bool GROUPED>
__global__ void __launch_bounds__(kRankThreads)
    rank_kernel(const S* boxes, const S* scores, const int64_t* groups, int count,
                Sorted<S> sorted) {
  using Key = OrderKey<S>;
  constexpr int kShare = kRankKeys / (kRankThreads / 32);
  alignas(16) __shared__ Key keys[kRankKeys];
  alignas(16) __shared__ int64_t others[GROUPED ? kRankKeys : 1];
  __shared__ int ranks[32], positions[32];
  const int lane = threadIdx.x % 32, from = threadIdx.x / 32 * kShare;
  const int start = blockIdx.x * 32, box = start + lane, mine = min(box, count - 1);
  const Key key = order_key(scores[mine]);
  const int64_t group = GROUPED ? groups[mine] : 0;
  if (threadIdx.x < 32) ranks[lane] = positions[lane] = 0;
  int rank = 0, position = 0;
  for (int base = 0; base < count; base += kRankKeys) {
    __syncthreads();
#pragma unroll
    for (int at = 0; at < kRankKeys; at += kRankThreads) {
      const int i = at + threadIdx.x, other = base + i;
      const Key read = order_key(scores[min(other, count - 1)]);
      keys[i] = other < count ? read : 0;  // 0 is after all
      if (GROUPED) others[i] = other < count ? groups[other] : INT64_MAX;
    }
    __syncthreads();
    const auto count_before = [&](auto bound) {
#pragma unroll 32
      for (int i = 0; i < kShare; ++i) {
        const bool before = keys[from + i] > bound(i);
        rank += before;
        if (GROUPED) position += others[from + i] < group || (others[from + i] == group && before);
      }
    };
    const int first = base + from;  // of equal keys those with a lower index are before
    if (first / kShare == start / kShare) {
      count_before([&](int i) { return key - (first + i < mine); });
    } else {
      const Key bound = key - (first < start);
      count_before([bound](int) { return bound; });
    }
  }
  atomicAdd(&ranks[lane], rank);
  if (GROUPED) atomicAdd(&positions[lane], position);
  __syncthreads();
  if (threadIdx.x < 32 && box < count)
    sorted.place(GROUPED ? positions[lane] : ranks[lane], ranks[lane], box, boxes, group);
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
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

inline Tensor pick(const Tensor& values, const Tensor& index) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(values), from(int64_t(0)), from(index)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Fills `sorted`: in one launch, or after torch's sort where there are many boxes.
template <typename S, bool GROUPED>
void bring_into_order(const Stream& stream, const Tensor& boxes, const Tensor& scores,
                      const Tensor& groups, const Sorted<S>& sorted) {
  const int total = int(boxes.size(0));
  if (total <= kMostRanked) {
    stream.launch<rank_kernel<S, GROUPED>>(
        ceil_div(total, 32), kRankThreads, 0, data<S>(boxes), data<S>(scores),
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
