"""Model cards: the README.md of an adapter or a model, with the metadata that the Hub reads.

Format: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LOADED = {
    "peft": "from peft import AutoPeftModelForCausalLM as Model",
    "transformers": "from transformers import AutoModelForCausalLM as Model",
}


def model_card(
    base: str, title: str, text: str, results: Sequence[EvalResult] = (), adapter: bool = True
) -> str:
    """The content of a model card.

    Args:
        base: Hub id of the base, or its folder, which the Hub is not told.
        title: Of the card, and of the model in its results.
        text: What is known of it, Markdown.
        results: Its scores.
        adapter: Whether it is an adapter, else a whole model.
    """
    from huggingface_hub import ModelCardData

    library = "peft" if adapter else "transformers"
    data = ModelCardData(
        base_model=base if HUB_ID.fullmatch(base) else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["laura", "lora"] if adapter else ["laura"],
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    return f"""---
{data.to_yaml()}
---

# {title}

{text}

## Use

```python
{_LOADED[library]}

model = Model.from_pretrained("this folder, or its Hub id")
```
"""
