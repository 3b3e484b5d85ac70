"""Chat templates in their own process: as transformers renders them, within time and memory."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import pytest

from laura.data.templates import chat_prompts, chat_template
from laura.serve.confined import CPU_SECONDS, ConfinedFault, TemplateProcess, kept
from tests.conftest import make_tiny_tokenizer

HELLO = [{"role": "user", "content": "hello"}]
LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLE = "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}"
HOSTILE = {
    "runs for ever": LOOP,
    "grows for ever": DOUBLE + "{% endfor %}{{ n.s }}",
    "is long": "{{ 'a' * 200000 }}",
    "is huge": "{{ 'a' * 10 ** 10 }}",
    "is padded": "{{ '%1000000000d' % 1 }}",
    "is a large power": "{{ (messages | length + 6) ** ((messages | length + 6) ** 9) }}",
    "raises": "{{ raise_exception('no') }}",
    "divides by nothing": "{{ 1 / 0 }}",
    "recurses": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "changes what it was given": "{{ messages.append(1) }}",
}


def process_of(template: str) -> TemplateProcess:
    return TemplateProcess(template, json.dumps({"eos_token": "</s>"}))


@pytest.mark.parametrize("tokenizer", ["micro", "tiny"])
def test_equal_to_the_tokenizers_own(tokenizer: str, micro_tokenizer: Any) -> None:
    own = micro_tokenizer if tokenizer == "micro" else make_tiny_tokenizer()
    process = kept(TemplateProcess, chat_template(own), json.dumps(own.special_tokens_map))
    talks = [
        HELLO,
        [{"role": "system", "content": " é\u2028\ud7ff"}, *HELLO],
        [*HELLO, {"role": "assistant", "content": "<|im_end|>\n"}, *HELLO],
        [{"role": "user", "content": "word " * 10_000}],
    ]
    for talk in talks:
        assert process.render(talk, 10**6) == chat_prompts(own)(talk)


def test_hostile_templates_end_in_a_word_within_bounds() -> None:
    cases = "".join(
        f"{{% if messages[0].content == '{what}' %}}{template}{{% endif %}}"
        for what, template in HOSTILE.items()
    )
    process = process_of(cases)
    try:
        for what in HOSTILE:
            with pytest.raises(ConfinedFault) as caught:
                process.render([{"role": "user", "content": what}], 100_000)
            assert len(str(caught.value)) < 2000, what
        assert process.render(HELLO, 100) == "", "and the next one is answered"
    finally:
        process.close()


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ x.y.z }}"]
)
def test_templates_that_are_none_or_look_around_find_nothing(template: str) -> None:
    process = process_of(template)
    try:
        assert process.render(HELLO, 100) == ""
    except ConfinedFault:
        pass
    finally:
        process.close()


def test_who_dies_comes_back_and_says_what_it_said_before() -> None:
    process = process_of("{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}")
    try:
        for _ in range(2):
            assert process.render(HELLO, 100) == "[hello]</s>"
            assert process._child is not None
            os.kill(process._child.pid, signal.SIGKILL)
            process._child.wait()
            assert process.render(HELLO, 100) == "[hello]</s>"
    finally:
        process.close()


def test_who_dies_in_the_middle_of_one_is_asked_again() -> None:
    process = process_of("{{ messages[0].content }}")
    found: list[str] = []
    try:
        assert process.render(HELLO, 100) == "hello"
        assert process._child is not None
        os.kill(process._child.pid, signal.SIGSTOP)
        thread = threading.Thread(target=lambda: found.append(process.render(HELLO, 100)))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive(), "it waits for the answer"
        os.kill(process._child.pid, signal.SIGKILL)
        thread.join(60)
        assert found == ["hello"]
    finally:
        process.close()


def test_many_threads_get_their_own_answers() -> None:
    process = process_of("{{ messages[0].content }}")
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = process.render([{"role": "user", "content": str(number)}], 100)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    try:
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
    finally:
        process.close()
    assert found == {number: str(number) for number in range(20)}


def test_time_is_processor_time_of_one_conversation() -> None:
    process = process_of(LOOP)
    try:
        process.start()
        with pytest.raises(ConfinedFault, match="more than 2 seconds"):
            process.render(HELLO, 100)
        began = time.process_time()
        with pytest.raises(ConfinedFault, match="more than 2 seconds"):
            process.render(HELLO, 100)
        assert time.process_time() - began < CPU_SECONDS / 4, "the child works, not the server"
    finally:
        process.close()
