// The key-value cache: pages of kPageTokens positions for all layers, shared by the sequences that begin alike.
//
// A full page is named by its tokens and the page before it, so a chain of pages stands for one beginning of a text.
// Whoever needs that beginning takes the pages as they are: a session names only pages whose keys and values depend on
// nothing else, to the bit.  Pages that no sequence uses any more are kept until their memory is needed, those longest
// unused going first.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "plan/cache_shape.h"

namespace cpuinfer {

class KvCache {
  using Tokens = std::array<int32_t, kPageTokens>;
  using Key = std::pair<int64_t, Tokens>;  // the name of the page before, or kStart; the tokens
  struct Page {
    explicit Page(Buffer memory) : buffer(std::move(memory)) {}
    Buffer buffer;
    int64_t users = 0;
    int64_t name = kUnnamed;  // never given twice, so that one of a page long gone leads nowhere
    Key key{};                // of a named page
  };
  static constexpr int64_t kUnnamed = -1, kStart = 0;
  static constexpr int64_t kBlockBytes = int64_t{4} << 20;  // of pages allocated at once, to lie on huge pages

 public:
  using PageRef = std::list<Page>::iterator;

  // limit: the most pages that sequences ever hold at once; kept: the most there are in all before memory of unused
  // ones is taken again, or 0 to name and keep none.
  KvCache(CacheShape shape, int64_t limit, int64_t kept) : shape_(shape), limit_(limit), kept_limit_(kept) {}

  const CacheShape& shape() const noexcept { return shape_; }
  int64_t used() const noexcept { return static_cast<int64_t>(used_.size()); }
  int64_t kept() const noexcept { return static_cast<int64_t>(kept_.size()); }
  static uint8_t* address(PageRef page) noexcept { return page->buffer.as<uint8_t>(); }

  // A page of unspecified content.  Throws Error(kMemory) past the limit or when the system has no memory.
  PageRef take();
  // The longest known chain of full pages that the tokens begin with.  Throws as take does.
  std::vector<PageRef> share(std::span<const int32_t> tokens);
  // Names a page that holds kPageTokens tokens after those of `before` (null: at the start).  Returns the page to use
  // from now on: another of the same content, if there is one.  Never fails: a page may stay unnamed, and does after an
  // unnamed one.
  PageRef name(PageRef page, const PageRef* before, const int32_t* tokens) noexcept;
  // The pages of a sequence, in order: one user less for each.
  void release(std::span<const PageRef> pages) noexcept;

 private:
  void allocate();
  void forget(PageRef page) noexcept;
  void add_user(PageRef page) noexcept;

  CacheShape shape_;
  int64_t limit_, kept_limit_;
  int64_t next_name_ = kStart + 1;
  std::list<Page> fresh_;               // of the last block, never touched: the system has not given their memory yet
  std::list<Page> free_, used_, kept_;  // kept: the longest unused first; a page goes after those that follow it
  std::map<Key, PageRef> named_;
};

}  // namespace cpuinfer
