"""The agent: a trio daemon that runs commands and moves files for the controllers it was told to trust.

It is started by the `pyinfra-agent` command and has no API of its own.  It stands on
`pyinfra_agent_protocol` and never imports the connector.
"""
