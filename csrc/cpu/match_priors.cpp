// Which ground truth each prior stands for, without the IoU matrix: ground truth by ground truth an
// image keeps the best row of each prior and the best prior of each row. Priors lie in groups with
// bounds on where they are and how large; most groups cannot hold a match and are passed over. Then
// the ground truth claims priors, in the order of the rule.
#include <memory>
#include <queue>

#include "soa.h"
#include "tensors.h"

namespace ssdkern {

constexpr int64_t kGroup = 64;    // priors that are passed over together
constexpr double kMinIou = 1e-6;  // the bipartite rule keeps no pair below

template <typename S>
struct BestPrior {
  S value;
  int32_t prior;  // -1: none
};

template <typename S>
struct Priors {
  Columns<S> boxes, bounds;          // bounds: of each group of kGroup priors
  std::vector<S> smallest, largest;  // areas in each group

  Priors(const S* from, int64_t count) : boxes(from, count) {
    const S far = S(__builtin_inf());
    std::vector<S> corners;
    for (int64_t i = 0; i < count; i += kGroup) {
      S box[] = {far, far, -far, -far}, areas[] = {far, -far};  // a NaN changes none of them
      for (int64_t j = i; j < std::min(count, i + kGroup); ++j) {
        box[0] = std::min(box[0], boxes.at(0)[j]);
        box[1] = std::min(box[1], boxes.at(1)[j]);
        box[2] = std::max(box[2], boxes.at(2)[j]);
        box[3] = std::max(box[3], boxes.at(3)[j]);
        areas[0] = std::min(areas[0], boxes.at(4)[j]);
        areas[1] = std::max(areas[1], boxes.at(4)[j]);
      }
      corners.insert(corners.end(), box, box + 4);
      smallest.push_back(areas[0]);
      largest.push_back(areas[1]);
    }
    bounds = Columns<S>(corners.data(), int64_t(smallest.size()));
    smallest.resize(bounds.stride);
    largest.resize(bounds.stride);
  }
};

// What a thread needs to match image after image.
template <typename S>
struct Scratch {
  std::unique_ptr<S[]> values;         // best IoU of each prior, in groups that are used
  std::unique_ptr<LaneInt<S>[]> rows;  // and its ground truth
  std::vector<uint8_t> used;           // by the image at hand, of each group
  std::vector<S> most;                 // upper bound of the IoU with each group
  std::vector<S> taken;                // NaN where a prior is claimed, else 0

  explicit Scratch(const Priors<S>& priors)
      : values(new S[priors.bounds.count * kGroup]),
        rows(new LaneInt<S>[priors.bounds.count * kGroup]),
        used(priors.bounds.count),
        most(priors.bounds.stride),
        taken(priors.boxes.stride) {}
};

}  // namespace ssdkern

#define SSDKERN_KERNELS "match_priors.h"
#include "isa.h"

namespace ssdkern {
namespace {

// One image: its ground truth [count, 4], rows from `begin` on, and the best prior of each.
template <typename S>
struct Image {
  const Priors<S>& priors;
  const S* gt_boxes;
  int64_t begin, count;
  const BestPrior<S>* best;
  int32_t* matched;  // [P]

  // torchvision's rule: each ground truth claims its best prior, the last row wins.
  void claim_best() const {
    for (int64_t g = 0; g < count; ++g) {
      const int64_t prior = best[g].prior >= 0 ? best[g].prior : first_apart(g);
      if (prior >= 0) matched[prior] = int32_t(begin + g);
    }
  }

  // The first prior of IoU 0 with a ground truth that overlaps none; -1 where all are NaN.
  int64_t first_apart(int64_t g) const {
    const S* b = gt_boxes + 4 * g;
    const Box<S> box{b[0], b[1], b[2], b[3]};
    const Columns<S>& p = priors.boxes;
    for (int64_t i = 0; i < p.count; ++i) {
      const Box<S> prior{p.at(0)[i], p.at(1)[i], p.at(2)[i], p.at(3)[i]};
      if (iou(intersection(box, prior), area(box), area(prior)) >= 0) return i;
    }
    return -1;
  }

  // The authors' rule: the best pair of all, again and again; of equals the lowest prior, then the
  // lowest ground truth. Ground truth whose prior is gone looks for its next best.
  void claim_greedily(S floor, Scratch<S>& scratch) const {
    struct Pair {
      S value;
      int32_t prior, g;
      bool operator<(const Pair& other) const {  // the queue hands out the greatest
        if (value != other.value) return value < other.value;
        return prior != other.prior ? prior > other.prior : g > other.g;
      }
    };
    std::priority_queue<Pair> pairs;
    const auto push = [&](const BestPrior<S>& top, int64_t g) {
      if (top.prior >= 0) pairs.push({top.value, top.prior, int32_t(g)});
    };
    for (int64_t g = 0; g < count; ++g) push(best[g], g);
    const auto next_best = SSDKERN_PICK(best_free_prior<S>);
    std::vector<S>& taken = scratch.taken;
    while (!pairs.empty()) {
      const Pair pair = pairs.top();
      pairs.pop();
      if (taken[pair.prior] == 0) {
        taken[pair.prior] = S(__builtin_nan(""));
        matched[pair.prior] = int32_t(begin + pair.g);
      } else {
        push(next_best(priors, gt_boxes + 4 * pair.g, floor, scratch), pair.g);
      }
    }
    for (int64_t i = 0; i < priors.boxes.count; ++i) taken[i] = 0;
  }
};

template <typename S>
void match_images(const Priors<S>& priors, const S* gt_boxes, const int32_t* offsets,
                  int64_t images, S threshold, bool bipartite, int32_t* matched) {
  const S floor = bipartite ? S(kMinIou) : threshold > 0 ? S(0) : S(-1);
  const auto run = SSDKERN_PICK(match_image<S>);
  torch::stable::parallel_for(0, images, 1, [&](int64_t first, int64_t last) {
    Scratch<S> scratch(priors);
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = offsets[b], end = offsets[b + 1];
      int32_t* mine = matched + b * priors.boxes.count;
      std::vector<BestPrior<S>> best(end - begin);
      run(priors, gt_boxes, begin, end, floor, threshold, scratch, best.data(), mine);
      const Image<S> image{priors, gt_boxes + 4 * begin, begin, end - begin, best.data(), mine};
      if (bipartite) {
        image.claim_greedily(floor, scratch);
      } else {
        image.claim_best();
      }
    }
  });
}

}  // namespace

Tensor match_priors_cpu(const Tensor& priors, const Tensor& gt_boxes, const Tensor& gt_offsets,
                        double iou_threshold, bool bipartite) {
  check_matching(priors, gt_boxes);
  const Tensor offsets = packed_offsets(gt_offsets, gt_boxes.size(0));
  const int64_t images = offsets.size(0) - 1, count = priors.size(0);
  STD_TORCH_CHECK(count < INT32_MAX - kGroup, "want fewer priors, got ", count);
  const ScalarType type = compute_type(priors, gt_boxes);
  const Tensor p = as(priors, type), gt = as(gt_boxes, type);
  Tensor matched = torch::stable::new_empty(p, {images, count}, ScalarType::Int);
  if (matched.numel() == 0) return matched;
  with_compute(type, [&](auto kind) {
    using S = decltype(kind);
    const Priors<S> all(data<S>(p), count);
    match_images(all, data<S>(gt), data<int32_t>(offsets), images, S(iou_threshold), bipartite,
                 data<int32_t>(matched));
  });
  return matched;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def(
      "match_priors(Tensor priors, Tensor gt_boxes, Tensor gt_offsets, float iou_threshold, "
      "bool bipartite) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) { m.impl("match_priors", TORCH_BOX(&match_priors_cpu)); }

}  // namespace ssdkern
