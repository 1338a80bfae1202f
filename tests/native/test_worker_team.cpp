// The worker team under load: every worker runs, barriers separate phases, idle workers wake again.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <numeric>

#include "check.h"
#include "core/error.h"
#include "core/worker_team.h"

using cpuinfer::WorkerTeam;

TEST("every worker runs the body once") {
  for (const int size : {1, 2, 3, 7}) {
    WorkerTeam team(size);
    std::vector<int> runs(static_cast<std::size_t>(size));
    auto body = [&](int worker) noexcept { ++runs[static_cast<std::size_t>(worker)]; };
    for (int i = 0; i < 100; ++i) team.run(body);
    for (const int count : runs) CHECK_EQ(count, 100);
  }
}

TEST("the first workers may work without the others, who come again when called") {
  WorkerTeam team(4);
  std::vector<int> runs(4);
  auto body = [&](int worker) noexcept {
    ++runs[static_cast<std::size_t>(worker)];
    team.barrier();
  };
  for (int i = 0; i < 300; ++i) team.run(body, i % 4 + 1);
  CHECK_EQ(runs[0], 300);
  CHECK_EQ(runs[1], 225);
  CHECK_EQ(runs[2], 150);
  CHECK_EQ(runs[3], 75);
}

TEST("a barrier separates what is written before it from what is read after it") {
  constexpr int kWorkers = 4;
  WorkerTeam team(kWorkers);
  std::vector<int> cells(kWorkers);
  std::vector<int> wrong(kWorkers);
  auto body = [&](int worker) noexcept {
    for (int phase = 1; phase <= 2000; ++phase) {
      cells[static_cast<std::size_t>(worker)] = phase;
      team.barrier();
      if (cells[static_cast<std::size_t>((worker + 1) % kWorkers)] != phase) ++wrong[static_cast<std::size_t>(worker)];
      team.barrier();
    }
  };
  team.run(body);
  CHECK_EQ(std::accumulate(wrong.begin(), wrong.end(), 0), 0);
}

TEST("workers that fell asleep wake for the next piece of work") {
  WorkerTeam team(3);
  std::atomic<int> total{0};
  auto body = [&](int) noexcept { total.fetch_add(1); };
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    team.run(body);
  }
  CHECK_EQ(total.load(), 15);
}

TEST("an idle team uses no processor time") {
  WorkerTeam team(2);
  auto body = [](int) noexcept {};
  team.run(body);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const double used = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  CHECK(used < 0.05);
}

TEST("sizes out of range are refused") {
  for (const int size : {0, -1, 2000}) {
    bool refused = false;
    try {
      WorkerTeam team(size);
    } catch (const cpuinfer::Error& error) {
      refused = error.fault() == cpuinfer::Fault::kInvalid;
    }
    CHECK(refused);
  }
}

#if !defined(__SANITIZE_THREAD__)
TEST("a forked child is told to load the model itself") {
  WorkerTeam team(2);
  const pid_t child = fork();
  if (child == 0) {
    auto body = [](int) noexcept {};
    try {
      team.run(body);
    } catch (const cpuinfer::Error&) {
      _exit(0);
    }
    _exit(1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK_EQ(WEXITSTATUS(status), 0);
}

TEST("in a forked child the parent's team ends without touching the child's own") {
  auto old = std::make_unique<WorkerTeam>(3);
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> total{0};
    auto body = [&](int worker) noexcept { total += worker; };
    {
      WorkerTeam first(3), second(3);
      old.reset();
      first.run(body);
      second.run(body);
    }
    _exit(total.load() == 6 ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), 0);
}
#endif

int main() { return check::run_all(); }
