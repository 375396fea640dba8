// The k largest of many numbers without sorting them. Included once per instruction set.

// Integers in the order of the numbers: NaN highest, -0 equal to 0, -inf and what is `out` lowest.
template <typename S>
SSDKERN_INLINE Ints<S> sort_keys(Vec<S> value, Ints<S> out) {
  const auto lowest = splat_int<S>(std::numeric_limits<LaneInt<S>>::min());
  const auto highest = splat_int<S>(std::numeric_limits<LaneInt<S>>::max());
  const auto plain = as_ints(value + splat(S(0)));
  const auto keys = plain ^ (shift_right(plain, int(8 * sizeof(S)) - 1) & highest);
  const auto masked = out | (value == splat(S(-__builtin_inf())));
  return select(masked, lowest, select(value == value, keys, highest));
}

template <typename S>
int64_t count_from(const LaneInt<S>* keys, int64_t count, LaneInt<S> least) {
  const auto bound = splat_int<S>(least);
  auto total = splat_int<S>(0);
  for (int64_t i = 0; i < count; i += kLanes) total = total - (load_ints<S>(keys + i) >= bound);
  LaneInt<S> lanes[kLanes];
  store_ints<S>(lanes, total);
  return std::accumulate(lanes, lanes + kLanes, int64_t(0));
}

// Marks the min(`most`, candidates) largest keys, equal ones from the first on. The lowest integer
// is no candidate; `count` is padded with it to a multiple of 16. By bisection on the threshold:
// each step is one pass of compares.
template <typename S>
void mark_largest(const LaneInt<S>* keys, int64_t count, int64_t most, bool* marked) {
  using K = LaneInt<S>;
  using U = std::make_unsigned_t<K>;
  K low = std::numeric_limits<K>::min() + 1, high = std::numeric_limits<K>::max();
  const int64_t want = std::min(most, count_from<S>(keys, count, low));
  std::fill(marked, marked + count, false);
  if (want == 0) return;
  while (low < high) {
    const K middle = K(U(high) - (U(high) - U(low)) / 2);
    const int64_t found = count_from<S>(keys, count, middle);
    if (found >= want) {
      low = middle;
      if (found == want) break;
    } else {
      high = middle - 1;
    }
  }
  int64_t left = want;
  for (int64_t i = 0; i < count; ++i) marked[i] = keys[i] > low;
  for (int64_t i = 0; i < count; ++i) left -= keys[i] > low;
  for (int64_t i = 0; left > 0; ++i) {
    if (keys[i] == low) {
      marked[i] = true;
      --left;
    }
  }
}
