"""Every sentence of the page in Korean and in English.

Each tab keeps a table of its own, `{"key": ("한국어", "English")}`, and reads it through `Words`.
"""

from collections.abc import Mapping
from typing import Literal

Language = Literal["ko", "en"]
LANGUAGES: tuple[Language, ...] = ("ko", "en")


class Words:
    """`words("rows", count=3)` is the sentence of that key, in the language of this page."""

    def __init__(self, language: Language, table: Mapping[str, tuple[str, str]]) -> None:
        self.language = language
        self._place = LANGUAGES.index(language)
        self._table = table

    def __call__(self, key: str, **values: object) -> str:
        return self._table[key][self._place].format(**values)

    def of(self, table: Mapping[str, tuple[str, str]]) -> "Words":
        """The same language, another table."""
        return Words(self.language, table)
