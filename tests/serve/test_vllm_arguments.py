"""Arguments of vLLM's own: what is handed on, understood, refused."""

from __future__ import annotations

import pytest

from laura.results.errors import UsageError
from laura.serve.settings import REFUSED, EngineSettings, VllmArguments, read_arguments


def test_what_laura_has_no_opinion_on_is_handed_on() -> None:
    given = [
        "tensor-parallel-size=2",
        "--gpu_memory_utilization=0.8",
        "enforce-eager",
        "no-enable-prefix-caching",
        'speculative-config={"method": "ngram", "a": "b=c"}',
        "compilation-config.pass_config.fuse_norm=true",
        "chat-template=",
    ]
    assert read_arguments(given) == VllmArguments(
        words=(
            "--tensor-parallel-size=2",
            "--gpu-memory-utilization=0.8",
            "--enforce-eager",
            "--no-enable-prefix-caching",
            '--speculative-config={"method": "ngram", "a": "b=c"}',
            "--compilation-config.pass_config.fuse_norm=true",
            "--chat-template=",
        )
    )


def test_what_laura_must_know_of_is_understood() -> None:
    found = read_arguments(["max-model-len=4096", "dtype=bfloat16", "max-num-seqs=256"])
    assert found == VllmArguments((), "bfloat16", 4096, 256)
    assert read_arguments(["--max_model_len=auto", "dtype=half"]) == VllmArguments((), "float16", 0)
    assert read_arguments([]) == VllmArguments()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_laura_sets_itself_is_refused(name: str) -> None:
    for text in (f"{name}=1", name, f"--{name.replace('-', '_')}=1", f"no-{name}", f"{name}.a=1"):
        with pytest.raises(UsageError) as error:
            read_arguments(["tensor-parallel-size=2", text])
        assert str(error.value) == (
            f"--vllm-argument {text}: Laura sets this itself; {REFUSED[name]}"
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("served-model=x", "this is the beginning of served-model-name"),
        ("api=x", "this is the beginning of api-key"),
        ("max-model=9", "this is the beginning of max-model-len"),
        ("=2", "give NAME=VALUE"),
        ("", "give NAME=VALUE"),
        ("two words=2", "give NAME=VALUE"),
        ("Host=x", "give NAME=VALUE"),
        ("max-model-len=4k", "max-model-len=4k: give a whole number of tokens, or auto"),
        ("max-model-len=0", "give a whole number of tokens"),
        ("max-model-len", "give a whole number of tokens"),
        ("max-num-seqs=-1", "give a whole number of sequences"),
        ("dtype=auto", "dtype=auto: allowed are float32, float, bfloat16, float16, half"),
    ],
)
def test_what_cannot_be_meant(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_arguments([text])


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(UsageError) as error:
        read_arguments(["port=1", "dtype=int8", "seed=1", "--seed=2", "max-num-seqs=x"])
    told = str(error.value).split("; ")
    assert [part for part in told if part.startswith("--vllm-argument")] == [
        "--vllm-argument port=1: Laura sets this itself",
        "--vllm-argument dtype=int8: allowed are float32, float, bfloat16, float16, half",
        "--vllm-argument --seed=2: came twice",
        "--vllm-argument max-num-seqs=x: give a whole number of sequences",
    ]


def test_settings_that_say_two_things() -> None:
    half = read_arguments(["dtype=half"])
    with pytest.raises(UsageError, match="--vllm-argument is for --engine vllm"):
        EngineSettings(base="micro", arguments=half)
    with pytest.raises(UsageError, match="either --precision or --vllm-argument dtype"):
        EngineSettings(base="micro", kind="vllm", precision="fp32", arguments=half)
    with pytest.raises(UsageError, match="--device is for --engine inprocess"):
        EngineSettings(base="micro", kind="vllm", device="cpu")
    with pytest.raises(UsageError, match="--no-drafts is for --engine inprocess"):
        EngineSettings(base="micro", kind="vllm", drafts=False)
    assert EngineSettings(base="micro", kind="vllm", arguments=half).arguments == half
