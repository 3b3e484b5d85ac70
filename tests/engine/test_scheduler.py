"""The scheduler over a model that serves, against each answer alone without cache or batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from laura.engine.sampler import Draw
from laura.engine.scheduler import Scheduler, TokenSequence
from laura.models.adapter_files import read_settings
from tests.engine.alone import (
    ATTENTION,
    MLP,
    Heard,
    alone,
    hear,
    made_adapter,
    merged,
    next_logits,
    one_answer,
    serving,
    tiny,
)
from tests.engine.test_many_adapters import folders, pytestmark

__all__ = ["folders", "pytestmark"]

CACHE_BYTES = 2**25
ADAPTERS = {
    "qv4": made_adapter(1, 4, ATTENTION[:3:2]),
    "mlp8": made_adapter(2, 8, MLP),
    "all3": made_adapter(3, 3, (*ATTENTION, *MLP)),
    "all3b": made_adapter(4, 3, (*ATTENTION, *MLP)),
    "all3c": made_adapter(5, 3, (*ATTENTION, *MLP), scale=1.0),
    "one": made_adapter(6, 5, ("mlp.up_proj", "self_attn.k_proj"), layers=(1,)),
}
PROMPTS = ["the dog ran", "question: how many cats? answer", "a", "1 2 3 4 5 6 7", "An apple TO IT"]


@pytest.fixture
def engine(tiny_tokenizer: Any) -> Iterator[Scheduler]:
    with serving(tiny(), tiny_tokenizer, cache_bytes=CACHE_BYTES, slots=8) as made:
        yield made


def place_all(engine: Scheduler) -> dict[str | None, Any]:
    slots = {name: engine.runner.slots.place(name, name, *own) for name, own in ADAPTERS.items()}
    return {None: None, **slots}


def wanted(ids: list[int], limit: int, **more: Any) -> TokenSequence:
    return TokenSequence("tenant", tuple(ids), limit, **{"ignore_end": True, **more})


def distance_of_best(model: Any, tokens: list[int]) -> float:
    """By how much the most likely token leads the second."""
    best = next_logits(model, tokens).topk(2).values
    return float(best[0] - best[1])


def check_greedy(one: TokenSequence, model: Any) -> None:
    """Tokens as alone; a difference counts only where the choice was no tie."""
    expected = alone(model, one.prompt, one.limit)
    for place, (found, token) in enumerate(zip(one.tokens, expected, strict=True)):
        if found != token:
            lead = distance_of_best(model, [*one.prompt, *expected[:place]])
            assert lead < 1e-4, f"token {place} differs and the lead was {lead}"
            return


def test_answers_of_many_lengths_and_adapters_equal_each_alone(
    engine: Scheduler, tiny_tokenizer: Any
) -> None:
    slots = place_all(engine)
    models = {name: merged(ADAPTERS[name] if name else None) for name in slots}
    source, heard = random.Random(0), dict[TokenSequence, Heard]()
    names, asked = {}, []
    for number in range(40):
        prompt = tiny_tokenizer.encode(PROMPTS[number % 5] * source.choice([1, 1, 2, 9]))
        name = source.choice(list(slots))
        one = wanted(prompt, source.choice([1, 2, 7, 20, 150]), slot=slots[name])
        names[one] = name
        assert engine.add(one)
        asked.append(one)
        hear(engine, heard, steps=source.choice([0, 0, 1, 5]))
        if number % 7 == 3:
            engine.drop(asked[source.randrange(len(asked))])
    hear(engine, heard)
    ended = [one for one in asked if one in heard and heard[one].finish]
    assert len(ended) >= 33
    for one in ended:
        check_greedy(one, models[names[one]])
        assert heard[one].finish == "length"
        assert heard[one].text == tiny_tokenizer.decode(one.tokens, skip_special_tokens=True)
    assert engine.kv_cache.rows == 0
    assert all(slot.uses == 0 for slot in engine.runner.slots.held.values())
    assert len({heard[one].text for one in ended}) > 15


def test_adapters_of_peft_answer_as_there(
    engine: Scheduler, folders: list[Path], tiny_tokenizer: Any
) -> None:
    """Patterns of ranks, rsLoRA and single layers, against PEFT's own merge."""
    prompt = tiny_tokenizer.encode("question: how many cats? answer")
    asked = []
    for folder in folders:
        settings = read_settings(folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        slot = engine.runner.slots.place(folder.name, folder.name, settings, tensors)
        asked.append(wanted(prompt, 16, slot=slot))
        engine.add(asked[-1])
    hear(engine, {})
    for folder, one in zip(folders, asked, strict=True):
        check_greedy(one, PeftModel.from_pretrained(tiny(), folder).merge_and_unload())
    assert len({tuple(one.tokens) for one in asked}) > 4


def test_a_long_prompt_is_read_in_parts_while_others_run(
    engine: Scheduler, tiny_tokenizer: Any
) -> None:
    engine.part_tokens, engine.drafts = 16, False
    short = wanted(tiny_tokenizer.encode("the dog ran"), 40)
    long = wanted(tiny_tokenizer.encode("the cat sat on a mat. " * 18), 5)
    heard: dict[TokenSequence, Heard] = {}
    engine.add(short)
    hear(engine, heard, steps=1)
    engine.add(long)
    before = len(short.tokens)
    hear(engine, heard, steps=6)
    assert len(short.tokens) == before + 6
    assert not long.tokens and engine.kv_cache.tokens > 6 * 16
    hear(engine, heard)
    check_greedy(short, tiny())
    check_greedy(long, tiny())


def test_scores_of_answer_and_prompt_equal_a_plain_pass(
    engine: Scheduler, tiny_tokenizer: Any
) -> None:
    engine.part_tokens = 7
    slot = place_all(engine)["mlp8"]
    prompt = tiny_tokenizer.encode("question: how many cats? answer the dog ran to it")
    one = wanted(prompt, 6, slot=slot, top=3, scores_prompt=True)
    neighbour = wanted(prompt, 9, top=0)
    heard: dict[TokenSequence, Heard] = {}
    engine.add(neighbour)
    hear(engine, heard, steps=2)
    engine.add(one)
    hear(engine, heard)
    whole = [*prompt, *one.tokens]
    with torch.no_grad():
        model = merged(ADAPTERS["mlp8"])
        nats = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    scores = [*heard[one].prompt, *heard[one].scores]
    assert [token for token, _, _ in scores] == whole
    assert scores[0][1:] == (None, ())
    for place, (token, value, best) in enumerate(scores[1:]):
        assert value == pytest.approx(nats[place, token].item(), abs=1e-4)
        values, ids = nats[place].topk(3)
        assert [i for i, _ in best] == ids.tolist()
        assert [v for _, v in best] == pytest.approx(values.tolist(), abs=1e-4)
    assert all(best == () for _, _, best in heard[neighbour].scores)
    assert len(heard[neighbour].scores) == 9 and heard[neighbour].prompt == ()


def test_a_prompt_can_be_scored_without_an_answer(engine: Scheduler, tiny_tokenizer: Any) -> None:
    prompt = tiny_tokenizer.encode("the cat sat on a mat")
    one = wanted(prompt, 0, top=0, scores_prompt=True)
    heard = one_answer(engine, one)
    assert [token for token, _, _ in heard.prompt] == prompt
    assert (heard.text, heard.scores, heard.finish, one.tokens) == ("", [], "length", [])
    single = one_answer(engine, wanted(prompt[:1], 0, scores_prompt=True))
    assert single.prompt == ((prompt[0], None, ()),)


def test_end_tokens_and_stop_texts_end_an_answer(engine: Scheduler, tiny_tokenizer: Any) -> None:
    prompt = tiny_tokenizer.encode("the dog ran")
    free = one_answer(engine, wanted(prompt, 30, top=0))
    tokens = [token for token, _, _ in free.scores]
    stop = free.text[9:12]
    one = wanted(prompt, 30, stop=("never", stop), top=0)
    stopped = one_answer(engine, one)
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish == "stop" and len(one.tokens) < 30
    assert "".join(tiny_tokenizer.decode([t]) for t, _, _ in stopped.scores)[
        : len(stopped.text)
    ] == (stopped.text)
    engine.end_ids = frozenset({tokens[5]})
    ended = wanted(prompt, 30, ignore_end=False)
    heard = one_answer(engine, ended)
    place = tokens.index(tokens[5])
    assert heard.finish == "end" and len(ended.tokens) == place + 1
    assert heard.text == tiny_tokenizer.decode(tokens[:place])


@pytest.mark.parametrize("drafts", [True, False])
def test_no_end_is_chosen_before_the_least_tokens(
    engine: Scheduler, tiny_tokenizer: Any, drafts: bool
) -> None:
    """Against a loop that asks the whole model for each token and leaves the end out."""
    engine.drafts = drafts
    prompt = tiny_tokenizer.encode("the dog ran")
    free, model = alone(tiny(), prompt, 12), tiny()
    end, least = free[3], 8
    engine.end_ids = frozenset({end})
    expected = list[int]()
    while end not in expected and len(expected) < 12:
        logits = next_logits(model, [*prompt, *expected])
        if len(expected) < least:
            logits[end] = float("-inf")
        expected.append(int(logits.argmax()))
    one = wanted(prompt, 12, ignore_end=False, least=least, top=1)
    plain = wanted(prompt, 12, ignore_end=False)
    for own in (one, plain):
        assert engine.add(own)
    heard: dict[TokenSequence, Heard] = {}
    hear(engine, heard)
    assert one.tokens == expected and end not in expected[:least]
    assert plain.tokens == free[: free.index(end) + 1] and heard[plain].finish == "end"
    place = free.index(end)
    assert heard[one].scores[place][2][0][0] == end, "scores are those of the model itself"


def test_samples_of_one_prompt_read_it_once_and_begin_together(
    engine: Scheduler, tiny_tokenizer: Any
) -> None:
    engine.drafts = False
    prompt = tiny_tokenizer.encode("the cat sat on a mat and the dog ran to it. " * 4)
    samples = [wanted(prompt, 6, draw=Draw(1.0, source=random.Random(i))) for i in range(4)]
    for one in samples:
        engine.add(one)
    hear(engine, {}, steps=2)
    assert [one.cached for one in samples] == [0, *[len(prompt) - 1] * 3]
    assert [len(one.tokens) for one in samples] == [2, 1, 1, 1]
    hear(engine, {})
    again = wanted(prompt, 6, draw=Draw(1.0, source=random.Random(2)))
    one_answer(engine, again)
    assert again.tokens == samples[2].tokens


def test_the_next_turn_of_a_chat_finds_what_was_said(
    engine: Scheduler, tiny_tokenizer: Any
) -> None:
    prompt = tiny_tokenizer.encode("question: how many cats? answer the dog ran " * 5)
    first = wanted(prompt, 40)
    one_answer(engine, first)
    told = [*prompt, *first.tokens[:-1]]
    more = [*told, *tiny_tokenizer.encode(" question: and the apple?")]
    second = wanted(more, 12)
    one_answer(engine, second)
    assert second.cached == len(told)
    check_greedy(second, tiny())
    for other in (
        TokenSequence("another tenant", tuple(more), 3),
        wanted(more, 3, slot=place_all(engine)["all3"]),
    ):
        one_answer(engine, other)
        assert other.cached == 0


def test_what_has_no_room_waits_and_memory_is_bounded(tiny_tokenizer: Any) -> None:
    row = 2 * 2 * 2 * 16 * 4 * 128  # bytes of the smallest row
    with serving(tiny(), tiny_tokenizer, cache_bytes=8 * row) as engine:
        short = tiny_tokenizer.encode("the dog ran")
        running = [wanted(short, 30) for _ in range(9)]
        taken = [one for one in running if engine.add(one)]
        assert len(taken) == 6, "a quarter is for beginnings"
        assert engine.kv_cache.can_ever_hold(wanted(short, 500).room)
        assert not engine.kv_cache.can_ever_hold(wanted(short, 600).room)
        long = wanted(short, 400)
        assert not engine.add(long)
        engine.drop(taken[2])
        assert engine.add(running[6])
        heard: dict[TokenSequence, Heard] = {}
        hear(engine, heard)
        assert engine.add(long), "empty rows give way to a longer one"
        hear(engine, heard)
        for one in (*taken[:2], *taken[3:], running[6], long):
            check_greedy(one, tiny())
        assert engine.kv_cache.bytes <= 6 * row and engine.prefix_cache.bytes <= 2 * row


def test_a_broken_adapter_harms_nobody(engine: Scheduler, tiny_tokenizer: Any) -> None:
    """Finite weights whose product is not: found in the answer, and nothing of it stays."""
    settings, tensors = made_adapter(9, 4, MLP)
    huge = {name: tensor * 1e25 for name, tensor in tensors.items()}
    slot = engine.runner.slots.place("huge", "huge", settings, huge)
    prompt = tiny_tokenizer.encode("the dog ran")
    heard: dict[TokenSequence, Heard] = {}
    bad, good = wanted(prompt, 20, slot=slot), wanted(prompt, 20)
    engine.add(good)
    hear(engine, heard, steps=3)
    engine.add(bad)
    hear(engine, heard)
    assert "finite" in heard[bad].fault and heard[bad].finish is None
    check_greedy(good, tiny())
    for block in engine.kv_cache.blocks:
        assert not block.pairs.any()
    after = [wanted(prompt, 20) for _ in range(4)]
    for one in after:
        engine.add(one)
    hear(engine, heard)
    for one in after:
        check_greedy(one, tiny())


def test_bfloat16_answers_stay_near(tiny_tokenizer: Any) -> None:
    with serving(
        tiny(), tiny_tokenizer, precision=torch.bfloat16, cache_bytes=CACHE_BYTES
    ) as engine:
        slots = place_all(engine)
        prompt = tiny_tokenizer.encode("question: how many cats? answer")
        asked = {name: wanted(prompt, 8, slot=slots[name], top=0) for name in slots}
        heard: dict[TokenSequence, Heard] = {}
        for one in asked.values():
            engine.add(one)
        hear(engine, heard)
    for name, one in asked.items():
        model = merged(ADAPTERS[name] if name else None)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *one.tokens]])).logits[0]
        nats = logits[len(prompt) - 1 : -1].log_softmax(-1)
        for place, (token, value, _) in enumerate(heard[one].scores):
            assert value == pytest.approx(nats[place, token].item(), abs=0.5)
