"""Training: data, models, the loop on Accelerate, and the main job."""

from secateur.train.interrupt import Interrupted
from secateur.train.job import compress
from secateur.train.settings import Settings
from secateur.train.watch import Watcher

__all__ = ["Interrupted", "Settings", "Watcher", "compress"]
