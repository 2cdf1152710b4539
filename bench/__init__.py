"""The benchmark of Penstock against the web server under it and against its own naive form: `python -m bench`."""
