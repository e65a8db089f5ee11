"""Which errors of a store say that a record exists already, and which are failures."""

import errno

import pytest

from quantarena.bench.errors import UserError
from quantarena.bench.storage import shelves
from quantarena.bench.storage.shelves import ObjectShelf


class ClientError(Exception):
    """As botocore's: the code and the status lie in its response."""

    def __init__(self, code, status, text="it failed"):
        super().__init__(f"An error occurred ({code}) when calling the PutObject operation: {text}")
        self.response = {"Error": {}, "ResponseMetadata": {"HTTPStatusCode": status}}
        if code:
            self.response["Error"] = {"Code": code, "Message": text}


class HttpError(Exception):
    """As gcsfs': the code is an attribute, and ends the text."""

    def __init__(self, code, text="it failed"):
        super().__init__(f"{text}, {code}")
        self.code = code


class Fails:
    """A file system whose puts fail with one error."""

    async_impl = True

    def __init__(self, error, cause=None):
        self.error, self.cause = error, cause

    def pipe_file(self, path, data, mode):
        raise self.error from self.cause

    def unstrip_protocol(self, path):
        return f"s3://{path}"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FileExistsError("bucket/cell"), None),
        (OSError(errno.EINVAL, "At least one condition"), ClientError("PreconditionFailed", 412)),
        (OSError(errno.EIO, "try again"), ClientError("ConditionalRequestConflict", 409)),
        (OSError(errno.EINVAL, "it failed"), ClientError("412", 412)),
        (OSError(errno.EIO, "it failed"), ClientError("", 412)),
        (ClientError("PreconditionFailed", 412), None),
        (HttpError(412), None),
        (HttpError("409"), None),
    ],
)
def test_a_condition_that_did_not_hold(error, cause):
    assert not ObjectShelf(Fails(error, cause), "bucket").create("cell", b"1")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EIO, "the request of 412 bytes timed out"), None),
        (OSError("bucket/PreconditionFailed-409: connection reset"), None),
        (OSError(errno.EIO, "busy"), ClientError("SlowDown", 503, "request 4093412")),
        (OSError(errno.EBUSY, "no such state"), ClientError("InvalidBucketState", 409)),
        (HttpError(503, "cell-412.heir-409 EEXIST"), None),
        (RuntimeError("412"), None),
    ],
)
def test_other_failures_are_no_conflict_whatever_their_text_says(error, cause, monkeypatch):
    monkeypatch.setattr(shelves, "WAITS", (0.0,))
    with pytest.raises(UserError, match="cannot reach s3://bucket"):
        ObjectShelf(Fails(error, cause), "bucket").create("cell", b"1")
