"""What the figures should be."""

from __future__ import annotations

from dataclasses import dataclass

from bench.series import SERVICE, Series, ratio


@dataclass(frozen=True, slots=True)
class Goal:
    """For one figure of the service, or for its ratio to another contender's."""

    workload: str
    measure: str  #: how it begins
    sinks: tuple[str, ...]  #: empty: all
    versus: str  #: empty: the figure itself
    least: float | None = None
    most: float | None = None

    def of(self, series: Series, versus: str) -> bool:
        """Whether it is about this figure (``versus`` empty), or about its ratio to that contender's."""
        return (
            series.contender == SERVICE
            and (series.workload, versus) == (self.workload, self.versus)
            and series.measure.startswith(self.measure)
            and (not self.sinks or series.sink in self.sinks)
        )

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        bound = self.most if self.least is None else self.least
        assert bound is not None
        return f"{'≤' if self.least is None else '≥'} {bound:,.10g}"


GOALS = (
    Goal("distinct rows", "end to end", ("postgres",), "limit", least=0.75),
    Goal("distinct rows", "end to end", ("mysql",), "handwritten", least=2.2),
    Goal("distinct rows", "end to end", ("sqlite",), "datasette", least=2.5),
    Goal("distinct rows", "end to end", ("jsonl",), "", least=120_000),
    Goal("whole lives", "end to end", (), "", least=100_000),
    Goal("single rows", "answered", (), "bare handler", least=0.65),
    Goal("at 20,000 rows/s", "p50", ("postgres",), "", most=4.5),
    Goal("at 20,000 rows/s", "p99", ("postgres",), "", most=10),
    Goal("at 40,000 rows/s", "p99", ("postgres",), "", most=20),
    Goal("batch size", "dearest / cheapest", (), "", most=1.3),
    Goal("buffered", "dearest / cheapest", (), "", most=1.3),
    Goal("flushed on demand", "dearest / cheapest", (), "", most=1.3),
    Goal("replay", "start after a crash", (), "", least=100_000),
    Goal("memory", "idle", (), "", most=100),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a figure or a ratio stands to its goal."""

    series: Series
    versus: str
    value: float
    goal: Goal | None

    @property
    def text(self) -> str:
        if self.goal is None:
            return ""
        return f"{self.goal} {'met' if self.goal.met(self.value) else 'MISSED'}"


def judge(subject: Series, other: Series | None = None) -> Verdict:
    """``subject`` by itself, or beside ``other``."""
    versus = other.contender if other else ""
    value = ratio(subject, other) if other else subject.median
    goal = next((goal for goal in GOALS if goal.of(subject, versus)), None)
    return Verdict(subject, versus, value, goal)
