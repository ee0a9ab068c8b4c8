"""Public benchmarks of a run's policies, by lm-evaluation-harness: `trivet eval RUN --tasks mmlu,gsm8k --data DIR`.

The way of a number: `local` reads a benchmark's published files, `task_files` writes them as the rows that the
harness's own definitions expect, `harness` has it ask a policy and score the answers, `record` keeps what came out in
the run directory, from where the report shows it. Prompts, worked examples, filters and metrics are the harness's.
"""
