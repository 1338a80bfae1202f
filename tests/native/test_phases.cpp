// Phases: every item once, each phase after the one before, whoever is late.
#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "core/worker_team.h"
#include "plan/phases.h"

using cpuinfer::Phases;
using cpuinfer::WorkerTeam;

namespace {

constexpr int64_t kItems[] = {1, 7, 0, 33, 2, 64, 1, 1, 16, 5};

}  // namespace

TEST("every item of every phase runs once, whatever the workers and however often") {
  for (const int workers : {1, 2, 3, 5}) {
    WorkerTeam team(workers);
    Phases phases(workers, std::size(kItems));
    for (int step = 0; step < 200; ++step) {
      std::vector<std::vector<int>> runs;
      for (const int64_t items : kItems) runs.emplace_back(static_cast<std::size_t>(items));
      phases.reset();
      auto body = [&](int worker) noexcept {
        for (std::vector<int>& phase : runs) {
          phases.run(worker, static_cast<int64_t>(phase.size()),
                     [&](int64_t item) { ++phase[static_cast<std::size_t>(item)]; });
        }
      };
      team.run(body);
      for (const std::vector<int>& phase : runs) {
        for (const int count : phase) CHECK_EQ(count, 1);
      }
    }
  }
}

TEST("items read what all items of the phase before have written, and settle waits for as much") {
  constexpr int kWorkers = 4;
  constexpr int64_t kCells = 40;
  WorkerTeam team(kWorkers);
  Phases phases(kWorkers, 2000);
  std::vector<int> cells(kCells), wrong(kWorkers);
  auto body = [&](int worker) noexcept {
    for (int phase = 1; phase <= 1000; ++phase) {
      phases.run(worker, kCells, [&](int64_t item) { cells[static_cast<std::size_t>(item)] = phase; });
      phases.settle(worker);
      phases.run(worker, kWorkers, [&](int64_t item) {
        for (const int cell : cells) wrong[static_cast<std::size_t>(item)] += cell != phase;
      });
    }
  };
  team.run(body);
  for (const int count : wrong) CHECK_EQ(count, 0);
}

TEST("the others do the share of a worker that does not come") {
  Phases phases(3, 4);
  std::vector<int> runs(100);
  for (int phase = 0; phase < 4; ++phase) {
    phases.run(1, 100, [&](int64_t item) { ++runs[static_cast<std::size_t>(item)]; });
  }
  for (const int count : runs) CHECK_EQ(count, 4);
  // Late, it finds nothing left and waits for nobody.
  for (int phase = 0; phase < 4; ++phase) {
    phases.run(2, 100, [&](int64_t item) { ++runs[static_cast<std::size_t>(item)]; });
  }
  for (const int count : runs) CHECK_EQ(count, 4);
}

TEST("a worker held up in an item holds up that item alone") {
  WorkerTeam team(2);
  Phases phases(2, 1);
  std::atomic<int> others{0};
  bool held = false;
  auto body = [&](int worker) noexcept {
    phases.run(worker, 50, [&](int64_t item) {
      if (item == 25) {  // the first of worker 1's own
        while (others.load() < 49) std::this_thread::yield();
        held = true;
      } else {
        others.fetch_add(1);
      }
    });
  };
  team.run(body);
  CHECK(held);
}

TEST("once abandoned, no item runs and no worker waits") {
  WorkerTeam team(2);
  Phases phases(2, 20);
  std::atomic<int> runs{0};
  auto body = [&](int worker) noexcept {
    for (int phase = 0; phase < 20; ++phase) {
      if (worker == 0 && phase == 10) {
        phases.settle(worker);
        phases.abandon();
      }
      phases.run(worker, 8, [&](int64_t) { runs.fetch_add(1); });
    }
  };
  team.run(body);
  CHECK(runs.load() >= 80);
  CHECK(runs.load() <= 88);  // worker 1 may have begun the phase
  CHECK(phases.abandoned());
  phases.reset();
  CHECK(!phases.abandoned());
}

int main() { return check::run_all(); }
