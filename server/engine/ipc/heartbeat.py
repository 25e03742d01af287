"""Whether a child process lives, judged by what it reports of itself; it knows nothing of processes."""

from server.engine.types.stats import EngineStats

# A longer pause between two looks means that the watcher itself did not run, which says nothing about the child.
LONGEST_TICK_S = 0.5


class Watchdog:
    """How long a child has been silent, and how long it has had work and ended no step."""

    def __init__(self, now_s: float) -> None:
        self.silent_s = 0.0
        self.stuck_s = 0.0
        self._now_s = now_s
        self._steps = 0

    def look(self, now_s: float) -> None:
        """Let time pass; call it several times a second, and `beat` first where a report has come."""
        passed_s = min(now_s - self._now_s, LONGEST_TICK_S)
        self._now_s = now_s
        self.silent_s += passed_s
        self.stuck_s += passed_s

    def beat(self, stats: EngineStats) -> None:
        """Take a report of the child."""
        self.silent_s = 0.0
        if stats.counters.steps != self._steps or stats.waiting + stats.running + stats.live_jobs == 0:
            self.stuck_s = 0.0
        self._steps = stats.counters.steps
