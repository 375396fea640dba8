// Included by isa.h, once per instruction set. Four boxes at a time, as they lie in memory.

template <typename S>
void encode_boxes_rows(const S* boxes, const S* priors, int64_t count, Variances variances,
                       S* out) {
  const auto scale = quad(S(variances.center), S(variances.size));
  const auto upper = upper_half<S>();
  for (int64_t i = 0; i < 4 * count; i += kLanes) {
    const int left = int(std::min<int64_t>(kLanes, 4 * count - i));
    const auto prior = center_size(load_part(priors + i, left, S(0)));
    const auto box = center_size(load_part(boxes + i, left, S(0)));
    const auto top = select(upper, at_least_min(box.size), box.center - prior.center);
    const auto ratio = top / at_least_min(prior.size);
    store_part(out + i, select(upper, log(ratio), ratio) / scale, left);
  }
}

template <typename S>
void encode_boxes_rows_backward(const S* grad, const S* boxes, const S* priors, int64_t count,
                                Variances variances, S* out) {
  const auto scale = quad(S(variances.center), S(variances.size)), sign = quad(S(-1), S(1));
  const auto half = splat(S(0.5)), zero = splat(S(0)), smallest = splat(S(kMinSize));
  const auto upper = upper_half<S>();
  for (int64_t i = 0; i < 4 * count; i += kLanes) {
    const int left = int(std::min<int64_t>(kLanes, 4 * count - i));
    const auto prior_size = at_least_min(center_size(load_part(priors + i, left, S(0))).size);
    const auto size = center_size(load_part(boxes + i, left, S(0))).size;
    const auto g = load_part(grad + i, left, S(0)) / scale;
    const auto by_size = select(size > smallest, g / size, zero);
    const auto both = select(upper, by_size, g / prior_size * half);
    const auto other = swap_halves(both);
    const auto by_box = select(upper, other, both) + sign * select(upper, both, other);
    store_part(out + i, by_box, left);
  }
}
