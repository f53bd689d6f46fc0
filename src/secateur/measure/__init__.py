"""What a network weighs and how long it takes."""

from __future__ import annotations

from secateur.measure.latency import Latency, compare_latency
from secateur.measure.size import file_bytes, pack, packed_bytes, unpack

__all__ = ["Latency", "compare_latency", "file_bytes", "pack", "packed_bytes", "unpack"]
