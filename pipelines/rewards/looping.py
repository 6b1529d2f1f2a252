"""`tactful rewards loop`: pairs, answers, a reward, a policy, its evaluation, and new pairs from the policy's weeks.

What is kept in RUN_DIR/rewards/NAME/:

| file                   | what |
|------------------------|------|
| loop.json              | how the loop was begun, and of every round what is done |
| answers/round-001.jsonl| answers of a round; of several raters round-001-ann.jsonl, ... |
| round-001.html         | the page of a round, where a person answers |
| rounds/001/            | the policy of a round, in a simulated world |

Every stage is a function of the configuration, the seed and what earlier stages left. A loop that was killed does the
stage again that it was in, and goes on.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.rewards.store import check_name
from pipelines.config import Config
from pipelines.jobs.steps import console, write_json
from pipelines.rewards.watching import objective

STATE = "loop.json"
Stage = Callable[[], dict[str, Any]]


class AnswersNeeded(InputError):
    """A person has to answer before the loop goes on."""


@dataclass
class Loop:
    """The state of a loop, on disk after every stage."""

    folder: Path
    begun: dict[str, Any]
    rounds: list[dict[str, Any]]

    @classmethod
    def of(cls, config: Config, name: str, pairs: int) -> "Loop":
        """As `loop.json` left it, or new. Raises InputError where it was begun otherwise."""
        folder = config.rewards_path / name
        begun = {"pairs": pairs, "form": config.learned.loop.form, "simulated": simulated(config), "seed": config.seed}
        path = folder / STATE
        if not path.exists():
            return cls(folder, begun, [])
        try:
            told = json.loads(path.read_text())
            there, rounds = told["begun"], told["rounds"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: no state of a loop ({error!r}); move it away to begin anew.") from None
        other = [key for key, value in begun.items() if there.get(key) != value]
        if other:
            raise InputError(
                f"{path}: the loop was begun with {other[0]} = {there.get(other[0])}, now it is {begun[other[0]]}; "
                "go on as it was begun, or choose another name."
            )
        return cls(folder, begun, rounds)

    def round(self, number: int) -> dict[str, Any]:
        """What is known of a round, counted from 1."""
        while len(self.rounds) < number:
            self.rounds.append({"round": len(self.rounds) + 1})
        return self.rounds[number - 1]

    def stage(self, number: int, stage: str, work: Stage) -> dict[str, Any]:
        """What `work` gives as the `stage` of a round: done once, kept, and read where it was done before."""
        known = self.round(number)
        if stage not in known:
            console.print(f"[dim]round {number}: {stage}[/]", highlight=False)
            known[stage] = work()
            self.save()
        found: dict[str, Any] = known[stage]
        return found

    def save(self) -> None:
        write_json(self.folder / STATE, {"begun": self.begun, "rounds": self.rounds})

    def answers(self, number: int) -> list[Path]:
        """Files with the answers of one round."""
        return sorted((self.folder / "answers").glob(f"round-{number:03d}*.jsonl"))

    def answered(self, last: int) -> list[Path]:
        """Files with the answers of rounds 1 .. last."""
        return [path for number in range(1, last + 1) for path in self.answers(number)]

    def place(self, number: int) -> Path:
        """Where the policy of a round lies."""
        return self.folder / "rounds" / f"{number:03d}"


def simulated(config: Config) -> bool:
    """Whether a simulated rater answers: [learned.loop] has its hidden utility."""
    return bool(config.learned.loop.rater)


def run_loop(config: Config, name: str, rounds: int, pairs: int, config_path: Path) -> list[dict[str, Any]]:
    """Go through `rounds` rounds of `pairs` new pairs each, from where an earlier call left off; what each found.

    Raises AnswersNeeded (exit code 2) with what to do next where a person has to answer, and InputError where the
    configuration cannot be looped.
    """
    for what, number in (("--rounds", rounds), ("--pairs", pairs)):
        if number < 1:
            raise InputError(f"{what} is {number}; it must be 1 or more.")
    check_name(name)
    _check(config, name)
    loop = Loop.of(config, name, pairs)
    if simulated(config):
        from pipelines.rewards.loop_simulated import Simulated

        world = Simulated(config, name, loop)
        for number in range(1, rounds + 1):
            world.round(number)
    else:
        from pipelines.rewards.loop_asked import round_of

        for number in range(1, rounds + 1):
            round_of(config, name, loop, number, config_path)
    return loop.rounds


def _check(config: Config, name: str) -> None:
    """Raise InputError where a round could not be gone through."""
    settings, train = config.learned.loop, config.train
    if train is None:
        raise InputError("rewards loop: the configuration has no [train]; a round trains a policy on the reward.")
    if settings.rater:
        if config.simulate is None:
            raise InputError(
                "learned.loop.rater: a simulated rater needs a simulated world ([simulate]); remove it, and a person "
                "answers."
            )
        for component in settings.rater:
            if component not in config.logged_contract.rewards:
                raise InputError(
                    f"learned.loop.rater: {component!r} is no component of the log "
                    f"({', '.join(config.logged_contract.rewards)})."
                )
    elif name not in objective(config):
        raise InputError(
            f"rewards loop {name}: the policy would not be trained on it; set train.weights_from = {name!r}, or add "
            f"'learned:{name}' to rewards and give {name} a weight in train.weights (or in those of "
            f"train.learners.{config.gate.candidate}, where it has its own)."
        )
    elif name in config.learned.versions:
        raise InputError(
            f"learned.versions.{name} pins version {config.learned.versions[name]}, but every round of the loop learns "
            "a new one and trains on it; remove the pin."
        )
