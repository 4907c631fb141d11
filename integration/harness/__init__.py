"""Shared by tests, benches, captures and the demo: servers, projects, daemons and messages."""
