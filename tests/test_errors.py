"""The exit codes are a contract (reliability: exit codes), so they are written down here a second time."""

from cedm_ray import errors

CODES = {
    "CedmError": 1,
    "ConfigurationError": 2,
    "InputDataError": 3,
    "NoUsableResultError": 5,
    "LockedError": 6,
    "StorageError": 7,
    "IntegrityError": 8,
    "SecurityError": 9,
    "TryAgainError": 75,
}


def test_every_error_has_the_exit_code_of_the_contract():
    found = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert found == CODES


def test_an_error_carries_what_mends_it():
    error = errors.StorageError("the storage is full", mend="make room")
    assert (str(error), error.mend) == ("the storage is full", "make room")
    assert errors.StorageError("the storage is full").mend is None
