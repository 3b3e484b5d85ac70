"""Pretrain the micro laboratory's base and write it with its data (make micro-base).

    python scripts/make_micro_base.py                       the one that comes with Laura
    python scripts/make_micro_base.py --seed 1 --out DIR    another world, for --data-dir DIR/data

About six minutes on two cores; a stopped build continues. The world comes to the model in
stages, a few entities at first: one that meets everything at once stays at chance. Each stage
is a run of Laura's own loop in the `pretrain` regime and goes on from the weights of the one
before.

    OUT/
      config.json  model.safetensors (bf16)  tokenizer files
      card.json         settings, stages, data hash, SHA-256 of the weights
      data/micro/       FILES: questions, held-out source text, target domains
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from laura.cli.progress import open_progress
from laura.data.corpus import Enough, write_corpus
from laura.data.examples import Example
from laura.data.packing import fit
from laura.micro.settings import WorldSettings
from laura.micro.targets import DEFAULT, DOMAINS, SPLITS, rows, running_text
from laura.micro.tokenizer import pieces, train_tokenizer
from laura.micro.world import EARLY, SHARES, World, text_of
from laura.models import attention
from laura.models.device import pick_device
from laura.models.load import WEIGHTS, quiet_transformers
from laura.recipe.sections import BudgetSection, TrainSection
from laura.results.errors import ModelError
from laura.results.progress import SILENT, Progress
from laura.results.store import (
    RunStore,
    content_hash,
    file_hash,
    write_json,
    write_lines_gz,
)
from laura.study.material import ExampleEncoder
from laura.training.batches import plan_batches
from laura.training.run import train_runs

ROOT = Path(__file__).resolve().parents[1]
BASE, DATA = ROOT / "laura" / "micro" / "base", ROOT / "laura" / "data" / "builtin" / "micro"
SIZES = {"train": 2500, "validation": 200, "test": 625}
SOURCE_DOCUMENTS = 400
TOKENIZER_DOCUMENTS = 4000
ROW_TOKENS = 256
IDENTIFYING_DOCUMENTS = 500


@dataclass(frozen=True)
class Stage:
    """Some tokens of a world of which a share is known.

    Attributes:
        share: Share of entities, scripts and schemas that exist in it.
        tokens: Training tokens.
        learning_rate: Peak rate.
        schedule: Of the rate; the last stage falls to zero.
        shares: Share of the documents of each kind.
    """

    share: float
    tokens: int
    learning_rate: float
    schedule: str
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)


STAGES = (
    Stage(0.05, 500_000, 1e-3, "constant", EARLY),
    Stage(0.1, 400_000, 1e-3, "constant", EARLY),
    Stage(0.25, 500_000, 1e-3, "constant", EARLY),
    Stage(0.5, 700_000, 2e-3, "constant", EARLY),
    Stage(1.0, 4_000_000, 3e-3, "cosine"),
)


def build_micro_base(
    out: Path,
    work: Path,
    settings: WorldSettings,
    stages: tuple[Stage, ...] = STAGES,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Pretrain a base of a world and write it with its data.

    Args:
        out: Folder of the base; replaced file by file when all is made.
        work: Folder of the stages, by which a stopped build continues.
        settings: The world's.
        stages: How it is pretrained.
        device: Device name, or None for the best there is.
        progress: Where to report.

    Returns:
        `out`.
    """
    world = World(settings)
    data = make_data(settings)
    texts = [running_text(row) for domain in DOMAINS for row in data[f"{domain}_train"]]
    known = pieces(running_text(row) for d in DOMAINS for s in SPLITS for row in data[f"{d}_{s}"])
    sample = islice(world.documents("tokenizer", known), TOKENIZER_DOCUMENTS)
    tokenizer = train_tokenizer([*(text_of(row) for row in sample), *texts])
    encoder = ExampleEncoder(tokenizer, "chat", "pretrain")
    model = _random_model(tokenizer, settings.seed, device)
    hashes = []
    for number, stage in enumerate(stages):
        corpus = write_corpus(
            work / f"corpus-{number}",
            {
                "world": asdict(settings),
                "stage": [number, stage.share, stage.shares],
                # What the world's code makes of them, so that older code's text is not taken.
                "text": content_hash(
                    list(islice(_documents(world, number, stage, known), IDENTIFYING_DOCUMENTS))
                ),
                **encoder.identity,
            },
            _examples(_documents(world, number, stage, known)),
            encoder.to_learn,
            vocabulary=len(tokenizer),
            masked=False,
            enough=Enough(stage.tokens, 0),
            progress=progress,
        )
        hashes.append(file_hash(work / f"corpus-{number}" / "tokens.bin"))
        # Weights of another world, or after other stages, are not taken for these.
        done = content_hash([hashes, [asdict(one) for one in stages[: number + 1]], settings.seed])
        folder = work / f"stage-{number}-{done[:12]}"
        _pretrain(model, corpus, stage, folder, settings.seed, progress)
    _write(out, model, tokenizer, data, settings, stages, hashes)
    return out


def _documents(
    world: World, number: int, stage: Stage, known: list[str]
) -> Iterator[dict[str, Any]]:
    return world.documents(f"stage {number}", known, stage.share, stage.shares)


def _pretrain(
    model: Any, corpus: Any, stage: Stage, folder: Path, seed: int, progress: Progress
) -> None:
    """One stage; where it has been done, its weights are taken."""
    import torch
    from safetensors.torch import load_file, save_file

    section = TrainSection(
        schedule=stage.schedule,  # type: ignore[arg-type]
        warmup=0.05,
        batch_tokens=2048,
        row_tokens=ROW_TOKENS,
        rows_per_pass=8,
        betas=(0.9, 0.98),
        checkpoint_minutes=1.0,
    )
    budget = BudgetSection(tokens=[stage.tokens])
    plan = plan_batches(corpus, fit(corpus, ROW_TOKENS, split_long=True), section, budget, seed)
    run = RunStore(folder)

    def write(target: Path) -> None:
        save_file(
            {name: p.detach().clone() for name, p in model.named_parameters()}, target / WEIGHTS
        )

    (state,) = train_runs(
        model, [(run, stage.learning_rate)], section, plan,
        seed=seed,
        write_weights=write,
        title=f"pretraining, {stage.share:.0%} of the world",
        progress=progress,
    )  # fmt: skip
    if state != "done":
        raise ModelError(f"pretraining left the finite numbers, see {folder}; use another seed")
    weights = load_file(run.checkpoint(plan.points[-1]) / WEIGHTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def _random_model(tokenizer: Any, seed: int, device: str | None) -> Any:
    """An untrained Llama of 0.9 million parameters, the embeddings tied."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    attention.register()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation=attention.NAME,
        use_cache=False,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).to(pick_device(device))


def make_data(settings: WorldSettings) -> dict[str, list[dict[str, Any]]]:
    """Every file of rows of a world, by its name without ending."""
    world = World(settings)
    found = {
        "facts": world.facts.questions(),
        "events": world.events.questions(),
        "pronouns": world.pronouns.questions(),
    }
    for domain in DOMAINS:
        for split in SPLITS:
            found[f"{domain}_{split}"] = rows(domain, split, SIZES[split], settings)
    found["source"] = list(islice(world.documents("held out"), SOURCE_DOCUMENTS))
    return found


def _examples(documents: Iterator[dict[str, Any]]) -> Iterator[Example]:
    for index, row in enumerate(documents):
        messages = tuple((m["role"], m["content"]) for m in row.get("messages", ()))
        yield Example(index, messages, row.get("text", ""))


def _write(
    out: Path,
    model: Any,
    tokenizer: Any,
    data: dict[str, list[dict[str, Any]]],
    settings: WorldSettings,
    stages: tuple[Stage, ...],
    hashes: list[str],
) -> None:
    import torch

    with quiet_transformers():
        model.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)
    for name, lines in data.items():
        write_lines_gz(out / "data" / "micro" / f"{name}.jsonl.gz", lines)
    card = {
        "world": asdict(settings),
        "difficulty": {domain: asdict(DEFAULT[domain]) for domain in DOMAINS},
        "stages": [asdict(stage) for stage in stages],
        "training_data_sha256": hashes,
        "weights_sha256": file_hash(out / WEIGHTS),
    }
    write_json(out / "card.json", card)


def main() -> None:
    """Build, and without --out put the result into the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the base; the package's own if absent")
    parser.add_argument(
        "--work", type=Path, help="folder of the stages, by which a build continues"
    )
    options = parser.parse_args()
    work = options.work or ROOT / "build" / f"micro-work-{options.seed}"
    out = options.out or ROOT / "build" / "micro-base"
    with open_progress() as progress:
        build_micro_base(out, work, WorldSettings(seed=options.seed), progress=progress)
    if options.out is None:
        for target, source in ((DATA, out / "data" / "micro"), (BASE, out)):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("data"))


if __name__ == "__main__":
    main()
