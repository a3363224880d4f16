"""Files are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """``with atomically(path) as part``: write to ``part``, which becomes ``path`` at the end of the block.

    Whoever reads ``path`` finds the old file or the new one, never half of it. Makes the folder where it is missing.
    An error in the block leaves ``path`` as it was and takes ``part`` away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
