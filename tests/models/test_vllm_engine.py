"""The vLLM engine against the one in process: over a stand-in of vLLM, and over vLLM itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from laura.cli import doctor
from laura.engine import vllm_worker
from laura.engine.engine import Engine
from laura.engine.requests import (
    GenerateAnswer,
    GenerateRequest,
    ScoreAnswer,
    ScoreRequest,
    TokenDocument,
)
from laura.engine.vllm import (
    PREFIX,
    RANKS,
    TARGETS,
    VllmEngine,
    VllmProcess,
    check_batches,
)
from laura.engine.vllm_python import vllm_version
from laura.models.adapters import attach, load_adapter, save_adapter
from laura.models.load import load_base
from laura.models.lora import LoraSettings, lora_layers
from laura.recipe import checks
from laura.results.errors import (
    AdapterError,
    DataError,
    MissingExtraError,
    ModelError,
    UsageError,
)
from tests.conftest import make_tiny_model, make_tiny_tokenizer
from tests.models import fake_vllm

PAIRS = [
    ("the cat sat on", " a mat and the dog"),
    ("the cat sat on", " an apple"),
    ("the cat sat on ", "a mat"),
    ("", "what question"),
    ("how many apples? answer:", " 17"),
    ("how many apples? answer:", " 18"),
    ("a dog ran to it with an apple " * 70, " é 漢 with"),
    ("the cat sat on", " an apple"),
]
SCORES = [ScoreRequest(*pair) for pair in PAIRS]
PROMPTS = ["the dog ran", "question: how many cats? answer", "a", "1 2 3 4 5 6 7", "An apple TO IT"]


class Fake:
    """A folder with the stand-in for vLLM, its faults and its log; the environment names it."""

    def __init__(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, model: bool = False, **faults: Any
    ) -> None:
        self.place = place
        (place / "site" / "vllm").mkdir(parents=True)
        shutil.copy(fake_vllm.__file__, place / "site" / "vllm" / "__init__.py")
        monkeypatch.setenv("LAURA_VLLM_PYTHON", sys.executable)
        monkeypatch.setenv("PYTHONPATH", str(place / "site"))
        monkeypatch.setenv("FAKE_VLLM", str(place))
        monkeypatch.setenv("FAKE_VLLM_MODEL", "1" if model else "")
        self.faults(**faults)

    def faults(self, **faults: Any) -> None:
        """Misbehave so from now on."""
        version = faults.get("version", fake_vllm.VERSION)
        place = self.place / "site" / "vllm" / "_version.py"
        place.write_text(f"__version__ = {version!r}\n")
        (self.place / "aside.json").write_text(json.dumps(faults))
        (self.place / "aside.json").replace(self.place / "faults.json")

    def code(self, text: str) -> None:
        """Another content of the package."""
        (self.place / "site" / "vllm" / "__init__.py").write_text(text)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What happened of a kind."""
        path = self.place / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if kind in entry]

    def pids(self) -> list[int]:
        """Of every worker so far, and of the processes that they started."""
        return [e["pid"] for e in self.log("start")] + [e["core"] for e in self.log("core")]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path / "fake", monkeypatch)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, with a path that is short enough for sockets."""
    place = Path(tempfile.mkdtemp(prefix="t-"))
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an output map of its own: tied, it only repeats its last token."""
    model = make_tiny_model(tie_word_embeddings=False)
    torch.manual_seed(1)
    weight = torch.randn(512, 64)
    weight[380:] = 0  # the tokenizer knows 380 tokens only
    weight[:3] = 0
    model.lm_head.weight = torch.nn.Parameter(weight)
    place = tmp_path_factory.mktemp("lively") / "model"
    # An answer of the model's ends with this token, so that one ends by itself.
    ids = torch.tensor([make_tiny_tokenizer().encode("the dog ran")])
    new = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False)
    model.generation_config.eos_token_id = [2, int(new[0, -1])]
    model.save_pretrained(place)
    make_tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two PEFT folders, of ranks 3 and 9."""
    place = tmp_path_factory.mktemp("adapters")
    return {f"rank {rank}": make_adapter(folder, place / str(rank), rank) for rank in (3, 9)}


def make_adapter(folder: Path, place: Path, rank: int) -> Path:
    base = load_base(str(folder), device="cpu")
    settings = LoraSettings(rank=rank, alpha=2.0 * rank, targets=("q_proj", "down_proj"))
    attach(base.model, settings, seed=rank)
    torch.manual_seed(rank)
    with torch.no_grad():
        for layer in lora_layers(base.model).values():
            layer.B.normal_(std=0.1)
    save_adapter(base.model, place, settings, str(folder))
    return place


@pytest.fixture(scope="module")
def here(folder: Path) -> Engine:
    """The engine in process."""
    base = load_base(str(folder), device="cpu")
    return Engine(base.model, base.tokenizer)


@pytest.fixture(scope="module")
def there(
    folder: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmEngine]:
    """The vLLM engine over the stand-in."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        Fake(tmp_path_factory.mktemp("fake"), monkeypatch, model=True)
        engine = VllmEngine(folder, adapters=adapters)
    with engine:
        yield engine


def agree(found: list[ScoreAnswer], expected: list[ScoreAnswer], nats: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.loglikelihood == pytest.approx(two.loglikelihood, abs=nats)
        assert (one.greedy, one.tokens) == (two.greedy, two.tokens)


def test_scores_are_those_in_process(here: Engine, there: VllmEngine) -> None:
    assert there.encoder.context_tokens == 512
    assert sum(map(len, there.encoder.pair(*PAIRS[6]))) > 513, "one text is cut from the left"
    agree(there.score(SCORES), here.score(SCORES))
    assert there.score([]) == []


def test_answers_are_those_in_process(here: Engine, there: VllmEngine) -> None:
    free = here.generate([GenerateRequest(prompt, (), 40) for prompt in PROMPTS])
    # No half of a character: whether its bytes become one shows what follows alone.
    stops = [("never seen", answer.text.replace("\ufffd", "")[3:5]) for answer in free]
    requests = [
        GenerateRequest(prompt, stop, limit)
        for limit in (40, 7, 1)
        for prompt, chosen in zip(PROMPTS, stops, strict=True)
        for stop in ((), ("",), chosen)
    ]
    answers = there.generate(requests)
    assert answers == here.generate(requests)
    assert {answer.finish for answer in answers} == {"stop", "length", "end"}
    assert all(not answer.logprobs for answer in answers)


def test_impossible_requests_are_named(there: VllmEngine) -> None:
    with pytest.raises(DataError, match="has no tokens"):
        there.score([ScoreRequest("the cat", "")])
    with pytest.raises(UsageError, match="allowed are 1 to 511"):
        there.generate([GenerateRequest("a", (), 512)])
    with pytest.raises(UsageError, match="no adapter 'other'; it has rank 3, rank 9"):
        there.score([SCORES[0], ScoreRequest("a", " b", adapter="other")])
    with pytest.raises(DataError, match="document 4 has 2 tokens and 1 supervision marks"):
        there.document_losses([TokenDocument([5, 6], [True], 2, 4)])
    with pytest.raises(DataError, match="document 4 has 514 tokens, vLLM reads at most 513"):
        there.document_losses([TokenDocument([5] * 514, [True] * 514, 2, 4)])
    agree(there.score(SCORES[:1]), there.score(SCORES)[:1])


def test_known_answers_are_not_computed_and_others_are_told(there: VllmEngine) -> None:
    known = {1: ScoreAnswer(-99.0, True, 5), 4: ScoreAnswer(-98.0, False, 6)}
    told: dict[int, ScoreAnswer] = {}
    answers = there.score(SCORES, known=known, found=told.__setitem__)
    assert answers == [known.get(i, told.get(i)) for i in range(len(SCORES))]
    assert set(told) == set(range(len(SCORES))) - set(known)

    requests = [GenerateRequest(prompt, (), 5) for prompt in PROMPTS]
    earlier = {2: GenerateAnswer("said before", 2, "end")}
    heard: dict[int, GenerateAnswer] = {}
    texts = there.generate(requests, known=earlier, found=heard.__setitem__)
    assert texts == [earlier.get(i, heard.get(i)) for i in range(len(PROMPTS))]
    assert sorted(heard) == [0, 1, 3, 4] != list(heard), "they come in another order"


def test_more_requests_than_are_in_work_at_once(
    here: Engine, there: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laura.engine.vllm.MOST_IN_WORK", 3)
    agree(there.score(SCORES), here.score(SCORES))


def test_drawn_answers_follow_their_seed(here: Engine, there: VllmEngine) -> None:
    def ask(seed: int, **changes: Any) -> GenerateRequest:
        settings = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "logprobs": True, **changes}
        return GenerateRequest("the dog ran", (), 8, seed=seed, **settings)

    together = there.generate([ask(1), ask(2), ask(1)])
    assert together[0] == together[2] != together[1]
    assert there.generate([ask(2)]) == together[1:2]
    greedy = here.generate([GenerateRequest("the dog ran", (), 8)])[0]
    narrow = there.generate([ask(3, top_k=1), ask(4, top_p=1e-6)])
    assert [answer.text for answer in narrow] == [greedy.text] * 2


def test_log_probabilities_are_the_models_own(here: Engine, there: VllmEngine) -> None:
    prompt = there.tokenizer.encode("a")
    new = here.model.generate(torch.tensor([prompt]), max_new_tokens=8, use_cache=False)[0]
    supervised = [i >= len(prompt) for i in range(len(new))]
    losses = here.document_losses([TokenDocument(new.tolist(), supervised, 1, 0)])[0]
    for temperature in (0.0, 3.0):
        request = GenerateRequest("a", (), 8, temperature, top_k=1, logprobs=True)
        answer = there.generate([request])[0]
        assert answer.text == there.tokenizer.decode(new[len(prompt) :])
        assert answer.logprobs == pytest.approx([-nats for nats in losses], abs=1e-4)


def documents_of(tokenizer: Any) -> list[TokenDocument]:
    documents = []
    for index, text in enumerate([*PROMPTS, "the cat " * 40]):
        ids = tokenizer.encode(text)
        marks = [i % (index + 1) == 0 for i in range(len(ids))]
        documents.append(TokenDocument(ids, marks, len(text), index))
    documents.append(TokenDocument([7, 8, 9], [True, False, False], 1, 9))
    documents.append(TokenDocument([7] * 513, [False] * 512 + [True], 1, 10))
    return documents


def test_losses_are_those_in_process(here: Engine, there: VllmEngine) -> None:
    documents = documents_of(there.tokenizer)
    found, expected = there.document_losses(documents), here.document_losses(documents)
    assert found[-2] == []
    for one, two in zip(found, expected, strict=True):
        assert one == pytest.approx(two, abs=1e-4)


def test_adapters_answer_by_name(
    folder: Path, adapters: dict[str, Path], here: Engine, there: VllmEngine
) -> None:
    documents = documents_of(there.tokenizer)
    for name, place in adapters.items():
        base = load_base(str(folder), device="cpu")
        load_adapter(base.model, place)
        adapted = Engine(base.model, base.tokenizer)
        mixed = [ScoreRequest(r.context, r.continuation, adapter=name) for r in SCORES] + SCORES
        agree(there.score(mixed), adapted.score(SCORES) + here.score(SCORES))
        losses = there.document_losses(documents, adapter=name)
        assert losses[0] == pytest.approx(adapted.document_losses(documents)[0], abs=1e-4)
        plain = GenerateRequest("the dog ran", (), 8)
        asked = GenerateRequest("the dog ran", (), 8, adapter=name)
        assert there.generate([asked, plain]) == [
            adapted.generate([plain])[0],
            *here.generate([plain]),
        ]


@pytest.mark.parametrize(
    ("target", "rank", "words"),
    [
        ("model.layers.0.self_attn.q_proj", 513, "rank 513, vLLM takes at most 512"),
        ("model.layers.0.mlp.router", 4, "router, vLLM takes the layers' maps"),
    ],
)
def test_adapters_that_vllm_does_not_take(
    folder: Path, tmp_path: Path, target: str, rank: int, words: str
) -> None:
    kind = target.rsplit(".", 1)[-1]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 1, "target_modules": [kind]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        f"base_model.model.{target}.lora_A.weight": torch.zeros(rank, 64),
        f"base_model.model.{target}.lora_B.weight": torch.zeros(64, rank),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=f"adapter strange has {words}; merge it"):
        VllmEngine(folder, adapters={"strange": tmp_path})


def test_positions_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    make_tiny_model(rope_parameters=rope).save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="rope_type dynamic"):
        VllmEngine(tmp_path)


def test_no_such_python(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAURA_VLLM_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"nowhere cannot be started .* set LAURA_VLLM_PYTHON"):
        VllmEngine(folder)


def test_python_without_vllm(folder: Path, fake: Fake) -> None:
    fake.code("import no_such_module_of_ours\n")
    with pytest.raises(MissingExtraError, match=r"cannot import vllm .*pip install vllm"):
        VllmEngine(folder)
    fake.code("raise OSError('libmissing.so')\n")
    with pytest.raises(ModelError, match=r"vLLM failed: OSError: libmissing\.so"):
        VllmEngine(folder)


def test_old_vllm(folder: Path, fake: Fake) -> None:
    fake.faults(version="0.31.4")
    found = doctor.examine(vllm=str(folder))[-1]
    assert found.state == "limited" and "older than 0.32" in found.advice
    with pytest.raises(MissingExtraError, match=r"vLLM 0\.31\.4, older than 0\.32"):
        VllmEngine(folder)


def test_vllm_that_ends_at_its_start(folder: Path, fake: Fake) -> None:
    fake.faults(exit=True)
    with pytest.raises(ModelError, match=r"exit code 3 \(ValueError: no memory left for it\); its"):
        VllmEngine(folder)


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    """Whether these processes end within the time."""
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"die_after": 1}, r"ended by signal SIGKILL; its last words:(.|\n)*no memory left for it"),
        ({"raise_after": 1}, "vLLM failed: RuntimeError: the engine core is dead"),
        ({"reason": "abort"}, r"broke off .* \(abort\)"),
        ({"unwanted": True}, "vLLM refuses a request: as told"),
    ],
)
def test_a_failing_process_is_an_error(
    folder: Path, fake: Fake, temporary: Path, fault: dict[str, Any], words: str
) -> None:
    told: dict[int, ScoreAnswer] = {}
    with VllmEngine(folder) as engine:
        engine.score(SCORES[:1])
        fake.faults(**fault)
        with pytest.raises(ModelError, match=words):
            engine.score([*SCORES], found=told.__setitem__)
        assert gone(fake.pids()) and not list(temporary.glob(f"{PREFIX}*"))
        with pytest.raises(ModelError, match="was closed"):
            engine.score(SCORES)
    assert not told


@pytest.mark.parametrize("fault", [{}, {"mute": True}])
def test_a_killed_process_of_vllms_own_is_an_error(
    folder: Path, fake: Fake, fault: dict[str, Any]
) -> None:
    """vLLM's front waits for ever for what its killed core was computing."""
    with VllmEngine(folder) as engine:
        fake.faults(**fault)
        os.kill(fake.log("core")[0]["core"], signal.SIGKILL)
        with pytest.raises(ModelError, match="vLLM failed: EngineCore ended by signal SIGKILL"):
            engine.generate([GenerateRequest("a", (), 400)] * 20)
    assert gone(fake.pids())


def test_an_adapter_that_vllm_cannot_load(
    folder: Path, fake: Fake, adapters: dict[str, Path]
) -> None:
    fake.faults(refuse=True)
    with pytest.raises(AdapterError, match=r"vLLM cannot load adapter rank 3: .* as told"):
        VllmEngine(folder, adapters=adapters)
    assert gone(fake.pids())


def test_weights_and_adapters_are_exchanged(
    folder: Path, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after answers whose keys and values vLLM has kept."""
    monkeypatch.setenv("FAKE_VLLM_MODEL", "1")
    tuned = load_base(str(folder), device="cpu")
    with torch.no_grad():
        for weight in tuned.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    tuned.model.save_pretrained(tmp_path / "tuned")
    tuned.tokenizer.save_pretrained(tmp_path / "tuned")
    asked = [GenerateRequest(prompt, (), 8) for prompt in PROMPTS]
    base = load_base(str(folder), device="cpu")
    expected = [Engine(one.model, one.tokenizer).generate(asked) for one in (base, tuned)]
    assert expected[0] != expected[1]
    with VllmEngine(folder, rank=9) as engine:
        for place, wanted in ((folder, 0), (tmp_path / "tuned", 1), (folder, 0)):
            assert engine.hold(place)
            assert engine.generate(asked) == expected[wanted]
        assert len(fake.log("weights")) == 2, "what is held is not loaded again"
        for rank in (3, 9):
            adapter = make_adapter(folder, tmp_path / str(rank), rank)
            engine.add_adapter(str(rank), adapter)
            adapted = load_base(str(folder), device="cpu")
            load_adapter(adapted.model, adapter)
            wanted_answers = Engine(adapted.model, adapted.tokenizer).generate(asked)
            named = [replace(one, adapter=str(rank)) for one in asked]
            assert engine.generate(named) == wanted_answers != expected[0]
            engine.remove_adapter(str(rank))
            with pytest.raises(UsageError, match=f"no adapter '{rank}'; it has none"):
                engine.generate(named)


def test_weights_that_cannot_be_exchanged(
    folder: Path,
    tiny_folder: Path,
    fake: Fake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_VLLM_MODEL", "1")
    place = tmp_path / "other"
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    silent = {"pad_token_id": 1, "dtype": "bfloat16", "transformers_version": "4.0"}
    with VllmEngine(folder) as engine:
        for changes, can in (({}, True), ({"rms_norm_eps": 0.5}, False)):
            (place / "config.json").write_text(json.dumps({**config, **silent, **changes}))
            # What it holds is not looked at again.
            assert engine.hold(folder) and engine.hold(place) is can
        with pytest.raises(ModelError, match=r"no usable model folder: no config.json"):
            engine.hold(tmp_path)
        assert len(fake.log("weights")) == 2
    with VllmEngine(tiny_folder) as engine:  # its output map is its embedding
        assert not engine.hold(shutil.copytree(tiny_folder, tmp_path / "tied"))


def test_on_a_shared_gpu_it_sleeps(
    folder: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = torch.device("cuda", 1)
    monkeypatch.setattr("laura.engine.vllm.free_share", lambda device: 0.5 * (device == place))
    fake.faults(gpu=True)
    with VllmEngine(folder, shared=place) as engine:
        first = engine.score(SCORES)
        engine.sleep()
        engine.wake()
        assert engine.score(SCORES) == first
        fake.faults(gpu=True, stuck=True)
        with pytest.raises(ModelError, match="does not carry out asleep True: memory is held"):
            engine.sleep()
    (start,) = fake.log("start")
    assert start["start"]["gpu_memory_utilization"] == 0.5 and start["start"]["enable_sleep_mode"]
    assert start["visible"] == "1"
    assert [entry["asleep"] for entry in fake.log("asleep")] == [True, False]
    with VllmEngine(folder, shared=torch.device("cpu")) as engine:
        engine.sleep()
        engine.wake()
        assert engine.score(SCORES) == first


def test_what_a_recipe_refuses_is_what_the_engine_does_not_take() -> None:
    assert (checks.VLLM_RANK, set(checks.VLLM_TARGETS)) == (RANKS[-1], set(TARGETS))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interruption_leaves_no_process(folder: Path, fake: Fake, temporary: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VllmEngine(folder) as engine:
        place = engine._process.folder
        assert place.parent == temporary and place.stat().st_mode & 0o077 == 0
        assert fake.log("start")[0]["temporary"] == str(place)
        engine.score(SCORES, found=interrupt)
    assert gone(fake.pids()) and not list(temporary.iterdir())


def test_a_process_that_does_not_listen_is_killed(
    folder: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_worker, "GRACE_SECONDS", -1.5)  # half a second on this side
    with VllmEngine(folder) as engine:
        fake.faults(mute=True)
        engine._process.send({"add": "1", **engine._reading([5, 6], 1, None)})
        os.kill(engine._process.pid, signal.SIGSTOP)
        for number in range(20):  # more than a pipe holds
            engine._process.send({"abort": str(number) * 10_000})
    assert gone(fake.pids())


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "end"), [({}, signal.SIGTERM), ({"mute": True}, signal.SIGKILL)])
def test_a_killed_command_leaves_nothing(
    folder: Path, fake: Fake, temporary: Path, fault: dict[str, Any], end: signal.Signals
) -> None:
    root = Path(__file__).resolve().parents[2]
    path = f"{fake.place / 'site'}{os.pathsep}{root}"
    code = (
        "import time; from pathlib import Path\n"
        "from laura.engine.requests import ScoreRequest\n"
        "from laura.engine.vllm import VllmEngine\n"
        f"engine = VllmEngine(Path({str(folder)!r}))\n"
        "print('ready', flush=True)\n"
        "engine.score([ScoreRequest('a', ' b'), ScoreRequest('a', ' c')])\n"
        "time.sleep(300)\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert command.stdout is not None
    with command.stdout:
        assert command.stdout.readline() == "ready\n"
    fake.faults(**fault)
    command.send_signal(end)
    command.wait()
    pids = fake.pids()
    assert len(pids) == 2 and gone(pids) and not list(temporary.glob(f"{PREFIX}*"))


def test_a_folder_that_was_left_goes_and_others_stay(fake: Fake, temporary: Path) -> None:
    setup = {"engine": {}, "arguments": []}
    heard: list[Any] = []
    one = VllmProcess(setup, heard.append)
    left, young, link = (temporary / f"{PREFIX}{name}" for name in ("left", "young", "link"))
    for folder in (left, young):
        (folder / "1").mkdir(parents=True)
    link.symlink_to(left / "1")
    for folder in (left, one.folder):
        os.utime(folder, (0, 0))
    two = VllmProcess(setup, heard.append)
    assert not left.exists() and young.exists() and link.is_symlink()
    assert one.folder.exists(), "its process lives"
    one.close()
    two.close()
    assert not one.folder.exists() and not two.folder.exists()


@pytest.mark.parametrize(
    ("gpu", "apart", "words"),
    [
        (False, True, ""),
        pytest.param(True, False, "", marks=pytest.mark.slow),
        pytest.param(
            False,
            False,
            "vLLM answers the base in company otherwise than alone",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["by the rule", "on a GPU", "against the rule"],
)
def test_what_shares_a_batch_is_checked(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    apart: bool,
    words: str,
) -> None:
    fake = Fake(tmp_path / "fake", monkeypatch, model=True, gpu=gpu)
    if apart is gpu is False:
        monkeypatch.setattr(VllmEngine, "_groups", lambda self, asked: [range(len(asked))])
    found = doctor.examine(vllm=str(folder))[-1]
    assert (found.state, found.found) == (
        ("limited", words) if words else ("ok", "answers base and adapters in company as alone")
    )
    together = [entry["batch"] for entry in fake.log("batch")]
    assert any("base" in batch and len(batch) > 1 for batch in together) is not apart


def require_vllm() -> None:
    if not os.environ.get("LAURA_VLLM_PYTHON"):
        pytest.skip("vLLM lives in another Python; set LAURA_VLLM_PYTHON to that one")


@pytest.mark.slow
def test_vllm_itself_answers_in_company_as_alone(smollm2_folder: Path) -> None:
    require_vllm()
    assert check_batches(smollm2_folder, torch.float32) == ""


@pytest.fixture(scope="module")
def real(
    smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmEngine, Callable[[bool], Engine]]]:
    """vLLM itself with the real small model and an adapter; and the engine in process."""
    require_vllm()
    place = make_adapter(smollm2_folder, tmp_path_factory.mktemp("adapter") / "real", 4)

    def in_process(adapted: bool) -> Engine:
        base = load_base(str(smollm2_folder), device="cpu")
        if adapted:
            load_adapter(base.model, place)
        return Engine(base.model, base.tokenizer)

    with VllmEngine(smollm2_folder, adapters={"real": place}) as engine:
        assert engine.version == vllm_version()
        yield engine, in_process


@pytest.mark.slow
def test_vllm_itself(real: tuple[VllmEngine, Callable[[bool], Engine]]) -> None:
    there, in_process = real
    stop = ("\n\n", "Question:", "<|im_end|>")
    for adapted, adapter in ((False, None), (True, "real")):
        here = in_process(adapted)
        plain = [ScoreRequest(context, continuation) for context, continuation in PAIRS[:6]]
        asked = [ScoreRequest(r.context, r.continuation, adapter) for r in plain]
        agree(there.score(asked), here.score(plain), nats=1e-3)
        texts = ["Question: What is 2 + 2?\nAnswer:", "The capital of France is"]
        prompts = [GenerateRequest(text, stop, 24) for text in texts]
        again = [GenerateRequest(text, stop, 24, adapter=adapter, logprobs=True) for text in texts]
        for one, two in zip(there.generate(again), here.generate(prompts), strict=True):
            assert (one.text, one.tokens, one.finish) == (two.text, two.tokens, two.finish)
            assert len(one.logprobs) == one.tokens
        ids = there.tokenizer.encode("The cat sat on the mat and looked at the dog. " * 30)
        documents = [TokenDocument(ids, [i % 3 > 0 for i in range(len(ids))], 1, 0)]
        found = there.document_losses(documents, adapter)[0]
        assert found == pytest.approx(here.document_losses(documents)[0], abs=1e-3)


@pytest.mark.slow
def test_vllm_itself_reads_the_longest_text_and_draws(
    real: tuple[VllmEngine, Callable[[bool], Engine]],
) -> None:
    there, in_process = real
    here, longest = in_process(False), there.encoder.context_tokens + 1
    ids = (there.tokenizer.encode("The cat sat on the mat. A dog ran by. ") * longest)[:longest]
    documents = [TokenDocument(ids, [False] * (longest - 2) + [True] * 2, 1, 0)]
    found = there.document_losses(documents)[0]
    assert found == pytest.approx(here.document_losses(documents)[0], abs=1e-3)
    draw = [GenerateRequest("Once upon a time", (), 16, 1.0, seed=seed) for seed in (1, 2, 1)]
    one, two, three = there.generate(draw)
    assert one == three != two
