"""Looks for signs of manipulation in the faces of a picture or a video.

>>> from unmask import inspect
>>> inspect("nowhere.jpg")
Traceback (most recent call last):
    ...
unmask.errors.MediaError: there is no file 'nowhere.jpg'
"""

from __future__ import annotations

from unmask.errors import Cancelled, MediaError, UnmaskError
from unmask.faces import Face, FaceDetector
from unmask.inspection import inspect
from unmask.media import Limits
from unmask.report import Report
from unmask.verdict import Person, Sighting

__all__ = [
    "Cancelled",
    "Face",
    "FaceDetector",
    "Limits",
    "MediaError",
    "Person",
    "Report",
    "Sighting",
    "UnmaskError",
    "inspect",
]
