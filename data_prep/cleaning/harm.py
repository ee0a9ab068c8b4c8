"""The hook for a classifier of harmful content, and one that loads a sequence-classification model of transformers.

A classifier is any function from texts to probabilities; a recipe names a model, code can pass its own function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_prep.cleaning.dropped import Dropped, Finding
from data_prep.cleaning.texts import all_texts, answers
from data_prep.records import Record
from pipeline.errors import RecipeError, SourceUnreachableError
from pipeline.recipe.cleaning_settings import HarmSettings

Classifier = Callable[[Sequence[str]], Sequence[float]]
"""The probability of harm of each text."""


def harmful(records: Sequence[Record], settings: HarmSettings, classify: Classifier) -> list[Dropped]:
    """Records with a text that is more probably harmful than the threshold."""
    texts_of = all_texts if settings.where == "anywhere" else answers
    rows = [(record, text) for record in records for text in texts_of(record)]
    worst: dict[int, float] = {}
    for (record, _), probability in zip(rows, classify([text for _, text in rows]), strict=True):
        worst[id(record)] = max(probability, worst.get(id(record), 0.0))
    return [
        Dropped(record, Finding("harm", round(worst[id(record)], 3), f"by {settings.model}"))
        for record in records
        if worst.get(id(record), 0.0) > settings.threshold
    ]


def load_classifier(settings: HarmSettings) -> Classifier:
    """The model that a recipe names.

    Raises:
        SourceUnreachableError: it is neither a folder nor in the cache nor reachable.
        RecipeError: it has no such label.
    """
    from transformers import pipeline

    folder = Path(settings.model).expanduser()
    try:
        model = pipeline("text-classification", model=str(folder) if folder.is_dir() else settings.model)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceUnreachableError(
            f"clean.harm.model: {settings.model} cannot be loaded ({reason}); name the folder of a "
            f"sequence-classification model, or run `hf download {settings.model}` where there is a network"
        ) from None
    labels = [str(label) for _, label in sorted((model.model.config.id2label or {}).items())]
    wanted = settings.label if settings.label is not None else labels[-1]
    if wanted not in labels:
        raise RecipeError(f"clean.harm.label: {settings.model} has no label {wanted!r}; it has {', '.join(labels)}")

    def classify(texts: Sequence[str]) -> list[float]:
        found: Any = model(list(texts), top_k=None, truncation=True, batch_size=16)
        return [next(float(each["score"]) for each in scores if each["label"] == wanted) for scores in found]

    return classify
