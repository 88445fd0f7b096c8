"""The Noise handshake below the link: public vectors, hostile keys, calls out of turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nacl.exceptions import UnavailableError

from pyinfra_agent_protocol import _noise
from pyinfra_agent_protocol._constants_link import KEY, MAX_NONCE, TAG
from pyinfra_agent_protocol._errors import HandshakeFailed, KeyFormatError, LocalProtocolError, RecordInvalid
from pyinfra_agent_protocol._noise import CipherState, HandshakeState, KeyPair, Suite, aes_available

VECTORS = json.loads((Path(__file__).parents[2] / "protocol" / "vectors" / "noise_xx.json").read_text())["vectors"]

# Every u-coordinate of low order, and the two above the prime that stand for 0 and 1 (cr.yp.to/ecdh.html).
LOW_ORDER_POINTS = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def usable(suite: Suite) -> Suite:
    if suite is Suite.AESGCM and not aes_available():
        pytest.skip("this processor has no AES instructions")
    return suite


@pytest.fixture(params=Suite, ids=lambda suite: suite.name)
def suite(request: pytest.FixtureRequest) -> Suite:
    return usable(request.param)


def new_pair(suite: Suite) -> tuple[HandshakeState, HandshakeState]:
    initiator = HandshakeState(suite, initiator=True, prologue=b"p", static=KeyPair.generate())
    responder = HandshakeState(suite, initiator=False, prologue=b"p", static=KeyPair.generate())
    return initiator, responder


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["protocol_name"]))
def test_both_sides_replay_public_vector(vector: dict[str, object]) -> None:
    """Messages, handshake hash, keys learnt and records equal the public vector, byte for byte."""
    hexes = {
        name: bytes.fromhex(text) for name, text in vector.items() if isinstance(text, str) and "_name" not in name
    }
    suite = usable(next(suite for suite in Suite if suite.protocol_name.decode() == vector["protocol_name"]))
    initiator, responder = (
        HandshakeState(
            suite,
            initiator=side == "init",
            prologue=hexes[f"{side}_prologue"],
            static=KeyPair.from_secret(hexes[f"{side}_static"]),
            ephemeral=KeyPair.from_secret(hexes[f"{side}_ephemeral"]),
        )
        for side in ("init", "resp")
    )
    messages = vector["messages"]
    assert isinstance(messages, list)
    assert len(messages) == 6
    pairs = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in messages]

    writer, reader = initiator, responder
    for payload, ciphertext in pairs[:3]:
        assert writer.write_message(payload) == ciphertext
        assert reader.read_message(ciphertext) == payload
        writer, reader = reader, writer

    assert initiator.finished
    assert responder.finished
    assert initiator.handshake_hash == responder.handshake_hash == hexes["handshake_hash"]
    assert responder.remote_static == KeyPair.from_secret(hexes["init_static"]).public
    assert initiator.remote_static == KeyPair.from_secret(hexes["resp_static"]).public

    (to_responder, from_responder), (to_initiator, from_initiator) = initiator.split(), responder.split()
    seal, unseal = (to_initiator, from_responder), (to_responder, from_initiator)
    for payload, ciphertext in pairs[3:]:
        sender, receiver = seal
        assert sender.encrypt_with_ad(b"", payload) == ciphertext
        assert receiver.decrypt_with_ad(b"", ciphertext) == payload
        seal, unseal = unseal, seal


@pytest.mark.parametrize("top_bit", [0, 0x80])
@pytest.mark.parametrize("point", LOW_ORDER_POINTS)
def test_responder_refuses_low_order_ephemeral(point: str, top_bit: int) -> None:
    """A low-order ephemeral key fails at the first DH, whatever its ignored top bit says."""
    _, responder = new_pair(Suite.CHACHAPOLY)
    key = bytearray.fromhex(point)
    key[-1] |= top_bit
    responder.read_message(bytes(key))

    with pytest.raises(HandshakeFailed, match="low order"):
        responder.write_message(b"")


@pytest.mark.parametrize("point", LOW_ORDER_POINTS)
def test_initiator_refuses_low_order_ephemeral(point: str) -> None:
    """The initiator refuses a low-order key in message 2 before it decrypts anything."""
    initiator, _ = new_pair(Suite.CHACHAPOLY)
    initiator.write_message(b"")

    with pytest.raises(HandshakeFailed, match="low order"):
        initiator.read_message(bytes.fromhex(point) + bytes(KEY + TAG + TAG))


@pytest.mark.parametrize("point", LOW_ORDER_POINTS)
def test_initiator_refuses_low_order_static(point: str, suite: Suite) -> None:
    """A responder that seals a low-order static key properly is still refused."""
    initiator, _ = new_pair(suite)
    liar = KeyPair(KeyPair.generate().secret, bytes.fromhex(point))
    responder = HandshakeState(suite, initiator=False, prologue=b"p", static=liar)
    responder.read_message(initiator.write_message(b""))

    with pytest.raises(HandshakeFailed, match="low order"):
        initiator.read_message(responder.write_message(b""))


@pytest.mark.parametrize("length", [0, 1, KEY - 1, KEY + 1, 2 * KEY])
def test_dh_refuses_public_key_of_other_length(length: int) -> None:
    """A public key that is not 32 bytes long never reaches libsodium, which would read past its end."""
    with pytest.raises(HandshakeFailed, match="32 bytes"):
        _noise._dh(KeyPair.generate(), b"\x09" * length)


def test_both_sides_refuse_truncated_messages(suite: Suite) -> None:
    """Every proper prefix of each message is refused as cut short or not verifying."""
    seeds = [KeyPair.generate() for _ in range(4)]

    def fresh() -> tuple[HandshakeState, HandshakeState]:
        initiator = HandshakeState(suite, initiator=True, prologue=b"", static=seeds[0], ephemeral=seeds[1])
        responder = HandshakeState(suite, initiator=False, prologue=b"", static=seeds[2], ephemeral=seeds[3])
        return initiator, responder

    initiator, responder = fresh()
    messages = [initiator.write_message(b"")]
    responder.read_message(messages[0])
    messages.append(responder.write_message(b"hello"))
    initiator.read_message(messages[1])
    messages.append(initiator.write_message(b"hello"))
    for step, message in enumerate(messages):
        for length in range(len(message)):
            initiator, responder = fresh()
            sides = [responder, initiator, responder]
            initiator.write_message(b"")
            for earlier in range(step):
                sides[earlier].read_message(messages[earlier])
                if earlier < 2:
                    sides[earlier].write_message(b"hello")
            with pytest.raises(HandshakeFailed):
                sides[step].read_message(message[:length])


def test_different_prologues_fail_the_handshake(suite: Suite) -> None:
    """Message 2 does not verify when the sides disagree about the prologue."""
    initiator = HandshakeState(suite, initiator=True, prologue=b"one", static=KeyPair.generate())
    responder = HandshakeState(suite, initiator=False, prologue=b"two", static=KeyPair.generate())
    responder.read_message(initiator.write_message(b""))

    with pytest.raises(HandshakeFailed, match="does not verify"):
        initiator.read_message(responder.write_message(b""))


def test_handshake_refuses_calls_out_of_turn(suite: Suite) -> None:
    """Writing twice, reading one's own turn, and using results too early are our own errors."""
    initiator, responder = new_pair(suite)
    with pytest.raises(LocalProtocolError):
        responder.write_message(b"")
    with pytest.raises(LocalProtocolError):
        initiator.read_message(bytes(KEY))
    message = initiator.write_message(b"")
    with pytest.raises(LocalProtocolError):
        initiator.write_message(b"")
    with pytest.raises(LocalProtocolError):
        _ = initiator.remote_static
    with pytest.raises(LocalProtocolError):
        _ = initiator.handshake_hash
    with pytest.raises(LocalProtocolError):
        initiator.split()
    responder.read_message(message)
    initiator.read_message(responder.write_message(b""))
    responder.read_message(initiator.write_message(b""))
    for side in (initiator, responder):
        with pytest.raises(LocalProtocolError):
            side.write_message(b"")
        with pytest.raises(LocalProtocolError):
            side.read_message(b"")


def test_handshakes_draw_fresh_ephemeral_keys() -> None:
    """Two handshakes of the same pair share no first message and no hash."""
    assert len({new_pair(Suite.CHACHAPOLY)[0].write_message(b"") for _ in range(8)}) == 8


def test_cipher_binds_associated_data(suite: Suite) -> None:
    """A ciphertext verifies under its associated data only, and a failure does not use up the nonce."""
    sealing, opening = CipherState(suite, bytes(KEY)), CipherState(suite, bytes(KEY))
    sealed = sealing.encrypt_with_ad(b"here", b"text")

    with pytest.raises(RecordInvalid):
        opening.decrypt_with_ad(b"there", sealed)
    assert opening.decrypt_with_ad(b"here", sealed) == b"text"
    assert (sealing.n, opening.n) == (1, 1)


def test_cipher_refuses_the_last_nonce(suite: Suite) -> None:
    """The nonce that rekeying reserves seals and opens nothing."""
    cipher = CipherState(suite, bytes(KEY))
    cipher.n = MAX_NONCE - 1
    sealed = cipher.encrypt_with_ad(b"", b"last")

    with pytest.raises(LocalProtocolError, match="new link"):
        cipher.encrypt_with_ad(b"", b"one more")
    with pytest.raises(RecordInvalid, match="every nonce"):
        cipher.decrypt_with_ad(b"", sealed)


def test_cipher_rekey_changes_key_and_keeps_counter(suite: Suite) -> None:
    """After REKEY the old key opens nothing, the new one does, and n runs on."""
    sealing, old, new = (CipherState(suite, bytes(KEY)) for _ in range(3))
    for cipher in (sealing, old, new):
        cipher.n = 7
    sealing.rekey()
    new.rekey()
    sealed = sealing.encrypt_with_ad(b"", b"text")

    with pytest.raises(RecordInvalid):
        old.decrypt_with_ad(b"", sealed)
    assert new.decrypt_with_ad(b"", sealed) == b"text"
    assert (sealing.n, new.n) == (8, 8)


@pytest.mark.parametrize("length", range(TAG))
def test_cipher_refuses_ciphertext_without_room_for_a_tag(length: int, suite: Suite) -> None:
    """PyNaCl's plain ValueError for short input never gets out."""
    with pytest.raises(RecordInvalid, match="tag"):
        CipherState(suite, bytes(KEY)).decrypt_with_ad(b"", bytes(length))


def test_keypair_repr_hides_the_secret() -> None:
    """A key pair that reaches a log shows its public half only."""
    pair = KeyPair.generate()
    assert repr(pair) == f"KeyPair(public={pair.public!r})"


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keypair_refuses_secret_of_other_length(length: int) -> None:
    """A secret that is not 32 bytes long is no key."""
    with pytest.raises(KeyFormatError, match="32 bytes"):
        KeyPair.from_secret(bytes(length))


def test_keypair_from_secret_matches_rfc_7748() -> None:
    """The public half is the one that RFC 7748 section 6.1 gives for Bob."""
    pair = KeyPair.from_secret(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert pair.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


def test_aes_is_reported_missing_where_libsodium_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One refused trial encryption means that there is no AES."""

    def refuse(*_: object) -> bytes:
        raise UnavailableError("no AES")

    monkeypatch.setattr(_noise, "crypto_aead_aes256gcm_encrypt", refuse)
    assert aes_available.__wrapped__() is False
