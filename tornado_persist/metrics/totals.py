"""The accounting: where each row that was ever accepted has gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tornado_persist.models import KINDS, Kind


def zeros() -> dict[Kind, int]:
    """No row of any kind."""
    return dict.fromkeys(KINDS, 0)


@dataclass(slots=True)
class Totals:
    """Rows by kind since the data directory was made; what each term means stands in docs/accounting.rst."""

    accepted: dict[Kind, int] = field(default_factory=zeros)
    written: dict[Kind, int] = field(default_factory=zeros)
    merged: dict[Kind, int] = field(default_factory=zeros)
    rejected: dict[Kind, int] = field(default_factory=zeros)

    def settled(self, accepted: Mapping[Kind, int]) -> dict[str, dict[Kind, int]]:
        """The totals at a moment when of these ``accepted`` rows none is pending, as the journal's cursor keeps them.

        ``merged`` is what is left: whatever was accepted, and is neither written nor rejected nor pending.
        """
        written, rejected = dict(self.written), dict(self.rejected)
        merged = {kind: accepted[kind] - written[kind] - rejected[kind] for kind in KINDS}
        return {"accepted": dict(accepted), "written": written, "merged": merged, "rejected": rejected}

    def accounting(self, pending: int) -> dict[str, int]:
        """Rows of both kinds by where they are, ``pending`` of them on their way: the first term is the others' sum."""
        terms = {"accepted": self.accepted, "written": self.written, "merged": self.merged, "rejected": self.rejected}
        return {**{name: sum(rows.values()) for name, rows in terms.items()}, "pending": pending}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Totals:
        """From what :meth:`settled` gave; what is not there is 0."""
        return cls(
            **{
                name: {kind: int(kept.get(name, {}).get(kind, 0)) for kind in KINDS}
                for name in ("accepted", "written", "merged", "rejected")
            }
        )
