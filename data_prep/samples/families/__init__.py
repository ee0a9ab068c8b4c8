"""One module per kind of task; each offers one `FAMILY`."""

from data_prep.samples.families import (
    arithmetic,
    classification,
    conversion,
    dates,
    explanation,
    extraction,
    filtering,
    harmless,
    multi_turn,
    premise,
    refusal,
    rewriting,
    snippets,
    sorting,
    summary,
    translation,
    unknown,
)
from data_prep.samples.tasks import Family

FAMILIES: tuple[Family, ...] = tuple(
    module.FAMILY
    for module in (
        arithmetic,
        conversion,
        dates,
        sorting,
        filtering,
        extraction,
        classification,
        rewriting,
        summary,
        snippets,
        translation,
        multi_turn,
        refusal,
        harmless,
        unknown,
        premise,
        explanation,
    )
)
