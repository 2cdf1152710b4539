"""What Penstock is compared with. Each answers `POST /v1/generate` as Penstock does, event for event."""
