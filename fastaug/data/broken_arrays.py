"""What NumPy raises for .npy and .npz files that are broken, or are none: as a tuple, for `except`."""

import struct
import tokenize
import zipfile
import zlib

BROKEN = (
    *(OSError, ValueError, LookupError, EOFError, RuntimeError, TypeError),
    AttributeError,  # a member of an archive that is no array is read as bytes
    MemoryError,  # a shape that no memory holds
    *(SyntaxError, tokenize.TokenError),  # a header is a literal of Python
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
