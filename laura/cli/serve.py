"""The command that serves a base with its adapters: `laura serve`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from laura.cli.console import Console
from laura.cli.options import BASE, DEVICE, argument, option

if TYPE_CHECKING:
    from laura.serve.database import Database
    from laura.serve.library import Library, Policy
    from laura.serve.settings import EngineSettings, ServeSettings

SHOWN_ADAPTERS = 20
# All that an engine without a front listens to, and what only an engine does.
OF_HEADLESS = {
    "base", "adapters", "engine", "headless", "engine_key_file", "host", "port", "slots",
    "max_rank", "queue", "grace", "precision", "device", "drafts", "vllm_argument",
}  # fmt: skip
OF_ENGINES = {"engine", "slots", "queue", "precision", "device", "drafts", "vllm_argument"}


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Who is served what, where, and within which limits."""

    base: str = argument(**BASE)
    adapters: Path | None = option(exists=True, file_okay=False, metavar="DIR")
    """Folder of LoRA adapters in PEFT's format, each a folder in it."""
    database: str | None = option(envvar="LAURA_DATABASE", metavar="URL")
    """Who may ask what, made by `laura tenants add`; what they used, and what admins did:
    sqlite:///PATH, or postgresql+psycopg://USER@HOST/NAME for several servers. Without it only this
    machine is served, and nobody needs a key."""
    engine: Literal["inprocess", "vllm"] = option(default="inprocess")
    """Laura's own engine, or a vLLM server that Laura starts."""
    headless: bool = option(default=False)
    """Be an engine without a front, for servers that name it as --backend."""
    backend: list[str] | None = option(metavar="http://HOST:PORT")
    """Ask an engine that `laura serve BASE --headless` is, instead of one in this process; may be
    given several times."""
    engine_key_file: Path | None = option(metavar="FILE")
    """The key that engines and the servers before them share."""
    host: str = option(default="127.0.0.1", metavar="NAME")
    """Address to listen at."""
    port: int = option(default=8000, min=0, max=65535, metavar="N")
    """Port to listen at; 0 takes a free one."""
    max_connections: int = option(default=1000, min=1, metavar="N")
    """Most connections at once; three quarters of the files that the process may open, if that
    is less."""
    slots: int = option(default=16, min=1, max=4096, metavar="N")
    """Most adapters in memory at once."""
    max_rank: int = option(default=64, min=1, max=1024, metavar="N")
    """Largest rank of an adapter."""
    max_forgetting: float | None = option(metavar="X", show_default="no bound")
    """Most that an adapter may have forgotten, in its laura.json's unit."""
    forgetful: Literal["refuse", "warn"] = option(default="refuse")
    """What to do with an adapter that forgot more."""
    unrecorded: Literal["allow", "warn", "refuse"] = option(default="warn")
    """What to do with an adapter without a laura.json."""
    require_signature: Path | None = option(metavar="PUBLIC.pem")
    """Serve only adapters that `laura sign` signed with this key's private half."""
    queue: int = option(default=512, min=1, metavar="N")
    """Most answers that wait."""
    max_new_tokens: int | None = option(min=1, metavar="N", show_default="what the base reads")
    """Longest answer."""
    max_prompt_tokens: int | None = option(min=1, metavar="N", show_default="what the base reads")
    """Longest prompt."""
    timeout: float = option(default=600, min=1, metavar="SECONDS")
    """Longest time for an answer."""
    grace: float = option(default=30, min=0, metavar="SECONDS")
    """Time that a stop leaves running answers."""
    precision: Literal["auto", "fp32", "bf16"] = option(default="auto")
    """Of weights and products."""
    device: str | None = option(**DEVICE)
    drafts: bool = option("--drafts/--no-drafts", default=True)
    """Guess what repeats in an answer and check it in the same step: the same text, sooner where
    few are answered at once."""
    vllm_argument: list[str] | None = option(metavar="NAME=VALUE")
    """An argument of vLLM's own server, such as tensor-parallel-size=2; may be given several
    times."""
    cors_origin: list[str] | None = option(metavar="URL")
    """A site whose pages may ask from a browser, such as http://localhost:3000; may be given
    several times."""


def serve(console: Console, options: ServeOptions) -> None:
    """Serve a base and many adapters by OpenAI's API.

    Clients name the base or an adapter as their model. A page to chat is at /, numbers for
    Prometheus at /metrics. A line of JSON for each request goes to standard error. Ctrl-C or
    SIGTERM stops it: answers that are being written are finished first.

    \b
    Example:
      laura serve smollm2-135m-instruct-q4 --adapters adapters
    """
    from laura.serve.auth import check_address
    from laura.serve.settings import EngineSettings, ServeSettings, model_name, read_arguments

    key = _engine_key(options)
    if not options.headless:
        check_address(options.host, options.database is not None)
    database = None
    if options.database is not None:
        from laura.serve.database import Database

        database = Database(options.database, new=False)
    # With torch: not before what needs none of it.
    from laura.models.signatures import PublicKey
    from laura.serve.library import Policy

    file = options.require_signature
    policy = Policy(
        max_forgetting=options.max_forgetting,
        unrecorded=options.unrecorded,
        action=options.forgetful,
        key=None if file is None else PublicKey(file),
    )
    settings = ServeSettings(
        base=model_name(options.base),
        host=options.host,
        port=options.port,
        connections=options.max_connections,
        request_seconds=options.timeout,
        grace_seconds=options.grace,
        prompt_tokens=options.max_prompt_tokens,
        new_tokens=options.max_new_tokens,
        cors_origins=tuple(options.cors_origin or ()),
    )
    engine_settings = EngineSettings(
        base=options.base,
        kind="pool" if options.backend else options.engine,
        slots=0 if options.adapters is None else options.slots,
        max_rank=options.max_rank,
        queue=options.queue,
        precision=options.precision,
        device=options.device,
        drafts=options.drafts,
        arguments=read_arguments(options.vllm_argument or ()),
        backends=tuple(options.backend or ()),
        key=key,
    )
    if options.headless:
        _serve_headless(console, options, settings, engine_settings)
    else:
        _serve(console, options, settings, engine_settings, policy, database)


def _engine_key(options: ServeOptions) -> str:
    """The key of engines and gates, "" where there are none; refuses what has no effect there."""
    from laura.results.errors import UsageError
    from laura.serve.wire import address_of, read_engine_key

    values = {
        one.name: (getattr(options, one.name) or None, one.default) for one in fields(options)
    }
    given = {name for name, (value, default) in values.items() if value != (default or None)}
    kind, wrong = "--headless", given - OF_HEADLESS
    if not options.headless:
        kind, wrong = "--backend", (given & OF_ENGINES) if options.backend else set()
    if wrong:
        names = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in wrong))
        other = "the server before it" if options.headless else "laura serve BASE --headless"
        raise UsageError(f"{names} has no effect with {kind}; give it to {other}")
    backends = [address_of(one) for one in options.backend or ()]
    if len(set(backends)) < len(backends):
        raise UsageError("an engine is named twice by --backend; name each once")
    file = options.engine_key_file
    if (file is None) == (options.headless or bool(backends)):
        raise UsageError("--engine-key-file FILE belongs to --headless and --backend: give both")
    return "" if file is None else read_engine_key(file)


def _serve_headless(
    console: Console, options: ServeOptions, settings: ServeSettings, engine: EngineSettings
) -> None:
    from laura.serve.headless import Headless, run_headless
    from laura.serve.server import listening_socket, open_base, open_engine, url_of

    with listening_socket(settings) as place:
        served = open_engine(open_base(engine.base, console.progress), engine)
        url, base = url_of(place), settings.base

        def tell() -> None:
            words = f"engine of {base} at {url}, for `laura serve {engine.base} --backend {url}`"
            console.answer({"url": url, "base": base}, f"{words}\nstop:   Ctrl-C")

        run_headless(
            Headless(served, options.adapters, engine.key), place, settings.grace_seconds, tell
        )


def _serve(
    console: Console,
    options: ServeOptions,
    settings: ServeSettings,
    engine_settings: EngineSettings,
    policy: Policy,
    database: Database | None,
) -> None:
    from laura.serve.app import create_app
    from laura.serve.audit import Audit
    from laura.serve.log_stream import unblocked_log
    from laura.serve.server import (
        listening_socket,
        open_base,
        open_engine,
        open_library,
        run,
        url_of,
    )

    # First the socket: whoever has the port taken should not wait for a model.
    with listening_socket(settings) as place:
        if database is not None:
            # What was loaded and pinned before is gone; a disk that is full is told now.
            Audit(database).write("server.start", "server", settings.base, "done")
        folder = open_base(engine_settings.base, console.progress)
        engine = open_engine(folder, engine_settings)
        library = open_library(
            folder, options.adapters, engine_settings, policy, engine.fingerprint
        )
        app = create_app(
            settings,
            engine,
            library,
            database=database,
            log=unblocked_log(),
        )
        url = url_of(place)

        def tell() -> None:
            tenants = app.state.service.tenants
            names = None if tenants is None else list(tenants.names)
            value, lines = adapters_told(library)
            text = f"{lines}\n{welcome_text(settings.base, url, names)}"
            console.answer({"url": url, "base": settings.base, **value}, text)

        run(app, place, engine, tell)


def adapters_told(library: Library) -> tuple[dict[str, Any], str]:
    """Which adapters there are, and what is wrong with them: for machines, and in lines."""
    from laura.report.visible import visible_line

    entries = [library.entry(name) for name in library.names()]
    refused = {one.name: one.refused for one in entries if one.refused is not None}
    good = [one for one in entries if one.refused is None]
    served = [one.name for one in good]
    kinds: tuple[tuple[str, list[Any]], ...] = (
        ("", served),
        ("refused: ", list(refused.values())),
        ("warning: ", [f"{one.name}: {line}" for one in good for line in one.warnings]),
        ("not offered: ", list(library.notes)),
    )
    lines = [f"adapters: {len(served)} served, {len(refused)} refused"]
    for title, found in kinds:
        lines += [f"  {title}{visible_line(text)}" for text in found[:SHOWN_ADAPTERS]]
        if len(found) > SHOWN_ADAPTERS:
            lines.append(f"  {title}and {len(found) - SHOWN_ADAPTERS} more")
    return {"adapters": served, "refused": refused}, "\n".join(lines)


def welcome_text(base: str, url: str, tenants: list[str] | None) -> str:
    """Where the server listens, whom it serves, and how to ask."""
    whom = f"{len(tenants or ())} tenants, by their keys"
    key = ' -H "authorization: Bearer KEY"'
    if tenants is None:
        key = ""
        whom = "this machine only, without keys (`laura tenants add` makes keys for others)"
    return (
        f"serving {base} at {url} to {whom}\n"
        f"page:   {url}/\n"
        f"openai: base_url {url}/v1, model {base} or an adapter's name\n"
        f'curl:   curl {url}/v1/completions{key} -H "content-type: application/json" '
        f"""-d '{{"model": "{base}", "prompt": "Once", "max_tokens": 32}}'\n"""
        "stop:   Ctrl-C"
    )
