"""The checks that students run in the exercises: each says in one line what is wrong, and never raises.

    Passed: ...     the answer is right
    Not yet: ...    what is wrong, with an input, the answer given and the answer wanted
    Open: ...       the stub still raises NotImplementedError

Sections follow the notebooks.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable


class Wrong(Exception):
    """Raised inside a check; its text is what the student reads after ``Not yet:``."""


def student_check(check: Callable[..., str]) -> Callable[..., None]:
    """A check takes the student's answer, raises ``Wrong`` or returns one sentence of what was shown to be right."""

    @functools.wraps(check)
    def run(*answers) -> None:
        try:
            praise = check(*answers)
        except NotImplementedError:
            print("Open: write the body of the function in the cell above, run it, then run this cell again.")
        except Wrong as wrong:
            print(f"Not yet: {wrong}")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"line {last.lineno} of {last.name}: {last.line}" if last.line else f"in {last.name}"
            print(f"Not yet: your function raised {type(error).__name__}: {error} ({place})")
        else:
            print(f"Passed: {praise}")

    return run


def require(condition: bool, message: str) -> None:
    """Raises ``Wrong(message)`` unless ``condition``."""
    if not condition:
        raise Wrong(message)
