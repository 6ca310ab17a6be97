"""The host for a machine without a WebUI, on diffusers; importing it loads no torch."""

from extensions_lib.hosts.standalone.host import StandaloneHost

__all__ = ["StandaloneHost"]
