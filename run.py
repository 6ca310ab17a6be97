#!/usr/bin/env python3
"""Runs Crucible without a WebUI: sets up `.venv` on first use, then hands over to it.

    python run.py              the standalone WebUI in the browser
    python run.py test         the test suite
    python run.py --help       everything else

This file needs nothing but Python 3.10, 3.11 or 3.12 with pip.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OLDEST, NEWEST = (3, 10), (3, 12)
ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("CRUCIBLE_VENV") or ROOT / ".venv").absolute()
STAMP = VENV / "crucible-ready.json"
MAIN, DEV = ROOT / "requirements.txt", ROOT / "requirements-dev.txt"
FIRST = ("torch", "setuptools")
STARTED = time.time()


class SetupError(Exception):
    """Set-up cannot go on: one sentence on what failed and what to do."""


def say(text):
    """Tells the person a step; on stderr, so that a command's own output stays clean."""
    print(text, file=sys.stderr, flush=True)


def venv_python():
    """The interpreter inside the virtual environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint(*files):
    """A hash of requirement files and of the Python line they were installed for."""
    digest = hashlib.sha256(f"{sys.version_info[0]}.{sys.version_info[1]}".encode())
    for path in files:
        # Line ends do not count: git may change them on Windows.
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def read_stamp():
    """What has been installed so far: {"main": fingerprint, "dev": fingerprint}, or {}."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(stamp):
    """Records a finished step; a new name and a rename, so that it is whole or absent."""
    fresh = STAMP.with_name(f"{STAMP.name}.{os.getpid()}.new")
    fresh.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(fresh, STAMP)


def wanted_stamp(with_dev):
    """The stamp of a finished set-up."""
    wanted = {"main": fingerprint(MAIN)}
    if with_dev:
        wanted["dev"] = fingerprint(MAIN, DEV)
    return wanted


def is_ready(with_dev):
    """True if nothing has to be installed; reads three small files, touches no network."""
    stamp = read_stamp()
    wanted = wanted_stamp(with_dev)
    return venv_python().is_file() and all(stamp.get(k) == v for k, v in wanted.items())


@contextlib.contextmanager
def only_one_setup():
    """Lets one process set up at a time; a second one waits here until the first is done."""
    key = hashlib.sha256(str(VENV).encode()).hexdigest()[:16]
    user = os.getuid() if hasattr(os, "getuid") else "user"
    path = Path(tempfile.gettempdir()) / f"crucible-setup-{user}-{key}.lock"
    with path.open("a+b") as lock:
        if sys.platform == "win32":
            import msvcrt

            lock.seek(0)
            while True:
                try:
                    msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(1)
        else:
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Another start is setting up; waiting for it to finish …")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def clean_environment():
    """The environment for pip: without a foreign PYTHONPATH, which would hide what is missing."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    env["PIP_NO_INPUT"] = "1"
    return env


def attempt(command, **options):
    """Runs a command; returns its exit status, 1 if it could not even start."""
    try:
        return subprocess.run(command, env=clean_environment(), **options).returncode
    except OSError:
        return 1


def attempt_briefly(command):
    """Runs pip; of its many lines only downloads and installing are passed on, and errors."""
    try:
        with subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE) as process:
            for line in process.stdout or ():
                words = line.decode("utf-8", "replace").split()
                if words[:1] == ["Downloading"]:
                    say(f"      {words[1].rsplit('/', 1)[-1]} {' '.join(words[2:])}")
                elif words[:1] == ["Installing"]:
                    say("      installing …")
            return process.wait()
    except OSError:
        return 1


def venv_works():
    """True if the environment's Python starts, has pip, and is the version it is run with."""
    code = f"import sys, pip; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])!r})"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return venv_python().is_file() and attempt([str(venv_python()), "-c", code], **quiet) == 0


def make_venv():
    """Makes the virtual environment, or makes it again if an interrupted start left half of one.

    Raises: SetupError if Python's own venv module cannot do it.
    """
    if VENV.exists():
        if not (VENV / "pyvenv.cfg").is_file() and any(VENV.iterdir()):
            raise SetupError(f"{VENV} is not a Python environment: move it away, then start again.")
        say("      the one that is there is unfinished or for another Python; starting afresh")
        shutil.rmtree(VENV, ignore_errors=True)
    if attempt([sys.executable, "-m", "venv", str(VENV)], stdout=sys.stderr) != 0:
        raise SetupError(
            f"{sys.executable} could not make {VENV}. On Debian or Ubuntu run "
            f"'sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv' first; "
            "otherwise look for a full disk or missing write permission."
        )


def pip_install(what, *arguments, brief=False):
    """Runs pip with its own progress on stderr; `brief` leaves only what it downloads and does.

    Raises: SetupError naming the step, with what to do.
    """
    command = [str(venv_python()), "-m", "pip", "install", *arguments]
    if (attempt_briefly(command) if brief else attempt(command, stdout=sys.stderr)) != 0:
        raise SetupError(
            f"Installing {what} failed; pip's reason stands above. "
            "Check the network and the free disk space (about 6 GB), then run the same command "
            "again: it goes on where it stopped."
        )


def first_pins():
    """The lines of requirements.txt that are installed before all others."""
    lines = MAIN.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.split("==")[0].strip().lower() in FIRST]


def set_up(with_dev):
    """Brings the environment to what the requirement files say, step by step.

    Each finished step is recorded, so an interrupted set-up goes on from there.
    """
    wanted, stamp = wanted_stamp(with_dev), {}
    steps = 4 if with_dev else 3
    started = time.monotonic()
    say("Setting up Crucible (only now; later starts skip this):")
    say(f"[1/{steps}] Python environment in {VENV}")
    if venv_works():
        stamp = read_stamp()
    else:
        make_venv()
    if stamp.get("main") != wanted["main"]:
        say(f"[2/{steps}] PyTorch, the largest part: this can take several minutes")
        # The constraint keeps pip from ever trading these two for other versions.
        pip_install("PyTorch", *first_pins(), "--constraint", str(MAIN))
        say(f"[3/{steps}] The other libraries (about 70)")
        pip_install("the libraries", "-r", str(MAIN), brief=True)
        stamp = {"main": wanted["main"]}
        write_stamp(stamp)
    if with_dev and stamp.get("dev") != wanted["dev"]:
        say(f"[4/{steps}] What the tests need")
        pip_install("the test libraries", "-r", str(DEV), "-c", str(MAIN), brief=True)
        write_stamp({**stamp, "dev": wanted["dev"]})
    say(f"Set up in {time.monotonic() - started:.0f} s.")


def hand_over(arguments):
    """Runs the command line inside the environment and returns its exit status."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    # Set here already, so that no library can look for a newer version while it loads.
    env.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    env.setdefault("PYTHONUTF8", "1")
    env["CRUCIBLE_STARTED"] = repr(STARTED)
    command = [str(venv_python()), "-m", "extensions_lib.cli", *arguments]
    if os.name != "nt":
        os.execve(command[0], command, env)
    # Windows has no exec: Ctrl+C reaches the child by itself, so it is only outlived here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.run(command, env=env).returncode


def main(arguments):
    """Checks Python, sets up if needed, then runs the command.

    Returns: exit status; 1 with a one-line reason if set-up is impossible.
    """
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        found = ".".join(map(str, sys.version_info[:3]))
        say(f"Crucible needs Python 3.10, 3.11 or 3.12, and this is {found}: start it with one.")
        return 1
    asks = {"-h", "--help"} & set(arguments)
    with_dev = arguments[:1] in (["test"], ["build-tagger"]) and not asks
    try:
        if not is_ready(with_dev):
            with only_one_setup():
                if not is_ready(with_dev):
                    set_up(with_dev)
    except SetupError as problem:
        say(f"crucible: {problem}")
        return 1
    except OSError as problem:
        say(f"crucible: set-up failed: {problem}. Put it right, then run the same command again.")
        return 1
    except KeyboardInterrupt:
        say("\nStopped. The next start goes on from here.")
        return 130
    return hand_over(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
