// Included by isa.h, once per instruction set. Four boxes at a time, as they lie in memory.

template <typename T, typename S>
void decode_boxes_rows(const T* offsets, const S* priors, int64_t count, Variances variances,
                       double max_log_scale, S* out) {
  const auto scale = quad(S(variances.center), S(variances.size));
  const auto sign = quad(S(-1), S(1)), half = splat(S(0.5)), bound = splat(S(max_log_scale));
  const auto upper = upper_half<S>();
  for (int64_t i = 0; i < 4 * count; i += kLanes) {
    const int left = int(std::min<int64_t>(kLanes, 4 * count - i));
    const auto prior = center_size(load_part(priors + i, left, S(0)));
    const auto size = at_least_min(prior.size);
    const auto scaled = load_part_as(offsets + i, left, S(0)) * scale;
    const auto center = scaled * size + prior.center;
    const auto extent = exp(min(bound, scaled)) * size * half;
    const auto both = select(upper, extent, center);
    const auto other = swap_halves(both);
    const auto box = select(upper, other, both) + sign * select(upper, both, other);
    store_part(out + i, box, left);
  }
}

template <typename T, typename S>
void decode_boxes_rows_backward(const S* grad, const T* offsets, const S* priors, int64_t count,
                                Variances variances, double max_log_scale, S* out) {
  const auto scale = quad(S(variances.center), S(variances.size));
  const auto half = splat(S(0.5)), zero = splat(S(0)), bound = splat(S(max_log_scale));
  const auto upper = upper_half<S>();
  for (int64_t i = 0; i < 4 * count; i += kLanes) {
    const int left = int(std::min<int64_t>(kLanes, 4 * count - i));
    const auto prior = center_size(load_part(priors + i, left, S(0)));
    const auto size = at_least_min(prior.size);
    const auto scaled = load_part_as(offsets + i, left, S(0)) * scale;
    const auto extent = exp(min(bound, scaled)) * size * half;
    const auto g = load_part(grad + i, left, S(0)), other = swap_halves(g);
    const auto by_size = select(scaled >= bound, zero, (g - other) * extent);
    store_part(out + i, select(upper, by_size, (g + other) * size) * scale, left);
  }
}
