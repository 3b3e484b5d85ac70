"""Who runs beside whom, where some sequences must not share a batch. No torch, no clock of its own.

Sequences of one group run side by side; the next group comes when the running one has had
its turn and has ended. A turn lasts as long as nobody else waits, and at least some seconds.
"""

from __future__ import annotations

from collections.abc import Callable


class Turns:
    """Lets one group run at a time.

    Args:
        seconds: Length of a turn while another group waits.
        clock: Seconds that only grow.

    Attributes:
        running: Sequences of the group whose turn it is.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._group: str | None = None
        self._began = 0.0
        self.running = 0

    def may_enter(self, group: str, others_wait: bool) -> bool:
        """Whether a sequence of this group may begin now.

        Args:
            group: Its group.
            others_wait: Whether a sequence of another group waits.
        """
        if group != self._group:
            return self.running == 0
        return not (others_wait and self._clock() - self._began >= self._seconds)

    def enter(self, group: str) -> None:
        """A sequence of this group begins."""
        if group != self._group:
            self._group, self._began = group, self._clock()
        self.running += 1

    def leave(self) -> None:
        """A sequence has ended."""
        self.running -= 1
