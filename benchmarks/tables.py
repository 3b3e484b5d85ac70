"""What the benchmark's numbers become: medians, ratios, shares, a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

GIB = 2**30
GOALS = {"lora": (2.3, 0.60), "full": (2.0, 0.60)}  # tokens/s at least, peak memory at most
TITLES = {"lora": "LoRA", "full": "Full finetuning"}


@dataclass
class Tally:
    """What was measured of one setting.

    Attributes:
        title: Its name in the table.
        side: `laura` or `peer`.
        precision: fp32 or bf16.
        spares: Trades time for memory; the goals are not set against it.
        rates: Real tokens per second of every timed step, a list for each turn.
        core_rates: Real tokens per second of processor time, summed over cores; a
            busy machine disturbs it less than the rate by the clock.
        peaks: Peak memory of each turn's process, in bytes.
        losses: Training losses of the last turn, step by step.
        failed: Why a turn gave nothing; empty if none did.
    """

    title: str
    side: str
    precision: str
    spares: bool = False
    rates: list[list[float]] = field(default_factory=list)
    core_rates: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    failed: str = ""

    def add(self, result: dict[str, Any]) -> None:
        """Take in one turn."""
        if "failed" in result:
            self.failed = str(result["failed"])
            return
        self.failed = ""
        pairs = zip(result["tokens"], result["seconds"], strict=True)
        self.rates.append([tokens / seconds for tokens, seconds in pairs])
        cores = zip(result["tokens"], result["core_seconds"], strict=True)
        self.core_rates.extend(tokens / seconds for tokens, seconds in cores)
        self.peaks.append(int(result["peak_memory_bytes"]))
        self.losses = [float(loss) for loss in result["losses"]]

    @property
    def tokens_per_second(self) -> float:
        """Median over all timed steps of all turns."""
        return statistics.median(rate for turn in self.rates for rate in turn)

    @property
    def tokens_per_core_second(self) -> float:
        """Median over all timed steps of all turns."""
        return statistics.median(self.core_rates)

    @property
    def peak_bytes(self) -> float:
        """Median over turns."""
        return statistics.median(self.peaks)

    def last_line(self) -> str:
        """The last turn in words."""
        if self.failed:
            return f"{self.title}: did not run ({self.failed[:150]})"
        rate, peak = statistics.median(self.rates[-1]), self.peaks[-1] / GIB
        return f"{self.title}: {rate:.0f} tokens/s, {peak:.1f} GiB, first loss {self.losses[0]:.3f}"

    def record(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        return {
            "title": self.title, "side": self.side, "precision": self.precision,
            "spares": self.spares,
            "tokens_per_second": self.rates, "tokens_per_core_second": self.core_rates,
            "peak_memory_bytes": self.peaks, "losses": self.losses, "failed": self.failed,
        }  # fmt: skip


def flops_per_token(method: str, facts: dict[str, Any]) -> float:
    """Operations that training needs for one real token, from the model's shapes.

    full: 6 N; LoRA: 4 N + 6 N_lora, where N counts the elements of the linear
    maps. The output map counts for the labelled share of tokens only, as no
    other token needs logits. Attention's products are left out. A setting that
    computes padding or unneeded logits does more, and is credited for this.
    """
    config = facts["config"]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, config["num_key_value_heads"] * width
    maps = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden),
            (hidden, inner), (hidden, inner), (inner, hidden)]  # fmt: skip
    layers = config["num_hidden_layers"]
    body = float(layers * sum(rows * columns for rows, columns in maps))
    low_rank = float(layers * facts["rank"] * sum(rows + columns for rows, columns in maps))
    head = float(hidden * config["vocab_size"] * facts["labelled_share"])
    if method == "full":
        return 6.0 * (body + head)
    return 4.0 * (body + head) + 6.0 * low_rank


def best_peer(tallies: list[Tally]) -> Tally | None:
    """The peer's fastest setting that spares no memory, among those that had the most turns."""
    peers = [t for t in tallies if t.side == "peer" and t.rates and not t.spares]
    most = max((len(t.rates) for t in peers), default=0)
    peers = [t for t in peers if len(t.rates) == most]
    return max(peers, key=lambda tally: tally.tokens_per_second, default=None)


def verdict(method: str, tallies: list[Tally]) -> dict[str, Any] | None:
    """Laura over the best peer; None while one of them is missing."""
    laura = next((t for t in tallies if t.side == "laura" and t.rates), None)
    peer = best_peer(tallies)
    if laura is None or peer is None:
        return None
    turns = zip(laura.rates, peer.rates, strict=False)
    ratios = [statistics.median(ours) / statistics.median(theirs) for ours, theirs in turns]
    peers = [t for t in tallies if t.side == "peer" and t.rates]
    leanest = min(peers, key=lambda tally: tally.peak_bytes)
    speed_goal, memory_goal = GOALS[method]
    speed = laura.tokens_per_second / peer.tokens_per_second
    memory = laura.peak_bytes / peer.peak_bytes
    return {
        "peer": peer.title, "speed": speed,
        "speed_by_core_time": laura.tokens_per_core_second / peer.tokens_per_core_second,
        "speed_by_turn": ratios, "memory": memory,
        "leanest": leanest.title,
        "speed_to_leanest": laura.tokens_per_second / leanest.tokens_per_second,
        "memory_to_leanest": laura.peak_bytes / leanest.peak_bytes,
        "reached": speed >= speed_goal and memory <= memory_goal,
    }  # fmt: skip


def method_table(
    method: str, tallies: list[Tally], facts: dict[str, Any], rates: list[dict[str, float]]
) -> str:
    """One method's table, and the ratio to the best peer beneath it.

    The share compares counted operations per second with the best matrix
    product measured in any turn at the setting's precision.
    """
    needed = flops_per_token(method, facts)
    best_rate = {name: max(rate[name] for rate in rates) for name in rates[0]}
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in best_rate.items())
    lines = [
        f"{TITLES[method]}: {needed / 1e9:.2f} GFLOP a real token; matrix product of this "
        f"machine on {facts['threads']} threads, GFLOP/s: {products}",
        f"{'':34}{'tokens/s':>9}{'range':>14}{'per core s':>12}{'peak GiB':>10}"
        f"{'share':>8}{'first loss':>12}",
    ]
    for tally in tallies:
        if not tally.rates:
            lines.append(f"{tally.title:34} did not run: {tally.failed[:100]}")
            continue
        every = [rate for turn in tally.rates for rate in turn]
        share = needed * tally.tokens_per_second / 1e9 / best_rate[tally.precision]
        spread = f"{min(every):.0f}-{max(every):.0f}"
        lines.append(
            f"{tally.title:34}{tally.tokens_per_second:9.0f}{spread:>14}"
            f"{tally.tokens_per_core_second:12.0f}{tally.peak_bytes / GIB:10.2f}"
            f"{100 * share:7.1f}%{tally.losses[0]:12.3f}"
        )
    return "\n".join([*lines, _verdict_line(method, tallies)])


def _verdict_line(method: str, tallies: list[Tally]) -> str:
    found = verdict(method, tallies)
    if found is None:
        return "no ratio: one side did not run"
    speed_goal, memory_goal = GOALS[method]
    turns = ", ".join(f"{ratio:.2f}" for ratio in found["speed_by_turn"])
    return (
        f"Laura / fastest peer ({found['peer']}): {found['speed']:.2f}x tokens/s (by turn {turns}; "
        f"by processor time {found['speed_by_core_time']:.2f}x) at "
        f"{100 * found['memory']:.0f} % of its peak memory; goal at least {speed_goal}x at no more "
        f"than {100 * memory_goal:.0f} %: {'reached' if found['reached'] else 'not reached'}\n"
        f"Laura / leanest peer ({found['leanest']}): {found['speed_to_leanest']:.2f}x tokens/s at "
        f"{100 * found['memory_to_leanest']:.0f} % of its peak memory"
    )
