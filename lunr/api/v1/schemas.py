"""The fields that several controllers' requests share."""

from __future__ import annotations

from lunr.api.schema import Id, Integer, Mapped, Schema, Text

NOTHING: Schema = {}
PAGE: Schema = {"limit": Integer(1, 1000), "marker": Id()}
THINGS: Schema = {**PAGE, "status": Text(16), "name": Text()}
NAMED: Schema = {"name": Text(), "metadata": Mapped()}
