import pytest
from django import db

from channels_websocket_utils.outages import lacks_migration, remedy_of


class Cause(Exception):
    def __init__(self, **codes):
        vars(self).update(codes)


def raised(error, **codes):
    error.__cause__ = Cause(**codes)
    return error


@pytest.mark.parametrize(
    "error",
    [
        db.OperationalError("no such table: channels_websocket_utils_websockettoken"),
        db.OperationalError("table channels_websocket_utils_websockettoken has no column named x"),
        raised(db.ProgrammingError("relation does not exist"), sqlstate="42P01"),
        raised(db.ProgrammingError("Spalte existiert nicht"), pgcode="42703"),
        db.ProgrammingError(1146, "Table doesn't exist"),
        db.OperationalError(1054, "Unknown column"),
        db.DatabaseError("ORA-00942: table or view does not exist"),
    ],
)
def test_missing_table_or_column_lacks_a_migration(error):
    assert lacks_migration(error)
    assert remedy_of(error) == " Run 'manage.py migrate'."


@pytest.mark.parametrize(
    "error",
    [
        db.OperationalError("database is locked"),
        db.OperationalError(2006, "MySQL server has gone away"),
        raised(db.OperationalError("terminating connection"), sqlstate="57P01"),
        db.OperationalError(),
        db.OperationalError(["unhashable"]),
        ConnectionError("no such table"),
    ],
)
def test_other_outages_lack_no_migration(error):
    assert not lacks_migration(error)
    assert remedy_of(error) == ""
