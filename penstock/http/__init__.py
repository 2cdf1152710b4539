"""HTTP as any API here needs it: connections, bodies, errors, the operators' routes. Knows no job and no gateway."""
