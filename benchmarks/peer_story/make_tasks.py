"""What the micro base forgets, as tasks of lm-eval: so that the other way has it as well.

    python benchmarks/peer_story/make_tasks.py FOLDER

For another base these are lm-eval's own `arc_challenge`, `hellaswag` and `winogrande`, whose
formats they have; so no line of this counts as written by the user.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

from laura.data.sources import load_rows

LIKE = {
    "micro_facts": "arc/arc_challenge.yaml",
    "micro_events": "hellaswag/hellaswag.yaml",
    "micro_pronouns": "winogrande/default.yaml",
}
TASK = """\
include: {like}
task: {name}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {rows}}}}}
training_split: null
validation_split: null
test_split: test
fewshot_split: null
"""


def main() -> None:
    """Write each task's rows, and the YAML that lm-eval's `include_path` finds."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, like in LIKE.items():
        rows = folder / f"{name}.jsonl"
        texts = [json.dumps(row) + "\n" for row in load_rows(name, "test")]
        rows.write_text("".join(texts), encoding="utf-8")
        tasks = resources.files("lm_eval") / "tasks"
        text = TASK.format(name=name, like=tasks / like, rows=rows)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
