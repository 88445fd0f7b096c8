"""What the package offers: each name once, documented, and nothing by accident."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import pyinfra_agent_protocol

PUBLIC = pyinfra_agent_protocol.__all__
SUBMODULES = sorted(info.name for info in pkgutil.iter_modules(pyinfra_agent_protocol.__path__))

#: What submodules share among themselves. Everything else in their `__all__` is for everybody.
INTERNAL = {
    "_channel": {"DOWN", "UP", "Channel", "Half", "step"},
    "_digest": {"DIGEST_BYTES", "DIGEST_STRIDE", "DIGEST_WHOLE_BYTES"},
    "_messages": {"REQUESTS", "Cancel", "End", "Message", "Ping", "decode_request", "encode_request"},
    "_outbox": {"Outbox"},
    "_saved": {"SavedChannel", "SavedFrame", "SavedPart", "SavedSession", "decode_saved", "encode_saved"},
    "_window": {"ReceiveWindow", "SendWindow"},
}

#: Wholly internal, or public under their own name (`keys`, `certificates`).
NOT_EXPORTED = {"_aead", "_constants", "_constants_link", "_fields", "_frames", "_noise", "_phase"}


def module(name):
    return importlib.import_module(f"pyinfra_agent_protocol.{name}")


def exported_by(name):
    return set(getattr(module(name), "__all__", ()))


EXPORTING = [name for name in SUBMODULES if name.startswith("_") and name not in NOT_EXPORTED]


def test_all_is_sorted_and_holds_each_name_once():
    assert len(set(PUBLIC)) == len(PUBLIC)
    assert [name for name in PUBLIC if not hasattr(pyinfra_agent_protocol, name)] == []


def test_package_offers_what_its_modules_offer():
    """The union of what modules offer, without what they share among themselves, is what the package offers."""
    offered = set()
    for name in EXPORTING:
        names = exported_by(name)
        assert names, f"{name} has no __all__"
        assert INTERNAL.get(name, set()) <= names
        offered |= names - INTERNAL.get(name, set())
    constants = {name for name in PUBLIC if name.isupper()}
    assert constants <= set(vars(module("_constants")))
    assert set(PUBLIC) - constants == offered


@pytest.mark.parametrize("name", EXPORTING)
def test_module_offers_only_what_it_defines(name):
    for exported in exported_by(name) - INTERNAL.get(name, set()):
        value = getattr(module(name), exported)
        assert getattr(value, "__module__", module(name).__name__) in (module(name).__name__, "types", "typing")


def test_no_name_is_public_by_accident():
    visible = {name for name in vars(pyinfra_agent_protocol) if not name.startswith("_")}
    assert visible - set(SUBMODULES) == set(PUBLIC)


def documented():
    for name in PUBLIC:
        value = getattr(pyinfra_agent_protocol, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (
                    inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
                ):
                    yield f"{name}.{attribute}", member


DOCUMENTED = dict(documented())


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_name_is_documented(name):
    """With its own sentence: what dataclasses and namedtuples write for themselves does not count."""
    doc = DOCUMENTED[name].__doc__
    assert doc
    assert not doc.startswith(f"{name}(")


@pytest.mark.parametrize("name", SUBMODULES)
def test_module_says_what_it_is(name):
    assert module(name).__doc__
