"""The settings in force in this process."""

from __future__ import annotations

from ..startup.settings import Settings, from_process


class Session:
    """``settings`` as the hooks read them whenever a model is loaded."""

    def __init__(self) -> None:
        self.settings = Settings()

    def begin(self, *, explicitly: bool = False) -> Settings:
        """Read the environment and the command line, and keep what they say.

        ``explicitly``: the program itself called ``install()``, which counts as switching on where
        the variable says nothing.
        """
        self.settings = from_process(unset="on" if explicitly else "off")
        return self.settings

    def current(self) -> Settings:
        """The kept settings if enabled; otherwise those of a program that only uses ``apply``."""
        return self.settings if self.settings.enabled else from_process(unset="on")

    def end(self) -> None:
        """Go back to the defaults."""
        self.settings = Settings()


session = Session()
