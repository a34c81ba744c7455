"""Modules import on systems that lack parts of POSIX."""

import subprocess
import sys

WINDOWS = """
import importlib, os, pkgutil, signal, sys


def import_all():
    import drgrade

    for module in pkgutil.walk_packages(drgrade.__path__, "drgrade."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if error.name not in ("ray", "submitit", "hydra_plugins.hydra_submitit_launcher"):
                raise


import_all()  # third-party packages, which have guards of their own
for name in [name for name in sys.modules if name.split(".")[0] == "drgrade"]:
    del sys.modules[name]
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("register_at_fork", "fork", "getuid", "geteuid", "killpg", "setsid", "sched_getaffinity"):
    delattr(os, name)
for name in ("HUP", "KILL", "PROF", "XCPU", "ALRM", "USR1", "USR2"):
    delattr(signal, f"SIG{name}")
import_all()
"""


def test_every_module_is_imported_without_posix():
    done = subprocess.run([sys.executable, "-c", WINDOWS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
