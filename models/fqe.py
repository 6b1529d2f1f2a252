"""Fitted Q evaluation of many stochastic policies at once, vector-valued, in raw units."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch import Draws, Held, Resident
from models.errors import InputError
from models.forward import Networks
from models.learners import fitted_q
from models.losses import horizon_of, td_loss
from models.network import Population, initial, predicted
from models.optimise import Descent, counted, follow
from models.recorded import Recorded
from models.table import Transitions

WARM_START = 0.25
"""Share of the updates that regress on the log's own returns before bootstrapping begins."""


@dataclass(frozen=True)
class FittedQ:
    """M fitted Q functions and the table they were fitted on."""

    network: Population
    state: Tensor
    """[N, S + E] normalised."""

    def __call__(self) -> NDArray[np.float64]:
        """[M, N, A, K] raw units, at every row of the table."""
        shift, scale = (each.cpu().numpy().astype(np.float64) for each in (self.network.shift, self.network.scale))
        found: NDArray[np.float64] = shift + scale * predicted(self.network, self.state)
        return found

    def networks(self) -> Networks:
        """The same functions without torch, at rows of any table."""

        def plain(each: Tensor) -> NDArray[np.float32]:
            return np.asarray(each.detach().cpu().numpy(), dtype=np.float32)

        own = self.network
        return Networks(
            tuple(plain(each) for each in own.weights),
            tuple(plain(each) for each in own.biases),
            plain(own.mean),
            plain(own.std),
            plain(own.shift),
            plain(own.scale),
            own.actions,
        )


def fit_fqe(
    table: Transitions,
    rows_fit: NDArray[np.bool_],
    next_probabilities: NDArray[np.float32],
    steps: int,
    gamma_per_day: float | None,
    extra_state: NDArray[np.float32] | None,
    seed: int,
    hidden: Sequence[int] = (64, 64),
    batch_size: int = 512,
    learning_rate: float = 2e-3,
    target_rate: float = 0.1,
    device: torch.device | None = None,
    progress: bool = False,
) -> FittedQ:
    """M functions Q_m(s, a) = E[r + gamma^Delta (1 - terminal) sum_a' pi_m(a'|s') Q_m(s', a')], one population.

    `rows_fit` [M, N] marks what each member may learn from; `next_probabilities` [M, N, A] is pi_m at the row after
    each, all 0 where nothing follows; `extra_state` [N, E] joins the state (time left). With `gamma_per_day` None
    nothing is discounted and a truncated row's target is r (evaluation); with a gamma, truncated rows are not learned
    from (learning). Members draw their own minibatches, from equal seeds: policies are compared on equal noise.

    Updates begin with a regression on the log's own returns, Q of the logging policy: bootstrapping then moves only
    what the policy changes, and a long horizon needs no more updates than a short one.

    Raises InputError where a member has no row to learn from. Source: Le, Voloshin and Yue 2019.
    """
    device = device or torch.device("cpu")
    goes_on: NDArray[np.bool_] = (table.next_row >= 0) & (next_probabilities.sum(axis=-1) > 0).any(axis=0)
    if gamma_per_day is None:
        learnable, stops = np.ones(len(table.user), dtype=np.bool_), ~goes_on
    else:
        learnable, stops = table.terminal | (table.next_row >= 0), table.terminal
    gamma = 1.0 if gamma_per_day is None else gamma_per_day
    rows = rows_fit & learnable
    if not rows.any(axis=1).all():
        member = int((~rows.any(axis=1)).argmax())
        raise InputError(f"fitted Q evaluation: policy {member} has no row to learn from; a longer log is needed.")
    used: NDArray[np.bool_] = np.any(rows, axis=0)
    discount = np.where(stops, 0.0, gamma**table.elapsed_days)
    returns = _returns(table, discount, goes_on, used, tail=gamma_per_day is not None)
    network, data = _prepare(table, rows, stops, returns, extra_state, seed, hidden, device)
    policy = torch.from_numpy(np.ascontiguousarray(next_probabilities, dtype=np.float32)).to(device)
    wanted = ((torch.from_numpy(returns).float().to(device) - network.shift) / network.scale).float()
    draws = Draws([Held.of(data, each) for each in rows], [seed] * len(rows), batch_size)
    each_member = torch.arange(len(rows), device=device).unsqueeze(1)
    one_gamma = torch.tensor([gamma], device=device)
    target = copy.deepcopy(network).requires_grad_(False)
    warm = int(WARM_START * steps)
    descent = Descent([network], [learning_rate] * len(rows), steps)

    def regress(at: Tensor) -> None:
        batch = data.at(at, one_gamma)
        descent.step(td_loss(network.heads(batch.state), batch.action, wanted[at]))

    def bootstrap(at: Tensor) -> None:
        descent.step(fitted_q(network, target, data.at(at, one_gamma), policy[each_member, at]))
        follow(target, network, target_rate)

    first: Recorded[None] = Recorded(device)
    then: Recorded[None] = Recorded(device)
    for step in counted(steps, "fitted Q evaluation", progress):
        if step == warm:
            follow(target, network, 1.0)
        descent.begin(step)
        if step < warm:
            first(regress, draws.at(step))
        else:
            then(bootstrap, draws.at(step))
    return FittedQ(network.requires_grad_(False), data.state)


def _prepare(
    table: Transitions,
    rows: NDArray[np.bool_],
    stops: NDArray[np.bool_],
    returns: NDArray[np.float64],
    extra_state: NDArray[np.float32] | None,
    seed: int,
    hidden: Sequence[int],
    device: torch.device,
) -> tuple[Population, Resident]:
    """A network whose output starts at the mean return in units of its spread, and the table beside it."""
    state = table.state if extra_state is None else np.concatenate([table.state, extra_state], axis=1)
    used = rows.any(axis=0)
    known = np.where(np.isfinite(state[used]), state[used], np.nan).astype(np.float64)
    count = np.maximum((~np.isnan(known)).sum(axis=0), 1)
    mean = np.nansum(known, axis=0) / count
    std = np.sqrt(np.nansum((known - mean) ** 2, axis=0) / count)
    # A column that never varies here (the users of one fold, say) carries nothing: any unit will do.
    std[std <= 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1.0
    spread = returns[used].std(axis=0)
    unit = mean, std, returns[used].mean(axis=0), np.where(spread > 0, spread, 1.0)
    mean_s, std_s, shift_k, scale_k = (torch.from_numpy(each).float() for each in unit)
    actions = len(table.contract.actions)
    network = initial([seed] * len(rows), hidden, mean_s, std_s, shift_k, scale_k, actions).to(device)
    data = Resident(
        state=network.normalise(torch.from_numpy(state).float().to(device)),
        legal=torch.from_numpy(table.legal).to(device),
        action=torch.from_numpy(table.action.astype(np.uint8)).to(device),
        reward=torch.from_numpy(table.reward).float().to(device),
        elapsed=torch.from_numpy(table.elapsed_days).float().to(device),
        stops=torch.from_numpy(stops).to(device),
        follows=torch.from_numpy(table.next_row >= 0).to(device),
    )
    return network, data


def _returns(
    table: Transitions, discount: NDArray[np.float64], goes_on: NDArray[np.bool_], used: NDArray[np.bool_], tail: bool
) -> NDArray[np.float64]:
    """[N, K] G_k = r_k + discount_k G_{k+1} along the log, raw units; where the log ends, r.

    With `tail`, a truncated end is followed by the value of mean rewards for ever, E[r] / (1 - E[discount]).
    """
    returns = table.reward.copy()
    if tail:
        horizon = horizon_of(float(discount[used].mean()))
        cut = ~goes_on & ~table.terminal
        returns[cut] += discount[cut, None] * table.reward[used].mean(axis=0) * horizon
    # All users at once: rows one step from the end of their trajectory, then two, and so on.
    ends = np.flatnonzero(~goes_on)
    place = np.arange(len(returns))
    to_end = ends[np.searchsorted(ends, place)] - place
    order = np.argsort(to_end, kind="stable")
    for rows in np.split(order, np.cumsum(np.bincount(to_end)))[1:-1]:
        returns[rows] += discount[rows, None] * returns[rows + 1]
    return returns
