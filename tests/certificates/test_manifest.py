"""Manifests and signatures: what goes out with a release, and everything that somebody may do to it on the way."""

import builtins
import json
import os
import subprocess

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

import jaxunlearn as ju
from jaxunlearn import certificates
from jaxunlearn.certificates import ReleaseError, manifest, verify, verify_all
from jaxunlearn.certificates.certificate import Assumption
from jaxunlearn.service import journal
from tests.certificates.test_publish import CERTIFICATE, KERNEL, Interrupted, contents, interrupt, publish, result_of
from tests.certificates.toys import certified, toy

PEM, RAW = serialization.Encoding.PEM, serialization.NoEncryption()
ASSUMPTIONS = (
    Assumption("float64", True, "longest row 0.125"),
    Assumption("extractor", True, "declared as 'public'", "declared"),
    Assumption("one observed release", True, "speaks of one release", "assumed"),
)
SIGNED = CERTIFICATE._replace(assumptions=ASSUMPTIONS)


def write_key(folder, key, name="key", encryption=RAW):
    """A private key and its public key as files."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.touch(0o600)
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir()
    return write_key(folder, ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def released(tmp_path, keys):
    """Two signed releases: path of the first one, and the public key."""
    first = publish(result_of(), SIGNED, tmp_path / "releases", signing_key=keys[0])
    publish(result_of(KERNEL + 1), SIGNED, tmp_path / "releases", signing_key=keys[0])
    return first.path, keys[1]


def refused(path, key, message):
    with pytest.raises(ReleaseError, match=message):
        verify(path, key)


def rewrite(path, **changes):
    """Change fields of a manifest, in its canonical form."""
    path.write_bytes(journal.canonical({**json.loads(path.read_bytes()), **changes}))


# what goes out


def test_a_signed_release_is_valid(released, tmp_path):
    path, key = released
    found = verify(path, key)
    assert found.valid
    assert found.status == "valid"
    said = found.manifest
    assert (said.number, said.file, said.sha256) == (1, "release-000001.npz", manifest.digest_of(path))
    assert (said.epsilon, said.delta, said.noise_scale, said.total_epsilon) == (1.0, 1e-5, 0.25, 1.0)
    assert (said.mechanism, said.noise_key, said.library) == ("DeleteThenNoise", "os", ju.__version__)
    assert said.time.startswith("20")
    assert said.time.endswith("+00:00")
    assert [tuple(each) for each in said.assumptions] == [
        ("float64", "checked", ""),
        ("extractor", "declared", "declared as 'public'"),
        ("one observed release", "assumed", "speaks of one release"),
    ]
    both = verify_all(path.parent, key)
    assert [each.manifest.total_epsilon for each in both] == [1.0, 2.0]
    assert both[0] == found
    assert verify(str(path), str(key)) == found


def test_manifests_hold_nothing_that_was_measured(tmp_path, keys):
    _, _, _, result = toy()
    certificate = certified()
    release = certificates.publish(result, certificate, tmp_path / "releases", signing_key=keys[0])
    found = release.manifest.read_bytes()
    assert verify(release.path, keys[1]).valid
    measured = [certificate.residual, certificate.distance, certificate.budget_left]
    assert not [x for x in measured if repr(x).encode() in found]
    assert not [x for x in certificate.assumptions if x.source == "checked" and f'"{x.detail}"'.encode() in found]
    assert not [x for x in certificate.subject if x and x.encode() in found]
    for path in (tmp_path / "releases").rglob("*"):
        assert path.stat().st_mode & 0o77 == 0


def test_other_programs_can_check_a_signature(released, tmp_path):
    path, key = released
    given = ["-sigfile", path.with_suffix(".sig"), "-pubin", "-inkey", key]
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-in", path.with_suffix(".json"), *given]
    assert "Verified Successfully" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rewrite(path.with_suffix(".json"), epsilon=0.1)
    assert subprocess.run(command, capture_output=True, check=False).returncode


def test_unsigned_releases_say_so_and_are_never_valid(tmp_path, keys):
    release = publish(result_of(), SIGNED, tmp_path / "releases")
    found = verify(release.path, None)
    assert (found.status, found.valid, found.manifest.signer, release.signer) == ("unsigned", False, "", "")
    refused(release.path, keys[1], "000001.npz is refused: the manifest is unsigned, so anybody may have written it")
    release.path.with_suffix(".sig").write_bytes(bytes(64))
    for key in (None, keys[1]):
        refused(release.path, key, "there is a signature, release-000001.sig, but the manifest is unsigned")
    release.path.with_suffix(".sig").unlink()
    rewrite(release.manifest, sha256="0" * 64)
    refused(release.path, None, "the weights have SHA-256 .*, the manifest says 0000")


def test_without_a_key_a_signed_release_is_not_valid_either(released):
    found = verify(released[0], None)
    assert (found.status, found.valid) == ("unchecked", False)


def test_without_the_extra_only_signatures_need_it(tmp_path, keys, monkeypatch):
    signed = publish(result_of(), SIGNED, tmp_path / "signed", signing_key=keys[0])
    load = builtins.__import__

    def absent(name, *rest):
        if name.startswith("cryptography"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"need cryptography: pip install 'jaxunlearn\[sign\]'"):
        publish(result_of(), SIGNED, tmp_path / "refused", signing_key=keys[0])
    assert not (tmp_path / "refused").exists()
    with pytest.raises(ImportError, match=r"jaxunlearn\[sign\]"):
        verify(signed.path, keys[1])
    assert verify(publish(result_of(), SIGNED, tmp_path / "unsigned").path, None).status == "unsigned"
    assert verify(signed.path, None).status == "unchecked"


# repeated and interrupted


def test_asked_again_nothing_changes(released, tmp_path, keys):
    before = contents(tmp_path / "releases")
    again = publish(result_of(), SIGNED._replace(budget_left=0.5), tmp_path / "releases", signing_key=keys[0])
    assert contents(tmp_path / "releases") == before
    assert (again.path, again.signer) == (released[0], verify(*released).manifest.signer)


@pytest.mark.parametrize(("suffix", "number"), [(".npz", 1), (".json", 2), (".json", 3), (".sig", 1)])
def test_an_interrupted_release_gets_its_manifest_and_signature(tmp_path, monkeypatch, keys, suffix, number):
    folder = tmp_path / "releases"
    with monkeypatch.context() as patch:
        interrupt(patch, suffix, number)
        with pytest.raises(Interrupted):
            publish(result_of(), SIGNED, folder, signing_key=keys[0])
    refused(folder / "public/release-000001.npz", keys[1], "release-000001.(json|sig) is missing")
    publish(result_of(KERNEL + 1), SIGNED, folder, signing_key=keys[0])
    assert verify(publish(result_of(), SIGNED, folder, signing_key=keys[0]).path, keys[1]).valid
    assert len(verify_all(folder / "public", keys[1])) == 2


def test_a_manifest_that_was_lost_comes_back_and_a_changed_one_is_refused(released, tmp_path, keys):
    before = contents(tmp_path / "releases")
    for suffix in ("json", "sig"):
        released[0].with_suffix(f".{suffix}").unlink()
    publish(result_of(), SIGNED, tmp_path / "releases", signing_key=keys[0])
    assert contents(tmp_path / "releases") == before
    for suffix, what in (("json", "manifest"), ("sig", "signature")):
        path = released[0].with_suffix(f".{suffix}")
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ReleaseError, match=f"is not the {what} that was released"):
            publish(result_of(), SIGNED, tmp_path / "releases", signing_key=keys[0])
        path.write_bytes(content)


def test_a_release_keeps_its_signer_and_its_declarations(released, tmp_path, keys):
    before = contents(tmp_path / "releases")
    other, _ = write_key(tmp_path / "keys", ed25519.Ed25519PrivateKey.generate(), "other")
    with pytest.raises(ReleaseError, match=r"promised with a signature by [0-9a-f]{64}, and is asked for without a signature"):
        publish(result_of(), SIGNED, tmp_path / "releases")
    with pytest.raises(ReleaseError, match="and is asked for with a signature by"):
        publish(result_of(), SIGNED, tmp_path / "releases", signing_key=other)
    declared = SIGNED._replace(assumptions=(ASSUMPTIONS[0], ASSUMPTIONS[1]._replace(detail="declared as 'none'")))
    with pytest.raises(ReleaseError, match="other declarations, which differ in extractor, one observed release: declare"):
        publish(result_of(), declared, tmp_path / "releases", signing_key=keys[0])
    assert contents(tmp_path / "releases") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mechanism": ""}, "mechanism of the manifest of this certificate must be text"),
        ({"assumptions": (Assumption("", True, ""),)}, "assumptions of the certificate must be text"),
        ({"assumptions": (Assumption("a\ud800", True, ""),)}, "surrogates not allowed"),
        ({"assumptions": (Assumption("a", True, "", "hearsay"),)}, "must be one of 'checked', 'declared', 'assumed'"),
    ],
)
def test_what_could_not_be_read_again_is_not_released(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        publish(result_of(), CERTIFICATE._replace(**changes), tmp_path / "releases")
    assert not list(tmp_path.iterdir())


# tampered with


@pytest.mark.parametrize("suffix", ["npz", "json", "sig"])
def test_no_byte_may_change(released, suffix):
    path = released[0].with_suffix(f".{suffix}")
    content = path.read_bytes()
    said = {"npz": "weights have SHA-256", "json": "release-000001", "sig": "does not fit the manifest"}[suffix]
    for place in range(len(content)):
        for bit in (1, 128) if suffix != "npz" else (1 << place % 8,):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            refused(*released, said)
    path.write_bytes(content)
    assert verify(*released).valid


@pytest.mark.parametrize("suffix", ["npz", "json", "sig"])
def test_no_file_may_be_cut_short_or_grow(released, suffix):
    path = released[0].with_suffix(f".{suffix}")
    content = path.read_bytes()
    for cut in (b"", content[:1], content[: len(content) // 2], content[:-1], content + b"\n", content * 2):
        path.write_bytes(cut)
        refused(*released, path.stem)
    path.unlink()
    refused(*released, f"release-000001.{suffix} is missing")
    path.mkdir()
    refused(*released, f"release-000001.{suffix} is no regular file")
    path.rmdir()
    os.mkfifo(path)
    refused(*released, f"release-000001.{suffix} is no regular file")


@pytest.mark.parametrize("suffix", ["npz", "json", "sig"])
def test_symbolic_links_are_refused(released, tmp_path, suffix):
    path = released[0].with_suffix(f".{suffix}")
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    for target in (elsewhere, tmp_path / "nowhere"):
        path.symlink_to(target)
        refused(*released, f"release-000001.{suffix} is a symbolic link")
        path.unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.1}, "release-000001.sig does not fit the manifest: one of the two was changed"),
        ({"time": "2020-01-01T00:00:00+00:00"}, "does not fit the manifest"),
        ({"assumptions": []}, "does not fit the manifest"),
        ({"sha256": "0" * 64}, "the weights have SHA-256 [0-9a-f]{64}, the manifest says 0{64}; the signature"),
        ({"signer": "0" * 64}, "names the signer 0{64}, the key in .*key.pub is [0-9a-f]{64}"),
        ({"signer": ""}, "there is a signature, release-000001.sig, but the manifest is unsigned"),
        ({"number": 2}, r"is that of release 2 \('release-000001.npz'\), not of 'release-000001.npz'"),
        ({"file": "release-000002.npz"}, r"is that of release 1 \('release-000002.npz'\)"),
        ({"file": "../../etc/passwd"}, r"is that of release 1 \('../../etc/passwd'\), not of"),
        ({"file": "/etc/passwd"}, "not of 'release-000001.npz'"),
        ({"file": "release-000001.npz\x00.txt"}, "not of 'release-000001.npz'"),
        ({"file": ""}, "file of .*000001.json must be text, got ''; it was changed, or another version wrote it"),
        ({"file": ["release-000001.npz"]}, "file of .* must be text"),
        ({"version": 3}, "no format 'jaxunlearn release' of version 1 or 2: got 'jaxunlearn release' of version 3"),
        ({"version": 2}, "is of version 2, and what it says is said in version 1"),
        ({"format": "jaxunlearn certificate"}, "got 'jaxunlearn certificate'"),
        ({"more": 1}, r"unknown \['more'\]"),
        ({"number": 10**400}, "number of .* must be an integer of at least 1, got an integer of 1329 bits"),
        ({"number": -1}, "number of .* must be an integer of at least 1, got -1"),
        ({"number": True}, "number of .* got True"),
        ({"number": 1.0}, "number of .* got 1.0"),
        ({"epsilon": "inf"}, "epsilon of .* must be a number, got 'inf'"),
        ({"epsilon": 10**400}, "epsilon of .* integer of 1329 bits"),
        ({"epsilon": -1.0}, "0 < epsilon < inf"),
        ({"total_epsilon": 0.5}, "lower totals for all releases"),
        ({"total_delta": 1.5}, "lower totals for all releases together than for this one, or a total_delta above 1"),
        ({"noise_scale": -0.25}, "noise_scale of .* must be at least 0"),
        ({"noise_key": "os "}, "noise_key of .* must be one of 'os', 'caller'"),
        ({"sha256": "g" * 64}, "sha256 of .* must be 64 hexadecimal digits"),
        ({"sha256": "0" * 63 + "\n"}, "sha256 of .* must be 64 hexadecimal digits"),
        ({"signer": None}, "signer of .* must be 64 hexadecimal digits"),
        ({"time": ""}, "time of .* must be text"),
        ({"time": "2026-13-01T00:00:00+00:00"}, "time of .* is no time: month"),
        ({"time": "yesterday"}, "time of .* must be such as 2026-01-31"),
        ({"assumptions": [{"name": "float64", "source": "checked"}]}, r"missing \['detail'\]"),
        ({"assumptions": [["float64", "checked", ""]]}, "must be an object with fields"),
        ({"assumptions": [{"name": "x", "source": "hearsay", "detail": ""}]}, "must be one of 'checked'"),
        ({"library": None}, "library of .* must be text"),
    ],
)
def test_changed_fields_are_named(released, changes, message):
    rewrite(released[0].with_suffix(".json"), **changes)
    refused(*released, message)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.replace(b",", b",\n"), "not in its canonical form: spaces, line endings, order or digits differ"),
        (lambda x: x.replace(b",", b",\r\n"), "not in its canonical form"),
        (lambda x: b" " + x, "not in its canonical form"),
        (lambda x: x.replace(b'"epsilon":1.0', b'"epsilon":1.00'), "not in its canonical form"),
        (lambda x: x.replace(b'"epsilon":1.0', b'"epsilon":1'), "not in its canonical form"),
        (lambda x: x.replace(b"jaxunlearn release", b"jaxunlearn\\u0020release"), "not in its canonical form"),
        (lambda x: json.dumps(dict(reversed(json.loads(x).items()))).encode(), "not in its canonical form"),
        (lambda x: x.replace(b'"delta":', b'"epsilon":0.1,"delta":'), r"fields \['epsilon'\] occur more than once"),
        (lambda x: x.replace(b'"epsilon":1.0', b'"epsilon":NaN'), "NaN is no number of JSON"),
        (lambda x: x.replace(b'"epsilon":1.0', b'"epsilon":-Infinity'), "-Infinity is no number of JSON"),
        (lambda x: x.replace(b'"epsilon":1.0', b'"epsilon":1e999'), "1e999 is beyond float64"),
        (lambda x: x.replace(b'"epsilon":1.0', b'"epsilon":' + b"9" * 5000), "is no JSON that this library writes"),
        (lambda x: x.replace(b"float64", b"float\\ud800"), "surrogates not allowed"),
        (lambda x: x.replace(b"float64", "flöat".encode()), "not in its canonical form"),
        (lambda x: x.replace(b"float64", b"fl\xffat"), "is no JSON that this library writes"),
        (lambda x: x.decode().encode("utf-16"), "is no JSON that this library writes"),
        (lambda x: b"\xef\xbb\xbf" + x, "is no JSON that this library writes"),
        (lambda x: b"[" * 500_000, "nested too deeply|no JSON"),
        (lambda x: b" " * 2**20 + x, "has more than 1048576 bytes: it was changed"),
        (lambda x: b"null", "got None of version None"),
        (lambda x: b"[]", "got None of version None"),
        (lambda x: b"\x00" * 100, "is no JSON"),
    ],
)
def test_other_spellings_of_a_manifest_are_refused(released, spoil, message):
    path = released[0].with_suffix(".json")
    path.write_bytes(spoil(path.read_bytes()))
    for key in (released[1], None):
        refused(released[0], key, message)


def test_a_manifest_of_another_release_is_refused(released, tmp_path, keys):
    first, second = released[0], released[0].with_name("release-000002.npz")
    other = publish(result_of(KERNEL + 2), SIGNED, tmp_path / "elsewhere", signing_key=keys[0]).path
    kept = {suffix: first.with_suffix(suffix).read_bytes() for suffix in (".json", ".sig", ".npz")}
    for suffixes, source, message in (
        ((".json",), second, "is that of release 2 .*; the weights have SHA-256 .*; the signature .* does not fit"),
        ((".json", ".sig"), second, "is that of release 2 .*; the weights have SHA-256 .*manifest says [0-9a-f]{64}$"),
        ((".json", ".sig", ".npz"), second, r"is that of release 2 \('release-000002.npz'\), not of 'release-000001.npz'$"),
        ((".json", ".sig"), other, "refused: the weights have SHA-256 [0-9a-f]{64}, the manifest says [0-9a-f]{64}$"),
        ((".sig",), other, "refused: the signature release-000001.sig does not fit the manifest"),
        ((".npz",), other, "refused: the weights have SHA-256"),
    ):
        for suffix in suffixes:
            first.with_suffix(suffix).write_bytes(source.with_suffix(suffix).read_bytes())
        refused(first, keys[1], message)
        for suffix, content in kept.items():
            first.with_suffix(suffix).write_bytes(content)
    assert verify(first, keys[1]).valid


def test_folders_hold_nothing_but_releases(released, tmp_path):
    folder = released[0].parent
    for name in (
        "release-000001.npz.new",
        "release-000003.json",
        "release-000001.txt",
        "Release-000001.npz",
        "weights",
        "\u0663",
    ):
        (folder / name).write_bytes(b"")
        with pytest.raises(ReleaseError, match="holds what belongs to no release: '"):
            verify_all(folder, released[1])
        (folder / name).unlink()
    for suffix in ("npz", "json", "sig"):
        (folder / f"release-0000001.{suffix}").write_bytes(released[0].with_suffix(f".{suffix}").read_bytes())
    with pytest.raises(ReleaseError, match=r"not of 'release-0000001.npz'"):
        verify_all(folder, released[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReleaseError, match="holds no release"):
        verify_all(tmp_path / "empty", released[1])
    with pytest.raises(FileNotFoundError):
        verify_all(tmp_path / "nowhere", released[1])


@pytest.mark.parametrize(
    "name",
    [
        "weights.npz",
        "release-1.npz",
        "release-000001.json",
        "release-000001",
        "release-\u0660\u0660\u0660\u0660\u0660\u0661.npz",
    ],
)
def test_paths_that_name_no_release(released, name):
    with pytest.raises(ValueError, match="expected the path of released weights, such as release-000001"):
        verify(released[0].with_name(name), released[1])
    with pytest.raises(ValueError, match="is a folder: give one of its release-"):
        verify(released[0].parent, released[1])


# keys


def test_another_key_is_refused(released, tmp_path):
    _, other = write_key(tmp_path / "keys", ed25519.Ed25519PrivateKey.generate(), "other")
    refused(released[0], other, "names the signer [0-9a-f]{64}, the key in .*other.pub is [0-9a-f]{64}")


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(65537, 2048),
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ed448.Ed448PrivateKey.generate(),
    ],
)
def test_keys_of_another_kind_are_refused(released, tmp_path, make):
    private, public = write_key(tmp_path / "keys", make(), "other")
    with pytest.raises(ValueError, match=r"holds a key of another kind \(.*Private.*\); only Ed25519 keys sign releases"):
        publish(result_of(), SIGNED, tmp_path / "new", signing_key=private)
    with pytest.raises(ValueError, match=r"holds a key of another kind \(.*Public.*\); releases are signed with Ed25519"):
        verify(released[0], public)
    assert not (tmp_path / "new").exists()


def test_encrypted_keys_are_refused(tmp_path):
    key = ed25519.Ed25519PrivateKey.generate()
    private, _ = write_key(tmp_path, key, encryption=serialization.BestAvailableEncryption(b"password"))
    with pytest.raises(ValueError, match=r"key.pem is encrypted: decrypt it to a file of mode 600 \(openssl pkey"):
        publish(result_of(), SIGNED, tmp_path / "new", signing_key=private)
    assert not (tmp_path / "new").exists()


def test_files_that_hold_no_such_key_are_refused(released, tmp_path, keys):
    private, public = keys
    content = private.read_bytes()
    for spoilt in (b"", b"nonsense", content[:40], content.replace(b"PRIVATE", b"PUBLIC"), public.read_bytes()):
        private.write_bytes(spoilt)
        with pytest.raises(ValueError, match=r"key.pem holds no private key in PEM form: make one as"):
            publish(result_of(), SIGNED, tmp_path / "new", signing_key=private)
    (tmp_path / "spoilt").write_bytes(content)
    with pytest.raises(ValueError, match="holds a private key, which nobody but the publisher should have"):
        verify(released[0], tmp_path / "spoilt")
    for spoilt in (b"", b"nonsense", public.read_bytes()[:40], bytes(32)):
        (tmp_path / "spoilt").write_bytes(spoilt)
        with pytest.raises(ValueError, match="holds no public key in PEM form"):
            verify(released[0], tmp_path / "spoilt")
    private.write_bytes(content.replace(b"\n", b"\r\n"))  # of no consequence for a key
    assert publish(result_of(), SIGNED, tmp_path / "releases", signing_key=private).number == 1
    with pytest.raises(FileNotFoundError):
        verify(released[0], tmp_path / "nowhere.pub")
    with pytest.raises(FileNotFoundError):
        publish(result_of(), SIGNED, tmp_path / "new", signing_key=tmp_path / "nowhere.pem")
    for value in (public.read_bytes(), serialization.load_pem_public_key(public.read_bytes()), 5, True):
        with pytest.raises(TypeError, match="public_key must be the path of a PEM file"):
            verify(released[0], value)
    with pytest.raises(TypeError, match="signing_key must be the path of a PEM file"):
        publish(result_of(), SIGNED, tmp_path / "new", signing_key=content)
    assert not (tmp_path / "new").exists()


# who may read what


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o644])
def test_secrets_that_others_may_read_are_refused(released, tmp_path, keys, mode):
    keys[0].chmod(mode)
    with pytest.raises(PermissionError, match=r"key.pem may be read or changed by others \(mode 06..\): chmod 600 .*key.pem"):
        publish(result_of(), SIGNED, tmp_path / "releases", signing_key=keys[0])
    keys[0].chmod(0o400)
    intent = tmp_path / "releases/private/release-000001.json"
    intent.chmod(mode)
    before = contents(tmp_path / "releases")
    with pytest.raises(PermissionError, match=r"private/release-000001.json may be read .*: chmod 600"):
        publish(result_of(), SIGNED, tmp_path / "releases", signing_key=keys[0])
    assert contents(tmp_path / "releases") == before
    intent.chmod(0o600)
    intent.parent.chmod(mode | 0o100)
    with pytest.raises(PermissionError, match=r"private may be read or changed by others .*: chmod 700"):
        publish(result_of(), SIGNED, tmp_path / "releases", signing_key=keys[0])
    intent.parent.chmod(0o700)
    assert publish(result_of(), SIGNED, tmp_path / "releases", signing_key=keys[0]).number == 1


def test_the_mode_that_counts_is_that_of_the_file_behind_a_link(tmp_path):
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.write_bytes(b"secret")
    secret.chmod(0o600)
    link.symlink_to(secret)
    assert ju.modes.read_private(link) == b"secret"
    secret.chmod(0o640)
    with pytest.raises(PermissionError, match="link may be read"):
        ju.modes.read_private(link)
    with pytest.raises(ValueError, match="is no regular file"):
        ju.modes.read_private(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ValueError, match="is no regular file"):
        ju.modes.read_private(tmp_path / "pipe")


def test_a_checkpoint_is_made_private_file_by_file(tmp_path):
    variables = result_of(KERNEL.astype(np.float32)).variables
    old = os.umask(0o022)
    try:
        ju.checkpoint.save_variables(tmp_path / "weights", variables)
    finally:
        os.umask(old)
    outside = tmp_path / "outside"
    outside.touch()
    outside.chmod(0o644)
    (tmp_path / "weights/link").symlink_to(outside)
    files = [path for path in (tmp_path / "weights").rglob("*") if not path.is_symlink()]
    assert [path for path in files if path.stat().st_mode & 0o77]
    with pytest.raises(PermissionError, match=r"weights.* may be read or changed by others"):
        ju.modes.require_private(tmp_path / "weights")
    ju.modes.make_private(tmp_path / "weights")
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600", "0o700"}
    assert outside.stat().st_mode & 0o777 == 0o644
    (tmp_path / "weights/link").unlink()
    ju.modes.require_private(tmp_path / "weights")
    next(path for path in files if path.is_file()).chmod(0o640)
    with pytest.raises(PermissionError, match=r"mode 0640\): chmod 600 "):
        ju.modes.require_private(tmp_path / "weights")
    found = ju.checkpoint.load_variables(tmp_path / "weights", variables)
    assert np.array_equal(found.params["head"]["kernel"], KERNEL.astype(np.float32))
