"""What a stage would train on, seen before it does: `trivet data inspect` and `trivet data report`.

Reading order: `stage_rows` (the rows, made by the stage's own code), `sequences` (each read back token by token),
`told` (what they show, in words), `page` and `terminal`. Needs the base model's tokenizer, never its weights.
"""
