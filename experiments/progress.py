"""Progress of a run on stderr: a bar on a terminal, one line per so many items elsewhere (logs)."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

__all__ = ["Progress"]


class Progress:
    """Counts items; `done` of `total` were there before."""

    def __init__(self, name: str, total: int, done: int, every: int) -> None:
        self.name, self.total, self.count, self.every = name, total, done, every
        self.started, self.before = time.monotonic(), done
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc=name, unit="item", dynamic_ncols=True) if terminal else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, items: int) -> None:
        """So many more items are done."""
        previous, self.count = self.count, self.count + items
        if self.bar is not None:
            self.bar.update(items)
        elif self.count // self.every > previous // self.every or self.count >= self.total:
            rate = (self.count - self.before) / (time.monotonic() - self.started)
            print(
                f"{self.name}: {self.count}/{self.total} items, {rate:.2f} per second",
                file=sys.stderr,
                flush=True,
            )
