// Orders of scores: descending, NaN first, equal scores from the lowest index on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace ssdkern {

__extension__ typedef unsigned __int128 Key128;

// A score and an index, in one integer that ascends as the score descends and the index ascends.
template <typename S>
using Key = std::conditional_t<sizeof(S) == 8, Key128, uint64_t>;

template <typename S>
inline Key<S> make_key(S score, uint32_t index) {
  using U = std::conditional_t<sizeof(S) == 8, uint64_t, uint32_t>;
  constexpr int kBits = 8 * sizeof(U);
  const S canonical = score + S(0);  // -0 and +0 are one score
  U bits;
  __builtin_memcpy(&bits, &canonical, sizeof(bits));
  bits = bits >> (kBits - 1) ? bits : U(~bits & (U(-1) >> 1));
  return Key<S>(score != score ? 0 : bits) << kBits | index;
}

template <typename S>
inline uint32_t index_of(Key<S> key) {
  return uint32_t(key);
}

template <typename S>
inline S score_of(Key<S> key) {
  using U = std::conditional_t<sizeof(S) == 8, uint64_t, uint32_t>;
  constexpr int kBits = 8 * sizeof(U);
  U bits = U(key >> kBits);
  bits = bits >> (kBits - 1) ? bits : U(~bits & (U(-1) >> 1));
  S score;
  __builtin_memcpy(&score, &bits, sizeof(score));
  return score;
}

// Keys whose lower halves ascend already: three stable passes over the upper ones.
inline void radix_sort(std::vector<uint64_t>& keys) {
  constexpr int kDigit = 11;
  std::vector<uint64_t> other(keys.size());
  for (int shift = 32; shift < 64; shift += kDigit) {
    std::vector<uint32_t> starts((1 << kDigit) + 1, 0);
    constexpr uint64_t mask = (1 << kDigit) - 1;
    for (const uint64_t key : keys) ++starts[(key >> shift & mask) + 1];
    for (int i = 0; i < 1 << kDigit; ++i) starts[i + 1] += starts[i];
    for (const uint64_t key : keys) other[starts[key >> shift & mask]++] = key;
    keys.swap(other);
  }
}

// The keys of all scores, in order.
template <typename S>
std::vector<Key<S>> sorted_keys(const S* scores, int64_t count) {
  std::vector<Key<S>> keys(count);
  for (int64_t i = 0; i < count; ++i) keys[i] = make_key(scores[i], uint32_t(i));
  if constexpr (sizeof(S) == 4) {
    if (count >= 512) {
      radix_sort(keys);
      return keys;
    }
  }
  std::sort(keys.begin(), keys.end());
  return keys;
}

// Drops keys that are surely not among the `count` first: a histogram of their upper bits tells.
template <typename K>
void drop_last(std::vector<K>& keys, int64_t count) {
  constexpr int kBits = 12, kShift = 8 * sizeof(K) - kBits;
  int32_t bins[1 << kBits] = {};
  for (const K key : keys) ++bins[uint32_t(key >> kShift)];
  uint32_t last = 0;
  for (int64_t before = 0; (before += bins[last]) < count;) ++last;
  size_t size = 0;
  for (const K key : keys) {
    keys[size] = key;
    size += uint32_t(key >> kShift) <= last;
  }
  keys.resize(size);
}

// Leaves the `count` first keys, in order.
template <typename K>
void take_first(std::vector<K>& keys, int64_t count) {
  if (keys.size() > 2048 && int64_t(keys.size()) / 2 > count) drop_last(keys, count);
  if (int64_t(keys.size()) > count) {
    std::nth_element(keys.begin(), keys.begin() + count, keys.end());
    keys.resize(count);
  }
  std::sort(keys.begin(), keys.end());
}

}  // namespace ssdkern
