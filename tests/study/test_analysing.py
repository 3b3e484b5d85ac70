"""Spectra and subspaces of a study, against its checkpoints read by transformers and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import subspace_angles

from laura.recipe.reading import parse_recipe
from laura.recipe.sections import Recipe
from laura.results.errors import RecipeError
from laura.results.store import MANIFEST, StudyStore, file_hash, read_json, write_json
from laura.study.findings import base_spectra_file, subspaces_file
from laura.study.summary import gather
from tests.analysis.test_weights import layer_maps, ranks
from tests.study.carried_out import (
    compare,
    read_movement,
    read_spectra,
    read_subspaces,
    write_summary,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def with_analysis(text: str, analysis: str) -> Recipe:
    """The tiny recipe with one rate an arm, and this analysis."""
    text = text.replace("[1e-3, 3e-3]", "[1e-3]").replace("[1e-2, 3e-2]", "[1e-2]")
    return parse_recipe(f"{text}\nanalysis: {analysis}\n")


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_data: Path) -> Any:
    """A finished study with everything analysed, and its evidence."""
    from tests.study.conftest import RECIPE

    text = RECIPE.format(model=tiny_folder, folder=tiny_data)
    wanted = "{spectra: all, intruders: true, subspace_k: 3, leading_k: 2, movement: true}"
    recipe = with_analysis(text, wanted)
    folder = tmp_path_factory.mktemp("analysed") / "tiny"
    compare(recipe, study=folder)
    store = StudyStore(folder)
    return recipe, store, gather(store, recipe)


def weights(base: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tuned linear maps of a checkpoint as other libraries read it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (checkpoint / "adapter_config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return layer_maps(PeftModel.from_pretrained(model, checkpoint).merge_and_unload())
    return layer_maps(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32))


def test_every_point_at_the_best_rate_is_analysed(analysed: Any, tiny_folder: Path) -> None:
    _, store, evidence = analysed
    entries = read_spectra(store, evidence, [])
    # Two arms, two seeds, two budgets.
    assert [(e["arm"], e["seed"], e["budget"]) for e in entries] == [
        (arm, seed, budget) for arm in ("full", "lora") for seed in (0, 1) for budget in (600, 1200)
    ]
    before = weights(tiny_folder, tiny_folder)
    for entry in entries:
        after = weights(tiny_folder, store.run(entry["run"]).checkpoint(entry["step"]))
        assert [one["name"] for one in entry["matrices"]] == sorted(before)
        for one in entry["matrices"]:
            delta = after[one["name"]] - before[one["name"]]
            assert one["rank"] == ranks(delta)
            assert one["frobenius"] == pytest.approx(float(torch.linalg.norm(delta)), rel=1e-4)
            assert one["base"]["rank"] == ranks(before[one["name"]])
            assert one["intruders"] in range(11)
            u, _, v = torch.linalg.svd(before[one["name"]].double())
            inside = u[:, :2].T @ delta.double() @ v[:2].T
            share = float(inside.square().sum() / delta.double().square().sum())
            assert one["leading_energy"]["both"] == pytest.approx(share, abs=1e-4)
            if entry["arm"] == "lora":
                assert one["rank"]["99"] <= 4
    assert any(m["rank"]["90"] > 4 for e in entries for m in e["matrices"] if e["arm"] == "full")
    assert len(read_json(base_spectra_file(store))["matrices"]) == len(before)
    assert not list(store.folder.rglob("*.partial.jsonl"))
    assert _gaps(store, evidence) == []


def test_directions_of_lora_and_full_are_compared_seed_by_seed(
    analysed: Any, tiny_folder: Path
) -> None:
    _, store, evidence = analysed
    rows = read_subspaces(store, evidence, [])
    before = weights(tiny_folder, tiny_folder)
    arms = {run.run_id: (run.arm, run.seed) for run in evidence.runs}
    pairs = {tuple(row["runs"]) for row in rows}
    assert sorted((arms[a], arms[b]) for a, b in pairs) == [
        (("lora", seed), ("full", seed)) for seed in (0, 1)
    ]
    assert len(rows) == 2 * len(before)
    last = {p.run_id: p.step for p in evidence.points if p.budget == 1200}
    for runs in pairs:
        sides = [weights(tiny_folder, store.run(run).checkpoint(last[run])) for run in runs]
        for row in (row for row in rows if tuple(row["runs"]) == runs):
            directions = [
                torch.linalg.svd(side[row["name"]] - before[row["name"]]).U[:, :3] for side in sides
            ]
            angles = subspace_angles(*(d.numpy() for d in directions))[::-1].copy()
            assert row["k"] == 3
            assert row["angles"] == pytest.approx(list(angles), abs=1e-3)
            assert row["overlap"] == pytest.approx(
                float(torch.tensor(angles).cos().square().mean()), abs=1e-3
            )
            assert row["noise_overlap"] == 3 / before[row["name"]].shape[0]


def test_movement_is_that_of_the_models_that_transformers_reads(
    analysed: Any, tiny_folder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def read(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    recipe, store, evidence = analysed
    rows = read_movement(store, evidence, [])
    assert [(row["arm"], row["seed"], row["budget"], row["text"]) for row in rows] == [
        (arm, seed, budget, text)
        for arm in ("full", "lora") for seed in (0, 1) for budget in (600, 1200)
        for text in ("target", "source")
    ]  # fmt: skip
    tokenizer, base = AutoTokenizer.from_pretrained(tiny_folder), read(tiny_folder)
    lines = Path(recipe.data.source_text.source).read_text().splitlines()[:10]
    texts = [tokenizer.encode(json.loads(line)["text"]) for line in lines]
    documents = [[*ids, tokenizer.eos_token_id] for ids in texts]
    for row in (one for one in rows if one["text"] == "source" and one["seed"] == 0):
        checkpoint = store.run(row["run"]).checkpoint(row["step"])
        if row["arm"] == "full":
            tuned = read(checkpoint)
        else:
            tuned = PeftModel.from_pretrained(read(tiny_folder), checkpoint).merge_and_unload()
        sides = []
        for model in (base, tuned):
            with torch.no_grad():
                passes = [model(torch.tensor([d]), output_hidden_states=True) for d in documents]
            # Behind the first layer, at all tokens but the first and the last, which predicts none.
            states = torch.cat([one.hidden_states[1][0, 1:-1] for one in passes]).double().numpy()
            sides.append(states - states.mean(0))
        x, y = sides
        norm = np.linalg.norm
        cka = norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
        distance = 2 - 2 * norm(x.T @ y, "nuc") / (norm(x) * norm(y))
        assert row["tokens"] == len(x)
        assert row["layers"][0]["cka"] == pytest.approx(cka, abs=1e-5)
        assert row["layers"][0]["procrustes"] == pytest.approx(distance, abs=1e-5)
        assert all(share > 0 for layer in row["layers"] for share in layer["csd"].values())


def test_what_stands_is_not_analysed_again_and_the_summary_does_not_change(
    analysed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laura.study import analysing

    recipe, store, _ = analysed
    files = [*store.folder.rglob("analysis/**/*.json")]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert len(files) == 8 + 8 + 1 + 1
    measures = ("measure_spectra", "measure_movement", "compare_subspaces", "base_spectra")
    for name in measures:
        monkeypatch.setattr(analysing, name, lambda *_, **__: pytest.fail("analysed again"))
    summary = compare(recipe, study=store.folder)
    assert before == {path: path.stat().st_mtime_ns for path in files}
    assert write_summary(store, recipe) == summary


def test_other_settings_are_analysed_anew_and_none_leaves_no_file(
    analysed: Any, tiny_folder: Path, tiny_data: Path
) -> None:
    from tests.study.conftest import RECIPE

    _, store, _ = analysed
    text = RECIPE.format(model=tiny_folder, folder=tiny_data)
    recipe = with_analysis(text, "{spectra: final, subspace_k: null}")
    whole = {path: path.read_text() for path in store.folder.rglob("analysis/**/*.json")}
    try:
        compare(recipe, study=store.folder)
        evidence = gather(store, recipe)
        entries = read_spectra(store, evidence, [])
        assert {e["budget"] for e in entries} == {1200} and len(entries) == 4
        assert all(m["intruders"] is None for e in entries for m in e["matrices"])
        assert read_subspaces(store, evidence, []) == []
        plain = with_analysis(text, "{}")
        assert read_spectra(store, gather(store, plain), []) == []
    finally:
        for path, content in whole.items():
            path.write_text(content)


def test_weights_that_are_not_finite_are_a_gap_and_the_rest_is_analysed(
    analysed: Any, tmp_path: Path
) -> None:
    import shutil

    recipe, store, evidence = analysed
    shutil.copytree(store.folder, tmp_path / "copy")
    copy = StudyStore(tmp_path / "copy")
    entry = next(e for e in read_spectra(store, evidence, []) if e["arm"] == "full")
    run = copy.run(entry["run"])
    checkpoint = run.checkpoint(entry["step"])
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    manifest = read_json(checkpoint / MANIFEST)
    manifest["sha256"]["model.safetensors"] = file_hash(file)
    write_json(checkpoint / MANIFEST, manifest)
    for kind in ("spectra", "movement"):
        run.analysis(entry["step"], kind).unlink()
    compare(recipe, study=copy.folder)
    evidence = gather(copy, recipe)
    assert len(read_spectra(copy, evidence, [])) == 7
    (gap,) = _gaps(copy, evidence)
    assert "the update of model.layers.1.mlp.up_proj is not finite" in gap and "full, seed 0" in gap
    gaps: list[str] = []
    assert len(read_movement(copy, evidence, gaps)) == 14
    assert "hidden states after layer 1 are not finite" in gaps[0] and "full, seed 0" in gaps[0]
    run.analysis(entry["step"], "movement").write_text("{}")
    assert len(read_movement(copy, evidence, gaps)) == 14
    assert "is damaged" in gaps[-1]


def test_an_interrupted_analysis_goes_on_at_the_next_matrix(
    analysed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from laura.analysis import measuring

    recipe, store, _ = analysed
    shutil.copytree(store.folder, tmp_path / "copy")
    copy = StudyStore(tmp_path / "copy")
    whole = {p: p.read_text() for p in copy.folder.rglob("analysis/**/*.json")}
    for path in whole:
        path.unlink()
    real, asked = measuring.spectrum, []

    def stopping(matrix: torch.Tensor, name: str) -> Any:
        asked.append(name)
        if len(asked) == 30:
            raise KeyboardInterrupt
        return real(matrix, name)

    monkeypatch.setattr(measuring, "spectrum", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(recipe, study=copy.folder)
    compare(recipe, study=copy.folder)
    assert {p: json.loads(p.read_text()) for p in whole} == {
        p: json.loads(text) for p, text in whole.items()
    }
    # 14 of the base, 4 checkpoints with 2 a matrix (full) and 4 with 1 (lora); one begun twice.
    assert len(asked) == 14 + 4 * 14 * 2 + 4 * 14 + 2
    assert subspaces_file(copy).is_file()


def test_intruders_without_spectra_are_a_fault(recipe_text: str) -> None:
    with pytest.raises(RecipeError, match=r"analysis.intruders.*: are counted where spectra"):
        with_analysis(recipe_text, "{intruders: true}")
    with pytest.raises(RecipeError, match=r"analysis.movement.*: is measured where spectra"):
        with_analysis(recipe_text, "{movement: true}")
    with pytest.raises(RecipeError, match=r"analysis.spectra.*: must be 'none', 'final' or 'all'"):
        with_analysis(recipe_text, "{spectra: every}")


def _gaps(store: StudyStore, evidence: Any) -> list[str]:
    gaps: list[str] = []
    read_spectra(store, evidence, gaps)
    return gaps
