"""What the three DAGs share: a `tactful` command whose exit code becomes the task's state, parameters, assets.

| exit code                                | state    | why |
|------------------------------------------|----------|-----|
| 0                                        | success  | |
| 1, 75, or killed by a signal or time-out | retried  | unexpected or transient: the same command may succeed later |
| 75 of `ready`                            | waits    | the raw days have not arrived; until the sensor's timeout |
| 4, 5 of `promote`                        | skipped  | the gate did its work and promoted nothing |
| anything else                            | failed   | configuration, input or data: trying again changes nothing |

Read from the worker's environment when the task runs: `TACTFUL`, the command (default `tactful`; several words make a
prefix, as `/path/to/python -m pipelines.cli`), and `TACTFUL_HOME`, the folder to run it in (default the worker's own).
Read where the DAGs are parsed: `TACTFUL_CONFIG`, the default of the parameter `config`, and `TACTFUL_POOL`, the pool of
every task that computes (default `default_pool`).
"""

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import Asset, BaseOperator, BaseSensorOperator, Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

TRANSIENT = 75
MEANING = {
    1: "unexpected error",
    2: "the configuration or the input cannot be used",
    3: "the data broke a critical expectation",
    4: "refused by the gate",
    5: "inconclusive: the log cannot settle it",
    TRANSIENT: "transient: somebody else was faster, or something is not there yet",
}
RETRIED = frozenset({1, TRANSIENT})
NOT_PROMOTED = frozenset({4, 5})

TRANSITIONS = Asset(name="tactful_transitions", uri="tactful://transitions")
"""The transitions table; changed when a day was taken in, and not when a backfill made one anew."""
CHAMPION = Asset(name="tactful_champion", uri="tactful://champion")
"""The registry's champion; changed by every `promote` that promoted."""
SCORES = Asset(name="tactful_scores", uri="tactful://scores")
"""Tonight's decisions, for the DAG that sends them."""

POOL = os.environ.get("TACTFUL_POOL", "default_pool")
CONFIG = Param(
    os.environ.get("TACTFUL_CONFIG", "tactful.toml"),
    type="string",
    minLength=1,
    description="The TOML file; a relative path is taken from TACTFUL_HOME.",
)
"""The parameter `config` of every DAG."""


def ended(step: str, code: int) -> str:
    """How a command ended, in words."""
    meaning = f"killed by signal {-code}" if code < 0 else MEANING.get(code, "not a code of tactful")
    return f"`tactful {step}` ended with exit code {code} ({meaning}); the reasons are in the lines above"


class Command:
    """Mixed into an operator: runs `tactful STEP CONFIG [ARGUMENT ...] [--set key=value ...]`.

    step: the command's name; config: path of the TOML file; arguments: further words; overrides: dotted key -> TOML
    value. All but the first are templates.
    """

    template_fields = ("config", "arguments", "overrides")
    ui_color = "#e8f1ec"

    def __init__(
        self,
        *,
        step: str,
        config: str = "{{ params.config }}",
        arguments: Sequence[str] = (),
        overrides: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.step = step
        self.config = config
        self.arguments = list(arguments)
        self.overrides = dict(overrides or {})

    @cached_property
    def subprocess(self) -> SubprocessHook:
        """Starts the command in a process group of its own and passes its output to the task's log, line by line."""
        return SubprocessHook()

    def run(self) -> int:
        """The command's exit code. Raises AirflowFailException where it could not be started."""
        sets = (word for key, value in self.overrides.items() for word in ("--set", f"{key}={value}"))
        prefix = shlex.split(os.environ.get("TACTFUL", "tactful"))
        command = [*prefix, self.step, self.config, *self.arguments, *sets]
        folder = os.environ.get("TACTFUL_HOME") or os.getcwd()
        try:
            return self.subprocess.run_command(command, cwd=folder).exit_code
        except OSError as error:  # nothing was started: no such command, no such folder, no right to run it
            raise AirflowFailException(
                f"{shlex.join(command)} could not be started in {folder}: {error}. Name the command in the worker's "
                "environment with TACTFUL and the folder with TACTFUL_HOME."
            ) from error

    def check(self, code: int) -> None:
        """Raise AirflowException where a retry may help, AirflowFailException where it cannot."""
        if code in RETRIED or code < 0:
            raise AirflowException(f"{ended(self.step, code)}. Tried again as long as tries are left.")
        if code != 0:
            raise AirflowFailException(
                f"{ended(self.step, code)}. Not tried again: the same command would end the same way."
            )

    def on_kill(self) -> None:
        """End the command and what it started (Spark) when the task is cleared, marked or out of time."""
        if self.subprocess.sub_process is not None and self.subprocess.sub_process.poll() is None:
            self.subprocess.send_sigterm()


class TactfulOperator(Command, BaseOperator):
    """Run one command to its end; skipped_on: exit codes that end the task as skipped."""

    template_fields = Command.template_fields

    def __init__(self, *, skipped_on: Collection[int] = (), **kwargs: Any) -> None:
        super().__init__(**{"pool": POOL, **kwargs})
        self.skipped_on = sorted(skipped_on)

    def execute(self, context: Any) -> None:
        code = self.run()
        if code in self.skipped_on:
            raise AirflowSkipException(f"{ended(self.step, code)}.")
        self.check(code)


class TactfulSensor(Command, BaseSensorOperator):
    """Run one command again and again until it ends with 0; 75 means not yet, and between two looks no slot is held."""

    template_fields = Command.template_fields
    ui_color = "#e6f1f2"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(mode="reschedule", **kwargs)

    def poke(self, context: Any) -> bool:
        code = self.run()
        if code == TRANSIENT:
            return False
        self.check(code)
        return True
