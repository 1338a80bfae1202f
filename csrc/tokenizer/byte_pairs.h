// Byte-pair encoding: a word's letters are merged by a ranked list of pairs until no neighbours are one of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cpuinfer {

// Made once, then safe to share by threads.
class BytePairs {
 public:
  static constexpr int32_t kNone = -1;

  // `vocabulary`: token of each id, UTF-8, each once; an empty one is none.  `whole_words`: a word that is a token is
  // taken as it is.
  BytePairs(std::vector<std::string> vocabulary, bool whole_words);

  // Takes the next merge, "left right".  False, and nothing is added, unless both are tokens and make a third.
  bool add_merge(std::string_view merge);

  // Adds the tokens of a word to `ids`.  A letter (a code point) that is no token is left out.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    int32_t left = kNone, right = kNone;
    int32_t rank = 0;
    int32_t merged = kNone;
  };

  int32_t find(std::string_view token) const noexcept;  // its id, or kNone
  const Merge* find_merge(int32_t left, int32_t right) const noexcept;
  std::size_t place_of(int32_t left, int32_t right) const noexcept;
  void grow();

  std::vector<std::string> vocabulary_;
  std::vector<int32_t> ids_;   // open hashing; a power of two, at most half full
  std::vector<Merge> merges_;  // likewise
  std::size_t pairs_ = 0;      // of them
  int32_t ranks_ = 0;          // given out
  bool whole_words_;
};

}  // namespace cpuinfer
