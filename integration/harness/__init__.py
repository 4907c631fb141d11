"""What tests, benches, captures and the demo share: servers, projects, daemons and messages."""
