"""Asking through a server: streams side by side, keys, faults, bases that cannot chat."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from laura.results.errors import UsageError
from laura.serve.chat_client import RefusedError, ServerPanel
from laura.serve.chatting import Chat, Reply, Sampling, Turn
from tests.serve.page_server import (
    ANSWERS,
    BASE,
    HOSTILE,
    KEY,
    POET,
    QUESTION,
    RECORD,
    SLOW,
    Behaviour,
    served,
)


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
def url(behaviour: Behaviour) -> Iterator[str]:
    with served(behaviour) as address:
        yield address


def ask(panel: ServerPanel, question: str) -> Turn:
    return Chat(panel, Sampling(0.5, 30, 7)).ask(question, lambda turn: None)


def once_all_begin(text: str, then: Callable[[Turn], object]) -> Callable[[Turn], None]:
    """Watches a turn from a thread of its own; `then` is called once every answer begins so."""

    def watch(turn: Turn) -> None:
        def wait() -> None:
            until = time.monotonic() + 30
            replies = turn.replies.values()
            while time.monotonic() < until and not all(r.text.startswith(text) for r in replies):
                time.sleep(0.01)
            then(turn)

        threading.Thread(target=wait).start()

    return watch


def test_all_models_answer_at_once(url: str, behaviour: Behaviour) -> None:
    behaviour.ready.set()
    panel = ServerPanel(url + "/v1/")
    assert [(one.name, one.is_base) for one in panel.members] == [
        (BASE, True), (POET, False), (HOSTILE, False)
    ]  # fmt: skip
    assert panel.members[1].record == RECORD
    assert panel.members[1].warnings == ("forgets more than the policy allows",)
    turn = ask(panel, QUESTION)
    assert {name: reply.text for name, reply in turn.replies.items()} == ANSWERS
    assert turn.replies[BASE] == Reply(ANSWERS[BASE], 10, "stop")
    for path, body in behaviour.asked:
        assert path == "/v1/chat/completions" and body["stream"] is True
        assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 30, 7)


def test_answers_are_seen_while_they_are_written(url: str, behaviour: Behaviour) -> None:
    seen: list[list[str]] = []

    def found(turn: Turn) -> None:
        seen.append([reply.text for reply in turn.replies.values()])
        behaviour.ready.set()

    panel = ServerPanel(url, chosen=[POET, BASE])
    Chat(panel, Sampling()).ask(QUESTION, once_all_begin("The", found))
    assert seen == [["The", "The"]]


def test_chosen_models_come_with_the_base_first(url: str) -> None:
    panel = ServerPanel(url, chosen=[POET, BASE])
    assert [one.name for one in panel.members] == [BASE, POET]
    with pytest.raises(UsageError, match="offers no 'nobody'; it offers 'tiny-llama', 'poet'"):
        ServerPanel(url, chosen=["nobody"])


def test_ctrl_c_stops_here_and_on_the_server(url: str, behaviour: Behaviour) -> None:
    # Where the tests run in the background, the shell has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = once_all_begin("word word", lambda turn: signal.raise_signal(signal.SIGINT))
    try:
        panel = ServerPanel(url, chosen=[BASE, POET])
        turn = Chat(panel, Sampling(0.5, 30, 7)).ask(SLOW, stop)
    finally:
        signal.signal(signal.SIGINT, before)
    for reply in turn.replies.values():
        assert reply.finish == "stopped" and reply.text.startswith("word word")
    assert behaviour.broken_off.wait(10)


def test_a_failing_model_leaves_the_others_alone(url: str, behaviour: Behaviour) -> None:
    behaviour.ready.set()
    behaviour.failing = POET
    replies = ask(ServerPanel(url, chosen=[BASE, POET]), QUESTION).replies
    assert replies[BASE].finish == "stop"
    assert replies[POET] == Reply("The cat sat", None, "failed", "the engine has stopped")
    behaviour.failing, behaviour.full = "", POET
    replies = ask(ServerPanel(url, chosen=[BASE, POET]), QUESTION).replies
    assert replies[BASE].finish == "stop"
    assert replies[POET].error == "The queue is full; try again in 7 s"


def test_a_base_without_a_chat_template(url: str, behaviour: Behaviour) -> None:
    behaviour.ready.set()
    behaviour.has_template = False
    turn = ask(ServerPanel(url, chosen=[BASE]), QUESTION)
    assert turn.replies[BASE].text == ANSWERS[BASE]
    path, body = behaviour.asked[-1]
    assert path == "/v1/completions" and body["prompt"] == f"{QUESTION}\n\n"


def test_keys(url: str, behaviour: Behaviour) -> None:
    behaviour.needs_keys = True
    with pytest.raises(RefusedError, match=r"A key is needed; it is read from .* LAURA_API_KEY"):
        ServerPanel(url)
    with pytest.raises(RefusedError, match="not known"):
        ServerPanel(url, "sk-laura-wrong")
    assert len(ServerPanel(url, KEY).members) == 3


def test_addresses_that_are_none_or_dead() -> None:
    for url in ("ftp://x", "localhost:8000", ""):
        with pytest.raises(UsageError, match="is no address; give one as http"):
            ServerPanel(url)
    with pytest.raises(UsageError, match="does not answer as a server of models"):
        ServerPanel("http://127.0.0.1:9")
