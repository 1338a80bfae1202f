// The two hash tables of a vocabulary, and merging with a heap: n log n for a word of n letters.
#include "tokenizer/byte_pairs.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>
#include <utility>

namespace cpuinfer {

namespace {

std::size_t mixed(uint64_t x) noexcept {
  x = (x ^ x >> 32) * 0x9e3779b97f4a7c15u;
  return static_cast<std::size_t>(x ^ x >> 29);
}

std::size_t room_for(std::size_t count) { return std::bit_ceil(2 * count + 2); }

// Bytes of the code point that begins here; 1 for what begins none.
std::size_t letter_bytes(char first) noexcept {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0xc0 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

struct Symbol {
  int32_t id;  // kNone once merged into the one before
  int32_t before, after;
};

// A pair that may be merged: the lowest rank first, of equals the first in the word.
struct Candidate {
  int32_t rank, at, merged;
  bool operator>(const Candidate& other) const noexcept {
    return rank != other.rank ? rank > other.rank : at > other.at;
  }
};

}  // namespace

BytePairs::BytePairs(std::vector<std::string> vocabulary, bool whole_words)
    : vocabulary_(std::move(vocabulary)),
      ids_(room_for(vocabulary_.size()), kNone),
      merges_(room_for(vocabulary_.size())),
      whole_words_(whole_words) {
  const std::size_t mask = ids_.size() - 1;
  for (std::size_t id = 0; id < vocabulary_.size(); ++id) {
    if (vocabulary_[id].empty()) continue;
    std::size_t at = std::hash<std::string_view>()(vocabulary_[id]) & mask;
    while (ids_[at] != kNone) at = (at + 1) & mask;
    ids_[at] = static_cast<int32_t>(id);
  }
}

int32_t BytePairs::find(std::string_view token) const noexcept {
  const std::size_t mask = ids_.size() - 1;
  for (std::size_t at = std::hash<std::string_view>()(token) & mask; ids_[at] != kNone; at = (at + 1) & mask) {
    if (vocabulary_[static_cast<std::size_t>(ids_[at])] == token) return ids_[at];
  }
  return kNone;
}

// Where a pair is, or the empty place where it would be.
std::size_t BytePairs::place_of(int32_t left, int32_t right) const noexcept {
  const std::size_t mask = merges_.size() - 1;
  std::size_t at = mixed(uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right)) & mask;
  while (merges_[at].left != kNone && (merges_[at].left != left || merges_[at].right != right)) at = (at + 1) & mask;
  return at;
}

const BytePairs::Merge* BytePairs::find_merge(int32_t left, int32_t right) const noexcept {
  const Merge& merge = merges_[place_of(left, right)];
  return merge.left == kNone ? nullptr : &merge;
}

void BytePairs::grow() {
  std::vector<Merge> old(merges_.size() * 2);
  old.swap(merges_);
  for (const Merge& merge : old) {
    if (merge.left != kNone) merges_[place_of(merge.left, merge.right)] = merge;
  }
}

bool BytePairs::add_merge(std::string_view merge) {
  const std::size_t space = merge.find(' ');
  if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) return false;
  const int32_t left = find(merge.substr(0, space)), right = find(merge.substr(space + 1));
  if (left == kNone || right == kNone) return false;
  std::string joined(merge);
  joined.erase(space, 1);
  const int32_t merged = find(joined);
  if (merged == kNone) return false;
  if (pairs_ * 2 >= merges_.size()) grow();
  Merge& slot = merges_[place_of(left, right)];
  pairs_ += slot.left == kNone;
  slot = {left, right, ranks_++, merged};  // of a pair named twice, the later counts
  return true;
}

void BytePairs::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (whole_words_) {
    if (const int32_t id = find(word); id != kNone) return ids.push_back(id);
  }
  std::vector<Symbol> symbols;
  for (std::size_t at = 0; at < word.size();) {
    const std::size_t bytes = letter_bytes(word[at]);
    const int32_t id = find(word.substr(at, bytes)), here = static_cast<int32_t>(symbols.size());
    if (id != kNone) symbols.push_back({id, here - 1, here + 1});
    at += bytes;
  }
  if (symbols.empty()) return;
  symbols.back().after = kNone;
  const auto symbol = [&symbols](int32_t at) -> Symbol& { return symbols[static_cast<std::size_t>(at)]; };
  std::vector<Candidate> room;
  room.reserve(symbols.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(), std::move(room));
  const auto consider = [&](int32_t at) {
    if (at == kNone || symbol(at).after == kNone) return;
    const Merge* merge = find_merge(symbol(at).id, symbol(symbol(at).after).id);
    if (merge != nullptr) queue.push({merge->rank, at, merge->merged});
  };
  for (int32_t at = 0; std::cmp_less(at, symbols.size()); ++at) consider(at);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbol(best.at);
    if (left.id == kNone || left.after == kNone) continue;
    Symbol& right = symbol(left.after);
    const Merge* merge = find_merge(left.id, right.id);
    if (merge == nullptr || merge->merged != best.merged) continue;  // one of the two is another by now
    left.id = best.merged;
    left.after = right.after;
    right.id = kNone;
    if (left.after != kNone) symbol(left.after).before = best.at;
    consider(left.before);
    consider(best.at);
  }
  for (int32_t at = 0; at != kNone; at = symbol(at).after) ids.push_back(symbol(at).id);
}

}  // namespace cpuinfer
