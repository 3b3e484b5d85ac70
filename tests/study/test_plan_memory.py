"""Memory by the plan: against the storages that autograd saves, the paper, real trainings."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from laura.data.packing import Row
from laura.engine import scheduler
from laura.engine.kv_cache import Geometry
from laura.models import lean as lean_module
from laura.models import losses
from laura.models.device import autocast, has_bf16_arithmetic, pass_tokens
from laura.models.lean import lean
from laura.models.load import hold_in_nf4
from laura.models.lora import lora_layers, route
from laura.models.nf4 import Nf4Linear
from laura.recipe.sections import METHODS, Arm, BaseSection, FullArm, LoraArm, MeasureSection
from laura.results.errors import RecipeError
from laura.study.plan import fitting, memory
from laura.study.plan.fitting import refuse_too_large
from laura.study.plan.machine import Machine, measure_machine
from laura.study.plan.memory import (
    Pass,
    activation_bytes,
    base_bytes,
    checkpoint_numbers,
    pass_of,
    start_numbers,
    trainable_parameters,
    training_parts,
)
from laura.study.plan.shapes import shapes_from, shapes_of
from laura.study.plan.text import paper_rows
from laura.study.plan.work import work_of
from laura.study.workbench import Workbench
from laura.training.flops import count_work
from laura.training.learner import model_inputs
from tests.conftest import make_tiny_model
from tests.study.test_plan import LLAMA_2_7B, LLAMA_3_8B, micro_recipe

ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full-layers": {"method": "full", "layers": [2, 4]},
    "full-attention-dropout": {"method": "full", "attention_dropout": 0.1},
    "full-residual-dropout": {"method": "full", "residual_dropout": 0.1},
    "full-kl": {"method": "full", "penalty": "kl"},
    "lora": {"method": "lora"},
    "kl": {"method": "lora", "layers": [2, 3], "penalty": "kl"},
    "mlp": {"method": "lora", "targets": "mlp"},
    "dropout": {"method": "lora", "dropout": 0.1},
    "layers": {"method": "lora", "layers": [2, 3]},
    "down-of-two": {"method": "lora", "targets": ["down_proj"], "layers": [1, 5]},
    "output-of-one": {"method": "lora", "targets": ["o_proj"], "layers": [3], "dropout": 0.1},
    "lora-both-dropouts": {"method": "lora", "attention_dropout": 0.1, "residual_dropout": 0.1},
    "pissa": {"method": "lora", "init": "pissa"},
    "pissa-dropout": {"method": "lora", "init": "pissa", "dropout": 0.1},
    "milora": {"method": "lora", "init": "milora"},
    "oplora": {"method": "lora", "protect": 4},
    "dora": {"method": "lora", "dora": True},
    "dora-dropout": {"method": "lora", "dora": True, "dropout": 0.1},
    "oft": {"method": "oft"},
    "oft-small": {"method": "oft", "block_size": 4, "targets": "mlp", "layers": [2, 3]},
}


def make_arm(name: str) -> Arm:
    """An arm of rank 8."""
    fields = ARMS[name]
    arm: Any = METHODS[fields["method"]]
    return arm.model_validate({"rank": 8, **fields} if arm is LoraArm else fields)


def adapted(arm: Arm, stack: ExitStack, quantised: bool = False) -> tuple[Any, Any]:
    """A tiny Llama made ready by the workbench to train an arm, and its shapes."""
    model = make_tiny_model(num_hidden_layers=6, hidden_size=128, intermediate_size=352)
    model.requires_grad_(False)
    if quantised:
        hold_in_nf4(model, torch.device("cpu"))
    bench = Workbench(BaseSection(model="tiny"), "cpu")
    bench._base = SimpleNamespace(  # type: ignore[assignment]
        model=model, name="tiny", source=lambda: ("tiny", None)
    )
    shapes = shapes_from(model.config.to_dict(), "tiny")
    stack.enter_context(bench.adapted(arm, seed=0))
    return model, shapes


@pytest.mark.parametrize("name", ARMS)
def test_what_is_trained_and_its_work_are_the_models(name: str) -> None:
    arm = make_arm(name)
    with ExitStack() as stack:
        model, shapes = adapted(arm, stack)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        starts = sum(b.numel() for key, b in model.named_buffers() if "start_" in key)
        assert trainable_parameters(shapes, arm) == trained
        assert start_numbers(shapes, arm) == starts
        assert work_of(shapes, arm) == count_work(model, arm.reads_base)


@pytest.mark.parametrize(("documents", "bits"), [(1, 32), (4, 16)])
@pytest.mark.parametrize("name", ARMS)
def test_activations_are_what_autograd_keeps(
    name: str, documents: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the storages that a real pass saves, each counted once."""
    arm, tokens, length = make_arm(name), 256, 256 // documents
    row = make_row(tokens, documents)
    with ExitStack() as stack:
        model, shapes = adapted(arm, stack)
        kept = kept_bytes(model, row, {16: torch.bfloat16, 32: torch.float32}[bits], monkeypatch)
    one = Pass(tokens, tokens, 4, bits // 8, packed=documents > 1, document=length)
    assert activation_bytes(shapes, arm, one) == pytest.approx(kept, rel=0.03)


LORA = [name for name, fields in ARMS.items() if fields["method"] == "lora"]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("name", LORA)
def test_on_a_quantised_base_no_weight_is_kept(
    name: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, row, dtype = make_arm(name), make_row(256, 4), {16: torch.bfloat16, 32: torch.float32}
    with ExitStack() as stack:
        model, shapes = adapted(arm, stack, quantised=True)
        assert work_of(shapes, arm) == count_work(model, arm.reads_base)
        kept = kept_bytes(model, row, dtype[bits], monkeypatch)
    one = Pass(256, 256, 4, bits // 8, document=64, quantised=True)
    assert activation_bytes(shapes, arm, one) == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_base_takes_the_bytes_that_it_is_held_in(dtype: torch.dtype) -> None:
    with ExitStack() as stack:
        model, shapes = adapted(make_arm("lora"), stack, quantised=True)
    model.to(dtype)
    tensors = list(model.parameters())
    for one in (module for module in model.modules() if isinstance(module, Nf4Linear)):
        tensors += [one.packed, one.state.absmax, one.state.state2.absmax]
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert base_bytes(shapes, dtype.itemsize, quantised=True) == held
    # Maps in float32 take 7.75 times as much.
    saved = base_bytes(shapes, dtype.itemsize, quantised=False) - held
    assert saved == pytest.approx(shapes.map_elements * (dtype.itemsize - 4.127 / 8), rel=1e-2)


def test_lora_on_8b_in_four_bits_fits_24_gb() -> None:
    """The figures in the guide, in bf16 at 4,096 tokens a pass."""
    recipe = micro_recipe(
        base={"model": "micro", "dtype": "bfloat16", "quantization": "nf4"},
        arms={"lora": {"method": "lora", "rank": 16, "learning_rates": [1e-4]}},
        train={"row_tokens": 4096, "batch_tokens": 16384, "rows_per_pass": 1, "recompute": True},
        measure={"learning": ["micro_code"], "forgetting": ["micro_facts"], "precision": "bf16"},
    )
    shapes, machine = shapes_from(LLAMA_3_8B, "8B"), Machine("cuda", 2)
    refuse_too_large(recipe, shapes, machine, 24 * 10**9)
    one = pass_of(recipe, "lora", machine)
    for held, printed in ((one, 8.0), (replace(one, quantised=False), 17.5)):
        peak = training_parts(shapes, recipe.arms["lora"], "adamw", held, machine)["peak"]
        assert round(peak / 2**30, 1) == printed


@pytest.mark.parametrize("bits", [16, 32])
def test_shared_passes_keep_every_runs_activations(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, row, runs = make_arm("lora"), make_row(128, 2), 3
    with ExitStack() as stack:
        model, shapes = adapted(arm, stack)
        for layer in lora_layers(model).values():
            layer.scales = layer.scales[:1] * runs
            for key in "AB":
                one = getattr(layer, key)
                setattr(layer, key, torch.nn.Parameter(one.detach().repeat(runs, 1, 1)))
        stack.enter_context(route(model, segments=[(slot, 128) for slot in range(runs)]))
        dtype = {16: torch.bfloat16, 32: torch.float32}[bits]
        kept = kept_bytes(model, row, dtype, monkeypatch, runs)
    passed = Pass(128, 128, 4, bits // 8, document=64, runs=runs, shared=True)
    assert activation_bytes(shapes, arm, passed) == pytest.approx(kept, rel=0.03)


def make_row(tokens: int, documents: int) -> Row:
    """A full row of equal documents, learnt on every token."""
    length = tokens // documents
    places = [place for _ in range(documents) for place in range(length)]
    return Row([5] * tokens, [7] * tokens, places, [length] * documents, [0] * documents)


def kept_bytes(
    model: Any, row: Row, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, runs: int = 1
) -> int:
    """Bytes of the storages that a pass of a model saves for its gradient."""
    model.train()
    cpu = torch.device("cpu")
    inputs, labels = model_inputs([row], cpu)
    inputs["input_ids"] = inputs["input_ids"].expand(runs, -1)
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        if isinstance(tensor, torch.Tensor):
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    made_again = lean_module._made_again

    def seen_too(*tensors: torch.Tensor) -> saved_tensors_hooks:
        # Only the innermost hooks are asked: what they keep is noted here.
        hooks = made_again(*tensors)
        inner, unpack = hooks.pack_hook, hooks.unpack_hook

        def note(kept: torch.Tensor) -> Any:
            packed = inner(kept)
            if not isinstance(packed, torch.Tensor):
                # What makes the product again holds its two factors, a gradient or not.
                for tensor in tensors[1:]:
                    pack(tensor)
            return pack(packed)

        return saved_tensors_hooks(note, unpack)

    monkeypatch.setattr(lean_module, "_made_again", seen_too)
    with lean(model), saved_tensors_hooks(pack, lambda kept: kept), autocast(cpu, dtype):
        loss = losses.packed_loss_sums(model, inputs, labels, dtype)
    # Counted elsewhere: parameters, PiSSA's starts, frozen maps' lasting casts, and the output
    # map's gradient.
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    casts = [layer._cast for layer in lora_layers(model).values() if layer._cast is not None]
    own |= {cast.untyped_storage().data_ptr() for cast in casts}
    head = model.get_output_embeddings().weight.shape
    sizes = [
        kept.untyped_storage().nbytes()
        for place, kept in found.items()
        if place not in own and kept.shape != head
    ]
    assert loss.requires_grad
    return sum(sizes)


def parts_of(arm: Any, one: Pass) -> dict[str, int]:
    return training_parts(shapes_of(BaseSection(model="micro")), arm, "adamw", one)


def test_decay_toward_the_base_keeps_one_copy_of_what_is_trained() -> None:
    one = Pass(512, 512, 4, 2)
    shapes = shapes_of(BaseSection(model="micro"))
    for layers, trained in ((None, shapes.parameters), ([0], shapes.layer_parameters)):
        plain = parts_of(FullArm(method="full", weight_decay=0.1, layers=layers), one)
        toward = FullArm(method="full", weight_decay=0.1, weight_decay_toward="base", layers=layers)
        found = parts_of(toward, one)
        assert found["weights"] - plain["weights"] == 4 * trained
        assert found["peak"] - plain["peak"] == 4 * trained


def test_memory_of_runs_in_lockstep() -> None:
    plain = micro_recipe()
    recipe = micro_recipe(train={"batch_tokens": 512, "row_tokens": 256, "cohort": 3})
    arm = recipe.arms["lora"]
    alone = pass_of(plain, "lora", Machine("cpu", 2))
    turns = pass_of(recipe, "lora", Machine("cpu", 2))
    shared = pass_of(recipe, "lora", Machine("cuda:0", 2))
    one, each, all_of_them = (parts_of(arm, a_pass) for a_pass in (alone, turns, shared))
    for parts in (each, all_of_them):
        assert [parts[k] for k in ("adapter", "optimiser")] == [
            3 * one[k] for k in ("adapter", "optimiser")
        ]
        assert parts["weights"] == one["weights"]
    assert (each["activations"], each["gradients"]) == (one["activations"], one["gradients"])
    assert all_of_them["gradients"] == 3 * one["gradients"]
    # Frozen casts, cosine and sine are there once.
    assert 2.9 < all_of_them["activations"] / one["activations"] <= 3
    for variant in ({"dora": True}, {"dropout": 0.1}, {"residual_dropout": 0.1}):
        arms = {"lora": {"method": "lora", "learning_rates": [1e-4, 1e-3], **variant}}
        assert not pass_of(micro_recipe(arms=arms), "lora", Machine("cuda", 2)).shared


def test_memory_over_several_devices() -> None:
    shapes = shapes_from(LLAMA_2_7B, "7B")
    layer, rest = 4 * shapes.layer_parameters, 4 * (2 * shapes.head_elements + shapes.width)
    one, two = Pass(4096, 4096, 4, 4), Pass(4096, 4096, 4, 2)
    kept = ("adapter", "gradients", "optimiser")
    full = [training_parts(shapes, FullArm(method="full"), "adamw", one, None, n) for n in (1, 8)]
    assert all(full[1][part] * 8 == full[0][part] for part in kept)
    assert full[1]["weights"] * 8 == full[0]["weights"] == full[1]["loading"]
    # Whole: two layers and all outside them, a layer's gradient and one on its way.
    assert full[1]["gathered"] == rest + 4 * layer and full[0]["gathered"] == 0
    # Adapters are whole on each device, and so are the casts of the maps beside them.
    arm = LoraArm(method="lora", rank=16)
    lora = [training_parts(shapes, arm, "adamw", two, None, n) for n in (1, 8)]
    assert all(lora[1][part] == lora[0][part] for part in kept)
    casts = lora[0]["weights"] - 4 * shapes.parameters
    assert casts > 2 * 6e9
    assert lora[1]["weights"] == shapes.parameters // 2 + casts
    assert lora[1]["gathered"] == rest + 2 * layer
    for parts in (full, lora):
        assert parts[1]["activations"] == parts[0]["activations"]


def test_processes_of_one_processor_share_its_memory() -> None:
    shapes, machine = shapes_from(LLAMA_2_7B, "7B"), Machine("cpu", 4)
    train = {"batch_tokens": 512, "row_tokens": 256, "rows_per_pass": 1}
    # In fp32 measuring, which is on one device, needs less than training.
    measure = {"learning": ["micro_code"], "forgetting": ["micro_facts"], "precision": "fp32"}
    recipes = [
        micro_recipe(train={**train, "devices": devices}, measure=measure) for devices in (1, 2)
    ]
    one, two = (fitting.most_memory(recipe, "full", shapes, machine) for recipe in recipes)
    # Each has a pass of its own, and gathers the layers at work.
    assert one < two < 1.15 * one
    device = Machine("cuda", 4)
    one, two = (fitting.most_memory(recipe, "full", shapes, device) for recipe in recipes)
    assert two < 0.6 * one


def test_vllm_waits_beside_and_takes_turns() -> None:
    shapes = shapes_from(LLAMA_2_7B, "7B")
    for kind, waits in (("cuda", memory.VLLM_ASLEEP), ("cpu", 0)):
        machine, found = Machine(kind, 4), {}
        for engine in ("laura", "vllm"):
            tasks = {"learning": ["micro_math"], "forgetting": ["micro_facts"]}
            recipe = micro_recipe(measure={**tasks, "engine": engine, "precision": "bf16"})
            found[engine] = fitting.most_memory(recipe, "lora", shapes, machine)
        awake, waiting = memory.vllm_bytes(shapes, recipe, machine)
        assert 2 * shapes.parameters < awake < 2 * shapes.parameters + 7 * 2**30
        assert waiting == (waits or awake)
        assert found["vllm"] == max(awake, found["laura"] + waiting)
        with pytest.raises(RecipeError, match=r'measure\.engine="laura" needs'):
            refuse_too_large(recipe, shapes, machine, found["vllm"] - 1, ["lora"])


def test_formats_of_training_and_measuring_count_by_themselves() -> None:
    shapes, machine = shapes_from(LLAMA_2_7B, "7B"), Machine("cuda", 2)
    lora = {"method": "lora", "rank": 16, "learning_rates": [1e-4]}
    narrow, full = {**lora, "base_dtype": "bfloat16"}, {"method": "full", "learning_rates": [1e-5]}
    recipe = micro_recipe(arms={"lora": lora, "narrow": narrow, "full": full})
    parts = {name: fitting.arm_parts(recipe, name, shapes, machine)[0] for name in recipe.arms}
    train = {name: own["peak"] for name, own in parts.items() if own is not None}
    # A copy of the maps in bf16 beside float32 weights, against bf16 alone.
    assert train["lora"] - train["narrow"] > 3.9 * 6.5e9
    measured = [memory.evaluation_parts(shapes, recipe, n, machine) for n in ("lora", "narrow")]
    assert measured[0] == measured[1]
    by = {
        (kind, precision): memory.measured_bytes(
            MeasureSection(precision=precision), Machine(kind, 2)
        )
        for kind in ("cpu", "cuda")
        for precision in (None, "fp32", "bf16", "auto")
    }
    assert [by["cpu", p] for p in (None, "fp32", "bf16", "auto")] == [4, 4, 2, 2]
    assert [by["cuda", p] for p in (None, "fp32", "bf16", "auto")] == [2, 4, 2, 2]
    # Where it lacks memory, LoRA beside full is told of its own key.
    own = {"arms.lora": {"base_dtype": "bfloat16"}}
    found = list(fitting.changes(recipe, machine, ["lora"]))
    assert own in found and {"measure": {"precision": "fp32"}} in found
    changed = fitting.with_change(recipe, own)
    assert changed.base.dtype_under(changed.arms["lora"]) == "bfloat16"
    full = fitting.changes(recipe, machine, ["full"])
    assert not any("base_dtype" in str(change) for change in full)


def test_checkpoints_of_variants() -> None:
    shapes = shapes_of(BaseSection(model="micro"))
    plain = checkpoint_numbers(shapes, LoraArm(method="lora", rank=8))
    outputs = shapes.layers * sum(out for out, _ in shapes.maps.values())
    assert checkpoint_numbers(shapes, LoraArm(method="lora", rank=8, init="pissa")) == 2 * plain
    dora = checkpoint_numbers(shapes, LoraArm(method="lora", rank=8, dora=True))
    assert dora == plain + outputs
    half = checkpoint_numbers(shapes, LoraArm(method="lora", rank=8, layers=[0]))
    assert half * shapes.layers == plain
    some = FullArm(method="full", layers=[0])
    assert checkpoint_numbers(shapes, some) == shapes.parameters


def test_numbers_written_twice_agree() -> None:
    for name in ("CHUNK_POSITIONS", "GROUP_POSITIONS", "BLOCK_WORDS"):
        assert getattr(memory, name) == getattr(losses, name)
    assert memory.MOST_ROWS == scheduler.MOST_ROWS
    assert pass_tokens(torch.device("cpu")) == memory.CPU_PASS_TOKENS
    assert pass_tokens(torch.device("cuda")) == memory.PASS_TOKENS
    shapes = shapes_from(LLAMA_2_7B, "config.json")
    geometry = Geometry(32, 32, 128, torch.bfloat16)
    assert memory.cache_row_bytes(shapes, 100, 2) == geometry.row_bytes(100)


def test_state_agrees_with_the_papers_formulas() -> None:
    """Without activations and mixed precision, weights to optimiser are 16 or 12 bytes a number."""
    shapes = shapes_from(LLAMA_2_7B, "config.json")
    arm = LoraArm(method="lora", rank=16)
    share = trainable_parameters(shapes, arm) / shapes.parameters
    paper = [row["bytes"][0] for row in paper_rows(shapes.parameters, [1], share)]
    kept = ("weights", "adapter", "gradients", "optimiser")
    for ours, wanted in (("adamw", paper[0]), ("lion", paper[2])):
        parts = training_parts(shapes, FullArm(method="full"), ours, Pass(4096, 4096, 4, 4))
        copies = 4 * shapes.parameters if ours == "lion" else 0  # all directions at once
        assert sum(parts[part] for part in kept) - copies == wanted
    parts = training_parts(shapes, arm, "adamw", Pass(4096, 4096, 2, 2))
    assert sum(parts[part] for part in kept) == pytest.approx(paper[1])


def test_layers_that_are_passed_again_keep_their_input() -> None:
    shapes = shapes_from(LLAMA_2_7B, "7B")
    arm = make_arm("lora")
    one = Pass(4096, 4096, 2, 2)
    again = activation_bytes(shapes, arm, replace(one, recompute=True))
    inputs = 32 * 4096 * 4096 * 2
    assert inputs < again < 1.1 * inputs < activation_bytes(shapes, arm, one) / 8


# What devices of several sizes are told of 7B with LoRA of rank 16 at 8,192 tokens a pass.
@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (48, "train.recompute=true needs"),
        (42, "train.recompute=true, train.rows_per_pass=1 needs"),
        (20, 'train.recompute=true, base.dtype="bfloat16" needs'),
        (10, 'base.quantization="nf4", '),
        (5, "no setting makes it fit: take a smaller base or more memory"),
    ],
)
def test_what_a_device_cannot_hold_is_refused_with_the_change_that_fits(
    memory: int, words: str
) -> None:
    recipe = micro_recipe(
        arms={"lora": {"method": "lora", "rank": 16, "learning_rates": [1e-4]}},
        train={"row_tokens": 4096, "batch_tokens": 8192, "rows_per_pass": 2},
    )
    shapes, machine = shapes_from(LLAMA_2_7B, "7B"), Machine("cuda:0", 2)
    with pytest.raises(RecipeError, match=r"arms\.lora") as caught:
        refuse_too_large(recipe, shapes, machine, memory * 2**30)
    assert words in str(caught.value)
    assert f"cuda:0 has {memory}.0 GiB" in str(caught.value) or memory < 10


def test_a_full_arm_that_fits_nowhere_is_sent_to_lora() -> None:
    shapes, machine = shapes_from(LLAMA_2_7B, "7B"), Machine("cuda", 2)
    with pytest.raises(RecipeError) as caught:
        refuse_too_large(micro_recipe(), shapes, machine, 80 * 2**30)
    problems = {fault.path: fault.problem for fault in caught.value.faults}
    assert "take LoRA, a smaller base" in problems["arms.full"]
    refuse_too_large(micro_recipe(), shapes, machine, 2**40)


# ----- against real trainings -----

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# Where bf16 is emulated, a single case in it would take more than ten minutes.
PRECISION = "bf16" if has_bf16_arithmetic(torch.device("cpu")) else "fp32"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """benchmarks/plan_memory.py, whose cases are measured here too."""
    sys.path.insert(0, str(BENCHMARKS))
    place = BENCHMARKS / "plan_memory.py"
    spec = importlib.util.spec_from_file_location("plan_memory_benchmark", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def runtime(smollm2_folder: Path) -> int:
    """Memory of a process without the model, measured once for all cases."""
    shapes = shapes_of(BaseSection(model=str(smollm2_folder)))
    return measure_machine(shapes, "cpu", PRECISION).runtime


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory of a process")
# Then one on a quantised base, two that pass their layers once more, and one beside its base.
@pytest.mark.parametrize("number", [0, 1, 3, -6, -5, -4, -2])
def test_peak_memory_is_predicted(
    benchmark: Any, runtime: int, tmp_path: Path, number: int
) -> None:
    case = replace(benchmark.CASES[number], precision=PRECISION)
    found = benchmark.compare(case, runtime, tmp_path)
    assert "failed" not in found, found
    assert found["ratio"] == pytest.approx(1, abs=0.1), found
