"""How fast an engine writes. No torch, no locks: whoever shares one guards it."""

from __future__ import annotations

import time
from collections import deque

RATE_SECONDS = 10.0


class TokenRate:
    """New tokens a second, over the last ten seconds."""

    def __init__(self) -> None:
        self._added: deque[tuple[float, int]] = deque()

    def add(self, tokens: int) -> None:
        """Count tokens that have just come."""
        self._added.append((time.monotonic(), tokens))

    def per_second(self) -> float:
        """The rate now."""
        begin = time.monotonic() - RATE_SECONDS
        while self._added and self._added[0][0] < begin:
            self._added.popleft()
        return sum(tokens for _, tokens in self._added) / RATE_SECONDS
