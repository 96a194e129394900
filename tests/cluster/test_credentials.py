"""Secrets do not go into a job, and what is none does."""

import pytest

from cluster.credentials import check_command, check_variable
from msrcnn.errors import InputError

# Put together here, so that nobody's scanner takes this file for a leak.
ACCESS_KEY = "AKIA" + "Q" * 16
TOKEN = "hf_" + "a" * 30


@pytest.mark.parametrize("name", [
    "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS", "RAY_AUTH_TOKEN", "OPENAI_API_KEY", "PGPASSWORD", "DB_PASS", "APIKEY",
    "mlflow_tracking_password",
])  # fmt: skip
def test_names_of_secrets_are_refused_without_their_value(name):
    with pytest.raises(InputError, match=f"--env {name}: is not forwarded") as raised:
        check_variable(name, "hunter2")
    assert "hunter2" not in str(raised.value)
    assert "docs/cluster.md" in str(raised.value)


@pytest.mark.parametrize("value", [
    "https://me:hunter2@mlflow.example.org", "postgresql://me:hunter2@db/mlflow", "https://hunter2@example.org/x",
    "s3://key:hunter2@bucket/shards", "s3://bucket/shards?secret_key=hunter2", "s3://b/s?a=1&accessKey=hunter2",
    "https://x.example.org/f?X-Amz-Signature=hunter2", "https://x.example.org/f?sig=hunter2", ACCESS_KEY, TOKEN,
    "see https://a.example.org, then https://me:hunter2@b.example.org",
])  # fmt: skip
def test_secrets_in_values_are_refused_wherever_they_stand(value):
    with pytest.raises(InputError, match="--env PLACE: is not forwarded") as raised:
        check_variable("PLACE", value)
    assert value not in str(raised.value)
    assert "hunter2" not in str(raised.value)
    for arguments in (["train", "--tracking", value], ["train", f"--tracking={value}"]):
        with pytest.raises(InputError, match="--tracking: is not submitted") as raised:
            check_command(arguments)
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(("name", "value"), [
    ("MLFLOW_TRACKING_URI", "https://mlflow.example.org"), ("AWS_REGION", "eu-west-1"), ("NCCL_DEBUG", "INFO"),
    ("OMP_NUM_THREADS", "4"), ("KEYBOARD", "de"), ("PATHS", "s3://bucket/a,gs://bucket/b"),
    ("AUTHOR", "somebody@example.org"), ("AWS_ENDPOINT_URL", "http://minio:9000?region=eu"), ("COMPASS", "1"),
    ("MONKEYS", "3"), ("TOKENIZERS_PARALLELISM", "false"),
])  # fmt: skip
def test_what_is_no_secret_goes_along(name, value):
    check_variable(name, value)
    check_command(["train", "--shards", value])
