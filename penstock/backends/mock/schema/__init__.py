"""JSON for a JSON Schema: values that are valid, made from a key. Knows no job and no token."""
