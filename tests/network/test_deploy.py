"""A whole deploy over networks as they are: slow, lossy, cut for a while, and changing under the connection."""

from __future__ import annotations

import time

import pytest

from tests.network.helpers import SOAK, Deploy, count_lost_and_resumed, ended
from tests.network.wire import CONTROLLER_ADDRESS, DEVICE, OTHER_CONTROLLER_ADDRESS, PREFIX_BITS


@pytest.fixture
def deploy(controller, agent, tmp_path):
    return Deploy(controller, agent, tmp_path)


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param({"loss": 0.05}, id="a packet in twenty is lost"),
        pytest.param({"delay_seconds": 0.025}, id="50 ms"),
        pytest.param({"delay_seconds": 0.02, "jitter_seconds": 0.03, "loss": 0.01}, id="jitter"),
        pytest.param({"bits_per_second": 1_000_000}, id="1 Mbit/s"),
    ],
)
def test_deploy_over_a_bad_network_succeeds(conditions, net, deploy):
    """TCP copes with all of these, and so the user reads nothing about them."""
    for name, value in conditions.items():
        setattr(net.conditions, name, value)
    started = time.monotonic()
    run = ended(deploy.start(net))
    deploy.check(run)
    assert count_lost_and_resumed(run) == (0, 0)
    print(f"{conditions}: {time.monotonic() - started:.1f} s")


@pytest.mark.parametrize("seconds", [8, 20, 45] if SOAK else [8])
def test_deploy_survives_a_partition(seconds, net, deploy):
    """A short one is TCP's to bridge; after a long one the session is resumed; either way nothing is done twice."""
    process = deploy.start(net)
    deploy.wait_for_step(5)
    net.conditions.loss = 1.0
    time.sleep(seconds)
    net.conditions.loss = 0.0
    started = time.monotonic()
    run = ended(process)
    deploy.check(run)
    lost, resumed = count_lost_and_resumed(run)
    assert lost == resumed <= 1
    assert lost or seconds < 30
    print(f"{seconds} s: the deploy ended {time.monotonic() - started:.1f} s later, {lost} links lost")


def test_deploy_survives_a_partition_that_is_noticed(net, deploy):
    """A controller that has given up its link before the network is back resumes over a new one."""
    process = deploy.start(net, impatient=True)
    deploy.wait_for_step(5)
    net.conditions.loss = 1.0
    time.sleep(4)
    net.conditions.loss = 0.0
    run = ended(process)
    deploy.check(run)
    assert count_lost_and_resumed(run) == (1, 1), run.text


@pytest.mark.parametrize("side", ["controller", "agent"])
def test_deploy_survives_a_killed_socket(side, agent, net, deploy):
    """`ss -K` aborts the connection on one side, as a firewall's reset does."""
    process = deploy.start(net)
    deploy.wait_for_step(5)
    on_side = net.on_controller if side == "controller" else net.on_agent
    column = "dport" if side == "controller" else "sport"
    killed = on_side("ss", "-Hn", "-K", "-t", "state", "established", column, "=", f":{agent.port}")
    if not killed.strip():
        process.kill()
        process.communicate()
        pytest.skip("this kernel cannot kill sockets (CONFIG_INET_DIAG_DESTROY)")
    run = ended(process)
    deploy.check(run)
    assert count_lost_and_resumed(run) == (1, 1), run.text


def test_deploy_survives_a_new_address_of_the_controller(net, deploy):
    """A laptop changes its network: packets from the old address are lost in silence, and the session moves on."""
    process = deploy.start(net, impatient=True)
    deploy.wait_for_step(5)
    net.on_controller("ip", "addr", "add", f"{OTHER_CONTROLLER_ADDRESS}/{PREFIX_BITS}", "dev", DEVICE)
    # Promoted, or the second address would go with the first, whose subnet it shares.
    net.on_controller("sysctl", "-qw", f"net.ipv4.conf.{DEVICE}.promote_secondaries=1")
    net.on_controller("ip", "addr", "del", f"{CONTROLLER_ADDRESS}/{PREFIX_BITS}", "dev", DEVICE)
    run = ended(process)
    deploy.check(run)
    assert count_lost_and_resumed(run) == (1, 1), run.text
    assert OTHER_CONTROLLER_ADDRESS in net.on_controller("ip", "-brief", "addr", "show", "dev", DEVICE)
