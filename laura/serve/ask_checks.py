"""What an ask must be, whichever engine answers it. Torch only when it is called."""

from __future__ import annotations

from laura.results.errors import UsageError
from laura.serve.engines import AdapterFiles, Ask, EngineError


def check_ask(
    ask: Ask,
    adapter: AdapterFiles | None,
    *,
    context_tokens: int,
    vocabulary: int,
    max_rank: int,
) -> None:
    """Refuse what cannot be meant, before it stands in a queue.

    Args:
        ask: What is wanted.
        adapter: Its adapter's files.
        context_tokens: Most tokens of prompt and answer together.
        vocabulary: Tokens that the model has.
        max_rank: Highest rank of an adapter.

    Raises:
        EngineError: kind "request", with every fault, or "adapter".
    """
    from laura.engine.sampler import check_settings

    if (ask.adapter is None) != (adapter is None):
        raise ValueError("an ask names an adapter exactly where its files are given")
    if adapter is not None:
        check_rank(adapter, max_rank)
    faults = []
    try:
        check_settings(ask)
    except UsageError as error:
        faults.append(str(error))
    least, most = 0 if ask.prompt_logprobs else 1, context_tokens - len(ask.prompt)
    if not ask.prompt:
        faults.append("the prompt is empty")
    elif not 0 <= min(ask.prompt) <= max(ask.prompt) < vocabulary:
        faults.append(f"token ids must be 0 to {vocabulary - 1}")
    if not least <= ask.max_new_tokens <= most:
        faults.append(
            f"{ask.max_new_tokens} new tokens were asked for after a prompt of "
            f"{len(ask.prompt)}; the context has {context_tokens} tokens, so allowed "
            f"are {least} to {most}"
        )
    if not 0 <= (ask.top_logprobs or 0) <= vocabulary:
        faults.append(f"top_logprobs must be 0 to {vocabulary}")
    if ask.priority <= 0:
        faults.append("the priority must be above 0")
    if faults:
        raise EngineError("; ".join(faults), "request")


def check_rank(adapter: AdapterFiles, max_rank: int) -> None:
    """Refuse an adapter that no place is large enough for.

    Raises:
        EngineError: kind "adapter".
    """
    if adapter.rank > max_rank:
        raise EngineError(
            f"adapter {adapter.name} has rank {adapter.rank}; this server takes at most {max_rank}",
            "adapter",
        )
