// Pages are allocated when first needed and move between three lists: free, used, and kept for their content.
#include "runtime/kv_cache.h"

#include <algorithm>
#include <new>
#include <string>

#include "core/error.h"

namespace cpuinfer {

KvCache::PageRef KvCache::take() {
  if (used() >= limit_) {
    throw Error(Fault::kMemory, "key-value cache: all " + std::to_string(limit_) + " pages of " +
                                    std::to_string(kPageTokens) + " tokens are in use");
  }
  if (free_.empty() && !kept_.empty() && used() + kept() >= kept_limit_) {
    forget(kept_.begin());
    free_.splice(free_.end(), kept_, kept_.begin());
  }
  if (free_.empty()) {
    if (fresh_.empty()) allocate();
    free_.splice(free_.end(), fresh_, fresh_.begin());
  }
  const PageRef page = std::prev(free_.end());
  page->users = 1;
  used_.splice(used_.end(), free_, page);
  return page;
}

void KvCache::allocate() {
  const auto bytes = static_cast<std::size_t>(shape_.page_bytes());
  const int64_t wanted = kBlockBytes / shape_.page_bytes(), room = limit_ - used() - kept();
  const auto count = static_cast<std::size_t>(std::max<int64_t>(1, std::min(wanted, room)));
  try {
    const auto whole = static_cast<std::size_t>(round_up(shape_.page_bytes(), int64_t{kCacheLine}));
    BufferPool block(count * whole);
    for (std::size_t i = 0; i < count; ++i) fresh_.emplace_back(block.take(bytes));
  } catch (const std::bad_alloc&) {
    throw Error(Fault::kMemory, "key-value cache: the system has no memory for another page of " +
                                    std::to_string(shape_.page_bytes()) + " bytes");
  }
}

std::vector<KvCache::PageRef> KvCache::share(std::span<const int32_t> tokens) {
  std::vector<PageRef> chain;
  chain.reserve(tokens.size() / kPageTokens);
  Key key{kStart, {}};
  for (std::size_t at = 0; at + kPageTokens <= tokens.size(); at += kPageTokens) {
    std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(at), kPageTokens, key.second.begin());
    const auto found = named_.find(key);
    if (found == named_.end()) break;
    if (found->second->users == 0 && used() >= limit_) break;
    add_user(found->second);
    chain.push_back(found->second);
    key.first = found->second->name;
  }
  return chain;
}

KvCache::PageRef KvCache::name(PageRef page, const PageRef* before, const int32_t* tokens) noexcept {
  const int64_t parent = before == nullptr ? kStart : (*before)->name;
  if (kept_limit_ == 0 || parent == kUnnamed) return page;
  page->key.first = parent;
  std::copy_n(tokens, kPageTokens, page->key.second.begin());
  try {
    const auto [entry, added] = named_.emplace(page->key, page);
    if (added) {
      page->name = next_name_++;
      return page;
    }
    add_user(entry->second);
    release({&page, 1});
    return entry->second;
  } catch (const std::bad_alloc&) {
    return page;
  }
}

void KvCache::release(std::span<const PageRef> pages) noexcept {
  for (std::size_t i = pages.size(); i-- > 0;) {
    const PageRef page = pages[i];
    if (--page->users > 0) continue;
    std::list<Page>& list = page->name == kUnnamed ? free_ : kept_;
    list.splice(list.end(), used_, page);
  }
}

void KvCache::forget(PageRef page) noexcept {
  named_.erase(page->key);
  page->name = kUnnamed;
}

void KvCache::add_user(PageRef page) noexcept {
  if (page->users++ == 0) used_.splice(used_.end(), kept_, page);
}

}  // namespace cpuinfer
