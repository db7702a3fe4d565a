"""The fields that several controllers' requests share."""

from __future__ import annotations

from lunr.api.schema import Id, Integer, Object, Schema, String

NOTHING: Schema = {}
PAGE: Schema = {"limit": Integer(1, 1000), "marker": Id()}
THINGS: Schema = {**PAGE, "status": String(16), "name": String()}
NAMED: Schema = {"name": String(), "metadata": Object()}
