"""A user's YAML task as the module that the runner measures: questions, requests, grades.

`ChoiceModule` has what a task file of kind `choice` has, `MatchModule` what one of kind
`generation` has (see `laura.evals.tasks`). Errors name the row's file and line.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from laura.data.raw_rows import Placed, raw_rows
from laura.engine.requests import GenerateAnswer, GenerateRequest, ScoreRequest
from laura.evals.asking import Ask, Chat, Message
from laura.evals.field_templates import FieldFault, FieldPath, Template, as_text
from laura.evals.scoring import ChoiceQuestion
from laura.evals.user_yaml import ChoiceFile, MatchFile, TaskFile
from laura.results.errors import DataError
from laura.results.task_result import Item

FORMAT_VERSION = "1"
FileType = TypeVar("FileType", bound=TaskFile)


class RowsOf(Generic[FileType]):
    """Rows of a task file and its worked examples, read once.

    Args:
        file: What stands in the YAML file.
        path: Where it stands.
    """

    METRICS: tuple[str, ...]

    def __init__(self, file: FileType, path: Path) -> None:
        self.file, self.path = file, path
        self._data_dir: Path | None = None

    def rows(self, data_dir: Path | None = None) -> list[dict[str, Any]]:
        """The rows that are measured, in file order.

        Raises:
            DataError: a file is missing or broken, or there are fewer rows than examples.
            HubError: the Hub is needed and cannot be reached.
        """
        self._data_dir = data_dir
        return [row for _, row in self._placed[self._skipped :]]

    @property
    def VERSION(self) -> str:
        """Changes with this file's words and with every row read."""
        words = hash_of(self.file.model_dump(mode="json"))
        rows = hash_of([[row for _, row in part] for part in (self._placed, self._examples)])
        return f"{FORMAT_VERSION}; task {words}; rows {rows}"

    @functools.cached_property
    def _placed(self) -> list[Placed]:
        return raw_rows(self.file.data, self.path.parent, self._data_dir)

    @functools.cached_property
    def _examples(self) -> list[Placed]:
        shots, source = self.file.shots, self.file.examples
        found = self._placed if source is None else self._other_rows()
        left = len(found) - shots if source is None else 1
        if shots > len(found) or left < 1:
            name = "data" if source is None else "examples"
            raise DataError(
                f"{self.path}: {shots} worked examples are wanted but {name} has {len(found)} "
                "rows; lower shots, or name another file as examples"
            )
        return found[:shots]

    def _other_rows(self) -> list[Placed]:
        source = self.file.examples
        assert source is not None
        return raw_rows(source, self.path.parent, self._data_dir) if self.file.shots else []

    @property
    def _skipped(self) -> int:
        """First rows of `data` that are examples, and so not measured."""
        return len(self._examples) if self.file.examples is None else 0

    def _place(self, index: int) -> str:
        return self._placed[index][0]


class ChoiceModule(RowsOf[ChoiceFile]):
    """A multiple-choice task."""

    METRICS = ("acc", "acc_norm")

    def question(self, row: dict[str, Any], index: int) -> ChoiceQuestion:
        """Turn a measured row, `index` among these, into a question.

        Raises:
            DataError: a field is missing, or the answer names no choice; file and line.
        """
        number = index + self._skipped
        prompt, texts, gold = self._read(row, self._place(number))
        context = self._shown + prompt
        return ChoiceQuestion(
            index=number,
            requests=tuple(ScoreRequest(context, self.file.delimiter + text) for text in texts),
            gold=gold,
            choice_characters=tuple(len(text) for text in texts),
        )

    @functools.cached_property
    def _shown(self) -> str:
        """The worked examples."""
        shown = ""
        for place, row in self._examples:
            prompt, texts, gold = self._read(row, place)
            shown += prompt + self.file.delimiter + texts[gold] + self.file.separator
        return shown

    def _read(self, row: dict[str, Any], place: str) -> tuple[str, list[str], int]:
        """Prompt, choices and the right one's index."""
        with_place = functools.partial(_row_fault, place)
        try:
            prompt = Template.parse(self.file.prompt).fill(row)
            texts = _list(self.file.choices, "choices", row)
            labels = _list(self.file.labels, "labels", row) if self.file.labels else None
            answer = Template.parse(self.file.answer)
            value = answer.lone.value(row) if answer.lone else answer.fill(row)
            if labels is not None and len(labels) != len(texts):
                raise FieldFault(f"has {len(texts)} choices but {len(labels)} labels")
            return prompt, texts, _gold(value, texts, labels, self.file.answer_is)
        except FieldFault as fault:
            raise with_place(fault) from fault


@dataclass(frozen=True)
class MatchQuestion:
    """One question of an exact-match task.

    Attributes:
        index: Row number in the data, from 0.
        requests: The one request.
        answer: The right answer, as the file gives it.
    """

    index: int
    requests: tuple[GenerateRequest, ...]
    answer: str


class MatchModule(RowsOf[MatchFile]):
    """An exact-match task."""

    METRICS = ("exact_match",)

    def prepare(self, rows: Sequence[dict[str, Any]], ask: Ask) -> tuple[str, list[MatchQuestion]]:
        """Version of the result, and the questions of the first measured rows.

        Raises:
            DataError: a field is missing, with file and line; or the model has no chat
                template and `chat` is true.
        """
        chat = ask.chat() if self.file.chat else None
        found = []
        for index, row in enumerate(rows, start=self._skipped):
            prompt, answer, _ = self._read(row, self._place(index))
            text = self._asked(prompt, chat)
            request = GenerateRequest(text, tuple(self.file.stop), self.file.max_new_tokens)
            found.append(MatchQuestion(index, (request,), answer))
        return self.VERSION, found

    def grades(
        self, questions: Sequence[MatchQuestion], answers: Sequence[Sequence[GenerateAnswer]]
    ) -> Iterator[tuple[Item, list[Item]]]:
        """Grade every answer.

        Yields:
            The item {"index", "correct", "exact_match" (0 or 1), "tokens", "finish"} and
            its one sample, with the texts.
        """
        for question, (answer,) in zip(questions, answers, strict=True):
            extracted = self.extracted(answer.text)
            right = extracted is not None and self.same(extracted, question.answer)
            item: Item = {
                "index": question.index,
                "correct": right,
                "exact_match": int(right),
                "tokens": answer.tokens,
                "finish": answer.finish,
            }
            sample = {
                **item,
                "prompt": question.requests[0].prompt,
                "text": answer.text,
                "extracted": extracted,
                "target": question.answer,
            }
            yield item, [sample]

    def extracted(self, text: str) -> str | None:
        """What counts of the model's answer; None where `extract` finds nothing."""
        if self.file.extract is None:
            return text
        matches = list(re.finditer(self.file.extract, text))
        if not matches:
            return None
        match = matches[0 if self.file.take == "first" else -1]
        return next((group for group in match.groups() if group), match.group(0))

    def same(self, extracted: str, answer: str) -> bool:
        """Whether the two are equal once `remove`, `ignore_case` and `strip` are applied."""
        return self._normalised(extracted) == self._normalised(answer)

    def _normalised(self, text: str) -> str:
        text = text.strip() if self.file.strip else text
        for pattern in self.file.remove:
            text = re.sub(pattern, "", text)
        text = text.lower() if self.file.ignore_case else text
        return text.strip() if self.file.strip else text

    def _asked(self, prompt: str, chat: Chat | None) -> str:
        worked = [self._read(row, place) for place, row in self._examples]
        if chat is None:
            between, after = self.file.delimiter, self.file.separator
            return "".join(f"{q}{between}{a}{after}" for q, _, a in worked) + prompt
        turns: list[Message] = []
        for question, _, answer in worked:
            turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        return chat([*turns, {"role": "user", "content": prompt}])

    def _read(self, row: dict[str, Any], place: str) -> tuple[str, str, str]:
        """Prompt, right answer, and the answer as worked examples show it."""
        file = self.file
        try:
            prompt, answer, shown = (
                Template.parse(text).fill(row)
                for text in (file.prompt, file.answer, file.example_answer or file.answer)
            )
        except FieldFault as fault:
            raise _row_fault(place, fault) from fault
        return prompt, answer, shown


def hash_of(value: Any) -> str:
    """Twelve hexadecimal digits that change with the value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _row_fault(place: str, fault: FieldFault) -> DataError:
    return DataError(f"{place}: {fault}; mend the row, or the task file's templates")


def _list(given: str | list[str], name: str, row: dict[str, Any]) -> list[str]:
    """Choices or labels of a row."""
    if isinstance(given, list):
        texts = [Template.parse(text).fill(row) for text in given]
    else:
        path = FieldPath.parse(given)
        value = path.value(row)
        if not isinstance(value, list) or len(value) < 2:
            raise FieldFault(f"needs {given!r} as a list of two or more {name}, came {value!r}")
        texts = [as_text(text, given) for text in value]
    if not all(texts):
        raise FieldFault(f"has an empty text among its {name}: {texts!r}")
    return texts


def _gold(value: Any, texts: list[str], labels: list[str] | None, way: str | None) -> int:
    """Which choice an answer means, from 0."""
    word = as_text(value, "answer").strip()
    whole = int(word) if re.fullmatch(r"\d{1,9}", word) else None
    letter = ord(word.upper()) - ord("A") if re.fullmatch("[A-Za-z]", word) else None
    readings: dict[str, int | None] = {
        "index": whole,
        "number": whole - 1 if whole is not None else None,
        "letter": letter,
        "text": texts.index(word) if word in texts else None,
        "label": labels.index(word) if labels and word in labels else None,
    }
    fitting = {key: n for key, n in readings.items() if n is not None and 0 <= n < len(texts)}
    if way is None:
        # A number counted from 1 cannot be told from an index, so it must be said.
        ways = ["label"] if labels else ["index", "letter", "text"]
        fitting = {key: fitting[key] for key in ways if key in fitting}
    else:
        fitting = {key: n for key, n in fitting.items() if key == way}
    if not fitting:
        of = f" as {way}" if way else " as label" if labels else ""
        among = f"labels {labels}" if labels and way in (None, "label") else f"choices {texts}"
        raise FieldFault(f"has the answer {word!r}, which{of} is none of its {among}")
    if len(set(fitting.values())) > 1:
        told = ", ".join(f"{key}: {texts[n]!r}" for key, n in fitting.items())
        raise FieldFault(
            f"has the answer {word!r}, which could mean different choices ({told}); say "
            "answer_is in the task file"
        )
    return next(iter(fitting.values()))
