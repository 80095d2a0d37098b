"""Headers of msgpack values, read without their payloads.

A msgpack value says what it is and how long it is before its payload starts (msgpack specification, "Formats"). That is
all a checkpoint reader wants to know about 5 GB of optimizer moments: it reads the few bytes of the header and
seeks over the rest. The msgpack library cannot do so (its `skip` first collects the whole value in a buffer) and does
not say where in the file a tensor lies, which is why the dozen formats that checkpoints use are spelled out here.
The tests write their files with that library.
"""

from io import BufferedIOBase

from ttt_impl.convert.errors import CheckpointError

MAX_KEY_BYTES = 4096

# tag -> (kind, bytes of the big-endian length or value that follows)
_SIZED = {
    0xC4: ("bin", 1),
    0xC5: ("bin", 2),
    0xC6: ("bin", 4),
    0xC7: ("ext", 1),
    0xC8: ("ext", 2),
    0xC9: ("ext", 4),
    0xCC: ("int", 1),
    0xCD: ("int", 2),
    0xCE: ("int", 4),
    0xCF: ("int", 8),
    0xD9: ("str", 1),
    0xDA: ("str", 2),
    0xDB: ("str", 4),
    0xDC: ("array", 2),
    0xDD: ("array", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_TRUE = 0xC3


class HeaderReader:
    """A cursor over msgpack values in a seekable file, limited to `end` bytes."""

    def __init__(self, file: BufferedIOBase, end: int) -> None:
        self.file = file
        self.end = end

    @property
    def position(self) -> int:
        """Offset of the next byte."""
        return self.file.tell()

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        data = self.file.read(count) if self.position + count <= self.end else b""
        if len(data) < count:
            raise CheckpointError(f"truncated: a value runs past byte {self.end}, where it has to end")
        return data

    def skip(self, count: int) -> int:
        """Seek over `count` bytes without reading them; return the offset where they start."""
        start = self.position
        if start + count > self.end:
            raise CheckpointError(f"truncated: {count} bytes from byte {start} run past byte {self.end}")
        self.file.seek(start + count)
        return start

    def header(self) -> tuple[str, int]:
        """Read one header: (kind, length), or (kind, value) for an integer or True."""
        tag = self.take(1)[0]
        if tag < 0x80:
            return "int", tag
        if tag < 0x90:
            return "map", tag & 0x0F
        if tag < 0xA0:
            return "array", tag & 0x0F
        if tag < 0xC0:
            return "str", tag & 0x1F
        if tag == _TRUE:
            return "true", 1
        if tag in _FIXED_EXT:
            return "ext", _FIXED_EXT[tag]
        if tag in _SIZED:
            kind, width = _SIZED[tag]
            return kind, int.from_bytes(self.take(width), "big")
        raise CheckpointError(f"foreign msgpack: tag 0x{tag:02x} at byte {self.position - 1} belongs to no checkpoint")

    def expect(self, kind: str) -> int:
        """Read one header that has to be of `kind`; return its length or value."""
        start = self.position
        found, length = self.header()
        if found != kind:
            raise CheckpointError(f"foreign msgpack: {found} at byte {start} where a checkpoint has {kind}")
        return length

    def text(self) -> str:
        """Read one string."""
        start, length = self.position, self.expect("str")
        if length > MAX_KEY_BYTES:
            raise CheckpointError(f"foreign msgpack: a name of {length} bytes at byte {start}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"foreign msgpack: the name at byte {start} is not UTF-8") from error
