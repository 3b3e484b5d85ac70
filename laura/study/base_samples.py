"""Texts that the base itself writes, to be replayed: drawn once, kept, read ever after.

    STUDY/replay/samples/HASH/      HASH = hash of everything that determines the texts
      samples.jsonl.gz   one line a text: the text or conversation, and how it ended
      manifest.json      SHA-256
    STUDY/replay/samples/HASH.partial.jsonl   answers so far, while it is being drawn

Text i has seed i and continues prompt i, begun again from the first when there are
fewer. What was cut off at `tokens` does not teach the end token there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from laura.data.examples import Example
from laura.data.sources import stream_examples
from laura.data.templates import prompt_render
from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer, GenerateRequest
from laura.evals.keeping import Keeper, partial_file
from laura.recipe.sections import ReplaySource
from laura.results.errors import DataError
from laura.results.progress import Progress
from laura.results.store import (
    check_folder,
    content_hash,
    disk_faults,
    read_lines_gz,
    write_folder,
    write_lines_gz,
)
from laura.study.material import ExampleEncoder

FORMAT = 1  # counts up when the same recipe would draw other texts
FILE = "samples.jsonl.gz"


@dataclass(frozen=True)
class BaseSamples:
    """What a base wrote.

    Attributes:
        examples: Texts, or conversations whose last answer is the base's; blank ones
            are left out. `index` is the number of the draw.
        cut: Numbers of those that did not end by themselves.
        blank: How many were left out.
    """

    examples: list[Example]
    cut: frozenset[int]
    blank: int


def load_prompts(source: ReplaySource, data_dir: Path | None) -> list[Example]:
    """The rows that are continued, no more than needed; none where nothing is given.

    Raises:
        DataError: as `load_examples`, or a conversation asks nothing.
    """
    if source.prompts is None:
        return []
    found = list(islice(stream_examples(source.prompts, data_dir), source.count))
    for example in found:
        if example.messages and not _asked(example):
            raise DataError(
                f"example {example.index} of {source.prompts.source} begins with an answer, so "
                "there is nothing for the base to answer; delete it or add a question"
            )
    return found


def base_samples(
    source: ReplaySource,
    prompts: Sequence[Example],
    engine: Engine,
    encoder: ExampleEncoder,
    base: str,
    folder: Path,
    progress: Progress,
) -> BaseSamples:
    """Draw the texts of a source, going on with or reusing what stands in the folder.

    Args:
        source: How many, how long, at which temperature.
        prompts: See `load_prompts`.
        engine: Runs the base.
        encoder: How the study makes tokens, for chat prompts.
        base: Fingerprint of the base.
        folder: Where samples lie, a folder of each set.
        progress: Where to report.

    Raises:
        DataError: every text is blank, or the tokenizer has no token to start from.
        CheckpointError: the kept texts do not match their checksums.
    """
    settings = source.model_dump(include={"count", "tokens", "temperature", "prompt_tokens"})
    identity = {
        "format": FORMAT,
        "base": base,
        "settings": settings,
        "prompts": [prompt.digest for prompt in prompts],
        "precision": str(engine.precision),
        **encoder.identity,
    }
    place = folder / content_hash(identity)[:12]
    if not place.is_dir():
        rows = _draw(source, prompts, engine, encoder, place, identity, progress)
        write_folder(place, lambda aside: write_lines_gz(aside / FILE, rows), {"samples": settings})
        with disk_faults(place):
            partial_file(place).unlink(missing_ok=True)
    check_folder(place)
    return _read(read_lines_gz(place / FILE), source)


def _draw(
    source: ReplaySource,
    prompts: Sequence[Example],
    engine: Engine,
    encoder: ExampleEncoder,
    place: Path,
    identity: dict[str, Any],
    progress: Progress,
) -> list[dict[str, Any]]:
    """The rows of all texts; answers are kept as they come."""
    count = source.count or 0
    progress.say(f"the base writes {count} texts to be replayed")
    openings = [*_openings(source, prompts, encoder)]
    requests = [
        GenerateRequest(
            openings[number % len(openings)],
            (),
            source.tokens,
            temperature=source.temperature,
            seed=number,
        )
        for number in range(count)
    ]
    with Keeper(engine, {None: partial_file(place)}, {None: identity}) as keeper:
        answers = keeper.generate(requests)
    rows = []
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        prompt = prompts[number % len(prompts)] if prompts else None
        if prompt is not None and prompt.messages:
            said = [*_asked(prompt), ("assistant", answer.text)]
            messages = [{"role": role, "content": content} for role, content in said]
            content: dict[str, Any] = {"messages": messages}
        else:
            content = {"text": _whole(request, answer, engine, prompted=prompt is not None)}
        rows.append({"index": number, **content, "finish": answer.finish, "tokens": answer.tokens})
    return rows


def _openings(
    source: ReplaySource, prompts: Sequence[Example], encoder: ExampleEncoder
) -> Iterator[str]:
    """What the base is given to continue."""
    tokenizer = encoder.tokenizer
    if not prompts:
        start = tokenizer.bos_token or tokenizer.eos_token
        if start is None:
            raise DataError(
                "the tokenizer has neither a begin nor an end token to start a text from; name "
                "prompts for base_samples"
            )
        yield str(start)
    render: Callable[[list[dict[str, str]], bool], str] | None = None
    for prompt in prompts:
        if prompt.messages:
            render = render or prompt_render(tokenizer, encoder.template)
            asked = [{"role": role, "content": content} for role, content in _asked(prompt)]
            yield render(asked, True)
        else:
            ids = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
            # The last token may be a part of a character only.
            yield _decoded(tokenizer, ids[: source.prompt_tokens]).rstrip("\ufffd")


def _asked(example: Example) -> list[tuple[str, str]]:
    """The messages before the first answer."""
    roles = [role for role, _ in example.messages]
    stop = roles.index("assistant") if "assistant" in roles else len(roles)
    return list(example.messages[:stop])


def _whole(
    request: GenerateRequest, answer: GenerateAnswer, engine: Engine, *, prompted: bool
) -> str:
    """The text a sample is, with its beginning.

    Decoded together: some tokenizers drop a space at the beginning of what they decode.
    """
    new = answer.token_ids[: -1 if answer.finish == "end" else None]
    before = engine.encoder.prompt(request.prompt, request.max_new_tokens) if prompted else []
    return _decoded(engine.tokenizer, [*before, *new])


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _read(rows: list[dict[str, Any]], source: ReplaySource) -> BaseSamples:
    examples, cut = [], set()
    for row in rows:
        messages = tuple((m["role"], m["content"]) for m in row.get("messages", ()))
        written = messages[-1][1] if messages else row["text"]
        if not written.strip():
            continue
        examples.append(Example(row["index"], messages, row.get("text", "")))
        if row["finish"] == "length":
            cut.add(row["index"])
    if not examples:
        raise DataError(
            f"all {len(rows)} texts that the base wrote are blank, so there is nothing to replay; "
            f"name prompts, or raise data.replay tokens ({source.tokens})"
        )
    return BaseSamples(examples, frozenset(cut), len(rows) - len(examples))
