"""``torch_npu.npu.mstx``: named points and ranges, in host time and on a stream.

Markers are legal at any time and cost a few checks; they are kept while a profile with ``mstx=True`` records.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from npu_profiler import console, marker_log
from npu_profiler.marker_log import StreamId

_Function = TypeVar("_Function", bound=Callable[..., Any])

_local = threading.local()


def _warn(what: str, function: str, expected: str, got: Any) -> None:
    if not console.warnings_enabled():
        return
    level = 1
    while sys._getframe(level).f_code.co_filename == __file__:
        level += 1  # up to the line of the user
    warnings.warn(f"Invalid {what} for mstx.{function}: expected {expected}, got {got!r}", stacklevel=level + 1)


def _valid_message(message: Any, function: str) -> bool:
    if isinstance(message, str) and message:
        return True
    _warn("message", function, "a non-empty str", message)
    return False


def _valid_domain(domain: Any, function: str, *, may_be_empty: bool = False) -> bool:
    if isinstance(domain, str) and (domain or may_be_empty):
        return True
    _warn("domain", function, "a str" if may_be_empty else "a non-empty str", domain)
    return False


def _valid_stream(stream: Any, function: str) -> bool:
    if not stream:
        return True
    torch = sys.modules.get("torch")
    stream_type = getattr(getattr(torch, "npu", None), "Stream", None)
    if stream_type is not None and isinstance(stream, stream_type):
        return True
    _warn("stream", function, "None or a torch_npu.npu.Stream", stream)
    return False


def _valid(message: Any, stream: Any, domain: Any, function: str) -> bool:
    return _valid_message(message, function) and _valid_stream(stream, function) and _valid_domain(domain, function)


def _stream_id(stream: Any) -> StreamId | None:
    return (stream.device_index, stream.stream_id) if stream else None


def _start(message: str, stream: Any, domain: str) -> int:
    range_id = marker_log.new_id()
    log = marker_log.active()
    if log is not None and log.wants(domain):
        log.open_range(range_id, message, domain, _stream_id(stream))
    return range_id


def _end(range_id: int, domain: str) -> None:
    log = marker_log.active()
    if log is not None:
        log.close_range(range_id, domain)


def _stacks() -> dict[str, list[int]]:
    try:
        return _local.stacks
    except AttributeError:
        _local.stacks = {}
        return _local.stacks


def _guarded(function: _Function) -> _Function:
    """Report what goes wrong inside instead of raising it into the program being measured."""

    @functools.wraps(function)
    def guard(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError as exc:
            if exc.__traceback__ is not None and exc.__traceback__.tb_next is None:
                raise  # the call itself does not fit the signature
            console.error(f"mstx.{function.__name__} failed: {exc}")
        except Warning:
            raise  # the user turned warnings into errors
        except Exception as exc:
            console.error(f"mstx.{function.__name__} failed: {exc}")
        return None

    return guard  # type: ignore[return-value]


class annotate:
    """A range over a ``with`` block or over every call of a decorated function.

    Parameters
    ----------
    message : str
        Name of the range.  A decorator without one uses the function's ``__name__``.
    stream : torch_npu.npu.Stream, optional
        Also mark the range on this stream.
    domain : str
        Domain of the range.

    Examples
    --------
    >>> with torch_npu.npu.mstx.annotate("forward"):  # doctest: +SKIP
    ...     loss = model(batch)
    """

    def __init__(self, message: str = "", stream: Any = None, domain: str = "default") -> None:
        self.message = message
        self.stream = stream
        self.domain = domain
        self._open: list[int] = []

    def __enter__(self) -> annotate:
        self._open.append(mstx.range_start(self.message, self.stream, self.domain) or 0)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        range_id = self._open.pop()
        if range_id:
            mstx.range_end(range_id, self.domain)

    def __call__(self, function: _Function) -> _Function:
        """Wrap every call of ``function`` in a range."""
        return _ranged(function, self.message or function.__name__, self.stream, self.domain)


def _ranged(function: _Function, message: str, stream: Any, domain: str) -> _Function:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        range_id = mstx.range_start(message, stream, domain)
        try:
            return function(*args, **kwargs)
        finally:
            if range_id:
                mstx.range_end(range_id, domain)

    return call  # type: ignore[return-value]


class mstx:
    """Markers; every function is static, so ``mstx.mark`` and ``mstx().mark`` are the same.

    An invalid argument is a warning and the function's failure value, never an exception.
    """

    annotate = annotate

    @staticmethod
    @_guarded
    def mark(message: str = "None", stream: Any = None, domain: str = "default") -> None:
        """Mark a point in time.

        Parameters
        ----------
        message : str
            Name, not empty.
        stream : torch_npu.npu.Stream, optional
            Also record when this stream gets there.
        domain : str
            Domain, for filters.
        """
        if not (
            _valid_message(message, "mark")
            and _valid_stream(stream, "mark")
            and _valid_domain(domain, "mark", may_be_empty=True)
        ):
            return
        log = marker_log.active()
        if log is not None and log.wants(domain):
            log.mark(message, domain, _stream_id(stream))

    @staticmethod
    @_guarded
    def range_start(message: str = "None", stream: Any = None, domain: str = "default") -> int:
        """Begin a range of the process; any thread may end it, and ranges may overlap.

        Returns
        -------
        int
            Id for :meth:`range_end`, above zero and unique in the process; 0 for an invalid argument.
        """
        if not _valid(message, stream, domain, "range_start"):
            return 0
        return _start(message, stream, domain)

    @staticmethod
    @_guarded
    def range_end(range_id: int, domain: str = "default") -> None:
        """End a range.  An unknown id, or a domain other than the one given at its start, is ignored."""
        if not isinstance(range_id, int):
            _warn("range_id", "range_end", "an int", range_id)
            return
        if _valid_domain(domain, "range_end"):
            _end(range_id, domain)

    @staticmethod
    @_guarded
    def range_push(message: str, stream: Any = None, domain: str = "default") -> int:
        """Begin a range nested in the ones this thread has pushed in ``domain``.

        Returns
        -------
        int
            Nesting level, from 0; -1 for an invalid argument.
        """
        if not _valid(message, stream, domain, "range_push"):
            return -1
        stack = _stacks().setdefault(domain, [])
        stack.append(_start(message, stream, domain))
        return len(stack) - 1

    @staticmethod
    @_guarded
    def range_pop(domain: str = "default") -> int:
        """End the innermost range this thread has pushed in ``domain``.

        Returns
        -------
        int
            Its nesting level; -1 when there is none.
        """
        if not _valid_domain(domain, "range_pop"):
            return -1
        stack = _stacks().get(domain)
        if not stack:
            return -1
        level = len(stack) - 1
        _end(stack.pop(), domain)
        return level

    @staticmethod
    def mstx_range(message: str, stream: Any = None, domain: str = "default") -> Callable[[_Function], _Function]:
        """Return a decorator that wraps every call of a function in a range."""

        def decorate(function: _Function) -> _Function:
            return _ranged(function, message, stream, domain)

        return decorate
