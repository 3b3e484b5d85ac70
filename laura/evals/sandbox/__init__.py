"""Generated programs, run where they can do no harm.

`driver` runs any program, each confined in a fresh process, within `walls` and from
`child`; `vocabulary` runs small functions of a closed vocabulary, which need no walls.
"""

from laura.evals.sandbox.driver import ProgramLimits, Sandbox, Verdict, require_sandbox

__all__ = ["ProgramLimits", "Sandbox", "Verdict", "require_sandbox"]
