// Included by isa.h, once per instruction set.

template <typename S>
struct BestLanes {
  Vec<S> value;
  Ints<S> prior;
};

// The highest value, then the lowest prior, into `best`.
template <typename S>
SSDKERN_INLINE void fold(const BestLanes<S>& lanes, BestPrior<S>& best) {
  if (bits(lanes.value >= splat(best.value)) == 0) return;
  S value[kLanes];
  LaneInt<S> prior[kLanes];
  store(value, lanes.value);
  store_ints<S>(prior, lanes.prior);
  for (int i = 0; i < kLanes; ++i) {
    const bool tie = value[i] == best.value && prior[i] >= 0 && prior[i] < best.prior;
    if (value[i] > best.value || tie) best = {value[i], int32_t(prior[i])};
  }
}

// Sixteen upper bounds of the IoU of `box` with any prior of a group, -1 where they lie apart. The
// overlap is at most what the bounds of the group, its largest prior and the box allow; for that
// overlap the best prior is as small as it can be. Rounded up by more than what rounding can lose.
template <typename S>
SSDKERN_INLINE Vec<S> most_iou(const Sixteen<S>& box, const Priors<S>& priors, int64_t group) {
  const auto zero = splat(S(0)), sure = splat(S(2));
  const auto bound = overlap(box, load_boxes(priors.bounds, group)).inter;
  const auto inter = min(min(bound, load(priors.largest.data() + group)), box.area);
  const auto least = max(inter, load(priors.smallest.data() + group));
  const auto iou = inter / (box.area + least - inter) * splat(S(1.0001)) + splat(S(1e-7));
  const auto exact = (box.area > splat(S(1e-30))) & (iou == iou);
  return select(bound > zero, select(exact, iou, sure), select(bound == zero, splat(S(-1)), sure));
}

template <typename S>
struct GroupSearch {
  const Priors<S>& priors;
  Sixteen<S> box;
  Ints<S> lane;

  GroupSearch(const Priors<S>& all, const S* gt_box) : priors(all), box(splat_box(gt_box)) {
    LaneInt<S> ramp[kLanes];
    for (int i = 0; i < kLanes; ++i) ramp[i] = i;
    lane = load_ints<S>(ramp);
  }

  // f(iou, first prior) for every sixteen priors of a group.
  template <typename F>
  SSDKERN_INLINE void each_iou(int64_t group, BestLanes<S>& top, F f) const {
    const int64_t end = std::min(group * kGroup + kGroup, priors.boxes.stride);
    for (int64_t i = group * kGroup; i < end; i += kLanes) {
      const auto [inter, joint] = overlap(box, load_boxes(priors.boxes, i));
      const auto iou = f(inter / joint, i);
      const auto leads = iou > top.value;
      top.value = select(leads, iou, top.value);
      top.prior = select(leads, lane + splat_int<S>(i), top.prior);
    }
  }

  // The best prior of all groups whose bounds, in `most`, let them beat `best`: first the most
  // promising group, then the rest in order. `taken` holds NaN where a prior is gone.
  void improve(const S* most, int64_t groups, S floor, const S* taken, BestPrior<S>& best) const {
    const auto look = [&](int64_t group) {
      BestLanes<S> top{splat(floor), splat_int<S>(-1)};
      each_iou(group, top, [&](Vec<S> iou, int64_t i) {
        return taken == nullptr ? iou : iou + load(taken + i);
      });
      fold(top, best);
    };
    const int64_t first = std::max_element(most, most + groups) - most;
    if (most[first] > best.value) look(first);
    for (int64_t group = 0; group < groups; group += kLanes) {
      uint32_t left = bits(load(most + group) >= splat(best.value));
      for (; left != 0; left &= left - 1) {
        const int64_t next = group + __builtin_ctz(left);
        if (next < groups && next != first && most[next] >= best.value) look(next);
      }
    }
  }
};

// Matches the ground truth [begin, end) of an image: `matched` gets the best ground truth of each
// prior that reaches `threshold`, else -1; `best` the best prior of each ground truth. Pairs count
// above `floor`; where that is negative pairs that lie apart count too, and nothing is passed over.
template <typename S>
void match_image(const Priors<S>& priors, const S* gt_boxes, int64_t begin, int64_t end, S floor,
                 S threshold, Scratch<S>& scratch, BestPrior<S>* best, int32_t* matched) {
  const int64_t groups = priors.bounds.count;
  S *values = scratch.values.get(), *most = scratch.most.data();
  LaneInt<S>* rows = scratch.rows.get();
  std::fill(scratch.used.begin(), scratch.used.end(), 0);
  for (int64_t g = begin; g < end; ++g) {
    const GroupSearch<S> search(priors, gt_boxes + 4 * g);
    BestLanes<S> top{splat(floor), splat_int<S>(-1)};
    for (int64_t group = 0; group < groups; group += kLanes) {
      const auto bound = floor < 0 ? splat(S(2)) : most_iou(search.box, priors, group);
      store(most + group, bound);
      for (uint32_t near = bits(bound >= splat(threshold)); near != 0; near &= near - 1) {
        const int64_t next = group + __builtin_ctz(near);
        if (next >= groups) break;
        if (!scratch.used[next]) {
          std::fill(values + next * kGroup, values + next * kGroup + kGroup, floor);
          scratch.used[next] = 1;
        }
        search.each_iou(next, top, [&](Vec<S> iou, int64_t i) {
          const auto old = load(values + i);
          const auto wins = iou > old;
          store(values + i, select(wins, iou, old));
          store_ints<S>(rows + i, select(wins, splat_int<S>(g), load_ints<S>(rows + i)));
          return iou;
        });
      }
    }
    BestPrior<S>& mine = best[g - begin] = {floor, -1};
    fold(top, mine);
    if (mine.value < threshold) search.improve(most, groups, floor, nullptr, mine);
  }
  std::fill(matched, matched + priors.boxes.count, -1);
  for (int64_t group = 0; group < groups; ++group) {
    if (!scratch.used[group]) continue;
    const int64_t last = std::min(group * kGroup + kGroup, priors.boxes.count);
    for (int64_t i = group * kGroup; i < last; ++i)
      matched[i] = values[i] > floor && values[i] >= threshold ? int32_t(rows[i]) : -1;
  }
}

// The best prior that is not taken.
template <typename S>
BestPrior<S> best_free_prior(const Priors<S>& priors, const S* gt_box, S floor,
                             Scratch<S>& scratch) {
  const int64_t groups = priors.bounds.count;
  const GroupSearch<S> search(priors, gt_box);
  for (int64_t group = 0; group < groups; group += kLanes)
    store(scratch.most.data() + group, most_iou(search.box, priors, group));
  BestPrior<S> best{floor, -1};
  search.improve(scratch.most.data(), groups, floor, scratch.taken.data(), best);
  return best;
}
