// From scores to detections, in two launches. A block for each image and kClasses classes streams
// their scores, keeps the best nms_top_k of each class, and suppresses: a warp for each class. Then
// a block for each image merges the classes.
#pragma once

#include "overlap.cuh"
#include "sort.cuh"

namespace ssdkern {

constexpr int kClasses = 8, kClassThreads = 256, kMergeThreads = 1024, kAhead = 8;

struct Limits {
  int num_priors, num_classes;
  int top_k, capacity;  // candidates of a class that enter suppression, and room for them
  int keep, keep_all;   // of a class, and of an image
};

// What a class keeps: score and prior, best first; slots [B, C-1, keep], counts [B, C-1].
template <typename S>
struct Kept {
  Packed<S>* slots;
  int* counts;
};

// Once `Scores` has gone to a class of an image it has count() rows worth a look, each with its
// prior; load(row) gives what tells by passes(row, &score) whether the score is above `threshold`.
// No score is above most(). The spilled arrays are null where shared memory does.
template <typename S, typename Scores, typename Boxes>
__global__ void __launch_bounds__(kClassThreads, 3)
    class_kernel(Scores scores, Boxes boxes, Limits limits, Limit<S> overlap_limit,
                 Packed<S>* spilled, S* spilled_boxes, Kept<S> kept) {
  using Selection = Select<OrderKey<S>, kClasses>;
  SSDKERN_SHARED(memory);
  __shared__ int found[kClasses];
  const int groups = (limits.num_classes - 1 + kClasses - 1) / kClasses;
  const int64_t image = blockIdx.x / groups;
  const int first_class = 1 + blockIdx.x % groups * kClasses;
  const int64_t first_row = image * limits.num_priors;
  const size_t candidates_size = spilled ? 0 : sizeof(Packed<S>) * kClasses * limits.capacity;
  auto* const candidates = spilled ? spilled + int64_t(blockIdx.x) * kClasses * limits.capacity
                                   : reinterpret_cast<Packed<S>*>(memory);
  // the selection is over when the first box is kept
  Selection& select = *reinterpret_cast<Selection*>(memory + candidates_size);
  auto* const kept_boxes = spilled_boxes
                               ? spilled_boxes + int64_t(blockIdx.x) * kClasses * limits.keep * 4
                               : reinterpret_cast<S*>(memory + candidates_size);

  const int list = threadIdx.x % kClasses, label = first_class + list;
  auto* const mine = candidates + int64_t(list) * limits.capacity;
  scores.go_to(image, first_row, label);
  const int rows_of_image = label < limits.num_classes ? scores.count() : 0;
  const auto each = [&](auto visit) {
    constexpr int kRows = kClassThreads / kClasses;
    for (int base = threadIdx.x / kClasses; base < rows_of_image; base += kRows * kAhead) {
      typename Scores::Row rows[kAhead];
      S loaded[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        rows[i] = scores.row(min(base + i * kRows, rows_of_image - 1));
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        loaded[i] = base + i * kRows < rows_of_image ? scores.load(rows[i]) : S(NAN);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        S score;
        if (scores.passes(rows[i], loaded[i], &score)) visit(order_key(score), rows[i].prior);
      }
    }
  };

  // 1. candidates, in any order, as far as there is room
  if (threadIdx.x < kClasses) {
    found[list] = 0;
    select.start(list, order_key(scores.threshold), order_key(scores.most()));
  }
  select.clear();
  __syncthreads();
  each([&, count = select.counter(list, false, limits.num_priors)](OrderKey<S> key, int prior) {
    const int slot = atomicAdd(&found[list], 1);
    if (slot < limits.capacity) mine[slot] = pack<S>(key, prior);
    count(key, prior);
  });

  // 2. where there were more, the best of them: read again
  __syncthreads();
  const bool over = found[list] > limits.capacity;
  if (__syncthreads_or(over)) {
    if (threadIdx.x < kClasses) {
      select.want(list, over ? limits.top_k : 0, found[list]);
      if (over) found[list] = 0;
    }
    __syncthreads();
    select.run(list, limits.num_priors, limits.capacity - limits.top_k, each, true);
    const Cut<OrderKey<S>> cut = select.cut[list];
    if (over)
      each([&](OrderKey<S> key, int prior) {
        if (cut.takes(key, prior)) mine[atomicAdd(&found[list], 1)] = pack<S>(key, prior);
      });
    __syncthreads();
  }

  // 3. each class in the order of scores: a box that overlaps none of the kept ones is kept
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (first_class + warp >= limits.num_classes) return;
  auto* const ranked = candidates + int64_t(warp) * limits.capacity;
  auto* const winners = kept_boxes + int64_t(warp) * limits.keep * 4;
  bitonic_sort(ranked, found[warp], lane, 32, [] { __syncwarp(); });
  const int64_t output = image * (limits.num_classes - 1) + first_class - 1 + warp;
  Packed<S>* const slots = kept.slots + output * limits.keep;
  const int size = min(found[warp], limits.top_k);
  int count = 0;
  for (int base = 0; base < size && count < limits.keep; base += 32) {
    bool alive = base + lane < size;
    const Packed<S> item = alive ? ranked[base + lane] : Packed<S>(0);
    const int prior = alive ? index_of(item) : 0;
    const Box<S> box = boxes.load(first_row + prior, prior);
    const S box_area = area(box), share = overlap_limit.share(box_area);
    for (int i = 0; i < count && __any_sync(kAllLanes, alive); i += kAhead) {
      const auto winner = [&](int k) { return load_box<S>(winners, min(i + k, count - 1)); };
      Box<S> others[kAhead];
      S shares[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        others[k] = winner(k), shares[k] = overlap_limit.share(area(others[k]));
      unsigned rest = overlap_limit.template suspects<kAhead>(box, share, others, shares);
      for (; rest && alive; rest &= rest - 1) {
        const Box<S> other = winner(__ffs(rest) - 1);
        alive = !overlap_limit.exceeded(overlap(other, box), area(other), box_area);
      }
    }
    for (unsigned rest = __ballot_sync(kAllLanes, alive); rest && count < limits.keep; ++count) {
      const int next = __ffs(rest) - 1;
      const Box<S> other = {
          __shfl_sync(kAllLanes, box.x1, next), __shfl_sync(kAllLanes, box.y1, next),
          __shfl_sync(kAllLanes, box.x2, next), __shfl_sync(kAllLanes, box.y2, next)};
      const bool hit = overlap_limit.exceeded(overlap(other, box), area(other), box_area);
      if (lane == next) store_box(winners, count, box), slots[count] = item;
      rest &= ~(__ballot_sync(kAllLanes, hit) | 1u << next);
    }
    __syncwarp();
  }
  if (lane == 0) kept.counts[output] = count;
}

template <typename S>
struct Detections {
  S *boxes, *scores;
  int64_t *labels, *prior_index, *count;
};

// The keep_all best of what the classes of an image keep; of equal scores the lowest slot, so the
// lowest label, and within it the lowest prior. `room` is a power of two.
template <typename S, typename Boxes>
__global__ void __launch_bounds__(kMergeThreads, 1)
    merge_kernel(Kept<S> kept, Boxes boxes, Limits limits, int room, Packed<S>* spilled,
                 Detections<S> out) {
  using Key = OrderKey<S>;
  SSDKERN_SHARED(memory);
  __shared__ Select<Key, 1> select;
  __shared__ Key bounds[2];
  __shared__ int total, taken;
  const int64_t image = blockIdx.x;
  const int classes = limits.num_classes - 1;
  const int* counts = kept.counts + image * classes;
  const Packed<S>* slots = kept.slots + image * classes * limits.keep;
  auto* const ranked = spilled ? spilled + image * room : reinterpret_cast<Packed<S>*>(memory);
  const auto each = [&](auto visit) {
    for (int c = threadIdx.x / 32; c < classes; c += kMergeThreads / 32)
      for (int i = threadIdx.x % 32; i < counts[c]; i += 32) {
        const int slot = c * limits.keep + i;
        visit(key_of<S>(slots[slot]), slot);
      }
  };

  // 1. which slots
  if (threadIdx.x == 0) total = taken = 0, bounds[0] = ~Key(0), bounds[1] = 0;
  __syncthreads();
  for (int c = threadIdx.x; c < classes; c += kMergeThreads) {
    if (counts[c] == 0) continue;
    atomicAdd(&total, counts[c]);
    atomicMax(&bounds[1], key_of<S>(slots[int64_t(c) * limits.keep]));
    atomicMin(&bounds[0], key_of<S>(slots[int64_t(c) * limits.keep + counts[c] - 1]));
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    select.start(0, bounds[0], bounds[1]);
    select.want(0, total > room ? limits.keep_all : total, total);
  }
  __syncthreads();
  select.run(0, classes * limits.keep, room - limits.keep_all, each);
  const Cut<Key> cut = select.cut[0];
  each([&](Key key, int slot) {
    if (cut.takes(key, slot)) ranked[atomicAdd(&taken, 1)] = pack<S>(key, slot);
  });
  __syncthreads();

  // 2. in order
  bitonic_sort(ranked, taken, threadIdx.x, kMergeThreads, [] { __syncthreads(); });
  const int count = min(taken, limits.keep_all);
  for (int i = threadIdx.x; i < limits.keep_all; i += kMergeThreads) {
    Box<S> box = {S(0), S(0), S(0), S(0)};
    S score = 0;
    int label = 0, prior = -1;
    if (i < count) {
      const int slot = index_of(ranked[i]);
      prior = index_of(slots[slot]);
      label = slot / limits.keep + 1;
      score = number_of(key_of<S>(ranked[i]));
      box = boxes.load(image * limits.num_priors + prior, prior);
    }
    const int64_t at = image * limits.keep_all + i;
    store_box(out.boxes, at, box);
    out.scores[at] = score;
    out.labels[at] = label;
    out.prior_index[at] = prior;
  }
  if (threadIdx.x == 0) out.count[image] = count;
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

inline void check_limits(int64_t num_priors, int64_t num_classes, int64_t nms_top_k,
                         int64_t keep_top_k) {
  STD_TORCH_CHECK(num_priors < 1 << 30 && num_classes < 1 << 30,
                  "want fewer than 2^30 priors and classes");
  STD_TORCH_CHECK(nms_top_k >= 1 && keep_top_k >= 1, "want nms_top_k and keep_top_k >= 1, got ",
                  nms_top_k, " and ", keep_top_k);
}

inline Results empty_results(const Tensor& like, ScalarType type, int64_t batch, int64_t keep) {
  using torch::stable::new_empty;
  return {new_empty(like, {batch, keep, 4}, type), new_empty(like, {batch, keep}, type),
          new_empty(like, {batch, keep}, ScalarType::Long),
          new_empty(like, {batch, keep}, ScalarType::Long),
          new_empty(like, {batch}, ScalarType::Long)};
}

// Both launches; `scores` is of [batch, num_priors, num_classes].
template <typename S, typename Scores, typename Boxes>
Results find_detections(const Stream& stream, const Tensor& like, const Scores& scores,
                        const Boxes& boxes, const int64_t (&size)[3], double iou_threshold,
                        int64_t nms_top_k, int64_t keep_top_k) {
  const auto [batch, num_priors, num_classes] = size;
  const auto type = sizeof(S) == 8 ? ScalarType::Double : ScalarType::Float;
  Results results = empty_results(like, type, batch, keep_top_k);
  auto& [out_boxes, out_scores, labels, prior_index, count] = results;
  if (batch == 0 || num_priors == 0 || num_classes < 2) {
    torch::stable::fill_(prior_index, -1);
    for (Tensor* zeros : {&out_boxes, &out_scores, &labels, &count}) torch::stable::zero_(*zeros);
    return results;
  }
  const int64_t top_k = std::min(nms_top_k, num_priors), classes = num_classes - 1;
  const int64_t keep = std::min(top_k, keep_top_k), lists = batch * ceil_div(classes, kClasses);
  const int64_t capacity = power_of_two(std::min(num_priors, top_k + top_k / 8));
  const int64_t room = power_of_two(std::min(keep_top_k, classes * keep));
  STD_TORCH_CHECK(keep_top_k < 1 << 30 && classes * keep < 1 << 30,
                  "want fewer than 2^30 candidates of an image, got ", classes * keep);

  const size_t fixed = sizeof(Select<OrderKey<S>, kClasses>), limit = stream.shared_limit() - 1024;
  const size_t candidate_bytes = sizeof(Packed<S>) * kClasses * capacity;
  const size_t kept_bytes = sizeof(Box<S>) * kClasses * keep;
  const bool spill_boxes = candidate_bytes + std::max(fixed, kept_bytes) > limit;
  const bool spill = candidate_bytes + fixed > limit;
  const size_t room_bytes = sizeof(Packed<S>) * room;
  const bool spill_room = room_bytes + sizeof(Select<OrderKey<S>, 1>) > limit;
  Scratch scratch;
  const auto slots = scratch.reserve<Packed<S>>(batch * classes * keep);
  const auto counts = scratch.reserve<int>(batch * classes);
  const auto candidates = scratch.reserve<Packed<S>>(spill ? lists * kClasses * capacity : 0);
  const auto kept_boxes = scratch.reserve<S>(spill_boxes ? lists * kClasses * keep * 4 : 0);
  const auto ranked = scratch.reserve<Packed<S>>(spill_room ? batch * room : 0);
  scratch.allocate(like);
  const Limits limits{int(num_priors), int(num_classes), int(top_k),
                      int(capacity),   int(keep),        int(keep_top_k)};
  const Kept<S> kept{scratch[slots], scratch[counts]};
  stream.launch<class_kernel<S, Scores, Boxes>>(
      lists, kClassThreads,
      (spill ? 0 : candidate_bytes) + (spill_boxes ? fixed : std::max(fixed, kept_bytes)), scores,
      boxes, limits, Limit<S>(iou_threshold), spill ? scratch[candidates] : nullptr,
      spill_boxes ? scratch[kept_boxes] : nullptr, kept);
  const Detections<S> out{data<S>(out_boxes), data<S>(out_scores), data<int64_t>(labels),
                          data<int64_t>(prior_index), data<int64_t>(count)};
  stream.launch<merge_kernel<S, Boxes>>(batch, kMergeThreads, spill_room ? 0 : room_bytes, kept,
                                        boxes, limits, int(room),
                                        spill_room ? scratch[ranked] : nullptr, out);
  return results;
}

}  // namespace ssdkern
