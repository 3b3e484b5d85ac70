"""A base and adapters loaded here: answers equal the engine's, records are read, limits told."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.engine.kv_cache import BatchAttention
from laura.models.adapters import attach, save_adapter
from laura.models.load import Base, load_base
from laura.models.lora import LoraSettings, lora_layers
from laura.results.errors import AdapterError, UsageError
from laura.results.schema import Record, write_record
from laura.serve.chat_in_process import LoadedPanel
from laura.serve.chatting import Chat, Sampling, Turn
from tests.test_record import VALUE


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the micro base that changes what it says, with a record of another base."""
    folder = tmp_path_factory.mktemp("adapters") / "loud"
    base = load_base("micro", device="cpu")
    settings = LoraSettings(rank=4, targets="all")
    attach(base.model, settings, seed=0)
    torch.manual_seed(0)
    for layer in lora_layers(base.model).values():
        torch.nn.init.normal_(layer.B, std=0.3)
    save_adapter(base.model, folder, settings, "micro")
    write_record(folder, Record.model_validate_json(json.dumps(VALUE)))
    return folder


@pytest.fixture(scope="module")
def panel(adapter: Path) -> LoadedPanel:
    return LoadedPanel("micro", {"loud": adapter}, "cpu")


def test_answers_are_the_models_own(panel: LoadedPanel) -> None:
    turn = Chat(panel, Sampling(max_tokens=16)).ask("Where does Ada live?", lambda turn: None)
    reply = turn.replies["base"]
    assert reply.text == slowly(load_base("micro", device="cpu"))
    assert reply.finish in ("stop", "length") and reply.tokens is not None
    assert turn.replies["loud"].text != reply.text


def test_rotated_inputs_are_served_too(tmp_path: Path) -> None:
    base, settings = load_base("micro", device="cpu"), LoraSettings(1, 1.0, block_size=16)
    attach(base.model, settings, seed=0)
    for parameter in base.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(base.model, tmp_path / "turned", settings, "micro")
    turned = LoadedPanel("micro", {"turned": tmp_path / "turned"}, "cpu")
    chat = Chat(turned, Sampling(max_tokens=16))
    replies = chat.ask("Where does Ada live?", lambda turn: None).replies
    assert replies["turned"].text == slowly(base) != replies["base"].text


def slowly(base: Base) -> str:
    """The greedy answer, token by token."""
    prompt = "<|user|>Where does Ada live?<|end|><|assistant|>"
    ids = base.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    reached = []
    for _ in range(16):  # greedy, the slow way
        with torch.no_grad():
            ids = torch.cat([ids, base.model(ids).logits[:, -1:].argmax(-1)], 1)
        if ids[0, -1] == base.tokenizer.eos_token_id:
            break
        reached.append(int(ids[0, -1]))
    return str(base.tokenizer.decode(reached, skip_special_tokens=True))


def test_the_record_is_told_and_another_base_warned_of(panel: LoadedPanel) -> None:
    base, loud = panel.members
    assert base.is_base and base.record is None and base.warnings == ()
    assert loud.record is not None and loud.record["learning"] == VALUE["learning"]
    assert "trained on m with other weights" in loud.warnings[0]


def test_answers_grow_word_by_word(panel: LoadedPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel._scheduler, "drafts", False)  # each step tells one token
    seen: list[list[str]] = []
    step = panel._scheduler.step

    def watched(turn: Turn) -> None:
        def stepped() -> Any:
            seen.append([reply.text for reply in turn.replies.values()])
            return step()

        panel._scheduler.step = stepped  # type: ignore[method-assign]

    try:
        turn = Chat(panel, Sampling(max_tokens=12)).ask("Where does Ada live?", watched)
    finally:
        panel._scheduler.step = step  # type: ignore[method-assign]
    for place, reply in enumerate(turn.replies.values()):
        grown = [texts[place] for texts in seen]
        assert len(set(grown)) > 5
        assert all(reply.text.startswith(text) for text in grown)


def test_a_stopped_answer_leaves_the_model_as_it_was(
    panel: LoadedPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the loud one says, and so how soon it ends, is the processor's rounding; and drafts from
    # the answers before bring four tokens a pass. So that none has ended by itself in the third:
    monkeypatch.setattr(panel._scheduler, "drafts", False)
    monkeypatch.setattr(panel._scheduler, "end_ids", frozenset())
    chat = Chat(panel, Sampling(max_tokens=12))
    before = chat.ask("Where does Ada live?", lambda turn: None)
    chat.turns.clear()
    attended, passes = BatchAttention.attended, []
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop_in_the_third(work: BatchAttention, layer: int, *given: Any) -> Any:
        passes.extend([1] if layer == 1 else [])
        if layer == 1 and len(passes) == 3:
            signal.raise_signal(signal.SIGINT)
        return attended(work, layer, *given)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(BatchAttention, "attended", stop_in_the_third)
            stopped = chat.ask("Where does Ada live?", lambda turn: None)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert {reply.finish for reply in stopped.replies.values()} == {"stopped"}
    assert all(
        reply.text and before.replies[name].text.startswith(reply.text)
        for name, reply in stopped.replies.items()
    )
    chat.turns.clear()
    assert chat.ask("Where does Ada live?", lambda turn: None).replies == before.replies


def test_drawn_answers_follow_their_seed(panel: LoadedPanel) -> None:
    def drawn(seed: int) -> list[str]:
        turn = Chat(panel, Sampling(1.0, 16, seed)).ask("Where does Ada live?", lambda turn: None)
        return [reply.text for reply in turn.replies.values()]

    assert drawn(1) == drawn(1) != drawn(2)


def test_an_adapter_with_trained_lengths_says_what_to_do(tmp_path: Path) -> None:
    base = load_base("micro", device="cpu")
    settings = LoraSettings(rank=2, dora=True)
    attach(base.model, settings, seed=0)
    save_adapter(base.model, tmp_path / "long", settings, "micro")
    with pytest.raises(AdapterError, match=r"long uses DoRA.*merge it"):
        LoadedPanel("micro", {"long": tmp_path / "long"}, "cpu")


def test_a_conversation_that_is_too_long_says_so(panel: LoadedPanel) -> None:
    chat = Chat(panel, Sampling(max_tokens=500))
    with pytest.raises(UsageError, match="this base reads 512 together; begin anew with /clear"):
        chat.ask("word " * 40, lambda turn: None)
    assert chat.turns == []


def test_an_adapter_of_another_base_is_refused(adapter: Path, tiny_folder: Path) -> None:
    with pytest.raises(AdapterError):
        LoadedPanel(str(tiny_folder), {"loud": adapter}, "cpu")


def test_a_base_without_a_template_answers_each_question_alone(
    tiny_folder: Path,
) -> None:
    panel = LoadedPanel(str(tiny_folder), {}, "cpu")
    panel._has_template = False
    chat = Chat(panel, Sampling(max_tokens=4))
    first = chat.ask("the cat", lambda turn: None)
    chat.ask("a dog", lambda turn: None)
    assert chat.ask("the cat", lambda turn: None).replies == first.replies
