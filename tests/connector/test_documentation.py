"""What pyinfra's documentation generator (scripts/generate_connectors_docs.py there) makes a page of."""

from __future__ import annotations

import re
import shlex
import typing
from inspect import cleandoc, getdoc

from pyinfra.connectors.base import DataMeta

from pyinfra_agent_connector.faces.v3 import AgentConnector


def code_blocks(text, language):
    """Return the blocks of *language* in reStructuredText, each without its indentation."""
    found = re.findall(rf"^\.\. code:: {language}\n\n((?:(?: {{4}}.*)?\n)+)", f"{text}\n", re.MULTILINE)
    return [cleandoc(block) for block in found]


def names_of(inventory):
    """Return the hosts that the connector makes of a pyinfra inventory on a command line."""
    return [
        host
        for name in inventory.split(",")
        for host, _, _ in AgentConnector.make_names_data(name.removeprefix("@agent/"))
    ]


def test_page_begins_with_a_sentence_that_links_and_ends():
    """The index of connectors shows the first line of each."""
    assert getdoc(AgentConnector).splitlines()[0] == (
        "The ``@agent`` connector executes on machines that run the pyinfra agent, a small daemon."
    )


def test_page_shows_commands_that_the_connector_understands():
    (block,) = code_blocks(getdoc(AgentConnector), "shell")
    commands = [shlex.split(line) for line in block.splitlines() if line.startswith("pyinfra ")]
    assert len(commands) >= 3
    for _, inventory, *rest in commands:
        assert names_of(inventory) == inventory.split(",")
        assert rest


def test_page_shows_an_inventory_that_is_python():
    (block,) = code_blocks(cleandoc(AgentConnector.__examples_doc__), "python")
    inventory = {}
    exec(block, inventory)
    for entry in inventory["hosts"]:
        name, data = entry if isinstance(entry, tuple) else (entry, {})
        assert names_of(name) == [name]
        assert set(data) <= set(AgentConnector.data_meta)


def test_page_has_a_row_for_every_key_of_host_data():
    """The generator looks up each key of the class and prints its type's name: none may be a union."""
    hints = typing.get_type_hints(AgentConnector.data_cls)
    assert list(hints) == list(AgentConnector.data_meta)
    for key, kind in hints.items():
        meta = AgentConnector.data_meta[key]
        assert isinstance(meta, DataMeta)
        assert kind.__name__ in ("str", "int")
        assert meta.default is None or type(meta.default) is kind
        assert meta.description
        assert "\n" not in meta.description
        # A single backquote is a role in reStructuredText, and the page would say so.
        assert not re.search(r"(?<!`)`(?!`)", meta.description)
