"""Keeps out of the agent's process what it never uses, and the garbage collector off what lives as long as it does.

Nothing in the agent speaks TLS, and its cryptography is libsodium's. But trio imports `ssl` whether it is used or not,
asyncio (which python-zeroconf stands on) where it is there, and `hashlib` and `hmac` look for the same digests in
OpenSSL. Its libraries are 4.5 MiB of resident memory, and 15 ms of each start.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from types import ModuleType
from typing import Final

__all__ = ["begin", "give_back", "settle"]

#: With these `hashlib` has all its digests without OpenSSL. Some distributions build Python without most of them.
_OWN_DIGESTS: Final = (
    *("_blake2", "_md5", "_sha1", "_sha3"),
    *(("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")),
)


def begin() -> None:
    """Make ready for importing the agent; call it before anything has imported trio or hashlib, and `settle` later."""
    # What is imported now is never garbage: to look for some is a tenth of the time that importing takes.
    gc.disable()
    if not {"ssl", "trio", "hashlib", "hmac"} & sys.modules.keys() and _has_own_digests():
        _hide_openssl()


def settle() -> None:
    """End what `begin` began: what is here now stays for good, and the collector passes it by."""
    give_back()
    gc.freeze()
    gc.enable()


def give_back() -> None:
    """Return to the system what loading something large left free in the heap."""
    gc.collect()
    with contextlib.suppress(ImportError, OSError, AttributeError):  # only glibc keeps it
        import ctypes  # loaded already: trio stands on it

        ctypes.CDLL(None).malloc_trim(0)


class _Postponed(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import system, which wants to know about the module
            raise AttributeError(name)
        if sys.modules.get(self.__name__) in (None, self):
            sys.modules.pop(self.__name__, None)
        return getattr(importlib.import_module(self.__name__), name)


def _has_own_digests() -> bool:
    try:
        for name in _OWN_DIGESTS:
            importlib.import_module(name)
    except ImportError:
        return False
    return True


def _hide_openssl() -> None:
    """Import as a Python does that was built without OpenSSL; only trio cannot, which never looks into `ssl`."""
    sys.modules["_hashlib"] = None  # type: ignore[assignment]  # it raises ImportError
    sys.modules["ssl"] = postponed = _Postponed("ssl")
    import trio  # noqa: F401

    if sys.modules.get("ssl") is postponed:
        sys.modules["ssl"] = None  # type: ignore[assignment]
