// Sequences of one loaded model: feeds tokens of several sequences through the plan in one step, samples and scores.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/worker_team.h"
#include "plan/plan.h"
#include "runtime/crew.h"
#include "runtime/kv_cache.h"
#include "runtime/sampler.h"

namespace cpuinfer {

enum class Want : uint8_t {
  kNothing,  // a part of a prompt
  kSample,   // the next token after the last one fed
  kScores,   // log-probability of each target
  kLogits,   // the logits of every row
};

// Tokens that a sequence takes in this step, at the positions after those it has.
struct Feed {
  int64_t sequence = 0;
  std::vector<int32_t> tokens;
  Want want = Want::kNothing;
  std::vector<int32_t> targets;  // kScores: one a token, the token whose probability is asked, or -1
};

struct FeedResult {
  Sampled sampled{};
  std::vector<float> scores;   // kScores: natural log-probability, one a token; 0 where the target is -1
  std::vector<float> logits;   // kLogits: [tokens][vocabulary]
  std::optional<Error> error;  // why this feed has no result: kNumerical, kMemory; the sequence is not advanced
};

struct SessionOptions {
  PlanLimits limits{};
  int threads = 1;
  int64_t cache_pages = 0;  // most cache pages in use at once
  int64_t kept_pages = 0;   // most cache pages there are because of what they hold; see KvCache
};

class Session {
 public:
  Session(std::shared_ptr<const Program> program, const KernelSet& kernels, const SessionOptions& options);

  // A new, empty sequence.  Without a sampler it can only score and give logits.
  int64_t open(std::shared_ptr<Sampler> sampler);
  void close(int64_t sequence);
  // Takes for an empty sequence what others have computed of the beginning of this prompt, and never all of it: the
  // last token is left to be fed.  With tile units that is whole pages of prompts, which alone they compute, so that
  // what is taken has the bits that feeding it would give.  Returns the positions taken, a multiple of kPageTokens.
  int64_t reuse(int64_t sequence, std::span<const int32_t> prompt);
  int64_t length(int64_t sequence) const;

  // Runs one step.  All-or-nothing: when it throws (a bad token, no memory, kCancelled), no sequence has moved.
  // `interrupted` is asked every 50 ms by the calling thread; true abandons the step.
  std::vector<FeedResult> step(const std::vector<Feed>& feeds, bool (*interrupted)() noexcept);

  // Abandons the running step from another thread.  Without a running step it does nothing.
  void cancel() noexcept;

  // Of every op and both stages, then of what follows the head; empty unless asked for.
  struct OpTime {
    std::string name;
    Profile::Stage stage;
    Profile::Time time;
  };
  std::vector<OpTime> profile() const;

  const Plan& plan() const noexcept { return plan_; }
  const KvCache& cache() const noexcept { return cache_; }
  const SessionOptions& options() const noexcept { return options_; }

 private:
  struct Sequence {
    int64_t length = 0;
    std::vector<KvCache::PageRef> pages;
    std::vector<uint8_t*> addresses;  // of the pages
    std::vector<int32_t> tail;        // the tokens of the last page, while it is not full
    std::shared_ptr<Sampler> sampler;
  };
  struct Output {  // one row whose logits are wanted
    int32_t row;
    std::size_t feed;
    std::size_t index;  // within the feed
  };

  const Sequence& find(int64_t sequence) const;
  Sequence& find(int64_t sequence) { return const_cast<Sequence&>(std::as_const(*this).find(sequence)); }
  void check(const std::vector<Feed>& feeds);
  void reserve_pages(const std::vector<Feed>& feeds);
  std::pair<std::size_t, std::size_t> tiled_tokens(const Sequence& sequence, std::size_t count) const noexcept;
  void advance(Sequence& sequence, const std::vector<int32_t>& tokens) noexcept;
  void name_last_page(Sequence& sequence) noexcept;
  void collect_rows(const std::vector<Feed>& feeds, std::vector<FeedResult>& results);
  void collect_run(const std::vector<Feed>& feeds, std::size_t feed, std::size_t begin, std::size_t end);
  void compute(const std::vector<Feed>& feeds, std::vector<FeedResult>& results, const Step& step);
  void finish_output(const Feed& feed, FeedResult& result, const Output& output, const float* logits);

  std::shared_ptr<const Program> program_;
  SessionOptions options_;
  WorkerTeam team_;
  Crew crew_;
  Plan plan_;
  KvCache cache_;
  std::map<int64_t, Sequence> sequences_;
  int64_t next_id_ = 0;
  mutable std::mutex mutex_;
  std::atomic<bool> stepping_{false}, cancel_{false};

  std::vector<int32_t> tokens_;  // of the rows of the step being run
  std::vector<int64_t> positions_;
  int64_t tiled_ = 0;  // of the rows the first, see Step
  std::vector<Run> runs_;
  std::vector<Output> outputs_;
};

}  // namespace cpuinfer
