"""TensorBoard: event files in STUDY/tensorboard, a folder a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from laura.results.inputs import read_bounded
from laura.study.trackers import Row

MOST_FIGURE_BYTES = 64 * 2**20


class TensorBoardRun:
    """A folder of event files."""

    def __init__(self, folder: Path) -> None:
        self.writer: Any = SummaryWriter(str(folder))

    def log(self, rows: Sequence[Row]) -> None:
        """See `TrackedRun.log`."""
        for step, values in rows:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, state: str) -> None:
        """See `TrackedRun.close`."""
        self.writer.close()


class TensorBoard:
    """The folder of all runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, run: str, title: str, settings: Mapping[str, Any]) -> TensorBoardRun:
        """See `Tracker.open`."""
        opened = TensorBoardRun(self._folder / f"{title} {run}")
        told = "\n".join(f"- {name}: {value}" for name, value in settings.items())
        opened.writer.add_text("settings", told)
        return opened

    def conclude(self, answer: str, figures: Sequence[Path]) -> None:
        """See `Tracker.conclude`."""
        with SummaryWriter(str(self._folder / "study")) as writer:
            writer.add_text("answer", answer)
            for figure in figures:
                image = Summary.Image(encoded_image_string=read_bounded(figure, MOST_FIGURE_BYTES))
                value = Summary.Value(tag=figure.stem, image=image)
                writer.file_writer.add_summary(Summary(value=[value]))


def connect(name: str, folder: Path) -> TensorBoard:
    """The tracker of a study."""
    return TensorBoard(folder / "tensorboard")
