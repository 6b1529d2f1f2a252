"""What the notification world is made of: its users, their habits, and the policy that logs them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

from models.errors import InputError

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 3600 * SECOND
DAY = 24 * HOUR
WEEK = 7 * DAY
STEP = 4 * HOUR
STEPS_PER_DAY = 6
NEVER = 2**63 - 1
"""A time after all others (us)."""

KINDS = ("delivered", "click", "dismiss", "disable", "enable", "session_start", "account_closed")
"""Event kinds of the world; an event's `kind` is an index into this tuple."""
SEGMENTS = ("dormant", "casual", "core")
ZONES = ("America/Los_Angeles", "America/New_York", "Europe/Berlin", "Asia/Kolkata", "Asia/Tokyo")
ACTIONS = ("hold", "send")


@dataclass(frozen=True)
class SimulatorConfig:
    """The world, its users, and the policy that logs it."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    users: int = 4000
    days: int = 21
    start: str = "2026-01-05"
    """First day, UTC."""
    epsilon: float = 0.3
    """The logging policy explores with this probability, uniformly over the legal actions."""
    threshold: float = 0.3
    """The logging policy's greedy choice is to send when relevance is above this."""
    truth_users: int = 4000
    """Users simulated for the true value of each policy."""
    fatigue_effect: float = 1.0
    """Multiplies what fatigue does to visits, clicks and disabling; 0 is a world in which nobody tires."""

    def __post_init__(self) -> None:
        for key in ("users", "days", "truth_users"):
            if getattr(self, key) < 1:
                raise InputError(f"simulate.{key} is {getattr(self, key)}; it must be 1 or more.")
        for key in ("epsilon", "threshold"):
            if not 0 <= getattr(self, key) <= 1:
                raise InputError(f"simulate.{key} is {getattr(self, key)}; it must lie in [0, 1].")
        if not 0 <= self.fatigue_effect <= 10:
            raise InputError(f"simulate.fatigue_effect is {self.fatigue_effect}; it must lie in [0, 10].")
        try:
            datetime.strptime(self.start, "%Y-%m-%d")
        except ValueError:
            raise InputError(f"simulate.start is {self.start!r}; write a day as YYYY-MM-DD.") from None

    @property
    def start_us(self) -> int:
        """Midnight UTC of the first day, microseconds since the epoch."""
        return int(datetime.strptime(self.start, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * SECOND


@dataclass(frozen=True)
class Behaviour:
    """How people behave; a tuple has one value per segment (dormant, casual, core). What comes of it: docs."""

    shares: tuple[float, float, float] = (0.35, 0.40, 0.25)
    """Share of users in each segment."""
    visits_per_day: tuple[float, float, float] = (0.03, 0.14, 0.8)
    """Median unprompted visits a day of a user without habit or fatigue."""
    visits_spread: float = 0.5
    """Standard deviation of the log of a user's own rate within the segment."""
    tenure_days: tuple[float, float, float] = (250.0, 400.0, 700.0)
    """Mean age of an account at the start of the log (exponential)."""
    visits_by_weekday: tuple[float, float] = (0.96, 1.1)
    """Factor of the visit rate on weekdays and at weekends, mean 1 over a week."""
    arrivals_per_day: tuple[float, float, float] = (0.6, 0.85, 1.25)
    """Items entering the queue (Poisson, at most two a step)."""
    near_real_time_per_day: tuple[float, float, float] = (0.1, 0.15, 0.25)
    """Near-real-time notifications, which the system sends at once (Poisson, at most one a step)."""
    arrivals_by_weekday: tuple[float, float] = (1.06, 0.85)
    """Factor of both on weekdays and at weekends, mean 1 over a week."""
    demand_persistence: float = 0.8
    demand_spread: float = 0.15
    """World-wide factor of both, from day to day: log demand is an AR(1) of this autocorrelation and standard
    deviation."""
    relevance_noise: float = 0.08
    """Standard deviation of observed less true relevance."""
    lifetime_hours: tuple[float, float] = (36.0, 60.0)
    """An item expires this long after it arrives (uniform)."""
    expired_sent: float = 0.5
    """Chance that the system sends an item that expired unsent; the others are dropped."""
    badge_pull: float = 0.15
    """Relative rise of the visit rate per unseen notification, up to three."""
    habit_gain: float = 0.08
    habit_days: float = 14.0
    habit_pull: float = 0.6
    """Habit h in [0, 1]: h += gain (1 - h) at a visit, decays over `habit_days`; the visit rate carries exp(pull h)."""
    fatigue_days: float = 4.0
    fatigue_gain: float = 2.0
    fatigue_visits: tuple[float, float, float] = (0.22, 0.18, 0.05)
    """Fatigue f += gain a at a send that annoys by a = (1 - r)^2, r its relevance; it decays over `fatigue_days`; the
    visit rate carries exp(-visits f)."""
    system_annoyance: float = 0.5
    """Multiplies a where the system sent: a reply or a last reminder is expected more than a pick of the policy."""
    click_odds: tuple[float, float, float] = (-5.9, -5.1, -4.5)
    click_relevance: float = 4.5
    click_near_real_time: float = 0.4
    click_fatigue: float = 0.25
    """Log odds of a click on a send: odds + relevance r + near_real_time (if it is one) - fatigue f."""
    click_minutes: float = 15.0
    """Median delay of a click (log-normal, log sd 1.5), under 24 h."""
    disable: float = 0.007
    disable_fatigue: float = 0.45
    """Chance that a send not clicked makes the user switch notifications off: disable a exp(fatigue f)."""
    enable_per_day: float = 0.02
    """Hazard of switching them on again."""
    dismiss: float = 0.25
    """Chance that a send neither clicked nor answered by switching off is dismissed."""
    close_per_day: float = 0.0001
    """Hazard of closing the account, times 1 + f."""
