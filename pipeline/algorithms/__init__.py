"""The mathematics: pure functions of tensors, each with its equation and source. Layer 1, imports torch only.

Notation in names: B sequences or pairs, T tokens of a sequence, R response positions, N tokens of a flat list,
V vocabulary, H hidden width, K reward models.
Alignment: index r is response token r, and `token_logps[r] = log pi(y_r | x, y_<r)`. Masks are true up to and
including EOS. Masked positions change neither a value nor a gradient, whatever they hold.
"""
