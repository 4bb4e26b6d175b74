"""The durable journal, behind which the rest of the package sees these names alone."""

from tornado_persist.journal.cursor import Checkpoint
from tornado_persist.journal.damaged import DamagedDirectory
from tornado_persist.journal.inspection import Begin, Inspection, Missing, Place
from tornado_persist.journal.journal import Journal
from tornado_persist.journal.record import HEADER_SIZE, Record
from tornado_persist.journal.recovery import Found
from tornado_persist.journal.scanner import Damage, Tail
from tornado_persist.journal.state import Stats
from tornado_persist.journal.writer import Sync

__all__ = [
    "HEADER_SIZE",
    "Begin",
    "Checkpoint",
    "Damage",
    "DamagedDirectory",
    "Found",
    "Inspection",
    "Journal",
    "Missing",
    "Place",
    "Record",
    "Stats",
    "Sync",
    "Tail",
]
