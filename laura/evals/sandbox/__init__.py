"""Generated programs, run where they can do no harm and judged where they cannot reach.

`driver` runs any program, each confined in fresh processes, within `walls` and from
`child`; `vocabulary` runs small functions of a closed vocabulary, which need no walls.
"""

from laura.evals.sandbox.driver import Program, ProgramLimits, Sandbox, Verdict, require_sandbox

__all__ = ["Program", "ProgramLimits", "Sandbox", "Verdict", "require_sandbox"]
