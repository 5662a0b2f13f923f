"""What the page asks of a picture, whatever kind it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from ..operators.pictures import Picture
from .markup import NOTHING, Html, byte_size, count

AnyPicture = TypeVar("AnyPicture", bound=Picture)


@dataclass(frozen=True)
class View(ABC, Generic[AnyPicture]):
    """How one kind of picture is shown.

    Attributes:
        noun: what its lengths are of.
        columns: of the table of numbers, with a row per length.
        labels: of the amounts before and after.
    """

    picture: AnyPicture

    noun: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    labels: ClassVar[tuple[str, str]]

    @abstractmethod
    def draw(self) -> Html:
        """The picture."""

    @abstractmethod
    def row(self, index: int) -> tuple[str, ...]:
        """What the picture shows of one length, in numbers."""

    def remark(self) -> str:
        """What is said after the amount before."""
        return ""

    def more(self) -> list[tuple[str, str]]:
        """Further amounts."""
        return []

    def amounts(self) -> list[tuple[str, str]]:
        """Tokens, rows and bytes, each under its label."""
        before, after, unit = self.picture.before, self.picture.after, self.picture.row_bytes
        sizes = ["" if unit is None else f", {byte_size(number * unit)}" for number in (before, after)]
        saved = f"{before / after:.1f} : 1, {100 * (1 - after / before):.1f} % saved" if before and after else NOTHING
        return [
            (self.labels[0], f"{count(before, 'token')}{sizes[0]}{self.remark()}"),
            (self.labels[1], f"{count(after, 'row')}{sizes[1]}"),
            ("compression", saved),
            *self.more(),
        ]
