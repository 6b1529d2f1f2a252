"""The commands of `tactful rewards`: thin over the other files of this folder."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipelines.arguments import Commands, ConfigPath, Overrides, loaded

app = Commands(help="Learn a reward: from preferences, a goal, or a judge.", no_args_is_help=True)


@app.callback()
def rewards() -> None:
    """Commands are added below, one for each way."""


RewardName = Annotated[
    str, typer.Argument(metavar="NAME", help="The learned reward; letters, digits and _.", show_default=False)
]
AnswerFiles = Annotated[
    list[Path], typer.Option("--answers", metavar="FILE", help="Answers as JSON lines; may be given again.")
]


@app.command()
def fit(
    config: ConfigPath,
    name: RewardName,
    answers: AnswerFiles,
    form: Annotated[
        Literal["weights", "network"],
        typer.Option("--form", help="Weights of the components, or a network over state, action and outcome."),
    ] = "weights",
    overrides: Overrides = None,
    untrusted: Annotated[bool, typer.Option("--untrusted", help="Also from a judge that is not trusted.")] = False,
) -> None:
    """Learn a reward from answers to which of two user-weeks went better."""
    from pipelines.rewards import fitting, fitting_network

    learn = fitting.run_fit if form == "weights" else fitting_network.run_network
    learn(loaded(config, overrides), name, answers, untrusted)


@app.command()
def report(
    config: ConfigPath,
    name: RewardName,
    overrides: Overrides = None,
    version: Annotated[int | None, typer.Option(help="By default the one in use, else the newest.")] = None,
) -> None:
    """Write what was learned as a page: accuracy, calibration, trade-offs, raters, and what could not be learned."""
    from pipelines.rewards import weights_page

    weights_page.run_report(loaded(config, overrides), name, version)


@app.command()
def loop(
    config: ConfigPath,
    name: RewardName,
    rounds: Annotated[int, typer.Option("--rounds", metavar="R", help="Rounds in all; those done are kept.")] = 3,
    pairs: Annotated[int, typer.Option("--pairs", metavar="N", help="New pairs of a round.")] = 50,
    overrides: Overrides = None,
) -> None:
    """Ask, fit, train, evaluate, ask about the new policy's weeks, ...; ends with 2 where a person is to answer."""
    from pipelines.rewards.looping import run_loop

    run_loop(loaded(config, overrides), name, rounds, pairs, config)


@app.command()
def goal(config: ConfigPath, name: RewardName, overrides: Overrides = None) -> None:
    """Learn how likely a state is one worth being in, as learned.goal says; a new version of the reward."""
    from pipelines.rewards.goals import run_goal

    run_goal(loaded(config, overrides), name)


@app.command()
def judge(
    config: ConfigPath,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The learned reward; its transcript goes on from run to run.")
    ],
    pairs: Annotated[int, typer.Option("--pairs", metavar="N", min=1, help="Pairs of user-weeks to ask about.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The answers.")] = Path("answers.jsonl"),
    human: Annotated[
        list[Path] | None,
        typer.Option("--human", metavar="FILE", help="Answers of people that the judge is held against."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Learn weights, corrected for the judge's errors and bias.")
    ] = False,
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="Learn them of a judge that is not trusted too.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Have a language model compare user-weeks, and say how far it agrees with people."""
    from rich.console import Console

    from pipelines.rewards.judged_shown import shown
    from pipelines.rewards.judging import Request, run_judge

    def tell(facts: dict[str, Any]) -> None:
        for line in shown(facts):
            typer.echo(line)

    request = Request(name, pairs, out, human or (), fit, untrusted)
    facts = run_judge(loaded(config, overrides), request, Console(stderr=True), tell)
    typer.echo(f"Written: {out}" + (f", and version {facts['version']} of {name}" if fit else ""))


@app.command()
def ask(
    config: ConfigPath,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="A learned reward: pairs that tell most of its weights, once it is fitted."
        ),
    ] = None,
    pairs: Annotated[int, typer.Option("--pairs", metavar="N", help="Questions on the page, repeats among them.")] = 20,
    rater: Annotated[str, typer.Option("--rater", metavar="NAME", help="Who answers.")] = "rater",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("ask.html"),
    answers: Annotated[
        list[Path] | None, typer.Option("--answers", metavar="FILE", help="Answers so far: no pair is asked again.")
    ] = None,
    repeats: Annotated[
        float, typer.Option("--repeats", help="Share of questions that ask an earlier pair again, sides swapped.")
    ] = 0.1,
    seed: Annotated[int | None, typer.Option("--seed", help="By default the file's; another one, other pairs.")] = None,
    overrides: Overrides = None,
) -> None:
    """Write a page on which a person says which of two user-weeks went better: no server, no network."""
    from pipelines.rewards.ask import Request
    from pipelines.rewards.ask import ask as write

    found = loaded(config, overrides)
    request = Request(pairs, rater, out, name, answers or (), repeats, found.seed if seed is None else seed)
    asked = write(found, request, config)
    again = sum(each.repeats is not None for each in asked.questions)
    typer.echo(
        f"{out}: {len(asked.questions)} pairs of {asked.weeks} user-weeks, chosen by {asked.by}; {again} come twice."
    )
    typer.echo(f"Open it in a browser; it saves {asked.file}. Then:")
    typer.echo(asked.command)
