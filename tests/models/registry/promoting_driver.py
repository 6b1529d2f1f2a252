"""`promoting_driver.py URI MODEL [MARKER N]`: promotes and rolls back what its standard input says, a line each.

`promote VERSION`, `rollback`, or `begin`, which registers a version first; it answers each with a line of JSON, and
says `ready` before the first. With a marker its process group stops at the N-th line of the registry's log that has it,
so that whoever waits acts at that very line.
"""

import json
import logging
import os
import sys

from models.errors import TactfulError
from models.registry import Registry
from models.registry.promotions import State
from tests.models.registry.registries import bare_version
from tests.pausing import Pause


def act(registry: Registry, what: str, *version: str) -> State:
    if what == "begin":
        return registry.begin(bare_version(registry, f"policy of {os.getpid()}"))
    return registry.promote(*version, challenger=True) if what == "promote" else registry.rollback()


def main() -> None:
    registry = Registry(sys.argv[1], sys.argv[2])
    if len(sys.argv) > 3:
        log = logging.getLogger("tactful.registry")
        log.setLevel(logging.INFO)
        log.addHandler(Pause(sys.argv[3], int(sys.argv[4])))
    print("ready", flush=True)
    for line in sys.stdin:
        what, *rest = line.split()
        try:
            print(json.dumps(act(registry, what, *rest).aliases()), flush=True)
        except TactfulError as error:
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}), flush=True)


main()
