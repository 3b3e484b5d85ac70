"""GGUF files by llama.cpp's converter: a stand-in for it, and itself where it is installed."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from laura.cli.app import app
from laura.models.adapters import attach, save_adapter
from laura.models.load import load_base
from laura.models.lora import LoraSettings, lora_layers

# Writes how it was called in the place of a model.
STAND_IN = """
import json, pathlib, sys
folder, _, out, *rest = sys.argv[1:]
files = [file.name for file in pathlib.Path(folder).iterdir()]
pathlib.Path(out).write_text(json.dumps([files, rest]))
"""


def make_adapter(base_name: str, folder: Path) -> Path:
    base = load_base(base_name, device="cpu")
    settings = LoraSettings(rank=4, alpha=8.0)
    attach(base.model, settings, seed=0)
    torch.manual_seed(0)
    for layer in lora_layers(base.model).values():
        torch.nn.init.normal_(layer.B, std=0.02)
    save_adapter(base.model, folder, settings, base_name)
    return folder


def merge(*words: object, path: str = "", converter: str | None = None) -> tuple[int, str, str]:
    """Exit code, answer and messages of `laura merge`."""
    env = {"PATH": path, "LAURA_GGUF_CONVERTER": converter}
    ended = CliRunner().invoke(app, ["merge", *map(str, words)], env=env)
    return ended.exit_code, ended.stdout, " ".join(ended.stderr.split())


def test_a_merged_model_goes_through_the_converter(tmp_path: Path) -> None:
    adapter = make_adapter("micro", tmp_path / "adapter")
    place = tmp_path / "llama.cpp"
    place.mkdir()
    script = place / "convert_hf_to_gguf.py"
    script.write_text(f"#!{sys.executable}\n{STAND_IN}")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    for number, found in enumerate(
        ({"path": str(place)}, {"converter": str(place)}, {"converter": str(script)})
    ):
        out = tmp_path / f"{number}.gguf"
        code, said, told = merge("micro", adapter, out, **found)
        assert code == 0 and f"folder: {out}" in said and "update: " in said, told
        files, options = json.loads(out.read_text())
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
        assert options == ["--outtype", "f32"]
    out = tmp_path / "new" / "given.GGUF"
    assert merge("micro", adapter, out, "--converter", place)[0] == 0
    # The merged folder and the file under way are gone.
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "0.gguf", "1.gguf", "2.gguf", "adapter", "llama.cpp", "new",
    ]  # fmt: skip
    assert merge("micro", adapter, out, "--converter", place)[2].endswith("that does not")


def test_without_a_converter_or_with_a_broken_one(tmp_path: Path) -> None:
    adapter = make_adapter("micro", tmp_path / "adapter")
    out = tmp_path / "out.gguf"
    code, _, told = merge("micro", adapter, out)
    assert code == 2 and "git clone https://github.com/ggml-org/llama.cpp" in told
    code, _, told = merge("micro", adapter, out, "--converter", tmp_path / "none")
    assert code == 2 and "none is not here" in told
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_package")
    code, _, told = merge("micro", adapter, out, "--converter", broken)
    assert code == 2 and "No module named 'no_such_package'. What it needs is in" in told
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter", "broken.py"]


@pytest.mark.slow
def test_llama_cpp_itself_writes_what_laura_reads(
    smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter = os.environ.get("LAURA_GGUF_CONVERTER")
    if converter is None:
        pytest.skip("set LAURA_GGUF_CONVERTER to a checkout of llama.cpp")
    monkeypatch.setenv("LAURA_CACHE", str(tmp_path / "cache"))
    adapter = make_adapter(str(smollm2_folder), tmp_path / "adapter")
    ids = torch.arange(3, 43)[None] * 7
    answers = []
    for out in (tmp_path / "merged", tmp_path / "merged.gguf"):
        ended = CliRunner().invoke(app, ["merge", str(smollm2_folder), str(adapter), str(out)])
        assert ended.exit_code == 0, ended.output
        read = load_base(str(out), device="cpu")
        with torch.inference_mode():
            answers.append(read.model(ids).logits)
        text = "12 + 30 = 42, said the dog."
        answers.append(torch.tensor(read.tokenizer(text)["input_ids"]))
    assert torch.equal(answers[0], answers[2]) and torch.equal(answers[1], answers[3])
    with torch.inference_mode():
        base = load_base(str(smollm2_folder), device="cpu").model(ids).logits
    assert (answers[0] - base).abs().max() > 0.1
