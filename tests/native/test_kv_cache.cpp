// The cache's pages: what begins alike shares them, what nobody uses is kept until its memory is needed.
#include <numeric>

#include "check.h"
#include "core/error.h"
#include "runtime/kv_cache.h"

using namespace cpuinfer;

namespace {

constexpr CacheShape kShape{1, 1, 8};

// `pages` full pages of distinct tokens.
std::vector<int32_t> text(int pages, int32_t first = 0) {
  std::vector<int32_t> tokens(static_cast<std::size_t>(pages * kPageTokens));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// What a sequence does: takes what there is of the tokens, then pages of its own, named as they fill.
std::vector<KvCache::PageRef> fill(KvCache& cache, const std::vector<int32_t>& tokens) {
  std::vector<KvCache::PageRef> pages = cache.share(tokens);
  for (std::size_t i = pages.size(); i < tokens.size() / kPageTokens; ++i) {
    pages.push_back(cache.take());
    pages[i] = cache.name(pages[i], i == 0 ? nullptr : &pages[i - 1], tokens.data() + i * kPageTokens);
  }
  return pages;
}

std::size_t known(KvCache& cache, const std::vector<int32_t>& tokens) {
  const auto pages = cache.share(tokens);
  cache.release(pages);
  return pages.size();
}

}  // namespace

TEST("a beginning is found page by page, up to the first token that differs") {
  KvCache cache(kShape, 10, 10);
  const auto pages = fill(cache, text(3));
  std::vector<int32_t> other = text(3);
  other[2 * kPageTokens - 1] = -5;
  CHECK_EQ(known(cache, text(3)), std::size_t{3});
  CHECK_EQ(known(cache, other), std::size_t{1});
  CHECK_EQ(known(cache, text(3, 1)), std::size_t{0});
  // The second page's tokens at the start are another text.
  CHECK_EQ(known(cache, text(2, kPageTokens)), std::size_t{0});
  CHECK_EQ(known(cache, {}), std::size_t{0});
  std::vector<int32_t> partial = text(3);
  partial.pop_back();
  CHECK_EQ(known(cache, partial), std::size_t{2});
  CHECK(cache.share(text(3)) == pages);
}

TEST("sequences that fill the same page at the same time end with one") {
  KvCache cache(kShape, 10, 10);
  KvCache::PageRef first = cache.take(), second = cache.take();
  const std::vector<int32_t> tokens = text(1);
  first = cache.name(first, nullptr, tokens.data());
  CHECK_EQ(cache.used(), 2);
  second = cache.name(second, nullptr, tokens.data());
  CHECK(first == second);
  CHECK_EQ(cache.used(), 1);
  cache.release({&first, 1});
  CHECK_EQ(cache.used(), 1);
  cache.release({&second, 1});
  CHECK_EQ(cache.used(), 0);
  CHECK_EQ(cache.kept(), 1);
}

TEST("pages of ended sequences go in the order of their age, the end of a text before its beginning") {
  KvCache cache(kShape, 10, 5);
  cache.release(fill(cache, text(3)));
  cache.release(fill(cache, text(2, 1000)));
  CHECK_EQ(cache.kept(), 5);
  const std::vector<KvCache::PageRef> one = {cache.take()};
  CHECK_EQ(known(cache, text(3)), std::size_t{2});  // asking makes them the youngest
  const std::vector<KvCache::PageRef> two = {cache.take()};
  CHECK_EQ(known(cache, text(2, 1000)), std::size_t{1});
  CHECK_EQ(known(cache, text(3)), std::size_t{2});
  CHECK_EQ(cache.used() + cache.kept(), 5);
  cache.release(one);
  cache.release(two);
}

TEST("what is in use is never taken, and past what is kept memory is taken only when nothing is kept") {
  KvCache cache(kShape, 4, 2);
  const auto pages = fill(cache, text(3));
  CHECK_EQ(cache.used(), 3);
  const auto more = fill(cache, text(1, 1000));
  bool full = false;
  try {
    cache.take();
  } catch (const Error& error) {
    full = error.fault() == Fault::kMemory;
  }
  CHECK(full);
  CHECK_EQ(known(cache, text(3)), std::size_t{3});
  cache.release(pages);
  cache.release(more);
  CHECK_EQ(cache.kept(), 4);
  const std::vector<KvCache::PageRef> again = {cache.take()};
  CHECK_EQ(cache.used() + cache.kept(), 4);
  cache.release(again);
}

TEST("a page after one that was given up leads nowhere, also when its beginning is computed again") {
  KvCache cache(kShape, 10, 10);
  std::vector<KvCache::PageRef> unnamed = {cache.take(), cache.take()};
  const std::vector<int32_t> tokens = text(2);
  unnamed[1] = cache.name(unnamed[1], unnamed.data(), tokens.data() + kPageTokens);
  CHECK_EQ(known(cache, text(1, kPageTokens)), std::size_t{0});
  cache.release(unnamed);
  CHECK_EQ(cache.kept(), 0);
}

TEST("without room for kept pages nothing is named") {
  KvCache cache(kShape, 10, 0);
  cache.release(fill(cache, text(3)));
  CHECK_EQ(cache.kept(), 0);
  CHECK_EQ(known(cache, text(3)), std::size_t{0});
}

TEST("a beginning is shared as far as the limit of pages in use allows") {
  KvCache cache(kShape, 3, 3);
  cache.release(fill(cache, text(3)));
  const auto own = std::vector<KvCache::PageRef>{cache.take()};  // the third page's memory
  CHECK_EQ(cache.share(text(3)).size(), std::size_t{2});
  CHECK_EQ(cache.used(), 3);
}

int main() { return check::run_all(); }
