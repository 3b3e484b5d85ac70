"""EleutherAI's evaluation harness, both ways; needs the extra `laura-lab[lm-eval]`.

`tasks` measures lm-eval's tasks with Laura's engine; `model` is that engine as a model
of lm-eval's, in Python or as `python -m laura.evals.lm_eval --model laura`.
"""
