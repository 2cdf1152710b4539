"""Programs of other projects against `penstock serve`, as their users run them: `make test-clients`."""
