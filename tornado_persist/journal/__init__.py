"""The durable journal: every accepted batch, in the order of acceptance, until its rows are in the sink or rejected.

**Files.** The journal is a directory of *segments* and a *cursor*. A segment is a file of records, one after the other,
named by the sequence number of its first record (``00000000000000000001.seg``). The cursor says up to which number all
records are *released*: their rows are in the sink, or in the file of rejected rows (:mod:`.cursor` has its format).
Damaged bytes are copied to a directory beside the journal.

**Record.** A header of 40 bytes, then the body of a request as it was received. Numbers are little-endian.

=======  ======  ==================================================================
offset   type    field
=======  ======  ==================================================================
0        4s      magic
4        u8      version of the format
5        u8      kind: 1 session, 2 task
6        2       zero
8        u32     rows in the body
12       u64     sequence number
20       i64     accept time, microseconds since 1970 in UTC
28       u32     length of the body in bytes
32       u32     CRC-32 over all of the above
36       u32     CRC-32 over all of the above and the body
=======  ======  ==================================================================

The header's own checksum says whether its length can be trusted. If it holds, a damaged body costs exactly that record,
and the next one is where it should be. If not, the next record is found by its magic, and trusted if its header's
checksum holds. The magic begins with 0xFF, a byte that UTF-8 never uses, and a body is valid UTF-8: no body can hold
the magic, by chance or by malice. A later version may give the body and the kind other meanings, but keeps the header's
length and checksums, so that this version can tell such a record from a damaged one.

**Life of a record.** :meth:`Journal.append` puts a batch into the queue of the writer's thread (:mod:`.writer`), which
gives it the next sequence number, appends it with all others that wait, syncs once, and answers. A full segment is
followed by a new one; so is a segment whose write or sync failed. Records with the next segment's first number or a
later one are *void*: they were refused, and could not be cut off. :meth:`Journal.release` goes through the same queue:
the writer writes the cursor, then deletes the segments whose records are all released, the active one too.

**Reading.** A *walk* (:mod:`.walk`) goes through the segments (:mod:`.scanner` reads one of them), and accounts for
every number: a record, damage, or a gap. It serves a start, :meth:`Journal.read` and ``persistd journal``, and changes
nothing.

**Start.** :mod:`.recovery` reads the cursor, deletes released segments, and walks through the rest: it counts what
waits, cuts off the tail that a crash tore, and copies damage aside (:mod:`.damaged`). The caller then reads the records
back. So a start reads them twice, the second time from the page cache. One pass would save a tenth of its processor
time with 500 rows in a record, a fifth with one row, for a second way into the buffer and records held in memory twice.

**Threads.** The writer's thread alone changes files, once it runs. What the journal holds is in :mod:`.state`, which
other threads read.
"""

from tornado_persist.journal.cursor import Checkpoint
from tornado_persist.journal.damaged import DamagedDirectory
from tornado_persist.journal.journal import Journal
from tornado_persist.journal.record import HEADER_SIZE, Record
from tornado_persist.journal.recovery import Found, Interrupted
from tornado_persist.journal.scanner import Damage, Entry, Tail
from tornado_persist.journal.state import Stats
from tornado_persist.journal.walk import Begin, Gap, Inspection, Item
from tornado_persist.journal.writer import Sync

__all__ = [
    "HEADER_SIZE",
    "Begin",
    "Checkpoint",
    "Damage",
    "DamagedDirectory",
    "Entry",
    "Found",
    "Gap",
    "Inspection",
    "Interrupted",
    "Item",
    "Journal",
    "Record",
    "Stats",
    "Sync",
    "Tail",
]
