#!/usr/bin/env bash
# Starts MLflow's server in its container, where docker-compose.yml sets it up by MLFLOW_… variables (a command line can be
# read by others).  It makes its bucket in the store at the first start; its tables it makes by itself.
set -euo pipefail

python - <<'PYTHON'
import os

import boto3

bucket = os.environ["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://")
store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
if bucket not in [each["Name"] for each in store.list_buckets()["Buckets"]]:
    store.create_bucket(Bucket=bucket)
PYTHON

exec mlflow server
