"""A Linux gateway router: sing-box configurations, steered by the kernel."""

__version__ = "0.1.0"
