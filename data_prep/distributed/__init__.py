"""Rules that ask of one row, over many files and machines: the readers and `cleaning` as steps of datatrove.

A task takes whole files, reads them as everywhere, holds rows out by their prompt, repairs, masks and judges each row
by itself, keeps evaluation sets apart, and writes what is left in the formats that `convert` writes; every row then
says whether it trains. What compares rows with one another (duplicates of either kind, contradictions, mixtures) needs
them in one place: the recipe that reads the result does it.

`job` says what to do, `steps` does it, `executors` says where; the last two need `pip install trivet[datatrove]`.
"""
