"""The settings of learning weights from preferences, apart from the mathematics: a configuration is read without it."""

from dataclasses import dataclass
from typing import ClassVar

from models.errors import InputError


@dataclass(frozen=True)
class PreferenceConfig:
    """[learned.preference] of a configuration."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    components: tuple[str, ...] = ()
    """Reward components that get a weight; all where none is named."""
    unit: str = ""
    """Component that trade-offs are told in; the one whose weight is most certain where none is named."""
    confidence: float = 0.95
    """Of intervals."""
    folds: int = 5
    """Parts that the pairs of user-weeks are cut into: each is held out once, and predicted from the others."""
    side_sd: float = 1.0
    """Standard deviation over raters of the log odds of `left` between equals: what a side bias is shrunk by."""
    reliability_sd: float = 0.5
    """Standard deviation over raters of their log reliability: what a rater of few answers is shrunk by."""

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise InputError(f"learned.preference.confidence is {self.confidence}; it must lie between 0 and 1.")
        if self.folds < 2:
            raise InputError(f"learned.preference.folds is {self.folds}; two parts or more are needed.")
        for name in ("side_sd", "reliability_sd"):
            if not getattr(self, name) > 0:
                raise InputError(f"learned.preference.{name} is {getattr(self, name)}; it must be above 0.")
        if self.components and self.unit and self.unit not in self.components:
            raise InputError(
                f"learned.preference.unit is {self.unit!r}, none of learned.preference.components; choose one of them."
            )
