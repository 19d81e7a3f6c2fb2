"""Drop-ins with the signatures and semantics of other Hadamard packages: change one import.

- :mod:`hadacore.compat.fast_hadamard_transform` for the package ``fast-hadamard-transform`` (Dao-AILab);
- :mod:`hadacore.compat.faster_hadamard_transform` for the extension of the HadaCore publication.
"""
