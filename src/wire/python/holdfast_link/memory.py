"""What a device keeps over its restarts: its name, its counter, its open requests with their pictures, its answers.

Owns one SQLite file, each change on disk before it is used. A key is never given twice: with a new file come a new
name and a new epoch.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
import zlib
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from . import messages as m

STATUS = ("ok", "failed", "expired", "cancelled", "truncated", "refused")
SOURCE = ("", "uplink", "local", "cache")

SCHEMA = """
CREATE TABLE IF NOT EXISTS device (uid BLOB, epoch INTEGER, counter INTEGER, boot INTEGER);
CREATE TABLE IF NOT EXISTS request (key INTEGER PRIMARY KEY, submit BLOB NOT NULL, answer BLOB);
CREATE TABLE IF NOT EXISTS picture (key INTEGER, blob INTEGER, data BLOB NOT NULL, PRIMARY KEY (key, blob));
"""

_SIGN = 1 << 63


@dataclass(frozen=True)
class Answer:
    """What came of a request. `code` and `value` are the task's own numbers."""

    req: int
    status: str
    source: str
    code: int
    value: float
    text: str

    @property
    def ok(self) -> bool:
        return self.status in ("ok", "truncated")


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def answer_of(result: m.Result) -> Answer:
    """The answer that the last part makes, its text being the whole."""
    text = result.text.decode("utf-8", "replace")
    return Answer(
        result.req, _name(STATUS, result.status), _name(SOURCE, result.source), result.code, result.value, text
    )


class Memory:
    """The state file; also the device's `Keeper`. One thread at a time."""

    def __init__(self, path: str, uid: Optional[bytes] = None) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(SCHEMA)
        row = self._db.execute("SELECT uid, epoch, counter, boot FROM device").fetchone()
        if row is None:
            row = (uid or secrets.token_bytes(8), int(time.time()) & 0xFFFFFFFF, 0, secrets.randbits(31))
            self._db.execute("INSERT INTO device VALUES (?, ?, ?, ?)", row)
        elif uid is not None and uid != row[0]:
            raise ValueError("the state file belongs to another device: take another file")
        self.uid: bytes = row[0]
        self._epoch: int = row[1]
        self._counter: int = row[2]
        self.boot_id = row[3] + 1 & 0xFFFFFFFF
        self._db.execute("UPDATE device SET boot = ?", (self.boot_id,))

    def close(self) -> None:
        self._db.close()

    def new_key(self) -> int:
        """A key that was never given before, also when the power goes now."""
        self._counter += 1
        self._db.execute("UPDATE device SET counter = ?", (self._counter,))
        return self._epoch << 32 | self._counter

    def references(self, key: int, pictures: Sequence[Tuple[bytes, int]]) -> List[m.BlobRef]:
        """A number for each picture, given with its kind: the same one for every repeat of this request."""
        first = key * m.BLOBS_MAX & 0xFFFFFFFF
        return [
            m.BlobRef(first + n & 0xFFFFFFFF, len(data), zlib.crc32(data), mime)
            for n, (data, mime) in enumerate(pictures)
        ]

    def keep(self, submit: m.Submit, pictures: Sequence[bytes]) -> None:
        """On disk when this returns."""
        with _Transaction(self._db):
            self._db.execute("INSERT INTO request VALUES (?, ?, NULL)", (_signed(submit.key), submit.write()))
            rows = [(_signed(submit.key), ref.blob, data) for ref, data in zip(submit.blobs(), pictures)]
            self._db.executemany("INSERT INTO picture VALUES (?, ?, ?)", rows)

    def answered(self, result: m.Result) -> None:
        """The whole answer, on disk before the gateway is told that it came."""
        with _Transaction(self._db):
            self._db.execute("UPDATE request SET answer = ? WHERE key = ?", (result.write(), _signed(result.key)))
            self._db.execute("DELETE FROM picture WHERE key = ?", (_signed(result.key),))

    def forget(self, key: int) -> None:
        with _Transaction(self._db):
            self._db.execute("DELETE FROM request WHERE key = ?", (_signed(key),))
            self._db.execute("DELETE FROM picture WHERE key = ?", (_signed(key),))

    def kept(self) -> List[Tuple[m.Submit, Optional[Answer]]]:
        """Every request that was not handed back yet, in the order of their keys."""
        rows = self._db.execute("SELECT submit, answer FROM request ORDER BY key").fetchall()
        submits = [(m.Submit.read_from(m.Reader(submit)), answer) for submit, answer in rows]
        return [
            (submit, answer and answer_of(m.Result.read_from(m.Reader(answer)))) for submit, answer in submits
        ]

    def request(self, key: int) -> Optional[m.Submit]:
        row = self._db.execute("SELECT submit FROM request WHERE key = ?", (_signed(key),)).fetchone()
        return m.Submit.read_from(m.Reader(row[0])) if row else None

    def picture(self, key: int, blob: int, off: int, length: int) -> bytes:
        sql = "SELECT substr(data, ?, ?) FROM picture WHERE key = ? AND blob = ?"
        row = self._db.execute(sql, (off + 1, length, _signed(key), blob)).fetchone()
        return row[0] if row else b""


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _signed(key: int) -> int:
    """SQLite's numbers have a sign."""
    return key - 2 * _SIGN if key >= _SIGN else key
