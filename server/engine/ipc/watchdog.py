"""Whether an engine's process has to be replaced, by its reports and by how long it waited for a processor. Pure."""

from server.engine.types.stats import EngineStats

# A longer pause between two looks means that the watcher itself did not run, which says nothing about the child.
LONGEST_TICK_S = 0.5
# A piece of work may take this many times as long as the child estimated: other processes may share the machine.
WORK_MARGIN = 4.0
# A child gets no new requests after this share of the time after which its silence costs it its place, but not sooner than after
# three reports that are missing: an idle child reports twice a second.
SILENCE_SHARE, LEAST_SILENCE_S = 0.25, 1.5


class Watchdog:
    """Judges a child process, which may be silent for a time, and have work without progress for a time.

    Both times are `start_timeout_s` before the first report, then `stall_timeout_s`. While a child loads, the time in which it
    waits for a processor does not count: on a machine that others keep busy it would be replaced again and again, and never load.
    A model may be so slow that one piece of its work takes longer; then the second is `WORK_MARGIN` times what the child
    estimated for it, up to `start_timeout_s`: a model's first run, from which it estimates, may be much slower than later ones.
    """

    def __init__(self, now_s: float, start_timeout_s: float, stall_timeout_s: float) -> None:
        self.silent_s = 0.0
        self.stuck_s = 0.0
        self._silence_limit_s = self._stall_limit_s = start_timeout_s
        self._start_timeout_s, self._stall_timeout_s = start_timeout_s, stall_timeout_s
        self._now_s = now_s
        self._queued_s = 0.0
        self._is_loading = True
        self._progress = (0, 0)

    def advance(self, now_s: float, queued_s: float = 0.0) -> None:
        """Let time pass. Call it several times a second, after the reports that have come.

        `queued_s` is how long the child has waited for a processor in all.
        """
        passed_s = min(now_s - self._now_s, LONGEST_TICK_S)
        if self._is_loading:
            passed_s = max(0.0, passed_s - max(0.0, queued_s - self._queued_s))
        self._now_s, self._queued_s = now_s, queued_s
        self.silent_s += passed_s
        self.stuck_s += passed_s

    def take_report(self, stats: EngineStats) -> None:
        self.silent_s = 0.0
        self._is_loading = False
        self._silence_limit_s = self._stall_timeout_s
        longest_s = min(WORK_MARGIN * stats.longest_work_s, self._start_timeout_s)
        self._stall_limit_s = max(self._stall_timeout_s, longest_s)
        progress = (stats.counters.steps, stats.counters.progress)
        if progress != self._progress or stats.waiting + stats.running + stats.live_jobs == 0:
            self.stuck_s = 0.0
        self._progress = progress

    @property
    def is_silent(self) -> bool:
        """Whether the child has reported nothing for so long that it gets no new requests."""
        return self.silent_s > max(SILENCE_SHARE * self._silence_limit_s, LEAST_SILENCE_S)

    @property
    def is_stuck(self) -> bool:
        """Whether the child has had work without progress for half of the time after which it has to be replaced."""
        return self.stuck_s > self._stall_limit_s / 2

    @property
    def problem(self) -> str | None:
        """Why the child has to be replaced; None while it is well."""
        if self.silent_s > self._silence_limit_s:
            return f"it reported nothing for {self._silence_limit_s:g} s"
        if self.stuck_s > self._stall_limit_s:
            return f"it had work and made no progress for {self._stall_limit_s:g} s"
        return None
