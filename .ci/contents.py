"""What an sdist and a wheel hold: all that is in the repository and belongs there, and nothing else.

python .ci/contents.py DIST.tar.gz DIST.whl
"""

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes

APART = (".ci/", ".github/workflows/")  # of the repository, and of no release
MADE = ("PKG-INFO",)  # by the build


def main(sdist: str, wheel: str) -> None:
    """Exit with what is wrong."""
    tracked = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.splitlines()
    wanted = {name for name in tracked if not name.startswith(APART)}
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()} - set(MADE)
    compare(sdist, held, wanted)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (about,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(about))
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    compare(wheel, names, {name for name in tracked if name.startswith("jaxunlearn/")})
    if not licences:
        sys.exit(f"{wheel} holds no licence")
    text = str(metadata.get_payload())
    if "](experiments/" in text or "](ARCHITECTURE" in text:
        sys.exit("the description has links to files of the repository, which the package index does not have")
    print(f"{len(held)} files in the sdist, {len(names)} in the wheel, version {metadata['Version']}")


def compare(path: str, held: set[str], wanted: set[str]) -> None:
    """Exit if files are missing, or nobody wants them there."""
    for words, names in (("lacks", wanted - held), ("holds what does not belong there:", held - wanted)):
        if names:
            sys.exit(f"{path} {words} {', '.join(sorted(names)[:20])}")


if __name__ == "__main__":
    main(*sys.argv[1:])
