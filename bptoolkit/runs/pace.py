"""How fast a run goes, and how long it will still take, from the moments that it tells."""

from typing import NamedTuple

from bptoolkit.continual.walk import Moment

__all__ = ["Pace", "clock_time", "gone_on"]


class Pace(NamedTuple):
    """A combination on its way.

    first: when its first moment came, and at which update; compiling lies before it and is not counted.
    last: the same of its newest moment.
    """

    began: float  # when the combination was first heard of, or the one before it ended
    first: tuple[float, int]
    last: tuple[float, int]
    steps: int

    @property
    def rate(self) -> float | None:
        """Updates a second since the first moment, tests between tasks included; None before the second moment."""
        seconds, made = self.last[0] - self.first[0], self.last[1] - self.first[1]
        return made / seconds if made > 0 and seconds > 0 else None

    @property
    def spent(self) -> float:
        """Seconds so far, compiling included."""
        return self.last[0] - self.began

    @property
    def left(self) -> float | None:
        """Seconds until its last update, at this rate; None while the rate is unknown."""
        return None if self.rate is None else (self.steps - self.last[1]) / self.rate


def gone_on(pace: Pace | None, moment: Moment, began: float, now: float) -> Pace:
    """The pace after one more moment."""
    here = (now, moment.step)
    return Pace(began, here, here, moment.steps) if pace is None else pace._replace(last=here)


def clock_time(seconds: float | None) -> str:
    """Seconds as 0:42, 3:07 or 1:02:03.

    >>> clock_time(187.4), clock_time(3723), clock_time(None)
    ('3:07', '1:02:03', '–')
    """
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
