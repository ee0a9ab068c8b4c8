"""What a recipe may say about cleaning: the rules of a data set's `clean` block, and `data.decontaminate`. Layer 0.

A rule that is off costs nothing. Those that are on by default drop nothing of data that is in order.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe.settings import Fraction, PositiveFloat, PositiveInt, Settings

Drop = Literal["keep", "drop"]
Mask = Literal["keep", "mask", "drop"]
Where = Literal["keep", "answers", "anywhere"]
Threshold = Annotated[float, Field(ge=0.3, le=1.0)]
NgramLength = Annotated[int, Field(ge=6, le=50)]


class NearDuplicateSettings(Settings):
    """Which rows count as the same although they differ in a few characters."""

    of: Literal["rows", "prompts"] = Field(
        "rows", description="What is compared: whole rows (prompt and every answer each), or prompts alone."
    )
    threshold: Threshold = Field(
        0.8, description="Two texts are near duplicates when they share this part of their character n-grams (Jaccard)."
    )
    held_out: bool = Field(
        True, description="Also drop training rows whose prompt is a near duplicate of a held-out prompt."
    )
    other_set: bool = Field(
        False,
        description="Held-out prompts of the recipe's other data set count as well, which is read for it.",
    )


class HarmSettings(Settings):
    """A text classifier that finds harmful content."""

    model: str = Field(description="Folder or hub id of a sequence-classification model of transformers.")
    label: str | None = Field(None, description="Its label for harm (default: its last one).")
    threshold: Fraction = Field(0.5, description="Rows whose probability of harm is higher are dropped.")
    where: Literal["answers", "anywhere"] = Field("answers", description="Which texts of a row are classified.")


class CleanSettings(Settings):
    """Rules on training rows. Held-out rows are repaired and masked alike, and never dropped by a rule."""

    repair: bool = Field(
        True, description="Repair broken Unicode (mojibake) and remove control characters, in prompts and answers."
    )
    empty_answers: Drop = Field(
        "drop", description="Answers without a word or sign of their own, such as `<nooutput>` or `...`."
    )
    languages: tuple[str, ...] = Field(
        (), description="Keep only these languages (codes such as en, zh); empty: all. Unsure rows are kept."
    )
    language_confidence: Fraction = Field(0.8, description="Probability from which a language counts as identified.")
    min_characters: PositiveInt | None = Field(None, description="Shortest answer, in characters.")
    max_characters: PositiveInt | None = Field(None, description="Longest answer, in characters.")
    min_words: PositiveInt | None = Field(
        None, description="Shortest answer, in words; two characters of Chinese, Japanese or Thai count as one."
    )
    max_words: PositiveInt | None = Field(None, description="Longest answer, in words.")
    min_tokens: PositiveInt | None = Field(None, description="Shortest answer, in tokens, end of turn included.")
    max_tokens: PositiveInt | None = Field(None, description="Longest answer, in tokens, end of turn included.")
    min_word_length: PositiveFloat | None = Field(
        None, description="Smallest mean length of a word, in characters, where words are divided by spaces."
    )
    max_word_length: PositiveFloat | None = Field(None, description="Largest mean length of a word, likewise.")
    duplicate_lines: Fraction | None = Field(None, description="Largest share of an answer's lines that repeat one.")
    repetition: Fraction | None = Field(None, description="Largest share of an answer's word n-grams that repeat one.")
    special_characters: Fraction | None = Field(
        None, description="Largest share of signs that are neither letters, digits nor common punctuation."
    )
    profanity: Where = Field(
        "keep", description="Drop rows with swear words in their answers (or chosen answers), or anywhere."
    )
    harm: HarmSettings | None = Field(None, description="Drop what a classifier takes for harmful; off unless written.")
    refusals: Drop = Field("keep", description="Short answers that only decline, and remarks about being an AI.")
    url_answers: Drop = Field("keep", description="Answers that are nothing but links.")
    truncated: Drop = Field("keep", description="Answers that break off in the middle of a sentence or of code.")
    placeholders: Drop = Field("keep", description="Placeholders left in, such as `{{name}}` or `[insert date]`.")
    personal_data: Mask = Field(
        "keep", description="E-mail addresses, phone, card, bank and identity numbers: mask them, or drop the row."
    )
    secrets: Mask = Field("keep", description="API keys, tokens, passwords in links, private keys: likewise.")
    min_quality: Fraction | None = Field(
        None, description="Smallest quality score in [0, 1]: the product of parts that the report shows."
    )
    near_duplicates: NearDuplicateSettings | None = Field(
        None, description="Drop all but the first of rows that are almost the same; off unless written."
    )


class PairCleanSettings(CleanSettings):
    """Rules on preference pairs; what an answer must be like is asked of the chosen one."""

    label_conflicts: Drop = Field("keep", description="Pairs that another pair of the same answers contradicts.")
    near_equal_pairs: Fraction | None = Field(
        None, description="Drop pairs whose two answers are at least this similar (same numbers, Jaccard)."
    )


class DecontaminateSettings(Settings):
    """Evaluation sets whose texts must not be trained on."""

    against: tuple[str, ...] = Field(
        ("standard",),
        min_length=1,
        description="Names of known sets, files, folders or `hub:` ids; `standard`: every known set that is here.",
    )
    ngram: NgramLength = Field(
        13, description="A training row that shares so many words in a row with an evaluation text is dropped."
    )
    folder: str | None = Field(
        None, description="Folder that holds known sets as subfolders named after them, besides the hub's cache."
    )
