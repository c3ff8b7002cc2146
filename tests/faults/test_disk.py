"""A disk that is full, read-only or gone, a share that vanishes, a file system without locks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from boundaries import Ended, run
from commands import Command
from image_files import files, write_folder, write_zip
from messages import assert_names, raises_naming

from autoencoder.images import Preprocessing, open_source, read_pixels
from autoencoder.sources.decoding import UnreadableImage
from latentddm.engine import locks
from latentddm.engine.atomic_io import TEMPORARY_SUFFIX
from latentddm.engine.distributed import exclusive, start_processes
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.run import RunFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of the Linux kernel")
MOMENTS = {"the second file gets its name": "os.rename", "the second file is written": "open"}
VERBS = ("encode", "train", "train-autoencoder", "decode", "sample", "export", "distill")
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000  # CLONE_NEWUSER, CLONE_NEWNS
DETACH = 2  # MNT_DETACH
LIBRARY = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> None:
    """Let this process mount what no other process sees; OSError where that is not allowed."""
    user, group = os.getuid(), os.getgid()
    if LIBRARY.unshare(NEW_USER | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def mount(folder: Path, size: str, flags: int = 0) -> None:
    """A file system of `size` at a folder; with the flag REMOUNT another size for it."""
    if LIBRARY.mount(b"none", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def move(folder: Path, target: Path) -> None:
    """Move a mounted file system: its folder is empty then, as when a share is gone."""
    if LIBRARY.mount(os.fsencode(folder), os.fsencode(target), None, MOVE, None):
        raise OSError(ctypes.get_errno(), "mount --move")


REMOUNT, MOVE = 32, 8192  # MS_REMOUNT, MS_MOVE


def can_mount() -> bool:
    child = os.fork()
    if child == 0:
        try:
            own_mounts()
            mount(Path("/tmp"), "64k")
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_files_that_may_not_grow_end_the_command_and_nothing_is_half_written(
    commands: dict[str, Command], tmp_path: Path
) -> None:
    """Every writer, also those of other libraries, meets the kernel's limit of a file's size."""
    command = commands["sample"]
    command.clean()

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        return command()

    ended, _ = run(limited, command.root, tmp_path / "log", record=False)
    _one_sentence(ended, "Writing", ".safetensors", "File too large")
    assert not [name for name in command.written() if ".partial" in name]
    assert run(command, command.root, tmp_path / "log")[0].code == 0


def written_on_a_sound_disk(command: Command, tmp_path: Path) -> dict[str, str]:
    """The files of an undisturbed command, by name; skips where nothing may be mounted."""
    if not can_mount():
        pytest.skip("a file system may not be mounted here")
    command.clean()
    assert run(command, command.root, tmp_path / "log")[0].code == 0
    return command.written()


def _one_sentence(ended: Ended, *named: str) -> None:
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    assert not ended.leftovers
    (sentence,) = ended.sentences
    assert_names(sentence, *named)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_ends_the_command_which_finishes_once_there_is_space(
    verb: str, commands: dict[str, Command], tmp_path: Path
) -> None:
    command, disk = commands[verb], commands[verb].output.parent
    expected = written_on_a_sound_disk(command, tmp_path)
    total = sum(path.stat().st_size for path in command.output.rglob("*") if path.is_file())
    command.clean()

    def on_full_disk() -> int:
        own_mounts()
        mount(disk, f"{max(total // 3, 4096)}")
        code = command()
        left = [path.name for path in disk.rglob("*.partial")]
        mount(disk, "64m", REMOUNT)
        again = command()
        same = command.written() == expected
        print(f"codes {code} {again}, left {left}, same {same}")
        return code

    ended, _ = run(on_full_disk, command.root, tmp_path / "log")
    _one_sentence(ended, "disk is full")
    assert "codes 1 0, left [], same True" in ended.output


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("verb", VERBS)
def test_an_output_disk_that_vanishes_ends_the_command_which_finishes_once_it_is_back(
    verb: str, moment: str, commands: dict[str, Command], tmp_path: Path
) -> None:
    command, disk = commands[verb], commands[verb].output.parent
    expected = written_on_a_sound_disk(command, tmp_path)
    command.clean()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def on_a_disk_that_vanishes() -> int:
        own_mounts()
        mount(disk, "64m")
        named: list[str] = []
        vanished: list[str] = []

        def vanish(event: str, arguments: tuple) -> None:
            path = str(arguments[0]) if event in MOMENTS.values() else ""
            if vanished or not path.startswith(str(disk)) or TEMPORARY_SUFFIX not in path:
                return
            if named and event == MOMENTS[moment]:
                vanished.append(path)
                move(disk, elsewhere)
            elif event == "os.rename":
                named.append(path)

        sys.addaudithook(vanish)
        code = command()
        left = [path.name for path in disk.rglob("*") if path.is_file()]
        move(elsewhere, disk)
        again = command()
        same = command.written() == expected
        print(f"codes {code} {again}, left {left}, same {same}, before {vanished}")
        return code

    ended, _ = run(on_a_disk_that_vanishes, command.root, tmp_path / "log")
    print(ended.output)
    _one_sentence(ended, str(disk))
    assert "codes 1 0, left [], same True" in ended.output


def test_a_share_that_vanishes_ends_the_encoding_and_no_image_counts_as_unreadable(
    commands: dict[str, Command], tmp_path: Path
) -> None:
    if not can_mount():
        pytest.skip("a file system may not be mounted here")
    command, images = commands["encode"], commands["encode"].root / "images"
    command.clean()
    share = command.root / "share"
    share.mkdir()
    from_share = replace(
        command,
        arguments=tuple(str(share) if part == str(images) else part for part in command.arguments),
    )

    def on_a_share() -> int:
        own_mounts()
        mount(share, "16m")
        write_folder(share, {path.name: path.read_bytes() for path in images.iterdir()})
        opened = []

        def unmount(event: str, arguments: tuple) -> None:
            if event == "open" and str(arguments[0]).startswith(str(share)):
                opened.append(arguments[0])
                if len(opened) == 4:
                    LIBRARY.umount2(os.fsencode(share), DETACH)

        sys.addaudithook(unmount)
        return from_share()

    ended, _ = run(on_a_share, command.root, tmp_path / "log")
    _one_sentence(ended, str(share), "the mount")
    assert not (command.output / "manifest.json").exists()
    assert run(command, command.root, tmp_path / "log")[0].code == 0  # the same images elsewhere


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE])
def test_an_error_of_the_disk_is_not_damage_of_an_image(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(write_folder(tmp_path / "images", files(("a.png", "b.png"))))

    def fail(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with raises_naming(JobError, "a.png", os.strerror(number), "run again"):
        read_pixels(source, Preprocessing(size=8))


def test_an_error_of_the_disk_below_a_zip_is_not_damage_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    path = write_zip(tmp_path / "images.zip", files(("a.png",)))
    source = open_source(path)

    def fail(*arguments: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(zipfile.ZipFile, "read", fail)
    with raises_naming(JobError, "images.zip", "Input/output error", "check the disk"):
        source.load(0)


def test_a_file_that_may_not_be_read_is_one_unreadable_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "images", files(("a.png", "b.png")))
    (folder / "c.png").symlink_to("nowhere.png")
    source = open_source(folder)
    with pytest.raises(UnreadableImage, match=r"c\.png: cannot be read: No such file"):
        source.load(2)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_run_on_a_file_system_without_locks_goes_on_with_a_warning(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    run_folder = RunFolder(tmp_path)
    monkeypatch.setattr(fcntl, "flock", _failing(number))
    with exclusive(run_folder, start_processes()):
        pass
    if number != errno.ENOSYS:  # filelock has a lock of its own for that one
        assert_names(caplog.text.strip(), str(tmp_path), "no locks", "second command")


def _failing(number: int) -> Callable[..., None]:
    def flock(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def test_a_cache_on_a_file_system_without_locks_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", _failing(errno.ENOLCK))
    with locks.locked(tmp_path / "file.lock"):
        assert_names(caplog.text.strip(), str(tmp_path), "no locks")


def test_a_lock_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", _failing(errno.EIO))
    with (
        raises_naming(JobError, ".lock", "check the disk"),
        exclusive(RunFolder(tmp_path), start_processes()),
    ):
        pass


def test_a_run_that_another_process_trains_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentddm.engine.distributed.LOCK_TIMEOUT", 0.05)
    holder = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with (
            raises_naming(UserError, str(tmp_path), "another output"),
            exclusive(RunFolder(tmp_path), start_processes()),
        ):
            pass
        assert process.stdin is not None
        process.stdin.close()
