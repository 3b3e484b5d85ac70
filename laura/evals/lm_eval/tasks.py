"""Any task of lm-eval as one of Laura's: `lm_eval:NAME`, such as `lm_eval:piqa`.

A user's own is lm-eval's YAML file, named by its path; files it names lie relative to it. Presets
(`ifeval`, `refusals`) have names of their own; those that lm-eval lacks lie in `presets/`.

lm-eval's own task object makes the prompts, filters the answers and grades them;
Laura's engine answers, and the result stands in TASK.json as every other. Importing
this file needs the extra `laura-lab[lm-eval]`.

What is measured. Metrics that are a mean over the items, since only these have a
standard error and a paired difference item by item; and of tasks that read whole
texts the loss `nats_per_byte` (lm-eval's `bits_per_byte` times ln 2). Others, such as
F1 or BLEU over the whole set, are left out; `TaskMeasurement.left_out` says which and why, and
a task that has no other metric is refused. Worked examples are as many as the task
states, drawn with lm-eval's seed.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import io
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np

# Before anything of lm-eval: it says what to install where lm-eval is missing.
from laura.evals.lm_eval.model import LauraLM  # isort: split

import lm_eval.tasks
from lm_eval.api.metrics import mean, nanmean
from lm_eval.tasks import TaskManager

from laura.data.templates import chat_template
from laura.evals.scoring import Adapters, TaskMeasurement, TaskPlan, require_finite
from laura.recipe.tasks import LM_EVAL, LM_EVAL_PRESETS, is_lm_eval, result_name
from laura.results.errors import DataError, LauraError, MissingExtraError, UsageError
from laura.results.task_result import Item

FEWSHOT_SEED = 1234  # what lm-eval's evaluator sets unless told otherwise
BYTE_METRICS = ("bits_per_byte", "byte_perplexity")
PRESETS = Path(__file__).parent / "presets"
IFEVAL = Path(lm_eval.tasks.__file__).parent / "ifeval"


def plan(
    name: str, limit: int | None = None, include: Path | None = None, chat: Any = None
) -> TaskPlan:
    """Find a task of lm-eval, read its data and build its prompts.

    Its version changes with lm-eval, the task, its examples and every prompt. A sample is
    {"index", "requests" (what was asked, and lm-eval's responses), "filtered", "target",
    and the metrics}.

    Args:
        name: `lm_eval:NAME`, a preset, or the path of a YAML file.
        limit: Take the first so many documents; None for all.
        include: Folder of the user's own lm-eval task files; they win over lm-eval's.
        chat: The engine, where it is asked in its model's chat template; worked examples are
            earlier turns then.

    Raises:
        UsageError: no such task, a group of tasks, or one that cannot be measured here.
        MissingExtraError: it needs a package that is not there.
        DataError: its data cannot be read, or the model has no chat template.
    """
    task = _load(name, include)
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(
            f"{name} runs code that the model wrote, outside any sandbox, so Laura does not; use "
            "humaneval or mbpp of Laura, or lm-eval's command line with --confirm_run_unsafe_code"
        )
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"{name} shows images or sounds, which Laura's models cannot read")
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    asked: dict[str, Any] = {}
    if chat is not None:
        form = partial(LauraLM(chat).apply_chat_template, template=chat_template(chat.tokenizer))
        asked = {"apply_chat_template": True, "fewshot_as_multiturn": True, "chat_template": form}
    with _quiet(), _told(name):
        task.build_all_requests(limit=limit, **asked)
    covers = [(index, None) for index in sorted({one.doc_id for one in task.instances})]
    title = f"{task.get_config('task_alias') or task.task_name} (lm-eval)"

    def measure(engine: Any, adapters: Adapters) -> list[TaskMeasurement]:
        found = [_measured(name, task, LauraLM(engine, adapter)) for adapter in adapters]
        for metric, why in found[0].left_out.items():
            engine.progress.say(f"{name}: {metric} is left out: {why}")
        return found

    return TaskPlan(result_name(name), title, _version(task), covers, measure)


def _measured(name: str, task: Any, model: LauraLM) -> TaskMeasurement:
    """Ask the model and let lm-eval grade.

    Raises:
        UsageError: a setting of generation, or no metric, that can be represented.
        DataError: a text has no tokens or too many.
        DivergenceError: a number is not finite.
    """
    asked: dict[str, list[Any]] = defaultdict(list)
    own: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        instance.resps, instance.filtered_resps = [], {}  # of the model measured before
        asked[instance.request_type] += [instance] * instance.repeats
        own[instance.doc_id].append(instance)
    for kind, instances in asked.items():
        answers = getattr(model, kind)(instances)
        for instance, answer in zip(instances, answers, strict=True):
            instance.resps.append(answer)
            score = answer[0] if isinstance(answer, tuple) else answer
            if isinstance(score, float):
                require_finite([score], f"log-likelihood of {name}, {instance.doc_id}")
    with _told(name):
        task.apply_filters()
        graded = {index: _graded(task, own[index]) for index in sorted(own)}
    return _summed(name, task, graded)


def _graded(task: Any, instances: list[Any]) -> tuple[dict[str, Any], Item]:
    """Every metric of one document, by name, and its sample."""
    own = sorted(instances, key=lambda instance: instance.idx)
    filters = list(own[0].filtered_resps)
    found: dict[str, Any] = {}
    for name in filters:
        marks = task.process_results(own[0].doc, [i.filtered_resps[name] for i in own])
        # Where there is one filter only, its name says nothing.
        found |= {metric if len(filters) == 1 else f"{metric},{name}": marks[metric]
                  for metric in marks}  # fmt: skip
    sample = {
        "requests": [{"arguments": i.args, "responses": i.resps} for i in own],
        "filtered": {name: [i.filtered_resps[name] for i in own] for name in filters},
        "target": task.doc_to_target(own[0].doc),
    }
    return found, sample


def _summed(
    name: str, task: Any, graded: dict[int, tuple[dict[str, Any], Item]]
) -> TaskMeasurement:
    """Sort the metrics into those that can be offered and those that cannot."""
    marks = {index: found for index, (found, _) in graded.items()}
    items: dict[int, Item] = {index: {"index": index} for index in marks}
    directions: dict[str, bool] = {}
    left_out: dict[str, str] = {}
    for metric in dict.fromkeys(name for found in marks.values() for name in found):
        values = {index: found.get(metric) for index, found in marks.items()}
        base = metric.split(",")[0]
        if base in BYTE_METRICS and all(_is_pair(value) for value in values.values()):
            directions["nats_per_byte"] = False
            for index, pair in values.items():
                items[index] |= {"nats": -float(pair[0]), "bytes": int(pair[1])}  # type: ignore[index]
            continue
        direction = task.higher_is_better().get(base)
        reason = _reason(task.aggregation().get(base, mean), values, direction)
        if reason:
            left_out[metric] = reason
            continue
        directions[metric] = bool(direction)
        for index, value in values.items():
            items[index][metric] = float(value)  # type: ignore[arg-type]
    if not directions:
        reasons = "; ".join(f"{metric} {reason}" for metric, reason in left_out.items())
        raise UsageError(
            f"{name} has no metric that is a mean over its items, so no standard error "
            f"can be given: {reasons}. Run it with lm-eval's command line (--model laura)"
        )
    samples = [{**items[index], **_plain(sample)} for index, (_, sample) in graded.items()]
    return TaskMeasurement(list(items.values()), samples, directions, left_out)


def _reason(aggregation: Any, values: dict[int, Any], direction: bool | None) -> str:
    """Why a metric is not offered; empty where it is."""
    if aggregation not in (mean, nanmean, np.mean, statistics.mean, statistics.fmean):
        name = getattr(aggregation, "__name__", repr(aggregation))
        return f"is summed up over the whole set ({name}), not a mean over items"
    if not all(isinstance(v, int | float | np.number | np.bool_) for v in values.values()):
        return "is not a number on every item"
    if not all(math.isfinite(value) for value in values.values()):
        return "is not finite on every item"
    return "has no stated direction" if direction is None else ""


def _load(name: str, include: Path | None) -> Any:
    """lm-eval's task object."""
    if include is not None and not include.is_dir():
        raise UsageError(f"{include} is not a folder; name the folder of your lm-eval task files")
    with _quiet(), _told(name):
        if not is_lm_eval(name):
            path = Path(name).resolve()
            with contextlib.chdir(path.parent):  # from where lm-eval looks for its data
                found = list(_manager(None, False).load([str(path)])["tasks"].values())
            if len(found) != 1:
                raise UsageError(f"{name} is a group of tasks; a result is of one, name its file")
            return found[0]
        name = LM_EVAL_PRESETS.get(name) or name.removeprefix(LM_EVAL)
        # Reading the user's own files and presets is quick, reading lm-eval's thousands is not.
        manager = _manager(include, False)
        if name not in manager.all_subtasks:
            manager = _manager(include, True)
        if name not in manager.all_subtasks:
            raise UsageError(_name_fault(name, manager))
        (task,) = manager.load([name])["tasks"].values()
        if name.endswith("ifeval"):
            _ready_ifeval(name)
    return task


def _ready_ifeval(name: str) -> None:
    """What grading IFEval needs beside lm-eval, which tells of it only at the first such answer."""
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0  # it draws, and the same answer has to be graded alike
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        raise DataError(
            f"{name} counts sentences with NLTK's punkt_tab, which is not there and could not be "
            "downloaded; where there is a network, give: python -m nltk.downloader punkt_tab "
            "(NLTK_DATA names its folder)"
        ) from None


@functools.cache
def _manager(include: Path | None, with_lm_evals: bool) -> TaskManager:
    paths = [None if with_lm_evals else IFEVAL, PRESETS, include]
    return TaskManager(include_path=[*filter(None, paths)], include_defaults=with_lm_evals)


def _name_fault(name: str, manager: TaskManager) -> str:
    if name in (*manager.all_groups, *manager.all_tags):
        members = [task for task in manager.all_subtasks if task.startswith(f"{name}_")]
        example = f", such as {LM_EVAL}{members[0]}" if members else ""
        return (
            f"{LM_EVAL}{name} is a group of lm-eval's tasks; a result is of one task, so name the "
            f"tasks one by one{example} (`lm-eval ls tasks` lists them)"
        )
    near = difflib.get_close_matches(name, manager.all_subtasks, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(LM_EVAL + other for other in near)}? " if near else ""
    return f"lm-eval has no task {name!r}; {hint}`lm-eval ls tasks` lists them all"


def _version(task: Any) -> str:
    asked = [[i.doc_id, i.idx, i.repeats, _plain(i.args)] for i in task.instances]
    targets = [task.doc_to_target(i.doc) for i in task.instances]
    whole = json.dumps(_plain([asked, targets, list(task.aggregation())]), sort_keys=True)
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    shots = task.get_config("num_fewshot")
    return f"lm-eval {package_version('lm-eval')}; {task.VERSION}; {shots} shots; prompts {digest}"


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _plain(value: Any) -> Any:
    """The value as JSON holds it."""
    return json.loads(json.dumps(value, default=str))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's own bars and words, which cannot be switched off."""
    silent = io.StringIO()
    with contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):
        yield


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """What a task's own files, data or code raise is told in words."""
    try:
        yield
    except LauraError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"{name} needs {error.name}, which is not there: pip install {error.name} (what "
            f"{' and '.join(LM_EVAL_PRESETS)} need comes with: pip install 'laura-lab[lm-eval]')"
        ) from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:300]
        raise DataError(
            f"{name}: lm-eval cannot use this task ({type(error).__name__}: {first}). Its data "
            "may have to be downloaded from the Hub first (HF_HUB_OFFLINE must then not be set), "
            "or its files may be faulty: try `lm-eval validate --tasks NAME`"
        ) from error
