"""Which of two answers is better, said by a language model behind an endpoint or by people.

`endpoint` asks and tries again, `cache` keeps every reply, `asking` puts many questions at once, `judge` both orders of
every pair, `win_rate` turns verdicts and votes into figures, `votes` reads what people chose, `alpaca_eval` writes the
files of that program. `questions` reads questions of two turns, `grading` has answers to them graded, `grades` makes
figures of that.
"""
