"""The command that hands Laura's engine to lm-eval's own command line: `laura lm-eval`."""

from __future__ import annotations

import typer

from laura.cli.console import opened

# Everything is lm-eval's, also --help.
FOREIGN = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval's own command line with Laura's engine as the model "laura".

    Every option is lm-eval's; needs the extra laura-lab[lm-eval].

    \b
    Example:
      laura lm-eval --model laura --model_args model=FOLDER,adapter=DIR --tasks piqa
    """
    with opened():
        from laura.evals.lm_eval_door import command_line

        command_line(context.args)
