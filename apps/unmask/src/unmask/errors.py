"""The errors that users of unmask meet: one plain line, and a code that stays the same."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return a text with line breaks and control characters spelt out: file names may hold them.

    >>> one_line("a" + chr(10) + "b")
    'a\\\\nb'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UnmaskError(ValueError):
    """A request that cannot be carried out; the message is one line and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class MediaError(UnmaskError):
    """A file that is not analysed; ``code`` is one of `MEDIA_CODES` and never changes meaning.

    >>> MediaError("empty", "the file is empty").code
    'empty'
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in MEDIA_CODES:
            raise KeyError(code)
        self.code = code
        super().__init__(message)

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        # Worker processes hand errors over by pickle, which would forget the code.
        return type(self), (self.code, str(self))


class Cancelled(UnmaskError):  # noqa: N818 - it is no fault
    """The caller asked to stop."""

    def __init__(self, message: str = "the analysis was cancelled") -> None:
        super().__init__(message)


MEDIA_CODES = {
    "missing": "there is no such file",
    "not_a_file": "the path is a folder, a device or a pipe",
    "empty": "the file holds no bytes",
    "too_large": "the file has too many bytes",
    "too_many_pixels": "the picture has too many pixels",
    "unknown_type": "neither a picture nor a video of an accepted kind",
    "no_picture": "sound only",
    "truncated": "the file ends too early",
    "corrupt": "the file is damaged",
    "too_slow": "decoding took longer than allowed",
}
