"""Which of two answers is better, said by a language model behind an endpoint or by people.

`endpoint` asks and tries again, `cache` keeps every reply, `judge` puts both orders of every pair, `win_rate` turns
verdicts and votes into figures, `votes` reads what people chose, `alpaca_eval` writes the files of that program.
"""
