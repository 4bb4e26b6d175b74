"""Whose fault the error numbers of MySQL, MariaDB and what speaks their protocol are."""

from __future__ import annotations

from tornado_persist.sinks.sql import Blame

#: Error numbers that depend on the row.
_ROWS = {
    *(1022, 1062, 1169, 1557, 1586, 1761, 1762),  # duplicate key
    *(1216, 1217, 1451, 1452),  # foreign keys
    *(3819, 4025),  # CHECK: MySQL's number, MariaDB's (its JSON columns are a CHECK, too)
    *(1048, 1263),  # null in a NOT NULL column
    *(1264, 1690),  # beyond the range
    *(1265, 1406),  # too long, or not in the list
    *(1292, 1300, 1366, 1367, 1411, 1441, 1525),  # not a value of that type or character set
    *(1365, 1526),  # division by zero; no partition
    *(3140, 3141, 3144, 3150, 3151, 3156, 3157),  # JSON
    1644,  # SIGNAL
}
#: The usual SQLSTATE of a SIGNAL, which the server's own errors never have: the number is the trigger's choice.
_SIGNAL = "45000"
#: Another writer has won: a deadlock, a row that changed since the snapshot (MariaDB), a transaction that the other
#: members of a group or cluster refuse, at the commit too (1180). TiDB's own: 9007, 8002, 8022, 8028. And a lock wait
#: that timed out: a server that does not look for deadlocks (innodb_deadlock_detect) reports them this way. It rolls
#: back only the statement, we do the rest.
_CONFLICTS = {1213, 1020, 3101, 1180, 9007, 8002, 8022, 8028, 1205}
#: The SQLSTATE of a conflict, which a server may give with a number of its own.
_SERIALIZATION_FAILURE = "40001"
#: Error numbers of the server and the schema. Numbers in no list are ambiguous: those that a trigger makes up, those
#: that some value of a row may cause, such as 1118 and 1713 (a row too large), 1153, 1172 and 1242 (a trigger's query),
#: and those that a smaller batch may not cause, such as 1197 and 1206.
_SERVER = {
    # The client's own: connecting, and losing the connection.
    *range(2000, 3000),
    # Connections, sessions, accounts: too many, refused, ended.
    *(*range(1040, 1046), 1047, 1053, *range(1077, 1082), 1094, *range(1129, 1134), 1135, 1152),
    *(*range(1154, 1162), 1184, 1189, 1190, 1203, 1226, 1227, 1251, 1317, 1448, 1449, 1461, 1524, 1820, 1835, 1862),
    *(1927, 1964, 1969, 3024, 3032, 3118, 3159, 3168, 3169, 4031, 4150, 4151),
    # Files, memory and space, and what broke there (1020 and 1022 are in the other lists).
    *range(1004, 1040),
    *(1114, 1119, 1126, 1127, *range(1181, 1184), 1194, 1195, 1436, 1459, 1548, 1558, 1637, 1712, 1728, 1812, 1813),
    *(1814, 1877, 1878, 1932, 1939, 3675, 4084, 4139, 4182, 4185),
    # Read-only, or busy with something that forbids writing.
    *(1099, 1100, 1175, 1192, 1207, 1223, 1290, 1598, 1785, 1786, 1792, 1836, 1874, 3098, 3100, 4047, 4145),
    # Rights, and what the schema lacks or forbids.
    *(1046, 1049, 1050, 1051, 1052, 1054, 1060, 1061, 1064, 1072, 1091, 1093, 1102, 1103, 1104, 1109, 1115, 1128, 1136),
    *(1141, 1142, 1143, 1144, 1146, 1147, 1148, 1149, 1193, 1235, 1253, 1267, 1270, 1271, 1273, 1286, 1288, 1298, 1304),
    *(1305, 1318, 1347, 1348, 1356, 1360, 1364, 1370, 1394, 1412, 1419, 1422, 1423, 1429, 1442, 1443, 1471, 1501, 1615),
    3105,
}


def blame(number: int, state: str | None) -> Blame:
    """Whose fault an error is, by its number (0: none) and its SQLSTATE, if that is known."""
    if state == _SERIALIZATION_FAILURE:
        return Blame.CONFLICT
    if number in _ROWS:
        return Blame.ROWS
    if state == _SIGNAL:
        return Blame.UNKNOWN
    if number in _CONFLICTS:
        return Blame.CONFLICT
    return Blame.SERVER if not number or number in _SERVER else Blame.UNKNOWN
