"""The errors of the backup engine, its stores, sources and targets."""

from __future__ import annotations

from lunr.common.errors import BadRequest, IdInUse, LunrError, NotFound, Unavailable

# --- the store -------------------------------------------------------------------


class StoreUnavailable(Unavailable):
    """The backup store {store} failed: {reason}"""

    code = "store_unavailable"
    #: Seconds after which the store wants to be asked again, if it said so.
    retry_after: float | None = None


class StoreFull(LunrError):
    """The backup store {store} is full: {reason} Delete backups and collect, or make room there."""

    code = "store_full"
    status = 507
    retry = True


class StoreRefused(LunrError):
    """The backup store {store} refused: {reason} Check its URL and credentials."""

    code = "store_refused"


class BadStoreURL(BadRequest):
    """{url!r} is not a store: use files:/PATH or swift:PREFIX."""

    code = "bad_store_url"


class ObjectMissing(LunrError):
    """The store has no object {name}."""

    code = "object_missing"


class BadObjectName(LunrError):
    """{name!r} can't be the name of an object: nothing was read, written or deleted. Another program than lunr wrote to the store."""

    code = "bad_object_name"


class CorruptObject(LunrError):
    """The object {name} is corrupt: {reason}"""

    code = "corrupt_object"


class UnsupportedFormat(LunrError):
    """The object {name} is written in a way this version of lunr does not know: {reason}"""

    code = "unsupported_format"


class DamagedBackups(LunrError):
    """{count} backups are damaged. {reasons}"""

    code = "corrupt_object"


# --- keys and backups ------------------------------------------------------------


class BadKey(LunrError):
    """The master key in {source} can't be used: {reason}"""

    code = "bad_key"


class KeyManagerUnavailable(Unavailable):
    """{manager} does not give the master key: {reason}"""

    code = "key_manager_unavailable"


class WrongKey(LunrError):
    """{name} was written with another master key (its key id is {needed}, ours is {given})."""

    code = "wrong_key"


class BackupMissing(NotFound):
    """There is no backup {id} in the store."""

    code = "backup_missing"


class BackupExists(IdInUse):
    """There is a backup {id} already, of {volume}, made at {created_at}: nothing was saved. Choose another id, or delete that backup first."""


class RootMissing(LunrError):
    """The root of backup {id} is not in the store: nothing is collected while it is missed."""

    code = "root_missing"
    retry = True


class SessionLost(LunrError):
    """The save was out of touch with the store for too long to end safely: start it again."""

    code = "session_lost"
    retry = True


class SavesRunning(LunrError):
    """Collection {id} can't be swept yet: {reason}"""

    code = "saves_running"
    status = 409
    retry = True


# --- sources and targets -----------------------------------------------------------


class SourceError(LunrError):
    """{path} can't be read at byte {offset}: {reason}"""

    code = "source_error"


class BadSector(SourceError):
    """{path} can't be read at byte {offset} (sector {sector} of 512 bytes): {reason}"""


class TargetError(LunrError):
    """{path} can't be written at byte {offset}: {reason}"""

    code = "target_error"


class TargetTooSmall(LunrError):
    """{path} has {size} bytes, the backup {needed}."""

    code = "target_too_small"
    status = 409


class TargetInUse(LunrError):
    """{path} is in use ({by}): a restore would destroy what is on it. End that use first, or insist with --force."""

    code = "target_in_use"
    status = 409
