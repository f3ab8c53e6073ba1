"""What threads, forks, alarms and kills do to a ledger, each in processes of their own that never start JAX's devices.

`python -m tests.service.endurance NAME DIRECTORY [COUNT]` prints one line of JSON.
"""

import gc
import json
import os
import random
import select
import signal
import sys
import threading
import time
from pathlib import Path

from jaxunlearn.service import journal
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.fingerprints import keyed, names_of
from jaxunlearn.service.ledger import Ledger

SALT = b"sixteen bytes and more"
IDS = [f"person {row}" for row in range(20_000)]
ABOUT = {"salt": SALT, "model_fingerprint": "a model", "data_fingerprint": "its data"}


class Alarm(Exception):
    pass


def lost(book, acknowledged):
    """Acknowledged ids that the ledger does not know."""
    pending = set(book.state.pending)
    return [name for name in acknowledged if keyed(SALT, names_of([name])[0]) not in pending]


def threads(directory, count):
    """`count` threads on one ledger, each with ids of its own and some that all submit."""
    acknowledged, errors = [], []

    def work(number):
        try:
            for each in range(8):
                mine = IDS[100 + number * 8 + each]
                book.submit([mine, IDS[each]])
                acknowledged.append(mine)
        except Exception as error:
            errors.append(repr(error))

    with Ledger.create(directory, IDS, **ABOUT) as book:
        sys.setswitchinterval(1e-5)
        workers = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    with Ledger.open(directory, IDS, **ABOUT) as book:
        return {"errors": errors, "acknowledged": len(acknowledged), "lost": lost(book, acknowledged)}


def fork(directory, count):
    """A fork may not write, closes nothing of its parent, and does not keep the lock of a parent that is gone."""
    said = []
    book = Ledger.create(directory, IDS, **ABOUT)
    book.submit([IDS[0]])
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reader)
        for call in (lambda: book.submit([IDS[1]]), lambda: book.plan(), book.purge):
            try:
                call()
                said.append("")
            except LedgerError as error:
                said.append(str(error))
        book.close()
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    said = json.loads(os.read(reader, 65536))
    os.waitpid(child, 0)
    book.submit([IDS[2]])
    if (lingering := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    book.close()
    with Ledger.open(directory, IDS, **ABOUT) as again:
        missing = lost(again, [IDS[0], IDS[2]])
    if (owner := os.fork()) == 0:  # opens it, leaves a child behind and is killed
        again = Ledger.open(directory, IDS, **ABOUT)
        if (orphan := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        (directory / "orphan").write_text(str(orphan))
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(owner, 0)
    orphan = int((directory / "orphan").read_text())
    Ledger.open(directory, IDS, **ABOUT).close()
    for each in (lingering, orphan):
        os.kill(each, signal.SIGKILL)
    os.waitpid(lingering, 0)
    return {"said": said, "lost": missing, "dropped": dropped(directory)}


def dropped(directory):
    """Whether a ledger that nobody closed gives its lock back."""
    book = Ledger.open(directory, IDS, **ABOUT)
    book.submit([IDS[3]])
    del book
    gc.collect()
    Ledger.open(directory, IDS, **ABOUT).close()
    return True


def alarms(directory, count):
    """Exceptions at random times of `count` submissions, which the caller survives and then goes on."""
    draws, acknowledged, interrupted = random.Random(0), [], 0

    def ring(*_):
        raise Alarm

    signal.signal(signal.SIGALRM, ring)
    book = Ledger.create(directory, IDS, **ABOUT)
    started = time.perf_counter()
    book.submit([IDS[10_000]])
    acknowledged.append(IDS[10_000])
    until = time.perf_counter() - started
    for name in IDS[:count]:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(draws.uniform(0, 1.5) * until, 1e-6))
            book.submit([name])
            signal.setitimer(signal.ITIMER_REAL, 0)
            acknowledged.append(name)
            until *= 0.9  # however busy the machine is, about half of them ring in time
        except Alarm:
            interrupted += 1
            until *= 1.1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    other = threading.Thread(target=book.submit, args=([IDS[-1]],))  # no lock was left behind
    other.start()
    other.join(10)
    stuck = other.is_alive()
    book.close()
    with Ledger.open(directory, IDS, **ABOUT) as book:
        missing = lost(book, [*acknowledged, IDS[-1]])
    return {"interrupted": interrupted, "acknowledged": len(acknowledged), "lost": missing, "stuck": stuck}


def kills(directory, count):
    """SIGKILL at random times of a process that submits and says what was acknowledged."""
    draws, acknowledged, torn = random.Random(0), [], 0
    Ledger.create(directory, IDS, **ABOUT).close()
    for _ in range(count):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reader)
            book = Ledger.open(directory, IDS, recover=True, **ABOUT)
            for number in range(len(acknowledged), len(IDS)):
                book.submit([IDS[number]])
                os.write(writer, f"{number}\n".encode())
            os._exit(1)
        os.close(writer)
        select.select([reader], [], [], 30)
        time.sleep(draws.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            said = pipe.read().split("\n")[:-1]
        acknowledged += [IDS[int(number)] for number in said]
        torn += bool(journal.read(directory / "journal.jsonl").torn)
    with Ledger.open(directory, IDS, recover=True, **ABOUT) as book:
        return {"acknowledged": len(acknowledged), "lost": lost(book, acknowledged), "torn": torn}


if __name__ == "__main__":
    work = {"threads": threads, "fork": fork, "alarms": alarms, "kills": kills}[sys.argv[1]]
    print(json.dumps(work(Path(sys.argv[2]), int(sys.argv[3]))))
