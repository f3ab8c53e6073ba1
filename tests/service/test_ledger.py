"""The ledger: what it remembers, what it refuses, and that no crash changes either."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates, convex, modes, slots
from jaxunlearn.certificates.publish import load_release, publish
from jaxunlearn.service import archive, intents, journal, ledger, show
from jaxunlearn.service.checkpoint import save_variables
from jaxunlearn.service.errors import LedgerError, ReleaseError
from jaxunlearn.service.ledger import Ledger, data_fingerprint
from jaxunlearn.status import combine
from tests import crashes
from tests.crashes import IDS, ROWS, SALT, TARGETS, certify, retrained, unlearn
from tests.problems import network
from tests.service.books import KEY, contents, everything_on_disk, kernel, kernel_of, reopen

ROOT = Path(__file__).parents[2]


# what is remembered


def test_merge_and_stream_reach_the_closed_form(book, toy, tmp_path, about):
    book.submit(["ada"])
    book.submit(["cyd", "bob"])
    assert [len(batch) for batch in book.plan("stream")] == [1, 2]
    assert [len(batch) for batch in book.plan("merge")] == [3]
    with Ledger.create(tmp_path / "other", IDS, salt=SALT, **about) as other:
        other.submit(["bob", "cyd", "ada"])
        merged = other.apply(unlearn, *toy, KEY)
        assert len(other.state.applications) == 1
    streamed = book.apply(unlearn, *toy, KEY, mode="stream")
    assert len(book.state.applications) == 2
    assert book.plan() == book.plan("stream") == []
    for result in (merged, streamed):
        np.testing.assert_allclose(kernel(result), retrained(0, 1, 2, 3), rtol=1e-12)
        assert result.variables.params["kernel"].dtype == np.float64


def test_a_request_counts_once(book, toy, about):
    assert book.submit(["ada", "ada", "bob"]) == 2
    assert book.submit(["bob"]) == book.submit("ada") == 0
    book.apply(unlearn, *toy, KEY)
    head = book.head
    assert book.submit(["ada"]) == 0
    assert book.head == head
    with reopen(book, about, head=head) as again:
        assert again.state == book.state
        assert again.submit(["bob"]) == 0


def test_a_later_session_goes_on_where_the_last_one_stopped(book, toy, about):
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY, spend="residual_bound")
    with reopen(book, about) as again:
        again.submit(["dan"])
        blanked = toy[1]._replace(train=ju.Examples(np.where(np.arange(6)[:, None] % 2 == 0, np.nan, ROWS), TARGETS))
        with pytest.raises(LedgerError, match="record 2 belongs to another data set"):
            again.apply(unlearn, *toy[:1], blanked, KEY)  # row 4 is Dan's, who is still there
        blanked = toy[1]._replace(train=ju.Examples(np.where(np.isin(range(6), [0, 2])[:, None], np.nan, ROWS), TARGETS))
        result = again.apply(unlearn, jax.eval_shape(lambda: toy[0]), blanked, KEY, spend="residual_bound")
        np.testing.assert_allclose(kernel(result), retrained(0, 2, 4), rtol=1e-12)
        assert again.state.spent == 0.1 * 2 + 0.1
        variables, data = again.load(*toy)
        assert data.present.tolist() == [0, 1, 0, 1, 0, 1]
        assert kernel(result).tobytes() == kernel_of(variables).tobytes()
        assert np.array_equal(data.extra["moments"]["gram"], result.extra["moments"]["gram"])


def test_a_data_set_is_known_by_its_rows_in_any_order(toy):
    data, order = toy[1], [3, 5, 0, 1, 4, 2]
    shuffled = data._replace(train=jax.tree.map(lambda x: np.asarray(x)[order], data.train))
    known = data_fingerprint(data, IDS)
    assert data_fingerprint(shuffled, [IDS[row] for row in order]) == known
    assert data_fingerprint(shuffled, IDS) != known
    moved = data._replace(train=data.train._replace(targets=TARGETS + np.float32(1e-6)))
    assert data_fingerprint(moved, IDS) != known
    dropped = ju.Data(ju.Examples(ROWS[1:], TARGETS[1:]), np.ones(5))
    assert data_fingerprint(dropped, IDS[1:]) == data_fingerprint(data._replace(present=np.arange(6)), IDS)


def test_rows_may_move_between_sessions(book, toy, about):
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    order = [5, 4, 3, 1]  # Ada's rows are gone for good
    with reopen(book, about, record_ids=[IDS[row] for row in order]) as again:
        again.submit(["cyd"])
        extra = {**toy[1].extra, "notes": np.zeros((6, 2), np.float32)}
        rebuilt = ju.Data(ju.Examples(ROWS[order], TARGETS[order]), np.ones(4, np.float32), extra)
        np.testing.assert_allclose(kernel(again.apply(unlearn, toy[0], rebuilt, KEY)), retrained(0, 2, 3), rtol=1e-12)


def test_neither_ids_nor_rows_nor_weights_are_in_the_journal(book, toy):
    book.submit(["bob", "eve"])  # no digits of hexadecimal numbers, which are in the journal
    result = book.apply(unlearn, *toy, KEY)
    said = (book.directory / "journal.jsonl").read_bytes()
    for secret in (b"bob", b"eve", SALT, *(repr(float(x)).encode() for x in (*kernel(result), *ROWS.ravel()))):
        assert secret not in said
    assert all(path.stat().st_mode & 0o77 == 0 for path in book.directory.iterdir())


def test_the_salt_is_kept_apart(tmp_path, about):
    with Ledger.create(tmp_path, ["5", 6], **about) as book:
        assert book.submit(["5", np.int64(6)]) == 2
    with Ledger.open(tmp_path, ["5", 6], **about) as book:
        assert book.submit(["5", 6]) == 0
    (tmp_path / "salt").chmod(0o644)
    with pytest.raises(PermissionError, match=r"salt may be read or changed by others \(mode 0644\): chmod 600"):
        Ledger.open(tmp_path, IDS, **about)
    (tmp_path / "salt").chmod(0o600)
    (tmp_path / "salt").write_text("no hexadecimal digits")
    with pytest.raises(LedgerError, match="salt is damaged: restore it from a backup"):
        Ledger.open(tmp_path, ["5", 6], **about)
    os.unlink(tmp_path / "salt")
    with pytest.raises(LedgerError, match="pass the salt"):
        Ledger.open(tmp_path, [5, 6], **about)


# certificates, releases, purge


def test_releases_add_up_and_repeat_the_same_bits(book, toy, about):
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    stale = book.certify(certify, *toy, epsilon=0.5)
    first = book.publish(publish, stale, toy[0])
    book.submit(["bob"])
    book.apply(unlearn, *toy, KEY)
    with pytest.raises(LedgerError, match="not the recorded certificate of application 6"):
        book.publish(publish, stale, toy[0])
    certificate = book.certify(certify, *toy, epsilon=0.25)
    second = book.publish(publish, certificate, toy[0])
    assert (second.number, second.total_epsilon, second.total_delta) == (2, 0.75, 2e-5)
    head = book.head
    with reopen(book, about) as again:
        repeated = again.publish(publish, again.certify(certify, *toy, epsilon=0.25), toy[0])
        assert repeated.sha256 == second.sha256 != first.sha256
        assert again.head == head
        again.purge()
        assert again.publish(publish, certificate, toy[0]).sha256 == second.sha256
    assert np.array_equal(kernel_of(load_release(second.path, toy[0])), kernel_of(repeated.variables))


def test_void_certificates_are_recorded_and_not_released(book, toy):
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    certificate = book.certify(certify, *toy, holds=False)
    with pytest.raises(ValueError, match=r"void, so nothing was released: row norms \(longest row 1\.7\)"):
        book.publish(publish, certificate, toy[0])
    assert book.state.certificate["failed"] == ["row norms"]
    with pytest.raises(LedgerError, match="application 2 was not published"):
        book.purge()


def test_after_a_purge_nothing_on_disk_is_of_a_removed_person(book, toy, about):
    ada, bob = ROWS[0], ROWS[1]
    states = []
    for who in ("ada", "bob"):
        book.submit([who])
        states.append(kernel(book.apply(unlearn, *toy, KEY)))
    found = everything_on_disk(book.directory)
    assert all(secret.tobytes() in found for secret in (ada, bob, *states))
    book.publish(publish, book.certify(certify, *toy), toy[0])
    book.purge()
    found = everything_on_disk(book.directory)
    assert not any(secret.tobytes() in found for secret in (ada, bob, states[0], kernel_of(toy[0])))
    assert states[1].tobytes() in found  # where the next request starts
    with pytest.raises(LedgerError, match="the statistics of application 4 were purged"):
        book.certify(certify, *toy)
    with reopen(book, about) as again:
        again.submit(["cyd"])
        with jax.enable_x64(True):
            fresh = toy[1]._replace(extra={**toy[1].extra, "moments": crashes.moments(ROWS[3:], TARGETS[3:])})
        np.testing.assert_allclose(kernel(again.apply(unlearn, toy[0], fresh, KEY)), retrained(0, 1, 2, 3), rtol=1e-12)
        assert [path.name for path in sorted((book.directory / "checkpoints").iterdir())] == ["000004", "000010"]


def test_a_certified_stream_from_the_optimum_to_the_release(tmp_path):
    rng = np.random.default_rng(0)
    rows = convex.feature_rows(rng.normal(size=(40, 2)))
    data = ju.training_data(rows, (rows[:, 0] > 0).astype(np.int32))
    head = convex.logistic(1e-1)
    variables = convex.fit(head, data)
    ids = [f"person {row // 2}" for row in range(40)]
    about = {"model_fingerprint": ledger.fingerprint(variables), "data_fingerprint": data_fingerprint(data, ids)}
    unlearn = convex.woodbury_removal(head, carry=8)
    prepare, remove = jax.jit(ju.prepare(unlearn)), jax.jit(unlearn)
    declared = {"problem": head, "epsilon": 1.0, "delta": 1e-5, "extractor": "none", "adaptive": False}
    options = {"spend": "quartic_bound", "capacity": 2}
    with Ledger.create(tmp_path, ids, **about) as book:
        for person in (3, 7):
            book.submit([f"person {person}"])
        prepared = prepare(variables, data, KEY)
        book.apply(remove, variables, prepared, KEY, mode="stream", **options)
        assert 0 < book.state.spent_before < book.state.spent
    with Ledger.open(tmp_path, ids, **about) as book:
        book.submit(["person 5"])  # the factorisation comes from the disk, with the stamp of the weights it belongs to
        book.apply(remove, variables, prepared, KEY, **options)
        certificate = book.certify(certificates.certify, variables, prepared, **declared)
        assert certificate.valid
        bound = float(book.result(variables, prepared).stats["distance_bound"])
        release = book.publish(publish, certificate, variables)
        book.purge()
        current, left = book.load(variables, data)
        far = np.linalg.norm(kernel_of(current) - kernel_of(convex.fit(head, left)))
        assert far <= bound <= certificate.sensitivity
        assert far < np.linalg.norm(kernel_of(release.variables) - kernel_of(current)) < 10 * certificate.noise_scale
        book.submit(["person 0"])
        book.apply(remove, variables, prepare(current, left, KEY), KEY, capacity=2)
        _, left = book.load(variables, prepared)
        assert left.present.sum() == 32


def test_what_is_carried_on_keeps_how_it_was_made(book, toy):
    def carrying(variables, data, request, key):
        made = slots.MOMENTS.made(jnp.ones(2), at=variables, data=data, how="features of layer 'first'")
        return ju.Result(variables, jnp.int32(0), {}, {"moments": made})

    def with_moments(layer):
        return slots.MOMENTS.put(toy[1]._replace(extra={}), jnp.zeros(2), at=toy[0], how=f"features of layer {layer!r}")

    book.submit(["ada"])
    book.apply(carrying, toy[0], with_moments("first"), KEY)
    found = slots.MOMENTS.find(book.load(toy[0], with_moments("first"))[1])
    with jax.enable_x64(True):
        same = slots.MOMENTS.made(jnp.ones(2), at=toy[0], data=toy[1], how="features of layer 'first'")
    assert found.how == same.how
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(same), strict=True):
        assert np.array_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"made as \"features of layer 'first'\"; this one was made as .* 'second'"):
        book.load(toy[0], with_moments("second"))
    with pytest.raises(ValueError, match=r"the ledger carries \['moments'\] on"):
        book.load(toy[0], toy[1]._replace(extra={}))


def test_what_was_prepared_at_other_weights_is_not_used(book, toy):
    def reading(variables, data, request, key):
        _, stale = slots.MOMENTS.read(data, at=variables)
        moved = jax.tree.map(lambda x: x + 1, variables)
        return ju.Result(moved, combine(STALE=stale))

    with jax.enable_x64(True):
        prepared = slots.MOMENTS.put(toy[1]._replace(extra={}), jnp.zeros(2), at=toy[0])
        book.submit(["ada"])
        book.submit(["bob"])
        with pytest.raises(ju.UnlearningError, match=r"STALE: .* run jaxunlearn\.prepare"):
            book.apply(reading, toy[0], prepared, KEY, mode="stream")
        assert len(book.state.applications) == 1  # the first batch was right
        current, left = book.load(toy[0], prepared)
        book.apply(reading, toy[0], slots.MOMENTS.put(left, jnp.zeros(2), at=current), KEY)
        assert not book.state.pending


# what is refused, with nothing changed on disk


def test_bad_requests_change_nothing(book, toy):
    for ids, message in [
        (["ada", "zoe"], 'no row has the record ids "zoe"; nothing was submitted'),
        ([], "at least one record id"),
    ]:
        with pytest.raises(ValueError, match=message):
            book.submit(ids)
    for ids in ([1.5], [True], [None], [b"ada"]):
        with pytest.raises(TypeError, match="record ids are strings or integers"):
            book.submit(ids)
    with pytest.raises(LedgerError, match="nothing was applied yet"):
        book.apply(unlearn, *toy, KEY)
    with pytest.raises(TypeError, match=r"write ledger\.apply\(jaxunlearn\.iterate\(unlearner"):
        book.apply(ju.finetune(network(), optax.sgd(0.1)), *toy, KEY)
    book.submit(IDS)
    before = contents(book.directory)
    with pytest.raises(ValueError, match="would remove all 6 present rows; nothing was applied"):
        book.apply(unlearn, *toy, KEY)
    with pytest.raises(ValueError, match="mode must be 'merge' or 'stream'"):
        book.plan("batch")
    assert contents(book.directory) == before


def test_a_callers_check_comes_before_anything_is_applied(book, toy):
    def refuse(data, request):
        raise ValueError(f"{int(request.weights.sum())} rows of {int(data.present.sum())} would go")

    book.submit(["ada"])
    book.submit(["bob"])
    before = contents(book.directory)
    with pytest.raises(ValueError, match="3 rows of 6 would go"):
        book.apply(unlearn, *toy, KEY, mode="stream", check=refuse)
    assert contents(book.directory) == before


def test_another_model_or_data_set_changes_nothing(book, toy, about):
    book.submit(["ada"])
    before = contents(book.directory)
    other = ju.Variables({"kernel": toy[0].params["kernel"][::-1]})
    with pytest.raises(LedgerError, match="record 0 belongs to another model"):
        book.apply(unlearn, other, toy[1], KEY)
    with pytest.raises(LedgerError, match="record 0 belongs to another data set"):
        book.apply(unlearn, toy[0], toy[1]._replace(present=np.array([1, 1, 1, 1, 1, 0])), KEY)
    with pytest.raises(ValueError, match=r"spend must name a statistic of the method \(residual_bound\), got 'bound'"):
        book.apply(unlearn, *toy, KEY, spend="bound")
    with pytest.raises(ValueError, match=r"carries \['moments', 'notes'\]"):
        book.apply(lambda v, d, r, k: unlearn(v, toy[1], r, k), toy[0], toy[1]._replace(extra={}), KEY)
    with pytest.raises(ju.UnlearningError, match="NOT_CONVERGED"):
        book.apply(lambda *a: unlearn(*a)._replace(status=np.int32(ju.Status.NOT_CONVERGED)), *toy, KEY)
    for change, message in [
        ({"model_fingerprint": "another"}, "record 0 of .* belongs to another model"),
        ({"data_fingerprint": "another"}, "record 0 of .* belongs to another data set"),
        ({"salt": b"another salt of 16 bytes"}, "record 0 of .* belongs to another salt"),
        ({"head": "another"}, "record 1 of .* is the last one, but the noted head is missing"),
    ]:
        with pytest.raises(LedgerError, match=message):
            reopen(book, about, **change)
    assert contents(book.directory) == before


def test_one_writer_at_a_time(book, about):
    with pytest.raises(LedgerError, match="takes one writer at a time"):
        Ledger.open(book.directory, IDS, salt=SALT, **about)
    with pytest.raises(LedgerError, match="takes one writer at a time"):
        Ledger.create(book.directory, IDS, salt=SALT, **about)
    book.close()
    with pytest.raises(FileExistsError, match="holds a ledger: open it"):
        Ledger.create(book.directory, IDS, salt=SALT, **about)
    with pytest.raises(LedgerError, match="was closed"):
        book.submit(["ada"])
    with pytest.raises(FileNotFoundError, match="holds no ledger"):
        Ledger.open(book.directory.parent, IDS, salt=SALT, **about)
    reopen(book, about).close()


def forged(line, **changes):
    record = journal.Record(**{**json.loads(line), **changes, "hash": ""})
    return journal.line_of(journal.sealed(record, None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: [lines[0], lines[1].replace(b'"submitted"', b'"submittal"'), *lines[2:]],
            "record 1 .*hash that it carries",
        ),
        (lambda lines: [lines[0], *lines[2:]], "record 1 .* does not follow the record before it"),
        (lambda lines: [lines[0], lines[1], lines[1], lines[2]], "record 2 .* does not follow the record before it"),
        (lambda lines: [lines[0], b"{}\n", *lines[2:]], "record 1 .* has no version"),
        (lambda lines: [lines[0], b"nonsense\n", *lines[2:]], "record 1 .* it is no JSON"),
        (
            lambda lines: [lines[0], forged(lines[1], version=2), *lines[2:]],
            "record 1 .* has version 2, this library reads version 1",
        ),
        (
            lambda lines: [*lines[:2], forged(lines[2], body=json.loads(lines[1])["body"])],
            r"record 2 \(submitted\): it submits an id again",
        ),
        (lambda lines: [*lines[:2], forged(lines[2], kind="wished")], r"record 2 \(wished\) lacks a field"),
        (lambda lines: lines[:0], "the journal is empty"),
    ],
)
def test_tampering_is_found_and_nothing_is_skipped(book, about, change, message):
    book.submit(["ada"])
    book.submit(["bob"])
    book.close()
    path = book.directory / "journal.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    before = contents(book.directory)
    with pytest.raises(LedgerError, match=message):
        reopen(book, about, recover=True)
    assert contents(book.directory) == before


def spoilt(content, draws):
    """Some bytes changed, lost, doubled or moved."""
    first, last = sorted(draws.integers(0, len(content), 2))
    piece, kind = content[first:last], draws.integers(6)
    if kind == 0:
        return content[:first] + bytes([draws.integers(256)]) + content[first + 1 :]
    if kind == 1:
        return content[:first] + content[last:]
    if kind == 2:
        return content[:last] + piece + content[last:]
    if kind == 3:
        return content[last:] + content[:last]
    if kind == 4:
        return content[:first] + b"NaN" + content[first:]
    return content[:first] + bytes(draws.integers(0, 256, 3, np.uint8)) + content[first:]


def test_whatever_happens_to_the_files_is_refused_in_our_words(book, toy, tmp_path):
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    book.publish(publish, book.certify(certify, *toy), toy[0])
    book.close()
    releases, draws = book.directory / "releases", np.random.default_rng(0)
    path, promise = book.directory / "journal.jsonl", releases / "private" / "release-000001.json"
    good, kept = path.read_bytes(), promise.read_bytes()
    for _ in range(400):
        path.write_bytes(spoilt(good, draws))
        try:
            found = journal.read(path)
        except LedgerError:
            continue
        whole = good.startswith(b"".join(map(journal.line_of, found.records)))  # an end that is lost is not noticed
        assert whole, found
    for _ in range(400):
        promise.write_bytes(spoilt(kept, draws))
        if promise.read_bytes() != kept:
            with pytest.raises(ReleaseError, match=r"release-000001\.json (was tampered with|has another version)"):
                intents.read(releases, None)


def test_a_tampered_checkpoint_is_found(book, toy):
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    weights = book.directory / "checkpoints" / "000002" / "weights"
    journal_before = (book.directory / "journal.jsonl").read_bytes()
    archive.remove(weights)
    with jax.enable_x64(True):
        save_variables(weights, {"variables": toy[0], "status": np.int32(0)})
    modes.make_private(weights)
    with pytest.raises(LedgerError, match=r"checkpoint of record 2 \(weights\) was tampered with"):
        book.result(*toy)
    assert (book.directory / "journal.jsonl").read_bytes() == journal_before


def test_a_torn_record_is_told_and_cut_off_only_on_demand(book, about):
    book.submit(["ada"])
    book.close()
    path = book.directory / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"version":1,"number":2')
    before = contents(book.directory)
    with pytest.raises(LedgerError, match=r"record 2 of .* is torn: a crash left 23 bytes of it; open\(\.\.\., recover=True\)"):
        reopen(book, about)
    assert contents(book.directory) == before
    assert "record 2" in ledger.table(book.directory).splitlines()[-1]
    torn = path.read_bytes().splitlines()[-1]
    with reopen(book, about, recover=True) as again:
        assert len(again.state.pending) == 1
    assert [record.kind for record in journal.read(path).records] == ["created", "submitted", "repaired"]
    assert [each.read_bytes() for each in (book.directory / "set-aside").iterdir()] == [torn]


def test_a_failed_write_leaves_the_journal_as_it_was(book, monkeypatch):
    before = contents(book.directory)

    def full(handle):
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            LedgerError, match=r"journal\.jsonl could not be written \(no space left on device\): free some space"
        ):
            book.submit(["ada"])
    assert contents(book.directory) == before
    assert book.submit(["ada"]) == 1


# the command line


def test_show_prints_the_journal_as_a_table(book, toy, capsys):
    book.submit(["ada", "bob"])
    book.apply(unlearn, *toy, KEY, spend="residual_bound")
    book.publish(publish, book.certify(certify, *toy), toy[0], key=KEY)
    assert show.main([str(book.directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[1:6]] == ["created", "submitted", "applied", "certified", "released"]
    assert "2 ids, spent 0.3" in lines[3]
    assert "release 1, together (1, 1e-05), noise from caller" in lines[5]
    assert lines[-1] == "0 ids pending, 2 removed, budget spent 0.3"
    assert show.main([str(book.directory / "nowhere")]) == 1
    assert "there is no journal" in capsys.readouterr().err


# crashes


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    cache = {  # the processes compile the same few programs
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    environment = {**os.environ, **cache, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.crashes", str(tmp_path_factory.mktemp("crashes"))]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("step", list(crashes.STEPS))
def test_killed_at_any_point_a_step_is_finished_as_if_nothing_had_happened(killed, step):
    points = killed[step]
    assert len(points) >= 5
    assert all(point["killed"] and point["as_if_never_killed"] and not point["seeds_left"] for point in points)


def test_a_promised_release_has_the_same_bits_after_any_crash(killed):
    bits = [point["same_bits"] for point in killed["release"] if "same_bits" in point]
    assert len(bits) > 5
    assert all(bits)


def test_records_that_a_crash_tore_are_repaired_on_record(killed):
    for step, count in {"submit": 2, "apply": 2, "release": 2, "purge": 2}.items():
        assert sum(point["repaired"] for point in killed[step]) == count


def test_weights_that_others_may_read_are_refused(book, toy):
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    files = [x for x in (book.directory / "checkpoints" / "000002").rglob("*") if x.is_file()]
    assert not [x for x in files if x.stat().st_mode & 0o077]
    files[0].chmod(0o640)
    with pytest.raises(PermissionError, match="chmod 600"):
        book.result(*toy)
