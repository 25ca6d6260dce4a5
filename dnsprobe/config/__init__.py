"""The configuration files: dnsprobe's own and the web configuration of Prometheus exporters."""
