"""Models that answer `laura chat` in tests at once, or without end; no torch.

python -m tests.cli.panel    a conversation with them on a terminal
"""

from __future__ import annotations

import sys
import time
import types
from typing import Any, ClassVar

from laura.serve.chatting import Member, Messages, Reply, Sampling

BASE, POET = "the cat sat on the mat", "the dog sat on {} the mat"
ENDLESS = "Write for ever"
RECORD = {
    "learning": {
        "tasks": ["gsm8k"], "value": 0.2, "stderr": 0.01, "interval": [0.1, 0.3],
        "unit": "share", "level": 0.95, "seeds": 3,
    },
    "forgetting": {
        "tasks": ["hellaswag"], "value": -0.0121, "stderr": 0.005, "interval": [-0.03, 0.01],
        "unit": "share", "level": 0.95, "seeds": 3,
    },
    "claims": {"a": "supported", "b": "undecided"},
}  # fmt: skip


class Panel:
    """A base and an adapter; what they are asked is kept."""

    asked: ClassVar[list[dict[str, Messages]]]
    failing = False

    def __init__(self, *words: Any) -> None:
        type(self).asked = []
        self.members = [Member("base", True), Member("poet", False, RECORD)]

    def ask(
        self, conversations: dict[str, Messages], sampling: Sampling, replies: dict[str, Reply]
    ) -> None:
        """Answer with the same words, the poet with how many it was reminded of."""
        type(self).asked.append(conversations)
        while conversations["base"][-1]["content"] == ENDLESS:
            replies["base"].text += "word "
            time.sleep(0.01)
        for name, reply in replies.items():
            if self.failing and name == "poet":
                reply.finish, reply.error = "failed", "the engine has stopped"
            else:
                count = len(conversations[name])
                reply.text = BASE if name == "base" else POET.format(count)
                reply.tokens, reply.finish = len(reply.text.split()), "stop"


if __name__ == "__main__":
    from laura.cli.app import main

    place = types.ModuleType("laura.serve.chat_in_process")
    place.LoadedPanel = Panel  # type: ignore[attr-defined]
    sys.modules[place.__name__] = place
    sys.argv = ["laura", "chat", "micro"]
    main()
