// What multiclass_nms and detect share: candidates of each class, suppression, the best of an
// image.
#pragma once

#include <memory>

#include "suppress.h"

namespace ssdkern {

using DetectionTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Limits {
  double score, iou;
  int64_t nms_top_k, keep_top_k;
};

inline void check_limits(int64_t priors, int64_t nms_top_k, int64_t keep_top_k) {
  STD_TORCH_CHECK(priors <= INT32_MAX, "want at most ", INT32_MAX, " priors, got ", priors);
  STD_TORCH_CHECK(nms_top_k >= 1, "want nms_top_k >= 1, got ", nms_top_k);
  STD_TORCH_CHECK(keep_top_k >= 1, "want keep_top_k >= 1, got ", keep_top_k);
}

// The candidates of a block of priors: those of class c at keys[starts[c]] to keys[starts[c + 1]].
template <typename S>
struct Block {
  std::vector<Key<S>> keys;
  std::vector<int32_t> starts;

  // From keys as they were found, prior by prior; stable, so that each class stays in that order.
  Block(int64_t classes, const Key<S>* found, const int32_t* labels, int64_t count)
      : keys(count), starts(classes + 1, 0) {
    for (int64_t i = 0; i < count; ++i) ++starts[labels[i] + 1];
    for (int64_t c = 0; c < classes; ++c) starts[c + 1] += starts[c];
    std::vector<int32_t> next(starts.begin(), starts.end());
    for (int64_t i = 0; i < count; ++i) keys[next[labels[i]]++] = found[i];
  }
};

// The best detections of one image. lists[c - 1] holds the kept keys of class c, in order.
template <typename S, typename BoxesOf>
void write_image(const std::vector<Key<S>>* lists, int64_t classes, int64_t slots, int64_t image,
                 BoxesOf boxes_of, DetectionTensors& out) {
  // by score, then by place in the lists one after another: by label, then prior
  std::vector<Key<S>> ranked, kept;
  std::vector<int32_t> labels;
  for (int64_t c = 1; c < classes; ++c)
    for (const auto key : lists[c - 1]) {
      ranked.push_back(make_key(score_of<S>(key), uint32_t(kept.size())));
      kept.push_back(key);
      labels.push_back(int32_t(c));
    }
  take_first(ranked, slots);
  const int64_t count = ranked.size();
  S* scores = data<S>(std::get<1>(out)) + image * slots;
  int64_t* label = data<int64_t>(std::get<2>(out)) + image * slots;
  int64_t* prior = data<int64_t>(std::get<3>(out)) + image * slots;
  std::vector<Key<S>> best(count);
  for (int64_t i = 0; i < slots; ++i) {
    const uint32_t place = i < count ? index_of<S>(ranked[i]) : 0;
    if (i < count) best[i] = kept[place];
    scores[i] = i < count ? score_of<S>(best[i]) : S(0);
    label[i] = i < count ? labels[place] : 0;
    prior[i] = i < count ? int64_t(index_of<S>(best[i])) : -1;
  }
  S* boxes = data<S>(std::get<0>(out)) + image * slots * 4;
  boxes_of(image, best, boxes);
  std::fill(boxes + 4 * count, boxes + 4 * slots, S(0));
  data<int64_t>(std::get<4>(out))[image] = count;
}

// scan(image, prior, count, keys, labels) finds the candidates of `count` priors from `prior` on
// and returns their number; boxes_of(image, keys, out) writes the boxes of the priors that keys
// name.
template <typename S, typename Scan, typename BoxesOf>
DetectionTensors select_detections(const Tensor& like, int64_t images, int64_t priors,
                                   int64_t classes, const Limits& limits, Scan scan,
                                   BoxesOf boxes_of) {
  const int64_t lists = std::max<int64_t>(classes - 1, 0);
  const int64_t rows = std::clamp<int64_t>(32768 / std::max<int64_t>(classes, 1), 32, 1024);
  const int64_t blocks = lists > 0 ? ceil_div(priors, rows) : 0;
  std::vector<std::unique_ptr<Block<S>>> found(images * blocks);
  torch::stable::parallel_for(0, images * blocks, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<Key<S>[]> keys(new Key<S>[rows * lists + 1]);
    const std::unique_ptr<int32_t[]> labels(new int32_t[rows * lists + 1]);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, prior = task % blocks * rows;
      const int64_t block = std::min(rows, priors - prior);
      const int64_t count = scan(image, prior, block, keys.get(), labels.get());
      found[task] = std::make_unique<Block<S>>(classes, keys.get(), labels.get(), count);
    }
  });

  std::vector<std::vector<Key<S>>> kept(images * lists);
  const auto resolve = [&](int64_t image, int64_t label) {
    std::vector<Key<S>> keys;
    for (int64_t b = image * blocks; b < (image + 1) * blocks; ++b)
      keys.insert(keys.end(), found[b]->keys.begin() + found[b]->starts[label],
                  found[b]->keys.begin() + found[b]->starts[label + 1]);
    if (keys.empty()) return;
    take_first(keys, limits.nms_top_k);
    std::vector<S> boxes(4 * keys.size());
    boxes_of(image, keys, boxes.data());
    const Columns<S> columns(boxes.data(), keys.size());
    const auto survivors = suppress(columns, limits.iou, limits.keep_top_k);
    for (int64_t i = 0; i < survivors.count; ++i)
      kept[image * lists + label - 1].push_back(keys[survivors.rows[i]]);
  };
  torch::stable::parallel_for(0, images * lists, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) resolve(task / lists, task % lists + 1);
  });

  const int64_t slots = limits.keep_top_k;
  const auto empty = [&](std::vector<int64_t> sizes, ScalarType type) {
    return torch::stable::new_empty(like, sizes, type);
  };
  constexpr ScalarType type = scalar_type_of<S>();
  DetectionTensors out{empty({images, slots, 4}, type), empty({images, slots}, type),
                       empty({images, slots}, ScalarType::Long),
                       empty({images, slots}, ScalarType::Long), empty({images}, ScalarType::Long)};
  torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image)
      write_image<S>(kept.data() + image * lists, classes, slots, image, boxes_of, out);
  });
  return out;
}

}  // namespace ssdkern
