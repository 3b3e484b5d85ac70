"""lm-eval asks Laura's engine: the model "laura" of EleutherAI's evaluation harness.

Importing this file needs the extra `laura-lab[lm-eval]` and registers the model with
lm-eval, so that `lm_eval.simple_evaluate(model="laura", ...)` finds it; an engine at
hand is given to it as `LauraLM(engine)`. For lm-eval's own command line see
`__main__.py`. Numbers equal those of lm-eval's "hf" model on the same weights.

Source: lm-eval 0.4.13, lm_eval/models/huggingface.py and lm_eval/models/utils.py.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laura.engine.requests import GenerateRequest, MeasuringEngine, ScoreRequest, TokenDocument
from laura.results.errors import MissingExtraError, UsageError

try:
    from lm_eval.api.model import LM, TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as missing:
    raise MissingExtraError(
        f"lm-eval's tasks need lm-eval, which is not there ({missing}); install it with: "
        "pip install 'laura-lab[lm-eval]'"
    ) from missing

DEFAULT_NEW_TOKENS = 256  # lm-eval's own, where a task states none
MODEL_ARGUMENTS = ("model", "adapter", "precision", "revision", "dtype", "device")
# What lm-eval's command line hands every model; Laura packs by tokens and needs neither.
BATCHING = ("batch_size", "max_batch_size")
PRECISIONS = ("fp32", "bf16", "auto")
HF_NAMES = {"pretrained": "model", "peft": "adapter", "parallelize": "device"}

_UNDERSTOOD = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "seed")
# Settings of other engines, and the values of each that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "repetition_penalty"), (1,)),
    **dict.fromkeys(("length_penalty", "typical_p"), (1,)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("min_p", "penalty_alpha"), (0,)),
    "early_stopping": (False,),
    "use_cache": (True, False),
}


@register_model("laura")
class LauraLM(LM):  # type: ignore[misc]
    """lm-eval's `LM` on one of Laura's engines.

    Args:
        engine: Answers every request.
        adapter: Name of the engine's adapter that answers; None for the model as it is.
        name: What the model is called in lm-eval's results.
    """

    chat_template = TemplateLM.chat_template

    def __init__(
        self, engine: MeasuringEngine, adapter: str | None = None, name: str = "laura"
    ) -> None:
        super().__init__()
        self.engine, self.adapter, self.name = engine, adapter, name
        self.tokenizer = engine.tokenizer

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> LauraLM:
        """Load what `--model_args` names: `model`, and perhaps the others of `MODEL_ARGUMENTS`.

        Raises:
            UsageError: `model` is missing, or an argument is unknown.
            ModelError, AdapterError, HubError: the model or adapter cannot be used.
        """
        extra = {key: value for key, value in (additional_config or {}).items() if value}
        given = {**extra, **arg_dict}
        unknown = [key for key in given if key not in (*MODEL_ARGUMENTS, *BATCHING)]
        if unknown or not given.get("model"):
            raise UsageError(_argument_fault(unknown))
        texts = {key: str(given[key]) for key in MODEL_ARGUMENTS if given.get(key) is not None}
        return _loaded(cls, **texts)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> LauraLM:
        """The same from `key=value,key=value`."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, which keeps lm-eval's caches of requests apart."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int | None:
        """The end token, for lm-eval's record."""
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def max_length(self) -> int:
        """Most tokens the model reads at once."""
        return self.engine.encoder.context_tokens

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval records of the model."""
        return {"model_name_laura": self.name, "adapter": self.adapter}

    def apply_chat_template(
        self,
        chat_history: list[dict[str, str]],
        add_generation_prompt: bool = True,
        template: str | None = None,
    ) -> str:
        """A conversation as the text after which the model writes; a last turn may be begun."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Sum of log-probabilities (nats) of each continuation, and whether it is the greedy one.

        Raises:
            DataError: a continuation has no tokens, or more than the model reads.
        """
        asked = [ScoreRequest(r.args[0], r.args[1], self.adapter) for r in requests]
        pairs = [(answer.loglikelihood, answer.greedy) for answer in self.engine.score(asked)]
        self._remember("loglikelihood", requests, pairs)
        return pairs

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability (nats) of each whole text, read in windows as lm-eval's are.

        A text longer than the context is cut into windows; every token is predicted once,
        and the last window has as much context as fits.
        """
        windows: list[TokenDocument] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            prefix, tokens = self.engine.encoder.document(request.args[0])
            for window in get_rolling_token_windows(
                token_list=tokens, prefix_token=prefix, max_seq_len=self.max_length, context_len=1
            ):
                before, after = make_disjoint_window(window)
                marks = [False] * len(before) + [True] * len(after)
                windows.append(TokenDocument(before + after, marks, 0, len(windows)))
                owners.append(number)
        # An engine without adapters of its own need not know the argument.
        adapter = {"adapter": self.adapter} if self.adapter is not None else {}
        totals = [0.0] * len(requests)
        measured = self.engine.document_losses(windows, **adapter) if windows else []
        for owner, nats in zip(owners, measured, strict=True):
            totals[owner] -= sum(nats)
        self._remember("loglikelihood_rolling", requests, totals)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text each context is continued with, without what stops it.

        Samples of the same context and settings differ by their seed: 0 for the first
        (or the setting `seed`), one more for each further one.

        Raises:
            UsageError: a setting that Laura's engines do not have, by name.
            DataError: a context is empty.
        """
        end = self.tokenizer.eos_token
        seen: Counter[str] = Counter()
        asked = []
        for request in requests:
            context, settings = request.args[:2]
            key = repr((context, settings))
            asked.append(generation(context, settings, end, self.adapter, seen[key]))
            seen[key] += 1
        texts = [answer.text for answer in self.engine.generate(asked)]
        self._remember("generate_until", requests, texts)
        return texts

    def _remember(self, kind: str, requests: Sequence[Any], answers: Sequence[Any]) -> None:
        """Tell lm-eval's own cache of answers (`--use_cache`)."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)


def generation(
    context: str,
    settings: Mapping[str, Any],
    end: str | None = None,
    adapter: str | None = None,
    repeat: int = 0,
) -> GenerateRequest:
    """An engine's request from lm-eval's settings of a generation.

    Args:
        context: What is continued.
        settings: lm-eval's `gen_kwargs`.
        end: Text of the end token; it stops too, as in lm-eval.
        adapter: Name of the engine's adapter that answers.
        repeat: Which sample of the same request this is, from 0.

    Raises:
        UsageError: settings that cannot be represented, all by name.
    """
    wanted: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS))
    refused = {key: value for key, value in wanted.items() if not _representable(key, value)}
    if refused:
        came = ", ".join(f"{key}={value!r}" for key, value in refused.items())
        raise UsageError(
            f"generation settings {came} cannot be represented; Laura's engines know "
            f"{', '.join(_UNDERSTOOD)}. Remove them from the task's generation_kwargs or from "
            "--gen_kwargs, or run the task with --model hf"
        )
    temperature = float(wanted.get("temperature") or 0.0)
    if wanted["do_sample"] and temperature <= 0:
        raise UsageError(
            "do_sample is true but temperature is absent or not above 0; give a temperature, "
            "such as 1.0, or do_sample: false"
        )
    stop = handle_stop_sequences(list(wanted["until"]), eos=end)
    return GenerateRequest(
        prompt=context,
        stop=tuple(text for text in stop if text),
        max_new_tokens=int(wanted["max_gen_toks"]),
        temperature=temperature if wanted["do_sample"] else 0.0,
        top_p=float(1.0 if wanted.get("top_p") is None else wanted["top_p"]),
        top_k=max(0, int(wanted.get("top_k") or 0)),
        seed=int(wanted.get("seed") or 0) + repeat,
        adapter=adapter,
    )


def _representable(key: str, value: Any) -> bool:
    return key in _UNDERSTOOD or value is None or value in _NEUTRAL.get(key, ())


def _argument_fault(unknown: list[str]) -> str:
    allowed = f"--model_args takes {', '.join(MODEL_ARGUMENTS)}"
    if not unknown:
        return f"{allowed}; model is needed, as in --model_args model=FOLDER"
    hints = []
    for key in unknown:
        near = HF_NAMES.get(key) or next(iter(difflib.get_close_matches(key, MODEL_ARGUMENTS)), "")
        hints.append(f"{key!r} (here {near!r})" if near else repr(key))
    return f"{allowed}; came {', '.join(hints)}"


def _loaded(
    kind: type[LauraLM],
    model: str,
    adapter: str | None = None,
    precision: str = "fp32",
    revision: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
) -> LauraLM:
    """Load model and adapter from where they lie."""
    from laura.engine.engine import Engine
    from laura.models.adapters import load_adapter
    from laura.models.device import resolve_precision
    from laura.models.load import load_base

    if precision not in PRECISIONS:
        raise UsageError(f"precision must be {', '.join(PRECISIONS)}, came {precision!r}")
    base = load_base(model, revision=revision, dtype=dtype, device=device)
    name = base.name
    if adapter is not None:
        load_adapter(base.model, Path(adapter).expanduser())
        name = f"{base.name} + {Path(adapter).name}"
    arithmetic = resolve_precision(precision, base.model.device)
    return kind(Engine(base.model, base.tokenizer, arithmetic), name=name)
