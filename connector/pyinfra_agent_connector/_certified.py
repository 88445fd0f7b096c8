"""What the user's authorities say of agents that were found: names and groups that nobody can announce for himself.

Only where the user believes an authority. Agents that were announced are knocked at for that, as `_probe` does, because
an advert has no room for a certificate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gevent.pool import Pool

from pyinfra_agent_protocol.certificates import CertificateRefused
from pyinfra_agent_protocol.keys import fingerprint

from ._known import UntrustedAgent
from ._probe import Outcome, probe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._authorities import Authorities, Certified
    from ._found import FoundAgent

__all__ = ["certified_as", "with_certificates"]

_PROBES_AT_ONCE: Final = 256


def with_certificates(
    candidates: Iterable[FoundAgent], authorities: Authorities
) -> tuple[list[FoundAgent], tuple[str, ...]]:
    """Return *candidates* with what *authorities* say of them, and warnings for people.

    Raises:
        UntrustedAgent: the files of the authorities cannot be read.
    """
    agents = list(candidates)
    if not authorities.all():
        return agents, ()
    shown = Pool(_PROBES_AT_ONCE).map(_with_key, agents)
    warnings: list[str] = []
    return [_with_certificate(one, authorities, warnings) for one in shown], tuple(warnings)


def _with_key(one: FoundAgent) -> FoundAgent:
    if one.key or not one.host:
        return one
    probed = probe(one.host, one.port)
    # Somebody may announce a key that is not there: then what was announced stays what it is, unproved.
    if probed.outcome is not Outcome.AGENT or fingerprint(probed.key) != one.fingerprint:
        return one
    return replace(one, key=probed.key, certificate=probed.certificate)


def _with_certificate(one: FoundAgent, authorities: Authorities, warnings: list[str]) -> FoundAgent:
    if not one.key:
        return one
    certified, refusal = certified_as(None, one, authorities)
    if refusal:
        warnings.append(f"the agent at {one.endpoint}, with key {one.fingerprint}, is not certified: {refusal}")
    return replace(one, certified=certified)


def certified_as(name: str | None, one: FoundAgent, authorities: Authorities) -> tuple[Certified | None, str]:
    """Return what *authorities* say of an agent that has proved its key, and why what it has shown does not count.

    Args:
        name: that it was asked for by; None where any name will do.
        one: the agent.
        authorities: the user's.
    """
    try:
        authorities.require_not_revoked(one.endpoint, one.key)
        return authorities.certified(one.key, one.certificate, None if name is None else [name]), ""
    except (CertificateRefused, UntrustedAgent) as error:
        return None, str(error)
