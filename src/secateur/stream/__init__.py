"""Streaming: models that do not fit into memory, pruned block by block from file to file."""

from secateur.stream.blocks import find_blocks
from secateur.stream.prune import BlockDone, StreamResult, prune_stream

__all__ = ["BlockDone", "StreamResult", "find_blocks", "prune_stream"]
