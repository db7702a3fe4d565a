"""Exports as their storage node is told of them."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from lunr.api.secret_box import SecretBox
from lunr.db.models import Export, Volume, VolumeType, columns

#: The one logical unit of each target.
LUN = 1
#: SCSI unit serial numbers that tgt takes have at most so many characters.
_SERIAL = 36


def describe_exports(
    session: Session, secret_box: SecretBox, *which: ColumnElement[bool]
) -> list[dict[str, Any]]:
    """What the storage node needs for the exports `which`; the limits are those of now."""
    statement = (
        select(*columns(Export), VolumeType.read_iops, VolumeType.write_iops)
        .join(Volume, Volume.id == Export.volume_id)
        .join(VolumeType, VolumeType.name == Volume.volume_type_name)
        .where(*which)
        .order_by(Export.volume_id)
    )
    return [
        {
            "volume_id": row.volume_id,
            "iqn": row.target_iqn,
            "lun": LUN,
            "username": row.auth_username,
            "password": secret_box.open(row.auth_secret),
            "initiator": row.initiator,
            "ip": row.ip,
            "serial": _serial(row.volume_id),
            "read_iops": row.read_iops,
            "write_iops": row.write_iops,
        }
        for row in session.execute(statement)
    ]


def _serial(volume_id: str) -> str:
    if len(volume_id) <= _SERIAL:
        return volume_id
    return hashlib.sha256(volume_id.encode()).hexdigest()[:_SERIAL]
