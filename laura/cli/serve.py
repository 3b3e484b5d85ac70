"""The command that serves a base with its adapters: `laura serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from laura.cli.console import Console
from laura.cli.options import BaseArgument, DeviceOption

if TYPE_CHECKING:
    from laura.serve.library import Library, Policy
    from laura.serve.settings import EngineSettings, ServeSettings

SHOWN_ADAPTERS = 20


@dataclass(frozen=True)
class ServeOptions:
    """Who is served what, where, and within which limits."""

    adapters: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="Folder of LoRA adapters in PEFT's format, each a folder in it.",
        ),
    ] = None
    tenants: Annotated[
        Path | None,
        typer.Option(
            envvar="LAURA_TENANTS",
            metavar="FILE",
            help="Who may ask what, made by `laura tenants add`. Without it only this machine is "
            "served, and nobody needs a key.",
        ),
    ] = None
    engine: Annotated[
        Literal["inprocess", "vllm"],
        typer.Option(help="Laura's own engine, or a vLLM server that Laura starts."),
    ] = "inprocess"
    host: Annotated[str, typer.Option(metavar="NAME", help="Address to listen at.")] = "127.0.0.1"
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, metavar="N", help="Port to listen at; 0 takes a free one."),
    ] = 8000
    slots: Annotated[
        int, typer.Option(min=1, max=4096, metavar="N", help="Most adapters in memory at once.")
    ] = 16
    max_rank: Annotated[
        int, typer.Option(min=1, max=1024, metavar="N", help="Largest rank of an adapter.")
    ] = 64
    max_forgetting: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Most that an adapter may have forgotten, in its laura.json's unit.",
            show_default="no bound",
        ),
    ] = None
    forgetful: Annotated[
        Literal["refuse", "warn"],
        typer.Option(help="What to do with an adapter that forgot more."),
    ] = "refuse"
    unrecorded: Annotated[
        Literal["allow", "warn", "refuse"],
        typer.Option(help="What to do with an adapter without a laura.json."),
    ] = "warn"
    queue: Annotated[int, typer.Option(min=1, metavar="N", help="Most answers that wait.")] = 512
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Longest answer.", show_default="what the base reads"
        ),
    ] = None
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Longest prompt.", show_default="what the base reads"
        ),
    ] = None
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Longest time for an answer.")
    ] = 600
    grace: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Time that a stop leaves running answers."),
    ] = 30
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Of weights and products.")
    ] = "auto"
    device: DeviceOption = None
    drafts: Annotated[
        bool,
        typer.Option(
            "--drafts/--no-drafts",
            help="Guess what repeats in an answer and check it in the same step: the same text, "
            "sooner where few are answered at once.",
        ),
    ] = True
    vllm_argument: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An argument of vLLM's own server, such as tensor-parallel-size=2; may be given "
            "several times.",
        ),
    ] = None
    audit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where admin actions are written, a line of JSON each."),
    ] = None


def serve(
    console: Console,
    base: BaseArgument,
    options: ServeOptions,
) -> None:
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

    check_address(options.host, options.tenants is not None)
    from laura.serve.library import Policy  # with torch: not before what needs none of it

    policy = Policy(
        max_forgetting=options.max_forgetting,
        unrecorded=options.unrecorded,
        action=options.forgetful,
    )
    settings = ServeSettings(
        base=model_name(base),
        host=options.host,
        port=options.port,
        request_seconds=options.timeout,
        grace_seconds=options.grace,
        prompt_tokens=options.max_prompt_tokens,
        new_tokens=options.max_new_tokens,
    )
    engine_settings = EngineSettings(
        base=base,
        kind=options.engine,
        slots=0 if options.adapters is None else options.slots,
        max_rank=options.max_rank,
        queue=options.queue,
        precision=options.precision,
        device=options.device,
        drafts=options.drafts,
        arguments=read_arguments(options.vllm_argument or ()),
    )
    _serve(console, options, settings, engine_settings, policy)


def _serve(
    console: Console,
    options: ServeOptions,
    settings: ServeSettings,
    engine_settings: EngineSettings,
    policy: Policy,
) -> None:
    from laura.serve.admin import Audit
    from laura.serve.app import create_app
    from laura.serve.auth import Tenants
    from laura.serve.server import (
        listening_socket,
        open_base,
        open_engine,
        open_library,
        run,
        url_of,
    )

    audit = Audit(options.audit)
    file = options.tenants
    tenants = None if file is None else Tenants.read(file)
    # First the socket: whoever has the port taken should not wait for a model.
    with listening_socket(settings) as place:
        # What was loaded and pinned before is gone; a file that cannot be written is told now.
        audit.write("server.start", "server", settings.base, "done")
        folder = open_base(engine_settings.base, console.progress)
        engine = open_engine(folder, engine_settings)
        library = open_library(
            folder, options.adapters, engine_settings, policy, engine.fingerprint
        )
        app = create_app(settings, engine, library, tenants=tenants, tenants_file=file, audit=audit)
        names = None if tenants is None else list(tenants.names)
        url = url_of(place)

        def tell() -> None:
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
