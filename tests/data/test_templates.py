from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laura.data.examples import Example
from laura.data.sources import load_examples
from laura.data.templates import Encoded, check_end_token, encode, encode_all, end_tokens
from laura.recipe.sections import Source
from laura.results.errors import DataError
from tests.data.packed import fill_rate, pack

TURNS = (
    ("system", "Be brief."),
    ("user", "what is the cat?"),
    ("assistant", "an animal\non a mat"),
    ("user", "and the dog?"),
    ("assistant", "the same"),
)
SHORT = Example(3, (("user", "how many apples?"), ("assistant", "12 apples")))


def with_template(tokenizer: Any, template: str | None) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def learnt(encoded: Encoded, tokenizer: Any) -> str:
    ids = [t for t, on in zip(encoded.token_ids, encoded.supervised, strict=True) if on]
    return str(tokenizer.decode(ids))


def reference_ids(example: Example, tokenizer: Any) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in example.messages]
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    return ids


def reference_mask(ids: list[int], tokenizer: Any) -> list[bool]:
    """Walk over the tokens: after an assistant's header until the end token."""
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    mask, inside = [], False
    for place, token in enumerate(ids):
        inside = inside or ids[max(0, place - len(header)) : place] == header
        mask.append(inside)
        inside = inside and token != end
    return mask


def test_chat_equals_the_template_s_own_rendering(tiny_tokenizer: Any) -> None:
    for example in (SHORT, Example(0, TURNS)):
        found = encode(example, tiny_tokenizer, "chat", "instruct")
        assert found.token_ids == reference_ids(example, tiny_tokenizer)
        assert found.supervised == reference_mask(found.token_ids, tiny_tokenizer)
        assert not found.supervised[-1]  # the line break after the end token
        check_end_token([found], tiny_tokenizer)
    assert learnt(found, tiny_tokenizer) == "an animal\non a mat<|im_end|>the same<|im_end|>"
    assert found.supervised_bytes == len("an animal\non a matthe same")


def test_what_follows_the_last_answer_is_left_out(tiny_tokenizer: Any) -> None:
    longer = Example(0, (*TURNS, ("user", "thanks")))
    assert encode(longer, tiny_tokenizer, "chat", "instruct") == encode(
        Example(0, TURNS), tiny_tokenizer, "chat", "instruct"
    )


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=3), st.booleans())
@settings(deadline=None, max_examples=100)
def test_exactly_the_answers_are_learnt(turns: list[tuple[str, str]], plain: bool) -> None:
    tokenizer = _tokenizer()
    messages = [m for asked, said in turns for m in (("user", asked), ("assistant", said))]
    example = Example(0, tuple(messages))
    found = encode(example, tokenizer, "plain" if plain else "chat", "instruct")
    assert learnt(found, tokenizer) == "".join(f"{said}<|im_end|>" for _, said in turns)
    assert found.supervised_bytes == sum(len(said.encode()) for _, said in turns)
    joined = "\n\n".join(f"{asked}\n\n{said}<|im_end|>" for asked, said in turns)
    rendered = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages], tokenize=False
    )
    assert tokenizer.decode(found.token_ids) == (joined if plain else rendered)
    check_end_token([found], tokenizer)


_kept: list[Any] = []


def _tokenizer() -> Any:
    if not _kept:
        _kept.append(_tiny())
    return _kept[0]


def _tiny() -> Any:
    """Byte level, with a merge that can reach from the prompt into the answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat\n\n\n sat\n\n on the mat\n\n\n\n"] * 5, trainer)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template
    )


def test_a_token_never_reaches_from_the_prompt_into_the_answer() -> None:
    tokenizer = _tokenizer()
    example = Example(0, (("user", "a"), ("assistant", "\n\nthe cat")))
    found = encode(example, tokenizer, "chat", "instruct")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True, return_dict=False
    )
    assert found.token_ids[: len(prompt)] == prompt
    assert found.token_ids != reference_ids(example, tokenizer)
    assert learnt(found, tokenizer) == "\n\nthe cat<|im_end|>"


def test_a_template_without_an_end_gets_the_end_token(tiny_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = with_template(tiny_tokenizer, template)
    found = encode(SHORT, tokenizer, "chat", "instruct")
    assert learnt(found, tokenizer) == " 12 apples\n<|im_end|>"
    check_end_token([found], tokenizer)
    found = encode(SHORT, tokenizer, "chat", "pretrain")
    assert tokenizer.decode(found.token_ids).endswith("12 apples\n<|im_end|>")


def test_an_end_token_that_is_not_eos(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    found = encode(SHORT, tokenizer, "chat", "instruct")
    assert learnt(found, tokenizer) == "12 apples<|im_end|>"
    assert set(tokenizer.convert_ids_to_tokens(list(end_tokens(tokenizer)))) >= {
        "<|im_end|>",
        "<|endoftext|>",
    }


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # Writes earlier answers without their last word.
        (
            "{% for m in messages %}[{{ m['content'] if loop.last else m['content'][:3] }}]"
            "{% endfor %}{% if add_generation_prompt %}[{% endif %}",
            "not prefix-stable: in example 5 .* plain",
        ),
        # Its generation prompt is not what stands before an answer.
        (
            "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
            "{% if add_generation_prompt %}<think>{% endif %}",
            "not prefix-stable",
        ),
        ("{{ raise_exception('no system role') }}", "refuses example 5: no system role"),
        ("{{ messages[9]['content'] }}", "refuses example 5"),
        ("{% for %}", "refuses example 5"),
    ],
)
def test_templates_that_cannot_be_used(tiny_tokenizer: Any, template: str, message: str) -> None:
    tokenizer = with_template(tiny_tokenizer, template)
    with pytest.raises(DataError, match=message):
        encode(Example(5, TURNS), tokenizer, "chat", "instruct")


def test_a_conversation_the_assistant_begins(tiny_tokenizer: Any) -> None:
    example = Example(5, (("assistant", "hello"), ("user", "hi"), ("assistant", "yes")))
    with pytest.raises(DataError, match="refuses example 5"):
        encode(example, tiny_tokenizer, "chat", "instruct")
    found = encode(example, tiny_tokenizer, "plain", "instruct")
    assert not found.supervised[0]


def test_no_chat_template_says_plain(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"no chat template; set data.template: plain"):
        encode(SHORT, with_template(tiny_tokenizer, None), "chat", "instruct")


def test_rows_that_do_not_fit_the_regime(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="example 1 is plain text, but regime: instruct"):
        encode(Example(1, (), "a"), tiny_tokenizer, "plain", "instruct")
    with pytest.raises(DataError, match="example 1 has no assistant message"):
        encode(Example(1, (("user", "a"),)), tiny_tokenizer, "chat", "instruct")


def test_no_end_token_is_an_error(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        encode(SHORT, tokenizer, "plain", "instruct")


def test_plain_and_pretrain(tiny_tokenizer: Any) -> None:
    found = encode(SHORT, tiny_tokenizer, "plain", "instruct")
    assert tiny_tokenizer.decode(found.token_ids) == "how many apples?\n\n12 apples<|im_end|>"
    assert learnt(found, tiny_tokenizer) == "12 apples<|im_end|>"
    for template in ("chat", "plain"):
        text = encode(Example(0, (), "the cat sat"), tiny_tokenizer, template, "pretrain")
        assert tiny_tokenizer.decode(text.token_ids) == "the cat sat<|im_end|>"
        assert text.supervised == [False] + [True] * (len(text.token_ids) - 1)
        first = tiny_tokenizer.decode(text.token_ids[:1])
        assert text.supervised_bytes == len("the cat sat") - len(first)
    chat = encode(SHORT, tiny_tokenizer, "chat", "pretrain")
    assert chat.token_ids == reference_ids(SHORT, tiny_tokenizer)
    assert chat.supervised == [False] + [True] * (len(chat.token_ids) - 1)


def sentence_piece_like() -> Any:
    """As Llama 2: a space put before text, and a begin token added by the tokenizer itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    lines = ["[INST] how many apples? [/INST] 12 apples\n\n the cat"] * 5
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )


def test_a_begin_token_and_a_space_before_text() -> None:
    tokenizer = sentence_piece_like()
    plain = encode(SHORT, tokenizer, "plain", "instruct")
    assert plain.token_ids[0] == tokenizer.bos_token_id
    assert plain.token_ids.count(tokenizer.bos_token_id) == 1
    assert learnt(plain, tokenizer) == "12 apples</s>"
    text = encode(Example(0, (), "the cat"), tokenizer, "chat", "pretrain")
    assert text.token_ids == [*tokenizer("the cat")["input_ids"], tokenizer.eos_token_id]
    chat = encode(SHORT, tokenizer, "chat", "instruct")
    assert chat.token_ids == reference_ids(SHORT, tokenizer)
    assert chat.token_ids.count(tokenizer.bos_token_id) == 1
    assert learnt(chat, tokenizer).strip() == "12 apples </s>"
    turns = Example(0, (*SHORT.messages, *SHORT.messages))
    twice = encode(turns, tokenizer, "chat", "instruct")
    assert twice.token_ids == reference_ids(turns, tokenizer)
    assert sum(twice.supervised) == 2 * sum(chat.supervised)


def test_a_template_does_not_depend_on_the_day(tiny_tokenizer: Any) -> None:
    template = "{{ strftime_now('%d %b %Y') }} " + tiny_tokenizer.chat_template
    tokenizer = with_template(tiny_tokenizer, template)
    found = encode(SHORT, tokenizer, "chat", "instruct")
    assert tokenizer.decode(found.token_ids).startswith("26 Jul 2024 ")
    template = (
        '{% if strftime_now is defined %}{% set day = strftime_now("%Y") %}{{ day }}{% endif %}'
    )
    tokenizer = with_template(tiny_tokenizer, template + tiny_tokenizer.chat_template)
    found = encode(SHORT, tokenizer, "chat", "instruct")
    assert tokenizer.decode(found.token_ids).startswith("2024<|im_start|>")


def test_an_example_that_was_cut_does_not_teach_the_end(tiny_tokenizer: Any) -> None:
    found = encode(SHORT, tiny_tokenizer, "plain", "instruct")
    cut = Encoded(3, found.token_ids[:-1], found.supervised[:-1], 1)
    with pytest.raises(DataError, match="example 3 does not teach the end token"):
        check_end_token([found, cut], tiny_tokenizer)


def test_many_are_encoded_as_one_by_one(tiny_tokenizer: Any) -> None:
    examples = [Example(i, (("user", f"q {i % 7}"), ("assistant", f"{i}"))) for i in range(1200)]
    found = encode_all(examples, tiny_tokenizer, "chat", "instruct")
    assert [item.index for item in found] == list(range(1200))
    for index in (0, 999, 1000, 1199):
        assert found[index] == encode(examples[index], tiny_tokenizer, "chat", "instruct")


@pytest.mark.slow
def test_gsm8k_with_the_real_tokenizer(smollm2: Any, shared_data: Path) -> None:
    tokenizer = smollm2.tokenizer
    examples = load_examples(Source(source="gsm8k"), shared_data)
    found = encode_all(examples, tokenizer, "chat", "instruct")
    check_end_token(found, tokenizer)
    for example, item in list(zip(examples, found, strict=True))[:500]:
        assert item.token_ids == reference_ids(example, tokenizer)
        assert item.supervised == reference_mask(item.token_ids, tokenizer)
        answer = example.messages[1][1]
        assert learnt(item, tokenizer) == answer + "<|im_end|>"
        assert item.supervised_bytes == len(answer.encode())
    rows = pack(found, 1024)
    assert fill_rate(rows, 1024) > 0.97
    assert sum(len(row.token_ids) for row in rows) == sum(len(i.token_ids) for i in found)
