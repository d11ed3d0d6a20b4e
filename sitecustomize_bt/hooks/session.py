"""The settings in force in this process."""

from __future__ import annotations

from ..startup import settings as _settings
from ..startup.settings import Settings


class Session:
    """``settings`` as the hooks read them whenever a model is loaded."""

    def __init__(self) -> None:
        self.settings = Settings()

    def begin(self, *, explicitly: bool = False) -> Settings:
        """Read the environment and the command line, and keep what they say."""
        self.settings = self.read(explicitly=explicitly)
        return self.settings

    def current(self) -> Settings:
        """The kept settings if enabled; otherwise those of a program that only uses ``apply``."""
        return self.settings if self.settings.enabled else self.read(explicitly=True)

    def end(self) -> None:
        """Go back to the defaults."""
        self.settings = Settings()

    @staticmethod
    def read(*, explicitly: bool = False) -> Settings:
        """What the environment and the command line say now.

        ``explicitly``: the program itself called ``install()`` or ``apply()``, which counts as
        switching on where the variable says nothing.
        """
        return _settings.from_process(unset="on" if explicitly else "off")


session = Session()
