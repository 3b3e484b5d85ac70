"""Requests to asks: how much may be written, with which seeds, after which tokens."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from laura.serve.engines import Ask
from laura.serve.faults import HttpFault, bad_request
from laura.serve.settings import ServeSettings
from laura.serve.visits import Visit
from laura.serve.wire import INT64, ChatRequest, CompletionRequest

COMPLETION_TOKENS = 16  # OpenAI's default where a completion names no limit
LEAST_TEMPERATURE = 1e-6


def check_size(wanted: ChatRequest | CompletionRequest, settings: ServeSettings) -> None:
    """Refuse more answers at once than a request may have, before anything is read.

    Raises:
        HttpFault: too many.
    """
    prompts = len(wanted.prompt) if isinstance(wanted, CompletionRequest) else 1
    if prompts * (wanted.n or 1) > settings.sequences:
        raise bad_request(
            f"{prompts} prompts with n = {wanted.n or 1} came; {settings.sequences} answers are "
            "the most of one request. Send several requests",
            "prompt",
        )
    temperature = wanted.temperature
    if temperature is not None and 0 < temperature < LEAST_TEMPERATURE:
        raise bad_request(
            f"temperature is {temperature:g}; allowed are 0 and {LEAST_TEMPERATURE:g} to 2",
            "temperature",
        )


def asks_of(
    visit: Visit,
    wanted: ChatRequest | CompletionRequest,
    prompts: Sequence[tuple[int, ...]],
    adapter: str | None,
    limits: tuple[ServeSettings, int],
) -> list[Ask]:
    """One ask for each answer: all of the first prompt, then all of the second.

    The first answer to a prompt has the request's own seed, so that it does not depend
    on n or on the other prompts.

    Args:
        visit: Whose it is.
        wanted: The request.
        prompts: Tokens of its prompts.
        adapter: The adapter's name; None for the base.
        limits: The settings, and the most tokens that the base reads.

    Raises:
        HttpFault: prompt and answer would be longer than allowed.
    """
    tenant = visit.need_tenant()
    seed = secrets.randbits(63) if wanted.seed is None else wanted.seed % INT64
    echo = isinstance(wanted, CompletionRequest) and bool(wanted.echo)
    budgets = [_budget(wanted, len(prompt), *limits) for prompt in prompts]
    return [
        Ask(
            id=f"{visit.id}-{place}-{choice}",
            tenant=tenant.name,
            prompt=prompt,
            max_new_tokens=budget,
            priority=tenant.priority,
            adapter=adapter,
            temperature=1.0 if wanted.temperature is None else float(wanted.temperature),
            top_p=1.0 if wanted.top_p is None else float(wanted.top_p),
            top_k=wanted.top_k or 0,
            seed=(seed + choice) % INT64,
            stop=tuple(wanted.stop),
            top_logprobs=_top(wanted),
            # An answer of no tokens is asked for by way of the prompt's scores.
            prompt_logprobs=echo and (wanted.logprobs is not None or budget == 0),
        )
        for place, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
        for choice in range(wanted.n or 1)
    ]


def reserved_tokens(asks: Sequence[Ask]) -> int:
    """Tokens that asks can use at the most."""
    return sum(len(ask.prompt) + ask.max_new_tokens for ask in asks)


def _top(wanted: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(wanted, CompletionRequest):
        return wanted.logprobs
    return (wanted.top_logprobs or 0) if wanted.logprobs else None


def _budget(
    wanted: ChatRequest | CompletionRequest, prompt: int, settings: ServeSettings, context: int
) -> int:
    """Most new tokens after a prompt of so many tokens."""
    left = context - prompt
    most = left if settings.new_tokens is None else min(left, settings.new_tokens)
    chat = isinstance(wanted, ChatRequest)
    asked = wanted.most_new_tokens if isinstance(wanted, ChatRequest) else wanted.max_tokens
    if asked is None:
        asked = min(settings.default_new_tokens if chat else COMPLETION_TOKENS, max(most, 1))
    if asked > left:
        raise _too_long(prompt, asked, context, "messages" if chat else "prompt")
    if asked > most:
        raise bad_request(
            f"{asked} new tokens are asked for; this server gives at most {most}", "max_tokens"
        )
    return asked


def _too_long(prompt: int, asked: int, context: int, field: str) -> HttpFault:
    return bad_request(
        f"the prompt has {prompt} tokens and {asked} new ones are asked for, but the model reads "
        f"at most {context} together. Shorten the prompt or lower max_tokens",
        field,
        "context_length_exceeded",
    )
