// The crew: fewer workers where that is faster, all of them where it is not.
#include <chrono>

#include "check.h"
#include "runtime/crew.h"

using cpuinfer::Crew;
using std::chrono::milliseconds;

namespace {

// Reports steps for so much time; returns how many of them had each number of workers.
struct Simulation {
  Crew crew;
  Crew::Time now{};

  template <typename Cost>  // (workers) -> {milliseconds of a step, whether a worker was held up}
  std::vector<int> run(milliseconds time, const Cost& cost, int rows = 1) {
    std::vector<int> steps(9);
    for (const Crew::Time end = now + time; now < end;) {
      const int active = crew.active();
      ++steps[static_cast<std::size_t>(active)];
      const auto [duration, held_up] = cost(active);
      now += milliseconds(duration);
      crew.report(rows, milliseconds(duration), held_up, now);
    }
    return steps;
  }
};

struct StepCost {
  int duration;
  bool held_up;
};

}  // namespace

TEST("undisturbed, all take part in every step") {
  Simulation simulation{Crew(4)};
  const std::vector<int> steps = simulation.run(milliseconds(5000), [](int) { return StepCost{3, false}; });
  CHECK_EQ(steps[1] + steps[2] + steps[3], 0);
}

TEST("where others are held up by one, the crew is smaller, and whole again once that ends") {
  Simulation simulation{Crew(2)};
  const auto disturbed = [](int active) { return active == 2 ? StepCost{15, true} : StepCost{5, false}; };
  const std::vector<int> first = simulation.run(milliseconds(10000), disturbed);
  CHECK(first[2] < first[1] / 10);
  const auto free = [](int active) { return StepCost{active == 2 ? 3 : 5, false}; };
  simulation.run(milliseconds(4000), free);
  const std::vector<int> later = simulation.run(milliseconds(5000), free);
  CHECK_EQ(later[1], 0);
}

TEST("several may sit out") {
  Simulation simulation{Crew(8)};
  const auto five_are_free = [](int active) { return active > 5 ? StepCost{20, true} : StepCost{25 / active, false}; };
  simulation.run(milliseconds(5000), five_are_free);
  const std::vector<int> steps = simulation.run(milliseconds(5000), five_are_free);
  CHECK(steps[5] > 10 * (steps[6] + steps[7] + steps[8]));
  CHECK_EQ(steps[1] + steps[2] + steps[3] + steps[4], 0);
}

TEST("long waits that fewer workers do not shorten cost little") {
  Simulation simulation{Crew(2)};
  const auto uneven = [](int active) { return StepCost{active == 2 ? 10 : 16, true}; };
  simulation.run(milliseconds(5000), uneven);
  const std::vector<int> steps = simulation.run(milliseconds(20000), uneven);
  CHECK(steps[1] < steps[2] / 20);
}

TEST("a trial that is clearly slower ends after two steps") {
  Simulation simulation{Crew(2)};
  const auto uneven = [](int active) { return StepCost{active == 2 ? 15 : 30, true}; };
  simulation.run(milliseconds(90), uneven);
  CHECK_EQ(simulation.crew.active(), 1);
  simulation.run(milliseconds(60), uneven);
  CHECK_EQ(simulation.crew.active(), 2);
}

TEST("another kind of step begins with the crew that was") {
  Simulation simulation{Crew(2)};
  simulation.run(milliseconds(90), [](int) { return StepCost{15, true}; });
  CHECK_EQ(simulation.crew.active(), 1);  // a trial
  simulation.run(milliseconds(1), [](int) { return StepCost{5, true}; }, 8);
  CHECK_EQ(simulation.crew.active(), 2);
}

int main() { return check::run_all(); }
