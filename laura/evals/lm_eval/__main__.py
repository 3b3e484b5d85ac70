"""lm-eval's own command line, with Laura's engine as one more model: "laura".

    python -m laura.evals.lm_eval --model laura \\
        --model_args model=FOLDER,adapter=DIR,precision=fp32 --tasks piqa --device cpu

Everything after the module's name is lm-eval's (`run`, `ls`, `validate`, all options).
lm-eval 0.4.13 finds models in a table of its own, which other packages cannot enter
before it starts (no entry points, no option); hence this door, which enters the model
and then calls lm-eval.

`--model_args` takes model (folder, GGUF file, name or Hub id), adapter (PEFT folder),
precision (fp32, bf16, auto), revision, dtype, device. `--batch_size` is not needed:
the engine packs texts by tokens.
"""

from __future__ import annotations

import importlib
import sys

from laura.results.errors import EXIT_USER, LauraError

if __name__ == "__main__":
    try:
        # Enters the model into lm-eval's table, or says what is missing.
        importlib.import_module("laura.evals.lm_eval.model")
        importlib.import_module("lm_eval.__main__").cli_evaluate()
    except LauraError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(EXIT_USER) from None
