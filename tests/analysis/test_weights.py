"""Whole models and adapters, read from files, against PEFT and transformers in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from laura.analysis.comparison import compare_weights
from laura.analysis.measuring import Wanted
from laura.analysis.spectra import ENERGIES
from laura.analysis.weights import StoredFull, StoredModel, open_tuned, rescale_rows
from laura.models.load import load_base
from laura.results.errors import AdapterError, LauraError, ModelError, ShapeError, UsageError
from laura.results.store import kept_rows
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
CPU = torch.device("cpu")
WIDTHS = {"q_proj": (64, 64), "k_proj": (32, 64), "down_proj": (64, 128), "up_proj": (128, 64)}


def changed(scale: float = 0.01, seed: int = 1, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny model, every matrix moved by noise."""
    model = make_tiny_model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def layer_maps(model: Any) -> dict[str, torch.Tensor]:
    """Weights of the linear maps inside the layers, by module name."""
    return {
        name: module.weight.detach().double()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }


def ranks(matrix: torch.Tensor) -> dict[str, int]:
    """Energy ranks by torch's SVD in float64."""
    values = torch.linalg.svdvals(matrix.double())
    energy = values.square().cumsum(0) / values.square().sum()
    return {f"{100 * e:.0f}": int((energy < e).sum()) + 1 for e in ENERGIES}


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetuned model in several shards."""
    folder = tmp_path_factory.mktemp("full")
    changed().save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def make_adapter(folder: Path, **settings: Any) -> Any:
    """An adapter made and saved by PEFT, with a B that is not zero; the PEFT model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": "all-linear", **settings})
    model = get_peft_model(make_tiny_model(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
            if "lora_magnitude" in name:
                parameter.mul_(1.1)
    model.save_pretrained(folder)
    return model


def test_a_full_checkpoint_in_shards(tiny_folder: Path, full_folder: Path, tmp_path: Path) -> None:
    answer = compare_weights(
        str(tiny_folder), str(full_folder), out=tmp_path / "s.json", device="cpu"
    )
    before, after = layer_maps(make_tiny_model()), layer_maps(changed())
    assert [one["name"] for one in answer["matrices"]] == sorted(before)
    for one in answer["matrices"]:
        name = one["name"]
        delta = after[name].float() - before[name].float()
        assert one["layer"] == int(name.split(".")[2]) and name.endswith(one["module"])
        assert tuple(one["shape"]) == before[name].shape == delta.shape
        assert one["shape"] == list(WIDTHS.get(one["module"], one["shape"]))
        assert one["rank"] == ranks(delta)
        assert one["base"]["rank"] == ranks(before[name])
        assert one["tuned"]["rank"] == ranks(after[name])
        norms = [float(torch.linalg.norm(m.double())) for m in (delta, before[name])]
        assert one["frobenius"] == pytest.approx(norms[0], rel=1e-5)
        assert one["relative_frobenius"] == pytest.approx(norms[0] / norms[1], rel=1e-5)
        first = [float(torch.linalg.norm(m.double(), 2)) for m in (delta, before[name])]
        assert one["relative_spectral"] == pytest.approx(first[0] / first[1], rel=1e-5)
        assert one["intruders"] is None
        # The change is noise, so its rank is noise's.
        assert one["rank"]["90"] == pytest.approx(one["noise_rank"]["90"], abs=2)
    assert answer["warnings"] == []
    assert json.loads((tmp_path / "s.json").read_text()) == answer


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "r": 8},
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"up_proj": 40}},
    ],
    ids=["plain", "rslora", "some modules", "alphas"],
)
def test_adapters_of_peft(tiny_folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    model = make_adapter(tmp_path / "adapter", **settings)
    answer = compare_weights(
        str(tiny_folder), str(tmp_path / "adapter"), out=tmp_path / "s.json", device="cpu"
    )
    before = layer_maps(make_tiny_model())
    after = layer_maps(model.merge_and_unload())
    changed_matrices = 0
    for one in answer["matrices"]:
        delta = after[one["name"]] - before[one["name"]]
        if not bool(delta.any()):
            assert set(one["rank"].values()) == {0} and one["frobenius"] == 0
            assert one["effective_rank"] == one["stable_rank"] == 0
            assert one["tuned"] == one["base"]
            continue
        changed_matrices += 1
        pattern = settings.get("rank_pattern", {})
        rank = pattern.get(one["module"], settings.get("r", 4))
        assert one["rank"] == ranks(delta) and one["rank"]["99"] <= rank
        assert one["effective_rank"] <= rank
        assert one["frobenius"] == pytest.approx(float(torch.linalg.norm(delta)), rel=1e-4)
        assert one["tuned"]["rank"] == ranks(after[one["name"]])
    assert changed_matrices == (4 if "target_modules" in settings else 14)


def test_dora_rescales_rows_as_peft_does(tmp_path: Path) -> None:
    model = make_adapter(tmp_path, use_dora=True)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    before, after = layer_maps(make_tiny_model()), layer_maps(model.merge_and_unload())
    for name, weight in before.items():
        key = f"base_model.model.{name}.lora_"
        tuned = weight + 3.0 * stored[f"{key}B.weight"].double() @ stored[f"{key}A.weight"].double()
        rescale_rows(tuned, stored[f"{key}magnitude_vector"].double())
        assert torch.allclose(tuned, after[name], atol=1e-6)


def test_oft_rotates_as_peft_does(tmp_path: Path, tiny_folder: Path) -> None:
    model = oracle.make_twin(kind="OFTConfig", oft_block_size=16, target_modules=["q_proj"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "oft_R" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator()) / 10)
    model.save_pretrained(tmp_path)
    stored = open_tuned(StoredModel(tiny_folder), tmp_path)
    before, after = layer_maps(make_tiny_model()), layer_maps(model.merge_and_unload())
    for name, weight in before.items():
        wanted = after[name].float()
        torch.testing.assert_close(stored.read(name, CPU), wanted, atol=1e-6, rtol=1e-5)
        update = (after[name] - weight).float()
        torch.testing.assert_close(stored.read_update(name, CPU), update, atol=1e-6, rtol=0)
        assert (stored.factors(name, CPU) is None) == ("q_proj" in name) == bool(update.any())


def test_singular_values_of_one_matrix_are_kept(
    tiny_folder: Path, full_folder: Path, tmp_path: Path
) -> None:
    """What figure S7 of the paper draws: base, tuned and update of one matrix."""
    name = "model.layers.1.mlp.down_proj"
    answer = compare_weights(
        str(tiny_folder),
        str(full_folder),
        out=tmp_path / "s.json",
        wanted=Wanted(values=(name,)),
        device="cpu",
    )
    before, after = layer_maps(make_tiny_model())[name], layer_maps(changed())[name]
    for one in answer["matrices"]:
        if one["name"] != name:
            assert "values" not in one and "values" not in one["base"]
            continue
        for told, matrix in ((one["base"], before), (one["tuned"], after), (one, after - before)):
            expected = torch.linalg.svdvals(matrix)
            assert torch.allclose(torch.tensor(told["values"]).double(), expected, rtol=1e-4)
    with pytest.raises(UsageError, match=r"no matrix 'model.layers.1.mlp.down'; did you mean"):
        wanted = Wanted(values=("model.layers.1.mlp.down",))
        compare_weights(str(tiny_folder), str(full_folder), out=tmp_path / "s.json", wanted=wanted)


def test_bf16_is_warned_of_and_rounds(tiny_folder: Path, tmp_path: Path) -> None:
    changed(1e-5, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16")
    answer = compare_weights(
        str(tiny_folder), str(tmp_path / "bf16"), out=tmp_path / "s.json", device="cpu"
    )
    (warning,) = answer["warnings"]
    assert "stored in bfloat16" in warning and "float32" in warning
    before, after = layer_maps(make_tiny_model()), layer_maps(changed(1e-5, dtype=torch.bfloat16))
    one = answer["matrices"][0]
    delta = after[one["name"]] - before[one["name"]]
    assert one["frobenius"] == pytest.approx(float(torch.linalg.norm(delta)), rel=1e-5)
    # A base that was held in bf16 was rounded once already, so that is no part of the update.
    held = StoredModel(tiny_folder, torch.bfloat16)
    update = StoredFull(held, tmp_path / "bf16").read_update(one["name"], CPU)
    rounded = before[one["name"]].float().bfloat16().float()
    assert torch.equal(update, after[one["name"]].float() - rounded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_that_was_held_in_nf4_is_read_as_it_was_computed_with(
    dtype: torch.dtype, tiny_folder: Path
) -> None:
    held = StoredModel(tiny_folder, dtype, quantised=True)
    loaded = load_base(
        str(tiny_folder), dtype=str(dtype).removeprefix("torch."), quantization="nf4", device="cpu"
    ).model
    for name in held.matrices:
        assert torch.equal(held.read(name, CPU), loaded.get_submodule(name).weight.float())


def test_another_base_is_guessed_from_the_size_of_the_update(
    tiny_folder: Path, tmp_path: Path
) -> None:
    make_tiny_model(seed=5).save_pretrained(tmp_path / "other")
    answer = compare_weights(
        str(tiny_folder), str(tmp_path / "other"), out=tmp_path / "s.json", device="cpu"
    )
    assert "larger than the matrix itself" in answer["warnings"][0]


def spoiled(folder: Path, target: Path, change: Any) -> Path:
    """A copy of a one-file model or adapter with its tensors changed."""
    target.mkdir()
    (name,) = [p.name for p in folder.glob("*.safetensors")]
    tensors = load_file(folder / name)
    save_file(change(tensors), target / name)
    for path in folder.glob("*.json"):
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_what_does_not_belong_together_is_told_in_a_line(tiny_folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj"

    def without(tensors: Any) -> Any:
        return {key: value for key, value in tensors.items() if name not in key}

    def wider(tensors: Any) -> Any:
        return {**tensors, f"{name}.weight": torch.zeros(32, 65)}

    def infinite(tensors: Any) -> Any:
        tensors[f"{name}.weight"][3, 4] = float("nan")
        return tensors

    def told(kind: type[LauraError], words: str, base: Path, tuned: Path) -> None:
        with pytest.raises(kind, match=words) as caught:
            compare_weights(str(base), str(tuned), out=tmp_path / "s.json", device="cpu")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "s.json").exists()

    less = spoiled(tiny_folder, tmp_path / "less", without)
    told(ModelError, f"1 of the matrices are not in .*less, such as {name}", tiny_folder, less)
    told(ModelError, f"1 of the matrices are not in .*less, such as {name}", less, tiny_folder)
    other = spoiled(tiny_folder, tmp_path / "wider", wider)
    told(ShapeError, f"{name}: 32 x 65 instead of 32 x 64", tiny_folder, other)
    bad = spoiled(tiny_folder, tmp_path / "bad", infinite)
    told(ModelError, f"the update of {name} is not finite", tiny_folder, bad)
    make_adapter(tmp_path / "adapter")
    told(ModelError, "not of an adapter", tmp_path / "adapter", tiny_folder)
    make_tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "short")
    told(AdapterError, "made for another base", tmp_path / "short", tmp_path / "adapter")
    make_tiny_model(intermediate_size=96).save_pretrained(tmp_path / "narrow")
    shapes = r"lora_A of .* has shape \(4, 128\), this base needs \(4, 96\)"
    told(AdapterError, shapes, tmp_path / "narrow", tmp_path / "adapter")
    cut = spoiled(tiny_folder, tmp_path / "cut", lambda tensors: tensors)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    told(ModelError, "truncated or damaged", tiny_folder, cut)
    told(ModelError, "does not exist", tiny_folder, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    told(ModelError, "holds no model.safetensors", tiny_folder, tmp_path / "empty")


def test_what_was_measured_is_not_measured_again(
    tiny_folder: Path, full_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laura.analysis import measuring

    whole = compare_weights(
        str(tiny_folder), str(full_folder), out=tmp_path / "whole.json", device="cpu"
    )
    real, asked = measuring.spectrum, []

    def stopping(matrix: torch.Tensor, name: str) -> Any:
        asked.append(name)
        if len(asked) == 10:
            raise KeyboardInterrupt
        return real(matrix, name)

    monkeypatch.setattr(measuring, "spectrum", stopping)
    out = tmp_path / "s.json"
    with pytest.raises(KeyboardInterrupt):
        compare_weights(str(tiny_folder), str(full_folder), out=out, device="cpu")
    partial = tmp_path / "s.partial.jsonl"
    # Three spectra a matrix, so three matrices are whole; a line cut off does not count.
    assert len(partial.read_text().splitlines()) == 1 + 3
    partial.write_text(partial.read_text() + '{"name": "model.layers.0.mlp')
    asked[:] = ["again"] * 10
    answer = compare_weights(str(tiny_folder), str(full_folder), out=out, device="cpu")
    assert answer["matrices"] == whole["matrices"]
    assert len(asked) == 10 + 3 * (14 - 3)
    assert not partial.exists()
    with kept_rows(partial, {"of": "another"}) as (rows, _):
        assert rows == []


@pytest.mark.slow
def test_memory_stays_below_three_of_the_largest_matrices(tmp_path: Path) -> None:
    """A layer whose widest matrix has 48 MB, in a process that counts its own peak."""
    import subprocess
    import sys

    code = f"""
import torch
from pathlib import Path
from safetensors.torch import save_file
from laura.analysis.measuring import Wanted, measure_spectra
from laura.analysis.weights import StoredModel, open_tuned
from laura.models.device import peak_memory_bytes, reset_peak_memory
torch.set_num_threads(1)
cpu, folder = torch.device("cpu"), Path({str(tmp_path)!r})
shapes = {{"mlp.down_proj": (768, 16384), "self_attn.q_proj": (768, 768)}}
for name in ("base", "tuned"):
    (folder / name).mkdir()
    tensors = {{f"model.layers.0.{{m}}.weight": torch.randn(s) for m, s in shapes.items()}}
    save_file(tensors, folder / name / "model.safetensors")
del tensors
base = StoredModel(folder / "base")
tuned = open_tuned(base, folder / "tuned")
torch.linalg.eigvalsh(torch.eye(64))
reset_peak_memory(cpu)
before = peak_memory_bytes(cpu)
measure_spectra(base, tuned, Wanted(), file=folder / "kept", identity={{}}, device=cpu)
print((peak_memory_bytes(cpu) - before) / (4 * 768 * 16384))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert 1 <= float(ended.stdout) < 3
